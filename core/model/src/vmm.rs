//! The control channel between the daemon and `cloudpal-vmm`: one JSON object per line, both ways, and descriptors
//! beside the lines that name them.
//!
//! ```text
//!  VMM:  Ready ──Boot──► runs ◄──Resume── paused ──Save──► paused
//!          └─────Wake─────┘│ └───Pause─────►┘
//!                          └──Release: frames from the TAP are let in, and writes to the disk
//! ```
//! The daemon asks (`ToVmm`, numbered), the VMM answers (`FromVmm::Reply` with that number) and tells
//! (`FromVmm::Ready`, `Ended`). An ask with `files` comes with as many descriptors, in that order, sent with the
//! line's first byte. A VMM that has no machine yet ends with its channel; one that has a machine lives on, and a later
//! daemon connects to its socket, starting with an empty line. Both sides skip empty lines.
//!
//! The VMM is not trusted by the daemon: a guest may have taken it over. Whoever reads this channel bounds every line
//! by [`MAX_LINE_BYTES`], and no descriptor is ever taken from it.

use crate::Rates;
use serde::{Deserialize, Serialize};

/// No line of the channel is longer, in either direction.
pub const MAX_LINE_BYTES: usize = 64 << 10;
/// No message brings more descriptors.
pub const MAX_FILES: usize = 16;
/// Where a VMM keeps these two of its descriptors, so that a daemon that never saw it can find them.
pub const LOCK_FD: i32 = 10;
pub const TAP_FD: i32 = 11;

/// A message from the daemon to the VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToVmm {
    pub id: u64,
    /// What the descriptors beside this line are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    #[serde(flatten)]
    pub ask: Ask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum File {
    Tap,
    /// The read-only root and the writable disk.
    Root,
    Disk,
    Kernel,
    Initramfs,
    /// A snapshot's device state, memory, and what of the memory has changed since that base.
    State,
    Memory,
    Diff,
    /// What of its memory a woken machine has used until it sleeps again.
    WorkingSet,
    /// What the guest's log port and its console say.
    Log,
    Console,
    /// The VMM's own last words.
    Errors,
    /// Held for as long as the VMM lives.
    Lock,
    /// Listening sockets: for this channel, and for the guest's control port.
    ChannelSocket,
    ControlSocket,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// To one that is `Ready`: start the kernel. The guest runs when this is answered.
    Boot {
        machine: Machine,
        command_line: String,
    },
    /// To one that is `Ready`: go on from the snapshot. The guest runs when this is answered; what it writes to its
    /// disk waits for `Release`, so that until then the wake can be done again.
    Wake {
        machine: Machine,
        verify_memory: bool,
    },
    Resume,
    /// The guest is ready for packets: what waits in the TAP is let in, in order. What a woken guest wrote to its disk
    /// meanwhile is written now.
    Release,
    /// Once answered, no vCPU runs, no device works, and no frame is taken from the TAP.
    Pause,
    /// To a paused one: write `State`, and all of the memory into `Memory`, or, if a `Diff` came along and little has
    /// changed since its last wake, only that; and into a `WorkingSet` what it has used since. Whatever is asked
    /// meanwhile ends it: it has failed then.
    Save,
    Stats,
}

/// What the daemon decides about a machine's devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub mac: [u8; 6],
    #[serde(default)]
    pub rates: Rates,
    /// Disks and network only: OSv crashes when it finds a random generator on this bus, and no library OS has our
    /// init, which the console is for.
    #[serde(default)]
    pub library_os: bool,
}

/// A message from the VMM to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "snake_case")]
pub enum FromVmm {
    /// Jailed, with VM, vCPUs and memory made, waiting for its machine.
    Ready {
        version: String,
    },
    Reply {
        id: u64,
        reply: Reply,
    },
    /// The last message: the guest does not run any more.
    Ended {
        end: End,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Done,
    /// The kernel or the snapshot is at fault: another try with it ends alike.
    Refused {
        why: String,
    },
    /// This host is, or the daemon.
    Failed {
        why: String,
    },
    /// What was to be saved does not fit on the disk.
    DiskFull,
    /// Into the `Diff` that came along, or into `Memory`.
    Saved {
        diff: bool,
    },
    Stats(Stats),
}

/// Counted since this VMM has had its machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// From the arrival of the ask to the guest's first instruction, microseconds.
    pub start_us: u64,
    pub running: bool,
}

/// Why a guest does not run any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum End {
    PowerOff,
    /// It asked for a reset, which a Linux kernel does after a panic, too.
    Reset,
    /// The CPU gave up: a triple fault.
    Crash,
    /// The VMM cannot go on with it.
    Failed {
        what: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU64;

    #[test]
    fn every_message_is_one_line_of_json_and_comes_back() {
        let rates = Rates { network_bytes_per_s: NonZeroU64::new(7), disk_bytes_per_s: None };
        let machine = Machine { mac: [2, 0, 0, 0, 0, 1], rates, library_os: true };
        let asks = [
            (
                vec![File::Kernel, File::Tap],
                Ask::Boot { machine: machine.clone(), command_line: "a\nb".into() },
            ),
            (vec![File::State, File::Memory, File::Lock], Ask::Wake { machine, verify_memory: true }),
            (vec![], Ask::Resume),
            (vec![File::State, File::Diff], Ask::Save),
        ];
        for (files, ask) in asks {
            let ask = ToVmm { id: 7, files, ask };
            let line = serde_json::to_string(&ask).expect("JSON");
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<ToVmm>(&line).expect("the same"), ask);
        }
        let tells = [
            FromVmm::Ready { version: "1".into() },
            FromVmm::Reply { id: 7, reply: Reply::Refused { why: "short".into() } },
            FromVmm::Reply { id: 8, reply: Reply::Stats(Stats { start_us: 300, running: true }) },
            FromVmm::Ended { end: End::Failed { what: "KVM".into() } },
        ];
        for tell in tells {
            let line = serde_json::to_string(&tell).expect("JSON");
            assert_eq!(serde_json::from_str::<FromVmm>(&line).expect("the same"), tell);
        }
    }
}
