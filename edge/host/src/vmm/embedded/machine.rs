//! A running machine in a VMM of ours: how it falls asleep.
//!
//! Invariant: a sleep ends in one of two states only: the VMM is gone and a good snapshot has its name, or the guest
//! runs on and no snapshot is left. Every way out of the middle resumes the guest.

use super::{
    super::{
        cgroup::Group,
        control::Control,
        process::Process,
        running::{LastWords, Running},
        snapshot::{self, Draft, Identity, SharedDraft, Stamp, Verify},
    },
    channel::Channel,
};
use async_trait::async_trait;
use cloudpal_compute::driver::{ExecOutput, Exit, MachineSpec, SleepOutcome, Usage, Vm};
use cloudpal_model::{
    Problem,
    vmm::{Ask, File as Handed, Reply},
};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::sync::OwnedMutexGuard;

const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// Gigabytes to a slow disk.
const SAVE_PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at the TAP while the VMM writes.
const IDLE_CHECKS: Duration = Duration::from_millis(10);

/// The files of a snapshot. A diff goes with the memory file of the snapshot that was woken before.
pub const STATE: &str = "state";
pub const MEMORY: &str = "memory";
pub const DIFF: &str = "diff";
pub const WORKING_SET: &str = "working-set";
/// In the machine's directory: the memory file that the running VMM was woken from, for the next diff.
pub const BASE: &str = "memory.base";

/// What only this driver needs to know of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// Under which start of the host it was written: after another one, its pages come from the disk.
    pub boot_id: String,
    pub has_diff: bool,
    /// The memory file as it was when it was written: after another change, all of it is read before it is used.
    #[serde(default)]
    pub memory: Option<Stamp>,
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
    me: Weak<Machine>,
}

type StillIdle<'a> = &'a (dyn Fn() -> bool + Send + Sync);

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

/// From the moment on in which there is something to take back: whatever becomes of the sleep, the guest runs on and no
/// snapshot is left.
struct Attempt(Option<(Arc<Machine>, SharedDraft, OwnedMutexGuard<()>)>);

impl Attempt {
    /// It came to its end. The next may begin once what is returned is dropped.
    fn over(mut self) -> Option<OwnedMutexGuard<()>> {
        self.0.take().map(|(_, _, turn)| turn)
    }
}

impl Drop for Attempt {
    /// The sleep was given up in its middle.
    fn drop(&mut self) {
        if let (Some((machine, draft, turn)), Ok(runtime)) =
            (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move {
                if let Err(problem) = machine.withdraw(&draft).await {
                    tracing::warn!(%problem, "a machine does not go on after a sleep that was given up");
                }
                drop(turn);
            });
        }
    }
}

impl Machine {
    pub fn new(parts: Parts) -> Arc<Machine> {
        let Parts { spec, identity, process, channel, control, last_words, group } = parts;
        let running = Running::new(spec, process, control, last_words);
        Arc::new_cyclic(|me| Machine { running, identity, channel, _group: group, me: me.clone() })
    }

    /// From the running guest to a draft that is complete. The guest may be paused when this returns.
    async fn save(&self, draft: &SharedDraft, still_idle: StillIdle<'_>) -> Result<(), Unfinished> {
        draft.with(Draft::make).await?;
        self.ask(Ask::Pause, ANSWER_PATIENCE).await?;
        idle(still_idle)?;
        let base = self.running.spec.dir.join(BASE);
        let has_base = base.exists();
        let create = move |draft: &Draft| {
            let diff = if has_base { Some(draft.create(DIFF)?) } else { None };
            Ok((draft.create(STATE)?, draft.create(MEMORY)?, draft.create(WORKING_SET)?, diff))
        };
        let (state, memory, working_set, diff) = draft.with(create).await?;
        idle(still_idle)?;
        let own = [(Handed::State, &state), (Handed::Memory, &memory), (Handed::WorkingSet, &working_set)];
        let mut given = own.map(|(kind, file)| (kind, file.as_fd())).to_vec();
        given.extend(diff.iter().map(|diff| (Handed::Diff, diff.as_fd())));
        let saved = self.saved(&given, still_idle).await?;
        idle(still_idle)?;
        let has_diff = saved == Reply::Saved { diff: true } && has_base;
        let (spec, identity) = (self.running.spec.clone(), self.identity.clone());
        draft.with(move |draft| complete(draft, &spec, &identity, has_diff, &base)).await?;
        idle(still_idle)
    }

    /// Has the VMM write its part. A packet that comes meanwhile is not kept waiting: the next ask ends it.
    async fn saved(
        &self,
        files: &[(Handed, BorrowedFd<'_>)],
        still_idle: StillIdle<'_>,
    ) -> Result<Reply, Unfinished> {
        let save = self.channel.ask(Ask::Save, files, SAVE_PATIENCE);
        tokio::pin!(save);
        loop {
            if let Ok(saved) = tokio::time::timeout(IDLE_CHECKS, &mut save).await {
                return Ok(saved.map_err(Problem::from)?);
            }
            idle(still_idle)?;
        }
    }

    async fn ask(&self, ask: Ask, patience: Duration) -> Result<(), Problem> {
        self.channel.ask(ask, &[], patience).await.map(drop).map_err(Problem::from)
    }

    /// Lets the guest run on. One that does not must not stand still for ever: it is ended, and boots anew.
    async fn resume(&self) -> Result<(), Problem> {
        let resumed = self.ask(Ask::Resume, ANSWER_PATIENCE).await;
        if let Err(problem) = &resumed {
            tracing::warn!(%problem, "a VMM that does not run on is ended");
            self.running.process.signal(Signal::KILL);
        }
        resumed
    }

    /// With the snapshot in place, or perhaps so: either it has no name and the machine runs on, or it is whole and the
    /// machine is asleep.
    async fn withdraw(&self, draft: &SharedDraft) -> Result<SleepOutcome, Problem> {
        let gone = draft.take_back().await;
        if gone.is_err() && snapshot::exists(&self.running.spec.dir) {
            self.running.fell_asleep().await;
            return Ok(SleepOutcome::Asleep);
        }
        self.resume().await.map(|()| SleepOutcome::Cancelled)
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
    let memory = Some(draft.stamp(MEMORY)?);
    let detail = Detail { boot_id: boot_id()?, has_diff, memory };
    // The contents are the VMM's, with checksums of its own.
    let mut files = vec![(STATE, Verify::Length), (MEMORY, Verify::Length)];
    files.extend(has_diff.then_some((DIFF, Verify::Length)));
    draft.complete(spec, identity, &files, &detail)
}

#[async_trait]
impl Vm for Machine {
    async fn sleep(&self, still_idle: StillIdle<'_>) -> Result<SleepOutcome, Problem> {
        let turn = self.running.turn.clone().lock_owned().await;
        self.running.prepare_sleep().await?;
        if !still_idle() {
            return Ok(SleepOutcome::Cancelled);
        }
        let draft = SharedDraft::of(&self.running.spec.dir);
        let attempt = Attempt(self.me.upgrade().map(|machine| (machine, draft.clone(), turn)));
        if let Err(unfinished) = self.save(&draft, still_idle).await {
            let resumed = self.resume().await;
            let _turn = attempt.over();
            draft.discard().await?;
            return match unfinished {
                Unfinished::NotIdle => resumed.map(|()| SleepOutcome::Cancelled),
                Unfinished::Failed(problem) => Err(problem),
            };
        }
        let published = draft.with(Draft::publish).await;
        if let Err(problem) = published {
            // Whether it has its name now is not known.
            let outcome = self.withdraw(&draft).await;
            let _turn = attempt.over();
            return match outcome? {
                SleepOutcome::Cancelled => Err(problem),
                SleepOutcome::Asleep => Ok(SleepOutcome::Asleep),
            };
        }
        let _turn = attempt.over();
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

fn idle(still_idle: StillIdle<'_>) -> Result<(), Unfinished> {
    if still_idle() { Ok(()) } else { Err(Unfinished::NotIdle) }
}
