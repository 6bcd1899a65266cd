//! WireGuard in the kernel: a link that was made from the daemon's namespace into the tenant's, configured by wg(8).
//!
//! Invariants: secrets go to wg(8) over stdin, never over its arguments; a known peer's endpoint is never set again, so
//! a device that moved on is not called back to where it was.

use crate::net::{links::Links, namespace::Namespace, wireguard};
use async_trait::async_trait;
use cloudpal_model::{Kind, Problem, PublicKey};
use cloudpal_net::{
    names::WIREGUARD,
    plan::{NetPlan, PeerStatus},
};
use std::{
    collections::HashSet,
    fmt::Write as _,
    io::{self, Write as _},
    process::{Command, Output, Stdio},
    sync::Arc,
};

pub struct Kernel {
    namespace: Arc<Namespace>,
    links: Arc<Links>,
}

impl Kernel {
    /// Takes over the interface of an earlier daemon, sessions and all, or makes it.
    pub async fn start(host: &Links, namespace: Arc<Namespace>, links: Arc<Links>) -> Result<Self, Problem> {
        if links.index(WIREGUARD).await?.is_none() && !host.add_wireguard(WIREGUARD, Some(&namespace)).await?
        {
            let mend = "load it with `modprobe wireguard`, or let the daemon use `--wireguard userspace`";
            return Err(Problem::new(Kind::HostLacks, "this kernel has no WireGuard", mend));
        }
        Ok(Kernel { namespace, links })
    }

    async fn wg(&self, arguments: &[&str], stdin: String) -> Result<String, Problem> {
        let namespace = self.namespace.clone();
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let ran =
            tokio::task::spawn_blocking(move || namespace.run(|| wg(&arguments, &stdin)).and_then(|ran| ran))
                .await
                .unwrap_or_else(|e| Err(io::Error::other(e)))
                .map_err(|e| missing(&e))?;
        if ran.status.success() {
            return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
        Err(Problem::new(Kind::Internal, format!("wg(8) failed: {said}"), "see the daemon's log"))
    }

    async fn known(&self) -> Result<HashSet<PublicKey>, Problem> {
        let text = self.wg(&["show", WIREGUARD, "peers"], String::new()).await?;
        Ok(text.lines().filter_map(|key| key.parse().ok()).collect())
    }
}

#[async_trait]
impl wireguard::WireGuard for Kernel {
    async fn apply(&self, plan: &NetPlan) -> Result<(), Problem> {
        let known = self.known().await?;
        let synced = self.wg(&["syncconf", WIREGUARD, "/dev/stdin"], config(plan, &known)).await;
        synced.map_err(|problem| {
            if problem.what.contains("Address already in use") {
                return wireguard::port_problem(plan.listen_port, &io::ErrorKind::AddrInUse.into());
            }
            problem
        })?;
        for device in &plan.devices {
            if device.last_endpoint.is_some() && !known.contains(&device.public_key) {
                // Switching the keepalive on sends one at once, and that needs a handshake first.
                let key = device.public_key.to_base64();
                for seconds in ["25", "0"] {
                    let set = ["set", WIREGUARD, "peer", &key, "persistent-keepalive", seconds];
                    self.wg(&set, String::new()).await?;
                }
            }
        }
        Ok(())
    }

    async fn peers(&self) -> Result<Vec<PeerStatus>, Problem> {
        let dump = self.wg(&["show", WIREGUARD, "dump"], String::new()).await?;
        Ok(dump.lines().skip(1).filter_map(status).collect())
    }

    fn is_alive(&self) -> bool {
        true
    }

    async fn stop(&self) {
        let gone = match self.links.index(WIREGUARD).await {
            Ok(Some(index)) => self.links.delete(index).await,
            Ok(None) => Ok(()),
            Err(problem) => Err(problem),
        };
        if let Err(problem) = gone {
            tracing::warn!(%problem, "the WireGuard interface stays");
        }
    }
}

/// The problem when wg(8) cannot be started.
fn missing(error: &io::Error) -> Problem {
    let mend = "install it: apt-get install wireguard-tools; or use `--wireguard userspace`";
    Problem::new(Kind::HostLacks, format!("wg cannot be run: {error}"), mend)
}

/// wg(8) is there.
pub fn check_tool() -> Result<(), Problem> {
    wg(&["--version".to_owned()], "").map(drop).map_err(|e| missing(&e))
}

/// The whole interface in wg(8)'s own format.
fn config(plan: &NetPlan, known: &HashSet<PublicKey>) -> String {
    let mut text = String::new();
    let private_key = plan.private_key.to_base64();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "[Interface]\nPrivateKey = {private_key}\nListenPort = {}", plan.listen_port);
    for device in &plan.devices {
        let (key, psk) = (device.public_key, device.preshared_key.to_base64());
        let _ = writeln!(text, "[Peer]\nPublicKey = {key}\nPresharedKey = {psk}");
        let _ = writeln!(text, "AllowedIPs = {}/32, {}/128", device.v4, device.v6);
        if let Some(endpoint) = device.last_endpoint.filter(|_| !known.contains(&key)) {
            let _ = writeln!(text, "Endpoint = {endpoint}");
        }
    }
    text
}

/// One peer of `wg show <interface> dump`: key, psk, endpoint, allowed IPs, handshake (s), received, sent, keepalive.
fn status(line: &str) -> Option<PeerStatus> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [key, _, endpoint, _, handshake_s, received, sent, ..] = fields[..] else { return None };
    Some(PeerStatus {
        public_key: key.parse().ok()?,
        endpoint: endpoint.parse().ok(),
        last_handshake_wall_ms: handshake_s.parse::<u64>().ok().filter(|&s| s > 0).map(|s| s * 1000),
        received_bytes: received.parse().ok()?,
        sent_bytes: sent.parse().ok()?,
    })
}

/// Runs wg(8) in the calling thread's namespace.
fn wg(arguments: &[String], stdin: &str) -> io::Result<Output> {
    let mut command = Command::new("wg");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut pipe) = child.stdin.take() {
        match pipe.write_all(stdin.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    child.wait_with_output()
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloudpal_model::{DeviceId, PresharedKey, PrivateKey, TenantId};
    use cloudpal_net::plan::{DevicePlan, Subnets};

    #[test]
    fn only_a_new_peer_gets_an_endpoint() {
        let device = DevicePlan {
            id: DeviceId(1),
            name: "phone".parse().unwrap(),
            public_key: PublicKey([3; 32]),
            preshared_key: PresharedKey([4; 32]),
            v4: "10.86.1.1".parse().unwrap(),
            v6: "fd12::101".parse().unwrap(),
            exit: true,
            last_endpoint: Some("[2001:db8::1]:9".parse().unwrap()),
        };
        let plan = NetPlan {
            tenant: TenantId(1),
            domain: "ada.pal".into(),
            subnets: Subnets { v4: "10.86.0.0".parse().unwrap(), v6: "fd12::".parse().unwrap() },
            private_key: PrivateKey([5; 32]),
            listen_port: 51820,
            devices: vec![device],
            machines: vec![],
        };
        let text = config(&plan, &HashSet::new());
        assert!(
            text.contains("ListenPort = 51820") && text.contains("AllowedIPs = 10.86.1.1/32, fd12::101/128")
        );
        assert!(text.contains("Endpoint = [2001:db8::1]:9"));
        assert!(!config(&plan, &HashSet::from([PublicKey([3; 32])])).contains("Endpoint"));
    }

    #[test]
    fn the_dump_is_read() {
        let key = PublicKey([3; 32]);
        let line = format!("{key}\t(none)\t192.0.2.1:5\t10.86.1.1/32\t1700000000\t10\t20\toff");
        let peer = status(&line).unwrap();
        assert_eq!((peer.public_key, peer.received_bytes, peer.sent_bytes), (key, 10, 20));
        assert_eq!(peer.endpoint, Some("192.0.2.1:5".parse().unwrap()));
        assert_eq!(peer.last_handshake_wall_ms, Some(1_700_000_000_000));
        let never = status(&format!("{key}\t(none)\t(none)\t10.86.1.1/32\t0\t0\t0\toff")).unwrap();
        assert_eq!((never.endpoint, never.last_handshake_wall_ms), (None, None));
        assert!(status("rubbish").is_none());
    }
}
