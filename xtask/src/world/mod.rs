//! A small world of network namespaces: a data center, two phones, and the internet between them.
//!
//! ```text
//!   dc 198.51.100.10 ── net ── phone a 203.0.113.5
//!                          └── phone b 192.0.2.5
//! ```
//!
//! Invariants: every name carries our process id, so that two worlds can be on one machine; the machine's own
//! network is
//! neither used nor changed; when the world is dropped, nothing of it is left.

mod drive_peer;
mod http;
mod namespace;
mod phone;
mod probe;

pub use drive_peer::DrivePeer;
pub use http::{Attempt, Reply, Request};
pub use namespace::Namespace;
pub use phone::{Phone, assert_private};
pub use probe::{Retransmits, send_udp_to_closed_port};

use anyhow::{Context, Result};
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

/// Where the data center is reached from the internet (TEST-NET-2).
pub const DATA_CENTER: &str = "198.51.100.10";

pub struct World {
    pub dc: Namespace,
    pub phones: [Phone; 2],
    pub files: Files,
    _net: Namespace,
}

impl World {
    pub fn build() -> Result<World> {
        let pid = std::process::id();
        let files = Files::make(PathBuf::from(format!("/tmp/cpday{pid}")))?;
        let net = Namespace::create(&format!("cpday{pid}-net"))?;
        net.sysctl("net.ipv4.ip_forward", "1")?;
        let dc = Namespace::create(&format!("cpday{pid}-dc"))?;
        join(&net, &dc, "dc", "198.51.100.1", DATA_CENTER)?;
        let phone = |letter: &str, router: &str, address: &str| {
            let place = Namespace::create(&format!("cpday{pid}-{letter}"))?;
            join(&net, &place, letter, router, address)?;
            Phone::new(place, &files.dir, &format!("cp{pid}{letter}"))
        };
        let phones = [phone("a", "203.0.113.1", "203.0.113.5")?, phone("b", "192.0.2.1", "192.0.2.5")?];
        Ok(World { dc, phones, files, _net: net })
    }
}

/// The world's files; they go with it unless they are to be kept.
pub struct Files {
    /// Short, since sockets lie below it.
    pub dir: PathBuf,
    pub keep: bool,
}

impl Files {
    fn make(dir: PathBuf) -> Result<Files> {
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        Ok(Files { dir, keep: false })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if self.keep {
            println!("kept: {}", self.dir.display());
        } else if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("cannot remove {}: {error}", self.dir.display());
        }
    }
}

/// Joins a place to the internet: `eth0` there, with a default route.
fn join(net: &Namespace, place: &Namespace, port: &str, router: &str, address: &str) -> Result<()> {
    let (router_net, address_net) = (format!("{router}/24"), format!("{address}/24"));
    net.ip(&["link", "add", "name", port, "type", "veth", "peer", "name", "eth0", "netns", place.name()])?;
    net.ip(&["address", "add", &router_net, "dev", port])?;
    net.ip(&["link", "set", "dev", port, "up"])?;
    place.ip(&["address", "add", &address_net, "dev", "eth0"])?;
    place.ip(&["link", "set", "eth0", "up"])?;
    place.ip(&["route", "add", "default", "via", router])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell;
    use std::{net::TcpListener, thread, time::Duration};

    /// A WireGuard server that is not ours either, in the data center.
    fn serve(world: &World, phone_key: &str) -> Result<String> {
        let key = world.files.path("server.key");
        let secret = shell::output(&mut shell::command("wg", &["genkey"]))?;
        fs::write(&key, &secret)?;
        let name = format!("cps{}", std::process::id());
        shell::output(
            world.dc.exec("wireguard-go", &[&name]).env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1"),
        )?;
        let key_path = key.to_string_lossy();
        let set = ["set", &name, "listen-port", "51820", "private-key", &key_path, "peer", phone_key];
        shell::output(world.dc.exec("wg", &set).args(["allowed-ips", "10.9.0.2/32"]))?;
        world.dc.ip(&["address", "add", "10.9.0.1/24", "dev", &name])?;
        world.dc.ip(&["link", "set", &name, "up"])?;
        public_key(&key)
    }

    fn public_key(file: &std::path::Path) -> Result<String> {
        let said =
            shell::output(&mut shell::command("sh", &["-c", &format!("wg pubkey < {}", file.display())]))?;
        Ok(said.trim().to_owned())
    }

    fn reach_the_server() -> Result<()> {
        let mut world = World::build()?;
        let key = world.files.path("phone.key");
        let secret = shell::output(&mut shell::command("wg", &["genkey"]))?;
        fs::write(&key, &secret)?;
        let server = serve(&world, &public_key(&key)?)?;
        let conf = format!(
            "[Interface]\nPrivateKey = {secret}Address = 10.9.0.2/32\nDNS = 10.9.0.1\n[Peer]\n\
            PublicKey = {server}\nAllowedIPs = 0.0.0.0/0\nEndpoint = {DATA_CENTER}:51820\n"
        );
        fs::write(world.phones[0].conf(), conf)?;
        world.phones[0].connect()?;
        world.phones[0].ping("10.9.0.1".parse()?, 2)?;

        let listener = world.dc.inside(|| TcpListener::bind("10.9.0.1:8080"))??;
        let to = listener.local_addr()?;
        let server = thread::spawn(move || -> std::io::Result<()> {
            use std::io::{Read, Write};
            let (mut stream, _) = listener.accept()?;
            let mut request = [0; 4096];
            let _length = stream.read(&mut request)?;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello")
        });
        let reply = world.phones[0].request(to, &Request::get("/"))?;
        anyhow::ensure!((reply.status, reply.body.as_str()) == (200, "hello"), "{reply:?}");
        anyhow::ensure!(server.join().is_ok_and(|served| served.is_ok()), "the server failed");
        let closed = "10.9.0.1:9".parse()?;
        world.phones[0].inside(|| send_udp_to_closed_port(closed, Duration::from_secs(5)))??;
        // The other phone has no profile, and so no way.
        let attempt = world.phones[1].attempt(to, Duration::from_millis(300))?;
        anyhow::ensure!(
            attempt != Attempt::Connected,
            "a phone without a profile reached the tunnel's inside"
        );
        Ok(())
    }

    #[test]
    fn a_phone_reaches_a_server_by_its_profile_and_nothing_is_left() {
        if !nix::unistd::geteuid().is_root()
            || !shell::succeeds(&mut shell::command("wireguard-go", &["--version"]))
        {
            eprintln!("skipped: needs root and Debian's wireguard-go (`cargo xtask setup`)");
            return;
        }
        let outcome = reach_the_server();
        assert!(outcome.is_ok(), "{:?}", outcome.err());
        let prefix = format!("cpday{}", std::process::id());
        let left = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        assert_eq!(left.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix)).count(), 0);
        assert!(!PathBuf::from(format!("/tmp/{prefix}")).exists());
    }
}
