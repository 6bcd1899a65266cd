//! What may pass: nftables rule sets as text for `nft -f -`.
//!
//! Invariants: each text is one transaction that replaces the whole of our table, so it applies completely or not at
//! all, and applying it twice is the same as once; no text holds anything that a person typed; a text never touches a
//! table, or judges an interface, that is not ours.

use crate::link::{LINKS_V4, LINKS_V6};
use crate::names::{EXIT, Instance, TAP_PATTERN, TENANT_TABLE, WIREGUARD, tap};
use crate::plan::{NetPlan, Subnets};
use std::fmt::Display;
use std::ops::RangeInclusive;

/// The source ports of everything that leaves through an exit. Plain masquerade keeps a tenant's own source port, so a
/// tenant could claim the host's WireGuard ports and be handed other people's packets; these are never such a port
/// (those start at [`crate::plan::FIRST_LISTEN_PORT`]).
pub const EXIT_PORTS: RangeInclusive<u16> = 40_000..=50_999;

/// Where the tenant's server replicates data with the tenant's devices (TCP): the port that Hypercore's peers know.
pub const DATA_PORT: u16 = 49_737;

/// The rules of a tenant's own namespace.
pub fn tenant_rules(plan: &NetPlan) -> String {
    let devices = &plan.devices;
    let machines = &plan.machines;
    let exits = || devices.iter().filter(|device| device.exit);
    let sets = [
        set("devices4", "ipv4_addr", devices.iter().map(|device| device.v4)),
        set("devices6", "ipv6_addr", devices.iter().map(|device| device.v6)),
        set(
            "machines4",
            "ifname . ipv4_addr",
            machines.iter().map(|m| format!("\"{}\" . {}", tap(m.id), m.v4)),
        ),
        set(
            "machines6",
            "ifname . ipv6_addr",
            machines.iter().map(|m| format!("\"{}\" . {}", tap(m.id), m.v6)),
        ),
        set("exits4", "ipv4_addr", exits().map(|device| device.v4).chain(machines.iter().map(|m| m.v4))),
        set("exits6", "ipv6_addr", exits().map(|device| device.v6).chain(machines.iter().map(|m| m.v6))),
    ];
    let chains = [tenant_guard(), tenant_input(&plan.subnets), tenant_forward(&plan.subnets), tenant_quiet()];
    replace_table(TENANT_TABLE, &[sets.concat(), chains.concat(), tenant_translation()].concat())
}

/// Sources must be those that we gave out, before anything else looks at a packet. WireGuard's AllowedIPs say the same
/// of devices; a machine has nobody else to say it. Neighbour discovery speaks from link-local addresses.
fn tenant_guard() -> String {
    format!(
        r#"
	chain guard {{
		type filter hook prerouting priority raw; policy accept;
		iifname "{WIREGUARD}" ip saddr != @devices4 drop
		iifname "{WIREGUARD}" ip6 saddr != @devices6 drop
		iifname "{TAP_PATTERN}" icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} ip6 saddr {{ ::, fe80::/10 }} accept
		iifname "{TAP_PATTERN}" iifname . ip saddr != @machines4 drop
		iifname "{TAP_PATTERN}" iifname . ip6 saddr != @machines6 drop
	}}
"#
    )
}

/// The namespace itself offers names and echoes to the overlay, data to devices, and nothing to the outside.
fn tenant_input(subnets: &Subnets) -> String {
    let (v4, v6) = subnets.server();
    format!(
        r#"
	chain input {{
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
		ct state established,related accept
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
		iifname {{ "{WIREGUARD}", "{TAP_PATTERN}" }} jump offered
	}}

	chain offered {{
		ip daddr {v4} meta l4proto {{ tcp, udp }} th dport 53 accept
		ip6 daddr {v6} meta l4proto {{ tcp, udp }} th dport 53 accept
		iifname "{WIREGUARD}" ip daddr {v4} tcp dport {DATA_PORT} accept
		iifname "{WIREGUARD}" ip6 daddr {v6} tcp dport {DATA_PORT} accept
		icmp type echo-request accept
		icmpv6 type echo-request accept
	}}
"#
    )
}

/// Everybody in the overlay reaches everybody in it; outwards only who may, inwards only answers.
/// An overlay address that nobody has must not leave through the exit, and whoever called it learns so at once.
fn tenant_forward(subnets: &Subnets) -> String {
    let (v4, v6) = (network(subnets.v4, Subnets::V4_PREFIX_LEN), network(subnets.v6, Subnets::V6_PREFIX_LEN));
    let rejected = "counter reject with icmpx";
    let syn = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu";
    format!(
        r#"
	chain forward {{
		type filter hook forward priority filter; policy drop;
		oifname "{EXIT}" jump leaving
		iifname "{EXIT}" ct state established,related accept
		iifname "{EXIT}" drop
		iifname {{ "{WIREGUARD}", "{TAP_PATTERN}" }} oifname {{ "{WIREGUARD}", "{TAP_PATTERN}" }} accept
	}}

	chain leaving {{
		ct state invalid drop
		ip daddr {v4} {rejected} host-unreachable
		ip6 daddr {v6} {rejected} host-unreachable
		iifname {{ "{WIREGUARD}", "{TAP_PATTERN}" }} ip saddr @exits4 accept
		iifname {{ "{WIREGUARD}", "{TAP_PATTERN}" }} ip6 saddr @exits6 accept
		{rejected} admin-prohibited
	}}

	chain segment_size {{
		type filter hook forward priority mangle; policy accept;
		iifname "{WIREGUARD}" {syn}
		oifname "{WIREGUARD}" {syn}
	}}
"#
    )
}

/// The kernel reports its own multicast groups on every link; on a TAP that would wake a sleeping machine for nothing.
fn tenant_quiet() -> String {
    format!(
        r#"
	chain quiet {{
		type filter hook output priority filter; policy accept;
		oifname "{TAP_PATTERN}" ip daddr 224.0.0.0/4 drop
		oifname "{TAP_PATTERN}" ip6 daddr ff00::/8 drop
	}}
"#
    )
}

/// Connections that one tenant may have through the host at a time: the host's table is for all tenants together
/// (262,144 entries on a host with much memory), and a household needs some hundreds.
pub const TENANT_CONNECTIONS: u32 = 4096;

/// The host's namespace knows each tenant by the address of its link alone.
fn tenant_translation() -> String {
    format!(
        r#"
	chain translation {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "{EXIT}" masquerade
	}}
"#
    )
}

/// The rules of the host's namespace, for all tenants of an instance: they may go out, and only answers come back;
/// not to each other, not to the host, not to link-local places (where clouds keep their credentials).
/// Other traffic is left to the operator's own rules.
pub fn host_rules(instance: &Instance) -> String {
    let veths = instance.host_veth_pattern();
    let (links4, links6) = (network(LINKS_V4.0, LINKS_V4.1), network(LINKS_V6.0, LINKS_V6.1));
    let (first, last) = (EXIT_PORTS.start(), EXIT_PORTS.end());
    let out = format!("oifname != \"{veths}\" oifname != \"lo\"");
    let ports = format!("meta l4proto {{ tcp, udp }} masquerade to :{first}-{last} random");
    let rules = format!(
        r#"
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname "{veths}" jump to_host
	}}

	chain to_host {{
		ct state established,related accept
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
		ip saddr {links4} icmp type echo-request accept
		ip6 saddr {links6} icmpv6 type echo-request accept
		drop
	}}

	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname "{veths}" jump leaving
		oifname "{veths}" ct state established,related accept
		oifname "{veths}" drop
	}}

	set tenants {{
		type ifname
		size 65535
		flags dynamic
	}}

	chain leaving {{
		oifname "{veths}" drop
		ct state invalid drop
		ct state new add @tenants {{ iifname ct count over {TENANT_CONNECTIONS} }} drop
		ip saddr != {links4} drop
		ip6 saddr != {links6} drop
		ip daddr {{ 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10, 169.254.0.0/16, 168.63.129.16 }} drop
		ip6 daddr {{ fe80::/10, fc00::/7, ff00::/8 }} drop
		accept
	}}

	chain translation {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {links4} {out} {ports}
		ip saddr {links4} {out} masquerade
		ip6 saddr {links6} {out} {ports}
		ip6 saddr {links6} {out} masquerade
	}}
"#
    );
    replace_table(&instance.host_table(), &rules)
}

/// Takes the host's rules of an instance away, whether they are there or not.
pub fn remove_host_rules(instance: &Instance) -> String {
    let table = instance.host_table();
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// Names the table first, so that deleting it cannot fail; then makes it anew.
fn replace_table(table: &str, body: &str) -> String {
    format!("table inet {table}\ndelete table inet {table}\ntable inet {table} {{{body}}}\n")
}

/// nft knows no empty list of elements.
fn set(name: &str, kind: &str, elements: impl Iterator<Item = impl Display>) -> String {
    let elements: Vec<String> = elements.map(|element| element.to_string()).collect();
    let list = match elements.is_empty() {
        true => String::new(),
        false => format!("\t\telements = {{ {} }}\n", elements.join(", ")),
    };
    format!("\n\tset {name} {{\n\t\ttype {kind}\n{list}\t}}\n")
}

fn network(address: impl Display, prefix_len: u8) -> String {
    format!("{address}/{prefix_len}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::FIRST_LISTEN_PORT;
    use crate::plan::examples::household;
    use proptest::prelude::*;

    #[test]
    fn no_exit_port_is_a_wireguard_port() {
        assert!(*EXIT_PORTS.end() < FIRST_LISTEN_PORT);
    }

    #[test]
    fn only_devices_that_may_are_exits() {
        let plan = household(1);
        let text = tenant_rules(&plan);
        let line = |set: &str| {
            let rest = &text[text.find(&format!("set {set} ")).unwrap()..];
            rest[..rest.find('}').unwrap()].to_owned()
        };
        let (phone, laptop) = (&plan.devices[0], &plan.devices[1]);
        assert!(phone.exit && !laptop.exit);
        assert!(
            line("exits4").contains(&phone.v4.to_string()) && line("exits6").contains(&phone.v6.to_string())
        );
        assert!(!line("exits4").contains(&laptop.v4.to_string()));
        assert!(!line("exits6").contains(&laptop.v6.to_string()));
        assert!(line("devices4").contains(&laptop.v4.to_string()));
    }

    proptest! {
        /// Whatever two tenants have, the rules of one name nothing that only the other has.
        #[test]
        fn rules_name_only_the_tenants_own(
            (one, other) in (1u8..100, 101u8..200),
            (devices, machines) in (0usize..3, 0usize..3),
        ) {
            let (mut one, other) = (household(one), household(other));
            one.devices.truncate(devices);
            one.machines.truncate(machines);
            let text = tenant_rules(&one);
            for machine in &other.machines {
                assert!(!text.contains(&format!("\"{}\"", tap(machine.id))));
                assert!(!text.contains(&machine.v6.to_string()));
            }
            for device in &other.devices {
                assert!(!text.contains(&device.v6.to_string()));
            }
            assert!(!text.contains(&other.subnets.v6.to_string()));
            for machine in &one.machines {
                assert!(text.contains(&format!("\"{}\" . {}", tap(machine.id), machine.v4)));
            }
            assert!(!text.contains("elements = {  }"));
        }
    }
}
