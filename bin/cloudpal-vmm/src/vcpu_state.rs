//! The vCPU's state out of KVM, and into a fresh vCPU again.
//!
//! The order is KVM's demand. Saving: the run state first, for reading it takes pending signals into account; the
//! local APIC before the MSRs, for its base is one of them; the pending events last, for everything before may
//! change them. Restoring: the CPU's features first, for they decide which registers exist; the special registers
//! before the APIC, whose mode they set; the APIC before the MSRs, whose deadline it takes; the events last.
#![allow(unsafe_code)]

use crate::{Error, error::Doing, state::VcpuState};
use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

pub(crate) fn save(vcpu: &VcpuFd, cpuid: &[kvm_cpuid_entry2], msrs: &[u32]) -> Result<VcpuState, Error> {
    let mp_state = vcpu.get_mp_state().doing("save the run state")?;
    let regs = vcpu.get_regs().doing("save the registers")?;
    let sregs = vcpu.get_sregs().doing("save the special registers")?;
    let xsave = vcpu.get_xsave().doing("save the vector registers")?;
    let xcrs = vcpu.get_xcrs().doing("save the extended control registers")?;
    let debugregs = vcpu.get_debug_regs().doing("save the debug registers")?;
    let lapic = vcpu.get_lapic().doing("save the local APIC")?;
    let tsc_khz = vcpu.get_tsc_khz().doing("save the counter's frequency")?;
    let msrs = read_msrs(vcpu, msrs)?;
    let events = vcpu.get_vcpu_events().doing("save the pending events")?;
    Ok(VcpuState {
        cpuid: cpuid.to_vec(),
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debugregs,
        lapic,
        tsc_khz,
        msrs,
        events,
    })
}

/// All but the CPU's features, which [`crate::vcpu::Vcpu::show`] has given it.
pub(crate) fn restore(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), Error> {
    vcpu.set_mp_state(state.mp_state).doing("restore the run state")?;
    vcpu.set_regs(&state.regs).doing("restore the registers")?;
    vcpu.set_sregs(&state.sregs).doing("restore the special registers")?;
    // SAFETY: `Host::open` made sure that KVM reads no more than these 4096 bytes.
    unsafe { vcpu.set_xsave(&state.xsave) }.doing("restore the vector registers")?;
    vcpu.set_xcrs(&state.xcrs).doing("restore the extended control registers")?;
    vcpu.set_debug_regs(&state.debugregs).doing("restore the debug registers")?;
    vcpu.set_lapic(&state.lapic).doing("restore the local APIC")?;
    if vcpu.get_tsc_khz().doing("read the counter's frequency")? != state.tsc_khz {
        vcpu.set_tsc_khz(state.tsc_khz).doing("restore the counter's frequency")?;
    }
    write_msrs(vcpu, &state.msrs)?;
    vcpu.set_vcpu_events(&state.events).doing("restore the pending events")?;
    tell_of_pause(vcpu)
}

/// For a vCPU that has never run, and is given its state back: its counter goes on meanwhile, and KVM would take the
/// vCPUs' counters for different ones.
pub(crate) fn leave_out_time(state: &mut VcpuState) {
    const TSC: u32 = 0x10;
    const TSC_ADJUST: u32 = 0x3b;
    const TSC_DEADLINE: u32 = 0x6e0;
    state.msrs.retain(|msr| !matches!(msr.index, TSC | TSC_ADJUST | TSC_DEADLINE));
}

/// Tells a guest with kvm-clock that it stood still, so that its watchdogs forgive; without one KVM answers EINVAL.
pub(crate) fn tell_of_pause(vcpu: &VcpuFd) -> Result<(), Error> {
    match vcpu.kvmclock_ctrl() {
        Err(errno) if errno.errno() != libc::EINVAL => Err(errno).doing("tell the guest of the pause"),
        _ => Ok(()),
    }
}

pub(crate) fn set_cpuid(vcpu: &VcpuFd, entries: &[kvm_cpuid_entry2]) -> Result<(), Error> {
    let cpuid = CpuId::from_entries(entries).map_err(|_| Error::Vcpu("too many CPUID entries".into()))?;
    vcpu.set_cpuid2(&cpuid).doing("set the CPU's features")
}

/// KVM stops at the first MSR that this CPU does not have after all; the rest is asked for again behind it.
fn read_msrs(vcpu: &VcpuFd, mut wanted: &[u32]) -> Result<Vec<kvm_msr_entry>, Error> {
    let mut found = Vec::with_capacity(wanted.len());
    while !wanted.is_empty() {
        let entries: Vec<_> =
            wanted.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
        let mut msrs = from_entries(&entries)?;
        let read = vcpu.get_msrs(&mut msrs).doing("save the MSRs")?;
        found.extend_from_slice(&msrs.as_slice()[..read]);
        wanted = wanted.get(read + 1..).unwrap_or_default();
    }
    Ok(found)
}

/// One call when all is well. An MSR that KVM does not let be written is no loss when it has the value already.
pub(crate) fn write_msrs(vcpu: &VcpuFd, mut entries: &[kvm_msr_entry]) -> Result<(), Error> {
    while !entries.is_empty() {
        let written = vcpu.set_msrs(&from_entries(entries)?).doing("restore the MSRs")?;
        let Some(refused) = entries.get(written) else { break };
        if read_msrs(vcpu, &[refused.index])?.first().map(|msr| msr.data) != Some(refused.data) {
            return Err(Error::Msr(refused.index));
        }
        entries = &entries[written + 1..];
    }
    Ok(())
}

fn from_entries(entries: &[kvm_msr_entry]) -> Result<Msrs, Error> {
    Msrs::from_entries(entries).map_err(|_| Error::Vcpu("too many MSRs".into()))
}
