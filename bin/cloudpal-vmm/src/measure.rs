//! What a wake takes, and what a machine costs, on this host with the tiny guest. Raw samples; the reader makes
//! percentiles.
//!
//! The kinds of wake take turns, round by round, so that what else the host does meets them alike. A wake begins before
//! the snapshot's files are opened and ends with the guest's first exit: its own instructions have run by then. Making
//! a spare for the pool, and throwing a machine away, happen outside the measured time.

use cloudpal_vmm::{
    Boot, Ended, Error, Host, Image, Machine, Pool, Shape, Snapshot, Spare,
    tiny_guest::{self, Operator, ask, protocol},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

#[derive(clap::Args)]
pub struct Options {
    /// The guests' memory; several take turns.
    #[arg(long, value_delimiter = ',', default_value = "128,1024")]
    memory_mib: Vec<u32>,
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// How many machines are woken from one snapshot.
    #[arg(long, default_value_t = 100)]
    clones: usize,
    /// Where the snapshots go.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

struct Size {
    memory_mib: u32,
    snapshot: PathBuf,
    pool: Pool,
    save: Duration,
    /// From the pool: files opened, state in place, first exit, each since the one before.
    from_pool: Vec<[Duration; 3]>,
    without_pool: Vec<Duration>,
    boot: Vec<Duration>,
}

pub fn run(options: &Options) -> Result<(), Error> {
    let host = Arc::new(Host::open()?);
    let prepared = options.memory_mib.iter().map(|mib| prepare(&host, &options.dir, *mib));
    let mut sizes = prepared.collect::<Result<Vec<_>, _>>()?;
    for round in 0..=options.rounds {
        for size in &mut sizes {
            let samples = one_round(&host, size)?;
            // The first round meets cold code and files that were just written.
            if round > 0 {
                size.from_pool.push(samples.0);
                size.without_pool.push(samples.1);
                size.boot.push(samples.2);
            }
        }
    }
    let told = sizes.iter().map(|size| tell(&host, size, options.clones)).collect::<Result<Vec<_>, _>>()?;
    println!("{}", json!({"rounds": options.rounds, "sizes": told}));
    Ok(())
}

/// A guest that has worked a little: 1 MiB of its memory is in use.
fn prepare(host: &Arc<Host>, dir: &Path, memory_mib: u32) -> Result<Size, Error> {
    let mut machine = crate::booted(host, memory_mib)?;
    ask(&mut machine, protocol::TOUCH, 256)?;
    let snapshot = dir.join(format!("asleep-{memory_mib}"));
    let started = Instant::now();
    Snapshot::take(&mut machine, &snapshot)?;
    let pool = Pool::new(host.clone(), Shape::plain(memory_mib));
    let (save, from_pool, without_pool, boot) = (started.elapsed(), vec![], vec![], vec![]);
    Ok(Size { memory_mib, snapshot, pool, save, from_pool, without_pool, boot })
}

type Samples = ([Duration; 3], Duration, Duration);

fn one_round(host: &Host, size: &mut Size) -> Result<Samples, Error> {
    size.pool.fill(1)?;
    let started = Instant::now();
    let snapshot = Snapshot::open(host, &size.snapshot)?;
    let opened = started.elapsed();
    let mut machine = snapshot.wake(host, size.pool.take()?)?;
    let placed = started.elapsed();
    first_exit(&mut machine)?;
    let ran = started.elapsed();
    drop(machine);

    let started = Instant::now();
    let snapshot = Snapshot::open(host, &size.snapshot)?;
    let mut machine = snapshot.wake(host, Spare::make(host, Shape::plain(size.memory_mib))?)?;
    first_exit(&mut machine)?;
    let without_pool = started.elapsed();
    drop(machine);

    let started = Instant::now();
    let spare = Spare::make(host, Shape::plain(size.memory_mib))?;
    let mut machine = spare.boot(host, Boot::plain(Image::Bytes(tiny_guest::ELF), ""))?;
    first_exit(&mut machine)?;
    let boot = started.elapsed();
    Ok(([opened, placed - opened, ran - placed], without_pool, boot))
}

/// The run breaks when the guest asks for a command, which a woken one does at once, and a booted one after it has said
/// that it runs.
fn first_exit(machine: &mut Machine) -> Result<(), Error> {
    match machine.run(&mut Operator::default())? {
        Ended::Break => Ok(()),
        ended => Err(Error::Vcpu(format!("the guest ended with {ended:?}"))),
    }
}

fn tell(host: &Arc<Host>, size: &Size, clones: usize) -> Result<Value, Error> {
    let us = |list: &[Duration]| list.iter().map(|d| d.as_secs_f64() * 1e6).collect::<Vec<_>>();
    let phase = |at: usize| size.from_pool.iter().map(|phases| phases[at]).collect::<Vec<_>>();
    let whole: Vec<Duration> = size.from_pool.iter().map(|phases| phases.iter().sum()).collect();
    let mut told = json!({
        "memory_mib": size.memory_mib,
        "save_us": us(&[size.save])[0],
        "from_pool_us": us(&whole),
        "phases_us": {"open": us(&phase(0)), "place": us(&phase(1)), "run": us(&phase(2))},
        "without_pool_us": us(&size.without_pool),
        "boot_us": us(&size.boot),
        "footprint": own_footprint(&size.snapshot)?,
    });
    told["clones"] = many(host, size, clones)?;
    Ok(told)
}

fn many(host: &Arc<Host>, size: &Size, count: usize) -> Result<Value, Error> {
    let mut pool = Pool::new(host.clone(), Shape::plain(size.memory_mib));
    let started = Instant::now();
    pool.fill(count)?;
    let filled = started.elapsed();
    let started = Instant::now();
    let snapshot = Snapshot::open(host, &size.snapshot)?;
    let mut clones = Vec::with_capacity(count);
    for _ in 0..count {
        let mut machine = snapshot.wake(host, pool.take()?)?;
        first_exit(&mut machine)?;
        clones.push(machine);
    }
    let woken = started.elapsed();
    let maps = Maps::read()?;
    let private: u64 = clones.iter().map(|clone| maps.private_kib(&clone.memory.host_ranges())).sum();
    Ok(json!({
        "count": count,
        "fill_us": filled.as_secs_f64() * 1e6,
        "wake_us": woken.as_secs_f64() * 1e6,
        "private_kib_each": private as f64 / count.max(1) as f64,
    }))
}

/// In a process of its own, which did nothing else.
fn own_footprint(snapshot: &Path) -> Result<Value, Error> {
    let program = Path::new("/proc/self/exe");
    let output = Command::new(program).arg("footprint").arg("--snapshot").arg(snapshot).output();
    let output = output.map_err(|source| Error::File { path: program.into(), source })?;
    serde_json::from_slice(&output.stdout).map_err(|_| {
        Error::Host(format!("no footprint: {}", String::from_utf8_lossy(&output.stderr).trim_end()))
    })
}

pub fn footprint(dir: &Path) -> Result<(), Error> {
    let host = Host::open()?;
    let snapshot = Snapshot::open(&host, dir)?;
    let memory_mib = (snapshot.state.memory_bytes >> 20) as u32;
    let mut machine = snapshot.wake(&host, Spare::make(&host, Shape::plain(memory_mib))?)?;
    first_exit(&mut machine)?;
    let (maps, guest) = (Maps::read()?, machine.memory.host_ranges());
    let told = json!({
        "resident_kib": maps.resident_kib(&[]) - maps.resident_kib(&guest),
        "private_kib": maps.private_kib(&[]) - maps.private_kib(&guest),
        "page_tables_kib": status_kib("VmPTE:")?,
    });
    println!("{told}");
    Ok(())
}

/// This process' mappings, as the kernel counts them.
struct Maps(Vec<Mapping>);

#[derive(Default)]
struct Mapping {
    start: u64,
    resident_kib: u64,
    private_kib: u64,
}

impl Maps {
    fn read() -> Result<Maps, Error> {
        let mut maps: Vec<Mapping> = Vec::new();
        for line in proc("/proc/self/smaps")?.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match (word, maps.last_mut()) {
                ("Rss:", Some(map)) => map.resident_kib += kib(rest),
                ("Private_Clean:" | "Private_Dirty:", Some(map)) => map.private_kib += kib(rest),
                _ => {
                    let range = word.split_once('-').map(|(start, _)| u64::from_str_radix(start, 16));
                    if let Some(Ok(start)) = range {
                        maps.push(Mapping { start, ..Mapping::default() });
                    }
                }
            }
        }
        Ok(Maps(maps))
    }

    fn private_kib(&self, ranges: &[(u64, u64)]) -> u64 {
        self.within(ranges).map(|map| map.private_kib).sum()
    }

    fn resident_kib(&self, ranges: &[(u64, u64)]) -> u64 {
        self.within(ranges).map(|map| map.resident_kib).sum()
    }

    /// All of them when no range is given.
    fn within(&self, ranges: &[(u64, u64)]) -> impl Iterator<Item = &Mapping> {
        let inside =
            |map: &&Mapping| ranges.iter().any(|(start, len)| (*start..start + len).contains(&map.start));
        self.0.iter().filter(move |map| ranges.is_empty() || inside(map))
    }
}

fn status_kib(name: &str) -> Result<u64, Error> {
    Ok(proc("/proc/self/status")?.lines().find_map(|line| line.strip_prefix(name)).map_or(0, kib))
}

fn kib(text: &str) -> u64 {
    text.trim().trim_end_matches("kB").trim().parse().unwrap_or(0)
}

fn proc(path: &str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })
}
