//! A library OS that somebody built for Firecracker, unmodified: it boots, sleeps and wakes like any other guest.
//!
//! `CLOUDPAL_UNIKERNEL` names its kernel, an ELF file whose program never stops writing to the serial port, for example
//! Unikraft's app-helloworld with its spinner, or OSv's loader with a program in its ramfs that counts;
//! `CLOUDPAL_UNIKERNEL_ARGUMENTS` is its command line. On a KVM that is itself emulated by QEMU 7.2, OSv does not come
//! up in any VMM, Firecracker and QEMU included, unless XSAVE is kept from it.

use cloudpal_vmm::{Boot, Host, Image, Live, Save, Shape, Spare, Threads, Wake, snapshot::read_state};
use std::{
    env,
    fs::File,
    io::Read,
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

const MIB: u32 = 64;
const PATIENCE: Duration = Duration::from_secs(60);

struct Console(UnixStream);

impl Console {
    fn pair() -> (Console, File) {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs.set_nonblocking(true).expect("not blocking");
        ours.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        (Console(ours), File::from(OwnedFd::from(theirs)))
    }

    /// What it says from now on, until that is so many bytes.
    fn hear(&mut self, bytes: usize) -> String {
        let (deadline, mut heard, mut piece) = (Instant::now() + PATIENCE, Vec::new(), [0; 4096]);
        while heard.len() < bytes {
            assert!(Instant::now() < deadline, "it fell silent after {:?}", String::from_utf8_lossy(&heard));
            // Nothing for a while is no error.
            let read = self.0.read(&mut piece).unwrap_or(0);
            heard.extend_from_slice(&piece[..read]);
        }
        String::from_utf8_lossy(&heard).into_owned()
    }
}

fn launch(machine: cloudpal_vmm::Machine) -> Live {
    let live = machine.launch(&Threads::default()).expect("threads");
    live.resume();
    live
}

#[test]
fn boots_sleeps_and_wakes() {
    let Some(path) = env::var_os("CLOUDPAL_UNIKERNEL") else {
        eprintln!("SKIPPED: CLOUDPAL_UNIKERNEL names no library OS's kernel");
        return;
    };
    let arguments = env::var("CLOUDPAL_UNIKERNEL_ARGUMENTS").unwrap_or_default();
    let host = Host::open().expect("KVM");
    let kernel = File::open(&path).expect("the kernel");
    let shape = Shape::plain(MIB);
    let (mut console, theirs) = Console::pair();
    let begun = Instant::now();
    let boot =
        Boot { com1: Some(theirs), ..Boot::plain(Image::file(&kernel).expect("a kernel"), &arguments) };
    let mut live =
        launch(Spare::make(&host, shape).and_then(|spare| spare.boot(&host, boot)).expect("boots"));
    eprintln!("{}\nso much {:?} after the boot", console.hear(300), begun.elapsed());

    let file = || tempfile::tempfile().expect("a file");
    let (state_file, memory) = (file(), file());
    live.pause();
    live.save(Save {
        state: &state_file,
        memory: &memory,
        diff: None,
        working_set: None,
        given_up: &|| false,
    })
    .expect("saves");
    drop(live);
    for _ in 0..3 {
        let (mut console, theirs) = Console::pair();
        let spare = Spare::make(&host, shape).expect("a VM");
        let begun = Instant::now();
        let state = read_state(&state_file).expect("a state");
        let wake =
            Wake { state: &state, memory: &memory, diff: None, devices: Vec::new(), com1: Some(theirs) };
        let woken = launch(spare.wake(&host, wake).expect("wakes"));
        eprintln!("woken in {:?}", begun.elapsed());
        console.hear(600);
        drop(woken);
    }
}
