//! What every driver's start has in common: directories, the lock, the wait for the VMM and for the guest.
//!
//! Invariants:
//! - After a failed start no VMM of the machine lives, so the next start can follow at once.
//! - What a guest writes is bounded from its first moment on, not only once it is awake.

use super::{
    accelerator::Accelerator,
    control::Control,
    logs::{self, tail},
    process::{Lock, Process},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use cloudpal_compute::driver::MachineSpec;
use cloudpal_model::{Kind, Problem, guest::Ask};
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// For what takes a tenth of a second or a few on an idle host, and much longer on a busy one under emulation.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(90);
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// A VMM that lives may be too busy to be adopted at once.
pub const ADOPTION_TRIES: u32 = 3;
pub const ADOPTION_PAUSE: Duration = Duration::from_secs(1);
/// Whoever reads the lock file, or forks, holds it for a moment.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);
const LOG_CHECKS: Duration = Duration::from_secs(2);
const WORK_CHECKS: Duration = Duration::from_secs(1);
/// What a VMM may take for anything, however busy it is.
pub const LONGEST_PATIENCE: Duration = Duration::from_secs(300);
/// In the machine's run directory, which is root's.
const SOCKETS: &str = "vmm";
/// The kernel's limit of a unix socket's path, less its final zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Makes the machine's directories.
pub fn prepare(spec: &MachineSpec) -> Result<(), Problem> {
    for dir in [&spec.dir, &spec.run_dir] {
        fs::create_dir_all(dir).map_err(|error| Problem::io(dir.display(), &error))?;
    }
    let longest = sockets_dir(spec).join("control.sock");
    if longest.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        let what = format!("{} is longer than a unix socket's path may be", longest.display());
        return Err(Problem::new(Kind::Invalid, what, "choose a shorter --run-dir"));
    }
    Ok(())
}

/// The machine's lock. `Err`: a VMM of it lives.
pub async fn lock(spec: &MachineSpec) -> Result<Lock, Problem> {
    let start = Instant::now();
    loop {
        if let Some(lock) = Lock::take(&spec.run_dir)? {
            return Ok(lock);
        }
        if start.elapsed() > LOCK_PATIENCE {
            let what = format!("a VMM of {} runs already", spec.id);
            return Err(Problem::new(Kind::Refused, what, "stop it first"));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// After a failure the VMM was killed: waits until it is gone, so that the caller can start another at once.
pub async fn settle<T, E>(spec: &MachineSpec, result: Result<T, E>) -> Result<T, E> {
    let start = Instant::now();
    while result.is_err() && start.elapsed() < ANSWER_PATIENCE {
        match Lock::take(&spec.run_dir) {
            Ok(None) => tokio::time::sleep(Duration::from_millis(2)).await,
            Ok(Some(_)) | Err(_) => break,
        }
    }
    result
}

/// The user of this machine's VMM alone, and its group: a group of its own too, or the one that may use KVM.
pub fn user(
    first_uid: Option<u32>,
    spec: &MachineSpec,
    accelerator: Accelerator,
) -> Result<Option<(u32, u32)>, Problem> {
    let Some(first) = first_uid else { return Ok(None) };
    let uid = first.saturating_add(spec.id.0);
    let gid = match accelerator {
        Accelerator::Tcg => uid,
        Accelerator::Kvm => fs::metadata("/dev/kvm").map_err(|error| Problem::io("/dev/kvm", &error))?.gid(),
    };
    Ok(Some((uid, gid)))
}

/// Where the VMM makes its sockets. It is the VMM's own, so nothing in it is opened by us but as a socket:
/// a hostile VMM could have put a link there.
pub fn sockets_dir(spec: &MachineSpec) -> PathBuf {
    spec.run_dir.join(SOCKETS)
}

/// Makes the sockets' directory anew and gives it to the VMM; files reach the VMM as descriptors.
pub fn own_sockets_dir(spec: &MachineSpec, user: Option<(u32, u32)>) -> Result<(), Problem> {
    let dir = sockets_dir(spec);
    let uid = user.map(|(uid, _)| uid);
    let made = match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::DirBuilder::new().mode(0o700).create(&dir),
    };
    let owned = made.and_then(|()| std::os::unix::fs::lchown(&dir, uid, uid));
    owned.map_err(|error| Problem::io(dir.display(), &error))
}

/// Connects to one of the VMM's sockets as soon as it, or the guest behind it, listens.
pub async fn connect<T, F: Future<Output = Result<T, Problem>>>(
    spec: &MachineSpec,
    process: &Process,
    socket: &str,
    patience: Duration,
    connect: impl Fn(PathBuf) -> F,
) -> Result<T, Problem> {
    let path = sockets_dir(spec).join(socket);
    let start = Instant::now();
    loop {
        let problem = match connect(path.clone()).await {
            Ok(connection) => return Ok(connection),
            Err(problem) => problem,
        };
        if start.elapsed() > patience {
            return Err(problem);
        }
        let pause = Duration::from_millis(2);
        if let Ok(end) = tokio::time::timeout(pause, process.ended()).await {
            let said = tail(&spec.run_dir.join("vmm.log"));
            return Err(fault(&format!("{end} at its start: {said}")));
        }
    }
}

/// Waits while the VMM lives and works: on a busy host everything takes its time. It gives up when nothing moves any
/// more.
pub async fn patiently<T>(
    process: &Process,
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    let begun = Instant::now();
    let mut last = (begun, process.work_done().0);
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            end = process.ended() => return Err(fault(&end.to_string())),
            () = tokio::time::sleep(WORK_CHECKS) => {}
        }
        let (ticks, waits_for_disk) = process.work_done();
        if ticks != last.1 || waits_for_disk {
            last = (Instant::now(), ticks);
        }
        if last.0.elapsed() > ANSWER_PATIENCE || begun.elapsed() > LONGEST_PATIENCE {
            let waited_s = begun.elapsed().as_secs();
            return Err(fault(&format!("the VMM came to nothing in {waited_s} s")));
        }
    }
}

/// From the guest's first word to the app's readiness.
pub async fn bring_up(spec: &MachineSpec, control: &Control) -> Result<(), Problem> {
    let work = async {
        let told = control.wait_for(GUEST_PATIENCE, |told| told.hello).await;
        if !told.is_some_and(|told| told.hello) {
            return Err(fault("the guest did not start"));
        }
        let mut config = spec.guest.clone();
        (config.wall_us, config.entropy_base64) = fresh()?;
        let patience = Duration::from_millis(config.ready_timeout_ms) + GUEST_PATIENCE;
        control.ask(Ask::Boot { config: Box::new(config) }, ANSWER_PATIENCE).await?;
        let told = control.wait_for(patience, |told| told.ready || told.app_exited.is_some()).await;
        match told {
            Some(told) if told.app_exited.is_some() => Err(fault("the app ended before it was ready")),
            Some(told) if told.ready => Ok(()),
            _ => Err(fault("the guest was not ready in time")),
        }
    };
    with_bounded_logs(spec, work).await
}

/// After a wake: makes the guest's clock and random generator fresh.
pub async fn refresh(control: &Control, patience: Duration) -> Result<(), Problem> {
    let (wall_us, entropy_base64) = fresh()?;
    control.ask(Ask::Resumed { wall_us, entropy_base64 }, patience).await.map(drop)
}

async fn with_bounded_logs<T>(spec: &MachineSpec, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        if let Ok(done) = tokio::time::timeout(LOG_CHECKS, &mut work).await {
            return done;
        }
        let (dir, run_dir) = (spec.dir.clone(), spec.run_dir.clone());
        let kept = tokio::task::spawn_blocking(move || logs::keep_bounded(&dir, &run_dir)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!(machine = %spec.id, %error, "the logs cannot be kept short");
        }
    }
}

/// If the VMM has ended, that is the cause, and its last words say more.
pub async fn explain_death(spec: &MachineSpec, process: &Process, problem: Problem) -> Problem {
    let dead = tokio::time::timeout(Duration::from_millis(500), process.ended()).await;
    let mut what = format!("{}: {}", spec.id, problem.what);
    if let Ok(end) = dead {
        what += &format!("; {end}");
    }
    for (name, path) in [
        ("the VMM said", spec.run_dir.join("vmm.log")),
        ("the guest's console said", spec.run_dir.join("console.log")),
        ("the app's log ends with", spec.dir.join("log")),
    ] {
        let said = tail(&path);
        if !said.is_empty() {
            what += &format!("\n  {name}: {said}");
        }
    }
    Problem::new(problem.kind, what, "see the machine's log")
}

/// The time, and entropy for the guest.
fn fresh() -> Result<(u64, String), Problem> {
    let mut entropy = [0; 64];
    getrandom::fill(&mut entropy).map_err(|error| fault(&format!("the host's random generator: {error}")))?;
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((u64::try_from(wall.as_micros()).unwrap_or(0), BASE64_STANDARD.encode(entropy)))
}

/// Runs what waits for the disk where that holds nobody up.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| fault(&error.to_string()))
}

/// As [`blocking`], for what fails as IO does at `place`.
pub async fn blocking_io<T: Send + 'static>(
    place: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    blocking(work).await?.map_err(|error| Problem::io(place, &error))
}

pub fn fault(what: &str) -> Problem {
    Problem::new(Kind::Internal, what, "see the machine's log")
}
