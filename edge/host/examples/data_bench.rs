//! What a store of cores costs on this disk: prints one line of JSON. `data_bench DIR ROUND` measures the rows that
//! the JavaScript stack is measured by too; `data_bench DIR cores COUNT`, then `data_bench DIR idle COUNT`, and
//! `data_bench DIR grow BLOCKS` how cost grows. `cargo xtask bench data` runs it.

use cloudpal_data::core::{Core, Durability, Open};
use cloudpal_data::crypto::KeyPair;
use cloudpal_data::feed::Feed;
use cloudpal_data::store::{Options, RootKey, Store};
use cloudpal_host::data::disk::{DirectoryDisk, MAX_OPEN};
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn Error>>;

const BLOCK: usize = 100;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let measured = match arguments[..] {
        [dir, "cores", count] => cores(Path::new(dir), count.parse()?)?,
        [dir, "idle", count] => idle(Path::new(dir), count.parse()?)?,
        [dir, "grow", blocks] => grow(Path::new(dir), blocks.parse()?)?,
        [dir, round] => round_of(&Path::new(dir).join(round))?,
        _ => {
            return Err(
                "usage: data_bench DIR ROUND | DIR cores COUNT | DIR idle COUNT | DIR grow BLOCKS".into()
            );
        }
    };
    println!("{measured}");
    Ok(())
}

fn open(dir: &Path) -> Outcome<(Store, Arc<DirectoryDisk>)> {
    let disk = DirectoryDisk::open(dir, MAX_OPEN).map_err(|problem| problem.to_string())?;
    let disk = Arc::new(disk);
    // The randomness of a measurement need not be secret, but it is new at each opening.
    let mut entropy = [0; 32];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut entropy)?;
    Ok((Store::open(disk.clone(), RootKey([4; 32]), entropy, Options::default())?, disk))
}

fn writer(store: &Store, seed: u32) -> Outcome<Core> {
    let mut secret = [1; 32];
    secret[..4].copy_from_slice(&seed.to_le_bytes());
    Ok(store.core(&Open::pair(KeyPair::from_seed(&secret)))?)
}

fn per_second(count: u64, since: Instant) -> f64 {
    count as f64 / since.elapsed().as_secs_f64()
}

/// Numbers in no order, the same each time.
fn scattered(count: u64, below: u64) -> Vec<u64> {
    (0..count)
        .scan(1u64, |state, _| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            Some((*state >> 33) % below)
        })
        .collect()
}

fn appends(core: &Core, count: u64, batch: usize, durability: Durability) -> Outcome<f64> {
    let block = [7u8; BLOCK];
    let blocks = vec![&block[..]; batch];
    let started = Instant::now();
    for _ in 0..count / batch as u64 {
        core.append(&blocks, durability)?;
    }
    let rate = per_second(count, started);
    core.sync()?;
    Ok(rate)
}

fn round_of(dir: &Path) -> Outcome<Value> {
    let (store, _disk) = open(dir)?;
    let single = appends(&writer(&store, 1)?, 20_000, 1, Durability::Buffered)?;
    let synced = appends(&writer(&store, 2)?, 2_000, 1, Durability::Synced)?;
    let batch_100 = appends(&writer(&store, 3)?, 100_000, 100, Durability::Buffered)?;
    let core = writer(&store, 4)?;
    let batch_1000 = appends(&core, 100_000, 1000, Durability::Buffered)?;
    let synced_8 = synced_by_eight(&store)?;
    store.checkpoint()?;
    let wanted = scattered(50_000, 100_000);
    let started = Instant::now();
    for index in &wanted {
        core.get(*index)?;
    }
    let serial = per_second(wanted.len() as u64, started);
    let many = gets_64(&core, &scattered(200_000, 100_000))?;
    Ok(json!({
        "append single": single, "append synced": synced, "append batch 100": batch_100,
        "append batch 1000": batch_1000, "append synced, 8 writers": synced_8, "get serial": serial, "get 64": many,
    }))
}

/// Eight writers of eight cores, each waiting for its own sync.
fn synced_by_eight(store: &Store) -> Outcome<f64> {
    let writers = (10..18).map(|seed| writer(store, seed)).collect::<Outcome<Vec<_>>>()?;
    let started = Instant::now();
    let failed = std::thread::scope(|scope| {
        let write = |core: Core| {
            move || (0..500).try_for_each(|_| core.append(&[&[7; BLOCK]], Durability::Synced).map(drop))
        };
        let threads: Vec<_> = writers.into_iter().map(|core| scope.spawn(write(core))).collect();
        threads.into_iter().filter_map(|thread| thread.join().map_or(None, Result::err)).next()
    });
    failed.map_or(Ok(per_second(8 * 500, started)), |error| Err(error.into()))
}

/// 64 gets at once, then the next 64.
fn gets_64(core: &Core, wanted: &[u64]) -> Outcome<f64> {
    let started = Instant::now();
    for some in wanted.chunks(64) {
        core.get_many(some).into_iter().try_for_each(|block| block.map(drop))?;
    }
    Ok(per_second(wanted.len() as u64, started))
}

fn resident_kib() -> Outcome<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn cores(dir: &Path, count: u32) -> Outcome<Value> {
    let started = Instant::now();
    let (store, disk) = open(dir)?;
    let made = (0..count).map(|seed| writer(&store, seed)).collect::<Outcome<Vec<_>>>()?;
    let make_ms = started.elapsed().as_secs_f64() * 1e3;
    let spread = scattered(100_000, u64::from(count));
    let started = Instant::now();
    for at in &spread {
        made[*at as usize].append(&[&[7; BLOCK]], Durability::Buffered)?;
    }
    let spread_rate = per_second(spread.len() as u64, started);
    // Opening a core again signs what is on the disk of it.
    store.sync()?;
    (0..count).try_for_each(|seed| writer(&store, seed).map(drop))?;
    store.checkpoint()?;
    let (disk_bytes, descriptors) = (store.usage()?.disk_bytes, disk.open_files());
    let rate = spread_rate;
    Ok(
        json!({"make ms": make_ms, "spread appends": rate, "descriptors": descriptors, "disk bytes": disk_bytes}),
    )
}

/// What it costs to have them, in a process that does nothing else.
fn idle(dir: &Path, count: u32) -> Outcome<Value> {
    let before = resident_kib()?;
    let started = Instant::now();
    let (store, disk) = open(dir)?;
    let open_ms = started.elapsed().as_secs_f64() * 1e3;
    let closed_kib = (resident_kib()? - before) / f64::from(count);
    let started = Instant::now();
    let opened = (0..count).map(|seed| writer(&store, seed)).collect::<Outcome<Vec<_>>>()?;
    let open_all_ms = started.elapsed().as_secs_f64() * 1e3;
    let open_kib = (resident_kib()? - before) / f64::from(count);
    assert!(opened.iter().map(Feed::length).sum::<u64>() > 0);
    Ok(json!({
        "open ms": open_ms, "open all ms": open_all_ms, "KiB per closed core": closed_kib,
        "KiB per open core": open_kib, "descriptors": disk.open_files(),
    }))
}

fn grow(dir: &Path, blocks: u64) -> Outcome<Value> {
    let (store, disk) = open(dir)?;
    let core = writer(&store, 1)?;
    let rate = appends(&core, blocks, 1000.min(blocks as usize), Durability::Buffered)?;
    store.checkpoint()?;
    let usage = store.usage()?;
    drop((core, store, disk));
    let started = Instant::now();
    let (store, _disk) = open(dir)?;
    let core = writer(&store, 1)?;
    core.get(blocks / 2)?;
    let reopen_ms = started.elapsed().as_secs_f64() * 1e3;
    assert_eq!(core.length(), blocks);
    let wanted = scattered(20_000, blocks);
    let started = Instant::now();
    for index in &wanted {
        core.get(*index)?;
    }
    Ok(json!({
        "appends": rate, "gets": per_second(wanted.len() as u64, started), "reopen ms": reopen_ms,
        "disk bytes per byte": usage.disk_bytes as f64 / (blocks * BLOCK as u64) as f64,
        "resident KiB": resident_kib()?,
    }))
}
