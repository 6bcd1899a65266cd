//! The tiny guest: bare metal, a few KB. It does what it is told through ports, so that a test sees a guest's memory,
//! registers and time from the inside, also where /dev/kvm emulates each instruction.
//!
//! Invariant: it leaves its memory alone except where `protocol.rs` says; what it keeps is in memory or in
//! registers, so that a snapshot has all of it.
#![no_std]
#![no_main]

use core::{
    arch::{asm, global_asm},
    panic::PanicInfo,
};

#[allow(dead_code)]
#[path = "../src/protocol.rs"]
mod protocol;
use protocol::*;

// The 64-bit boot protocol arrives in long mode with memory mapped one to one, but without SSE, which compiled code may
// use, and with a stack of the loader's.
global_asm!(
    ".section .text.start,\"ax\"",
    ".global _start",
    "_start:",
    "mov rax, cr0",
    "and rax, -5", // EM off: floating point is not emulated
    "or rax, 2",   // MP on
    "mov cr0, rax",
    "mov rax, cr4",
    "or rax, 0x600", // OSFXSR and OSXMMEXCPT
    "mov cr4, rax",
    "cld",
    "lea rsp, [rip + stack_top]",
    "xor ebp, ebp",
    "call {main}",
    "ud2",
    ".section .bss",
    ".balign 16",
    ".skip 4096",
    "stack_top:",
    ".text",
    main = sym guest,
);

extern "C" fn guest() -> ! {
    output(EVENT_PORT, READY);
    loop {
        let command = input(COMMAND_PORT);
        if let Some(answer) = obey(command) {
            output(ANSWER_PORT, answer);
        }
    }
}

fn obey(command: u32) -> Option<u32> {
    match command {
        NOTHING => None,
        COUNT => {
            let tally = read(TALLY).wrapping_add(1);
            write(TALLY, tally);
            Some(tally)
        }
        TOUCH => {
            let pages = input(ARGUMENT_PORT);
            for page in 0..pages {
                write(TOUCHED + u64::from(page) * 4096, page.wrapping_add(1));
            }
            Some(pages)
        }
        PEEK => Some(read(TOUCHED + u64::from(input(ARGUMENT_PORT)) * 4096)),
        RENEWAL => Some(read(RENEWAL_PAGE + u64::from(input(ARGUMENT_PORT)) * 4)),
        TIME => Some(time()),
        SPIN => loop {
            write(SPINS, read(SPINS).wrapping_add(1));
        },
        HALT => halt(),
        RESET => {
            // SAFETY: the keyboard controller's reset line; nothing runs after it.
            unsafe { asm!("out 0x64, al", in("al") 0xfe_u8, options(nomem, nostack)) };
            None
        }
        FAULT => {
            // SAFETY: an undefined instruction, and there is no handler: that is what is asked for.
            unsafe { asm!("ud2", options(noreturn)) }
        }
        NOBODY => alone(),
        VECTORS => Some(swap_vector_register(input(ARGUMENT_PORT))),
        AIM => {
            map_devices();
            let address = input(ARGUMENT_PORT);
            write(AIMED, address);
            Some(address)
        }
        POKE => {
            write(u64::from(read(AIMED)), input(ARGUMENT_PORT));
            Some(0)
        }
        LOOK => Some(read(u64::from(read(AIMED)))),
        STORM => Some(storm(input(ARGUMENT_PORT))),
        _ => Some(PANICKED),
    }
}

/// One 2 MiB page at the devices' addresses, uncached.
fn map_devices() {
    const PRESENT_WRITABLE_UNCACHED_HUGE: u32 = 0b1001_0011;
    const PRESENT_WRITABLE: u32 = 0b11;
    write(DEVICE_TABLE, DEVICES as u32 | PRESENT_WRITABLE_UNCACHED_HUGE);
    write(DEVICE_TABLE + 4, 0);
    write(DEVICE_TABLE_ENTRY + 4, 0);
    write(DEVICE_TABLE_ENTRY, DEVICE_TABLE as u32 | PRESENT_WRITABLE);
}

/// All over the ports and the devices, but for those that end the machine or are the operator's.
fn storm(count: u32) -> u32 {
    map_devices();
    for n in 0..count {
        let port = n.wrapping_mul(2_654_435_761) >> 16;
        if !matches!(port, 0x64 | 0x510..=0x51f | 0x600) {
            // SAFETY: whatever is at the port, it does not touch this guest's memory.
            unsafe {
                asm!("out dx, al", in("dx") port as u16, in("al") n as u8, options(nomem, nostack));
                asm!("in al, dx", in("dx") port as u16, out("al") _, options(nomem, nostack));
            }
        }
        let at = DEVICES + u64::from(n.wrapping_mul(52) % 0x1_8000);
        write(at, n);
        read(at);
    }
    count
}

/// Shows on the console that it runs, and that it woke.
fn alone() -> ! {
    let first = read(RENEWAL_PAGE);
    tell(first);
    while read(RENEWAL_PAGE) == first {}
    // A line by itself, which the VMM passes on at once: each further byte is an exit of its own.
    print(b'\n');
    tell(read(RENEWAL_PAGE));
    halt()
}

fn tell(word: u32) {
    for digit in (0..8).rev() {
        let value = (word >> (digit * 4)) as u8 & 0xf;
        print(if value < 10 { b'0' + value } else { b'a' + value - 10 });
    }
    print(b'\n');
}

fn print(byte: u8) {
    // SAFETY: as for `output`.
    unsafe { asm!("out dx, al", in("dx") COM1, in("al") byte, options(nomem, nostack)) };
}

fn output(port: u16, value: u32) {
    // SAFETY: ports of our own; the VMM reads the value and touches nothing of ours.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

fn input(port: u16) -> u32 {
    let value;
    // SAFETY: as for `output`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

fn read(address: u64) -> u32 {
    // SAFETY: memory is mapped one to one up to 1 GiB, and nothing of Rust's lives at the protocol's addresses.
    unsafe { (address as *const u32).read_volatile() }
}

fn write(address: u64, value: u32) {
    // SAFETY: as for `read`.
    unsafe { (address as *mut u32).write_volatile(value) };
}

fn time() -> u32 {
    let low;
    // SAFETY: reads a counter.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") _, options(nomem, nostack)) };
    low
}

/// xmm7 is used nowhere else in the guest, so what is in it came through every snapshot on the way. It is moved by
/// way of memory with `movups`, one of the few vector instructions that KVM also emulates.
fn swap_vector_register(value: u32) -> u32 {
    (0..4).for_each(|word| write(VECTOR + word * 4, value));
    // SAFETY: writes 16 bytes at VECTOR + 16 and reads 16 at VECTOR, which are ours.
    unsafe {
        asm!(
            "movups [{at} + 16], xmm7",
            "movups xmm7, [{at}]",
            at = in(reg) VECTOR,
            options(nostack),
        );
    }
    read(VECTOR + 16)
}

fn halt() -> ! {
    loop {
        // SAFETY: sleeps; nothing can wake it but the VMM.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    output(EVENT_PORT, PANICKED);
    halt()
}
