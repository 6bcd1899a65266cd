//! The state in which a kernel finds the machine: Linux' 64-bit boot protocol (Linux: Documentation/arch/x86/boot.rst,
//! "64-bit BOOT PROTOCOL"), at Firecracker's addresses. Long mode, the first GiB mapped one to one, `rsi` at the
//! zero page.

use crate::{
    Error,
    layout::{self, BOOT_STACK, COMMAND_LINE, COMMAND_LINE_MAX, GDT, IDT, PAGE_TABLES, ZERO_PAGE},
    memory::Memory,
};
use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};

/// A segment of the GDT, as the table has it: access rights from Firecracker's, which are Linux' own.
const NULL: u64 = 0;
const CODE: u64 = 0x00af_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
const TASK: u64 = 0x008f_8b00_0000_ffff;
const TABLE: [u64; 4] = [NULL, CODE, DATA, TASK];

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PRESENT_WRITABLE: u64 = 0b11;
const HUGE: u64 = 1 << 7;
const PAGE: u64 = 4096;

/// Writes the tables, the command line and the zero page.
pub fn write_tables(memory: &Memory, command_line: &str) -> Result<(), Error> {
    if command_line.len() >= COMMAND_LINE_MAX {
        return Err(Error::CommandLine(command_line.len()));
    }
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    memory.write(GDT, &words(&TABLE))?;
    memory.write(IDT, &[0; 8])?;
    memory.write(PAGE_TABLES, &words(&[(PAGE_TABLES + PAGE) | PRESENT_WRITABLE]))?;
    memory.write(PAGE_TABLES + PAGE, &words(&[(PAGE_TABLES + 2 * PAGE) | PRESENT_WRITABLE]))?;
    let huge_pages: Vec<u64> = (0..512).map(|page| (page << 21) | PRESENT_WRITABLE | HUGE).collect();
    memory.write(PAGE_TABLES + 2 * PAGE, &words(&huge_pages))?;
    memory.write(COMMAND_LINE, &[command_line.as_bytes(), &[0]].concat())?;
    memory.write(ZERO_PAGE, &zero_page(memory.bytes(), command_line.len()))
}

/// Offsets from Linux: arch/x86/include/uapi/asm/bootparam.h, `boot_params`.
fn zero_page(memory_bytes: u64, command_line: usize) -> Vec<u8> {
    const RAM: u32 = 1;
    const RESERVED: u32 = 2;
    let mut page = vec![0; PAGE as usize];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1fe, &0xaa55_u16.to_le_bytes()); // boot_flag
    put(0x202, b"HdrS");
    put(0x210, &[0xff]); // type_of_loader: none of the registered ones
    put(0x228, &(COMMAND_LINE as u32).to_le_bytes());
    put(0x230, &0x0100_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x238, &(command_line as u32).to_le_bytes());
    let renewal_end = layout::RENEWAL_PAGE + PAGE;
    let mut map = vec![
        (0, layout::RENEWAL_PAGE, RAM),
        (layout::RENEWAL_PAGE, PAGE, RESERVED),
        (renewal_end, layout::LOW_MEMORY_END - renewal_end, RAM),
        (layout::LOW_MEMORY_END, layout::HIGH_MEMORY - layout::LOW_MEMORY_END, RESERVED),
    ];
    map.extend(layout::memory_ranges(memory_bytes).into_iter().map(|(start, len)| {
        let skipped = if start == 0 { layout::HIGH_MEMORY } else { 0 };
        (start + skipped, len - skipped, RAM)
    }));
    put(0x1e8, &[map.len() as u8]);
    for (index, (start, len, kind)) in map.iter().enumerate() {
        let at = 0x2d0 + index * 20;
        put(at, &start.to_le_bytes());
        put(at + 8, &len.to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    page
}

pub fn registers(entry: u64) -> kvm_regs {
    // Bit 1 of the flags is always set; interrupts are off.
    kvm_regs { rflags: 2, rip: entry, rsp: BOOT_STACK, rbp: BOOT_STACK, rsi: ZERO_PAGE, ..Default::default() }
}

pub fn special_registers(mut sregs: kvm_sregs) -> kvm_sregs {
    let data = segment(2, DATA);
    sregs.cs = segment(1, CODE);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(3, TASK);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, (TABLE.len() * 8 - 1) as u16);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 7);
    sregs.cr0 |= CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME | EFER_LMA;
    sregs
}

/// As after `fninit`, and MXCSR's default.
pub fn float_registers() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
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

    #[test]
    fn the_memory_map_covers_all_memory_once_and_keeps_the_renewal_page() {
        for mib in [128_u64, 3072, 4096] {
            let page = zero_page(mib << 20, 0);
            let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().expect("8 bytes"));
            let entry =
                |index| (word(0x2d0 + index * 20), word(0x2d8 + index * 20), page[0x2e0 + index * 20]);
            let entries: Vec<_> = (0..usize::from(page[0x1e8])).map(entry).collect();
            assert_eq!(entries.iter().map(|(_, len, _)| len).sum::<u64>(), mib << 20);
            assert!(entries.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{entries:?}");
            assert!(entries.contains(&(layout::RENEWAL_PAGE, PAGE, 2)));
        }
    }

    #[test]
    fn a_long_command_line_is_refused() {
        let memory = Memory::reserve(4).expect("memory");
        let long = "x".repeat(COMMAND_LINE_MAX);
        assert!(matches!(write_tables(&memory, &long), Err(Error::CommandLine(COMMAND_LINE_MAX))));
        assert!(write_tables(&memory, &long[1..]).is_ok());
    }
}
