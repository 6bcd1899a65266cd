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

const HYPERVISOR: u32 = 1 << 31;
/// Not among what KVM says it supports: the timer is the local APIC's, which is KVM's own.
const TSC_DEADLINE: u32 = 1 << 24;

/// The CPU without XSAVE and what needs it: AVX and all after it. Intel's manual, volume 1, 13.2: CPUID leaf 1 says
/// whether there is XSAVE, leaf 0xd which parts of the state it saves.
pub fn without_xsave(supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    const FMA_XSAVE_AVX_F16C: u32 = 1 << 12 | 1 << 26 | 1 << 28 | 1 << 29;
    const AVX2: u32 = 1 << 5;
    let mut entries: Vec<_> = supported.iter().copied().filter(|entry| entry.function != 0xd).collect();
    for entry in &mut entries {
        match (entry.function, entry.index) {
            (0x1, _) => entry.ecx &= !FMA_XSAVE_AVX_F16C,
            (0x7, 0) => entry.ebx &= !AVX2,
            _ => {}
        }
    }
    entries
}

/// The host's CPU as one of the guest's vCPUs shows it: so many cores of one thread each, in one package.
pub fn for_guest(
    supported: &[kvm_cpuid_entry2],
    vcpu: u8,
    vcpus: u8,
    deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    const HYPER_THREADING: u32 = 1 << 28;
    const CORES_LEGACY: u32 = 1 << 1;
    let (id, count) = (u32::from(vcpu), u32::from(vcpus));
    // The bits of an APIC's id that tell cores apart.
    let bits = count.next_power_of_two().trailing_zeros();
    let several = |bit: u32, register: u32| if count > 1 { register | bit } else { register & !bit };
    let mut entries: Vec<_> =
        supported.iter().copied().filter(|entry| !matches!(entry.function, 0xb | 0x1f)).collect();
    for entry in &mut entries {
        match (entry.function, entry.index) {
            (0x1, _) => {
                entry.ebx = (entry.ebx & 0xff00) | count << 16 | id << 24;
                entry.ecx |= HYPERVISOR | if deadline { TSC_DEADLINE } else { 0 };
                entry.edx = several(HYPER_THREADING, entry.edx);
            }
            // Intel's caches: the first two levels are a core's own, the third is everybody's.
            (0x4, _) if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level < 3 { 0 } else { (1 << bits) - 1 };
                entry.eax = (entry.eax & 0x3fff) | sharing << 14 | ((1 << bits) - 1) << 26;
            }
            (0x8000_0001, _) => entry.ecx = several(CORES_LEGACY, entry.ecx),
            (0x8000_0008, _) => entry.ecx = (entry.ecx & !0xf0ff) | bits << 12 | (count - 1),
            // AMD's caches, likewise.
            (0x8000_001d, _) if entry.eax & 0x1f != 0 => {
                let sharing = if (entry.eax >> 5) & 7 < 3 { 0 } else { count - 1 };
                entry.eax = (entry.eax & 0x3fff) | sharing << 14;
            }
            (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
    entries.extend(topology(id, count, bits, supported));
    entries
}

/// Leaf 0xb: threads of a core, cores of the package. Only where the host's CPU has the leaf.
fn topology(id: u32, count: u32, bits: u32, supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    const INDEXED: u32 = 1;
    if !supported.iter().any(|entry| entry.function == 0xb) {
        return Vec::new();
    }
    [(0, 0, 1, THREADS), (1, bits, count, CORES), (2, 0, 0, 0)]
        .map(|(index, eax, ebx, kind)| kvm_cpuid_entry2 {
            function: 0xb,
            index,
            flags: INDEXED,
            eax,
            ebx,
            ecx: index | kind,
            edx: id,
            ..Default::default()
        })
        .to_vec()
}

/// Why a guest that saw `taken` cannot go on where guests see `here`.
pub fn fits(taken: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Result<(), String> {
    let (then, now) = (name(taken), name(here));
    if then != now {
        return Err(format!("it was taken on {then}; this is {now}"));
    }
    for (leaf, subleaf, register, features) in FEATURES {
        let bits = |entries| find(entries, leaf, subleaf).map_or(0, register) & features;
        let missing = bits(taken) & !bits(here);
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
        let shown = for_guest(&cpu(0xa0f11, 1, 0), 0, 1, false);
        assert_eq!(shown[1].ecx, 1 | HYPERVISOR);
        let with_deadline = for_guest(&cpu(0xa0f11, 1, 0), 0, 1, true);
        assert_eq!(fits(&shown, &with_deadline), Ok(()));
        assert!(fits(&with_deadline, &shown).is_err());
        // OSXSAVE is what the guest had switched on, not what the CPU can do.
        assert_eq!(fits(&cpu(0xa0f11, 1 << 27, 0), &cpu(0xa0f11, 0, 0)), Ok(()));
    }

    #[test]
    fn without_xsave_there_is_nothing_that_needs_it() {
        let mut host = cpu(1, !0, !0);
        host.push(kvm_cpuid_entry2 { function: 0xd, eax: 7, ..Default::default() });
        let shown = without_xsave(&host);
        assert_eq!(shown[1].ecx, !(1 << 12 | 1 << 26 | 1 << 28 | 1 << 29));
        assert_eq!(shown[2].ebx, !(1 << 5));
        assert!(find(&shown, 0xd, 0).is_none());
        // A guest that knows no XSAVE goes on where there is one, and not the other way.
        assert_eq!(fits(&shown, &host), Ok(()));
        assert!(fits(&host, &shown).is_err());
    }

    #[test]
    fn each_vcpu_has_its_own_id_and_all_know_how_many_they_are() {
        let mut host = cpu(1, 0, 0);
        host.push(kvm_cpuid_entry2 { function: 0xb, edx: 77, ..Default::default() });
        for id in 0..3 {
            let shown = for_guest(&host, id, 3, true);
            let one = find(&shown, 1, 0).expect("leaf 1");
            assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff, one.edx >> 28), (u32::from(id), 3, 1));
            let (threads, cores) =
                (find(&shown, 0xb, 0).expect("threads"), find(&shown, 0xb, 1).expect("cores"));
            assert_eq!((threads.ebx, threads.edx, cores.eax, cores.ebx), (1, u32::from(id), 2, 3));
        }
    }

    #[test]
    fn another_cpu_or_a_missing_feature_is_told() {
        let told = fits(&cpu(0xa0f11, 0, 0), &cpu(0xa0f12, 0, 0)).expect_err("another stepping");
        assert_eq!(told, "it was taken on AuthenticAMD 0xa0f11; this is AuthenticAMD 0xa0f12");
        let told = fits(&cpu(1, 0, 0b100), &cpu(1, 0, 0b011)).expect_err("a feature less");
        assert!(told.contains("features 0x4 of CPUID leaf 0x7.0"), "{told}");
    }
}
