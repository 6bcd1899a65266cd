//! This host's KVM: opened once, asked once what it can do.

use crate::{Error, cpu, error::Doing};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use std::{mem::size_of, sync::Arc};

/// What the machine cannot do without.
const NEEDED: [(Cap, &str); 11] = [
    (Cap::Ioeventfd, "notifications without an exit"),
    (Cap::Irqfd, "interrupts by a descriptor"),
    (Cap::Irqchip, "an interrupt controller in the kernel"),
    (Cap::Pit2, "a timer in the kernel"),
    (Cap::PitState2, "the timer's state"),
    (Cap::UserMemory, "guest memory of ours"),
    (Cap::ImmediateExit, "an exit on demand"),
    (Cap::AdjustClock, "the guest's clock"),
    (Cap::VcpuEvents, "pending interrupts"),
    (Cap::Xsave, "the vector registers"),
    (Cap::Xcrs, "the extended control registers"),
];

pub struct Host {
    pub(crate) kvm: Kvm,
    /// What KVM can show a guest here.
    supported: Vec<kvm_cpuid_entry2>,
    deadline: bool,
    /// The model-specific registers that make up a guest's state here, in the order in which they can be restored.
    pub(crate) msrs: Arc<[u32]>,
}

impl Host {
    pub fn open() -> Result<Host, Error> {
        let kvm = Kvm::new().map_err(|e| Error::Host(format!("/dev/kvm cannot be opened: {e}")))?;
        if kvm.get_api_version() != 12 {
            return Err(Error::Host(format!("KVM speaks version {}, not 12", kvm.get_api_version())));
        }
        if let Some((_, what)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(Error::Host(format!("its KVM lacks {what}")));
        }
        // Larger only for a process that asked for AMX, which this one never does.
        let xsave = kvm.check_extension_int(Cap::Xsave2);
        if xsave > size_of::<kvm_bindings::kvm_xsave>() as i32 {
            return Err(Error::Host(format!("its CPU's vector state has {xsave} bytes; 4096 are known")));
        }
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .doing("say what CPU it offers")?
            .as_slice()
            .to_vec();
        let msrs = kvm.get_msr_index_list().doing("list its MSRs")?.as_slice().to_vec();
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Host { kvm, supported, deadline, msrs: in_order(msrs).into() })
    }

    /// For guests that would do wrong with XSAVE, as OSv does on a KVM that QEMU 7.2 emulates.
    pub fn without_xsave(self) -> Host {
        Host { supported: cpu::without_xsave(&self.supported), ..self }
    }

    /// What a vCPU shows its guest.
    pub(crate) fn shown(&self, vcpu: u8, vcpus: u8) -> Vec<kvm_cpuid_entry2> {
        cpu::for_guest(&self.supported, vcpu, vcpus, self.deadline)
    }
}

/// The timer's deadline is in the time that the time-stamp counter shows, so it comes after that.
fn in_order(mut msrs: Vec<u32>) -> Vec<u32> {
    const TSC_DEADLINE: u32 = 0x6e0;
    msrs.sort_by_key(|msr| *msr == TSC_DEADLINE);
    msrs
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_deadline_comes_last_and_the_rest_keeps_its_order() {
        assert_eq!(super::in_order(vec![0x6e0, 0x10, 0x174]), [0x10, 0x174, 0x6e0]);
    }
}
