//! One microVM: made as a `Spare` without state, then booted or woken into a `Machine` in which nothing runs yet. A
//! machine of one vCPU can be run on the caller's thread; `live.rs` runs any machine on threads of its own.
//!
//! Invariants:
//! - Everything that costs time and needs no state is made in the spare: memory, interrupt controllers, vCPUs, and the
//!   wires of the devices. Memory and wires come before the vCPUs, and outlive the VM.
//! - State is saved and put in place in the order that KVM demands: the vCPUs (see `vcpu_state`), then the timer, the
//!   clock and the interrupt controllers, then the devices; last of all the guest is told that it was woken.

use crate::{
    Error, Host, boot,
    bus::Bus,
    crew::Worker,
    error::Doing,
    events::Events,
    kernel::{self, Image},
    kick::Kick,
    layout,
    memory::Memory,
    snapshot::{self, Base},
    state::State,
    vcpu::Vcpu,
    vcpu_state,
    virtio::Device,
};
use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use std::{
    fs::File,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What is at the guest's other IO ports. `Break` ends the run after this exit.
pub trait Ports {
    fn write(&mut self, port: u16, data: &[u8]) -> ControlFlow<()>;
    fn read(&mut self, port: u16, data: &mut [u8]) -> ControlFlow<()>;
}

/// Nothing is there.
pub struct NoPorts;

impl Ports for NoPorts {
    fn write(&mut self, _: u16, _: &[u8]) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn read(&mut self, _: u16, _: &mut [u8]) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
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
    /// The guest switched the machine off.
    Off,
    /// A triple fault, or KVM's own report of a shutdown.
    Shutdown,
}

/// What a machine is made of, before anything is known of its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub memory_mib: u32,
    pub vcpus: u8,
    /// Places for devices: as many as it may get, or more.
    pub slots: u8,
}

impl Shape {
    /// One vCPU, no devices.
    pub fn plain(memory_mib: u32) -> Shape {
        Shape { memory_mib, vcpus: 1, slots: 0 }
    }
}

/// What a machine starts with.
pub struct Boot<'a> {
    pub kernel: Image<'a>,
    pub initramfs: Option<Image<'a>>,
    /// Without the devices: they are added.
    pub command_line: &'a str,
    /// Slot by slot.
    pub devices: Vec<Box<dyn Device>>,
    /// Where the guest's serial output goes: a descriptor that does not block.
    pub com1: Option<File>,
}

impl<'a> Boot<'a> {
    /// A kernel, and nothing else.
    pub fn plain(kernel: Image<'a>, command_line: &'a str) -> Boot<'a> {
        Boot { kernel, initramfs: None, command_line, devices: Vec::new(), com1: None }
    }
}

/// What a machine goes on with.
pub struct Wake<'a> {
    pub state: &'a State,
    pub memory: &'a File,
    /// What the machine had changed in that memory when it was saved.
    pub diff: Option<&'a File>,
    /// The same kinds in the same order as it had.
    pub devices: Vec<Box<dyn Device>>,
    pub com1: Option<File>,
}

const VCPUS_MAX: u8 = 32;
const IRQCHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// A VM that has memory, interrupt controllers, wires and vCPUs, but has never run.
pub struct Spare {
    // In this order they are dropped: the VM before the memory that it uses.
    vcpus: Vec<Vcpu>,
    bus: Arc<Bus>,
    vm: VmFd,
    memory: Memory,
}

impl Spare {
    pub fn make(host: &Host, shape: Shape) -> Result<Spare, Error> {
        if !(1..=VCPUS_MAX).contains(&shape.vcpus) {
            return Err(Error::Vcpus(shape.vcpus));
        }
        if shape.slots > layout::SLOTS {
            return Err(Error::Devices { given: shape.slots.into(), slots: layout::SLOTS.into() });
        }
        let memory = Memory::reserve(shape.memory_mib)?;
        let vm = host.kvm.create_vm().doing("make a VM")?;
        memory.register(&vm)?;
        vm.set_tss_address(layout::KVM_TSS as usize).doing("place its task state")?;
        vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).doing("place its identity map")?;
        vm.create_irq_chip().doing("make the interrupt controllers")?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).doing("make the timer")?;
        let bus = Arc::new(Bus::make(&vm, shape.slots, memory.for_devices())?);
        let vcpu = |id: u8| {
            let mut vcpu = Vcpu::new(vm.create_vcpu(id.into()).doing("make a vCPU")?);
            // Beforehand: it takes KVM longer than all the other state of a wake.
            vcpu.show(host.shown(id, shape.vcpus))?;
            Ok::<_, Error>(vcpu)
        };
        let vcpus = (0..shape.vcpus).map(vcpu).collect::<Result<Vec<_>, Error>>()?;
        Ok(Spare { vcpus, bus, vm, memory })
    }

    pub fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Loads the kernel and makes the first vCPU ready for its first instruction. The others wait until it starts them.
    pub fn boot(self, host: &Host, boot: Boot<'_>) -> Result<Machine, Error> {
        let loaded = kernel::load(&self.memory, &boot.kernel, boot.initramfs.as_ref())?;
        let command_line = boot::with_devices(boot.command_line, boot.devices.len());
        let start = boot::prepare(&self.memory, &loaded, &command_line)?;
        self.bus.plug(boot.devices)?;
        self.bus.com1().set_output(boot.com1);
        let count = self.vcpus.len() as u8;
        crate::acpi::write(&self.memory, count, self.bus.devices())?;
        self.memory.renew()?;
        if let Some(Vcpu { fd, .. }) = self.vcpus.first() {
            let sregs = fd.get_sregs().doing("read the special registers")?;
            fd.set_sregs(&boot::special_registers(&start, sregs)).doing("set the special registers")?;
            fd.set_regs(&boot::registers(&start)).doing("set the registers")?;
            fd.set_fpu(&boot::float_registers()).doing("set the float registers")?;
            vcpu_state::write_msrs(fd, &boot::model_specific_registers())?;
            let mut apic = fd.get_lapic().doing("read the local APIC")?;
            boot::connect_pins(&mut apic);
            fd.set_lapic(&apic).doing("set the local APIC")?;
        }
        Ok(self.machine(host, None))
    }

    /// Puts a snapshot's memory and state in place. It is refused when they do not belong together or do not fit this
    /// host.
    pub fn wake(mut self, host: &Host, wake: Wake<'_>) -> Result<Machine, Error> {
        let base = snapshot::check(&self, host, &wake)?;
        let state = wake.state;
        self.memory.map_over(wake.memory).map_err(Error::file("the snapshot's memory"))?;
        if let Some(diff) = wake.diff {
            snapshot::diff::apply(diff, &self.memory)?;
        }
        self.restore(state)?;
        self.bus.plug(wake.devices)?;
        self.bus.com1().set_output(wake.com1);
        self.bus.restore_devices(&state.devices)?;
        if let Some(registers) = state.com1 {
            self.bus.restore_com1(registers)?;
        }
        self.memory.renew()?;
        self.bus.announce_wake();
        Ok(self.machine(host, Some(base)))
    }

    /// Everything that KVM has, in its order.
    fn restore(&mut self, state: &State) -> Result<(), Error> {
        for (vcpu, saved) in self.vcpus.iter_mut().zip(&state.vcpus) {
            vcpu.show(saved.cpuid.clone())?;
            vcpu_state::restore(&vcpu.fd, saved)?;
        }
        self.vm.set_pit2(&state.pit).doing("restore the timer")?;
        // The guest's clock goes on where it stood; the host's wall clock at the time of the snapshot is no part of it.
        let mut clock = state.clock;
        clock.flags &= !KVM_CLOCK_REALTIME;
        self.vm.set_clock(&clock).doing("restore the clock")?;
        for chip in &state.irqchips {
            self.vm.set_irqchip(chip).doing("restore an interrupt controller")?;
        }
        Ok(())
    }

    /// Goes through a wake with the spare's own state, which leaves it as it is: what code and KVM do for the first
    /// time is slow, and at the wake somebody waits for it.
    pub fn rehearse(&mut self, host: &Host) -> Result<(), Error> {
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        for vcpu in &self.vcpus {
            let mut state = vcpu_state::save(&vcpu.fd, &vcpu.cpuid, &host.msrs)?;
            vcpu_state::leave_out_time(&mut state);
            vcpus.push(state);
        }
        let (pit, clock, irqchips) = controllers(&self.vm)?;
        let com1 = Some(self.bus.com1().save());
        let (memory_bytes, pairing, devices) = (self.memory.bytes(), [0; 16], Vec::new());
        let state = State { memory_bytes, pairing, vcpus, pit, clock, irqchips, com1, devices };
        let read = State::decode(&state.encode()).map_err(snapshot::Refusal::from)?;
        self.restore(&read)
    }

    pub(crate) fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    fn machine(self, host: &Host, base: Option<Base>) -> Machine {
        let vcpus = self.vcpus.into_iter().map(|vcpu| Arc::new(Mutex::new(vcpu))).collect();
        Machine {
            vcpus,
            events: None,
            bus: self.bus,
            vm: self.vm,
            memory: self.memory,
            kick: Kick::default(),
            msrs: host.msrs.clone(),
            base,
        }
    }
}

pub struct Machine {
    pub(crate) vcpus: Vec<Arc<Mutex<Vcpu>>>,
    pub(crate) events: Option<Events>,
    pub(crate) bus: Arc<Bus>,
    vm: VmFd,
    pub memory: Memory,
    kick: Kick,
    msrs: Arc<[u32]>,
    /// The memory file that it woke from.
    pub(crate) base: Option<Base>,
}

pub(crate) fn locked(vcpu: &Mutex<Vcpu>) -> MutexGuard<'_, Vcpu> {
    vcpu.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    /// Ends a run from another thread.
    pub fn kick(&self) -> Kick {
        self.kick.clone()
    }

    /// Runs the first vCPU on this thread, and the devices on theirs, until something ends it.
    pub fn run(&mut self, ports: &mut dyn Ports) -> Result<Ended, Error> {
        if self.bus.devices() > 0 {
            self.start_events()?.resume();
        }
        let vcpu = self.vcpus.first().ok_or(Error::Vcpus(0))?;
        let ended = locked(vcpu).run(&self.kick, &self.bus, ports);
        if let Some(events) = &self.events {
            events.pause();
        }
        ended
    }

    /// The devices' thread, made when it is first needed, and paused.
    pub(crate) fn start_events(&mut self) -> Result<&Events, Error> {
        if self.events.is_none() {
            let worker = Worker::start("devices".into(), Arc::new(|| Ok(())))?;
            self.start_events_on(worker)?;
        }
        self.events.as_ref().ok_or_else(|| Error::Host("the devices' thread is gone".into()))
    }

    /// Makes that thread the devices', unless they have one.
    pub(crate) fn start_events_on(&mut self, worker: Worker) -> Result<(), Error> {
        if self.events.is_none() {
            self.events = Some(Events::start(self.bus.clone(), worker)?);
        }
        Ok(())
    }

    /// All state but the memory. Nothing runs meanwhile.
    pub(crate) fn state(&self) -> Result<State, Error> {
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        // The vCPUs come first, for reading their state can change the controllers'.
        for vcpu in &self.vcpus {
            let mut vcpu = locked(vcpu);
            vcpu.finish_exit(&self.bus, &mut NoPorts)?;
            vcpus.push(vcpu_state::save(&vcpu.fd, &vcpu.cpuid, &self.msrs)?);
        }
        let (pit, clock, irqchips) = controllers(&self.vm)?;
        let mut com1 = self.bus.com1();
        com1.flush();
        Ok(State {
            memory_bytes: self.memory.bytes(),
            pairing: [0; 16],
            vcpus,
            pit,
            clock,
            irqchips,
            com1: Some(com1.save()),
            devices: self.bus.save_devices(),
        })
    }
}

/// Timer, clock and interrupt controllers.
fn controllers(vm: &VmFd) -> Result<(kvm_pit_state2, kvm_clock_data, [kvm_irqchip; 3]), Error> {
    let pit = vm.get_pit2().doing("save the timer")?;
    let clock = vm.get_clock().doing("save the clock")?;
    let mut irqchips = [kvm_irqchip::default(); 3];
    for (chip, id) in irqchips.iter_mut().zip(IRQCHIPS) {
        chip.chip_id = id;
        vm.get_irqchip(chip).doing("save an interrupt controller")?;
    }
    Ok((pit, clock, irqchips))
}
