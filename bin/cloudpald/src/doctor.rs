//! `doctor`: whether this host can do its work, what was found, and the mend where it cannot.

use crate::{daemon::Daemon, http::Check};
use std::path::Path;

/// Below this, snapshots and images soon fail for lack of space.
const LOW_DISK_MIB: u64 = 2048;

pub async fn checks(daemon: &Daemon) -> Vec<Check> {
    let mut checks = vec![
        check("virtual machines", true, daemon.driver.explain(), ""),
        check("wireguard", true, daemon.net.explain(), ""),
        check("state directory", true, daemon.settings.state_dir.display().to_string(), ""),
    ];
    checks.push(firewall(daemon).await);
    checks.push(disk(&daemon.settings.state_dir));
    checks.extend(networks(daemon).await);
    checks
}

fn check(name: &str, ok: bool, found: impl Into<String>, mend: &str) -> Check {
    Check { name: name.into(), ok, found: found.into(), mend: mend.into() }
}

fn disk(dir: &Path) -> Check {
    match cloudpal_host::disk::free_mib(dir) {
        Ok(free_mib) => check(
            "disk space",
            free_mib >= LOW_DISK_MIB,
            format!("{free_mib} MiB free for {}", dir.display()),
            if free_mib >= LOW_DISK_MIB {
                ""
            } else {
                "free some space, or move the state directory to a larger disk"
            },
        ),
        Err(e) => {
            check("disk space", false, e.to_string(), "check that the state directory's disk is mounted")
        }
    }
}

async fn firewall(daemon: &Daemon) -> Check {
    let mend = "it is put back within seconds; if it does not stay, see who flushes nftables on this host";
    match daemon.net.has_host_rules().await {
        Ok(true) => check("firewall", true, "the host's rules stand", ""),
        Ok(false) => check("firewall", false, "the host's rules are gone: somebody flushed them", mend),
        Err(problem) => check("firewall", false, problem.what, &problem.mend),
    }
}

/// The tenants' networks that are not as wanted just now.
async fn networks(daemon: &Daemon) -> Vec<Check> {
    let Ok(view) = daemon.brain.view().await else { return Vec::new() };
    let shown = |t: &cloudpal_control::view::TenantView| {
        let name = format!("network of {}", t.name);
        match t.network_trouble.as_str() {
            "" => check(&name, true, format!("UDP port {}", t.listen_port), ""),
            trouble => check(&name, false, trouble, "it is tried again by itself; see the daemon's log"),
        }
    };
    view.tenants.iter().map(shown).collect()
}
