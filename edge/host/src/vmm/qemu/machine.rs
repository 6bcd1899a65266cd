//! A running machine: falling asleep; the rest is as with every driver.
//!
//! Invariant: a sleep ends in one of two states only: the VMM is gone and a good snapshot has its name, or the guest
//! runs on and no snapshot is left. Every way out of the middle thaws the VMM.

use super::{
    super::{
        cgroup::Group,
        control::Control,
        process::Process,
        running::Running,
        snapshot::{self, Draft, Identity, SharedDraft, Verify},
        start::{blocking_io, patiently},
    },
    memory::{self, Save},
    qmp::Qmp,
    start::{migrated, set_migration},
};
use async_trait::async_trait;
use cloudpal_compute::driver::{ExecOutput, Exit, MachineSpec, SleepOutcome, Usage, Vm};
use cloudpal_model::Problem;
use rustix::process::Signal;
use serde_json::json;
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};
use tokio::sync::OwnedMutexGuard;

/// Blocks of memory between two looks at the TAP: 8 MiB.
const BLOCKS_PER_STEP: usize = 32;
const THAW_TRIES: u32 = 5;
const THAW_PAUSE: Duration = Duration::from_millis(200);

pub struct Machine {
    running: Running,
    identity: Identity,
    qmp: Arc<Qmp>,
    memory: OwnedFd,
    _group: Option<Group>,
}

/// From the moment on in which the guest may stand still: whatever becomes of the sleep, it runs on.
struct Thaw<'a> {
    machine: &'a Machine,
    draft: SharedDraft,
    armed: bool,
    /// The next sleep has to wait until it runs on.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Drop for Thaw<'_> {
    /// The sleep was given up in its middle.
    fn drop(&mut self) {
        if self.armed
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (process, qmp) = (self.machine.running.process.clone(), self.machine.qmp.clone());
            let (draft, turn) = (self.draft.clone(), self.turn.take());
            runtime.spawn(async move {
                let _turn = turn;
                if let Err(problem) = draft.take_back().await {
                    tracing::warn!(%problem, "a snapshot that was given up could not be removed");
                }
                thaw(&process, &qmp).await
            });
        }
    }
}

/// Runs on, with every packet that it had taken. What cannot must not stand still for ever: it is ended, and boots
/// anew.
async fn thaw(process: &Process, qmp: &Qmp) -> Result<(), Problem> {
    process.signal(Signal::CONT);
    let mut tried = 1;
    loop {
        let Err(problem) = qmp.ask("cont", json!({})).await else { return Ok(()) };
        if tried == THAW_TRIES {
            tracing::warn!(%problem, "a VMM that does not run on is ended");
            process.signal(Signal::KILL);
            return Err(problem);
        }
        // Perhaps it still moves its state.
        drop(qmp.ask("migrate_cancel", json!({})).await);
        tried += 1;
        tokio::time::sleep(THAW_PAUSE).await;
    }
}

/// Why a draft was not published.
enum Unfinished {
    NotIdle,
    Failed(Problem),
}

impl From<Problem> for Unfinished {
    fn from(problem: Problem) -> Self {
        Unfinished::Failed(problem)
    }
}

impl Machine {
    pub fn new(
        spec: MachineSpec,
        identity: Identity,
        process: Arc<Process>,
        qmp: Qmp,
        control: Control,
        memory: OwnedFd,
        group: Option<Group>,
    ) -> Arc<Machine> {
        let running = Running::new(spec, process, Some(control), qmp.last_words());
        Arc::new(Machine { running, identity, qmp: Arc::new(qmp), memory, _group: group })
    }

    /// Steps 2 to 5 of a sleep. The VMM may be frozen when this returns.
    async fn save(
        &self,
        draft: &SharedDraft,
        still_idle: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<(), Unfinished> {
        self.qmp.ask("stop", json!({})).await?;
        let state = memory::create("cloudpal-state", 0).map_err(|error| failed(&error))?;
        set_migration(&self.qmp).await?;
        self.qmp.give("state", state.as_fd()).await?;
        self.qmp.ask("migrate", json!({ "uri": "fd:state" })).await?;
        patiently(&self.running.process, migrated(&self.qmp)).await?;
        self.running.freeze().await?;
        idle(still_idle)?;
        let file = draft.with(|draft| draft.create("memory")).await?;
        let memory = self.memory.try_clone().map_err(|error| failed(&error))?;
        let save = Save::new(memory, file).map_err(|error| failed(&error))?;
        let save = self.copy(save, still_idle).await?;
        let (spec, identity) = (self.running.spec.clone(), self.identity.clone());
        let complete = move |draft: &Draft| {
            let mut state = state;
            io::Seek::rewind(&mut state)?;
            io::copy(&mut state, &mut draft.create("state")?)?;
            let files = [("memory", Verify::Length), ("state", Verify::Content)];
            draft.complete(&spec, &identity, &files, &save.blocks)
        };
        draft.with(complete).await?;
        idle(still_idle)
    }

    async fn copy(
        &self,
        mut save: Save,
        still_idle: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<Save, Unfinished> {
        loop {
            let step = move || save.step(BLOCKS_PER_STEP).map(|more| (save, more));
            let (back, more) = blocking_io("the snapshot", step).await?;
            save = back;
            if !more {
                return Ok(save);
            }
            idle(still_idle)?;
        }
    }

    /// After a failure with the snapshot in place, or perhaps so: either it has no name and the machine runs on, or it
    /// is whole and the machine is asleep.
    async fn withdraw(&self, draft: &SharedDraft) -> Result<SleepOutcome, Problem> {
        match draft.take_back().await {
            Err(_) if snapshot::exists(&self.running.spec.dir) => Ok(SleepOutcome::Asleep),
            _ => Ok(SleepOutcome::Cancelled),
        }
    }
}

#[async_trait]
impl Vm for Machine {
    async fn sleep(&self, still_idle: &(dyn Fn() -> bool + Send + Sync)) -> Result<SleepOutcome, Problem> {
        let turn = self.running.turn.clone().lock_owned().await;
        self.running.prepare_sleep().await?;
        if !still_idle() {
            return Ok(SleepOutcome::Cancelled);
        }
        let draft = SharedDraft::of(&self.running.spec.dir);
        draft.with(Draft::make).await?;
        let mut thawing = Thaw { machine: self, draft: draft.clone(), armed: true, turn: Some(turn) };
        if let Err(unfinished) = self.save(&draft, still_idle).await {
            let thawed = thaw(&self.running.process, &self.qmp).await;
            thawing.armed = false;
            draft.discard().await?;
            return match unfinished {
                Unfinished::NotIdle => thawed.map(|()| SleepOutcome::Cancelled),
                Unfinished::Failed(problem) => Err(problem),
            };
        }
        if let Err(problem) = draft.with(Draft::publish).await
            && self.withdraw(&draft).await? == SleepOutcome::Cancelled
        {
            drop(thaw(&self.running.process, &self.qmp).await);
            thawing.armed = false;
            return Err(problem);
        }
        thawing.armed = false;
        self.running.fell_asleep().await;
        Ok(SleepOutcome::Asleep)
    }

    async fn stop(&self, grace: Duration) -> Result<(), Problem> {
        self.running.stop(grace).await;
        Ok(())
    }

    async fn kill(&self) {
        self.running.kill().await;
    }

    async fn exited(&self) -> Exit {
        self.running.exited().await
    }

    async fn exec(&self, argv: Vec<String>) -> Result<ExecOutput, Problem> {
        self.running.exec(argv).await
    }

    fn usage(&self) -> Usage {
        self.running.usage()
    }

    fn pid(&self) -> u32 {
        self.running.process.pid()
    }
}

fn idle(still_idle: &(dyn Fn() -> bool + Send + Sync)) -> Result<(), Unfinished> {
    if still_idle() { Ok(()) } else { Err(Unfinished::NotIdle) }
}

fn failed(error: &io::Error) -> Problem {
    Problem::io("the snapshot", error)
}
