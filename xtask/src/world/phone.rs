//! A phone: a network of its own with Debian's wireguard-go, set up by wg-quick from exactly the printed profile.
//!
//! Invariant: nothing here knows more of CloudPal than a phone does, which is its `.conf`.

use super::{
    DrivePeer, Namespace, Reply, Request, Retransmits,
    http::{self, Attempt},
    probe,
};
use crate::shell;
use anyhow::{Context, Result, bail, ensure};
use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

pub struct Phone {
    place: Namespace,
    /// `DIR/INTERFACE.conf`: wg-quick names the interface after the file.
    conf: PathBuf,
    tools: PathBuf,
    up: bool,
}

/// What wg-quick calls for the profile's `DNS =` line. Debian's would edit the whole machine's resolver.
const RESOLVCONF: &str = "#!/bin/sh
# Stands in for resolvconf(8): the phone has a resolv.conf of its own, mounted by `ip netns exec`.
case \"$1\" in
-a) exec cat > /etc/resolv.conf ;;
-d) : > /etc/resolv.conf ;;
esac
";

impl Phone {
    pub fn new(place: Namespace, dir: &Path, interface: &str) -> Result<Phone> {
        let etc = etc_of(&place);
        fs::create_dir_all(&etc).with_context(|| format!("cannot make {}", etc.display()))?;
        fs::write(etc.join("resolv.conf"), "")?;
        let tools = dir.join("tools");
        fs::create_dir_all(&tools)?;
        fs::write(tools.join("resolvconf"), RESOLVCONF)?;
        fs::set_permissions(tools.join("resolvconf"), fs::Permissions::from_mode(0o755))?;
        let conf = dir.join(format!("{interface}.conf"));
        Ok(Phone { place, conf, tools, up: false })
    }

    /// Where the profile is to be written.
    pub fn conf(&self) -> &Path {
        &self.conf
    }

    pub fn connect(&mut self) -> Result<()> {
        self.up = true;
        shell::output(&mut self.wg_quick("up")).map(drop).context("the phone's WireGuard did not start")
    }

    pub fn disconnect(&mut self) -> Result<()> {
        self.up = false;
        shell::output(&mut self.wg_quick("down")).map(drop)
    }

    fn wg_quick(&self, verb: &str) -> Command {
        let path = env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        let mut command = self.place.exec("wg-quick", &[verb, &self.conf.to_string_lossy()]);
        command.env("PATH", format!("{}:{path}", self.tools.display()));
        command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", "wireguard-go");
        // wireguard-go tells everybody on Linux to use the kernel's; the phone is meant not to.
        command.env("WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD", "1");
        command
    }

    /// Asks the name server that the profile names, over the tunnel.
    pub fn resolve(&self, name: &str) -> Result<(Option<IpAddr>, Option<IpAddr>)> {
        let written = fs::read_to_string(etc_of(&self.place).join("resolv.conf"))?;
        let server = written.lines().find_map(|line| line.strip_prefix("nameserver ")?.trim().parse().ok());
        let server: Ipv4Addr = server.context("the profile names no name server")?;
        self.place.inside(|| probe::resolve(SocketAddr::from((server, 53)), name))?
    }

    /// One TCP connection, one request. The kernel may repeat packets; nobody connects twice.
    pub fn request(&self, to: SocketAddr, request: &Request) -> Result<Reply> {
        self.place.inside(|| http::request(to, request))?
    }

    /// Whether a connection is answered at all, be it by a refusal.
    pub fn attempt(&self, to: SocketAddr, patience: Duration) -> Result<Attempt> {
        self.place.inside(|| http::attempt(to, patience))
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.place.inside(work)
    }

    pub fn retransmits(&self) -> Result<Retransmits> {
        self.place.inside(Retransmits::read)?
    }

    /// A JavaScript Hyperdrive that runs on the phone, and asks the name server that the profile names.
    pub fn drive_peer(&self, golden: &Path, arguments: &[&str], log: PathBuf) -> Result<DrivePeer> {
        DrivePeer::start(&self.place, golden, arguments, log)
    }

    /// Sends `count` pings and wants every one answered.
    pub fn ping(&self, to: IpAddr, count: u32) -> Result<()> {
        let (count_text, to) = (count.to_string(), to.to_string());
        let ping = self
            .place
            .exec("ping", &["-n", "-q", "-c", &count_text, "-i", "0.2", "-W", "20", &to])
            .output()?;
        let said = String::from_utf8_lossy(&ping.stdout);
        let all = format!("{count} packets transmitted, {count} received, 0% packet loss");
        ensure!(said.contains(&all), "ping {to}: {}", said.trim());
        Ok(())
    }
}

fn etc_of(place: &Namespace) -> PathBuf {
    Path::new("/etc/netns").join(place.name())
}

impl Drop for Phone {
    fn drop(&mut self) {
        if self.up
            && let Err(error) = self.disconnect()
        {
            eprintln!("the phone's WireGuard did not end: {error:#}");
        }
        let etc = etc_of(&self.place);
        if let Err(error) = fs::remove_dir_all(&etc) {
            eprintln!("cannot remove {}: {error}", etc.display());
        }
        // Only when it was ours alone.
        let _others = fs::remove_dir("/etc/netns");
    }
}

/// The profile is secret: nobody but its owner may read it.
pub fn assert_private(conf: &Path) -> Result<()> {
    let mode = fs::metadata(conf)?.permissions().mode() & 0o777;
    if mode != 0o600 {
        bail!("{} has mode {mode:o}, not 600", conf.display());
    }
    Ok(())
}
