//! virtio-console: ports by name, bytes both ways, clients that come and go, a log with a bound; then a hostile driver.

mod driver;

use cloudpal_vmm::virtio::{
    Device,
    console::{CONTROL_RECEIVE, CONTROL_TRANSMIT, Console, End, Port, receive_queue, transmit_queue},
    mmio::register,
};
use driver::{BUFFERS, Move, Rig, WRITE, moves, state_is_picky};
use proptest::prelude::*;
use rustix::event::epoll::{self, EventData, EventFlags};
use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::BorrowedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
};

const MULTIPORT: u64 = 2;
const LOG_MAX: u64 = 1000;
const CONTROL_IN: u64 = BUFFERS;
const CONTROL_OUT: u64 = BUFFERS + 0x1000;
const OUT: u64 = BUFFERS + 0x2000;
const IN: u64 = BUFFERS + 0x8000;
/// Queues of the control channel's port, and of the log's.
const RECEIVE: usize = receive_queue(0);
const TRANSMIT: usize = transmit_queue(0);
const LOG: usize = transmit_queue(1);

fn console(dir: &Path) -> Console {
    drop(std::fs::remove_file(dir.join("control")));
    let listener = UnixListener::bind(dir.join("control")).expect("a socket");
    let log = File::options().append(true).create(true).open(dir.join("log")).expect("a file");
    let control = End::channel(listener.into()).expect("a channel");
    Console::new(vec![
        Port::new("cloudpal.control", control),
        Port::new("cloudpal.log", End::log(log, LOG_MAX)),
    ])
}

fn connect(dir: &Path) -> UnixStream {
    let client = UnixStream::connect(dir.join("control")).expect("connects");
    client.set_nonblocking(true).expect("not blocking");
    client
}

/// What has come so far.
fn read(client: &mut UnixStream) -> Vec<u8> {
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(len @ 1..) = client.read(&mut chunk) {
        all.extend_from_slice(&chunk[..len]);
    }
    all
}

fn say(rig: &mut Rig<Console>, id: u32, event: u16, value: u16) {
    let message = [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat();
    rig.put(CONTROL_OUT, &message);
    rig.chain(CONTROL_TRANSMIT, 0, &[(CONTROL_OUT, 8, 0)]);
    rig.notify(CONTROL_TRANSMIT);
}

/// Port, event, value and name.
type Told = (u32, u16, u16, String);

/// A driver that has opened both ports, and what it was told meanwhile.
fn opened(console: Console) -> (Rig<Console>, Vec<Told>) {
    let mut rig = Rig::ready(console, MULTIPORT);
    for nth in 0..8 {
        rig.chain(CONTROL_RECEIVE, nth, &[(CONTROL_IN + u64::from(nth) * 64, 64, WRITE)]);
    }
    say(&mut rig, 0, 0, 1);
    for id in 0..2 {
        say(&mut rig, id, 3, 1);
        say(&mut rig, id, 6, 1);
    }
    let told = (0..rig.used(CONTROL_RECEIVE)).map(|nth| {
        let (head, len) = rig.answer(CONTROL_RECEIVE, nth);
        let bytes = rig.bytes(CONTROL_IN + u64::from(head) * 64, len as usize);
        let half = |at| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (u32::from(half(0)), half(4), half(6), String::from_utf8_lossy(&bytes[8..]).into_owned())
    });
    let told = told.collect();
    (rig, told)
}

fn write(rig: &mut Rig<Console>, queue: usize, head: u16, bytes: &[u8]) {
    let at = OUT + u64::from(head) * 0x400;
    rig.put(at, bytes);
    rig.chain(queue, head, &[(at, bytes.len() as u32, 0)]);
    rig.notify(queue);
}

#[test]
fn the_driver_learns_of_both_ports_by_name_and_finds_them_open() {
    let dir = tempfile::tempdir().expect("a directory");
    let (rig, told) = opened(console(dir.path()));
    let name = |id, event, name: &str| (id, event, 1, name.to_owned());
    let expected = [
        name(0, 1, ""),
        name(1, 1, ""),
        name(0, 7, "cloudpal.control"),
        name(0, 6, ""),
        name(1, 7, "cloudpal.log"),
        name(1, 6, ""),
    ];
    assert_eq!(told, expected);
    assert_eq!((rig.get(register::KIND), u32::from_le_bytes(rig.config(4))), (3, 2));
}

#[test]
fn bytes_flow_both_ways_and_wait_for_a_client_and_for_a_buffer() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut rig, _) = opened(console(dir.path()));
    write(&mut rig, TRANSMIT, 0, b"to nobody yet");
    assert_eq!(rig.used(TRANSMIT), 0);
    let mut client = connect(dir.path());
    assert!(rig.notify(TRANSMIT).interrupt);
    assert_eq!((read(&mut client), rig.used(TRANSMIT)), (b"to nobody yet".to_vec(), 1));
    client.write_all(b"a message").expect("writes");
    rig.notify(TRANSMIT);
    assert_eq!(rig.used(RECEIVE), 0);
    rig.chain(RECEIVE, 0, &[(IN, 2, WRITE), (IN + 0x100, 100, WRITE)]);
    assert!(rig.notify(RECEIVE).interrupt);
    assert_eq!((rig.bytes(IN, 2), rig.bytes(IN + 0x100, 7)), (b"a ".to_vec(), b"message".to_vec()));
    assert_eq!(rig.last_len(RECEIVE), 9);
}

#[test]
fn nothing_is_given_to_a_guest_that_has_closed_its_port() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut rig, _) = opened(console(dir.path()));
    say(&mut rig, 0, 6, 0);
    connect(dir.path()).write_all(b"hello").expect("writes");
    rig.chain(RECEIVE, 0, &[(IN, 100, WRITE)]);
    rig.notify(RECEIVE);
    assert_eq!(rig.used(RECEIVE), 0);
    // The client has gone meanwhile; what it said is delivered all the same.
    say(&mut rig, 0, 6, 1);
    assert_eq!((rig.used(RECEIVE), rig.bytes(IN, 5)), (1, b"hello".to_vec()));
}

#[test]
fn the_next_client_comes_in_when_the_last_is_gone_and_gets_half_a_chain_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut rig, _) = opened(console(dir.path()));
    let first = connect(dir.path());
    let mut second = connect(dir.path());
    // More than a socket holds: the first client reads none of it.
    let big = vec![b'x'; 1 << 20];
    rig.put(BUFFERS + 0x2_0000, &big);
    rig.chain(TRANSMIT, 0, &[(BUFFERS + 0x2_0000, 1 << 20, 0)]);
    rig.notify(TRANSMIT);
    assert_eq!((rig.used(TRANSMIT), read(&mut second).len()), (0, 0));
    drop(first);
    let mut got = 0;
    for _ in 0..1000 {
        rig.notify(TRANSMIT);
        got += read(&mut second).len();
    }
    assert_eq!((got, rig.used(TRANSMIT)), (big.len(), 1));
}

#[test]
fn a_log_takes_what_fits_and_never_holds_the_guest_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut rig, _) = opened(console(dir.path()));
    for head in 0..6 {
        write(&mut rig, LOG, head, &[b'a' + head as u8; 300]);
    }
    let log = std::fs::read(dir.path().join("log")).expect("a log");
    assert_eq!((log.len(), log[299], log[300], rig.used(LOG)), (1000, b'a', b'b', 6));
    // Somebody cuts it: there is room again.
    File::options().write(true).open(dir.path().join("log")).and_then(|log| log.set_len(0)).expect("cut");
    write(&mut rig, LOG, 6, b"again");
    assert_eq!(std::fs::read(dir.path().join("log")).expect("a log"), b"again");
}

#[test]
fn a_wake_goes_on_where_it_stood_with_a_new_connection() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut rig, _) = opened(console(dir.path()));
    let first = connect(dir.path());
    write(&mut rig, TRANSMIT, 0, b"before");
    drop(first);
    rig.notify(TRANSMIT);
    write(&mut rig, TRANSMIT, 1, b"for the next one");
    assert_eq!(rig.used(TRANSMIT), 1);
    rig.chain(RECEIVE, 0, &[(IN, 100, WRITE)]);
    let mut rig = rig.restored(console(dir.path()));
    let mut client = connect(dir.path());
    client.write_all(b"hello").expect("writes");
    rig.notify(TRANSMIT);
    assert_eq!(read(&mut client), b"for the next one");
    assert_eq!((rig.used(RECEIVE), rig.bytes(IN, 5)), (1, b"hello".to_vec()));
    // Nothing was said to the guest: to it, the port was open all the time.
    assert_eq!(rig.used(CONTROL_RECEIVE), 6);
}

#[test]
fn its_state_is_these_bytes_and_no_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let (rig, _) = opened(console(dir.path()));
    assert_eq!(rig.device.save().device, [1, 8, 8]);
    assert_eq!(console(dir.path()).save(), [1, 0, 0]);
    state_is_picky(|| console(dir.path()), &[1, 15, 8]);
    assert!(console(dir.path()).restore(&[1, 16, 0]).is_err());
}

#[test]
fn a_driver_without_ports_is_heard_by_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut rig = Rig::ready(console(dir.path()), 0);
    let mut client = connect(dir.path());
    write(&mut rig, TRANSMIT, 0, b"hello");
    assert_eq!((rig.used(TRANSMIT), read(&mut client).len()), (1, 0));
}

/// The machine watches one descriptor edge by edge; behind it clients come, speak, read and go.
#[test]
fn each_edge_of_a_client_is_one_of_the_source() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut rig, _) = opened(console(dir.path()));
    let sources = rig.device.device.sources();
    let [source] = sources[..] else { panic!("{sources:?}") };
    let outer = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    // SAFETY: the device keeps its source open for as long as it lives.
    #[allow(unsafe_code)]
    let fd = unsafe { BorrowedFd::borrow_raw(source.fd) };
    epoll::add(&outer, fd, EventData::new_u64(0), EventFlags::IN | EventFlags::ET).expect("watched");
    let edge = |rig: &mut Rig<Console>| {
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }];
        let some = epoll::wait(&outer, &mut events, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 }));
        let some = some.expect("waits") > 0;
        rig.notify(source.queue);
        some
    };
    edge(&mut rig);
    assert!(!edge(&mut rig), "nothing happened");
    let mut client = connect(dir.path());
    assert!(edge(&mut rig), "a client came");
    edge(&mut rig);
    assert!(!edge(&mut rig), "nothing happened");
    client.write_all(b"x").expect("writes");
    assert!(edge(&mut rig), "it spoke");
    assert!(!edge(&mut rig), "it did not speak");
    client.write_all(b"x").expect("writes");
    assert!(edge(&mut rig), "it spoke again, although nobody had listened");
    rig.chain(TRANSMIT, 0, &[(BUFFERS, 2 << 20, 0)]);
    rig.notify(TRANSMIT);
    assert_eq!(rig.used(TRANSMIT), 0);
    for _ in 0..1000 {
        if rig.used(TRANSMIT) == 0 && !read(&mut client).is_empty() {
            assert!(edge(&mut rig), "there is room again");
        }
    }
    assert_eq!(rig.used(TRANSMIT), 1);
    edge(&mut rig);
    drop(client);
    assert!(edge(&mut rig), "it went");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn a_hostile_driver_gets_no_further_than_its_own_queues(moves in prop::collection::vec(moves(6), 1..60)) {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut rig, _) = opened(console(dir.path()));
        let mut client = None;
        for step in moves {
            if let Move::World(what, _) = step {
                match what % 4 {
                    0 => client = Some(connect(dir.path())),
                    1 => client = None,
                    // A full socket is the socket's affair.
                    _ => drop(client.as_mut().map(|client| client.write(&[what as u8; 700]))),
                }
            }
            rig.suffer(step);
            drop(client.as_mut().map(read));
            let log = std::fs::metadata(dir.path().join("log")).expect("a log").len();
            prop_assert!(log <= LOG_MAX);
        }
        rig.comes_back();
    }
}
