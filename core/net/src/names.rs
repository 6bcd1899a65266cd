//! What this network calls its kernel objects: interfaces, namespaces, tables.
//!
//! Invariants: every interface name fits into 15 bytes; nothing that an owner typed is part of a name; names of two
//! instances on one host never match each other's patterns, since `_` is no character of an instance.

use cloudpal_model::{Kind, MachineId, Problem, TenantId};
use std::{fmt, str::FromStr};

/// The WireGuard interface, in the tenant's namespace.
pub const WIREGUARD: &str = "wg0";
/// The tenant's end of the way out to the host's namespace.
pub const EXIT: &str = "x0";
/// What the TAPs of all machines match in nftables.
pub const TAP_PATTERN: &str = "m*";
/// The nftables table in the tenant's namespace (family `inet`).
pub const TENANT_TABLE: &str = "cloudpal";

/// Linux: IFNAMSIZ is 16, with the final zero.
pub const MAX_INTERFACE_BYTES: usize = 15;

/// The longest name of an instance.
const MAX_INSTANCE_BYTES: usize = 32;
/// What remains of an interface name beside `_` and a tenant's number of five digits.
const MAX_STEM_BYTES: usize = MAX_INTERFACE_BYTES - 6;

/// The TAP of a machine, in the tenant's namespace: `m7`.
pub fn tap(machine: MachineId) -> String {
    format!("m{}", machine.0)
}

/// The machine whose TAP is called so.
pub fn machine_of_tap(interface: &str) -> Option<MachineId> {
    number(interface.strip_prefix('m')?).map(MachineId)
}

/// A number as we write it: no sign, no leading zero.
fn number(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// One daemon on a host, by the name that sets its kernel objects apart from another daemon's: `cloudpal`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance(String);

/// Why a text does not name an instance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` cannot name an instance")]
pub struct InstanceError {
    pub text: String,
}

impl From<InstanceError> for Problem {
    fn from(error: InstanceError) -> Problem {
        let mend = "use 1 to 32 of a-z, 0-9 and '-', the first a letter, for example `cloudpal`";
        Problem::new(Kind::Invalid, error.to_string(), mend)
    }
}

impl FromStr for Instance {
    type Err = InstanceError;

    fn from_str(text: &str) -> Result<Self, InstanceError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let good = text.len() <= MAX_INSTANCE_BYTES
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(allowed);
        if good { Ok(Instance(text.to_owned())) } else { Err(InstanceError { text: text.to_owned() }) }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Instance {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tenant's network namespace: `cloudpal-t1`.
    pub fn namespace(&self, tenant: TenantId) -> String {
        format!("{self}-{tenant}")
    }

    /// The tenant whose namespace is called so; `None`: not ours.
    pub fn tenant_of_namespace(&self, namespace: &str) -> Option<TenantId> {
        number(namespace.strip_prefix(self.as_str())?.strip_prefix("-t")?).map(TenantId)
    }

    /// The nftables table in the host's namespace (family `inet`). The suffix keeps it from being an nft keyword.
    pub fn host_table(&self) -> String {
        format!("{self}-host")
    }

    /// The host's end of a tenant's way out: `cloudpal_1`. At most 15 bytes for every tenant that can have a link
    /// ([`crate::link::TenantLink`]).
    pub fn host_veth(&self, tenant: TenantId) -> String {
        format!("{}_{}", self.stem(), tenant.0)
    }

    /// What [`Instance::host_veth`] of all tenants match in nftables, and nothing else does: `cloudpal_*`.
    pub fn host_veth_pattern(&self) -> String {
        format!("{}_*", self.stem())
    }

    /// The tenant whose host veth is called so; `None`: not ours.
    pub fn tenant_of_host_veth(&self, interface: &str) -> Option<TenantId> {
        number(interface.strip_prefix(&self.stem())?.strip_prefix('_')?).map(TenantId)
    }

    /// The whole name where it is short; else its beginning and a hash, so that long names stay apart too.
    fn stem(&self) -> String {
        if self.0.len() <= MAX_STEM_BYTES {
            return self.0.clone();
        }
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        let mut stem = self.0[..4].to_owned();
        let mut hash = fnv1a(self.0.as_bytes());
        while stem.len() < MAX_STEM_BYTES {
            stem.push(DIGITS[(hash % 36) as usize] as char);
            hash /= 36;
        }
        stem
    }
}

/// FNV-1a, 64 bits: only spreads names, secures nothing.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_come_back() {
        for text in ["a", "cloudpal", "cloudpal-check-31337", &"x".repeat(32)] {
            let instance: Instance = text.parse().unwrap();
            for tenant in [TenantId(0), TenantId(1), TenantId(65_535)] {
                let veth = instance.host_veth(tenant);
                assert!(veth.len() <= MAX_INTERFACE_BYTES, "{veth}");
                assert_eq!(instance.tenant_of_host_veth(&veth), Some(tenant));
                assert_eq!(instance.tenant_of_namespace(&instance.namespace(tenant)), Some(tenant));
            }
        }
        assert!(tap(MachineId(u32::MAX)).len() <= MAX_INTERFACE_BYTES);
        assert_eq!(machine_of_tap(&tap(MachineId(12))), Some(MachineId(12)));
        for other in ["m", "m01", "m+1", "mx", "wg0", "m4294967296"] {
            assert_eq!(machine_of_tap(other), None, "{other}");
        }
    }

    #[test]
    fn two_instances_do_not_match_each_other() {
        let pairs = [("cloudpal", "cloudpal-t1"), ("cloudpal-check-1", "cloudpal-check-2"), ("a", "a1")];
        for (one, other) in pairs {
            let (one, other): (Instance, Instance) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(one.tenant_of_host_veth(&other.host_veth(TenantId(1))), None);
            assert_eq!(one.tenant_of_namespace(&other.namespace(TenantId(2))), None);
            assert_eq!(other.tenant_of_namespace(&one.namespace(TenantId(2))), None);
            assert!(!other.host_veth(TenantId(1)).starts_with(one.host_veth_pattern().trim_end_matches('*')));
        }
    }

    #[test]
    fn an_instance_cannot_smuggle_anything_in() {
        for bad in ["", "1a", "-a", "a b", "a\"", "a/b", "A", "ä", "a_b", "a;", &"x".repeat(33)] {
            assert!(bad.parse::<Instance>().is_err(), "{bad}");
        }
    }
}
