//! A machine's state but for its memory, as bytes: docs/formats/vmm-state.md describes them.
//!
//! Invariant: `decode` takes any bytes without panicking, and what it accepts was written by `encode` of this
//! version, byte for byte. The records inside are KVM's own structures, whose layout is Linux' stable ABI.

mod device;

use crate::virtio::mmio::TransportState;
use kvm_bindings::{
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub const MAGIC: [u8; 8] = *b"CLDPLVMS";
pub const VERSION: u32 = 2;
/// Had one vCPU and no devices, and is still read.
const VERSION_1: u32 = 1;
const HEADER: usize = 24;

pub struct State {
    pub memory_bytes: u64,
    /// The same in the memory file: the two belong together.
    pub pairing: [u8; 16],
    pub vcpus: Vec<VcpuState>,
    pub pit: kvm_pit_state2,
    pub clock: kvm_clock_data,
    /// Both PICs and the IOAPIC.
    pub irqchips: [kvm_irqchip; 3],
    /// The registers of the serial port; none in version 1.
    pub com1: Option<[u8; 9]>,
    /// Slot by slot.
    pub devices: Vec<TransportState>,
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
    #[error("the state is of version {0}; this VMM reads versions 1 to {VERSION}")]
    Version(u32),
    #[error("the state file has {found} bytes instead of {wanted}")]
    Length { found: u64, wanted: u64 },
    #[error("the state file is damaged: its checksum is {found:#010x} instead of {wanted:#010x}")]
    Checksum { found: u32, wanted: u32 },
    #[error("the state's section {0} is missing, or not what this version writes")]
    Section(u32),
}

/// The sections, in the order in which they are written, but for the last one, which is `END`.
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
    pub const COM1: u32 = 18;
    pub const DEVICE: u32 = 19;
}

impl State {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Body(Vec::with_capacity(16 * 1024));
        body.put(section::MEMORY, &self.memory_bytes.to_le_bytes());
        body.put(section::PAIRING, &self.pairing);
        self.vcpus.iter().for_each(|vcpu| vcpu.encode(&mut body));
        body.put(section::PIT, self.pit.as_bytes());
        body.put(section::CLOCK, self.clock.as_bytes());
        body.put(section::IRQCHIPS, self.irqchips.as_bytes());
        if let Some(registers) = &self.com1 {
            body.put(section::COM1, registers);
        }
        self.devices.iter().for_each(|device| body.put(section::DEVICE, &device::encode(device)));
        body.put(section::END, &[]);
        let header = [VERSION, body.0.len() as u32, crc32c::crc32c(&body.0), 0];
        let mut file = MAGIC.to_vec();
        file.extend(header.into_iter().flat_map(u32::to_le_bytes));
        file.extend_from_slice(&body.0);
        file
    }

    pub fn decode(file: &[u8]) -> Result<State, Damage> {
        let (version, body) = body(file)?;
        let mut sections = Sections(body);
        let (memory_bytes, pairing) = (sections.one(section::MEMORY)?, sections.one(section::PAIRING)?);
        let mut vcpus = vec![VcpuState::decode(&mut sections)?];
        while version > VERSION_1 && sections.next() == Some(section::CPUID) {
            vcpus.push(VcpuState::decode(&mut sections)?);
        }
        let mut state = State {
            memory_bytes,
            pairing,
            vcpus,
            pit: sections.one(section::PIT)?,
            clock: sections.one(section::CLOCK)?,
            irqchips: sections.one(section::IRQCHIPS)?,
            com1: None,
            devices: Vec::new(),
        };
        if version > VERSION_1 {
            state.com1 = Some(sections.one(section::COM1)?);
            while sections.next() == Some(section::DEVICE) {
                let device = device::decode(sections.take(section::DEVICE)?);
                state.devices.push(device.ok_or(Damage::Section(section::DEVICE))?);
            }
        }
        match sections.take(section::END)? {
            [] if sections.0.is_empty() => Ok(state),
            _ => Err(Damage::Section(section::END)),
        }
    }
}

impl VcpuState {
    fn encode(&self, body: &mut Body) {
        body.put(section::CPUID, self.cpuid.as_bytes());
        body.put(section::MP_STATE, self.mp_state.as_bytes());
        body.put(section::REGS, self.regs.as_bytes());
        body.put(section::SREGS, self.sregs.as_bytes());
        body.put(section::XSAVE, self.xsave.as_bytes());
        body.put(section::XCRS, self.xcrs.as_bytes());
        body.put(section::DEBUGREGS, self.debugregs.as_bytes());
        body.put(section::LAPIC, self.lapic.as_bytes());
        body.put(section::TSC_KHZ, &self.tsc_khz.to_le_bytes());
        body.put(section::MSRS, self.msrs.as_bytes());
        body.put(section::EVENTS, self.events.as_bytes());
    }

    fn decode(sections: &mut Sections<'_>) -> Result<VcpuState, Damage> {
        Ok(VcpuState {
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
        })
    }
}

struct Body(Vec<u8>);

impl Body {
    fn put(&mut self, tag: u32, bytes: &[u8]) {
        self.0.extend_from_slice(&tag.to_le_bytes());
        self.0.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.0.extend_from_slice(bytes);
    }
}

/// What stands behind the header, once the header is found true.
fn body(file: &[u8]) -> Result<(u32, &[u8]), Damage> {
    let length = |wanted: u64| Damage::Length { found: file.len() as u64, wanted };
    let (header, body) = file.split_at_checked(HEADER).ok_or(length(HEADER as u64))?;
    if header[..8] != MAGIC {
        return Err(Damage::Magic);
    }
    let (words, _) = header[8..].as_chunks::<4>();
    let word = |index: usize| words.get(index).map_or(0, |word| u32::from_le_bytes(*word));
    if !(VERSION_1..=VERSION).contains(&word(0)) {
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
    Ok((word(0), body))
}

struct Sections<'a>(&'a [u8]);

impl<'a> Sections<'a> {
    /// The number of the section that comes next.
    fn next(&self) -> Option<u32> {
        self.0.first_chunk().map(|tag| u32::from_le_bytes(*tag))
    }

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

    /// Written by these versions, and kept: a state that was good once stays readable.
    const OLD: &[u8] = include_bytes!("../tests/data/vmm-state-1.bin");
    const TODAY: &[u8] = include_bytes!("../tests/data/vmm-state-2.bin");

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
    fn version_1_is_read() {
        let state = State::decode(OLD).expect("reads");
        assert_eq!((state.memory_bytes, state.vcpus.len(), state.devices.len()), (16 << 20, 1, 0));
        let vcpu = &state.vcpus[0];
        assert!((0x10_0000..0x10_1000).contains(&vcpu.regs.rip), "{:#x}", vcpu.regs.rip);
        assert_eq!(state.irqchips.map(|chip| chip.chip_id), [0, 1, 2]);
        assert!(vcpu.msrs.len() > 10 && vcpu.cpuid.len() > 10);
        assert_eq!(state.com1, None);
    }

    #[test]
    fn version_2_is_read_and_written_back_to_the_byte() {
        let state = State::decode(TODAY).expect("reads");
        assert_eq!((state.memory_bytes, state.vcpus.len()), (16 << 20, 2));
        assert_eq!(state.devices.iter().map(|device| device.kind).collect::<Vec<_>>(), [1]);
        assert!(state.com1.is_some());
        assert!(state.encode() == TODAY, "what is written is not what was read");
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(damage(b"CLDP"), Damage::Length { found: 4, wanted: 24 });
        assert_eq!(damage(&[7; 100]), Damage::Magic);
        let changed = |at: usize, byte: u8| {
            let mut file = TODAY.to_vec();
            file[at] = byte;
            file
        };
        assert_eq!(damage(&changed(8, 0)), Damage::Version(0));
        assert_eq!(damage(&changed(8, 3)), Damage::Version(3));
        assert!(matches!(damage(&changed(4000, !TODAY[4000])), Damage::Checksum { .. }));
        assert_eq!(damage(&sealed(changed(HEADER, 99))), Damage::Section(section::MEMORY));
        assert_eq!(damage(&sealed(changed(HEADER + 4, 7))), Damage::Section(section::MEMORY));
        let longer = [TODAY, &[0]].concat();
        assert_eq!(damage(&sealed(longer)), Damage::Section(section::END));
        let shorter = TODAY[..TODAY.len() - 8].to_vec();
        assert_eq!(damage(&sealed(shorter)), Damage::Section(section::END));
        let mut as_version_1 = TODAY.to_vec();
        as_version_1[8] = 1;
        assert_eq!(damage(&as_version_1), Damage::Section(section::PIT), "it had one vCPU");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(cut in 0..=TODAY.len(), at in HEADER..TODAY.len(), byte: u8) {
            let mut file = TODAY.to_vec();
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
