//! A running machine: sleep, stop, exec, its end, and what it uses.
//!
//! Invariant: a sleep ends in one of two states only: the VMM is gone and a good snapshot has its name, or the guest
//! runs on and no snapshot is left. Every way out of the middle thaws the VMM.

use super::{
    control::{Control, Told},
    memory::{self, Save},
    process::Process,
    qmp::Qmp,
    snapshot::{Draft, Identity},
    start::{migrated, set_migration},
    tail,
};
use async_trait::async_trait;
use base64::{Engine, prelude::BASE64_STANDARD};
use cloudpal_compute::driver::{ExecOutput, Exit, MachineSpec, SleepOutcome, Usage, Vm};
use cloudpal_model::{
    Kind, Problem,
    guest::{Ask, Reply},
};
use rustix::process::Signal;
use serde_json::json;
use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// The marker file of a machine that is whole: see [`super`].
pub const STARTED: &str = "started";

const SYNC_PATIENCE: Duration = Duration::from_secs(60);
const EXEC_PATIENCE: Duration = Duration::from_secs(600);
const STOP_MARGIN: Duration = Duration::from_secs(10);
/// Blocks of memory between two looks at the TAP: 8 MiB.
const BLOCKS_PER_STEP: usize = 32;

pub struct Machine {
    spec: MachineSpec,
    identity: Identity,
    process: Arc<Process>,
    qmp: Qmp,
    control: Control,
    memory: OwnedFd,
    /// We asked for its end.
    ending: Arc<AtomicBool>,
    asleep: AtomicBool,
    /// One sleep or stop at a time.
    turn: tokio::sync::Mutex<()>,
    exit: watch::Receiver<Option<Exit>>,
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
    ) -> Arc<Machine> {
        let ending = Arc::new(AtomicBool::new(false));
        let (sender, exit) = watch::channel(None);
        let watcher = Watcher {
            spec: spec.clone(),
            process: process.clone(),
            shutdown_reason: qmp.shutdown_reason(),
            told: control.told(),
            ending: ending.clone(),
        };
        tokio::spawn(async move {
            let exit = watcher.watch().await;
            sender.send_replace(Some(exit));
        });
        let (asleep, turn) = (AtomicBool::new(false), tokio::sync::Mutex::new(()));
        Arc::new(Machine { spec, identity, process, qmp, control, memory, ending, asleep, turn, exit })
    }

    async fn ended(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
            Ok(Some(exit)) => exit,
            _ => Exit { clean: false, why: "the daemon is shutting down".into() },
        }
    }

    /// Steps 2 to 5 of a sleep. The VMM may be frozen when this returns.
    async fn save(
        &self,
        draft: &Draft,
        still_idle: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<(), Unfinished> {
        self.qmp.ask("stop", json!({})).await?;
        let mut state =
            memory::create("cloudpal-state", 0).map_err(|error| full("the device state", &error))?;
        set_migration(&self.qmp).await?;
        self.qmp.give("state", state.as_fd()).await?;
        self.qmp.ask("migrate", json!({ "uri": "fd:state" })).await?;
        migrated(&self.qmp).await?;
        self.freeze().await?;
        idle(still_idle)?;
        let file = draft.memory_file().map_err(|error| full("the snapshot", &error))?;
        let memory = self.memory.try_clone().map_err(|error| full("the snapshot", &error))?;
        let save = Save::new(memory, file).map_err(|error| full("the snapshot", &error))?;
        let save = self.copy(save, still_idle).await?;
        let (spec, identity) = (self.spec.clone(), self.identity.clone());
        blocking(move || save.finish().map(|()| save)).await.and_then(|save| {
            draft
                .complete(&spec, identity, &mut state, save.blocks)
                .map_err(|error| full("the snapshot", &error))
        })?;
        idle(still_idle)
    }

    async fn copy(
        &self,
        mut save: Save,
        still_idle: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<Save, Unfinished> {
        loop {
            let (back, more) = blocking(move || save.step(BLOCKS_PER_STEP).map(|more| (save, more))).await?;
            save = back;
            if !more {
                return Ok(save);
            }
            idle(still_idle)?;
        }
    }

    /// Frozen when it says so: until then it could still take a packet.
    async fn freeze(&self) -> Result<(), Problem> {
        self.process.signal(Signal::STOP);
        let start = Instant::now();
        while !self.process.is_frozen() {
            if start.elapsed() > Duration::from_secs(10) || self.exit.borrow().is_some() {
                return Err(fault("the VMM cannot be frozen"));
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        Ok(())
    }

    /// Runs on, with every packet that it had taken.
    async fn thaw(&self) -> Result<(), Problem> {
        self.process.signal(Signal::CONT);
        self.qmp.ask("cont", json!({})).await.map(drop)
    }

    async fn end_by_force(&self) {
        self.ending.store(true, Ordering::Release);
        self.process.signal(Signal::KILL);
        self.ended().await;
    }
}

#[async_trait]
impl Vm for Machine {
    async fn sleep(&self, still_idle: &(dyn Fn() -> bool + Send + Sync)) -> Result<SleepOutcome, Problem> {
        let _turn = self.turn.lock().await;
        self.control.ask(Ask::PrepareSleep, SYNC_PATIENCE).await?;
        if !still_idle() {
            return Ok(SleepOutcome::Cancelled);
        }
        let draft = Draft::begin(&self.spec.dir).map_err(|error| full("the snapshot", &error))?;
        match self.save(&draft, still_idle).await {
            Ok(()) => {}
            Err(unfinished) => {
                draft.discard();
                let thawed = self.thaw().await;
                return match unfinished {
                    Unfinished::NotIdle => thawed.map(|()| SleepOutcome::Cancelled),
                    Unfinished::Failed(problem) => Err(problem),
                };
            }
        }
        if let Err(error) = draft.publish() {
            // Whether it has its name now is not known: it must not, since the machine runs on.
            super::snapshot::discard(&self.spec.dir)?;
            self.thaw().await?;
            return Err(full("the snapshot", &error));
        }
        self.asleep.store(true, Ordering::Release);
        self.end_by_force().await;
        Ok(SleepOutcome::Asleep)
    }

    async fn stop(&self, grace: Duration) -> Result<(), Problem> {
        let _turn = self.turn.lock().await;
        self.ending.store(true, Ordering::Release);
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let gently = async {
            if self.control.ask(Ask::Stop { grace_ms }, grace + STOP_MARGIN).await.is_ok() {
                self.ended().await;
            } else {
                // It does not answer, or is ending already.
                drop(tokio::time::timeout(Duration::from_secs(1), self.ended()).await);
            }
        };
        if tokio::time::timeout(grace + STOP_MARGIN, gently).await.is_err() || self.exit.borrow().is_none() {
            self.end_by_force().await;
        }
        Ok(())
    }

    async fn kill(&self) {
        self.end_by_force().await;
    }

    async fn exited(&self) -> Exit {
        let exit = self.ended().await;
        if self.asleep.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
        exit
    }

    async fn exec(&self, argv: Vec<String>) -> Result<ExecOutput, Problem> {
        match self.control.ask(Ask::Exec { argv }, EXEC_PATIENCE).await? {
            Reply::Exec { code, output_base64, truncated } => {
                let output =
                    BASE64_STANDARD.decode(output_base64).map_err(|error| fault(&error.to_string()))?;
                Ok(ExecOutput { code, output, truncated })
            }
            other => Err(fault(&format!("the guest answered a command with {other:?}"))),
        }
    }

    fn usage(&self) -> Usage {
        let ticks_per_s = rustix::param::clock_ticks_per_second().max(1);
        let fields = self.process.stat().unwrap_or_default();
        // proc(5): utime and stime are fields 14 and 15; ours start at field 3.
        let ticks = |at: usize| fields.get(at - 3).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid())).unwrap_or_default();
        let pages: u64 =
            statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
        Usage {
            cpu_us: (ticks(14) + ticks(15)) * 1_000_000 / ticks_per_s,
            resident_kib: pages * rustix::param::page_size() as u64 / 1024,
        }
    }

    fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// Waits for the VMM's end and finds out why. It holds no connection: those end with the [`Machine`], so that another
/// can be made.
struct Watcher {
    spec: MachineSpec,
    process: Arc<Process>,
    shutdown_reason: Arc<Mutex<Option<String>>>,
    told: watch::Receiver<Told>,
    ending: Arc<AtomicBool>,
}

impl Watcher {
    async fn watch(mut self) -> Exit {
        let end = self.process.ended().await;
        // Its last words are still on their way.
        let lost = self.told.wait_for(|told| told.lost);
        drop(tokio::time::timeout(Duration::from_millis(500), lost).await);
        let Told { app_exited, .. } = *self.told.borrow();
        let reason = self.shutdown_reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let clean = |why: String| Exit { clean: true, why };
        if self.ending.load(Ordering::Acquire) {
            return clean("stopped on request".into());
        }
        match (app_exited, reason.as_deref()) {
            (Some((Some(code), _)), _) => clean(format!("the app ended with code {code}")),
            (Some((None, Some(signal))), _) => clean(format!("the app was killed by signal {signal}")),
            (Some((None, None)), _) => clean("the app ended".into()),
            (None, Some("guest-shutdown")) => clean("the guest powered itself off".into()),
            (None, Some("guest-reset" | "guest-panic")) => {
                let console = tail(&self.spec.run_dir.join("console.log"));
                Exit { clean: false, why: format!("the guest's kernel failed: {console}") }
            }
            (None, _) => {
                let said = tail(&self.spec.run_dir.join("vmm.log"));
                let why = if said.is_empty() { end } else { format!("{end}: {said}") };
                Exit { clean: false, why }
            }
        }
    }
}

fn idle(still_idle: &(dyn Fn() -> bool + Send + Sync)) -> Result<(), Unfinished> {
    if still_idle() { Ok(()) } else { Err(Unfinished::NotIdle) }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| fault(&error.to_string()))?.map_err(|error| full("the snapshot", &error))
}

fn full(place: &str, error: &io::Error) -> Problem {
    Problem::io(place, error)
}

fn fault(what: &str) -> Problem {
    Problem::new(Kind::Internal, what, "see the machine's log")
}
