//! What the VMM tests share: a namespace with one TAP, a tiny image, and a machine's specification.

use cloudpal_compute::driver::MachineSpec;
use cloudpal_host::net::{
    namespace::Namespace,
    tap::{Counters, Tap},
};
use cloudpal_model::{
    MachineId, Rates,
    guest::{GuestConfig, GuestNetwork, Process},
};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

const GUEST_MAC: [u8; 6] = [0x02, 0xc1, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [0x02, 0xc1, 0, 0, 0, 2];
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const HOST_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub const GREETING: &str = "hello from a microVM\n";
/// What the app does besides serving: nothing that an idle machine would not.
pub const SERVE: &str = "mkdir -p /data; echo the app starts; exec busybox httpd -f -p 80 -h /www";

pub struct World {
    namespace: Arc<Namespace>,
    name: String,
    pub tap: Arc<Tap>,
    pub spec: MachineSpec,
    guest_dir: PathBuf,
    dir: tempfile::TempDir,
}

impl World {
    /// `None`, said aloud, when this machine cannot run the test.
    pub fn make(name: &str) -> Option<World> {
        let guest_dir = guest_dir()?;
        let target = guest_dir.parent().expect("the guest's directory has a parent").to_path_buf();
        for (program, package) in [("qemu-system-x86_64", "qemu-system-x86"), ("mkfs.erofs", "erofs-utils")] {
            if Command::new(program).arg("--help").output().is_err() {
                return skip(&format!("{program} is missing: apt-get install {package}"));
            }
        }
        if fs::metadata("/dev/net/tun").is_err() || !nix::unistd::geteuid().is_root() {
            return skip("it needs root and /dev/net/tun");
        }
        // As private as the daemon's: a VMM must do without looking into it.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let dir = tempfile::Builder::new().prefix("cp-").permissions(private).tempdir().unwrap();
        let rootfs = dir.path().join("root.erofs");
        make_image(&target, dir.path(), &rootfs)?;

        let name = format!("vmm-{name}-{}", std::process::id());
        let (namespace, _) = Namespace::open_or_create(&name).unwrap();
        let counters = Counters::open(&namespace).unwrap();
        let tap = Arc::new(Tap::open(&namespace, MachineId(1), counters).unwrap());
        let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        let v6 = "net.ipv6.conf";
        sh(&format!(
            "ip netns exec {name} sh -c 'sysctl -qw {v6}.m1.disable_ipv6=1 && ip link set lo up &&
             ip link set m1 address {} up && ip addr add {HOST_V4}/32 dev m1 && ip route add {GUEST_V4}/32 dev m1 &&
             ip neigh replace {GUEST_V4} lladdr {} dev m1 nud permanent'",
            mac(HOST_MAC),
            mac(GUEST_MAC)
        ));
        let spec = machine_spec(dir.path());
        Some(World { namespace, name, tap, spec, guest_dir, dir })
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn guest_dir(&self) -> &Path {
        &self.guest_dir
    }

    /// A file system of that size, until it is dropped.
    pub fn mount_small(&self, size: &str) -> Small {
        let path = self.dir.path().join(format!("small-{size}"));
        fs::create_dir(&path).unwrap();
        sh(&format!("mount -t tmpfs -o size={size} tmpfs {}", path.display()));
        Small(path)
    }

    /// The answer to one GET, by one connection attempt, and how long it took.
    pub fn get(&self) -> JoinHandle<(String, Duration)> {
        self.get_path("/index.html")
    }

    pub fn get_path(&self, path: &'static str) -> JoinHandle<(String, Duration)> {
        let namespace = self.namespace.clone();
        std::thread::spawn(move || namespace.run(|| http_get(path)).unwrap())
    }

    /// One ping, which nobody repeats: whether it was answered.
    pub fn ping(&self) -> JoinHandle<bool> {
        let name = self.name.clone();
        std::thread::spawn(move || {
            let guest = GUEST_V4.to_string();
            let arguments = ["netns", "exec", &name, "ping", "-n", "-q", "-c", "1", "-W", "60", &guest];
            let status = Command::new("ip").args(arguments).stdout(std::process::Stdio::null()).status();
            status.unwrap().success()
        })
    }

    /// Returns when no packet came for a while: connections are closed on both sides.
    pub async fn quiet(&self) {
        let mut delivered = None;
        while delivered != Some(self.tap.delivered_packets()) {
            delivered = Some(self.tap.delivered_packets());
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    pub fn is_idle(&self, delivered_packets: u64) -> bool {
        self.tap.delivered_packets() == delivered_packets && !self.tap.has_waiting()
    }
}

pub struct Small(PathBuf);

impl Small {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        sh(&format!("umount -l {}", self.0.display()));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A VMM outlives whoever started it; one that a failed test left behind still has the lock open.
        let pid = fs::read_to_string(self.spec.run_dir.join("vmm.pid")).unwrap_or_default();
        let lock = self.spec.run_dir.join("vmm.lock");
        let mut open = fs::read_dir(format!("/proc/{}/fd", pid.trim())).into_iter().flatten().flatten();
        if open.any(|fd| fs::read_link(fd.path()).is_ok_and(|path| path == lock)) {
            let _ = Command::new("kill").args(["-KILL", pid.trim()]).status();
        }
        let _ = Namespace::remove(&self.name);
    }
}

/// The machine whose world lies in that directory.
pub fn machine_spec(dir: &Path) -> MachineSpec {
    MachineSpec {
        unikernel: None,
        id: MachineId(1),
        dir: dir.join("machine"),
        run_dir: dir.join("run"),
        rootfs: dir.join("root.erofs"),
        memory_mib: 128,
        vcpus: 1,
        disk_mib: 256,
        mac: GUEST_MAC,
        rates: Rates::default(),
        guest: guest_config(),
    }
}

fn http_get(path: &str) -> (String, Duration) {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&(GUEST_V4, 80).into(), Duration::from_secs(60)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{head}");
    (body.to_owned(), start.elapsed())
}

fn guest_config() -> GuestConfig {
    GuestConfig {
        hostname: "tiny".into(),
        process: Process {
            argv: vec!["sh".into(), "-c".into(), SERVE.into()],
            env: vec!["COLOUR=green".into()],
            cwd: "/srv/app".into(),
            user: "web".into(),
            stop_signal: 15,
        },
        network: GuestNetwork {
            ipv4: GUEST_V4,
            ipv6: "fd09::2".parse().unwrap(),
            gateway_ipv4: HOST_V4,
            gateway_ipv6: "fe80::1".parse().unwrap(),
            gateway_mac: HOST_MAC,
            dns: HOST_V4,
            search_domain: "ada.pal".into(),
            mtu: 1420,
        },
        ready_tcp_ports: vec![80],
        ready_timeout_ms: 20_000,
        ..GuestConfig::default()
    }
}

/// Where the guest's kernel is: built by the set-up.
fn guest_dir() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
    let dir = std::env::var_os("CLOUDPAL_GUEST_DIR").map_or(default, PathBuf::from);
    if !dir.join("initramfs.img").is_file() {
        return skip(&format!(
            "there is no guest kernel in {}; build it with `cargo xtask guest`",
            dir.display()
        ));
    }
    Some(dir)
}

/// An image whose only program is Debian's static busybox.
fn make_image(target: &Path, work: &Path, rootfs: &Path) -> Option<()> {
    let cache = target.join("test-image");
    if !cache.join("bin/busybox").exists() {
        // Several tests may do this at once: each in a directory of its own, renamed into place.
        let fresh = tempfile::Builder::new().prefix("test-image-").tempdir_in(target).unwrap();
        let script =
            "apt-get -q download busybox-static >/dev/null 2>&1 && dpkg-deb -x busybox-static_*.deb root";
        let done = Command::new("sh").args(["-c", script]).current_dir(&fresh).status();
        if !done.is_ok_and(|status| status.success()) {
            return skip("busybox-static cannot be downloaded; run `apt-get update`");
        }
        let _ = fs::rename(fresh.path().join("root"), &cache);
    }
    let root = work.join("rootfs");
    for dir in ["bin", "etc", "www", "data", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy(cache.join("bin/busybox"), root.join("bin/busybox")).unwrap();
    for name in ["sh", "cat", "date", "echo", "env", "head", "id", "mkdir", "sha256sum", "sync", "yes"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/data:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:33:\nlogs:x:44:web\n").unwrap();
    fs::write(root.join("www/index.html"), GREETING).unwrap();
    std::os::unix::fs::symlink("/data/moved", root.join("www/moved")).unwrap();
    fs::set_permissions(root.join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    std::os::unix::fs::chown(root.join("data"), Some(33), Some(33)).unwrap();
    let made = Command::new("mkfs.erofs").arg(rootfs).arg(&root).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(())
}

pub fn sh(script: &str) {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn skip<T>(why: &str) -> Option<T> {
    eprintln!("SKIPPED: {why}");
    None
}
