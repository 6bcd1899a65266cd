//! The VMM with a real Linux guest: the distribution's kernel and our initramfs. Only where KVM runs a guest's
//! instructions itself: where it emulates each, a kernel takes hours. `CLOUDPAL_GUEST_DIR` says where kernel and
//! initramfs are, and that this is such a host.

use cloudpal_vmm::{Boot, End, Host, Image, Live, Shape, Spare, Threads};
use std::{
    env,
    fs::File,
    io::Read,
    os::fd::OwnedFd,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

const MIB: u32 = 256;
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 pci=off tsc_early_khz=1000000 loglevel=7";

/// `None`, said aloud, where no kernel can be booted.
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
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut piece = [0; 4096];
        while !self.text.contains(word) {
            assert!(Instant::now() < deadline, "no {word:?} in {seconds} s, but:\n{}", self.text);
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

fn boot(kernel: &str, vcpus: u8, com1: File) -> Option<Live> {
    let dir = guest_dir()?;
    let host = Host::open().expect("KVM");
    let open = |name: &str| File::open(dir.join(name)).expect("a guest's file");
    let (kernel, initramfs) = (open(kernel), open("initramfs.img"));
    let shape = Shape { memory_mib: MIB, vcpus, slots: 4 };
    let boot = Boot {
        kernel: Image::file(&kernel).expect("a kernel"),
        initramfs: Some(Image::file(&initramfs).expect("an initramfs")),
        command_line: COMMAND_LINE,
        devices: Vec::new(),
        com1: Some(com1),
    };
    let machine = Spare::make(&host, shape).and_then(|spare| spare.boot(&host, boot)).expect("boots");
    let live = machine.launch(&Threads::default()).expect("threads");
    live.resume();
    Some(live)
}

#[test]
fn linux_reaches_its_init_with_one_and_with_two_cpus() {
    for vcpus in [1, 2] {
        let (mut com1, theirs) = Com1::pair();
        let started = Instant::now();
        let Some(live) = boot("vmlinuz", vcpus, theirs) else { return };
        com1.until("Run /init as init process", 60);
        eprintln!("{vcpus} vCPUs: init after {:?}", started.elapsed());
        assert!(com1.text.contains(&format!("Brought up 1 node, {vcpus} CPU")), "{}", com1.text);
        assert!(com1.text.contains("Hypervisor detected: KVM"), "{}", com1.text);
        drop(live);
    }
}

#[test]
fn a_bzimage_boots_as_well() {
    let (mut com1, theirs) = Com1::pair();
    let Some(live) = boot("bzimage", 1, theirs) else { return };
    com1.until("Run /init as init process", 120);
    drop(live);
}

/// Without devices its init finds no control channel, and gives up.
#[test]
fn a_guest_that_switches_itself_off_or_panics_is_over() {
    let (mut com1, theirs) = Com1::pair();
    let Some(live) = boot("vmlinuz", 1, theirs) else { return };
    com1.until("Run /init as init process", 60);
    let end = live.ended().recv_timeout(Duration::from_secs(90)).expect("it ends");
    assert!(matches!(end, End::Off | End::Reset), "{end:?}");
}
