//! What ACPI tells a guest of the machine: its CPUs, its devices, how it is switched off, and where the counter is that
//! says that it was cloned. A machine of the "hardware-reduced" kind (ACPI 6.5, section 4.1): no PIT, no PS/2, no CMOS
//! clock, no power button, so that a kernel does not spend its start on looking for them.

use crate::{Error, layout, memory::Memory};
use acpi_tables::{
    Aml, aml,
    fadt::{FADTBuilder, Flags},
    gas::{AccessSize, AddressSpace, GAS},
    madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic},
    rsdp::Rsdp,
    sdt::Sdt,
    xsdt::XSDT,
};

const OEM: [u8; 6] = *b"CLDPAL";
const TABLE: [u8; 8] = *b"CLDPALVM";
const REVISION: u32 = 1;
const SDT_HEADER: u32 = 36;
/// Of the boot flags in the FADT: there is no VGA (bit 2), MSI must not be used (bit 3), there is no CMOS clock (5).
const BOOT_FLAGS: u16 = 1 << 2 | 1 << 3 | 1 << 5;
/// "Off", as `_S5` and the sleep control register have it.
pub const SLEEP_TYPE_OFF: u8 = 5;
pub const SLEEP_ENABLE: u8 = 1 << 5;

/// Writes the tables for a machine with so many CPUs and devices.
pub(crate) fn write(memory: &Memory, vcpus: u8, devices: u8) -> Result<(), Error> {
    let mut at = layout::ACPI + bytes(&Rsdp::new(OEM, 0)).len() as u64;
    let mut put = |table: &[u8]| -> Result<u64, Error> {
        at = at.next_multiple_of(16);
        let (start, end) = (at, at + table.len() as u64);
        if end > layout::HIGH_MEMORY {
            return Err(Error::OutsideMemory(end));
        }
        memory.write(start, table)?;
        at = end;
        Ok(start)
    };
    let dsdt = put(dsdt(devices).as_slice())?;
    let fadt = put(&bytes(&fadt(dsdt)))?;
    let madt = put(&bytes(&madt(vcpus)))?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&bytes(&xsdt))?;
    memory.write(layout::ACPI, &bytes(&Rsdp::new(OEM, xsdt)))
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(address: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(address))
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    (fadt.reset_reg, fadt.reset_value) = (port(layout::KEYBOARD_COMMAND), layout::KEYBOARD_RESET);
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(TABLE).into();
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let address = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM, TABLE, REVISION, address);
    for cpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    madt
}

fn dsdt(devices: u8) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", SDT_HEADER, 6, OEM, TABLE, REVISION);
    let mut body = Vec::new();
    let (off, zero) = (SLEEP_TYPE_OFF, aml::ZERO);
    let off_package = aml::Package::new(vec![&off, &off, &zero, &zero]);
    aml::Name::new("_S5_".into(), &off_package).to_aml_bytes(&mut body);
    aml::Scope::new("_SB_".into(), vec![&Com1, &Generation, &Events]).to_aml_bytes(&mut body);
    for slot in 0..devices {
        aml::Scope::new("_SB_".into(), vec![&Virtio(slot)]).to_aml_bytes(&mut body);
    }
    dsdt.append_slice(&body);
    dsdt.update_checksum();
    dsdt
}

/// Edge-triggered, active high, nobody else's.
fn interrupt(gsi: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, gsi)
}

struct Virtio(u8);

impl Aml for Virtio {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let page =
            aml::Memory32Fixed::new(true, layout::device_page(self.0) as u32, layout::DEVICE_PAGE as u32);
        aml::Device::new(
            format!("V{:03}", self.0).as_str().into(),
            vec![
                &aml::Name::new("_HID".into(), &"LNRO0005"),
                &aml::Name::new("_UID".into(), &self.0),
                &aml::Name::new("_CCA".into(), &aml::ONE),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![&page, &interrupt(layout::device_gsi(self.0))]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

struct Com1;

impl Aml for Com1 {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let ports = aml::IO::new(layout::COM1, layout::COM1, 1, 8);
        aml::Device::new(
            "COM1".into(),
            vec![
                &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
                &aml::Name::new("_UID".into(), &aml::ZERO),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![&ports, &interrupt(layout::COM1_GSI)]),
                ),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The VM generation counter (Microsoft's "Virtual Machine Generation ID"): the address of 16 bytes that are other ones
/// after every wake. Linux knows the device by any of these three names, depending on its version.
struct Generation;

impl Aml for Generation {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let (low, high) = (layout::RENEWAL_PAGE as u32, aml::ZERO);
        aml::Device::new(
            "VGEN".into(),
            vec![
                &aml::Name::new("_HID".into(), &"CLDP0001"),
                &aml::Name::new(
                    "_CID".into(),
                    &aml::Package::new(vec![&"VM_Gen_Counter", &"VM_GEN_COUNTER", &"VMGENCTR"]),
                ),
                &aml::Name::new("_DDN".into(), &"VM_Gen_Counter"),
                &aml::Name::new("ADDR".into(), &aml::Package::new(vec![&low, &high])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// The generic event device hears that the counter has changed, and tells its driver.
struct Events;

impl Aml for Events {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let generation = aml::Path::new("\\_SB_.VGEN");
        let changed = aml::Notify::new(&generation, &0x80_u8);
        aml::Device::new(
            "GED_".into(),
            vec![
                &aml::Name::new("_HID".into(), &"ACPI0013"),
                &aml::Name::new(
                    "_CRS".into(),
                    &aml::ResourceTemplate::new(vec![&interrupt(layout::GENERATION_GSI)]),
                ),
                &aml::Method::new("_EVT".into(), 1, true, vec![&changed]),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Follows the pointers as a kernel does, and adds up each table.
    #[test]
    fn a_kernel_finds_every_table_and_its_checksum_holds() {
        let memory = Memory::reserve(4).expect("memory");
        write(&memory, 32, layout::SLOTS).expect("fits");
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read(at, &mut bytes).expect("in memory");
            bytes
        };
        let word =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let table = |at: u64| {
            let len = u32::from_le_bytes(read(at + 4, 4).try_into().expect("4 bytes"));
            let table = read(at, len as usize);
            assert_eq!(sum(&table), 0, "{:?}", String::from_utf8_lossy(&table[..4]));
            table
        };
        let root = read(layout::ACPI, 36);
        assert_eq!((&root[..8], sum(&root[..20]), sum(&root)), (&b"RSD PTR "[..], 0, 0));
        let xsdt = table(word(&root, 24));
        let (fadt, madt) = (table(word(&xsdt, 36)), table(word(&xsdt, 44)));
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        assert_eq!(madt.len(), 44 + 32 * 8 + 12);
        let dsdt = table(word(&fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert_eq!(dsdt.windows(8).filter(|name| *name == b"LNRO0005").count(), usize::from(layout::SLOTS));
    }
}
