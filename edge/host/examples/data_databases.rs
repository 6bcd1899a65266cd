//! What bees and drives cost on this disk: `data_databases DIR` works once in a fresh directory and prints one line of
//! JSON, operations or megabytes per second. `cargo xtask bench databases` runs it beside `golden/bench-databases.js`.

use cloudpal_data::bee::{Bee, KeyRange};
use cloudpal_data::core::{Core, Durability, Open};
use cloudpal_data::crypto::KeyPair;
use cloudpal_data::drive::Drive;
use cloudpal_data::store::{Options, RootKey, Store};
use cloudpal_host::data::disk::{DirectoryDisk, MAX_OPEN};
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error>>;

// The same as in `golden/bench-databases.js`.
const SINGLE: u64 = 5_000;
const BATCHED: u64 = 50_000;
const BATCH: u64 = 1_000;
const GETS: u64 = 20_000;
const LARGE: u64 = 256 << 20;
const CHUNK: usize = 64 << 10;
const FILES: u64 = 2_000;

fn main() -> Outcome<()> {
    let dir = std::env::args().nth(1).ok_or("usage: data_databases DIR")?;
    let disk = DirectoryDisk::open(Path::new(&dir), MAX_OPEN).map_err(|problem| problem.to_string())?;
    // The randomness of a measurement need not be secret, but it is new at each opening.
    let mut entropy = [0; 32];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut entropy)?;
    let store = Store::open(Arc::new(disk), RootKey([4; 32]), entropy, Options::default())?;
    let mut told = bees(&store)?;
    let drives = drives(&store)?;
    if let (Value::Object(told), Value::Object(drives)) = (&mut told, drives) {
        told.extend(drives);
    }
    println!("{told}");
    Ok(())
}

fn writer(store: &Store, seed: u8) -> Outcome<Core> {
    let core = store.core(&Open::pair(KeyPair::from_seed(&[seed; 32])))?;
    // As the JavaScript stack does: the operating system has it, the disk not yet.
    Ok(core.with_durability(Durability::Buffered))
}

fn per_second(count: u64, since: Instant) -> f64 {
    count as f64 / since.elapsed().as_secs_f64()
}

/// Keys in no order, the same each time.
fn key(at: u64) -> Vec<u8> {
    format!("key{:08}", at * 7_919 % 100_003).into_bytes()
}

fn bees(store: &Store) -> Outcome<Value> {
    let value = [b'v'; 100];
    let mut bee = Bee::new(writer(store, 1)?);
    let started = Instant::now();
    for at in 0..SINGLE {
        bee.put(&key(at), &value)?;
    }
    let put = per_second(SINGLE, started);

    let mut bee = Bee::new(writer(store, 2)?);
    let started = Instant::now();
    for first in (0..BATCHED).step_by(BATCH as usize) {
        let mut batch = bee.batch();
        for at in first..first + BATCH {
            batch.put(&key(at), &value)?;
        }
        batch.flush()?;
    }
    let batch = per_second(BATCHED, started);

    // Readers that have decoded nothing yet.
    let core = bee.into_feed();
    core.sync()?;
    let bee = Bee::new(core.clone());
    let started = Instant::now();
    for at in 0..GETS {
        bee.get(&key(at * 31 % BATCHED))?.ok_or("a key is gone")?;
    }
    let get = per_second(GETS, started);
    let bee = Bee::new(core);
    let started = Instant::now();
    let count = bee.range(KeyRange::all()).try_fold(0, |count, entry| entry.map(|_| count + 1))?;
    let iterate = per_second(count, started);
    if count != BATCHED {
        return Err("the bee does not have all its keys".into());
    }
    Ok(json!({ "bee put": put, "bee batch of 1,000": batch, "bee get": get, "bee iterate": iterate }))
}

fn drives(store: &Store) -> Outcome<Value> {
    let mut drive = Drive::new(writer(store, 3)?, writer(store, 4)?, None);
    let chunk: Vec<u8> = (0..CHUNK).map(|at| (at * 31) as u8).collect();
    let mebibytes = LARGE >> 20;
    let started = Instant::now();
    let mut upload = drive.writer();
    for _ in 0..LARGE / CHUNK as u64 {
        upload.write(&chunk)?;
    }
    upload.finish("/large", false)?;
    let write = per_second(mebibytes, started);
    let started = Instant::now();
    let mut bytes = 0;
    for part in drive.head().reader("/large", 0..u64::MAX)?.ok_or("no such file")? {
        bytes += part?.len() as u64;
    }
    let read = per_second(mebibytes, started);
    if bytes != LARGE {
        return Err("the file came back shorter".into());
    }

    let started = Instant::now();
    for at in 0..FILES {
        drive.put(&format!("/dir{}/file{at}", at % 10), &chunk[..4096])?;
    }
    let put = per_second(FILES, started);
    let (db, blobs) = drive.into_feeds();
    let drive = Drive::new(db, blobs, None);
    let started = Instant::now();
    for at in 0..FILES {
        drive.get(&format!("/dir{}/file{at}", at % 10))?.ok_or("no such file")?;
    }
    let get = per_second(FILES, started);
    Ok(
        json!({ "drive write, MB/s": write, "drive read, MB/s": read, "4 KiB files put": put, "4 KiB files get": get }),
    )
}
