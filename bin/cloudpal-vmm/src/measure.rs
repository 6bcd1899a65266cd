//! What a wake takes, and what a machine costs, on this host with the tiny guest. Raw samples; the reader makes
//! percentiles. Machines in this process show where the time goes; jailed processes, asked over their channels, show
//! what the daemon gets.
//!
//! The kinds of wake take turns, round by round, so that what else the host does meets them alike. A wake begins before
//! the snapshot's files are opened and ends with the guest's first exit: its own instructions have run by then. Making
//! a spare for the pool, and throwing a machine away, happen outside the measured time.

mod processes;

use cloudpal_vmm::{
    Boot, Ended, Error, Host, Image, Machine, Pool, Shape, Snapshot, Spare,
    tiny_guest::{self, Operator, ask, protocol},
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
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
    /// Where the sockets go: the daemon's lie in a file system in memory.
    #[arg(long, value_name = "DIR")]
    sockets_dir: PathBuf,
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
    asleep: processes::Asleep,
    /// Through a jailed process: from the ask to the guest's first word, and with the process' start.
    processes: Vec<(Duration, Duration)>,
}

pub fn run(options: &Options) -> Result<(), Error> {
    let host = Arc::new(Host::open()?);
    let prepared = options.memory_mib.iter().map(|mib| prepare(&host, options, *mib));
    let mut sizes = prepared.collect::<Result<Vec<_>, _>>()?;
    for round in 0..=options.rounds {
        for size in &mut sizes {
            let samples = one_round(&host, size)?;
            let processes = size.asleep.one_round()?;
            // The first round meets cold code and files that were just written.
            if round > 0 {
                size.from_pool.push(samples.0);
                size.without_pool.push(samples.1);
                size.boot.push(samples.2);
                size.processes.push(processes);
            }
        }
    }
    let told = sizes.iter().map(|size| tell(size, options.clones)).collect::<Result<Vec<_>, _>>()?;
    println!("{}", json!({"rounds": options.rounds, "sizes": told}));
    Ok(())
}

/// A guest that has worked a little: 1 MiB of its memory is in use.
fn prepare(host: &Arc<Host>, options: &Options, memory_mib: u32) -> Result<Size, Error> {
    let dir = &options.dir;
    let mut machine = crate::booted(host, memory_mib)?;
    ask(&mut machine, protocol::TOUCH, 256)?;
    let snapshot = dir.join(format!("asleep-{memory_mib}"));
    let started = Instant::now();
    Snapshot::take(&mut machine, &snapshot)?;
    let pool = Pool::new(host.clone(), Shape::plain(memory_mib));
    let (save, from_pool, without_pool, boot) = (started.elapsed(), vec![], vec![], vec![]);
    let (asleep, processes) = (processes::Asleep::make(dir, &options.sockets_dir, memory_mib)?, vec![]);
    Ok(Size { memory_mib, snapshot, pool, save, from_pool, without_pool, boot, asleep, processes })
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

fn tell(size: &Size, clones: usize) -> Result<Value, Error> {
    let list = |list: &[Duration]| list.iter().copied().map(us).collect::<Vec<_>>();
    let phase = |at: usize| size.from_pool.iter().map(|phases| phases[at]).collect::<Vec<_>>();
    let whole: Vec<Duration> = size.from_pool.iter().map(|phases| phases.iter().sum()).collect();
    let (pooled, alone): (Vec<_>, Vec<_>) = size.processes.iter().copied().unzip();
    Ok(json!({
        "memory_mib": size.memory_mib,
        "save_us": us(size.save),
        "inside_us": list(&whole),
        "phases_us": {"open": list(&phase(0)), "place": list(&phase(1)), "run": list(&phase(2))},
        "inside_without_pool_us": list(&size.without_pool),
        "boot_us": list(&size.boot),
        "from_pool_us": list(&pooled),
        "without_pool_us": list(&alone),
        "footprint": size.asleep.footprint()?,
        "clones": size.asleep.many(clones)?,
    }))
}

fn us(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// A process' mappings, as the kernel counts them.
struct Maps(Vec<Mapping>);

#[derive(Default)]
struct Mapping {
    of_guest: bool,
    resident_kib: u64,
    private_kib: u64,
}

impl Maps {
    /// `memory`: the file that the guest's memory is mapped from.
    fn of(pid: u32, memory: &Path) -> Result<Maps, Error> {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).map_err(|source| Error::File { path: path.into(), source })?;
        let mut maps: Vec<Mapping> = Vec::new();
        for line in text.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match (word, maps.last_mut()) {
                ("Rss:", Some(map)) => map.resident_kib += kib(rest),
                ("Private_Clean:" | "Private_Dirty:", Some(map)) => map.private_kib += kib(rest),
                _ if word.contains('-') => {
                    let of_guest = rest.ends_with(&*memory.to_string_lossy());
                    maps.push(Mapping { of_guest, ..Mapping::default() });
                }
                _ => {}
            }
        }
        Ok(Maps(maps))
    }

    fn private_kib(&self, of_guest: bool) -> u64 {
        self.0.iter().filter(|map| map.of_guest == of_guest).map(|map| map.private_kib).sum()
    }

    fn resident_kib(&self, of_guest: bool) -> u64 {
        self.0.iter().filter(|map| map.of_guest == of_guest).map(|map| map.resident_kib).sum()
    }
}

fn kib(text: &str) -> u64 {
    text.trim().trim_end_matches("kB").trim().parse().unwrap_or(0)
}
