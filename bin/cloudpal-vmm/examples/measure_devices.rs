//! Bytes a second through the block and network devices' code, beside the same system calls without a device: what is
//! missing to a ratio of 1 is the device's cost. The medians of five rounds in turns, as JSON.
//!
//! `cargo run --release -p cloudpal-vmm --example measure_devices`

#[path = "../tests/driver/mod.rs"]
mod driver;

use cloudpal_vmm::virtio::{
    Device,
    blk::Blk,
    mmio::{FEATURE_EVENT_INDEX, QUEUE_SIZE_MAX},
    net::{HEADER, Net, RECEIVE, Settings, TRANSMIT, feature},
    rate::Limiter,
};
use driver::{BUFFERS, Rig, WRITE};
use serde_json::{Value, json};
use std::{
    fs::File,
    hint::black_box,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{fs::FileExt, net::UnixDatagram},
    },
    time::Instant,
};

const ROUNDS: usize = 5;
const DISK: u64 = 64 << 20;
/// Each measurement moves so much.
const BYTES: usize = 64 << 20;
const FRAMES_MAX: usize = 20_000;
/// A driver's buffers for frames that may be merged.
const BUFFER: u32 = 2048;
/// Chains that are offered at once.
const BATCH: u16 = 32;
const DATA: u64 = BUFFERS + 0x1_0000;
const HEADER_LEN: u32 = HEADER as u32;

/// Mebibytes a second.
fn speed(bytes: usize, mut each: impl FnMut(usize) -> io::Result<usize>) -> io::Result<f64> {
    let (start, mut moved) = (Instant::now(), 0);
    while moved < bytes {
        moved += each(moved)?;
    }
    Ok(moved as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64())
}

fn of_device<D: Device>(device: D, features: u64) -> Rig<D> {
    let mut rig = Rig::fresh(device);
    rig.set_up(features | FEATURE_EVENT_INDEX, QUEUE_SIZE_MAX);
    rig
}

/// Requests of one size, in a batch, one behind the other on the disk.
fn block(rig: &mut Rig<Blk>, write: bool, size: usize) -> io::Result<f64> {
    speed(BYTES, |moved| {
        for nth in 0..BATCH {
            let sector = ((moved + usize::from(nth) * size) as u64 % DISK) / 512;
            let at = BUFFERS + u64::from(nth) * 32;
            rig.put(at, &[&u32::from(write).to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
            let flags = if write { 0 } else { WRITE };
            rig.chain(0, nth * 3, &[(at, 16, 0), (DATA, size as u32, flags), (at + 16, 1, WRITE)]);
        }
        rig.drain(0);
        assert_eq!(rig.bytes(BUFFERS + 16, 1), [0], "the request failed");
        Ok(size * usize::from(BATCH))
    })
}

fn plain_block(file: &File, write: bool, size: usize) -> io::Result<f64> {
    let mut buffer = vec![1; size];
    speed(BYTES, |moved| {
        let at = moved as u64 % DISK;
        if write {
            file.write_all_at(&buffer, at)?
        } else {
            file.read_exact_at(&mut buffer, at)?
        }
        Ok(black_box(buffer.len()))
    })
}

/// A frame comes in and a frame goes out, in turns; a socket stands for the TAP.
fn network(rig: &mut Rig<Net>, wire: &UnixDatagram, size: usize) -> io::Result<f64> {
    let frame = vec![1; size];
    let mut received = vec![0; size];
    speed(BYTES.min(size * FRAMES_MAX), |_| {
        wire.send(&frame)?;
        rig.chain(RECEIVE, 0, &[(DATA, HEADER_LEN + BUFFER.max(size as u32), WRITE)]);
        rig.notify(RECEIVE);
        rig.chain(TRANSMIT, 0, &[(DATA, HEADER_LEN + size as u32, 0)]);
        rig.notify(TRANSMIT);
        Ok(size + wire.recv(&mut received)?)
    })
}

fn plain_network(mut ours: &File, wire: &UnixDatagram, size: usize) -> io::Result<f64> {
    let (mut frame, mut excess) = (vec![1; size], [0]);
    speed(BYTES.min(size * FRAMES_MAX), |_| {
        wire.send(&frame)?;
        let received =
            ours.read_vectored(&mut [IoSliceMut::new(&mut frame), IoSliceMut::new(&mut excess)])?;
        let sent = ours.write_vectored(&[IoSlice::new(&frame)])?;
        assert_eq!((received, sent), (size, size));
        Ok(size + wire.recv(&mut frame)?)
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Both take turns; the first round warms up.
fn beside(
    mut device: impl FnMut() -> io::Result<f64>,
    mut plain: impl FnMut() -> io::Result<f64>,
) -> io::Result<Value> {
    let (mut devices, mut plains) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (of_device, of_plain) = (device()?, plain()?);
        if round > 0 {
            devices.push(of_device);
            plains.push(of_plain);
        }
    }
    let (device, plain) = (median(devices), median(plains));
    Ok(json!({"device_mib_s": device.round(), "plain_mib_s": plain.round(), "ratio": device / plain}))
}

fn main() -> io::Result<()> {
    let file = tempfile::tempfile()?;
    file.set_len(DISK)?;
    let mut table = serde_json::Map::new();
    let mut disk = of_device(Blk::new(file.try_clone()?, "", false, Limiter::none())?, 1 << 9);
    for size in [4 << 10, 128 << 10, 1 << 20] {
        for (name, write) in [("write", true), ("read", false)] {
            let row = beside(|| block(&mut disk, write, size), || plain_block(&file, write, size))?;
            table.insert(format!("blk {name} {} KiB", size >> 10), row);
        }
    }
    let ((ours, wire), (plain, other)) = (UnixDatagram::pair()?, UnixDatagram::pair()?);
    let plain = File::from(OwnedFd::from(plain));
    let net = Net::new(File::from(OwnedFd::from(ours)), Settings::default())?;
    let mut net = of_device(net, feature::MRG_RXBUF);
    for size in [64, 1514, 65_000] {
        let row = beside(|| network(&mut net, &wire, size), || plain_network(&plain, &other, size))?;
        table.insert(format!("net {size} bytes"), row);
    }
    println!("{}", serde_json::to_string_pretty(&table)?);
    Ok(())
}
