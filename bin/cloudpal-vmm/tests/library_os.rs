//! A library OS that somebody built for Firecracker, unmodified: it boots, sleeps and wakes like any other guest.
//!
//! `CLOUDPAL_UNIKERNEL` names its kernel, an ELF file whose program never stops writing to the serial port, for example
//! Unikraft's app-helloworld with its spinner, or OSv's loader with a program in its ramfs that counts.
//! `CLOUDPAL_UNIKERNEL_ARGUMENTS` is its command line, `CLOUDPAL_UNIKERNEL_SAYS` what it says over and over while it is
//! well, and not when it has crashed. `CLOUDPAL_UNIKERNEL_WITHOUT=xsave` keeps XSAVE from it: on a KVM that is itself
//! emulated by QEMU 7.2, OSv comes up in no VMM otherwise, Firecracker and QEMU included.

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

    /// What it says from now on, until that is in it for the third time.
    fn hear(&mut self, says: &str) -> String {
        let (deadline, mut heard, mut piece) = (Instant::now() + PATIENCE, String::new(), [0; 4096]);
        while heard.matches(says).count() < 3 {
            assert!(Instant::now() < deadline, "it does not say {says:?} any more, after {heard:?}");
            // Nothing for a while is no error.
            let read = self.0.read(&mut piece).unwrap_or(0);
            heard.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
        heard
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
    let says = env::var("CLOUDPAL_UNIKERNEL_SAYS").expect("CLOUDPAL_UNIKERNEL_SAYS");
    let host = Host::open().expect("KVM");
    let host = match env::var("CLOUDPAL_UNIKERNEL_WITHOUT").as_deref() {
        Ok("xsave") => host.without_xsave(),
        Ok(other) if !other.is_empty() => panic!("{other} cannot be kept from a guest"),
        _ => host,
    };
    let kernel = File::open(&path).expect("the kernel");
    let shape = Shape::plain(MIB);
    let (mut console, theirs) = Console::pair();
    let begun = Instant::now();
    let boot =
        Boot { com1: Some(theirs), ..Boot::plain(Image::file(&kernel).expect("a kernel"), &arguments) };
    let mut live =
        launch(Spare::make(&host, shape).and_then(|spare| spare.boot(&host, boot)).expect("boots"));
    let first = console.hear(&says);
    eprintln!("{first}\nso much {:?} after the boot", begun.elapsed());

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
        let heard = console.hear(&says);
        eprintln!("it goes on: {heard:?}");
        // It goes on from where it was, and does not begin anew.
        let begins = first.split(&says).next().unwrap_or_default();
        assert!(begins.is_empty() || !heard.contains(begins), "{heard}");
        drop(woken);
    }
}
