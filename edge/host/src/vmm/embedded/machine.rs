//! A running machine in a VMM of ours: how it falls asleep.
//!
//! Invariant: a sleep ends in one of two states only: the VMM is gone and a good snapshot has its name, or the guest
//! runs on and no snapshot is left. Every way out of the middle resumes the guest.

use super::{
    super::{
        control::Control,
        process::Process,
        running::{LastWords, Running},
        snapshot::{self, Draft, Identity, Verify},
        start::blocking_io,
    },
    cgroup::Group,
    channel::Channel,
};
use async_trait::async_trait;
use cloudpal_compute::driver::{ExecOutput, Exit, MachineSpec, SleepOutcome, Usage, Vm};
use cloudpal_model::{
    Problem,
    vmm::{Ask, File as Handed, Reply},
};
use serde::{Deserialize, Serialize};
use std::{fs, io, os::fd::AsFd, path::Path, sync::Arc, time::Duration};

const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// Gigabytes to a slow disk.
const SAVE_PATIENCE: Duration = Duration::from_secs(300);

/// The files of a snapshot. A diff goes with the memory file of the snapshot that was woken before.
pub const STATE: &str = "state";
pub const MEMORY: &str = "memory";
pub const DIFF: &str = "diff";
/// In the machine's directory: the memory file that the running VMM was woken from, for the next diff.
pub const BASE: &str = "memory.base";

/// What only this driver needs to know of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// Under which start of the host it was written: after another one, its pages come from the disk.
    pub boot_id: String,
    pub has_diff: bool,
}

/// Another one after each start of the host: random(4).
pub fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

pub struct Parts {
    pub spec: MachineSpec,
    pub identity: Identity,
    pub process: Arc<Process>,
    pub channel: Channel,
    /// `None`: a unikernel, which has nobody to talk to.
    pub control: Option<Control>,
    pub last_words: LastWords,
    pub group: Option<Group>,
}

pub struct Machine {
    running: Running,
    identity: Identity,
    channel: Channel,
    /// Goes with the machine; its process has ended then, or another daemon looks after it.
    _group: Option<Group>,
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
    pub fn new(parts: Parts) -> Arc<Machine> {
        let Parts { spec, identity, process, channel, control, last_words, group } = parts;
        let running = Running::new(spec, process, control, last_words);
        Arc::new(Machine { running, identity, channel, _group: group })
    }

    /// The guest is paused when this returns, or may be.
    async fn save(
        &self,
        draft: &Arc<Draft>,
        still_idle: &(dyn Fn() -> bool + Send + Sync),
    ) -> Result<(), Unfinished> {
        self.ask(Ask::Pause).await?;
        idle(still_idle)?;
        let base = self.running.spec.dir.join(BASE);
        let (files, has_base) = (draft.clone(), base.exists());
        let (state, memory, diff) = blocking_io("the snapshot", move || {
            let diff = if has_base { Some(files.create(DIFF)?) } else { None };
            Ok((files.create(STATE)?, files.create(MEMORY)?, diff))
        })
        .await?;
        let mut given = vec![(Handed::State, state.as_fd()), (Handed::Memory, memory.as_fd())];
        given.extend(diff.iter().map(|diff| (Handed::Diff, diff.as_fd())));
        let saved = self.channel.ask(Ask::Save, &given, SAVE_PATIENCE).await.map_err(Problem::from)?;
        idle(still_idle)?;
        let has_diff = matches!(saved, Reply::Saved { diff: true }) && has_base;
        let (spec, identity, draft) = (self.running.spec.clone(), self.identity.clone(), draft.clone());
        blocking_io("the snapshot", move || complete(&draft, &spec, &identity, has_diff, &base)).await?;
        idle(still_idle)
    }

    async fn ask(&self, ask: Ask) -> Result<(), Problem> {
        self.channel.ask(ask, &[], ANSWER_PATIENCE).await.map(drop).map_err(Problem::from)
    }
}

/// Keeps the files that were written, and makes everything durable.
fn complete(
    draft: &Draft,
    spec: &MachineSpec,
    identity: &Identity,
    has_diff: bool,
    base: &Path,
) -> io::Result<()> {
    if has_diff {
        draft.remove(MEMORY)?;
        draft.link(MEMORY, base)?;
    } else if base.exists() {
        draft.remove(DIFF)?;
    }
    let detail = Detail { boot_id: boot_id()?, has_diff };
    // The contents are the VMM's, with checksums of its own.
    let mut files = vec![(STATE, Verify::Length), (MEMORY, Verify::Length)];
    files.extend(has_diff.then_some((DIFF, Verify::Length)));
    draft.complete(spec, identity, &files, &detail)
}

#[async_trait]
impl Vm for Machine {
    async fn sleep(&self, still_idle: &(dyn Fn() -> bool + Send + Sync)) -> Result<SleepOutcome, Problem> {
        let _turn = self.running.turn.lock().await;
        self.running.prepare_sleep().await?;
        if !still_idle() {
            return Ok(SleepOutcome::Cancelled);
        }
        let dir = self.running.spec.dir.clone();
        let draft = Arc::new(blocking_io("the snapshot", move || Draft::begin(&dir)).await?);
        let saved = self.save(&draft, still_idle).await;
        if let Err(unfinished) = saved {
            draft.discard();
            let resumed = self.ask(Ask::Resume).await;
            return match unfinished {
                Unfinished::NotIdle => resumed.map(|()| SleepOutcome::Cancelled),
                Unfinished::Failed(problem) => Err(problem),
            };
        }
        if let Err(problem) = blocking_io("the snapshot", move || draft.publish()).await {
            // Whether it has its name now is not known: it must not, since the machine runs on.
            let dir = self.running.spec.dir.clone();
            blocking_io("the snapshot", move || snapshot::discard(&dir)).await?;
            self.ask(Ask::Resume).await?;
            return Err(problem);
        }
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
