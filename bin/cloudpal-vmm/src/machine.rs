//! One microVM: made as a `Spare` without state, booted or woken into a `Machine`, run on the caller's thread.
//!
//! Invariants:
//! - The memory slots are registered before the vCPU is made, and outlive the VM.
//! - An exit to the VMM is finished (KVM completes an IO only on the next KVM_RUN) before state is saved.
//! - A port or address that nobody answers reads as all ones and swallows what is written, as an empty bus does.

use crate::{
    Error, Host, boot, elf, error::Doing, kick::Kick, layout, memory::Memory, state::State, vcpu_state,
};
use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY, kvm_cpuid_entry2, kvm_irqchip, kvm_pit_config,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use std::{fs::File, ops::ControlFlow};

/// What is at the guest's IO ports. `Break` ends the run after this exit.
pub trait Ports {
    fn write(&mut self, port: u16, data: &[u8]) -> ControlFlow<()>;
    fn read(&mut self, port: u16, data: &mut [u8]) -> ControlFlow<()>;
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A port said so; it can run on.
    Break,
    /// Somebody kicked; it can run on.
    Kicked,
    /// The guest asked the keyboard controller for a reset.
    Reset,
    /// A triple fault, or KVM's own report of a shutdown.
    Shutdown,
}

const KEYBOARD_COMMAND: u16 = 0x64;
const RESET_LINE: u8 = 0xfe;
const IRQCHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// A VM that has memory, interrupt controllers and a vCPU, but has never run.
pub struct Spare {
    // In this order they are dropped: the VM before the memory that it uses.
    vcpu: VcpuFd,
    vm: VmFd,
    memory: Memory,
}

impl Spare {
    pub fn make(host: &Host, memory_mib: u32) -> Result<Spare, Error> {
        let memory = Memory::reserve(memory_mib)?;
        let vm = host.kvm.create_vm().doing("make a VM")?;
        memory.register(&vm)?;
        vm.set_tss_address(layout::KVM_TSS as usize).doing("place its task state")?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).doing("place its identity map")?;
        vm.create_irq_chip().doing("make the interrupt controllers")?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).doing("make the timer")?;
        let vcpu = vm.create_vcpu(0).doing("make a vCPU")?;
        Ok(Spare { vcpu, vm, memory })
    }

    pub fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Loads an ELF kernel and makes the vCPU ready for its first instruction.
    pub fn boot(self, host: &Host, kernel: &[u8], command_line: &str) -> Result<Machine, Error> {
        let entry = elf::load(&self.memory, kernel)?;
        boot::write_tables(&self.memory, command_line)?;
        self.memory.renew()?;
        vcpu_state::set_cpuid(&self.vcpu, &host.shown)?;
        let sregs = self.vcpu.get_sregs().doing("read the special registers")?;
        self.vcpu.set_sregs(&boot::special_registers(sregs)).doing("set the special registers")?;
        self.vcpu.set_regs(&boot::registers(entry)).doing("set the registers")?;
        self.vcpu.set_fpu(&boot::float_registers()).doing("set the float registers")?;
        Ok(self.machine(&host.shown))
    }

    /// Puts a snapshot's memory and state in place. The caller has checked that they belong together and fit this host.
    pub(crate) fn wake(self, state: &State, memory: &File) -> Result<Machine, Error> {
        self.memory.map_over(memory).map_err(Error::file("the snapshot's memory"))?;
        vcpu_state::restore(&self.vcpu, &state.vcpu)?;
        self.vm.set_pit2(&state.pit).doing("restore the timer")?;
        // The guest's clock goes on where it stood; the host's wall clock at the time of the snapshot is no part of it.
        let mut clock = state.clock;
        clock.flags &= !KVM_CLOCK_REALTIME;
        self.vm.set_clock(&clock).doing("restore the clock")?;
        for chip in &state.irqchips {
            self.vm.set_irqchip(chip).doing("restore an interrupt controller")?;
        }
        self.memory.renew()?;
        Ok(self.machine(&state.vcpu.cpuid))
    }

    fn machine(self, cpuid: &[kvm_cpuid_entry2]) -> Machine {
        Machine {
            vcpu: self.vcpu,
            vm: self.vm,
            memory: self.memory,
            kick: Kick::default(),
            cpuid: cpuid.to_vec(),
        }
    }
}

pub struct Machine {
    vcpu: VcpuFd,
    vm: VmFd,
    pub memory: Memory,
    kick: Kick,
    /// What the vCPU was given. KVM's own answer also has the state of the moment in it, and on some hosts more.
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl Machine {
    /// Ends a run from another thread.
    pub fn kick(&self) -> Kick {
        self.kick.clone()
    }

    /// Runs the guest until something ends it.
    pub fn run(&mut self, ports: &mut dyn Ports) -> Result<Ended, Error> {
        let kick = self.kick.clone();
        let immediate_exit = &raw mut self.vcpu.get_kvm_run().immediate_exit;
        let inside =
            kick.enter(immediate_exit).map_err(|e| Error::Host(format!("no signal handler: {e}")))?;
        let Some(inside) = inside else { return Ok(Ended::Kicked) };
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::InternalError) => return Err(self.stuck()),
                Ok(exit) => {
                    if let ControlFlow::Break(ended) = answer(exit, ports)? {
                        return Ok(ended);
                    }
                }
                Err(errno) if errno.errno() == libc::EINTR => {
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
        match self.vcpu.get_regs().map(|regs| regs.rip) {
            Ok(rip) => Error::Vcpu(format!("KVM cannot run or emulate the instruction at {rip:#x}")),
            Err(errno) => Error::Vcpu(format!("KVM cannot go on, nor say where it is: {errno}")),
        }
    }

    /// All state but the memory.
    pub(crate) fn save(&mut self, host: &Host) -> Result<State, Error> {
        self.finish_exit()?;
        // The order matters: see `vcpu_state`. The vCPU comes first, for reading its state can change the controllers'.
        let vcpu = vcpu_state::save(&self.vcpu, &self.cpuid, &host.msrs)?;
        let pit = self.vm.get_pit2().doing("save the timer")?;
        let clock = self.vm.get_clock().doing("save the clock")?;
        let mut irqchips = [kvm_irqchip::default(); 3];
        for (chip, id) in irqchips.iter_mut().zip(IRQCHIPS) {
            chip.chip_id = id;
            self.vm.get_irqchip(chip).doing("save an interrupt controller")?;
        }
        Ok(State { memory_bytes: self.memory.bytes(), pairing: [0; 16], vcpu, pit, clock, irqchips })
    }

    /// Lets KVM complete the exit that the last run ended with, without running the guest any further.
    fn finish_exit(&mut self) -> Result<(), Error> {
        self.vcpu.set_kvm_immediate_exit(1);
        let finished = self.vcpu.run().map(|exit| format!("{exit:?}"));
        self.vcpu.set_kvm_immediate_exit(0);
        match finished {
            Err(errno) if errno.errno() == libc::EINTR => Ok(()),
            Err(errno) => Err(errno).doing("finish the last exit"),
            Ok(exit) => Err(Error::Vcpu(format!("it cannot be paused inside one instruction ({exit})"))),
        }
    }
}

fn answer(exit: VcpuExit<'_>, ports: &mut dyn Ports) -> Result<ControlFlow<Ended>, Error> {
    let flow = match exit {
        VcpuExit::IoOut(KEYBOARD_COMMAND, [RESET_LINE]) => return Ok(ControlFlow::Break(Ended::Reset)),
        VcpuExit::IoOut(port, data) => ports.write(port, data),
        VcpuExit::IoIn(port, data) => {
            data.fill(0xff);
            ports.read(port, data)
        }
        VcpuExit::MmioRead(_, data) => {
            data.fill(0xff);
            ControlFlow::Continue(())
        }
        VcpuExit::MmioWrite(..) => ControlFlow::Continue(()),
        VcpuExit::Shutdown | VcpuExit::SystemEvent(..) => return Ok(ControlFlow::Break(Ended::Shutdown)),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => ControlFlow::Continue(()),
        other => return Err(Error::Vcpu(format!("{other:?}"))),
    };
    Ok(match flow {
        ControlFlow::Continue(()) => ControlFlow::Continue(()),
        ControlFlow::Break(()) => ControlFlow::Break(Ended::Break),
    })
}
