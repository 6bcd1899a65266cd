//! A running machine: its sleep, and what every driver's machine does.
//!
//! Invariant: a sleep ends in one of two states only: the VMM is gone and a good snapshot has its name, or the guest
//! runs on and no snapshot is left.

use super::{
    super::{
        cgroup::Group,
        control::Control,
        process::Process,
        running::{LastWords, Running},
        snapshot::{self, Draft, Identity, SharedDraft, Verify},
        start::blocking_io,
    },
    api::Api,
    log::Log,
    memory::{self, Block},
    relay::Relay,
    start::{Detail, NEXT, attach},
};
use async_trait::async_trait;
use cloudpal_compute::driver::{ExecOutput, Exit, MachineSpec, SleepOutcome, Usage, Vm};
use cloudpal_model::Problem;
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::OwnedMutexGuard;

const SAVE_PATIENCE: Duration = Duration::from_secs(300);
const PAUSE_PATIENCE: Duration = Duration::from_secs(30);

pub struct Machine {
    running: Running,
    identity: Identity,
    api: Api,
    relay: Arc<Relay>,
    _log: Log,
    _group: Option<Group>,
    /// A snapshot was begun: Firecracker makes the guest close its connections then.
    cut_off: AtomicBool,
    me: Weak<Machine>,
}

/// Lets the machine go on when its sleep is given up in the middle; the next one has to wait for that.
struct GivenUp(Option<(Arc<Machine>, SharedDraft, OwnedMutexGuard<()>)>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        if let (Some((machine, draft, turn)), Ok(runtime)) =
            (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move {
                let gone = draft.take_back().await;
                let went_on = machine.go_on().await;
                if let Err(problem) = gone.and(went_on) {
                    tracing::warn!(%problem, "a machine does not go on after a sleep that was given up");
                }
                drop(turn);
            });
        }
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

type StillIdle<'a> = &'a (dyn Fn() -> bool + Send + Sync);

impl Machine {
    pub fn new(
        spec: &MachineSpec,
        identity: Identity,
        process: Arc<Process>,
        control: Option<Control>,
        api: Api,
        relay: Relay,
        (log, group): (Log, Option<Group>),
    ) -> Arc<Machine> {
        let running = Running::new(spec.clone(), process, control, LastWords::default());
        Arc::new_cyclic(|me| Machine {
            running,
            identity,
            api,
            relay: Arc::new(relay),
            _log: log,
            _group: group,
            cut_off: AtomicBool::new(false),
            me: me.clone(),
        })
    }

    fn spec(&self) -> &MachineSpec {
        &self.running.spec
    }

    async fn state(&self, state: &str) -> Result<(), Problem> {
        self.api.patch("/vm", &json!({ "state": state }), PAUSE_PATIENCE).await
    }

    /// From the running guest to a described draft. The guest may be paused when this returns.
    async fn save(&self, draft: &SharedDraft, still_idle: StillIdle<'_>) -> Result<(), Unfinished> {
        let relay = self.relay.clone();
        blocking_io("pausing the packets", move || {
            relay.pause();
            Ok(())
        })
        .await?;
        self.state("Paused").await?;
        let relay = self.relay.clone();
        let waiting = blocking_io("the packets on their way", move || {
            relay.drain();
            relay.waiting()
        });
        // What Firecracker was given and the guest has not would be lost.
        if waiting.await? > 0 {
            return Err(Unfinished::NotIdle);
        }
        idle(still_idle)?;
        let [memory, state] = NEXT;
        let save: Value = json!({ "snapshot_type": "Full", "mem_file_path": memory, "snapshot_path": state });
        self.cut_off.store(true, Ordering::Release);
        self.api.put("/snapshot/create", &save, SAVE_PATIENCE).await?;
        idle(still_idle)?;
        let blocks = self.survey(still_idle).await?;
        let (spec, identity) = (self.spec().clone(), self.identity.clone());
        let complete = move |draft: &Draft| {
            for (name, from) in ["memory", "state"].into_iter().zip(NEXT) {
                draft.link(name, &spec.dir.join(from))?;
            }
            let files = [("memory", Verify::Length), ("state", Verify::Content)];
            draft.complete(&spec, &identity, &files, &Detail { blocks, rates: spec.rates })
        };
        draft.with(complete).await?;
        idle(still_idle)
    }

    /// Looks through the memory file that Firecracker wrote, by way of the daemon's own name for it.
    async fn survey(&self, still_idle: StillIdle<'_>) -> Result<Vec<Block>, Unfinished> {
        let path = self.spec().dir.join(NEXT[0]);
        let opened = File::options().read(true).write(true).open(&path);
        let file = opened.map_err(|error| Problem::io(path.display(), &error))?;
        let length = file.metadata().map_err(|error| Problem::io(path.display(), &error))?.len();
        let (file, mut blocks, mut from) = (Arc::new(file), Vec::new(), 0);
        while from < length {
            let shared = file.clone();
            blocks.extend(blocking_io("the snapshot", move || memory::survey(&shared, from)).await?);
            idle(still_idle)?;
            from += memory::STEP_BYTES;
        }
        Ok(blocks)
    }

    /// Runs on.
    async fn go_on(&self) -> Result<(), Problem> {
        let went_on = self.resume().await;
        self.relay.start();
        went_on
    }

    async fn resume(&self) -> Result<(), Problem> {
        self.state("Resumed").await?;
        if self.cut_off.swap(false, Ordering::AcqRel) && self.running.set_control(None) {
            let control = attach(self.spec(), &self.running.process).await?;
            self.running.set_control(Some(control));
        }
        Ok(())
    }
}

#[async_trait]
impl Vm for Machine {
    async fn sleep(&self, still_idle: StillIdle<'_>) -> Result<SleepOutcome, Problem> {
        let turn = self.running.turn.clone().lock_owned().await;
        self.running.prepare_sleep().await?;
        if !still_idle() {
            return Ok(SleepOutcome::Cancelled);
        }
        let draft = SharedDraft::of(&self.spec().dir);
        draft.with(Draft::make).await?;
        let mut given_up = GivenUp(self.me.upgrade().map(|machine| (machine, draft.clone(), turn)));
        if let Err(unfinished) = self.save(&draft, still_idle).await {
            let went_on = self.go_on().await;
            draft.discard().await?;
            let _turn = given_up.0.take();
            return match unfinished {
                Unfinished::NotIdle => went_on.map(|()| SleepOutcome::Cancelled),
                Unfinished::Failed(problem) => Err(problem),
            };
        }
        if let Err(problem) = draft.with(Draft::publish).await {
            // Whether it has its name now is not known: it must not, since the machine runs on.
            draft.take_back().await?;
            self.go_on().await?;
            let _turn = given_up.0.take();
            return Err(problem);
        }
        let _turn = given_up.0.take();
        self.running.fell_asleep().await;
        let dir = self.spec().dir.clone();
        blocking_io("the snapshot", move || give_back(&dir)).await?;
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

/// The VMM is gone: its user may only read what it wrote.
fn give_back(dir: &Path) -> io::Result<()> {
    for (name, next) in ["memory", "state"].into_iter().zip(NEXT) {
        let path = snapshot::path(dir).join(name);
        std::os::unix::fs::lchown(&path, Some(0), Some(0))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444))?;
        fs::remove_file(dir.join(next))?;
    }
    Ok(())
}

fn idle(still_idle: StillIdle<'_>) -> Result<(), Unfinished> {
    if still_idle() { Ok(()) } else { Err(Unfinished::NotIdle) }
}
