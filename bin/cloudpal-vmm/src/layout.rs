//! Where things are in a guest's physical memory: Firecracker's map, so that what runs there runs here.

/// The global descriptor table, and the (empty) interrupt descriptor table behind it.
pub const GDT: u64 = 0x500;
pub const IDT: u64 = 0x520;

/// Ours, and reserved in the memory map: an id of 16 bytes and a seed of 32, fresh at every start and wake. The id is
/// also what the VM generation counter of ACPI points to.
pub const RENEWAL_PAGE: u64 = 0x4000;

/// The start information of a kernel with a PVH entry, the list of its modules, and its memory map.
pub const PVH_START_INFO: u64 = 0x6000;
pub const PVH_MODULES: u64 = 0x6040;
pub const PVH_MEMORY_MAP: u64 = 0x6080;

/// Linux' boot parameters, the "zero page" (Linux: Documentation/arch/x86/zero-page.rst).
pub const ZERO_PAGE: u64 = 0x7000;
pub const BOOT_STACK: u64 = 0x8ff0;
/// Three tables of one page each map the first GiB one to one.
pub const PAGE_TABLES: u64 = 0x9000;
pub const COMMAND_LINE: u64 = 0x2_0000;
pub const COMMAND_LINE_MAX: usize = 2048;

/// The BIOS' data area begins here: the end of low memory.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// The root pointer of ACPI, where every kernel looks for it, and the tables behind it up to `HIGH_MEMORY`.
pub const ACPI: u64 = 0xe_0000;
/// Kernels are loaded from here on.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// An initramfs ends below: what every kernel of boot protocol 2.12 reaches.
pub const INITRAMFS_END_MAX: u64 = 2 << 30;

/// Devices and the interrupt controllers live between 3 and 4 GiB; memory beyond 3 GiB goes on at 4 GiB.
pub const GAP: u64 = 3 << 30;
pub const GAP_END: u64 = 4 << 30;

/// Each device has a page of registers and an interrupt of its own.
pub const DEVICES: u64 = 0xc000_1000;
pub const DEVICE_PAGE: u64 = 0x1000;
pub const DEVICE_GSI: u32 = 5;
pub const SLOTS: u8 = 18;
/// Says that the machine is another one now.
pub const GENERATION_GSI: u32 = 23;

pub const COM1: u16 = 0x3f8;
pub const COM1_GSI: u32 = 4;
/// Index and data of the battery-backed clock's chip, where a PC has one.
pub const CMOS: std::ops::RangeInclusive<u16> = 0x70..=0x71;
pub const KEYBOARD_DATA: u16 = 0x60;
pub const KEYBOARD_COMMAND: u16 = 0x64;
pub const KEYBOARD_RESET: u8 = 0xfe;
/// ACPI's sleep control and sleep status registers, a byte each.
pub const SLEEP_CONTROL: u16 = 0x600;
pub const SLEEP_STATUS: u16 = 0x601;

pub const IO_APIC: u32 = 0xfec0_0000;
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// Intel's KVM needs three pages of guest-physical space for itself, and one for an identity map.
pub const KVM_TSS: u64 = 0xfffb_d000;
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

const PAGE: u64 = 4096;

pub fn device_page(slot: u8) -> u64 {
    DEVICES + u64::from(slot) * DEVICE_PAGE
}

pub fn device_gsi(slot: u8) -> u32 {
    DEVICE_GSI + u32::from(slot)
}

/// Memory as ranges of (guest-physical start, length).
pub fn memory_ranges(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= GAP { vec![(0, bytes)] } else { vec![(0, GAP), (GAP_END, bytes - GAP)] }
}

/// Kinds of memory in the map that a kernel is given; the numbers are those of E820 and of PVH alike.
pub const RAM: u32 = 1;
pub const RESERVED: u32 = 2;

/// The map that a kernel is given: (start, length, kind), in order and without overlaps.
pub fn memory_map(bytes: u64) -> Vec<(u64, u64, u32)> {
    let renewal_end = RENEWAL_PAGE + PAGE;
    let mut map = vec![
        (0, RENEWAL_PAGE, RAM),
        (RENEWAL_PAGE, PAGE, RESERVED),
        (renewal_end, LOW_MEMORY_END - renewal_end, RAM),
        (LOW_MEMORY_END, HIGH_MEMORY - LOW_MEMORY_END, RESERVED),
    ];
    map.extend(memory_ranges(bytes).into_iter().map(|(start, len)| {
        let skipped = if start == 0 { HIGH_MEMORY } else { 0 };
        (start + skipped, len - skipped, RAM)
    }));
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_gap() {
        assert_eq!(memory_ranges(GAP), [(0, GAP)]);
        assert_eq!(memory_ranges(GAP + 4096), [(0, GAP), (GAP_END, 4096)]);
    }

    #[test]
    fn the_memory_map_covers_all_memory_once_and_keeps_the_renewal_page() {
        for mib in [128_u64, 3072, 4096] {
            let map = memory_map(mib << 20);
            assert_eq!(map.iter().map(|(_, len, _)| len).sum::<u64>(), mib << 20);
            assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{map:?}");
            assert!(map.contains(&(RENEWAL_PAGE, PAGE, RESERVED)));
        }
    }

    #[test]
    fn devices_keep_clear_of_each_other_and_of_the_generation_counter() {
        assert!(device_gsi(SLOTS - 1) < GENERATION_GSI);
        assert!(device_page(SLOTS) < u64::from(IO_APIC));
    }
}
