//! The embedded driver with the tiny guest, which runs on any /dev/kvm: boot, sleep, wake, adoption, spares, and
//! snapshots that are refused. What needs a Linux guest is in `vmm_suite/`.

use cloudpal_compute::driver::{Driver, MachineSpec, SleepOutcome, Unikernel, Vm, WakeError};
use cloudpal_host::{
    net::{
        namespace::Namespace,
        tap::{Counters, Tap},
    },
    vmm::embedded::{EmbeddedDriver, EmbeddedSettings},
};
use cloudpal_model::{Kind, MachineId, Rates, guest::GuestConfig};
use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

const FIRST_UID: u32 = 2_040_000_000;

struct World {
    name: String,
    tap: Arc<Tap>,
    spec: MachineSpec,
    dir: tempfile::TempDir,
    program: PathBuf,
}

impl World {
    fn make(name: &str) -> Option<World> {
        let program = program()?;
        if !Path::new("/dev/kvm").exists() || !nix::unistd::geteuid().is_root() {
            return skip("it needs root and /dev/kvm");
        }
        let dir = tempfile::Builder::new().prefix("cp-").tempdir().unwrap();
        let kernel = dir.path().join("tiny.elf");
        let elf = fs::File::create(&kernel).unwrap();
        let written = Command::new(&program).arg("tiny-guest").stdout(Stdio::from(elf)).status().unwrap();
        assert!(written.success());
        // What the driver looks for when it is made; no unikernel is booted with it.
        for name in ["vmlinuz", "initramfs.img"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let name = format!("emb-{name}-{}", std::process::id());
        let (namespace, _) = Namespace::open_or_create(&name).unwrap();
        let counters = Counters::open(&namespace).unwrap();
        let tap = Arc::new(Tap::open(&namespace, MachineId(1), counters).unwrap());
        let unikernel = Unikernel { kernel, initrd: None, disk: None, command_line: "tiny".into() };
        let spec = MachineSpec {
            id: MachineId(1),
            dir: dir.path().join("machine"),
            run_dir: dir.path().join("run"),
            rootfs: PathBuf::new(),
            memory_mib: 64,
            vcpus: 1,
            disk_mib: 64,
            mac: [2, 0, 0, 0, 0, 1],
            rates: Rates::default(),
            guest: GuestConfig::default(),
            unikernel: Some(unikernel),
        };
        Some(World { name, tap, spec, dir, program })
    }

    fn driver(&self) -> EmbeddedDriver {
        let settings = EmbeddedSettings::new(self.dir.path(), &self.program);
        EmbeddedDriver::new(EmbeddedSettings { first_uid: FIRST_UID, ..settings }).unwrap()
    }

    async fn boot(&self, driver: &EmbeddedDriver) -> Arc<dyn Vm> {
        let vm = driver.boot(&self.spec, self.tap.dup().unwrap()).await.unwrap();
        self.said(1).await;
        vm
    }

    async fn wake(&self, driver: &EmbeddedDriver) -> Result<Arc<dyn Vm>, WakeError> {
        driver.wake(&self.spec, self.tap.dup().unwrap()).await
    }

    /// Why a wake was refused, and that the snapshot was set aside.
    async fn refused(&self, driver: &EmbeddedDriver) -> String {
        match self.wake(driver).await {
            Err(WakeError::SnapshotRefused { why }) => {
                assert!(!driver.has_snapshot(&self.spec));
                assert!(self.spec.dir.join("snapshot.refused").exists());
                why
            }
            Err(WakeError::Failed(problem)) => panic!("the host was blamed: {problem}"),
            Ok(_) => panic!("a bad snapshot was woken"),
        }
    }

    /// The lines of this VMM's guest so far, once there are that many.
    async fn said(&self, lines: usize) -> Vec<String> {
        let start = Instant::now();
        loop {
            let text = fs::read_to_string(self.spec.run_dir.join("console.log")).unwrap_or_default();
            let said: Vec<String> = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
            if said.len() >= lines && text.ends_with('\n') {
                return said;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "the guest said only {text:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A VMM outlives whoever started it.
        let pid = fs::read_to_string(self.spec.run_dir.join("vmm.pid")).unwrap_or_default();
        let arguments = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
        if String::from_utf8_lossy(&arguments).contains(&FIRST_UID.to_string()) {
            let _ = Command::new("kill").args(["-KILL", pid.trim()]).status();
        }
        let _ = Namespace::remove(&self.name);
    }
}

fn program() -> Option<PathBuf> {
    let beside = std::env::current_exe().unwrap().parent()?.parent()?.join("cloudpal-vmm");
    let program = std::env::var_os("CLOUDPAL_VMM").map_or(beside, PathBuf::from);
    if program.is_file() {
        Some(program)
    } else {
        skip("cloudpal-vmm is not built: cargo build -p cloudpal-vmm")
    }
}

fn skip<T>(why: &str) -> Option<T> {
    eprintln!("SKIPPED: {why}");
    None
}

fn is_gone(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// The VMMs that the tests' process has started and that live.
fn children() -> usize {
    let own = std::process::id();
    let path = format!("/proc/{own}/task");
    let tasks = fs::read_dir(path).unwrap().flatten();
    let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    tasks.map(|task| of_task(task).split_ascii_whitespace().count()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_boots_sleeps_and_wakes() {
    let Some(world) = World::make("life") else { return };
    let driver = world.driver();
    let vm = world.boot(&driver).await;
    eprintln!("{}", driver.explain());
    let again = driver.boot(&world.spec, world.tap.dup().unwrap()).await;
    assert_eq!(again.err().map(|problem| problem.kind), Some(Kind::Refused), "never two VMMs of one machine");
    assert_eq!(vm.exec(vec!["true".into()]).await.unwrap_err().kind, Kind::Refused);
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let value =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert!(value("Uid:").starts_with(&(FIRST_UID + vm.pid()).to_string()), "{status}");
    assert_eq!((value("CapEff:"), value("CapBnd:")), ("0000000000000000".into(), "0000000000000000".into()));
    assert_eq!((value("Seccomp:"), value("NoNewPrivs:")), ("2".into(), "1".into()));

    assert_eq!(vm.sleep(&|| false).await.unwrap(), SleepOutcome::Cancelled);
    assert!(!driver.has_snapshot(&world.spec) && !is_gone(vm.pid()));
    let asked = AtomicU32::new(0);
    let late = || asked.fetch_add(1, Ordering::Relaxed) < 3;
    assert_eq!(vm.sleep(&late).await.unwrap(), SleepOutcome::Cancelled);
    assert!(!driver.has_snapshot(&world.spec) && !is_gone(vm.pid()));
    assert!(!world.spec.dir.join("snapshot.tmp").exists());

    let first = world.said(1).await;
    assert_eq!(vm.sleep(&|| true).await.unwrap(), SleepOutcome::Asleep);
    assert!(driver.has_snapshot(&world.spec) && is_gone(vm.pid()));
    let start = Instant::now();
    let vm = world.wake(&driver).await.unwrap();
    eprintln!("woken in {} us", start.elapsed().as_micros());
    assert!(!driver.has_snapshot(&world.spec), "consumed");
    // It says its renewal id only because that is another one now.
    assert_ne!(world.said(1).await, first);

    // What has changed since the wake is little.
    assert_eq!(vm.sleep(&|| true).await.unwrap(), SleepOutcome::Asleep);
    let written = fs::metadata(world.spec.dir.join("snapshot/diff")).expect("a diff alone was written");
    assert!(written.len() < 4 << 20, "{}", written.len());
    // And the next wake is told what was used, which is little, too.
    let used = fs::read(world.spec.dir.join("snapshot/working-set")).unwrap();
    let (words, _) = used[16..].as_chunks::<8>();
    let bytes: u64 = words.iter().skip(1).step_by(2).map(|len| u64::from_le_bytes(*len)).sum();
    assert!(bytes > 0 && bytes < 16 << 20, "{bytes} bytes of 64 MiB");
    let vm = world.wake(&driver).await.unwrap();
    vm.kill().await;
    assert!(vm.exited().await.clean && is_gone(vm.pid()));
}

/// Whoever puts it to sleep goes away in the middle of it, at every question that a sleep asks: the guest runs on, and
/// the next sleep finds everything as if that one had never been.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_runs_on_after_a_sleep_that_was_given_up() {
    let Some(world) = World::make("given") else { return };
    let driver = world.driver();
    let vm = world.boot(&driver).await;
    for round in 0..10 {
        let at = round % 5 + 1;
        let (asked, reached) = (AtomicU32::new(0), tokio::sync::Notify::new());
        let still_idle = || {
            if asked.fetch_add(1, Ordering::Relaxed) + 1 == at {
                reached.notify_one();
            }
            true
        };
        tokio::select! {
            biased;
            () = reached.notified() => {}
            outcome = vm.sleep(&still_idle) => panic!("it asked fewer times than {at}: {outcome:?}"),
        }
        assert!(runs(&vm, &format!("given up at question {at}")).await, "ended at question {at}");
        assert!(!driver.has_snapshot(&world.spec));
        let start = Instant::now();
        while world.spec.dir.join("snapshot.tmp").exists() {
            assert!(start.elapsed() < Duration::from_secs(20), "what was written stays");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    // However long somebody waits, it runs or it sleeps.
    for after_us in [0, 300, 1_000, 3_000, 9_000, 27_000] {
        drop(tokio::time::timeout(Duration::from_micros(after_us), vm.sleep(&|| true)).await);
        if !runs(&vm, &format!("given up after {after_us} us")).await {
            break;
        }
    }
    if !is_gone(vm.pid()) {
        assert_eq!(vm.sleep(&|| true).await.unwrap(), SleepOutcome::Asleep);
    }
    assert!(driver.has_snapshot(&world.spec) && is_gone(vm.pid()));
    let vm = world.wake(&driver).await.unwrap();
    vm.kill().await;
}

/// The guest waits in a loop of its own, which takes time of the CPU as long as it runs. False: its VMM has ended.
async fn runs(vm: &Arc<dyn Vm>, what: &str) -> bool {
    let (start, before) = (Instant::now(), vm.usage().cpu_us);
    while vm.usage().cpu_us < before + 100_000 {
        if is_gone(vm.pid()) {
            return false;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{what}: the guest stands still");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_outlives_its_daemon_and_a_spare_does_not() {
    let Some(world) = World::make("adopt") else { return };
    let driver = world.driver();
    let vm = world.boot(&driver).await;
    let pid = vm.pid();
    let start = Instant::now();
    while !driver.explain().contains("2 spare VMMs") {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", driver.explain());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(children(), 3);
    drop((vm, driver));
    while children() > 1 {
        assert!(start.elapsed() < Duration::from_secs(20), "the spares live on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    // A daemon with another driver leaves it alone, and says what to do.
    let driver = world.driver();
    let note = world.spec.run_dir.join("vmm.json");
    let own = fs::read_to_string(&note).unwrap();
    fs::write(&note, own.replace("embedded", "qemu")).unwrap();
    let problem = driver.adopt(&world.spec).await.err().expect("it is another driver's");
    assert!(problem.kind == Kind::Refused && problem.mend.contains("--driver qemu"), "{problem}");
    fs::write(&note, own).unwrap();
    let (vm, tap) = driver.adopt(&world.spec).await.unwrap().expect("the VMM that lives");
    assert_eq!(vm.pid(), pid);
    let counters = Counters::open(&Namespace::open_or_create(&world.name).unwrap().0).unwrap();
    Tap::adopt(MachineId(1), tap, counters).expect("the machine's own TAP");
    assert_eq!(vm.sleep(&|| true).await.unwrap(), SleepOutcome::Asleep);
    assert!(driver.adopt(&world.spec).await.unwrap().is_none());

    // One that was in the middle of its start when the daemon died is not trusted.
    let vm = world.wake(&driver).await.unwrap();
    let pid = vm.pid();
    fs::remove_file(world.spec.run_dir.join("started")).unwrap();
    drop(vm);
    assert!(driver.adopt(&world.spec).await.unwrap().is_none());
    assert!(is_gone(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_damaged_swapped_or_foreign_is_refused() {
    let Some(world) = World::make("bad") else { return };
    let driver = world.driver();
    let vm = world.boot(&driver).await;
    assert_eq!(vm.sleep(&|| true).await.unwrap(), SleepOutcome::Asleep);
    let good = world.spec.dir.join("snapshot");
    let kept = world.dir.path().join("kept");
    sh(&format!("cp -a --sparse=always {} {}", good.display(), kept.display()));
    let restore = || {
        sh(&format!("rm -rf {0} && cp -a --sparse=always {1} {0}", good.display(), kept.display()));
    };
    let overwrite = |name: &str, at: u64, bytes: &[u8]| {
        let file = fs::File::options().write(true).open(good.join(name)).unwrap();
        file.write_all_at(bytes, at).unwrap();
    };
    let cut = |name: &str, len: u64| {
        fs::File::options().write(true).open(good.join(name)).unwrap().set_len(len).unwrap();
    };

    overwrite("state", 200, &[0xff; 8]);
    eprintln!("state overwritten: {}", world.refused(&driver).await);
    restore();
    cut("state", 100);
    eprintln!("state cut: {}", world.refused(&driver).await);
    restore();
    cut("memory", 1 << 20);
    eprintln!("memory cut: {}", world.refused(&driver).await);
    restore();
    fs::remove_file(good.join("memory")).unwrap();
    eprintln!("memory gone: {}", world.refused(&driver).await);
    // Memory of another sleep of the same machine.
    restore();
    overwrite("memory", (64 << 20) + 8, &[7; 16]);
    assert!(world.refused(&driver).await.contains("another snapshot"));
    // What is in the memory is looked at when somebody wrote into it since, and when the host was started anew.
    restore();
    overwrite("memory", 3 << 20, b"rot");
    assert!(world.refused(&driver).await.contains("damaged"));
    restore();
    let modified = fs::metadata(good.join("memory")).unwrap().modified().unwrap();
    overwrite("memory", 3 << 20, b"rot");
    let file = fs::File::options().write(true).open(good.join("memory")).unwrap();
    file.set_modified(modified).unwrap();
    let description = fs::read_to_string(good.join("snapshot.json")).unwrap();
    let own = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(description.contains(own.trim()));
    fs::write(good.join("snapshot.json"), description.replace(own.trim(), "another")).unwrap();
    assert!(world.refused(&driver).await.contains("damaged"));

    // After all that the good one still wakes, and so it does twice: two machines with nothing alike.
    let mut said = Vec::new();
    for _ in 0..2 {
        restore();
        let vm = world.wake(&driver).await.unwrap();
        said.push(world.said(1).await);
        vm.kill().await;
    }
    assert_ne!(said[0], said[1]);
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}
