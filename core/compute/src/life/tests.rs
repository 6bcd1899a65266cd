//! The whole table of states and inputs, the stories that matter, and random inputs against the invariants.

use super::*;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000;

/// A machine driven by hand, with its clock.
struct Driven {
    machine: Machine,
    now_us: u64,
    /// The command under way.
    under_way: Option<Command>,
}

impl Driven {
    fn new(origin: Origin) -> Driven {
        let (machine, under_way) = Machine::new(0, Policy::with_idle_timeout_ms(30_000), origin);
        Driven { machine, now_us: 0, under_way }
    }

    /// A new machine, its network ready, in this state.
    fn in_state(state: &State) -> Driven {
        let mut driven = Driven::new(Origin::New);
        driven.feed(Input::NetReady);
        match state {
            State::Adopting => return Driven::new(Origin::Known { wanted: Wanted::OnDemand }),
            State::Created => {}
            State::Booting => drop(driven.feed(Input::PacketWaiting)),
            State::Awake => driven.boot(),
            State::FallingAsleep => {
                driven.boot();
                driven.idle();
            }
            State::Asleep => driven.sleep(),
            State::Waking => {
                driven.sleep();
                driven.feed(Input::PacketWaiting);
            }
            State::Stopping => {
                driven.boot();
                driven.feed(Input::Stop);
            }
            State::Stopped => drop(driven.feed(Input::Stop)),
            State::Killed { .. } => driven.crash_until_killed(),
            State::Removed => drop(driven.feed(Input::Remove)),
        }
        assert_eq!(driven.machine.state().as_str(), state.as_str());
        driven
    }

    fn feed(&mut self, input: Input) -> Option<Command> {
        if let Input::Event(_) = input {
            self.under_way = None;
        }
        let command = self.machine.handle(self.now_us, input);
        if command.is_some() {
            self.under_way.clone_from(&command);
        }
        command
    }

    fn after(&mut self, us: u64) -> &mut Self {
        self.now_us += us;
        self
    }

    fn event(&mut self, event: Event) -> Option<Command> {
        self.feed(Input::Event(event))
    }

    fn boot(&mut self) {
        assert_eq!(self.feed(Input::PacketWaiting), Some(Command::Boot));
        assert_eq!(self.event(Event::Started), None);
    }

    fn sample(&mut self, delivered_packets: u64, cpu_us: u64) -> Option<Command> {
        self.feed(Input::Activity { delivered_packets, cpu_us })
    }

    fn idle(&mut self) {
        assert_eq!(self.after(SECOND).sample(7, 0), None);
        assert_eq!(self.after(31 * SECOND).sample(7, 0), Some(Command::Sleep { idle_since_packets: 7 }));
    }

    fn sleep(&mut self) {
        self.boot();
        self.idle();
        assert_eq!(self.event(Event::Slept), None);
    }

    fn crash(&mut self) {
        self.event(Event::Exited { clean: false, why: "bang".into() });
    }

    fn crash_until_killed(&mut self) {
        for _ in 0..5 {
            self.feed(Input::PacketWaiting);
            self.after(60 * SECOND).feed(Input::Tick);
            self.event(Event::Started);
            self.after(20 * SECOND).crash();
        }
    }

    fn state(&self) -> &'static str {
        self.machine.state().as_str()
    }
}

fn states() -> Vec<State> {
    use State::*;
    let killed = Killed { reason: String::new() };
    vec![Adopting, Created, Booting, Awake, FallingAsleep, Asleep, Waking, Stopping, Stopped, killed, Removed]
}

fn inputs() -> Vec<(&'static str, Input)> {
    let why = String::new;
    let event = Input::Event;
    vec![
        ("packet", Input::PacketWaiting),
        ("start", Input::Start),
        ("sleep", Input::Sleep),
        ("stop", Input::Stop),
        ("remove", Input::Remove),
        ("tick", Input::Tick),
        ("sample", Input::Activity { delivered_packets: 7, cpu_us: 0 }),
        ("adopted", event(Event::Adopted)),
        ("nothing", event(Event::NothingToAdopt { has_snapshot: true })),
        ("started", event(Event::Started)),
        ("refused", event(Event::SnapshotRefused { why: why() })),
        ("not started", event(Event::StartFailed { why: why() })),
        ("slept", event(Event::Slept)),
        ("cancelled", event(Event::SleepCancelled)),
        ("not slept", event(Event::SleepFailed { why: why() })),
        ("exited", event(Event::Exited { clean: false, why: why() })),
    ]
}

/// Every input in every state that does something, and what; every other pair must do nothing.
/// `state input -> state [command]`
const TABLE: &str = "
    adopting remove -> adopting
    adopting adopted -> awake
    adopting nothing -> asleep
    created packet -> booting Boot
    created start -> booting Boot
    created stop -> stopped
    created remove -> removed
    booting started -> awake
    booting not started -> created
    awake stop -> stopping Stop
    awake remove -> stopping Kill
    awake exited -> created
    falling_asleep slept -> asleep
    falling_asleep cancelled -> awake
    falling_asleep not slept -> awake
    falling_asleep exited -> created
    asleep packet -> waking Wake
    asleep start -> waking Wake
    asleep stop -> stopped
    asleep remove -> removed
    waking started -> awake
    waking refused -> booting Boot
    waking not started -> asleep
    stopping exited -> stopped
    stopped start -> booting Boot
    stopped remove -> removed
    killed start -> booting Boot
    killed stop -> stopped
    killed remove -> removed
";

#[test]
fn the_whole_table() {
    let rules: Vec<(&str, &str)> = TABLE
        .lines()
        .filter_map(|line| line.trim().split_once(" -> "))
        .map(|(a, b)| (a.trim(), b.trim()))
        .collect();
    let mut used = 0;
    for state in states() {
        for (name, input) in inputs() {
            let mut driven = Driven::in_state(&state);
            let command = driven.feed(input);
            let pair = format!("{} {name}", state.as_str());
            let rule = rules.iter().find(|(left, _)| *left == pair);
            used += usize::from(rule.is_some());
            let expected = rule.map_or(state.as_str(), |(_, right)| right);
            let word = command.map(|command| format!("{command:?}"));
            let word = word.as_deref().and_then(|word| word.split([' ', '{']).next()).unwrap_or("");
            let actual = format!("{} {word}", driven.state());
            assert_eq!(actual.trim(), expected, "in {pair}");
        }
    }
    assert_eq!(used, rules.len(), "a rule of the table names no state or input");
}

#[test]
fn what_is_asked_for_while_a_command_is_under_way_is_remembered() {
    let mut driven = Driven::in_state(&State::FallingAsleep);
    driven.feed(Input::Start);
    assert_eq!(driven.event(Event::Slept), Some(Command::Wake));

    let mut driven = Driven::in_state(&State::FallingAsleep);
    driven.feed(Input::PacketWaiting);
    assert_eq!(driven.event(Event::Slept), Some(Command::Wake));

    let mut driven = Driven::in_state(&State::FallingAsleep);
    driven.feed(Input::Stop);
    assert_eq!(driven.event(Event::SleepCancelled), Some(Command::Stop { grace_ms: 10_000 }));
    driven.feed(Input::Start);
    assert_eq!(driven.event(Event::Exited { clean: true, why: String::new() }), Some(Command::Boot));

    let mut driven = Driven::in_state(&State::Booting);
    driven.feed(Input::Stop);
    assert_eq!(driven.event(Event::Started), Some(Command::Stop { grace_ms: 10_000 }));

    let mut driven = Driven::in_state(&State::Waking);
    driven.feed(Input::Remove);
    driven.feed(Input::Start);
    assert_eq!(driven.event(Event::Started), Some(Command::Kill));
    driven.event(Event::Exited { clean: false, why: String::new() });
    assert_eq!(driven.state(), "removed");
}

#[test]
fn a_stopped_machine_with_a_snapshot_wakes_from_it_when_started() {
    let mut driven = Driven::in_state(&State::Asleep);
    driven.feed(Input::Stop);
    assert_eq!(driven.feed(Input::PacketWaiting), None);
    assert_eq!(driven.feed(Input::Start), Some(Command::Wake));
}

#[test]
fn nothing_starts_before_the_network_is_there() {
    let mut driven = Driven::new(Origin::Known { wanted: Wanted::OnDemand });
    driven.feed(Input::PacketWaiting);
    assert_eq!(driven.event(Event::NothingToAdopt { has_snapshot: false }), None);
    assert_eq!(driven.machine.next_deadline(), None);
    assert_eq!(driven.feed(Input::NetReady), Some(Command::Boot));
}

#[test]
fn what_the_owner_wanted_outlives_the_daemon() {
    let reason = || "it crashed".to_owned();
    for (wanted, adopted, found_nothing) in [
        (Wanted::OnDemand, None, "asleep"),
        (Wanted::Stopped, Some(Command::Stop { grace_ms: 10_000 }), "stopped"),
        (Wanted::Killed { reason: reason() }, Some(Command::Kill), "killed"),
        (Wanted::Removed, Some(Command::Kill), "removed"),
    ] {
        let origin = Origin::Known { wanted };
        assert_eq!(Driven::new(origin.clone()).event(Event::Adopted), adopted);
        let mut driven = Driven::new(origin);
        driven.event(Event::NothingToAdopt { has_snapshot: true });
        assert_eq!(driven.state(), found_nothing);
    }
}

#[test]
fn packets_keep_it_awake_and_so_does_work_but_not_for_ever() {
    let mut driven = Driven::in_state(&State::Awake);
    for packets in 0..100 {
        assert_eq!(driven.after(20 * SECOND).sample(packets, 0), None, "packets come in");
    }
    let mut cpu_us = 0;
    let mut busy_s = 0;
    while driven.machine.state() == &State::Awake {
        cpu_us += SECOND / 2;
        busy_s += 1;
        driven.after(SECOND).sample(99, cpu_us);
    }
    assert_eq!(busy_s, 300, "half a core defers sleep for ten idle timeouts");
}

#[test]
fn an_idle_timeout_of_zero_never_sleeps_by_itself_but_does_when_asked() {
    let (machine, _) = Machine::new(0, Policy::with_idle_timeout_ms(0), Origin::New);
    let mut driven = Driven { machine, now_us: 0, under_way: None };
    driven.feed(Input::NetReady);
    driven.boot();
    for _ in 0..100 {
        assert_eq!(driven.after(3600 * SECOND).sample(1, 0), None);
    }
    driven.feed(Input::Sleep);
    assert_eq!(driven.sample(1, 0), Some(Command::Sleep { idle_since_packets: 1 }));
}

#[test]
fn a_start_that_fails_is_tried_again_with_growing_pauses() {
    let mut driven = Driven::in_state(&State::Created);
    let mut pauses = Vec::new();
    for _ in 0..9 {
        driven.feed(Input::PacketWaiting);
        let due_us = driven.machine.next_deadline().unwrap_or(driven.now_us);
        pauses.push((due_us - driven.now_us) / SECOND);
        driven.now_us = due_us;
        driven.feed(Input::Tick);
        assert_eq!(driven.state(), "booting");
        driven.event(Event::StartFailed { why: "no memory".into() });
        assert!(driven.machine.note().contains("no memory"));
    }
    assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
    driven.after(60 * SECOND).feed(Input::PacketWaiting);
    driven.event(Event::Started);
    assert_eq!(driven.machine.note(), "", "success makes it history");
}

#[test]
fn a_sleep_that_fails_is_tried_again_later_and_later() {
    let mut driven = Driven::in_state(&State::FallingAsleep);
    let mut pauses = Vec::new();
    for _ in 0..7 {
        driven.event(Event::SleepFailed { why: "the disk is full".into() });
        let failed_us = driven.now_us;
        while driven.state() == "awake" {
            driven.after(SECOND).sample(7, 0);
        }
        pauses.push((driven.now_us - failed_us) / SECOND);
    }
    assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
}

#[test]
fn crashes_pause_it_and_too_many_of_them_kill_it_until_somebody_starts_it() {
    let mut driven = Driven::in_state(&State::Awake);
    for crash in 1..=5_u32 {
        driven.crash();
        assert!(driven.machine.note().contains("bang"));
        if crash == 5 {
            break;
        }
        assert_eq!(driven.feed(Input::PacketWaiting), None, "not before the pause is over");
        driven.after(SECOND << (crash - 1)).feed(Input::Tick);
        assert_eq!(driven.state(), "booting");
        driven.event(Event::Started);
    }
    let State::Killed { reason } = driven.machine.state() else { panic!("{}", driven.state()) };
    assert!(reason.contains("5 times within 10 minutes") && reason.contains("bang"), "{reason}");
    assert_eq!(driven.after(3600 * SECOND).feed(Input::PacketWaiting), None);
    assert_eq!(driven.feed(Input::Start), Some(Command::Boot));
}

#[test]
fn an_app_that_ends_by_itself_boots_on_the_next_packet_unless_it_ended_at_once() {
    let mut driven = Driven::in_state(&State::Awake);
    driven.after(11 * SECOND).event(Event::Exited { clean: true, why: "code 0".into() });
    assert_eq!(driven.feed(Input::PacketWaiting), Some(Command::Boot));
    driven.event(Event::Started);
    driven.after(SECOND).event(Event::Exited { clean: true, why: "code 0".into() });
    assert_eq!(driven.feed(Input::PacketWaiting), None, "that was too short: a pause");
}

#[test]
fn a_refused_snapshot_is_told() {
    let mut driven = Driven::in_state(&State::Waking);
    assert_eq!(driven.event(Event::SnapshotRefused { why: "it is cut short".into() }), Some(Command::Boot));
    driven.event(Event::Started);
    assert!(driven.machine.note().contains("it is cut short"));
}

/// A step of a random life: an input from outside, or an answer to the command under way (chosen by a number).
#[derive(Clone, Debug)]
enum Step {
    Outside(usize),
    Answer(usize),
    Exit { clean: bool },
    Wait { us: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..7_usize).prop_map(Step::Outside),
        6 => (0..4_usize).prop_map(Step::Answer),
        1 => any::<bool>().prop_map(|clean| Step::Exit { clean }),
        3 => (0..100_000_000_u64).prop_map(|us| Step::Wait { us }),
    ]
}

/// What the host may answer to a command.
fn answers(command: &Command) -> Vec<Event> {
    let why = || "why".to_owned();
    match command {
        Command::Adopt => vec![Event::Adopted, Event::NothingToAdopt { has_snapshot: true }],
        Command::Boot => vec![Event::Started, Event::StartFailed { why: why() }],
        Command::Wake => {
            vec![Event::Started, Event::SnapshotRefused { why: why() }, Event::StartFailed { why: why() }]
        }
        Command::Sleep { .. } => vec![Event::Slept, Event::SleepCancelled, Event::SleepFailed { why: why() }],
        Command::Stop { .. } | Command::Kill => vec![Event::Exited { clean: true, why: why() }],
    }
}

fn live(driven: &mut Driven, steps: Vec<Step>) -> Result<(), TestCaseError> {
    // What a host knows: is there a VMM?
    let mut vmm = false;
    for step in steps {
        let before = driven.under_way.clone();
        let input = match step {
            Step::Wait { us } => {
                driven.now_us += us;
                Input::Tick
            }
            Step::Outside(choice) => inputs().remove(choice).1,
            Step::Answer(choice) => {
                let Some(command) = &before else { continue };
                let mut answers = answers(command);
                let answer = answers.remove(choice % answers.len());
                vmm = matches!(answer, Event::Adopted | Event::Started)
                    || vmm && matches!(answer, Event::SleepCancelled | Event::SleepFailed { .. });
                Input::Event(answer)
            }
            Step::Exit { clean } => {
                // A VMM ends by itself while nothing is under way, or while it falls asleep.
                if !vmm || !matches!(before, None | Some(Command::Sleep { .. })) {
                    continue;
                }
                vmm = false;
                Input::Event(Event::Exited { clean, why: "bang".into() })
            }
        };
        let answered = matches!(input, Input::Event(_));
        let command = driven.feed(input);
        if command.is_some() {
            prop_assert!(before.is_none() || answered, "{command:?} while {before:?} is under way");
        }
        match command {
            Some(Command::Boot | Command::Wake) => prop_assert!(!vmm, "a second VMM"),
            Some(Command::Sleep { .. } | Command::Stop { .. } | Command::Kill) => {
                prop_assert!(vmm, "no VMM to end")
            }
            Some(Command::Adopt) | None => {}
        }
        prop_assert_eq!(driven.machine.state().is_waiting(), driven.under_way.is_some());
        let runs = matches!(driven.state(), "awake" | "falling_asleep" | "stopping");
        prop_assert_eq!(runs, vmm, "in {}", driven.state());
        if let Some(due_us) = driven.machine.next_deadline() {
            prop_assert!(due_us <= driven.now_us + 60 * SECOND, "it waits for longer than any pause");
            prop_assert!(due_us > driven.now_us, "something is due and not done");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_lives_keep_the_invariants(
        adopted in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let origin = if adopted { Origin::Known { wanted: Wanted::OnDemand } } else { Origin::New };
        let mut driven = Driven::new(origin);
        driven.feed(Input::NetReady);
        live(&mut driven, steps)?;
        // Whatever happened: answered and started by hand, it comes up, unless it was removed.
        for _ in 0..4 {
            if let Some(command) = driven.under_way.clone() {
                driven.event(answers(&command).remove(0));
            }
            driven.feed(Input::Start);
        }
        if driven.machine.wanted() != &Wanted::Removed {
            driven.after(3600 * SECOND).feed(Input::Tick);
            prop_assert_eq!(driven.state(), "awake");
        }
    }
}
