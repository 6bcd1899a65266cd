//! virtio-net. A socket that keeps frames apart stands for the TAP.

use crate::{
    driver::Rig,
    program::{Bytes, Turn, run},
};
use cloudpal_vmm::virtio::{
    mmio::QUEUE_SIZE_MAX,
    net::{FRAME_MAX, Net, Settings, feature},
};
use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
};

pub fn digest(input: &[u8]) {
    let mut program = Bytes(input);
    let flags = program.u8();
    let (ours, wire) = UnixDatagram::pair().expect("a pair of sockets");
    wire.set_nonblocking(true).expect("not blocking");
    let settings = Settings { mac: [2, 0, 0, 0, 0, 1], held: flags & 2 != 0, ..Settings::default() };
    let net = Net::new(File::from(OwnedFd::from(ours)), settings).expect("a device");
    let handle = net.handle();
    let mut rig = Rig::ready(net, if flags & 1 != 0 { feature::MRG_RXBUF } else { 0 });
    let mut frame = vec![0; FRAME_MAX + 1];
    run(&mut rig, &mut program, |rig, turn| match turn {
        Turn::World(u32::MAX, _) => handle.release(),
        Turn::World(len, _) => {
            // A full wire is the wire's affair.
            let _ = wire.send(&vec![7; len as usize % 3000]);
            rig.notify(0);
        }
        Turn::After => {
            let mut frames = 0;
            while let Ok(len) = wire.recv(&mut frame) {
                assert!((1..=FRAME_MAX).contains(&len), "a frame of {len} bytes");
                frames += 1;
            }
            assert!(frames <= 2 * QUEUE_SIZE_MAX, "{frames} frames in one step");
        }
    });
    let counts = handle.counts();
    assert!(counts.received_bytes <= counts.received_frames * 3000);
}
