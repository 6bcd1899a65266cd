//! A machine's state but for its memory, as bytes: docs/formats/vmm-state.md describes them.
//!
//! Invariant: `decode` takes any bytes without panicking, and what it accepts was written by `encode` of this
//! version, byte for byte. The records inside are KVM's own structures, whose layout is Linux' stable ABI.

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub const MAGIC: [u8; 8] = *b"CLDPLVMS";
pub const VERSION: u32 = 1;
const HEADER: usize = 24;

pub struct State {
    pub memory_bytes: u64,
    /// The same in the memory file: the two belong together.
    pub pairing: [u8; 16],
    pub vcpu: VcpuState,
    pub pit: kvm_pit_state2,
    pub clock: kvm_clock_data,
    /// Both PICs and the IOAPIC.
    pub irqchips: [kvm_irqchip; 3],
}

pub struct VcpuState {
    pub cpuid: Vec<kvm_cpuid_entry2>,
    pub mp_state: kvm_mp_state,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    pub xsave: kvm_xsave,
    pub xcrs: kvm_xcrs,
    pub debugregs: kvm_debugregs,
    pub lapic: kvm_lapic_state,
    pub tsc_khz: u32,
    pub msrs: Vec<kvm_msr_entry>,
    pub events: kvm_vcpu_events,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("the state file is no VMM state")]
    Magic,
    #[error("the state is of version {0}; this VMM reads version {VERSION}")]
    Version(u32),
    #[error("the state file has {found} bytes instead of {wanted}")]
    Length { found: u64, wanted: u64 },
    #[error("the state file is damaged: its checksum is {found:#010x} instead of {wanted:#010x}")]
    Checksum { found: u32, wanted: u32 },
    #[error("the state's section {0} is missing, or not what this version writes")]
    Section(u32),
}

/// The sections, in the order in which they are written.
mod section {
    pub const MEMORY: u32 = 1;
    pub const PAIRING: u32 = 2;
    pub const CPUID: u32 = 3;
    pub const MP_STATE: u32 = 4;
    pub const REGS: u32 = 5;
    pub const SREGS: u32 = 6;
    pub const XSAVE: u32 = 7;
    pub const XCRS: u32 = 8;
    pub const DEBUGREGS: u32 = 9;
    pub const LAPIC: u32 = 10;
    pub const TSC_KHZ: u32 = 11;
    pub const MSRS: u32 = 12;
    pub const EVENTS: u32 = 13;
    pub const PIT: u32 = 14;
    pub const CLOCK: u32 = 15;
    pub const IRQCHIPS: u32 = 16;
    pub const END: u32 = 17;
}

impl State {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(16 * 1024);
        let mut put = |tag: u32, bytes: &[u8]| {
            body.extend_from_slice(&tag.to_le_bytes());
            body.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            body.extend_from_slice(bytes);
        };
        let vcpu = &self.vcpu;
        put(section::MEMORY, &self.memory_bytes.to_le_bytes());
        put(section::PAIRING, &self.pairing);
        put(section::CPUID, vcpu.cpuid.as_bytes());
        put(section::MP_STATE, vcpu.mp_state.as_bytes());
        put(section::REGS, vcpu.regs.as_bytes());
        put(section::SREGS, vcpu.sregs.as_bytes());
        put(section::XSAVE, vcpu.xsave.as_bytes());
        put(section::XCRS, vcpu.xcrs.as_bytes());
        put(section::DEBUGREGS, vcpu.debugregs.as_bytes());
        put(section::LAPIC, vcpu.lapic.as_bytes());
        put(section::TSC_KHZ, &vcpu.tsc_khz.to_le_bytes());
        put(section::MSRS, vcpu.msrs.as_bytes());
        put(section::EVENTS, vcpu.events.as_bytes());
        put(section::PIT, self.pit.as_bytes());
        put(section::CLOCK, self.clock.as_bytes());
        put(section::IRQCHIPS, self.irqchips.as_bytes());
        put(section::END, &[]);
        let header = [VERSION, body.len() as u32, crc32c::crc32c(&body), 0];
        let mut file = MAGIC.to_vec();
        file.extend(header.into_iter().flat_map(u32::to_le_bytes));
        file.extend_from_slice(&body);
        file
    }

    pub fn decode(file: &[u8]) -> Result<State, Damage> {
        let mut sections = Sections(body(file)?);
        let state = State {
            memory_bytes: sections.one(section::MEMORY)?,
            pairing: sections.one(section::PAIRING)?,
            vcpu: VcpuState {
                cpuid: sections.many(section::CPUID)?,
                mp_state: sections.one(section::MP_STATE)?,
                regs: sections.one(section::REGS)?,
                sregs: sections.one(section::SREGS)?,
                xsave: sections.one(section::XSAVE)?,
                xcrs: sections.one(section::XCRS)?,
                debugregs: sections.one(section::DEBUGREGS)?,
                lapic: sections.one(section::LAPIC)?,
                tsc_khz: sections.one(section::TSC_KHZ)?,
                msrs: sections.many(section::MSRS)?,
                events: sections.one(section::EVENTS)?,
            },
            pit: sections.one(section::PIT)?,
            clock: sections.one(section::CLOCK)?,
            irqchips: sections.one(section::IRQCHIPS)?,
        };
        match sections.take(section::END)? {
            [] if sections.0.is_empty() => Ok(state),
            _ => Err(Damage::Section(section::END)),
        }
    }
}

/// What stands behind the header, once the header is found true.
fn body(file: &[u8]) -> Result<&[u8], Damage> {
    let length = |wanted: u64| Damage::Length { found: file.len() as u64, wanted };
    let (header, body) = file.split_at_checked(HEADER).ok_or(length(HEADER as u64))?;
    if header[..8] != MAGIC {
        return Err(Damage::Magic);
    }
    let (words, _) = header[8..].as_chunks::<4>();
    let word = |index: usize| words.get(index).map_or(0, |word| u32::from_le_bytes(*word));
    if word(0) != VERSION {
        return Err(Damage::Version(word(0)));
    }
    if body.len() as u64 != u64::from(word(1)) {
        return Err(length(HEADER as u64 + u64::from(word(1))));
    }
    let (found, wanted) = (crc32c::crc32c(body), word(2));
    if found != wanted {
        return Err(Damage::Checksum { found, wanted });
    }
    if word(3) != 0 {
        return Err(Damage::Section(0));
    }
    Ok(body)
}

struct Sections<'a>(&'a [u8]);

impl<'a> Sections<'a> {
    fn take(&mut self, tag: u32) -> Result<&'a [u8], Damage> {
        let missing = Damage::Section(tag);
        let (found, rest) = self.0.split_first_chunk::<4>().ok_or(missing)?;
        let (len, rest) = rest.split_first_chunk::<4>().ok_or(missing)?;
        let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or(missing)?;
        if u32::from_le_bytes(*found) != tag {
            return Err(missing);
        }
        self.0 = rest;
        Ok(bytes)
    }

    fn one<T: FromBytes>(&mut self, tag: u32) -> Result<T, Damage> {
        T::read_from_bytes(self.take(tag)?).map_err(|_| Damage::Section(tag))
    }

    fn many<T: FromBytes + Immutable>(&mut self, tag: u32) -> Result<Vec<T>, Damage> {
        let bytes = self.take(tag)?;
        let chunks = bytes.chunks(size_of::<T>());
        chunks.map(|chunk| T::read_from_bytes(chunk).map_err(|_| Damage::Section(tag))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Written by version 1, and kept: a state that was good once stays readable, or is refused by its version.
    const VERSION_1: &[u8] = include_bytes!("../tests/data/vmm-state-1.bin");

    fn damage(file: &[u8]) -> Damage {
        match State::decode(file) {
            Ok(_) => panic!("it was taken"),
            Err(damage) => damage,
        }
    }

    /// The checksum made good after a change, so that what stands behind it is looked at.
    fn sealed(mut file: Vec<u8>) -> Vec<u8> {
        let (len, crc) = ((file.len() - HEADER) as u32, crc32c::crc32c(&file[HEADER..]));
        file[12..16].copy_from_slice(&len.to_le_bytes());
        file[16..20].copy_from_slice(&crc.to_le_bytes());
        file
    }

    #[test]
    fn version_1_is_read_and_written_back_to_the_byte() {
        let state = State::decode(VERSION_1).expect("reads");
        assert_eq!(state.memory_bytes, 16 << 20);
        assert!((0x10_0000..0x10_1000).contains(&state.vcpu.regs.rip), "{:#x}", state.vcpu.regs.rip);
        assert_eq!(state.irqchips.map(|chip| chip.chip_id), [0, 1, 2]);
        assert!(state.vcpu.msrs.len() > 10 && state.vcpu.cpuid.len() > 10);
        assert!(state.encode() == VERSION_1, "what is written is not what was read");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(damage(b"CLDP"), Damage::Length { found: 4, wanted: 24 });
        assert_eq!(damage(&[7; 100]), Damage::Magic);
        let changed = |at: usize, byte: u8| {
            let mut file = VERSION_1.to_vec();
            file[at] = byte;
            file
        };
        assert_eq!(damage(&changed(8, 2)), Damage::Version(2));
        assert!(matches!(damage(&changed(4000, !VERSION_1[4000])), Damage::Checksum { .. }));
        assert_eq!(damage(&sealed(changed(HEADER, 99))), Damage::Section(section::MEMORY));
        assert_eq!(damage(&sealed(changed(HEADER + 4, 7))), Damage::Section(section::MEMORY));
        let longer = [VERSION_1, &[0]].concat();
        assert_eq!(damage(&sealed(longer)), Damage::Section(section::END));
        let shorter = VERSION_1[..VERSION_1.len() - 8].to_vec();
        assert_eq!(damage(&sealed(shorter)), Damage::Section(section::END));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(cut in 0..=VERSION_1.len(), at in HEADER..VERSION_1.len(), byte: u8) {
            let mut file = VERSION_1.to_vec();
            file[at] = byte;
            file.truncate(cut.max(HEADER));
            let file = sealed(file);
            // A changed value inside a record is none of ours to see; but then nothing else may have changed.
            if let Ok(state) = State::decode(&file) {
                prop_assert_eq!(state.encode(), file);
            }
        }
    }
}
