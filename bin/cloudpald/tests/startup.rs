//! A host that cannot do its work is told what is wrong and what to do, before anything is changed.
//!
//! Each test runs the real daemon in a network namespace of its own (`unshare --net`), where it can harm nothing.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

const DAEMON: &str = env!("CARGO_BIN_EXE_cloudpald");

struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    /// `None`: said why it is skipped.
    fn make() -> Option<Host> {
        let unshared = Command::new("unshare").args(["--net", "true"]).status();
        if !unshared.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: making network namespaces needs root and unshare(1)");
            return None;
        }
        let host = Host { dir: tempfile::tempdir().unwrap() };
        let guest = host.path("guest");
        fs::create_dir(&guest).unwrap();
        for file in ["vmlinuz", "initramfs.img"] {
            fs::write(guest.join(file), "not started by these tests").unwrap();
        }
        fs::write(guest.join("kernel-version"), "0\n").unwrap();
        Some(host)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The daemon's command line, run by `unshare` and after `before`.
    fn daemon(&self, before: &str) -> Command {
        let instance = format!("start{}", std::process::id());
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "sh", "-c", &format!("{before} exec \"$@\""), "sh", DAEMON]);
        for (flag, name) in [("--state-dir", "state"), ("--run-dir", "run"), ("--guest-dir", "guest")] {
            command.arg(flag).arg(self.path(name));
        }
        command.args(["--endpoint", "192.0.2.1", "--accel", "tcg", "--upstream-dns", "192.0.2.53:53"]);
        command.args(["--instance", &instance]).stdin(Stdio::null());
        command
    }

    /// Runs a daemon that must refuse, and returns what it said.
    fn refused(&self, mut daemon: Command) -> String {
        let Output { status, stderr, .. } = daemon.output().unwrap();
        let said = String::from_utf8_lossy(&stderr).into_owned();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("error: ") && said.contains("\n  mend: "), "{said}");
        said
    }
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} did not appear", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn without_root() {
    let Some(host) = Host::make() else { return };
    fs::set_permissions(host.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // Where the tests are built nobody else may be allowed to look.
    let program = host.path("cloudpald");
    fs::copy(DAEMON, &program).unwrap();
    let mut daemon = Command::new(program);
    for (flag, name) in [("--state-dir", "state"), ("--run-dir", "run"), ("--guest-dir", "guest")] {
        daemon.arg(flag).arg(host.path(name));
    }
    daemon.args(["--endpoint", "192.0.2.1", "--accel", "tcg"]).uid(65_534).gid(65_534);
    let said = host.refused(daemon);
    assert!(said.contains("root"), "{said}");
}

#[test]
fn without_qemu() {
    let Some(host) = Host::make() else { return };
    let bin = host.path("bin");
    fs::create_dir(&bin).unwrap();
    let said = host.refused(host.daemon(&format!("PATH={};", bin.display())));
    assert!(said.contains("qemu-system-x86"), "the package's name: {said}");
}

#[test]
fn without_a_guest() {
    let Some(host) = Host::make() else { return };
    fs::remove_file(host.path("guest/vmlinuz")).unwrap();
    let said = host.refused(host.daemon(""));
    assert!(said.contains("vmlinuz") || said.contains("guest"), "{said}");
}

#[test]
fn without_dev_net_tun() {
    let Some(host) = Host::make() else { return };
    let said = host.refused(host.daemon("mount -t tmpfs hidden /dev/net;"));
    assert!(said.contains("/dev/net/tun"), "{said}");
}

#[test]
fn with_a_corrupt_state_store() {
    let Some(host) = Host::make() else { return };
    fs::create_dir(host.path("state")).unwrap();
    let store = host.path("state/state.redb");
    let garbage = vec![0xa5; 20_000];
    fs::write(&store, &garbage).unwrap();
    let said = host.refused(host.daemon(""));
    assert!(said.contains("state.redb"), "{said}");
    assert_eq!(fs::read(&store).unwrap(), garbage, "a damaged store is evidence: it is left as it is");
}

#[test]
fn on_a_full_disk() {
    let Some(host) = Host::make() else { return };
    fs::create_dir(host.path("state")).unwrap();
    let full = format!(
        "mount -t tmpfs -o size=16k full {state}; head -c 16384 /dev/zero > {state}/ballast;",
        state = host.path("state").display()
    );
    let said = host.refused(host.daemon(&full));
    assert!(said.contains("the disk is full"), "{said}");
}

#[test]
fn beside_another_daemon() {
    let Some(host) = Host::make() else { return };
    let mut first = host.daemon("").stderr(Stdio::null()).spawn().unwrap();
    wait_for(&host.path("run/api.sock"));
    let said = host.refused(host.daemon(""));
    assert!(said.contains("another") || said.contains("running"), "{said}");
    // The first one's socket is untouched, and it ends cleanly when asked.
    assert!(host.path("run/api.sock").exists());
    let pid = first.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(first.wait().unwrap().success());
    assert!(!host.path("run/api.sock").exists());
}
