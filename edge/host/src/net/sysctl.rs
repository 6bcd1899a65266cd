//! The kernel's network settings of one namespace: those of the thread that writes them.
//!
//! Invariant: before the host forwards IPv6, interfaces that live from router advertisements are told to go on so.

use std::{fs, io, path::Path};

const BASE: &str = "/proc/sys/net";

/// A tenant's namespace routes, believes no stranger about routes, and says nothing by itself on its links.
const TENANT: &[(&str, &str)] = &[
    // First: it sets others back to their defaults.
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    // No duplicate address detection and no address of the kernel's choice: each would wake a sleeping machine.
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
];

/// Called inside the tenant's namespace.
pub fn set_up_tenant() -> io::Result<()> {
    TENANT.iter().try_for_each(|(name, value)| set(name, value))
}

/// Called inside the tenant's namespace. A library OS that takes no gateway outside of its own subnet is told that all
/// of the overlay is on its link, and is answered here when it asks there for a device (RFC 1027), at once.
pub fn answer_for_others(tap: &str) -> io::Result<()> {
    set(&format!("ipv4/neigh/{tap}/proxy_delay"), "0")?;
    set(&format!("ipv4/conf/{tap}/proxy_arp"), "1")
}

/// Called in the daemon's own namespace: the tenants' packets go out through it.
pub fn let_host_forward() -> io::Result<()> {
    set("ipv4/ip_forward", "1")?;
    let conf = Path::new(BASE).join("ipv6/conf");
    for interface in fs::read_dir(conf)? {
        // 1: advertisements count unless the host forwards; 2: they count all the same.
        let accept_ra = interface?.path().join("accept_ra");
        if fs::read_to_string(&accept_ra)?.trim() == "1" {
            fs::write(&accept_ra, "2")?;
        }
    }
    set("ipv6/conf/all/forwarding", "1")
}

/// Called in the daemon's own namespace: the host's end of a tenant's way out keeps quiet.
pub fn quiet_host_link(interface: &str) -> io::Result<()> {
    for (name, value) in
        [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0"), ("addr_gen_mode", "1")]
    {
        set(&format!("ipv6/conf/{interface}/{name}"), value)?;
    }
    set(&format!("ipv4/conf/{interface}/rp_filter"), "1")
}

/// Writes only what differs, so that a read-only /proc/sys with the right values is good enough.
fn set(name: &str, value: &str) -> io::Result<()> {
    let path = Path::new(BASE).join(name);
    let place = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    if fs::read_to_string(&path).map_err(place)?.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(place)
}
