//! What CPU a guest sees, and whether a guest from elsewhere would miss something of its own here.

use kvm_bindings::kvm_cpuid_entry2;

type Register = fn(&kvm_cpuid_entry2) -> u32;
const EAX: Register = |entry| entry.eax;
const EBX: Register = |entry| entry.ebx;
const ECX: Register = |entry| entry.ecx;
const EDX: Register = |entry| entry.edx;

/// Where features are: leaf, subleaf, register, and the bits in it that are features, not the state of the moment.
const FEATURES: [(u32, u32, Register, u32); 11] = [
    (0x1, 0, ECX, !(1 << 27)), // without OSXSAVE
    (0x1, 0, EDX, !0),
    (0x7, 0, EBX, !0),
    (0x7, 0, ECX, !(1 << 4)), // without OSPKE
    (0x7, 0, EDX, !0),
    (0x7, 1, EAX, !0),
    (0xd, 0, EAX, !0), // the parts of XCR0
    (0xd, 0, EDX, !0),
    (0xd, 1, EAX, !0),
    (0x8000_0001, 0, ECX, !0),
    (0x8000_0001, 0, EDX, !0),
];

/// The host's CPU as the guest's one vCPU shows it.
pub fn for_guest(supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    const HYPERVISOR: u32 = 1 << 31;
    const ONE_LOGICAL_CPU: u32 = 1 << 16;
    let mut entries = supported.to_vec();
    for entry in &mut entries {
        match entry.function {
            // The cache line's size stays; the APIC's id is that of the vCPU.
            0x1 => {
                entry.ebx = (entry.ebx & 0xff00) | ONE_LOGICAL_CPU;
                entry.ecx |= HYPERVISOR;
            }
            0xb | 0x1f => entry.edx = 0,
            _ => {}
        }
    }
    entries
}

/// Why a guest that saw `taken` cannot go on where KVM supports `here`.
pub fn fits(taken: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Result<(), String> {
    let (then, now) = (name(taken), name(here));
    if then != now {
        return Err(format!("it was taken on {then}; this is {now}"));
    }
    for (leaf, subleaf, register, features) in FEATURES {
        let bits = |entries| find(entries, leaf, subleaf).map_or(0, register) & features;
        let hypervisor = if (leaf, subleaf) == (1, 0) { 1 << 31 } else { 0 };
        let missing = bits(taken) & !bits(here) & !hypervisor;
        if missing != 0 {
            return Err(format!(
                "its CPU had features {missing:#x} of CPUID leaf {leaf:#x}.{subleaf} that this lacks"
            ));
        }
    }
    Ok(())
}

fn find(entries: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|entry| entry.function == leaf && entry.index == subleaf)
}

/// Vendor and signature (family, model, stepping).
fn name(entries: &[kvm_cpuid_entry2]) -> String {
    let vendor =
        find(entries, 0, 0).map(|entry| [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes).concat());
    let signature = find(entries, 1, 0).map_or(0, |entry| entry.eax);
    format!("{} {signature:#x}", String::from_utf8_lossy(&vendor.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(signature: u32, ecx: u32, ebx7: u32) -> Vec<kvm_cpuid_entry2> {
        let vendor = |at: usize| u32::from_le_bytes(*b"AuthenticAMD"[at..].first_chunk().expect("4 bytes"));
        let zero = kvm_cpuid_entry2 { ebx: vendor(0), edx: vendor(4), ecx: vendor(8), ..Default::default() };
        let one = kvm_cpuid_entry2 { function: 1, eax: signature, ecx, ..Default::default() };
        vec![zero, one, kvm_cpuid_entry2 { function: 7, ebx: ebx7, ..Default::default() }]
    }

    #[test]
    fn the_same_cpu_or_one_with_more_features_fits() {
        assert_eq!(fits(&cpu(0xa0f11, 1, 0b10), &cpu(0xa0f11, 0b11, 0b110)), Ok(()));
        let shown = for_guest(&cpu(0xa0f11, 1, 0));
        assert_eq!(shown[1].ecx, 1 | 1 << 31);
        assert_eq!(fits(&shown, &cpu(0xa0f11, 1, 0)), Ok(()));
        // OSXSAVE is what the guest had switched on, not what the CPU can do.
        assert_eq!(fits(&cpu(0xa0f11, 1 << 27, 0), &cpu(0xa0f11, 0, 0)), Ok(()));
    }

    #[test]
    fn another_cpu_or_a_missing_feature_is_told() {
        let told = fits(&cpu(0xa0f11, 0, 0), &cpu(0xa0f12, 0, 0)).expect_err("another stepping");
        assert_eq!(told, "it was taken on AuthenticAMD 0xa0f11; this is AuthenticAMD 0xa0f12");
        let told = fits(&cpu(1, 0, 0b100), &cpu(1, 0, 0b011)).expect_err("a feature less");
        assert!(told.contains("features 0x4 of CPUID leaf 0x7.0"), "{told}");
    }
}
