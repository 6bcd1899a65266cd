//! Where things are in a guest's physical memory: Firecracker's map, so that what runs there runs here.

/// The global descriptor table, and the (empty) interrupt descriptor table behind it.
pub const GDT: u64 = 0x500;
pub const IDT: u64 = 0x520;

/// Ours, and reserved in the memory map: an id of 16 bytes and a seed of 32, fresh at every start and wake.
pub const RENEWAL_PAGE: u64 = 0x4000;

/// Linux' boot parameters, the "zero page" (Linux: Documentation/arch/x86/zero-page.rst).
pub const ZERO_PAGE: u64 = 0x7000;
pub const BOOT_STACK: u64 = 0x8ff0;
/// Three tables of one page each map the first GiB one to one.
pub const PAGE_TABLES: u64 = 0x9000;
pub const COMMAND_LINE: u64 = 0x2_0000;
pub const COMMAND_LINE_MAX: usize = 2048;

/// The BIOS' data area begins here: the end of low memory.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// Kernels are loaded from here on.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Devices and the interrupt controllers live between 3 and 4 GiB; memory beyond 3 GiB goes on at 4 GiB.
pub const GAP: u64 = 3 << 30;
pub const GAP_END: u64 = 4 << 30;

/// Intel's KVM needs three pages of guest-physical space for itself, and one for an identity map.
pub const KVM_TSS: u64 = 0xfffb_d000;
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Memory as ranges of (guest-physical start, length).
pub fn memory_ranges(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= GAP { vec![(0, bytes)] } else { vec![(0, GAP), (GAP_END, bytes - GAP)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_gap() {
        assert_eq!(memory_ranges(GAP), [(0, GAP)]);
        assert_eq!(memory_ranges(GAP + 4096), [(0, GAP), (GAP_END, 4096)]);
    }
}
