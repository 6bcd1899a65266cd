//! The words between the tiny guest and its tests. Compiled into both, so that they cannot differ.

/// The guest writes here what happened by itself: a 32-bit event.
pub const EVENT_PORT: u16 = 0x510;
/// The guest reads its next command here.
pub const COMMAND_PORT: u16 = 0x514;
/// The guest reads the command's argument here.
pub const ARGUMENT_PORT: u16 = 0x518;
/// The guest writes the command's answer here.
pub const ANSWER_PORT: u16 = 0x51c;

/// Event: the guest runs. Once in its life; a restored guest does not say it again.
pub const READY: u32 = 0x7275_6e73;
/// Event: the guest's own code has a fault.
pub const PANICKED: u32 = 0xdead_dead;

/// Ask again. No answer.
pub const NOTHING: u32 = 0;
/// Adds one to the tally in memory and answers it.
pub const COUNT: u32 = 1;
/// Writes to so many pages, each its own number plus one. Answers how many.
pub const TOUCH: u32 = 2;
/// Answers the first word of that touched page.
pub const PEEK: u32 = 3;
/// Answers that 32-bit word of the renewal page.
pub const RENEWAL: u32 = 4;
/// Answers the low half of the time-stamp counter.
pub const TIME: u32 = 5;
/// Counts in memory for ever. No answer.
pub const SPIN: u32 = 6;
/// Halts with interrupts off. No answer.
pub const HALT: u32 = 7;
/// Asks the keyboard controller for a reset, as Linux does. No answer.
pub const RESET: u32 = 8;
/// Faults without any handler: a triple fault. No answer.
pub const FAULT: u32 = 9;
/// Keeps the argument in a vector register, and answers what was in it before.
pub const VECTORS: u32 = 10;

/// What is read where nobody answers: the guest runs on a real machine. It says so on COM1, one line of the renewal
/// page's first word in hexadecimal, and once more when that has changed, which is after a wake; then it halts.
pub const NOBODY: u32 = u32::MAX;
/// Where the console is.
pub const COM1: u16 = 0x3f8;
/// Keeps the argument as an address for `POKE` and `LOOK`, and answers it. Devices' registers can be reached, too.
pub const AIM: u32 = 11;
/// Writes the argument to the address, 32 bits. Answers 0.
pub const POKE: u32 = 12;
/// Answers what is at the address.
pub const LOOK: u32 = 13;
/// Writes to so many ports and device addresses, and reads from them. Answers how many.
pub const STORM: u32 = 14;

/// Where the tally is, in guest memory.
pub const TALLY: u64 = 0x20_0000;
/// Where the count of `SPIN` is.
pub const SPINS: u64 = 0x20_0008;
/// Where values on their way to and from the vector register are.
pub const VECTOR: u64 = 0x20_0010;
/// Where the pages of `TOUCH` begin.
pub const TOUCHED: u64 = 0x20_1000;
/// Where the VMM puts what is fresh at every start and wake: an id of 16 bytes, then a seed of 32.
pub const RENEWAL_PAGE: u64 = 0x4000;
/// A page table for the devices' registers, and the entry that refers to it.
pub const DEVICE_TABLE: u64 = 0xc000;
pub const DEVICE_TABLE_ENTRY: u64 = 0xa000 + 3 * 8;
/// The devices' registers begin in this 2 MiB page.
pub const DEVICES: u64 = 0xc000_0000;
/// Where the address of `AIM` is.
pub const AIMED: u64 = 0x20_0030;
