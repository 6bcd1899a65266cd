//! What cores, bees, drives and tries have in common on the command line, and `cloudpal data` for all of them together.

mod audit;
pub mod bee;
mod carry;
pub mod core;
pub mod drive;
mod mirror;
pub mod trie;

use crate::{
    screen::Screen,
    table::Table,
    units::{self, show_bytes},
};
use clap::{Args, Subcommand};
use cloudpal_api::{Client, Data, DataAdd, DataFrozen, DataKind, DataPeerAdd, DataQuota, Secret, check_key};
use cloudpal_model::{Kind, Name, Problem};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{self, Read},
    path::PathBuf,
    process::ExitCode,
    thread,
    time::Duration,
};

/// Where something is: `ada photos`.
#[derive(Args)]
pub struct Place {
    /// The tenant
    pub tenant: Name,
    /// Its name
    pub name: Name,
}

/// How something comes to be here.
#[derive(Args)]
pub struct Create {
    #[command(flatten)]
    place: Place,
    /// Encrypt its blocks: only who has the encryption key, which `share` shows, can read them
    #[arg(long)]
    encrypted: bool,
}

/// Keep and serve what somebody else writes.
#[derive(Args)]
pub struct Seed {
    #[command(flatten)]
    place: Place,
    /// Its key: 64 hexadecimal digits or z-base-32
    key: String,
    /// Read the encryption key from stdin; without it the blocks are kept and served, but not read
    #[arg(long)]
    encryption_key_stdin: bool,
}

/// Replicate with a peer, also after a restart.
#[derive(Args)]
pub struct Replicate {
    #[command(flatten)]
    place: Place,
    /// HOST:PORT of the peer, an address on the overlay; absent: show who is connected
    peer: Option<String>,
    /// Wait until all that peers have is here, too
    #[arg(long)]
    wait: bool,
}

#[derive(Subcommand)]
pub enum Verb {
    /// The tenant's data of every kind, and what it takes on the disk
    #[command(after_help = "Example:\n  cloudpal data list ada\n\nExit codes: 0 done, 3 no such tenant.")]
    List {
        /// The tenant
        tenant: Name,
    },
    /// Limit what the tenant's data may take on the disk
    #[command(after_help = "\
Beyond it writes are refused, and reads go on.

Examples:
  cloudpal data quota ada 50GiB
  cloudpal data quota ada none

Exit codes: 0 done, 3 no such tenant.")]
    Quota {
        /// The tenant
        tenant: Name,
        /// A size, or `none`
        #[arg(value_parser = quota)]
        quota: Quota,
    },
    /// What was asked of the tenant's cloud: its own log, which is a core of it
    #[command(after_help = "\
The log is the core `cloudpal-audit`: share it, and any device keeps a copy that proves itself.

Examples:
  cloudpal data audit ada
  cloudpal data audit ada --follow --consumer mailer

Exit codes: 0 done, 3 no such tenant.
With --json: one operation a line.")]
    Audit {
        /// The tenant
        tenant: Name,
        /// Go on with what is asked from now on, until interrupted
        #[arg(short, long)]
        follow: bool,
        /// Go on where the consumer of this name was
        #[arg(long, value_name = "NAME")]
        consumer: Option<Name>,
    },
    /// All of the tenant's data into a new folder, with the keys to go on with it elsewhere
    #[command(after_help = "\
Who has the folder can read all of it, and write in the owner's name: keep it as you keep a key. It is as
the data was when the export began; a folder that is there is whole.

Example:
  cloudpal data export ada /backup/ada-2026-11

Exit codes: 0 done, 3 no such tenant, 4 the folder exists.")]
    Export {
        /// The tenant
        tenant: Name,
        /// The folder; it must not exist
        folder: PathBuf,
    },
    /// Take in what was exported, on this host or another
    #[command(after_help = "\
Each block is compared with its signed tree. All of it is taken in, or nothing. Names and keys must not be
there yet. What was written where the export was made must from now on be written here only: two hosts that
write the same core make two histories of it, of which its peers take one. Remove it there.

Example:
  cloudpal data import ada /backup/ada-2026-11

Exit codes: 0 done, 3 no such tenant, 4 a name is taken, 5 the export is damaged, 8 the disk or the quota is full.")]
    Import {
        /// The tenant
        tenant: Name,
        /// The folder
        folder: PathBuf,
    },
    /// Give the space of what was cleared and cut back to the host now
    #[command(after_help = "Example:\n  cloudpal data compact ada\n\nExit codes: 0 done, 3 no such tenant.")]
    Compact {
        /// The tenant
        tenant: Name,
    },
}

#[derive(Clone, Copy, Debug)]
pub struct Quota(Option<u64>);

fn quota(text: &str) -> Result<Quota, String> {
    if text == "none" { Ok(Quota(None)) } else { units::bytes(text).map(|bytes| Quota(Some(bytes))) }
}

pub fn run(verb: Verb, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    match verb {
        Verb::List { tenant } => list(client, screen, &tenant, None)?,
        Verb::Quota { tenant, quota } => {
            let list = client.data_quota(&tenant, &DataQuota { quota_bytes: quota.0 })?;
            screen.answer(&list, |list| format!("{tenant}: {}", usage(list.disk_bytes, list.quota_bytes)))?;
        }
        Verb::Audit { tenant, follow, consumer } => audit::run(client, screen, tenant, follow, consumer)?,
        Verb::Export { tenant, folder } => carry::export(client, screen, &tenant, &folder)?,
        Verb::Import { tenant, folder } => carry::import(client, screen, &tenant, &folder)?,
        Verb::Compact { tenant } => {
            let compacted = client.data_compact(&tenant)?;
            screen.answer(&compacted, |done| format!("{} given back", show_bytes(done.freed_bytes)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn usage(disk_bytes: u64, quota_bytes: Option<u64>) -> String {
    let of = quota_bytes.map(|quota| format!(" of {}", show_bytes(quota))).unwrap_or_default();
    format!("{}{of} on the disk", show_bytes(disk_bytes))
}

fn kind_word(kind: DataKind) -> &'static str {
    match kind {
        DataKind::Core => "core",
        DataKind::Bee => "bee",
        DataKind::Drive => "drive",
        DataKind::Trie => "trie",
    }
}

/// Those of one kind, or of all.
fn list(client: &Client, screen: &Screen, tenant: &Name, kind: Option<DataKind>) -> Result<(), Problem> {
    let mut list = client.data_list(tenant)?;
    list.data.retain(|data| kind.is_none_or(|kind| data.kind == kind));
    screen.answer(&list, |list| {
        let mut table = Table::new(["NAME", "KIND", "VERSION", "SIZE", "HERE", "WRITES", "PEERS"]);
        for data in &list.data {
            table.row([
                data.name.to_string(),
                kind_word(data.kind).to_owned(),
                data.length.to_string(),
                show_bytes(data.byte_length),
                here(data),
                writer(data).to_owned(),
                data.peers.to_string(),
            ]);
        }
        format!("{table}{}", usage(list.disk_bytes, list.quota_bytes))
    })
}

fn writer(data: &Data) -> &'static str {
    match (&data.frozen, data.writable) {
        (Some(DataFrozen::Behind { .. }), true) => "behind",
        (Some(DataFrozen::Conflict { .. }), _) => "in conflict",
        (_, true) => "this cloud",
        (_, false) => "somebody else",
    }
}

/// What is wrong, and what to do.
fn frozen(data: &Data, frozen: &DataFrozen) -> String {
    match frozen {
        DataFrozen::Behind { length, .. } => format!(
            "its key has signed {length} blocks elsewhere, as a peer has proved: stay connected to that peer, then \
             `cloudpal {} catch-up`",
            kind_word(data.kind)
        ),
        DataFrozen::Conflict { fork, .. } => format!(
            "its key has signed two histories of fork {fork}: keep what can be read, and begin a new {}",
            kind_word(data.kind)
        ),
    }
}

fn here(data: &Data) -> String {
    match data.length {
        0 => "-".to_owned(),
        length if data.blocks_here >= length => "all".to_owned(),
        length => format!("{} %", data.blocks_here.saturating_mul(100) / length),
    }
}

/// The place, if what is there is of this kind.
fn checked(client: &Client, place: &Place, kind: DataKind) -> Result<Data, Problem> {
    let data = client.data(&place.tenant, &place.name)?;
    if data.kind == kind {
        return Ok(data);
    }
    let (is, wanted) = (kind_word(data.kind), kind_word(kind));
    let what = format!("{} is a {is}, not a {wanted}", place.name);
    Err(Problem::new(Kind::Invalid, what, format!("use `cloudpal {is} …`")))
}

fn create(client: &Client, screen: &Screen, create: Create, kind: DataKind) -> Result<(), Problem> {
    let Create { place, encrypted } = create;
    let add = DataAdd { name: place.name, kind, key: None, encryption_key: None, encrypted };
    let data = client.data_add(&place.tenant, &add)?;
    screen.answer(&data, |data| {
        let next = format!("next: cloudpal {} share {} {}", kind_word(kind), place.tenant, data.name);
        format!("{} {} is there\n{}{next}", kind_word(kind), data.name, description(data))
    })
}

fn seed(client: &Client, screen: &Screen, seed: Seed, kind: DataKind) -> Result<(), Problem> {
    let Seed { place, key, encryption_key_stdin } = seed;
    check_key(&key)?;
    let encryption_key = encryption_key_stdin.then(read_key).transpose()?.map(Secret::new);
    let add = DataAdd { name: place.name, kind, key: Some(key), encryption_key, encrypted: false };
    let data = client.data_add(&place.tenant, &add)?;
    screen.answer(&data, |data| {
        format!("{} {} is kept and served from now on\n{}", kind_word(kind), data.name, description(data))
    })
}

fn read_key() -> Result<String, Problem> {
    let mut text = String::new();
    let read = io::stdin().take(1024).read_to_string(&mut text);
    read.map_err(|error| Problem::io("reading the encryption key", &error))?;
    let text = text.trim().to_owned();
    check_key(&text)?;
    Ok(text)
}

fn show(client: &Client, screen: &Screen, place: &Place, kind: DataKind) -> Result<(), Problem> {
    let data = checked(client, place, kind)?;
    screen.answer(&data, |data| format!("{} {}\n{}", kind_word(data.kind), data.name, description(data)))
}

fn description(data: &Data) -> Table {
    let mut pairs = Table::pairs().indented(2);
    pairs.pair("key", &data.key);
    pairs.pair("version", data.length);
    pairs.pair("size", show_bytes(data.byte_length));
    pairs.pair("here", here(data));
    pairs.pair("writer", writer(data));
    if let Some(why) = &data.frozen {
        pairs.pair("frozen", frozen(data, why));
    }
    pairs.pair("encrypted", if data.encrypted { "yes" } else { "no" });
    pairs.pair("peers", data.peers);
    pairs
}

fn share(client: &Client, screen: &Screen, place: &Place, kind: DataKind) -> Result<(), Problem> {
    checked(client, place, kind)?;
    let share = client.data_share(&place.tenant, &place.name)?;
    if screen.json {
        return screen.json(&share);
    }
    let mut pairs = Table::pairs().indented(2);
    pairs.pair("key", &share.key);
    if let Some(key) = &share.encryption_key {
        pairs.pair("encryption key", key.reveal());
    }
    pairs.pair("at", share.addresses.join(", "));
    pairs.pair("server", &share.server_public_key);
    screen.text(format!(
        "whoever has the key can ask for {} on the overlay; give it only to who may read it\n{pairs}",
        place.name
    ))
}

fn replicate(client: &Client, screen: &Screen, replicate: Replicate, kind: DataKind) -> Result<(), Problem> {
    let Replicate { place, peer, wait } = replicate;
    checked(client, &place, kind)?;
    let peers = match peer {
        Some(address) => client.data_peer_add(&place.tenant, &place.name, &DataPeerAdd { address })?,
        None => client.data_peers(&place.tenant, &place.name)?,
    };
    if wait {
        arrival(client, screen, &place)?;
    }
    screen.answer(&peers, |peers| {
        let mut table = Table::new(["PEER", "KEY", "VERSION"]);
        for peer in &peers.peers {
            table.row([peer.address.clone(), peer.public_key.clone(), peer.length.to_string()]);
        }
        table
    })
}

/// How often it is looked how much has come.
const LOOK: Duration = Duration::from_millis(300);

/// Until every block is here. Interrupted, only the looking on ends: the daemon goes on.
fn arrival(client: &Client, screen: &Screen, place: &Place) -> Result<(), Problem> {
    let bar = screen.shows_motion().then(|| ProgressBar::new(0));
    if let Some(bar) = &bar
        && let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} blocks {eta}")
    {
        bar.set_style(style);
    }
    loop {
        let data = client.data(&place.tenant, &place.name)?;
        bar.iter().for_each(|bar| {
            bar.set_length(data.length);
            bar.set_position(data.blocks_here);
        });
        if data.length > 0 && data.blocks_here >= data.length {
            bar.iter().for_each(ProgressBar::finish_and_clear);
            return Ok(());
        }
        thread::sleep(LOOK);
    }
}

fn catch_up(client: &Client, screen: &Screen, place: &Place, kind: DataKind) -> Result<(), Problem> {
    checked(client, place, kind)?;
    let data = client.data_catch_up(&place.tenant, &place.name)?;
    screen.answer(&data, |data| format!("{} goes on after version {}", data.name, data.length))
}

fn verify(client: &Client, screen: &Screen, place: &Place, kind: DataKind) -> Result<ExitCode, Problem> {
    checked(client, place, kind)?;
    let verified = client.data_verify(&place.tenant, &place.name)?;
    screen.answer(&verified, |verified| match verified.damaged.len() {
        0 => format!("{} blocks, all as they were signed", verified.blocks),
        _ => {
            let ranges = verified.damaged.iter().map(|(start, count)| format!("{start}+{count}"));
            let ranges = ranges.collect::<Vec<_>>().join(", ");
            format!("{} blocks; damaged, and asked for again: {ranges}", verified.blocks)
        }
    })?;
    Ok(if verified.damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn remove(client: &Client, screen: &Screen, place: &Place, kind: DataKind) -> Result<(), Problem> {
    checked(client, place, kind)?;
    let data = client.data_remove(&place.tenant, &place.name)?;
    screen.answer(&data, |data| format!("{} {} is removed from this host", kind_word(kind), data.name))
}

/// What every kind can do. The examples are those of a drive; it is the same with the others.
#[derive(Subcommand)]
pub enum Common {
    /// Make a new one, which this cloud writes
    #[command(after_help = "Example:\n  cloudpal drive create ada photos --encrypted\n\n\
                            Exit codes: 0 done, 3 no such tenant, 4 the name is taken.")]
    Create(Create),
    /// Download, keep and serve what somebody else writes
    #[command(after_help = "\
Examples:
  cloudpal drive seed ada holidays KEY
  cloudpal drive seed ada holidays KEY --encryption-key-stdin < key.txt

Exit codes: 0 done, 3 no such tenant, 4 the name is taken, 5 no key.")]
    Seed(Seed),
    /// The tenant's, with their sizes
    #[command(after_help = "Example:\n  cloudpal drive list ada\n\nExit codes: 0 done, 3 no such tenant.")]
    List {
        /// The tenant
        tenant: Name,
    },
    /// One of them
    #[command(after_help = "Example:\n  cloudpal drive show ada photos\n\nExit codes: 0 done, 3 not there.")]
    Show(Place),
    /// What another peer needs to take part: its key, and where to connect
    #[command(after_help = "Example:\n  cloudpal drive share ada photos\n\nExit codes: 0 done, 3 not there.")]
    Share(Place),
    /// Connect to a peer on the overlay and stay connected; or show who is connected
    #[command(after_help = "\
Peers that connect by themselves, at the address that `share` shows, need no such command.

Examples:
  cloudpal drive replicate ada photos laptop.ada.pal:49737
  cloudpal drive replicate ada photos --wait
  cloudpal drive replicate ada photos

Exit codes: 0 done, 3 not there, 5 no such address.")]
    Replicate(Replicate),
    /// Go on after what its key has signed elsewhere, which a writer restored from an old backup does not know
    #[command(after_help = "\
A cloud that was restored from a backup finds out from its peers that it had written more, and writes nothing until it
has caught up. What peers have proved is taken over; the blocks come from them by and by.

Example:
  cloudpal drive catch-up ada photos

Exit codes: 0 done, 3 not there, 5 the longer history is not here yet, or there are two, 9 no peer that has it.")]
    CatchUp(Place),
    /// Read every block and compare it with what was signed
    #[command(after_help = "Example:\n  cloudpal drive verify ada photos\n\n\
                            Exit codes: 0 all is well, 1 something is damaged, 3 not there.")]
    Verify(Place),
    /// Remove it from this host; what peers have stays with them
    #[command(
        after_help = "Example:\n  cloudpal drive remove ada photos\n\nExit codes: 0 done, 3 not there."
    )]
    Remove(Place),
}

pub fn common(verb: Common, kind: DataKind, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    match verb {
        Common::Create(create) => self::create(client, screen, create, kind)?,
        Common::Seed(seed) => self::seed(client, screen, seed, kind)?,
        Common::List { tenant } => list(client, screen, &tenant, Some(kind))?,
        Common::Show(place) => show(client, screen, &place, kind)?,
        Common::Share(place) => share(client, screen, &place, kind)?,
        Common::Replicate(replicate) => self::replicate(client, screen, replicate, kind)?,
        Common::CatchUp(place) => catch_up(client, screen, &place, kind)?,
        Common::Verify(place) => return verify(client, screen, &place, kind),
        Common::Remove(place) => remove(client, screen, &place, kind)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// At most so much is read from stdin as one value or block.
const MAX_VALUE_BYTES: u64 = 15 << 20;

/// The value that was given, or what comes on stdin.
fn value(given: Option<String>) -> Result<Vec<u8>, Problem> {
    if let Some(text) = given {
        return Ok(text.into_bytes());
    }
    let mut bytes = Vec::new();
    let read = io::stdin().take(MAX_VALUE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| Problem::io("reading stdin", &error))?;
    if bytes.len() as u64 > MAX_VALUE_BYTES {
        let what = "stdin has more than 15 MiB, which is the most that a block can have";
        return Err(Problem::new(Kind::Invalid, what, "put it into a drive"));
    }
    Ok(bytes)
}
