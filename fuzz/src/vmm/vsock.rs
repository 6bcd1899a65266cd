//! virtio-vsock: a hostile guest on the one side, hostile clients on the other.

use crate::{
    driver::{BUFFERS, Rig, WRITE},
    program::{Bytes, Turn, run},
    vmm::Door,
};
use cloudpal_vmm::virtio::vsock::{
    CONNECTIONS_MAX, HEADER, HOST_CID, Header, RECEIVE, STREAM, TRANSMIT, Vsock,
};
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

const CID: u32 = 3;
const OUT: u64 = BUFFERS + 0x10_0000;
const GUEST_PORT: u32 = 1024;
/// The host's ports for connections from its side begin here.
const HOST_PORTS: u32 = 1 << 30;

fn say(rig: &mut Rig<Vsock>, what: u32, which: u32) {
    let len = (which >> 8 & 0x3fff) as usize;
    let header = Header {
        from_cid: CID.into(),
        to_cid: HOST_CID,
        from_port: GUEST_PORT,
        to_port: if which & 8 == 0 { HOST_PORTS + which % 5 } else { which % 3 },
        len: len as u32,
        kind: STREAM,
        op: (which >> 4 & 7) as u16 + 1,
        flags: which & 3,
        buf_alloc: what,
        fwd_cnt: what >> 16,
    };
    rig.put(OUT, &[&header.bytes()[..], &vec![5; len][..]].concat());
    rig.chain(TRANSMIT, 0, &[(OUT, (HEADER + len) as u32, 0)]);
    rig.notify(TRANSMIT);
}

fn greet(clients: &mut Vec<UnixStream>, door: &std::os::unix::net::SocketAddr, greeting: &[u8]) {
    let Some(mut client) = Door::connect(door) else { return };
    // A full socket is the socket's affair.
    let _ = client.write(greeting);
    clients.push(client);
}

pub fn digest(input: &[u8]) {
    let mut program = Bytes(input);
    let Door { address, listener } = Door::open();
    let mut rig = Rig::ready(Vsock::new(CID, listener.into()).expect("a device"), 0);
    for head in 0..8 {
        rig.chain(RECEIVE, head, &[(BUFFERS + u64::from(head) * 0x1000, 0x1000, WRITE)]);
    }
    let (mut clients, mut chunk) = (Vec::new(), [0; 4096]);
    run(&mut rig, &mut program, |rig, turn| {
        let Turn::World(what, which) = turn else {
            assert!(rig.device.device.connections() <= CONNECTIONS_MAX);
            return;
        };
        match what % 8 {
            0 => greet(&mut clients, &address, b"CONNECT 1024\n"),
            1 => greet(&mut clients, &address, format!("ACCEPT {}\n", which % 3).as_bytes()),
            2 => greet(&mut clients, &address, &[&which.to_le_bytes()[..], b"\n"].concat()),
            3 => drop(clients.pop()),
            4 => clients.iter_mut().for_each(|client| drop(client.write(&[1; 5000]))),
            5 => clients.iter_mut().for_each(|client| drop(client.read(&mut chunk))),
            _ => say(rig, what, which),
        }
        rig.notify(RECEIVE);
    });
}
