//! Who has which address in an overlay.
//!
//! The server has `x.y.0.1`, devices `x.y.1.1` to `x.y.63.254`, apps `x.y.64.1` to `x.y.255.254`; the IPv6 address is
//! the prefix with the same 16 host bits: `10.86.1.1` is also `fd…::101`.
//! Invariants: one slot, one address; no slot is a server's, a network's or a broadcast's; a slot never moves.

use crate::link::LINKS_V6;
use crate::plan::{MachinePlan, NetPlan, Subnets};
use cloudpal_model::guest::GuestNetwork;
use cloudpal_model::{Kind, MachineId, Problem};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The link-layer address of the host's end of every TAP. A machine's never is the same (see [`machine_mac`]).
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x67, 0, 0, 0, 1];
/// The next hop of every machine, on its link only.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Fits into WireGuard over IPv6 over Ethernet. TAPs, machines and devices all use it.
pub const MTU: u16 = 1420;

/// The overlay's IPv4 network when nobody asks for another: seldom used by homes, hotels and Docker.
pub const DEFAULT_V4: Ipv4Addr = Ipv4Addr::new(10, 86, 0, 0);

/// Addresses of one third octet that are given out: 1 to 254.
const PER_OCTET: u16 = 254;

/// The two ranges that addresses are given out from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    Devices,
    Apps,
}

impl Range {
    const fn first_octet(self) -> u16 {
        match self {
            Range::Devices => 1,
            Range::Apps => 64,
        }
    }

    const fn last_octet(self) -> u16 {
        match self {
            Range::Devices => 63,
            Range::Apps => 255,
        }
    }

    /// How many addresses there are: the slots 0 to this, exclusive.
    pub const fn slots(self) -> u16 {
        (self.last_octet() - self.first_octet() + 1) * PER_OCTET
    }

    /// The lowest slot that is not used; `None`: all are.
    pub fn lowest_free_slot(self, used: impl IntoIterator<Item = u16>) -> Option<u16> {
        let used: BTreeSet<u16> = used.into_iter().collect();
        (0..self.slots()).find(|slot| !used.contains(slot))
    }

    /// The host bits of a slot; `None`: the range has no such slot.
    fn host_bits(self, slot: u16) -> Option<u16> {
        if slot >= self.slots() {
            return None;
        }
        Some((self.first_octet() + slot / PER_OCTET) << 8 | (1 + slot % PER_OCTET))
    }
}

/// Why subnets cannot be an overlay's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    #[error("{given} is not the network address of a /16: the last two numbers must be 0")]
    V4NotNetwork { given: Ipv4Addr },
    #[error("{given} lies in 100.64.0.0/10, which mobile carriers and other VPNs use")]
    V4Shared { given: Ipv4Addr },
    #[error("{given} is not in private space (10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16)")]
    V4NotPrivate { given: Ipv4Addr },
    #[error("{given} is not the prefix of a /64: the last four groups must be 0")]
    V6NotPrefix { given: Ipv6Addr },
    #[error("{given} is not in unique local space (fd00::/8)")]
    V6NotUniqueLocal { given: Ipv6Addr },
    #[error("{given} is used by the host itself, between its namespaces")]
    V6TakenByHost { given: Ipv6Addr },
}

impl From<SubnetError> for Problem {
    fn from(error: SubnetError) -> Problem {
        use SubnetError::*;
        let mend = match error {
            V4NotNetwork { .. } | V4Shared { .. } | V4NotPrivate { .. } => {
                "give a /16 that the owner's homes do not use, for example 10.86.0.0, or leave the option out"
            }
            V6NotPrefix { .. } | V6NotUniqueLocal { .. } | V6TakenByHost { .. } => {
                "leave the option out: a random prefix is drawn; or give one like fd12:3456:789a::"
            }
        };
        Problem::new(Kind::Invalid, error.to_string(), mend)
    }
}

impl Subnets {
    pub const V4_PREFIX_LEN: u8 = 16;
    pub const V6_PREFIX_LEN: u8 = 64;

    /// What the person asked for, checked; what was left out is chosen: 10.86.0.0/16, and a /64 whose global id is
    /// `random` (RFC 4193 §3.2).
    pub fn choose(
        v4: Option<Ipv4Addr>,
        v6: Option<Ipv6Addr>,
        random: [u8; 5],
    ) -> Result<Subnets, SubnetError> {
        let chosen = Subnets { v4: v4.unwrap_or(DEFAULT_V4), v6: v6.unwrap_or_else(|| unique_local(random)) };
        chosen.check()?;
        Ok(chosen)
    }

    /// Refuses what would collide or could not be an overlay's.
    pub fn check(&self) -> Result<(), SubnetError> {
        let [a, b, c, d] = self.v4.octets();
        if a == 100 && b & 0xc0 == 64 {
            return Err(SubnetError::V4Shared { given: self.v4 });
        }
        if !self.v4.is_private() {
            return Err(SubnetError::V4NotPrivate { given: self.v4 });
        }
        if c != 0 || d != 0 {
            return Err(SubnetError::V4NotNetwork { given: self.v4 });
        }
        if self.v6.octets()[0] != 0xfd {
            return Err(SubnetError::V6NotUniqueLocal { given: self.v6 });
        }
        if self.v6.to_bits() as u64 != 0 {
            return Err(SubnetError::V6NotPrefix { given: self.v6 });
        }
        if self.v6 == LINKS_V6.0 {
            return Err(SubnetError::V6TakenByHost { given: self.v6 });
        }
        Ok(())
    }

    /// The tenant's own end of the tunnel: WireGuard and DNS.
    pub fn server(&self) -> (Ipv4Addr, Ipv6Addr) {
        self.with_host_bits(1)
    }

    pub fn server_v4(&self) -> Ipv4Addr {
        self.server().0
    }

    pub fn server_v6(&self) -> Ipv6Addr {
        self.server().1
    }

    /// The addresses of a slot; `None`: the range has no such slot.
    pub fn address(&self, range: Range, slot: u16) -> Option<(Ipv4Addr, Ipv6Addr)> {
        range.host_bits(slot).map(|bits| self.with_host_bits(bits))
    }

    /// The slot of an address, if it was given out from this range.
    pub fn slot(&self, range: Range, v4: Ipv4Addr) -> Option<u16> {
        if !self.contains_v4(v4) {
            return None;
        }
        let [_, _, octet, last] = v4.octets().map(u16::from);
        let slot = octet.checked_sub(range.first_octet())? * PER_OCTET + last.checked_sub(1)?;
        (range.host_bits(slot)? == octet << 8 | last).then_some(slot)
    }

    /// The lowest addresses of the range that nobody uses; `None`: all are used. Foreign addresses do not matter.
    pub fn lowest_free(
        &self,
        range: Range,
        used: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Option<(Ipv4Addr, Ipv6Addr)> {
        let used = used.into_iter().filter_map(|v4| self.slot(range, v4));
        self.address(range, range.lowest_free_slot(used)?)
    }

    pub fn contains_v4(&self, address: Ipv4Addr) -> bool {
        address.to_bits() >> 16 == self.v4.to_bits() >> 16
    }

    pub fn contains_v6(&self, address: Ipv6Addr) -> bool {
        address.to_bits() >> 64 == self.v6.to_bits() >> 64
    }

    fn with_host_bits(&self, bits: u16) -> (Ipv4Addr, Ipv6Addr) {
        let v4 = self.v4.to_bits() | u32::from(bits);
        let v6 = self.v6.to_bits() | u128::from(bits);
        (v4.into(), v6.into())
    }
}

/// The /64 with subnet id 0 of a random global id.
fn unique_local(random: [u8; 5]) -> Ipv6Addr {
    let [a, b, c, d, e] = random;
    Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// The machine's link-layer address: locally administered, unicast, the same for its whole life.
pub fn machine_mac(machine: MachineId) -> [u8; 6] {
    let [a, b, c, d] = machine.0.to_be_bytes();
    [0x02, 0x63, a, b, c, d]
}

/// What the guest is told of its network.
pub fn guest_network(plan: &NetPlan, machine: &MachinePlan) -> GuestNetwork {
    GuestNetwork {
        ipv4: machine.v4,
        ipv6: machine.v6,
        gateway_ipv4: GATEWAY_V4,
        gateway_ipv6: GATEWAY_V6,
        gateway_mac: GATEWAY_MAC,
        dns: plan.subnets.server_v4(),
        search_domain: plan.domain.clone(),
        mtu: MTU,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn subnets() -> Subnets {
        Subnets::choose(None, None, [0x12, 0x34, 0x56, 0x78, 0x9a]).unwrap()
    }

    #[test]
    fn the_defaults_and_the_ends_of_both_ranges() {
        let subnets = subnets();
        let pair = |v4: &str, v6: &str| Some((v4.parse().unwrap(), v6.parse().unwrap()));
        assert_eq!(Some(subnets.server()), pair("10.86.0.1", "fd12:3456:789a::1"));
        assert_eq!(subnets.address(Range::Devices, 0), pair("10.86.1.1", "fd12:3456:789a::101"));
        assert_eq!(subnets.address(Range::Devices, 253), pair("10.86.1.254", "fd12:3456:789a::1fe"));
        assert_eq!(subnets.address(Range::Devices, 254), pair("10.86.2.1", "fd12:3456:789a::201"));
        assert_eq!(subnets.address(Range::Devices, 16_001), pair("10.86.63.254", "fd12:3456:789a::3ffe"));
        assert_eq!(subnets.address(Range::Devices, 16_002), None);
        assert_eq!(subnets.address(Range::Apps, 0), pair("10.86.64.1", "fd12:3456:789a::4001"));
        assert_eq!(subnets.address(Range::Apps, 48_767), pair("10.86.255.254", "fd12:3456:789a::fffe"));
        assert_eq!(subnets.address(Range::Apps, 48_768), None);
    }

    #[test]
    fn all_addresses_differ_and_lead_back_to_their_slot() {
        let subnets = subnets();
        let mut seen = HashSet::from([subnets.server_v4()]);
        for range in [Range::Devices, Range::Apps] {
            for slot in 0..range.slots() {
                let (v4, v6) = subnets.address(range, slot).unwrap();
                assert!(seen.insert(v4), "{v4}");
                assert_eq!(v4.to_bits() as u16, v6.to_bits() as u16);
                assert_eq!(subnets.slot(range, v4), Some(slot));
            }
        }
        assert_eq!(subnets.slot(Range::Devices, subnets.server_v4()), None);
        assert_eq!(subnets.slot(Range::Apps, Ipv4Addr::new(10, 86, 63, 1)), None);
        assert_eq!(subnets.slot(Range::Devices, Ipv4Addr::new(10, 86, 64, 1)), None);
        assert_eq!(subnets.slot(Range::Devices, Ipv4Addr::new(10, 87, 1, 1)), None);
        assert_eq!(subnets.slot(Range::Devices, Ipv4Addr::new(10, 86, 1, 0)), None);
        assert_eq!(subnets.slot(Range::Devices, Ipv4Addr::new(10, 86, 1, 255)), None);
    }

    #[test]
    fn a_full_range_gives_nothing_out() {
        let range = Range::Devices;
        assert_eq!(range.lowest_free_slot([]), Some(0));
        assert_eq!(range.lowest_free_slot([0, 2]), Some(1));
        assert_eq!(range.lowest_free_slot(0..range.slots()), None);
    }

    #[test]
    fn subnets_that_would_collide_are_refused_with_the_reason() {
        let v4 = |text: &str| {
            let given: Ipv4Addr = text.parse().unwrap();
            Subnets::choose(Some(given), None, [1; 5]).map(|subnets| subnets.v4)
        };
        for good in ["10.0.0.0", "10.255.0.0", "172.16.0.0", "172.31.0.0", "192.168.0.0"] {
            assert_eq!(v4(good), Ok(good.parse().unwrap()));
        }
        assert!(matches!(v4("100.64.0.0"), Err(SubnetError::V4Shared { .. })));
        assert!(matches!(v4("100.127.0.0"), Err(SubnetError::V4Shared { .. })));
        assert!(matches!(v4("8.8.0.0"), Err(SubnetError::V4NotPrivate { .. })));
        assert!(matches!(v4("172.32.0.0"), Err(SubnetError::V4NotPrivate { .. })));
        assert!(matches!(v4("198.18.0.0"), Err(SubnetError::V4NotPrivate { .. })));
        assert!(matches!(v4("10.1.2.0"), Err(SubnetError::V4NotNetwork { .. })));
        let v6 = |text: &str| Subnets::choose(None, Some(text.parse().unwrap()), [1; 5]);
        assert!(v6("fd12:3456:789a:1::").is_ok());
        assert!(matches!(v6("fc00::"), Err(SubnetError::V6NotUniqueLocal { .. })));
        assert!(matches!(v6("2001:db8::"), Err(SubnetError::V6NotUniqueLocal { .. })));
        assert!(matches!(v6("fd12::1"), Err(SubnetError::V6NotPrefix { .. })));
        assert!(matches!(v6("fd4e:91c7:2ab6::"), Err(SubnetError::V6TakenByHost { .. })));
        let problem = Problem::from(v4("8.8.0.0").unwrap_err());
        assert!(problem.what.contains("8.8.0.0") && !problem.mend.is_empty());
    }

    #[test]
    fn link_layer_addresses_are_local_and_never_the_gateways() {
        for id in [0, 1, 0x0100_0000, u32::MAX] {
            let mac = machine_mac(MachineId(id));
            assert_eq!(mac[0] & 0b11, 0b10);
            assert_ne!(mac, GATEWAY_MAC);
        }
    }

    proptest! {
        #[test]
        fn what_was_given_out_stays_and_the_next_is_free(releases in prop::collection::vec(0usize..40, 0..40)) {
            let subnets = subnets();
            let mut used: Vec<Ipv4Addr> = Vec::new();
            for release in releases {
                let (v4, _) = subnets.lowest_free(Range::Apps, used.iter().copied()).unwrap();
                prop_assert!(!used.contains(&v4));
                used.push(v4);
                if release < used.len() {
                    used.remove(release);
                }
            }
        }

        #[test]
        fn a_random_prefix_is_always_a_good_one(random in any::<[u8; 5]>()) {
            let subnets = Subnets::choose(None, None, random);
            prop_assert!(subnets.is_ok() || random == [0x4e, 0x91, 0xc7, 0x2a, 0xb6]);
        }
    }
}
