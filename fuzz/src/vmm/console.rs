//! virtio-console: the guest's ports, a client that comes and goes, and a log with a bound.

use crate::{
    driver::{BUFFERS, Rig, WRITE},
    program::{Bytes, Turn, run},
    vmm::Door,
};
use cloudpal_vmm::virtio::console::{CONTROL_RECEIVE, CONTROL_TRANSMIT, Console, End, Port};
use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
};

const MULTIPORT: u64 = 2;
const LOG_MAX: u64 = 1000;

/// A driver that has opened both ports.
fn open(rig: &mut Rig<Console>) {
    for nth in 0..8 {
        rig.chain(CONTROL_RECEIVE, nth, &[(BUFFERS + u64::from(nth) * 64, 64, WRITE)]);
    }
    for (id, event) in [(0, 0), (0, 3), (0, 6), (1, 3), (1, 6_u16)] {
        let message = [&u32::to_le_bytes(id)[..], &event.to_le_bytes(), &[1, 0]].concat();
        rig.put(BUFFERS + 0x1000, &message);
        rig.chain(CONTROL_TRANSMIT, 0, &[(BUFFERS + 0x1000, 8, 0)]);
        rig.notify(CONTROL_TRANSMIT);
    }
}

pub fn digest(input: &[u8]) {
    let mut program = Bytes(input);
    let Door { address, listener } = Door::open();
    let log = super::file(0);
    let appended = File::options().append(true).open(format!("/proc/self/fd/{}", log.as_raw_fd()));
    let control = End::channel(listener.into()).expect("a channel");
    let mut rig = Rig::ready(
        Console::new(vec![
            Port::new("cloudpal.control", control),
            Port::new("cloudpal.log", End::log(appended.expect("a log"), LOG_MAX)),
        ]),
        MULTIPORT,
    );
    if program.u8() & 1 == 0 {
        open(&mut rig);
    }
    let mut client: Option<UnixStream> = None;
    let mut chunk = [0; 4096];
    run(&mut rig, &mut program, |rig, turn| match turn {
        Turn::World(what, _) => {
            match what % 4 {
                0 => client = Door::connect(&address),
                1 => client = None,
                // A full socket is the socket's affair.
                _ => drop(client.as_mut().map(|client| client.write(&[what as u8; 700]))),
            }
            for queue in 0..rig.device.queue_count() {
                rig.notify(queue);
            }
        }
        Turn::After => {
            while let Some(Ok(1..)) = client.as_mut().map(|client| client.read(&mut chunk)) {}
            assert!(log.metadata().expect("a log").len() <= LOG_MAX);
        }
    });
}
