//! virtio-vsock: connections of both sides, credit, ends, resets; then a hostile driver with hostile clients.

mod driver;

use cloudpal_vmm::virtio::{
    Device,
    mmio::register,
    vsock::{BUFFER, CONNECTIONS_MAX, EVENT, HEADER, HOST_CID, Header, RECEIVE, STREAM, TRANSMIT, Vsock, op},
};
use driver::{BUFFERS, Move, Rig, WRITE, moves, state_is_picky};
use proptest::prelude::*;
use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
};

const CID: u32 = 3;
const OUT: u64 = BUFFERS + 0x10_0000;
const GUEST_PORT: u32 = 1024;

fn vsock(dir: &Path) -> Vsock {
    drop(std::fs::remove_file(dir.join("vsock")));
    let listener = UnixListener::bind(dir.join("vsock")).expect("a socket");
    Vsock::new(CID, listener.into()).expect("a device")
}

fn connect(dir: &Path, greeting: &str) -> UnixStream {
    let mut client = UnixStream::connect(dir.join("vsock")).expect("connects");
    client.set_nonblocking(true).expect("not blocking");
    client.write_all(greeting.as_bytes()).expect("greets");
    client
}

fn read(client: &mut UnixStream) -> Vec<u8> {
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(len @ 1..) = client.read(&mut chunk) {
        all.extend_from_slice(&chunk[..len]);
    }
    all
}

struct Guest {
    rig: Rig<Vsock>,
    taken: u16,
    /// What it says of its own room with each packet.
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Guest {
    fn new(device: Vsock) -> Guest {
        let rig = Rig::ready(device, 0);
        for head in 0..8 {
            rig.chain(RECEIVE, head, &[(BUFFERS + u64::from(head) * 0x1000, 0x1000, WRITE)]);
        }
        Guest { rig, taken: 0, buf_alloc: 1 << 16, fwd_cnt: 0 }
    }

    /// What came next: its header and its payload.
    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        self.rig.notify(RECEIVE);
        if self.rig.used(RECEIVE) == self.taken {
            return None;
        }
        let (head, len) = self.rig.answer(RECEIVE, self.taken);
        let bytes = self.rig.bytes(BUFFERS + u64::from(head) * 0x1000, len as usize);
        let header = Header::read(bytes.first_chunk::<HEADER>().expect("a header"));
        assert_eq!((header.from_cid, header.to_cid, header.kind), (HOST_CID, CID.into(), STREAM));
        assert_eq!(header.len as usize, bytes.len() - HEADER);
        self.taken += 1;
        self.rig.offer(RECEIVE, head as u16);
        Some((header, bytes[HEADER..].to_vec()))
    }

    fn say(&mut self, host_port: u32, op: u16, flags: u32, payload: &[u8]) {
        let header = Header {
            from_cid: CID.into(),
            to_cid: HOST_CID,
            from_port: GUEST_PORT,
            to_port: host_port,
            len: payload.len() as u32,
            kind: STREAM,
            op,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        };
        self.rig.put(OUT, &[&header.bytes(), payload].concat());
        self.rig.chain(TRANSMIT, 0, &[(OUT, (HEADER + payload.len()) as u32, 0)]);
        self.rig.notify(TRANSMIT);
    }

    fn expect(&mut self, op: u16) -> Header {
        let (header, _) = self.next().expect("a packet");
        assert_eq!(header.op, op);
        header
    }
}

/// A client that is connected to the guest, and the host's port.
fn connected(guest: &mut Guest, dir: &Path) -> (UnixStream, u32) {
    let mut client = connect(dir, "CONNECT 1024\n");
    let request = guest.expect(op::REQUEST);
    assert_eq!((request.to_port, request.buf_alloc), (GUEST_PORT, BUFFER));
    assert!(read(&mut client).is_empty(), "the guest has not taken it yet");
    guest.say(request.from_port, op::RESPONSE, 0, b"");
    assert_eq!(read(&mut client), format!("OK {}\n", request.from_port).as_bytes());
    (client, request.from_port)
}

#[test]
fn a_client_reaches_the_guest_and_bytes_flow_both_ways() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut guest = Guest::new(vsock(dir.path()));
    assert_eq!((guest.rig.get(register::KIND), u64::from_le_bytes(guest.rig.config(0))), (19, CID.into()));
    let (mut client, port) = connected(&mut guest, dir.path());
    client.write_all(b"hello").expect("writes");
    let (header, payload) = guest.next().expect("a packet");
    assert_eq!((header.op, payload.as_slice()), (op::RW, &b"hello"[..]));
    guest.say(port, op::RW, 0, b"hello, host");
    assert_eq!(read(&mut client), b"hello, host");
    guest.say(port, op::CREDIT_REQUEST, 0, b"");
    assert_eq!(guest.expect(op::CREDIT_UPDATE).fwd_cnt, 11);
    // The client ends first: half, then all.
    client.shutdown(std::net::Shutdown::Write).expect("ends");
    assert_eq!(guest.expect(op::SHUTDOWN).flags, 2);
    guest.say(port, op::RW, 0, b"still");
    assert_eq!(read(&mut client), b"still");
    drop(client);
    assert_eq!(guest.expect(op::SHUTDOWN).flags, 3);
    guest.say(port, op::SHUTDOWN, 3, b"");
    guest.expect(op::RST);
    assert_eq!((guest.next(), guest.rig.device.device.connections()), (None, 0));
}

#[test]
fn the_guest_reaches_who_waits_for_it_and_nobody_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut guest = Guest::new(vsock(dir.path()));
    let mut client = connect(dir.path(), "ACCEPT 52\nfirst words");
    guest.say(53, op::REQUEST, 0, b"");
    guest.expect(op::RST);
    guest.say(52, op::REQUEST, 0, b"");
    guest.expect(op::RESPONSE);
    assert_eq!(guest.next().expect("a packet").1, b"first words");
    assert_eq!(read(&mut client), b"OK 1024\n");
    guest.say(52, op::SHUTDOWN, 2, b"");
    let mut rest = [0; 1];
    assert_eq!(client.read(&mut rest).expect("an end"), 0);
    guest.say(52, op::RST, 0, b"");
    assert_eq!((guest.next(), guest.rig.device.device.connections()), (None, 0));
    guest.say(52, op::REQUEST, 0, b"");
    guest.expect(op::RST);
}

#[test]
fn nobody_gets_more_than_it_has_room_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut guest = Guest::new(vsock(dir.path()));
    guest.buf_alloc = 10;
    let (mut client, port) = connected(&mut guest, dir.path());
    client.write_all(b"0123456789abcdef").expect("writes");
    assert_eq!(guest.next().expect("a packet").1, b"0123456789");
    assert_eq!(guest.next(), None);
    guest.fwd_cnt = 4;
    guest.say(port, op::CREDIT_UPDATE, 0, b"");
    assert_eq!(guest.next().expect("a packet").1, b"abcd");
    // The client takes nothing: what its socket does not hold waits here, up to the credit, and not beyond.
    let piece = vec![7; 16 << 10];
    let mut said = 0;
    while guest.rig.device.device.connections() == 1 {
        guest.say(port, op::RW, 0, &piece);
        said += piece.len();
        assert!(said < 16 << 20, "it takes without end");
    }
    let last = std::iter::from_fn(|| guest.next()).last().expect("packets");
    assert_eq!(last.0.op, op::RST);
}

#[test]
fn what_waits_for_a_slow_client_comes_in_order_and_the_guest_hears_of_the_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut guest = Guest::new(vsock(dir.path()));
    let (mut client, port) = connected(&mut guest, dir.path());
    let (mut sent, mut forwarded, mut got) = (0_u32, 0, Vec::new());
    while got.len() < 2 << 20 {
        while sent - forwarded <= BUFFER - 4096 && sent < 2 << 20 {
            let piece: Vec<u8> = (sent..sent + 4096).map(|at| (at / 999) as u8).collect();
            guest.say(port, op::RW, 0, &piece);
            sent += 4096;
            forwarded =
                std::iter::from_fn(|| guest.next()).last().map_or(forwarded, |(header, _)| header.fwd_cnt);
        }
        got.extend(read(&mut client));
        forwarded =
            std::iter::from_fn(|| guest.next()).last().map_or(forwarded, |(header, _)| header.fwd_cnt);
    }
    assert!(got.iter().enumerate().all(|(at, byte)| *byte == (at / 999) as u8));
    assert!(forwarded > sent - BUFFER);
}

#[test]
fn what_is_no_greeting_is_dropped_and_more_than_there_is_room_for_waits() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut guest = Guest::new(vsock(dir.path()));
    for greeting in
        ["CONNECT\n", "CONNECT -1\n", "HELLO 5\n", "CONNECT 4294967296\n", "no end to this, no end to it"]
    {
        let mut client = connect(dir.path(), &format!("{greeting}     "));
        assert_eq!(guest.next(), None);
        assert_eq!(client.read(&mut [0; 1]).map_err(|error| error.kind()).ok(), None, "{greeting}");
        assert_eq!(guest.rig.device.device.connections(), 0, "{greeting}");
    }
    let waiting: Vec<_> = (0..CONNECTIONS_MAX + 5).map(|_| connect(dir.path(), "ACCEPT 1\n")).collect();
    assert_eq!((guest.next(), guest.rig.device.device.connections()), (None, CONNECTIONS_MAX));
    drop(waiting);
    guest.next();
    guest.next();
    assert_eq!(guest.rig.device.device.connections(), 0);
}

#[test]
fn after_a_wake_the_guest_is_told_that_its_connections_are_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut guest = Guest::new(vsock(dir.path()));
    let (_client, _) = connected(&mut guest, dir.path());
    guest.rig.put(OUT, &[0xff; 4]);
    guest.rig.chain(EVENT, 0, &[(OUT, 8, WRITE)]);
    guest.rig.notify(EVENT);
    assert_eq!(guest.rig.used(EVENT), 0, "while it is awake there is no event");
    let rig = guest.rig.restored(vsock(dir.path()));
    assert_eq!((rig.used(EVENT), rig.last_len(EVENT), rig.bytes(OUT, 4)), (1, 4, vec![0; 4]));
    let mut guest = Guest { rig, ..guest };
    connected(&mut guest, dir.path());
}

#[test]
fn its_state_is_these_bytes_and_no_others() {
    let dir = tempfile::tempdir().expect("a directory");
    let good = [1, 3, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(vsock(dir.path()).save(), good);
    state_is_picky(|| vsock(dir.path()), &good);
    assert!(vsock(dir.path()).restore(&[1, 4, 0, 0, 0, 0, 0, 0, 0]).is_err(), "another guest's");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn a_hostile_driver_and_hostile_clients_hurt_nobody(moves in prop::collection::vec(moves(3), 1..80)) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut guest = Guest::new(vsock(dir.path()));
        let mut clients = Vec::new();
        for step in moves {
            if let Move::World(what, which) = step {
                match what % 6 {
                    0 => clients.push(connect(dir.path(), "CONNECT 1024\n")),
                    1 => clients.push(connect(dir.path(), &format!("ACCEPT {}\n", which % 3))),
                    2 => drop(clients.pop()),
                    3 => clients.iter_mut().for_each(|client| drop(client.write(&[1; 5000]))),
                    _ => {
                        let port = if which & 8 == 0 { (1 << 30) + which % 5 } else { which % 3 };
                        let payload = vec![5; which as usize >> 8 & 0x3fff];
                        guest.say(port, (which >> 4 & 7) as u16 + 1, which & 3, &payload);
                    }
                }
                guest.rig.notify(RECEIVE);
            }
            guest.rig.suffer(step);
            prop_assert!(guest.rig.device.device.connections() <= CONNECTIONS_MAX);
        }
        guest.rig.comes_back();
    }
}
