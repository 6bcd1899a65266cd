//! The VMM with a real Linux guest: the distribution's kernel and our initramfs. Only where KVM runs a guest's
//! instructions itself: where it emulates each, a kernel takes hours. `CLOUDPAL_GUEST_DIR` says where kernel and
//! initramfs are, and that this is such a host.

use cloudpal_vmm::{
    Boot, End, Host, Image, Live, Machine, Save, Shape, Spare, Threads, Wake,
    snapshot::{Kind, read_state},
    virtio::{
        Device,
        console::{Console, End as PortEnd, Port},
    },
};
use std::{
    env,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    os::fd::OwnedFd,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::{Duration, Instant},
};

const MIB: u32 = 256;
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 pci=off tsc_early_khz=1000000 loglevel=7 noxsave";

/// `None`, said aloud, where there is none.
fn guest_dir() -> Option<PathBuf> {
    let dir = env::var_os("CLOUDPAL_GUEST_DIR").map(PathBuf::from);
    if dir.is_none() {
        eprintln!("SKIPPED: CLOUDPAL_GUEST_DIR names no directory with a kernel: KVM may be emulated here");
    }
    dir
}

/// A guest's serial port, and what came from it.
struct Com1 {
    stream: UnixStream,
    text: String,
}

impl Com1 {
    fn pair() -> (Com1, File) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs.set_nonblocking(true).expect("not blocking");
        ours.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        (Com1 { stream: ours, text: String::new() }, File::from(OwnedFd::from(theirs)))
    }

    fn until(&mut self, word: &str, seconds: u64) {
        self.while_not(seconds, word, |text| text.contains(word));
    }

    fn until_end(&mut self, live: &Live, seconds: u64) -> End {
        let mut end = None;
        self.while_not(seconds, "end", |_| {
            end = live.ended().try_recv().ok();
            end.is_some()
        });
        end.expect("an end")
    }

    fn while_not(&mut self, seconds: u64, what: &str, mut done: impl FnMut(&str) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut piece = [0; 4096];
        while !done(&self.text) {
            assert!(Instant::now() < deadline, "no {what:?} in {seconds} s, but:\n{}", self.text);
            if let Ok(len) = self.stream.read(&mut piece) {
                let text = String::from_utf8_lossy(&piece[..len]);
                if env::var_os("CLOUDPAL_SHOW_CONSOLE").is_some() {
                    eprint!("{text}");
                }
                self.text += &text;
            }
        }
    }
}

const SLOTS: u8 = 4;

/// `None`, said aloud, where no kernel can be booted.
fn host() -> Option<Host> {
    guest_dir().map(|_| Host::open().expect("KVM"))
}

fn boot(host: &Host, kernel: &str, vcpus: u8, com1: File) -> Live {
    boot_with(host, kernel, vcpus, com1, Vec::new())
}

fn boot_with(host: &Host, kernel: &str, vcpus: u8, com1: File, devices: Vec<Box<dyn Device>>) -> Live {
    let dir = guest_dir().expect("a guest");
    let open = |name: &str| File::open(dir.join(name)).expect("a guest's file");
    let (kernel, initramfs) = (open(kernel), open("initramfs.img"));
    let boot = Boot {
        kernel: Image::file(&kernel).expect("a kernel"),
        initramfs: Some(Image::file(&initramfs).expect("an initramfs")),
        command_line: COMMAND_LINE,
        devices,
        com1: Some(com1),
    };
    let shape = Shape { memory_mib: MIB, vcpus, slots: SLOTS };
    let machine = Spare::make(host, shape).and_then(|spare| spare.boot(host, boot)).expect("boots");
    launch(machine)
}

fn launch(machine: Machine) -> Live {
    let live = machine.launch(&Threads::default()).expect("threads");
    live.resume();
    live
}

/// A snapshot without names.
struct Files {
    state: File,
    memory: File,
    diff: File,
}

impl Files {
    fn fresh() -> Files {
        let file = || tempfile::tempfile().expect("a file");
        Files { state: file(), memory: file(), diff: file() }
    }

    fn save(&self, live: &mut Live, with_diff: bool) -> Kind {
        let started = Instant::now();
        live.pause();
        let paused = started.elapsed();
        let diff = with_diff.then_some(&self.diff);
        let saved = live
            .save(Save {
                state: &self.state,
                memory: &self.memory,
                diff,
                working_set: None,
                given_up: &|| false,
            })
            .expect("saves");
        eprintln!("paused after {paused:?}, saved after {:?}: {saved:?}", started.elapsed());
        saved.kind
    }

    fn wake(&self, host: &Host, base: &File, diff: Option<&File>, vcpus: u8) -> (Live, Com1) {
        self.wake_with(host, base, diff, vcpus, Vec::new())
    }

    fn wake_with(
        &self,
        host: &Host,
        base: &File,
        diff: Option<&File>,
        vcpus: u8,
        devices: Vec<Box<dyn Device>>,
    ) -> (Live, Com1) {
        let (com1, theirs) = Com1::pair();
        let spare = Spare::make(host, Shape { memory_mib: MIB, vcpus, slots: SLOTS }).expect("a VM");
        let started = Instant::now();
        let state = read_state(&self.state).expect("a state");
        let wake = Wake { state: &state, memory: base, diff, devices, com1: Some(theirs) };
        let live = launch(spare.wake(host, wake).expect("wakes"));
        eprintln!("woken after {:?}", started.elapsed());
        (live, com1)
    }
}

#[test]
fn linux_reaches_its_init_with_one_and_with_two_cpus() {
    for vcpus in [1, 2] {
        let Some(host) = host() else { return };
        let (mut com1, theirs) = Com1::pair();
        let started = Instant::now();
        let live = boot(&host, "vmlinuz", vcpus, theirs);
        com1.until("Run /init as init process", 60);
        eprintln!("{vcpus} vCPUs: init after {:?}", started.elapsed());
        assert!(com1.text.contains(&format!("Brought up 1 node, {vcpus} CPU")), "{}", com1.text);
        assert!(com1.text.contains("Hypervisor detected: KVM"), "{}", com1.text);
        drop(live);
    }
}

#[test]
fn a_bzimage_boots_as_well() {
    let Some(host) = host() else { return };
    let (mut com1, theirs) = Com1::pair();
    let live = boot(&host, "bzimage", 1, theirs);
    com1.until("Run /init as init process", 120);
    drop(live);
}

/// Without devices its init finds no control channel, and gives up.
#[test]
fn a_guest_that_switches_itself_off_or_panics_is_over() {
    let Some(host) = host() else { return };
    let (mut com1, theirs) = Com1::pair();
    let live = boot(&host, "vmlinuz", 1, theirs);
    com1.until("Run /init as init process", 60);
    let end = com1.until_end(&live, 90);
    assert!(matches!(end, End::Off | End::Reset), "{end:?}");
}

/// The init waits for half a minute before it gives up; meanwhile it is asleep, twice. Its time goes on where it stood.
#[test]
fn linux_sleeps_and_wakes_twice_with_its_cpus() {
    for vcpus in [1, 2] {
        let Some(host) = host() else { return };
        let (mut com1, theirs) = Com1::pair();
        let mut live = boot(&host, "vmlinuz", vcpus, theirs);
        com1.until("Run /init as init process", 60);
        let first = Files::fresh();
        assert_eq!(first.save(&mut live, true), Kind::Full, "there is no base yet");
        drop(live);

        let (mut live, mut com1) = first.wake(&host, &first.memory, None, vcpus);
        std::thread::sleep(Duration::from_secs(2));
        let second = Files::fresh();
        assert_eq!(second.save(&mut live, true), Kind::Diff);
        // The one that was saved runs on, as if nothing had been.
        live.resume();
        assert_eq!(com1.until_end(&live, 90), End::Off);
        drop(live);

        let (live, mut com1) = second.wake(&host, &first.memory, Some(&second.diff), vcpus);
        assert_eq!(com1.until_end(&live, 90), End::Off);
        assert!(com1.text.contains("neither a virtio console nor a vsock"), "{}", com1.text);
    }
}

/// The control port, and where a host attaches to it.
fn control(dir: &std::path::Path) -> Vec<Box<dyn Device>> {
    let listener = UnixListener::bind(dir.join("control")).expect("a socket");
    let port = Port::new("cloudpal.control", PortEnd::channel(listener.into()).expect("a channel"));
    vec![Box::new(Console::new(vec![port]))]
}

/// Attaches, and returns the first line that the guest says.
fn hello(dir: &std::path::Path) -> (UnixStream, String) {
    let stream = UnixStream::connect(dir.join("control")).expect("attaches");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let mut reader = BufReader::new(stream.try_clone().expect("twice"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("a line in time");
    (stream, line)
}

#[test]
fn the_init_says_hello_and_answers_after_every_wake_with_one_cpu() {
    hello_and_wakes(1);
}

#[test]
fn the_init_says_hello_and_answers_after_every_wake_with_two_cpus() {
    hello_and_wakes(2);
}

fn hello_and_wakes(vcpus: u8) {
    let Some(host) = host() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let (_com1, theirs) = Com1::pair();
    let started = Instant::now();
    let mut live = boot_with(&host, "vmlinuz", vcpus, theirs, control(dir.path()));
    let (stream, line) = hello(dir.path());
    eprintln!("{vcpus} vCPUs: hello after {:?}: {line}", started.elapsed());
    assert!(line.contains("hello"), "{line}");
    drop(stream);
    let files = Files::fresh();
    files.save(&mut live, false);
    drop(live);

    for clone in 0..3 {
        let dir = tempfile::tempdir().expect("a directory");
        let started = Instant::now();
        let devices = control(dir.path());
        let (live, _com1) = files.wake_with(&host, &files.memory, None, vcpus, devices);
        let stream = UnixStream::connect(dir.path().join("control")).expect("attaches");
        for round in 0..3 {
            ask(&stream, round);
            eprintln!("{vcpus} vCPUs, clone {clone}: answer {round} after {:?}", started.elapsed());
        }
        drop(live);
    }
}

/// Falling asleep, and each time it is given up: with a question on its way to the guest, its answer on its way back,
/// at every distance from the doorbell; saved at times, and standing still for longer than a timer's tick at others.
#[test]
fn a_guest_runs_on_after_two_hundred_pauses() {
    for vcpus in [1, 2] {
        let Some(host) = host() else { return };
        let dir = tempfile::tempdir().expect("a directory");
        let (_com1, theirs) = Com1::pair();
        let mut live = boot_with(&host, "vmlinuz", vcpus, theirs, control(dir.path()));
        let (stream, line) = hello(dir.path());
        assert!(line.contains("hello"), "{line}");
        let files = Files::fresh();
        for round in 0..200 {
            let started = Instant::now();
            say(&stream, round);
            std::thread::sleep(Duration::from_micros(u64::from(round % 23) * 150));
            live.pause();
            match round % 25 {
                0 => drop(files.save(&mut live, false)),
                12 => std::thread::sleep(Duration::from_millis(120)),
                _ => {}
            }
            live.resume();
            hear(&stream, round);
            if round % 25 == 0 {
                eprintln!("{vcpus} vCPUs, pause {round}: answered after {:?}", started.elapsed());
            }
        }
        drop(live);
    }
}

fn ask(stream: &UnixStream, id: u32) {
    say(stream, id);
    hear(stream, id);
}

fn say(mut stream: &UnixStream, id: u32) {
    writeln!(stream, "\n{{\"id\":{id},\"ask\":{{\"ask\":\"stats\"}}}}").expect("writes");
}

fn hear(stream: &UnixStream, id: u32) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("a line in time");
    // It was not told what to run, and says so: that is an answer, too.
    assert!(line.contains("reply") && line.contains(&format!("\"id\":{id}")), "{line}");
}
