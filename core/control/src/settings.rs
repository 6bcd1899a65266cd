//! What the operator decides once per host, and the limits of a host.

/// How many tenants one host takes.
pub const MAX_TENANTS: usize = 4096;
/// How many devices one tenant has at most.
pub const MAX_DEVICES: usize = 250;
/// How many apps one tenant has at most.
pub const MAX_APPS: usize = 250;

/// Memory of a machine, MiB.
pub const MEMORY_MIB: std::ops::RangeInclusive<u32> = 64..=65_536;
pub const VCPUS: std::ops::RangeInclusive<u32> = 1..=32;
/// Writable disk of a machine, MiB. It is sparse.
pub const DISK_MIB: std::ops::RangeInclusive<u32> = 64..=4_194_304;
/// Idle time before sleep, unless it is 0 (never).
pub const IDLE_TIMEOUT_MS: std::ops::RangeInclusive<u64> = 100..=2_592_000_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A tenant's domain is its name and this: `ada.pal`.
    pub domain_suffix: String,
    /// Where devices find this host: a name or an address, without a port.
    pub endpoint_host: String,
    /// The first tenant's UDP port; the next tenants get the next ones.
    pub first_port: u16,
}
