//! A machine's life as a pure state machine. One task owns a machine; it feeds events in and carries the commands out.
//!
//! ```text
//!   created --packet/start--> booting --started--> awake --idle--> falling asleep --slept--> asleep
//!                                ^                   ^  <--cancelled--'                        |
//!                                |                   '------------- waking <---packet/start----'
//!                                '---snapshot refused---------------'
//!   any --stop--> stopping --> stopped        any --VMM died--> created/asleep again, or killed(reason) after too many
//! ```

/// What the machine's owner task must do. At most one of `Boot`, `Wake`, `Sleep`, `Stop` is under way at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// After a restart of the daemon: is there a VMM of this machine? Answered by `Adopted` or `NothingToAdopt`.
    Adopt,
    /// Answered by `Started` or `StartFailed`.
    Boot,
    /// Answered by `Started`, `SnapshotRefused` or `StartFailed`.
    Wake,
    /// `idle_since_packets`: the TAP's count of delivered packets on which the decision rests.
    /// Answered by `Slept`, `SleepCancelled` or `SleepFailed`.
    Sleep { idle_since_packets: u64 },
    /// Answered by `Exited`.
    Stop { grace_ms: u64 },
    /// Answered by `Exited`.
    Kill,
}

/// What happened to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A VMM from before the daemon's restart runs on.
    Adopted,
    NothingToAdopt { has_snapshot: bool },
    Started,
    SnapshotRefused { why: String },
    StartFailed { why: String },
    Slept,
    SleepCancelled,
    /// The machine still runs.
    SleepFailed { why: String },
    /// The VMM ended without being put to sleep.
    Exited { clean: bool, why: String },
}
