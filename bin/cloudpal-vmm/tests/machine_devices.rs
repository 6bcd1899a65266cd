//! Devices on a machine's bus, driven by the guest itself: every register is written and read by the tiny guest's own
//! instructions; the rings are put into its memory from outside.

use cloudpal_vmm::{
    Boot, Host, Image, Machine, Save, Shape, Snapshot, Spare, Wake, layout,
    snapshot::{Kind, read_state},
    tiny_guest::{self, Operator, ask, protocol},
    virtio::{
        Broken, Device, GuestMemory, Mismatch, Source, Work,
        mmio::{register, status},
    },
};
use std::{
    fs::File,
    os::fd::AsRawFd,
    os::unix::net::UnixDatagram,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use virtio_queue::{Queue, QueueOwnedT, QueueT, Reader, Writer};

const MIB: u32 = 16;
const WRITE: u16 = 2;
const NEXT: u16 = 1;
const SIZE: u32 = 8;
const BUFFERS: u64 = 0x30_0000;

/// `None`, said aloud, where there is no KVM to test with.
fn host() -> Option<Host> {
    match Host::open() {
        Ok(host) => Some(host),
        Err(error) if !Path::new("/dev/kvm").exists() => {
            eprintln!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("there is a /dev/kvm, but {error}"),
    }
}

/// The simplest device that needs all of the machine: its first queue has buffers for what comes over a wire, its
/// second what goes out; what goes out is counted, and the count is its configuration and its state.
struct Wire {
    wire: UnixDatagram,
    sent: u8,
}

impl Wire {
    fn pair() -> (Box<dyn Device>, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair of sockets");
        ours.set_nonblocking(true).expect("not blocking");
        theirs.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        (Box::new(Wire { wire: ours, sent: 0 }), theirs)
    }
}

impl Device for Wire {
    fn kind(&self) -> u32 {
        1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 16]
    }

    fn features(&self) -> u64 {
        1 << 5
    }

    fn activate(&mut self, acked: u64) {
        assert_eq!(acked & !(1 << 32), 0, "the test's driver takes nothing");
    }

    fn read_config(&self, offset: u64, to: &mut [u8]) {
        cloudpal_vmm::virtio::copy_config(&[self.sent], offset, to);
    }

    fn work(&mut self, queue: usize, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken> {
        let queue_index = queue;
        let queue = &mut queues[queue_index];
        let mut work = Work::default();
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            let mut frame = [0; 64];
            let len = if queue_index == 0 {
                let Ok(len) = self.wire.recv(&mut frame) else {
                    queue.go_to_previous_position();
                    break;
                };
                let mut writer = Writer::new(memory, chain).map_err(|_| Broken)?;
                std::io::Write::write(&mut writer, &frame[..len]).map_err(|_| Broken)?
            } else {
                let mut reader = Reader::new(memory, chain).map_err(|_| Broken)?;
                let len = std::io::Read::read(&mut reader, &mut frame).map_err(|_| Broken)?;
                self.wire.send(&frame[..len]).expect("sends");
                self.sent += 1;
                work.config = true;
                0
            };
            queue.add_used(memory, head, len as u32).map_err(|_| Broken)?;
            work.interrupt = true;
        }
        Ok(work)
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.wire.as_raw_fd(), queue: 0 }]
    }

    fn reset(&mut self) {
        self.sent = 0;
    }

    fn save(&self) -> Vec<u8> {
        vec![1, self.sent]
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        match bytes {
            [1, sent] => {
                self.sent = *sent;
                Ok(())
            }
            _ => Err(Mismatch("no wire")),
        }
    }
}

fn shape(vcpus: u8) -> Shape {
    Shape { memory_mib: MIB, vcpus, slots: 3 }
}

fn booted(host: &Host, vcpus: u8, devices: Vec<Box<dyn Device>>) -> Machine {
    let boot = Boot { devices, ..Boot::plain(Image::Bytes(tiny_guest::ELF), "") };
    let spare = Spare::make(host, shape(vcpus)).expect("a VM");
    let mut machine = spare.boot(host, boot).expect("boots");
    machine.run(&mut Operator::default()).expect("runs");
    machine
}

/// The guest writes a register.
fn set(machine: &mut Machine, offset: u64, value: u32) {
    set_of(machine, 0, offset, value);
}

/// The guest writes a register of the device in that slot.
fn set_of(machine: &mut Machine, slot: u8, offset: u64, value: u32) {
    ask(machine, protocol::AIM, (layout::device_page(slot) + offset) as u32).expect("aims");
    ask(machine, protocol::POKE, value).expect("writes");
}

/// The guest reads a register.
fn get(machine: &mut Machine, offset: u64) -> u32 {
    ask(machine, protocol::AIM, (layout::device_page(0) + offset) as u32).expect("aims");
    ask(machine, protocol::LOOK, 0).expect("reads")
}

fn table(queue: u32) -> u64 {
    0x28_0000 + u64::from(queue) * 0x4000
}

fn set_up(machine: &mut Machine) {
    set_up_in(machine, 0, 2);
    assert_ne!(get(machine, register::STATUS) & status::DRIVER_OK, 0);
}

/// Sets up the device in that slot, as the specification says.
fn set_up_in(machine: &mut Machine, slot: u8, queues: u32) {
    let set = |machine: &mut Machine, offset, value| set_of(machine, slot, offset, value);
    set(machine, register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    set(machine, register::DRIVER_FEATURES_SELECT, 1);
    set(machine, register::DRIVER_FEATURES, 1);
    set(machine, register::STATUS, status::FEATURES_OK);
    for queue in 0..queues {
        let own = table(queue + 4 * u32::from(slot));
        let at = own as u32;
        machine.memory.write(own, &[0; 0x3000]).expect("in memory");
        for (offset, value) in [
            (register::QUEUE_SELECT, queue),
            (register::QUEUE_SIZE, SIZE),
            (register::DESC_LOW, at),
            (register::AVAIL_LOW, at + 0x1000),
            (register::USED_LOW, at + 0x2000),
            (register::QUEUE_READY, 1),
        ] {
            set(machine, offset, value);
        }
    }
    set(machine, register::STATUS, status::DRIVER_OK);
}

fn half(machine: &Machine, at: u64) -> u16 {
    machine.memory.read_u32(at & !3).map(|word| (word >> (at % 4 * 8)) as u16).expect("in memory")
}

/// Makes a buffer available, and rings the doorbell with the guest's own instruction.
fn offer(machine: &mut Machine, queue: u32, address: u64, len: u32, flags: u16) {
    let (at, avail) = (table(queue), table(queue) + 0x1000);
    let index = half(machine, avail + 2);
    let slot = u64::from(index) % u64::from(SIZE);
    let bytes =
        [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &0_u16.to_le_bytes()].concat();
    machine.memory.write(at + slot * 16, &bytes).expect("in memory");
    machine.memory.write(avail + 4 + slot * 2, &(slot as u16).to_le_bytes()).expect("in memory");
    machine.memory.write(avail + 2, &index.wrapping_add(1).to_le_bytes()).expect("in memory");
    set(machine, register::QUEUE_NOTIFY, queue);
}

/// The devices work while the guest runs; it is kept busy until so many buffers came back.
fn until_used(machine: &mut Machine, queue: u32, count: u16) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while half(machine, table(queue) + 0x2002) != count {
        assert!(Instant::now() < deadline, "{} of {count}", half(machine, table(queue) + 0x2002));
        ask(machine, protocol::TIME, 0).expect("runs");
        thread::yield_now();
    }
}

fn send(machine: &mut Machine, wire: &UnixDatagram, word: &[u8], count: u16) {
    machine.memory.write(BUFFERS, word).expect("in memory");
    offer(machine, 1, BUFFERS, word.len() as u32, 0);
    until_used(machine, 1, count);
    let mut frame = [0; 64];
    let len = wire.recv(&mut frame).expect("in time");
    assert_eq!(&frame[..len], word);
}

fn received(machine: &mut Machine, count: u16) -> Vec<u8> {
    until_used(machine, 0, count);
    let at = table(0) + 0x2004 + u64::from(count - 1) % u64::from(SIZE) * 8;
    let mut bytes = vec![0; machine.memory.read_u32(at + 4).expect("in memory") as usize];
    machine.memory.read(BUFFERS + 0x1000, &mut bytes).expect("in memory");
    bytes
}

#[test]
fn a_guest_sends_and_receives_through_the_bus() {
    let Some(host) = host() else { return };
    let (device, wire) = Wire::pair();
    let mut machine = booted(&host, 1, vec![device]);
    assert_eq!(get(&mut machine, register::MAGIC), 0x7472_6976);
    assert_eq!(get(&mut machine, register::KIND), 1);
    set_up(&mut machine);
    send(&mut machine, &wire, b"out", 1);
    send(&mut machine, &wire, b"again", 2);
    // Used buffers and another configuration, both to be acknowledged.
    assert_eq!(get(&mut machine, register::INTERRUPT_STATUS), 3);
    set(&mut machine, register::INTERRUPT_ACK, 3);
    assert_eq!(get(&mut machine, register::INTERRUPT_STATUS), 0);
    assert_eq!((get(&mut machine, register::CONFIG), get(&mut machine, register::CONFIG_GENERATION)), (2, 2));
    offer(&mut machine, 0, BUFFERS + 0x1000, 64, WRITE);
    wire.send(b"in").expect("sends");
    assert_eq!(received(&mut machine, 1), b"in");
}

#[test]
fn what_came_while_the_machine_stood_still_is_there_when_it_goes_on() {
    let Some(host) = host() else { return };
    let (device, wire) = Wire::pair();
    let mut machine = booted(&host, 1, vec![device]);
    set_up(&mut machine);
    offer(&mut machine, 0, BUFFERS + 0x1000, 64, WRITE);
    until_used(&mut machine, 0, 0);
    wire.send(b"waits").expect("sends");
    thread::sleep(Duration::from_millis(100));
    assert_eq!(
        half(&machine, table(0) + 0x2002),
        0,
        "nothing is taken from a wire while the machine is paused"
    );
    assert_eq!(received(&mut machine, 1), b"waits");
}

/// State and memory without names.
struct Files {
    state: File,
    memory: File,
    diff: File,
}

impl Files {
    fn of(machine: &mut Machine) -> (Files, Kind) {
        let file = || tempfile::tempfile().expect("a file");
        let files = Files { state: file(), memory: file(), diff: file() };
        let save = Save {
            state: &files.state,
            memory: &files.memory,
            diff: Some(&files.diff),
            working_set: None,
            given_up: &|| false,
        };
        let kind = machine.save(save).expect("saves").kind;
        (files, kind)
    }

    fn wake(&self, host: &Host, base: &File, diff: Option<&File>, device: Box<dyn Device>) -> Machine {
        let state = read_state(&self.state).expect("a state");
        let spare = Spare::make(host, shape(state.vcpus.len() as u8)).expect("a VM");
        let wake = Wake { state: &state, memory: base, diff, devices: vec![device], com1: None };
        spare.wake(host, wake).expect("wakes")
    }
}

#[test]
fn a_device_goes_on_where_it_was_in_every_clone_and_from_a_diff() {
    let Some(host) = host() else { return };
    let (device, wire) = Wire::pair();
    let mut machine = booted(&host, 2, vec![device]);
    set_up(&mut machine);
    send(&mut machine, &wire, b"one", 1);
    offer(&mut machine, 0, BUFFERS + 0x1000, 64, WRITE);
    let (first, kind) = Files::of(&mut machine);
    assert_eq!(kind, Kind::Full);
    drop(machine);

    let mut clones = [(); 2].map(|()| {
        let (device, wire) = Wire::pair();
        // It is there before the machine is.
        wire.send(b"wake up").expect("sends");
        (first.wake(&host, &first.memory, None, device), wire)
    });
    for (clone, wire) in &mut clones {
        assert_eq!(received(clone, 1), b"wake up");
        send(clone, wire, b"two", 2);
        assert_eq!(get(clone, register::CONFIG), 2);
    }
    let [(mut one, wire), (mut two, _)] = clones;
    assert_eq!(ask(&mut one, protocol::TOUCH, 20).expect("touches"), 20);
    let (second, kind) = Files::of(&mut one);
    assert_eq!(kind, Kind::Diff);
    let written = second.diff.metadata().expect("a file").len();
    assert!((20 * 4096..1 << 20).contains(&written), "{written} bytes for a little change");
    assert_eq!(second.memory.metadata().expect("a file").len(), 0);
    // The saved one goes on as well.
    send(&mut one, &wire, b"three", 3);

    let (device, wire) = Wire::pair();
    let mut third = second.wake(&host, &first.memory, Some(&second.diff), device);
    assert_eq!(ask(&mut third, protocol::PEEK, 19).expect("peeks"), 20);
    assert_eq!(ask(&mut two, protocol::PEEK, 19).expect("peeks"), 0);
    send(&mut third, &wire, b"three, too", 3);
    // A diff of what woke from a diff is against the same base.
    let (fourth, kind) = Files::of(&mut third);
    assert_eq!(kind, Kind::Diff);
    let (device, wire) = Wire::pair();
    let mut fourth = fourth.wake(&host, &first.memory, Some(&fourth.diff), device);
    assert_eq!(ask(&mut fourth, protocol::PEEK, 19).expect("peeks"), 20);
    send(&mut fourth, &wire, b"four", 4);
}

#[test]
fn much_change_is_saved_as_a_whole() {
    let Some(host) = host() else { return };
    let (device, _wire) = Wire::pair();
    let mut machine = booted(&host, 1, vec![device]);
    let (first, _) = Files::of(&mut machine);
    let mut machine = first.wake(&host, &first.memory, None, Wire::pair().0);
    ask(&mut machine, protocol::TOUCH, MIB * 256 / 3).expect("touches");
    let (second, kind) = Files::of(&mut machine);
    assert_eq!(kind, Kind::Full);
    let mut machine = second.wake(&host, &second.memory, None, Wire::pair().0);
    assert_eq!(ask(&mut machine, protocol::PEEK, 1000).expect("peeks"), 1001);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let Some(host) = host() else { return };
    let mut machine = booted(&host, 1, vec![Wire::pair().0]);
    let (one, _) = Files::of(&mut machine);
    let mut woken = one.wake(&host, &one.memory, None, Wire::pair().0);
    let (two, kind) = Files::of(&mut woken);
    assert_eq!(kind, Kind::Diff);
    let (other, _) = Files::of(&mut machine);
    let tried = |files: &Files, base: &File, diff: Option<&File>, devices, vcpus| {
        let state = read_state(&files.state).expect("a state");
        let spare = Spare::make(&host, shape(vcpus)).expect("a VM");
        let wake = Wake { state: &state, memory: base, diff, devices, com1: None };
        spare.wake(&host, wake).map(|_| ()).expect_err("refused").to_string()
    };
    let wire = || vec![Wire::pair().0];
    let pairing = "the snapshot cannot be used: the memory file belongs to another snapshot";
    assert_eq!(tried(&two, &one.memory, None, wire(), 1), pairing, "without its diff");
    assert_eq!(tried(&two, &other.memory, Some(&two.diff), wire(), 1), pairing, "another base");
    assert_eq!(tried(&one, &one.memory, Some(&two.diff), wire(), 1), pairing, "another state");
    assert!(tried(&one, &one.memory, None, wire(), 2).contains("1 vCPUs, the machine 2"));
    assert!(tried(&one, &one.memory, None, vec![], 1).contains("1 devices, the machine 0"));
    assert!(
        tried(&one, &one.memory, None, vec![Box::new(Other(Arc::default()))], 1)
            .contains("another kind of device")
    );
}

/// Another device, which always wants more; it counts how often it was called.
struct Other(Arc<AtomicU64>);

impl Device for Other {
    fn kind(&self) -> u32 {
        4
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }
    fn features(&self) -> u64 {
        0
    }
    fn activate(&mut self, _: u64) {}
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn work(&mut self, _: usize, _: &mut [Queue], _: &GuestMemory) -> Result<Work, Broken> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Work { more: true, ..Work::default() })
    }
    fn reset(&mut self) {}
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
    fn restore(&mut self, _: &[u8]) -> Result<(), Mismatch> {
        Ok(())
    }
}

/// A guest that writes to everything harms nobody but itself.
#[test]
fn a_storm_of_accesses_leaves_the_machine_and_its_devices_whole() {
    let Some(host) = host() else { return };
    let (device, wire) = Wire::pair();
    let mut machine = booted(&host, 1, vec![device, Box::new(Other(Arc::default()))]);
    set_up(&mut machine);
    assert_eq!(ask(&mut machine, protocol::STORM, 20_000).expect("storms"), 20_000);
    assert_eq!(ask(&mut machine, protocol::COUNT, 0).expect("counts"), 1);
    set(&mut machine, register::STATUS, 0);
    set_up(&mut machine);
    send(&mut machine, &wire, b"still here", 1);
    let (files, _) = Files::of(&mut machine);
    assert!(read_state(&files.state).is_ok());
}

/// Doorbells, resets and broken rings, one after another, while the devices' thread is at work.
#[test]
fn resets_in_flight_and_rings_outside_of_memory_break_nothing() {
    let Some(host) = host() else { return };
    let (device, wire) = Wire::pair();
    let mut machine = booted(&host, 1, vec![device]);
    for round in 0..20_u32 {
        set_up(&mut machine);
        let far = if round % 2 == 0 { u64::MAX - 8 } else { u64::from(MIB) << 20 };
        offer(&mut machine, 0, far, u32::MAX, WRITE | NEXT);
        wire.send(b"lost").expect("sends");
        offer(&mut machine, 1, far, 4096, 0);
        set(&mut machine, register::QUEUE_NOTIFY, 77);
        set(&mut machine, register::STATUS, 0);
        assert_eq!(get(&mut machine, register::STATUS), 0);
    }
    // A used ring outside of memory is refused when the driver says that it is ready.
    set(&mut machine, register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    set(&mut machine, register::DRIVER_FEATURES_SELECT, 1);
    set(&mut machine, register::DRIVER_FEATURES, 1);
    set(&mut machine, register::STATUS, status::FEATURES_OK);
    set(&mut machine, register::QUEUE_SIZE, SIZE);
    set(&mut machine, register::USED_HIGH, 1);
    set(&mut machine, register::QUEUE_READY, 1);
    set(&mut machine, register::STATUS, status::DRIVER_OK);
    assert_eq!(get(&mut machine, register::STATUS) & status::NEEDS_RESET, status::NEEDS_RESET);
    set(&mut machine, register::STATUS, 0);
    // Whatever is still on the wire comes first.
    let drained = wire.set_nonblocking(true).map(|()| while wire.recv(&mut [0; 64]).is_ok() {});
    drained.and_then(|()| wire.set_nonblocking(false)).expect("a wire");
    set_up(&mut machine);
    send(&mut machine, &wire, b"whole", 1);
}

/// A device that always wants more takes turns with the others, and does not keep the machine from being paused.
#[test]
fn a_greedy_device_starves_nobody() {
    let Some(host) = host() else { return };
    let (device, wire) = Wire::pair();
    let calls = Arc::new(AtomicU64::new(0));
    let mut machine = booted(&host, 1, vec![device, Box::new(Other(calls.clone()))]);
    set_up_in(&mut machine, 1, 1);
    set_up(&mut machine);
    for count in 1..=20 {
        send(&mut machine, &wire, b"turn", count);
    }
    assert!(calls.load(Ordering::Relaxed) > 20, "it was greedy: {calls:?}");
    let dir = tempfile::tempdir().expect("a directory");
    Snapshot::take(&mut machine, &dir.path().join("asleep")).expect("a snapshot");
    let paused = calls.load(Ordering::Relaxed);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(calls.load(Ordering::Relaxed), paused, "nothing works while the machine stands still");
}
