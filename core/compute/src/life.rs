//! A machine's life as a pure state machine. One task owns a machine; it feeds inputs in and carries the commands out.
//!
//! ```text
//!   adopting --nothing there--> created / asleep / stopped / killed        adopting --adopted--> awake
//!   created --packet/start--> booting --started--> awake --idle--> falling asleep --slept--> asleep
//!                                ^                   ^  <--cancelled/failed--'                 |
//!                                |                   '--started-- waking <--packet/start-------'
//!                                '---snapshot refused----------------'
//!   any --stop--> stopping --exited--> stopped     awake --VMM ended--> created, or killed(reason) after too many
//! ```
//!
//! Invariants:
//! - At most one of `Adopt`, `Boot`, `Wake`, `Sleep`, `Stop`, `Kill` is under way; each is answered exactly once, and
//!   what is asked for in the meantime is remembered. `Exited` also answers a `Sleep` during which the VMM died;
//!   whatever answer comes after that is ignored.
//! - Nothing is started before the machine's network is there ([`Input::NetReady`]), and never twice.
//! - Whatever fails is tried again after a pause that grows; nothing loops without one.

mod policy;
#[cfg(test)]
mod tests;

pub use policy::Policy;

use policy::{CpuShare, Pauses};

/// What the machine's owner task must do. At most one is under way at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// After a restart of the daemon: is there a VMM of this machine? Answered by `Adopted` or `NothingToAdopt`.
    Adopt,
    /// Answered by `Started` or `StartFailed`.
    Boot,
    /// Answered by `Started`, `SnapshotRefused` or `StartFailed`.
    Wake,
    /// `idle_since_packets`: the TAP's count of delivered packets on which the decision rests.
    /// Answered by `Slept`, `SleepCancelled` or `SleepFailed`; by `Exited` when the VMM died of it.
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
    NothingToAdopt {
        has_snapshot: bool,
    },
    Started,
    SnapshotRefused {
        why: String,
    },
    StartFailed {
        why: String,
    },
    Slept,
    SleepCancelled,
    /// The machine still runs.
    SleepFailed {
        why: String,
    },
    /// The VMM ended without being put to sleep.
    Exited {
        clean: bool,
        why: String,
    },
}

/// Everything that moves a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Event(Event),
    /// The machine's TAP, addresses and routes are in place.
    NetReady,
    /// A packet waits in the machine's TAP.
    PacketWaiting,
    /// A sample of a running machine: packets it took from its TAP and CPU time it used, both since ever.
    Activity {
        delivered_packets: u64,
        cpu_us: u64,
    },
    /// Run now; clears `stopped` and `killed` and every pause.
    Start,
    /// Fall asleep at the next sample that saw no packet, without waiting for the idle time.
    Sleep,
    /// End, and stay ended until `Start`.
    Stop,
    /// End at once, for ever: the app was removed.
    Remove,
    /// Time has passed.
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// The daemon has just started: is there a VMM from before?
    Adopting,
    /// No VMM, no snapshot: a packet boots it.
    Created,
    Booting,
    Awake,
    FallingAsleep,
    /// No VMM; a snapshot: a packet wakes it.
    Asleep,
    Waking,
    Stopping,
    /// No VMM, until somebody starts it.
    Stopped,
    /// No VMM, until somebody starts it: it failed too often.
    Killed {
        reason: String,
    },
    /// No VMM, for ever.
    Removed,
}

impl State {
    /// As people and the API read it.
    pub fn as_str(&self) -> &'static str {
        match self {
            State::Adopting => "adopting",
            State::Created => "created",
            State::Booting => "booting",
            State::Awake => "awake",
            State::FallingAsleep => "falling_asleep",
            State::Asleep => "asleep",
            State::Waking => "waking",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Killed { .. } => "killed",
            State::Removed => "removed",
        }
    }

    /// A packet that waits in the TAP starts it: the TAP wants watching.
    pub fn wants_watch(&self) -> bool {
        matches!(self, State::Created | State::Asleep)
    }

    /// A command is under way.
    fn is_waiting(&self) -> bool {
        use State::{Adopting, Booting, FallingAsleep, Stopping, Waking};
        matches!(self, Adopting | Booting | Waking | FallingAsleep | Stopping)
    }
}

/// Where a machine begins: a new one, or one from before a restart of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    New,
    /// Look for its VMM; then run on demand, stay stopped, stay killed or be removed.
    Known {
        wanted: Wanted,
    },
}

/// What the owner wants of the machine. It outlives the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    OnDemand,
    Stopped,
    Killed { reason: String },
    Removed,
}

/// How often something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub boots: u64,
    pub wakes: u64,
    pub sleeps: u64,
    pub cancelled_sleeps: u64,
    pub crashes: u64,
}

/// One machine. Times are monotonic microseconds.
#[derive(Clone, Debug)]
pub struct Machine {
    policy: Policy,
    state: State,
    since_us: u64,
    wanted: Wanted,
    net_ready: bool,
    /// The disk has a good snapshot, as far as is known.
    snapshot: bool,
    /// Somebody waits for it: a packet in the TAP, or a person.
    start_asked: bool,
    sleep_asked: bool,
    /// When the packet or person that wakes it came.
    asked_at_us: Option<u64>,
    delivered_packets: Option<u64>,
    last_packet_us: u64,
    cpu: CpuShare,
    pauses: Pauses,
    note: String,
    /// The note is of a failure that the next success makes history.
    note_passes: bool,
    last_wake_us: Option<u64>,
    pub counts: Counts,
}

impl Machine {
    /// The command is the first thing its owner must do: of a known machine, to look for its VMM.
    pub fn new(now_us: u64, policy: Policy, origin: Origin) -> (Machine, Option<Command>) {
        let (state, wanted, command) = match origin {
            Origin::New => (State::Created, Wanted::OnDemand, None),
            Origin::Known { wanted } => (State::Adopting, wanted, Some(Command::Adopt)),
        };
        let machine = Machine {
            policy,
            state,
            since_us: now_us,
            wanted,
            net_ready: false,
            snapshot: false,
            start_asked: false,
            sleep_asked: false,
            asked_at_us: None,
            delivered_packets: None,
            last_packet_us: now_us,
            cpu: CpuShare::default(),
            pauses: Pauses::default(),
            note: String::new(),
            note_passes: false,
            last_wake_us: None,
            counts: Counts::default(),
        };
        (machine, command)
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn since_us(&self) -> u64 {
        self.since_us
    }

    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    pub fn net_is_ready(&self) -> bool {
        self.net_ready
    }

    /// Why it is as it is, for people; empty when there is nothing to say.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// From the packet that woke it last to the guest running again.
    pub fn last_wake_us(&self) -> Option<u64> {
        self.last_wake_us
    }

    /// When `Input::Tick` is due, if nothing else happens.
    pub fn next_deadline(&self) -> Option<u64> {
        let startable = matches!(self.state, State::Created | State::Asleep);
        (startable && self.start_asked && self.net_ready).then(|| self.pauses.start_not_before_us())
    }

    /// One step. The commands must be carried out in order; there is at most one that takes time.
    pub fn handle(&mut self, now_us: u64, input: Input) -> Option<Command> {
        match input {
            Input::NetReady => self.net_ready = true,
            Input::Tick => {}
            Input::PacketWaiting => self.packet_waiting(now_us),
            Input::Activity { delivered_packets, cpu_us } => {
                return self.activity(now_us, delivered_packets, cpu_us);
            }
            Input::Sleep => self.sleep_asked = !self.state_is_down(),
            Input::Start => self.start(now_us),
            Input::Stop if self.wanted != Wanted::Removed => self.want_down(Wanted::Stopped),
            Input::Stop => {}
            Input::Remove => self.want_down(Wanted::Removed),
            Input::Event(event) => self.happened(now_us, event),
        }
        self.advance(now_us)
    }

    fn state_is_down(&self) -> bool {
        use State::{Asleep, Created, Killed, Removed, Stopped};
        matches!(self.state, Created | Asleep | Stopped | Removed | Killed { .. })
    }

    /// While it runs, its VMM takes the packet; while it is wanted down, nobody does.
    fn packet_waiting(&mut self, now_us: u64) {
        let remembered =
            matches!(self.state, State::Created | State::Asleep | State::FallingAsleep | State::Adopting);
        if remembered && self.wanted == Wanted::OnDemand {
            self.ask_start(now_us);
        }
    }

    fn ask_start(&mut self, now_us: u64) {
        self.start_asked = true;
        self.asked_at_us.get_or_insert(now_us);
    }

    fn start(&mut self, now_us: u64) {
        if self.wanted == Wanted::Removed {
            return;
        }
        self.wanted = Wanted::OnDemand;
        self.sleep_asked = false;
        self.pauses = Pauses::default();
        if matches!(self.state, State::Awake | State::Booting | State::Waking) {
            return;
        }
        self.ask_start(now_us);
        if matches!(self.state, State::Stopped | State::Killed { .. }) {
            self.set_note(String::new(), false);
            let state = if self.snapshot { State::Asleep } else { State::Created };
            self.enter(now_us, state);
        }
    }

    fn want_down(&mut self, wanted: Wanted) {
        self.wanted = wanted;
        self.start_asked = false;
        self.sleep_asked = false;
        self.asked_at_us = None;
    }

    fn set_note(&mut self, note: String, passes: bool) {
        self.note = note;
        self.note_passes = passes;
    }

    fn forget_passing_note(&mut self) {
        if std::mem::take(&mut self.note_passes) {
            self.note.clear();
        }
    }

    fn enter(&mut self, now_us: u64, state: State) {
        self.state = state;
        self.since_us = now_us;
    }

    /// What happened, into the state; what to do about it is [`Machine::advance`]'s.
    fn happened(&mut self, now_us: u64, event: Event) {
        match (self.state.clone(), event) {
            (State::Adopting, Event::Adopted) => self.awake(now_us),
            (State::Adopting, Event::NothingToAdopt { has_snapshot }) => {
                self.snapshot = has_snapshot;
                self.down(now_us);
            }
            (State::Booting, Event::Started) => {
                self.counts.boots += 1;
                self.started(now_us);
            }
            (State::Waking, Event::Started) => {
                self.counts.wakes += 1;
                self.last_wake_us = self.asked_at_us.map(|asked| now_us.saturating_sub(asked));
                self.set_note(String::new(), false);
                self.started(now_us);
            }
            (State::Waking, Event::SnapshotRefused { why }) => {
                self.set_note(format!("booted afresh, since its snapshot was refused: {why}"), false);
                self.snapshot = false;
                self.start_asked |= self.wanted == Wanted::OnDemand;
                self.down(now_us);
            }
            (State::Booting | State::Waking, Event::StartFailed { why }) => {
                let pause_us = self.pauses.start_failed(now_us);
                let pause_s = pause_us.div_ceil(1_000_000);
                self.set_note(format!("did not start: {why}; no new try within {pause_s} s"), true);
                self.start_asked = false;
                self.down(now_us);
            }
            (State::FallingAsleep, Event::Slept) => {
                self.counts.sleeps += 1;
                self.snapshot = true;
                self.pauses.slept();
                self.forget_passing_note();
                self.down(now_us);
            }
            (State::FallingAsleep, Event::SleepCancelled) => {
                self.counts.cancelled_sleeps += 1;
                self.awake(now_us);
            }
            (State::FallingAsleep, Event::SleepFailed { why }) => {
                let pause_us = self.pauses.sleep_failed(now_us, &self.policy);
                let pause_s = pause_us.div_ceil(1_000_000);
                let note =
                    format!("stays awake, since falling asleep failed: {why}; no new try within {pause_s} s");
                self.set_note(note, true);
                self.awake(now_us);
            }
            (State::Awake | State::FallingAsleep, Event::Exited { clean, why }) => {
                self.ended(now_us, clean, &why)
            }
            (State::Stopping, Event::Exited { .. }) => self.down(now_us),
            // The answer to a command that is no longer under way: nothing to learn from it.
            _ => {}
        }
    }

    fn started(&mut self, now_us: u64) {
        self.pauses.started(now_us);
        self.forget_passing_note();
        self.awake(now_us);
    }

    fn awake(&mut self, now_us: u64) {
        self.snapshot = false;
        self.start_asked = false;
        self.asked_at_us = None;
        self.delivered_packets = None;
        self.last_packet_us = now_us;
        self.cpu = CpuShare::default();
        self.enter(now_us, State::Awake);
    }

    /// There is no VMM any more: the state without one that the owner wants.
    fn down(&mut self, now_us: u64) {
        self.sleep_asked = false;
        let state = match &self.wanted {
            Wanted::OnDemand if self.snapshot => State::Asleep,
            Wanted::OnDemand => State::Created,
            Wanted::Stopped => State::Stopped,
            Wanted::Killed { reason } => State::Killed { reason: reason.clone() },
            Wanted::Removed => State::Removed,
        };
        self.enter(now_us, state);
    }

    /// The VMM ended by itself. The app's next packet boots it, after a pause if it failed; too many failures end it.
    fn ended(&mut self, now_us: u64, clean: bool, why: &str) {
        self.snapshot = false;
        if clean && !self.pauses.was_short(now_us) {
            self.set_note(format!("ended by itself: {why}"), false);
        } else {
            self.counts.crashes += 1;
            let in_window = self.pauses.crashed(now_us, &self.policy);
            self.set_note(format!("crashed: {why}"), false);
            if in_window >= self.policy.max_crashes && self.wanted == Wanted::OnDemand {
                let minutes = self.policy.crash_window_us / 60_000_000;
                let reason =
                    format!("it crashed {in_window} times within {minutes} minutes; the last time: {why}");
                self.want_down(Wanted::Killed { reason });
            }
        }
        self.down(now_us);
    }

    /// A sample: is it time to sleep?
    fn activity(&mut self, now_us: u64, delivered_packets: u64, cpu_us: u64) -> Option<Command> {
        if self.state != State::Awake || self.wanted != Wanted::OnDemand {
            return None;
        }
        let before = self.delivered_packets.replace(delivered_packets);
        if before.is_some_and(|before| before != delivered_packets) {
            self.last_packet_us = now_us;
        }
        let busy = self.cpu.sample(now_us, cpu_us).is_none_or(|share| share > self.policy.busy_share_percent);
        let idle_us = now_us.saturating_sub(self.last_packet_us);
        let timeout_us = self.policy.idle_timeout_us;
        let idle = timeout_us > 0
            && idle_us >= timeout_us
            && (!busy || idle_us >= timeout_us.saturating_mul(self.policy.busy_defers_times))
            && now_us >= self.pauses.sleep_not_before_us();
        // Who asks for sleep need not wait for the idle time, but for the work on the last packet: one quiet sample.
        let asked = self.sleep_asked && before == Some(delivered_packets);
        if !idle && !asked {
            return None;
        }
        self.sleep_asked = false;
        self.enter(now_us, State::FallingAsleep);
        Some(Command::Sleep { idle_since_packets: delivered_packets })
    }

    /// From the present state towards the wanted one, if no command is under way.
    fn advance(&mut self, now_us: u64) -> Option<Command> {
        if self.state.is_waiting() {
            return None;
        }
        if self.state == State::Awake {
            let command = match self.wanted {
                Wanted::OnDemand => return None,
                Wanted::Stopped => Command::Stop { grace_ms: self.policy.stop_grace_ms },
                Wanted::Killed { .. } | Wanted::Removed => Command::Kill,
            };
            self.enter(now_us, State::Stopping);
            return Some(command);
        }
        match (&self.wanted, &self.state) {
            (Wanted::Stopped, State::Created | State::Asleep | State::Killed { .. }) => self.down(now_us),
            (Wanted::Removed, state) if *state != State::Removed => self.down(now_us),
            _ => {}
        }
        let due = self.start_asked && self.net_ready && now_us >= self.pauses.start_not_before_us();
        match self.state {
            State::Created if due => {
                self.enter(now_us, State::Booting);
                Some(Command::Boot)
            }
            State::Asleep if due => {
                self.enter(now_us, State::Waking);
                Some(Command::Wake)
            }
            _ => None,
        }
    }
}
