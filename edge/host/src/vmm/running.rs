//! What every driver's running machine has in common: exec, stop, its end and why, what it uses.
//!
//! Invariant: the end of the VMM process is told once, with the best reason there is: the app's exit, what the VMM said
//! of its guest, or the VMM's own last words.

use super::{
    control::{Control, Told},
    logs::tail,
    process::Process,
    start::fault,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use cloudpal_compute::driver::{ExecOutput, Exit, MachineSpec, Usage};
use cloudpal_model::{
    Kind, Problem,
    guest::{Ask, Reply},
};
use rustix::process::Signal;
use std::{
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;

const SYNC_PATIENCE: Duration = Duration::from_secs(60);
const EXEC_PATIENCE: Duration = Duration::from_secs(600);
const FREEZE_PATIENCE: Duration = Duration::from_secs(10);
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// What a VMM says of its guest before it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LastWord {
    PoweredOff,
    /// It reset itself: a reboot that somebody asked for, or a panic; its console tells them apart.
    Reset,
    #[allow(dead_code, reason = "for VMMs that say so in words")]
    Failed(String),
}

/// Where a driver writes the last word as soon as it hears it.
pub type LastWords = Arc<Mutex<Option<LastWord>>>;

pub struct Running {
    pub spec: MachineSpec,
    pub process: Arc<Process>,
    /// A unikernel has none.
    control: Mutex<Option<Arc<Control>>>,
    /// One sleep or stop at a time; what follows from one that was given up belongs to it.
    pub turn: Arc<tokio::sync::Mutex<()>>,
    /// We asked for its end.
    ending: Arc<AtomicBool>,
    asleep: AtomicBool,
    exit: watch::Receiver<Option<Exit>>,
}

impl Running {
    pub fn new(
        spec: MachineSpec,
        process: Arc<Process>,
        control: Option<Control>,
        last_words: LastWords,
    ) -> Running {
        let ending = Arc::new(AtomicBool::new(false));
        let (sender, exit) = watch::channel(None);
        let watcher = Watcher {
            spec: spec.clone(),
            process: process.clone(),
            last_words,
            told: control.as_ref().map(Control::told),
            ending: ending.clone(),
        };
        tokio::spawn(async move {
            let exit = watcher.watch().await;
            sender.send_replace(Some(exit));
        });
        let (asleep, turn) = (AtomicBool::new(false), Arc::default());
        let control = Mutex::new(control.map(Arc::new));
        Running { spec, process, control, turn, ending, asleep, exit }
    }

    fn control(&self) -> Result<Arc<Control>, Problem> {
        let lacks = || {
            let what = format!("{} is a unikernel: there is no other program in it", self.spec.id);
            Problem::new(Kind::Refused, what, "see its log")
        };
        self.channel().ok_or_else(lacks)
    }

    fn channel(&self) -> Option<Arc<Control>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the channel to the guest away or brings another, for a VMM that does not keep it. Tells whether there
    /// was one.
    pub fn set_control(&self, control: Option<Control>) -> bool {
        let mut current = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, control.map(Arc::new)).is_some()
    }

    /// The guest writes its file systems to the disk.
    pub async fn prepare_sleep(&self) -> Result<(), Problem> {
        match self.channel() {
            Some(control) => control.ask(Ask::PrepareSleep, SYNC_PATIENCE).await.map(drop),
            None => Ok(()),
        }
    }

    /// Frozen when it says so: until then it could still take a packet.
    pub async fn freeze(&self) -> Result<(), Problem> {
        self.process.signal(Signal::STOP);
        let start = Instant::now();
        while !self.process.is_frozen() {
            if start.elapsed() > FREEZE_PATIENCE || self.has_ended() {
                return Err(fault("the VMM cannot be frozen"));
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        Ok(())
    }

    /// The snapshot has its name: the VMM has done its work.
    pub async fn fell_asleep(&self) {
        self.asleep.store(true, Ordering::Release);
        self.kill().await;
    }

    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    async fn ended(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
            Ok(Some(exit)) => exit,
            _ => Exit { clean: false, why: "the daemon is shutting down".into() },
        }
    }

    pub async fn stop(&self, grace: Duration) {
        let _turn = self.turn.lock().await;
        self.ending.store(true, Ordering::Release);
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let gently = async {
            let Some(control) = self.channel() else { return };
            if control.ask(Ask::Stop { grace_ms }, grace + STOP_MARGIN).await.is_ok() {
                self.ended().await;
            } else {
                // It does not answer, or is ending already.
                drop(tokio::time::timeout(Duration::from_secs(1), self.ended()).await);
            }
        };
        if tokio::time::timeout(grace + STOP_MARGIN, gently).await.is_err() || !self.has_ended() {
            self.kill().await;
        }
    }

    pub async fn kill(&self) {
        self.ending.store(true, Ordering::Release);
        self.process.signal(Signal::KILL);
        self.ended().await;
    }

    pub async fn exited(&self) -> Exit {
        let exit = self.ended().await;
        if self.asleep.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
        exit
    }

    pub async fn exec(&self, argv: Vec<String>) -> Result<ExecOutput, Problem> {
        match self.control()?.ask(Ask::Exec { argv }, EXEC_PATIENCE).await? {
            Reply::Exec { code, output_base64, truncated } => {
                let output =
                    BASE64_STANDARD.decode(output_base64).map_err(|error| fault(&error.to_string()))?;
                Ok(ExecOutput { code, output, truncated })
            }
            _ => Err(fault("the guest answered a command with something else")),
        }
    }

    pub fn usage(&self) -> Usage {
        let ticks_per_s = rustix::param::clock_ticks_per_second().max(1);
        let (ticks, _) = self.process.work_done();
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.process.pid())).unwrap_or_default();
        let pages: u64 =
            statm.split_ascii_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
        Usage {
            cpu_us: ticks * 1_000_000 / ticks_per_s,
            resident_kib: pages * rustix::param::page_size() as u64 / 1024,
        }
    }
}

/// Waits for the VMM's end and finds out why. It holds no connection: those end with the machine, so that another
/// can be made.
struct Watcher {
    spec: MachineSpec,
    process: Arc<Process>,
    last_words: LastWords,
    told: Option<watch::Receiver<Told>>,
    ending: Arc<AtomicBool>,
}

impl Watcher {
    async fn watch(mut self) -> Exit {
        let end = self.process.ended().await;
        let mut app_exited = None;
        if let Some(told) = &mut self.told {
            // Its last words are still on their way.
            drop(tokio::time::timeout(Duration::from_millis(500), told.wait_for(|told| told.lost)).await);
            app_exited = told.borrow().app_exited;
        }
        let clean = |why: String| Exit { clean: true, why };
        if self.ending.load(Ordering::Acquire) {
            return clean("stopped on request".into());
        }
        let last_word = self.last_words.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (app_exited, last_word) {
            (Some((Some(code), _)), _) => clean(format!("the app ended with code {code}")),
            (Some((None, Some(signal))), _) => clean(format!("the app was killed by signal {signal}")),
            (Some((None, None)), _) => clean("the app ended".into()),
            (None, Some(LastWord::PoweredOff)) => clean("the guest powered itself off".into()),
            (None, Some(LastWord::Reset)) => {
                let console = tail(&self.spec.run_dir.join("console.log"));
                Exit { clean: false, why: format!("the guest's kernel failed: {console}") }
            }
            (None, Some(LastWord::Failed(why))) => Exit { clean: false, why },
            (None, None) => {
                let said = tail(&self.spec.run_dir.join("vmm.log"));
                let why = if said.is_empty() { end.to_string() } else { format!("{end}: {said}") };
                Exit { clean: false, why }
            }
        }
    }
}
