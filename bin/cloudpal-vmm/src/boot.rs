//! The state in which a kernel finds the machine, at Firecracker's addresses. Either Linux' 64-bit boot protocol
//! (Linux: Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL"): long mode, the first GiB mapped one to one, `rsi`
//! at the zero page. Or PVH (Xen: docs/misc/pvh.pandoc): protected mode without paging, `rbx` at the start information.

use crate::{
    Error,
    elf::Entry,
    kernel::Loaded,
    layout::{
        self, BOOT_STACK, COMMAND_LINE, COMMAND_LINE_MAX, GDT, IDT, PAGE_TABLES, PVH_MEMORY_MAP, PVH_MODULES,
        PVH_START_INFO, ZERO_PAGE,
    },
    memory::Memory,
};
use kvm_bindings::{kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};

/// A segment of the GDT, as the table has it: access rights from Firecracker's, which are Linux' own.
const NULL: u64 = 0;
const CODE: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TASK: u64 = 0x008f_8b00_0000_ffff;
const LONG_TABLE: [u64; 4] = [NULL, CODE, DATA, TASK];
/// For PVH: 32-bit segments, and a task segment of the least length (Xen: docs/misc/pvh.pandoc).
const PVH_TABLE: [u64; 4] = [NULL, 0x00cf_9b00_0000_ffff, DATA, 0x0000_8b00_0000_0067];

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PRESENT_WRITABLE: u64 = 0b11;
const HUGE: u64 = 1 << 7;
const PAGE: u64 = 4096;

/// Makes everything ready in memory for that kernel, and returns how the first vCPU begins.
pub(crate) fn prepare(memory: &Memory, kernel: &Loaded, command_line: &str) -> Result<Start, Error> {
    if command_line.len() >= COMMAND_LINE_MAX {
        return Err(Error::CommandLine(command_line.len()));
    }
    memory.write(COMMAND_LINE, &[command_line.as_bytes(), &[0]].concat())?;
    memory.write(IDT, &[0; 8])?;
    match kernel.entry {
        Entry::Long(entry) => {
            memory.write(GDT, &words(&LONG_TABLE))?;
            write_page_tables(memory)?;
            memory.write(ZERO_PAGE, &zero_page(memory.bytes(), command_line.len(), kernel))?;
            Ok(Start { entry, protocol: Protocol::Long })
        }
        Entry::Pvh(entry) => {
            memory.write(GDT, &words(&PVH_TABLE))?;
            write_pvh_start(memory, kernel)?;
            Ok(Start { entry, protocol: Protocol::Pvh })
        }
    }
}

/// Names the devices of the first slots on the command line, as Firecracker does: a library OS reads no ACPI tables.
/// (Linux: Documentation/admin-guide/kernel-parameters.txt, `virtio_mmio.device`.) What comes after `--` is not the
/// kernel's.
pub(crate) fn with_devices(command_line: &str, devices: usize) -> String {
    let devices: String = (0..devices as u8)
        .map(|slot| {
            format!(" virtio_mmio.device=4K@{:#x}:{}", layout::device_page(slot), layout::device_gsi(slot))
        })
        .collect();
    let end = command_line.find(" -- ").or(command_line.strip_suffix(" --").map(str::len));
    let (kernels, programs) = command_line.split_at(end.unwrap_or(command_line.len()));
    format!("{kernels}{devices}{programs}")
}

pub(crate) struct Start {
    entry: u64,
    protocol: Protocol,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Long,
    Pvh,
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn write_page_tables(memory: &Memory) -> Result<(), Error> {
    memory.write(PAGE_TABLES, &words(&[(PAGE_TABLES + PAGE) | PRESENT_WRITABLE]))?;
    memory.write(PAGE_TABLES + PAGE, &words(&[(PAGE_TABLES + 2 * PAGE) | PRESENT_WRITABLE]))?;
    let huge_pages: Vec<u64> = (0..512).map(|page| (page << 21) | PRESENT_WRITABLE | HUGE).collect();
    memory.write(PAGE_TABLES + 2 * PAGE, &words(&huge_pages))
}

/// Offsets from Linux: arch/x86/include/uapi/asm/bootparam.h, `boot_params`.
fn zero_page(memory_bytes: u64, command_line: usize, kernel: &Loaded) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x230, &0x0100_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x1f1, &kernel.setup_header);
    put(0x1fe, &0xaa55_u16.to_le_bytes()); // boot_flag
    put(0x202, b"HdrS");
    put(0x210, &[0xff]); // type_of_loader: none of the registered ones
    put(0x228, &(COMMAND_LINE as u32).to_le_bytes());
    put(0x238, &(command_line as u32).to_le_bytes());
    put(0x70, &layout::ACPI.to_le_bytes()); // acpi_rsdp_addr
    if let Some((start, len)) = kernel.initramfs {
        // Below 2 GiB, as `kernel` places it.
        put(0x218, &(start as u32).to_le_bytes());
        put(0x21c, &(len as u32).to_le_bytes());
    }
    let map = layout::memory_map(memory_bytes);
    put(0x1e8, &[map.len() as u8]);
    for (index, (start, len, kind)) in map.iter().enumerate() {
        let at = 0x2d0 + index * 20;
        put(at, &start.to_le_bytes());
        put(at + 8, &len.to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    page
}

/// `struct hvm_start_info`, version 1, and what it points to (Linux: include/xen/interface/hvm/start_info.h).
fn write_pvh_start(memory: &Memory, kernel: &Loaded) -> Result<(), Error> {
    const MAGIC: u32 = 0x336e_c578;
    let map = layout::memory_map(memory.bytes());
    let modules = u32::from(kernel.initramfs.is_some());
    let head = [MAGIC, 1, 0, modules].into_iter().flat_map(u32::to_le_bytes);
    let pointers =
        [PVH_MODULES, COMMAND_LINE, layout::ACPI, PVH_MEMORY_MAP].into_iter().flat_map(u64::to_le_bytes);
    let count = [map.len() as u32, 0].into_iter().flat_map(u32::to_le_bytes);
    memory.write(PVH_START_INFO, &head.chain(pointers).chain(count).collect::<Vec<u8>>())?;
    if let Some((start, len)) = kernel.initramfs {
        memory.write(PVH_MODULES, &words(&[start, len, 0, 0]))?;
    }
    let entries = map.iter().flat_map(|(start, len, kind)| words(&[*start, *len, u64::from(*kind)]));
    memory.write(PVH_MEMORY_MAP, &entries.collect::<Vec<u8>>())
}

pub(crate) fn registers(start: &Start) -> kvm_regs {
    // Bit 1 of the flags is always set; interrupts are off.
    let regs = kvm_regs { rflags: 2, rip: start.entry, ..Default::default() };
    match start.protocol {
        Protocol::Long => kvm_regs { rsp: BOOT_STACK, rbp: BOOT_STACK, rsi: ZERO_PAGE, ..regs },
        Protocol::Pvh => kvm_regs { rbx: PVH_START_INFO, ..regs },
    }
}

pub(crate) fn special_registers(start: &Start, mut sregs: kvm_sregs) -> kvm_sregs {
    let table = if start.protocol == Protocol::Long { LONG_TABLE } else { PVH_TABLE };
    let data = segment(2, table[2]);
    sregs.cs = segment(1, table[1]);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(3, table[3]);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, (table.len() * 8 - 1) as u16);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 7);
    match start.protocol {
        Protocol::Long => {
            sregs.cr0 |= CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 |= CR4_PAE;
            sregs.efer |= EFER_LME | EFER_LMA;
        }
        Protocol::Pvh => {
            (sregs.cr0, sregs.cr4, sregs.efer) = (CR0_PE | CR0_ET, 0, 0);
        }
    }
    sregs
}

/// As after `fninit`, and MXCSR's default.
pub(crate) fn float_registers() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

/// Registers that firmware would have set: all memory is cached, and string instructions are fast.
pub(crate) fn model_specific_registers() -> [kvm_msr_entry; 2] {
    const MISC_ENABLE: u32 = 0x1a0;
    const MTRR_DEFAULT: u32 = 0x2ff;
    const FAST_STRINGS: u64 = 1;
    const ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    [(MISC_ENABLE, FAST_STRINGS), (MTRR_DEFAULT, ENABLED_WRITE_BACK)].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    })
}

/// As firmware leaves the local APIC: the old interrupt controller at its first pin, NMI at its second.
pub(crate) fn connect_pins(apic: &mut kvm_lapic_state) {
    const PINS: [(usize, u8); 2] = [(0x350, 7), (0x360, 4)];
    for (at, delivery) in PINS {
        // Bits 8 to 10, unmasked (bit 16).
        apic.regs[at + 1] = (apic.regs[at + 1] & !7) | delivery as i8;
        apic.regs[at + 2] &= !1;
    }
}

/// A descriptor, unpacked (Intel SDM, volume 3, 3.4.5). All of ours begin at 0.
fn segment(index: u16, descriptor: u64) -> kvm_segment {
    let bits = |at: u32, count: u32| ((descriptor >> at) & ((1 << count) - 1)) as u8;
    let limit = (descriptor & 0xffff) as u32 | ((descriptor >> 32) & 0xf_0000) as u32;
    let granular = bits(55, 1);
    kvm_segment {
        base: 0,
        limit: if granular == 1 { (limit << 12) | 0xfff } else { limit },
        selector: index * 8,
        type_: bits(40, 4),
        present: bits(47, 1),
        dpl: bits(45, 2),
        db: bits(54, 1),
        s: bits(44, 1),
        l: bits(53, 1),
        g: granular,
        avl: bits(52, 1),
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_what_long_mode_wants() {
        let code = segment(1, CODE);
        assert_eq!((code.selector, code.type_, code.l, code.db, code.limit), (8, 11, 1, 0, 0xffff_ffff));
        let data = segment(2, DATA);
        assert_eq!((data.selector, data.type_, data.l, data.db, data.s), (16, 3, 0, 1, 1));
        assert_eq!((segment(3, TASK).type_, segment(3, TASK).s), (11, 0));
    }

    fn kernel(entry: Entry) -> Loaded {
        Loaded { entry, setup_header: vec![0; 0x7b], initramfs: Some((0x30_0000, 0x1234)) }
    }

    #[test]
    fn the_zero_page_says_what_is_where() {
        let page = zero_page(128 << 20, 5, &kernel(Entry::Long(0)));
        let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().expect("4 bytes"));
        assert_eq!((word(0x218), word(0x21c), word(0x70)), (0x30_0000, 0x1234, 0xe_0000));
        assert_eq!(
            (word(0x228), word(0x238), page[0x1e8], &page[0x202..0x206]),
            (0x2_0000, 5, 5, &b"HdrS"[..])
        );
    }

    #[test]
    fn pvh_starts_in_protected_mode_with_its_start_information() {
        let memory = Memory::reserve(4).expect("memory");
        let start = prepare(&memory, &kernel(Entry::Pvh(0x10_0000)), "x").expect("fits");
        let (regs, sregs) = (registers(&start), special_registers(&start, kvm_sregs::default()));
        assert_eq!((regs.rip, regs.rbx, sregs.cr0 & CR0_PG, sregs.efer), (0x10_0000, PVH_START_INFO, 0, 0));
        assert_eq!((sregs.cs.db, sregs.cs.l, sregs.tr.limit), (1, 0, 0x67));
        let word = |at| memory.read_u32(at).expect("memory");
        assert_eq!((word(PVH_START_INFO), word(PVH_START_INFO + 48)), (0x336e_c578, 5));
        assert_eq!((word(PVH_MODULES), word(PVH_MODULES + 8)), (0x30_0000, 0x1234));
    }

    #[test]
    fn devices_are_named_to_the_kernel_and_not_to_its_program() {
        assert_eq!(with_devices("quiet", 0), "quiet");
        assert_eq!(
            with_devices("quiet", 2),
            "quiet virtio_mmio.device=4K@0xc0001000:5 virtio_mmio.device=4K@0xc0002000:6"
        );
        assert_eq!(with_devices("a -- b -- c", 1), "a virtio_mmio.device=4K@0xc0001000:5 -- b -- c");
        assert_eq!(with_devices("a --", 1), "a virtio_mmio.device=4K@0xc0001000:5 --");
    }

    #[test]
    fn a_long_command_line_is_refused() {
        let memory = Memory::reserve(4).expect("memory");
        let long = "x".repeat(COMMAND_LINE_MAX);
        let tried = |line| prepare(&memory, &kernel(Entry::Long(0)), line).map(|_| ());
        assert!(matches!(tried(&long), Err(Error::CommandLine(COMMAND_LINE_MAX))));
        assert!(tried(&long[1..]).is_ok());
    }
}
