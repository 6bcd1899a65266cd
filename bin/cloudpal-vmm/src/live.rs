//! A machine that runs by itself: a thread for each vCPU and one for the devices.
//!
//! ```text
//!            resume                       the guest switches itself off, resets, faults
//!  Paused ───────────► Running ───────────────────────────► Ended
//!    ▲  ◄─────────────    │                                   │
//!    │       pause        └── drop ──► every thread joined ◄──┘
//!    └─ launch   run_on ──► Running               (from Paused, too)
//! ```
//! Invariants:
//! - `pause` stops the vCPUs first and the devices' thread after them; when it returns, nothing of the machine runs,
//!   every vCPU stands between two instructions, and no frame is taken from a TAP any more.
//! - State is saved in Paused only.
//! - Ended is told once, with the first reason that there was; from there no way leads back.

use crate::{
    Error, Machine,
    crew::{Crew, Threads},
    kick::Kick,
    machine::{Ended, NoPorts, locked},
    memory::Memory,
    snapshot::{Save, Saved},
    vcpu::Vcpu,
    vcpu_state,
};
use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::JoinHandle,
};

/// Why a machine is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest asked for a reset: it wants to be booted again.
    Reset,
    /// The guest switched the machine off.
    Off,
    /// A fault that the guest had no answer to.
    Shutdown,
    /// KVM or the VMM cannot go on; the reason.
    Failed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Paused,
    Running,
    Ended,
    /// The threads end.
    Dropped,
}

struct State {
    phase: Phase,
    /// vCPUs that stand between two instructions.
    parked: usize,
}

struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    kicks: Vec<Kick>,
    ended: Mutex<Option<Sender<End>>>,
    on_end: Arc<dyn Fn() + Send + Sync>,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// A vCPU stands until it may run; false when it is over.
    fn park(&self) -> bool {
        let mut state = self.state();
        state.parked += 1;
        self.changed.notify_all();
        while matches!(state.phase, Phase::Paused | Phase::Ended) {
            state = self.wait(state);
        }
        state.parked -= 1;
        state.phase == Phase::Running
    }

    fn may_run(&self) -> bool {
        self.state().phase == Phase::Running
    }

    fn end(&self, end: End) {
        let mut state = self.state();
        if state.phase != Phase::Dropped {
            state.phase = Phase::Ended;
        }
        drop(state);
        self.kicks.iter().for_each(Kick::kick);
        let told = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(told) = told {
            // Nobody may listen.
            let _ = told.send(end);
            (self.on_end)();
        }
    }
}

pub struct Live {
    machine: Machine,
    gate: Arc<Gate>,
    ended: Receiver<End>,
    threads: Vec<JoinHandle<()>>,
}

impl Machine {
    /// Gives the machine threads of its own. It is paused.
    pub fn launch(self, threads: &Threads) -> Result<Live, Error> {
        let count = u8::try_from(self.vcpus.len()).unwrap_or(u8::MAX);
        self.begin(Crew::start(count, threads)?, Phase::Paused)
    }

    /// Gives the machine these threads, one for each of its vCPUs, and lets it run.
    pub fn run_on(self, crew: Crew) -> Result<Live, Error> {
        self.begin(crew, Phase::Running)
    }

    fn begin(self, crew: Crew, phase: Phase) -> Result<Live, Error> {
        if crew.vcpus.len() != self.vcpus.len() {
            return Err(Error::Host(format!("{} threads for {} vCPUs", crew.vcpus.len(), self.vcpus.len())));
        }
        let (sender, ended) = channel();
        let gate = Arc::new(Gate {
            state: Mutex::new(State { phase, parked: 0 }),
            changed: Condvar::new(),
            kicks: self.vcpus.iter().map(|_| Kick::default()).collect(),
            ended: Mutex::new(Some(sender)),
            on_end: crew.on_end,
        });
        let mut live = Live { machine: self, gate, ended, threads: Vec::new() };
        // The vCPUs first: somebody may wait for what the guest says. For the devices its doorbells are kept.
        for (index, worker) in crew.vcpus.into_iter().enumerate() {
            let (vcpu, bus) = (live.machine.vcpus[index].clone(), live.machine.bus.clone());
            let (gate, kick) = (live.gate.clone(), live.gate.kicks[index].clone());
            live.threads.push(worker.give(move || {
                while gate.park() {
                    if let Err(end) = run(&vcpu, &gate, &kick, &bus) {
                        gate.end(end);
                    }
                }
            }));
        }
        live.machine.start_events_on(crew.devices)?;
        if let (Phase::Running, Some(events)) = (phase, &live.machine.events) {
            events.resume();
        }
        Ok(live)
    }
}

impl Live {
    /// Lets it run, or run on. An ended machine stays as it is.
    pub fn resume(&self) {
        let mut state = self.gate.state();
        if state.phase == Phase::Paused {
            if let Some(events) = &self.machine.events {
                events.resume();
            }
            state.phase = Phase::Running;
            self.gate.changed.notify_all();
        }
    }

    /// Stops everything; what that means stands above.
    pub fn pause(&self) {
        let mut state = self.gate.state();
        if state.phase == Phase::Running {
            state.phase = Phase::Paused;
        }
        drop(state);
        self.gate.kicks.iter().for_each(Kick::kick);
        let mut state = self.gate.state();
        while state.parked < self.machine.vcpus.len() {
            state = self.gate.wait(state);
        }
        drop(state);
        if let Some(events) = &self.machine.events {
            events.pause();
        }
    }

    /// Saves the machine, which is paused; it can be resumed afterwards.
    pub fn save(&mut self, save: Save<'_>) -> Result<Saved, Error> {
        if self.gate.state().phase != Phase::Paused {
            return Err(Error::Vcpu("a machine is saved only while it is paused".into()));
        }
        self.pause();
        self.machine.save(save)
    }

    /// Says when the machine is over, and why.
    pub fn ended(&self) -> &Receiver<End> {
        &self.ended
    }

    pub fn memory(&self) -> &Memory {
        &self.machine.memory
    }
}

/// Runs a vCPU for as long as it may.
fn run(vcpu: &Mutex<Vcpu>, gate: &Gate, kick: &Kick, bus: &crate::bus::Bus) -> Result<(), End> {
    let failed = |error: Error| End::Failed(error.to_string());
    let mut vcpu = locked(vcpu);
    vcpu_state::tell_of_pause(&vcpu.fd).map_err(failed)?;
    while gate.may_run() {
        match vcpu.run(kick, bus, &mut NoPorts).map_err(failed)? {
            Ended::Kicked | Ended::Break => {}
            Ended::Reset => return Err(End::Reset),
            Ended::Off => return Err(End::Off),
            Ended::Shutdown => return Err(End::Shutdown),
        }
    }
    vcpu.finish_exit(bus, &mut NoPorts).map_err(failed)
}

impl Drop for Live {
    fn drop(&mut self) {
        self.gate.state().phase = Phase::Dropped;
        self.gate.changed.notify_all();
        self.gate.kicks.iter().for_each(Kick::kick);
        for thread in self.threads.drain(..) {
            // A panic of it was told where it happened.
            let _ = thread.join();
        }
        self.machine.bus.com1().flush();
    }
}
