//! A VMM that is hostile: whatever it tries from inside the jail is refused, with and without the filter of system
//! calls, and each attempt succeeds without the jail, so that it proves something.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixListener},
            process::ExitStatusExt,
        },
    },
    process::{Child, Command, Stdio},
};

const FIRST_UID: u32 = 2_050_000_000;

struct World {
    dir: tempfile::TempDir,
    other: Child,
    loopback: TcpListener,
    _sockets: [UnixListener; 2],
    leaked: File,
}

impl World {
    fn make() -> Option<World> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: it needs root");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("open to all");
        fs::write(dir.path().join("public"), "anybody's").expect("a file");
        let other = dir.path().join("other");
        fs::write(&other, "another machine's").expect("a file");
        fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).expect("its own");
        std::os::unix::fs::chown(&other, Some(FIRST_UID - 1), Some(FIRST_UID - 1)).expect("its own");
        let name = format!("cloudpal-jail-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let path = dir.path().join("socket");
        let sockets = [
            UnixListener::bind_addr(&address).expect("a socket"),
            UnixListener::bind(&path).expect("a socket"),
        ];
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("open to all");
        let other = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("a process");
        let loopback = TcpListener::bind("127.0.0.1:0").expect("a port");
        let leaked = File::open(dir.path()).expect("a directory");
        Some(World { dir, other, loopback, _sockets: sockets, leaked })
    }

    /// Makes one attempt in a process of its own, or lists all attempts.
    fn attempt(&self, jail: &str, name: Option<&str>) -> (std::process::ExitStatus, String) {
        let path = |name: &str| self.dir.path().join(name).to_string_lossy().into_owned();
        let leaked = self.leaked.as_raw_fd();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloudpal-vmm"));
        command.args(["attempt", "--jail", jail, "--first-uid", &FIRST_UID.to_string()]);
        command.args(["--public-file", &path("public"), "--other-file", &path("other")]);
        command.args(["--other-pid", &self.other.id().to_string(), "--other-fd", "0"]);
        command.args(["--loopback", &self.loopback.local_addr().expect("an address").to_string()]);
        command.args(["--abstract-socket", &format!("cloudpal-jail-test-{}", std::process::id())]);
        command.args(["--path-socket", &path("socket"), "--leaked-fd", &leaked.to_string()]);
        command.args(name);
        rustix::io::fcntl_setfd(&self.leaked, rustix::io::FdFlags::empty()).expect("inheritable");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let own_pids = jail != "none";
        // As the daemon does it: a thread whose next child has a pid namespace of its own.
        let started = std::thread::spawn(move || {
            if own_pids {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID).expect("a pid namespace");
            }
            command.spawn().expect("the program")
        });
        let output = started.join().expect("a thread").wait_with_output().expect("its output");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status, said + &String::from_utf8_lossy(&output.stderr))
    }

    fn names(&self) -> Vec<String> {
        let (status, said) = self.attempt("none", None);
        assert!(status.success(), "{said}");
        let names: Vec<_> = said.lines().map(str::to_owned).collect();
        assert!(names.len() >= 20, "{said}");
        names
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.other.kill();
        let _ = self.other.wait();
    }
}

#[test]
fn every_attempt_succeeds_without_the_jail() {
    let Some(world) = World::make() else { return };
    for name in world.names() {
        let (status, said) = world.attempt("none", Some(&name));
        assert!(status.success() && said.contains("\"refused\":null"), "{name}: {said}");
    }
}

#[test]
fn every_attempt_is_refused_by_user_and_namespaces_alone() {
    let Some(world) = World::make() else { return };
    for name in world.names() {
        let (status, said) = world.attempt("closed", Some(&name));
        assert!(status.success(), "{name}: {said}");
        let outcome: serde_json::Value = serde_json::from_str(&said).expect("an outcome");
        assert!(outcome["refused"].is_string(), "{name} succeeded inside the jail");
        println!("{name}: {}", outcome["refused"]);
    }
}

#[test]
fn every_attempt_kills_the_process_under_the_filter() {
    let Some(world) = World::make() else { return };
    for name in world.names() {
        let (status, said) = world.attempt("filtered", Some(&name));
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{name}: {status}: {said}");
    }
    // What the filter lets through does not kill: the jail's closing itself, and telling so.
    let (status, said) = world.attempt("filtered", Some("nothing"));
    assert!(status.success() && said.trim() == "null", "{status}: {said}");
}
