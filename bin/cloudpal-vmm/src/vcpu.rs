//! One vCPU: made, run until something ends the run, and stopped between two instructions.
//!
//! Invariant: before its state is saved, the last exit is finished: KVM completes an access to a port or a device only
//! at the next KVM_RUN.

use crate::{
    Error,
    bus::{Bus, Switch},
    error::Doing,
    kick::Kick,
    layout,
    machine::{Ended, Ports},
    vcpu_state,
};
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::ops::ControlFlow;

pub(crate) struct Vcpu {
    pub fd: VcpuFd,
    /// What it was given. KVM's own answer also has the state of the moment in it, and on some hosts more.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    unfinished: bool,
}

impl Vcpu {
    pub(crate) fn new(fd: VcpuFd) -> Vcpu {
        Vcpu { fd, cpuid: Vec::new(), unfinished: false }
    }

    /// Gives it the CPU's features that its guest shall see, before it runs and before the rest of its state: they
    /// decide which registers exist.
    pub(crate) fn show(&mut self, cpuid: Vec<kvm_cpuid_entry2>) -> Result<(), Error> {
        if self.cpuid != cpuid {
            vcpu_state::set_cpuid(&self.fd, &cpuid)?;
            self.cpuid = cpuid;
        }
        Ok(())
    }

    /// Runs the guest until something ends it.
    pub(crate) fn run(&mut self, kick: &Kick, bus: &Bus, ports: &mut dyn Ports) -> Result<Ended, Error> {
        let immediate_exit = &raw mut self.fd.get_kvm_run().immediate_exit;
        let inside =
            kick.enter(immediate_exit).map_err(|e| Error::Host(format!("no signal handler: {e}")))?;
        let Some(inside) = inside else { return Ok(Ended::Kicked) };
        loop {
            match self.fd.run() {
                Ok(VcpuExit::InternalError) => return Err(self.stuck()),
                Ok(exit) => {
                    self.unfinished = true;
                    if let ControlFlow::Break(ended) = answer(exit, bus, ports)? {
                        return Ok(ended);
                    }
                }
                Err(errno) if errno.errno() == libc::EINTR => {
                    self.unfinished = false;
                    if inside.kicked() {
                        return Ok(Ended::Kicked);
                    }
                }
                Err(errno) if errno.errno() == libc::EAGAIN => {}
                Err(errno) => return Err(errno).doing("run the vCPU"),
            }
        }
    }

    /// KVM met something that it cannot go on from; where, for the log.
    fn stuck(&mut self) -> Error {
        match self.fd.get_regs().map(|regs| regs.rip) {
            Ok(rip) => Error::Vcpu(format!("KVM cannot run or emulate the instruction at {rip:#x}")),
            Err(errno) => Error::Vcpu(format!("KVM cannot go on, nor say where it is: {errno}")),
        }
    }

    /// Lets KVM complete the exit that the last run ended with, without running the guest any further. On the thread
    /// that ran it: KVM waits for milliseconds when a vCPU changes its thread.
    pub(crate) fn finish_exit(&mut self, bus: &Bus, ports: &mut dyn Ports) -> Result<(), Error> {
        // An access of one instruction may come in several pieces, but not in many.
        for _ in 0..16 {
            if !self.unfinished {
                return Ok(());
            }
            self.fd.set_kvm_immediate_exit(1);
            let finished = self.fd.run();
            let outcome = match finished {
                Err(errno) if errno.errno() == libc::EINTR => {
                    self.unfinished = false;
                    Ok(())
                }
                Err(errno) => Err(errno).doing("finish the last exit"),
                // What it says of the whole machine comes again: the instruction is not finished.
                Ok(exit) => answer(exit, bus, ports).map(|_| ()),
            };
            self.fd.set_kvm_immediate_exit(0);
            outcome?;
        }
        Err(Error::Vcpu("it cannot be paused inside one instruction".into()))
    }
}

fn answer(exit: VcpuExit<'_>, bus: &Bus, ports: &mut dyn Ports) -> Result<ControlFlow<Ended>, Error> {
    let flow = match exit {
        VcpuExit::IoOut(port, data) => match bus.write_port(port, data) {
            (true, None) => ControlFlow::Continue(()),
            (_, Some(Switch::Reset)) => return Ok(ControlFlow::Break(Ended::Reset)),
            (_, Some(Switch::Off)) => return Ok(ControlFlow::Break(Ended::Off)),
            (false, None) => ports.write(port, data),
        },
        VcpuExit::IoIn(port, data) => {
            // A chip that is not there would seem to be at an update, for whose end a library OS waits.
            data.fill(if layout::CMOS.contains(&port) { 0 } else { 0xff });
            if bus.read_port(port, data) { ControlFlow::Continue(()) } else { ports.read(port, data) }
        }
        VcpuExit::MmioRead(address, data) => {
            bus.read_memory(address, data);
            ControlFlow::Continue(())
        }
        VcpuExit::MmioWrite(address, data) => {
            bus.write_memory(address, data);
            ControlFlow::Continue(())
        }
        VcpuExit::Shutdown | VcpuExit::SystemEvent(..) => return Ok(ControlFlow::Break(Ended::Shutdown)),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => ControlFlow::Continue(()),
        other => return Err(Error::Vcpu(format!("{other:?}"))),
    };
    Ok(match flow {
        ControlFlow::Continue(()) => ControlFlow::Continue(()),
        ControlFlow::Break(()) => ControlFlow::Break(Ended::Break),
    })
}
