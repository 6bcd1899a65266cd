//! `cloudpal bee`: sorted key-value stores; and what tries share with them.

use super::{Common, Place, checked, common, value};
use crate::{
    screen::{Screen, printable},
    table::Table,
    units::show_bytes,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use cloudpal_api::{Client, DataKind, Entry, EntryList, EntryQuery, HistoryQuery};
use cloudpal_model::{Kind, Problem};
use std::process::ExitCode;

/// As it was at a version.
#[derive(Args)]
pub struct At {
    /// As it was when it had this version
    #[arg(id = "at", long, value_name = "VERSION")]
    pub version: Option<u64>,
}

#[derive(Subcommand)]
pub enum Verb {
    #[command(flatten)]
    Common(Common),
    #[command(flatten)]
    Keys(Keys),
}

/// Which key.
#[derive(Args)]
pub struct Key {
    /// The key
    key: String,
    /// The key is written as hexadecimal digits; keys may be any bytes
    #[arg(long)]
    hex: bool,
}

impl Key {
    fn bytes(&self) -> Result<Vec<u8>, Problem> {
        if !self.hex {
            return Ok(self.key.clone().into_bytes());
        }
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let read = || {
            let (pairs, []) = self.key.as_bytes().as_chunks::<2>() else { return None };
            pairs.iter().map(|[high, low]| Some((digit(*high)? * 16 + digit(*low)?) as u8)).collect()
        };
        read().ok_or_else(|| {
            let mend = "write two digits, 0 to 9 and a to f, for each byte";
            Problem::new(Kind::Invalid, format!("{:?} is not hexadecimal", self.key), mend)
        })
    }
}

/// What can be done with keys, in a bee as in a trie.
#[derive(Subcommand)]
pub enum Keys {
    /// Set a key: to the text given, or to all of stdin
    #[command(after_help = "\
Examples:
  cloudpal bee put ada contacts/grace grace@example.org
  cloudpal bee put ada contacts grace < card.vcf

Exit codes: 0 done, 3 not there, 5 somebody else writes it, 8 the disk or the quota is full.")]
    Put {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        key: Key,
        /// The value; absent: stdin
        value: Option<String>,
    },
    /// The value of a key, as it is
    #[command(after_help = "\
Examples:
  cloudpal bee get ada contacts grace
  cloudpal bee get ada contacts grace --at 12
  cloudpal bee get ada index 00ff80 --hex

Exit codes: 0 done, 3 no such key.")]
    Get {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        key: Key,
        #[command(flatten)]
        at: At,
    },
    /// Delete a key
    #[command(after_help = "Example:\n  cloudpal bee del ada contacts grace\n\n\
                            Exit codes: 0 done, 3 not there, 5 somebody else writes it.")]
    Del {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        key: Key,
    },
    /// The keys, in their order
    #[command(after_help = "\
Examples:
  cloudpal bee ls ada contacts
  cloudpal bee ls ada contacts --prefix gr --limit 10 --reverse

Exit codes: 0 done, 3 not there.")]
    Ls(Ls),
    /// What was written, newest first; or what changed between two versions
    #[command(after_help = "\
Examples:
  cloudpal bee history ada contacts
  cloudpal bee history ada contacts --since 12 --until 40

Exit codes: 0 done, 3 not there.")]
    History(History),
}

#[derive(Args)]
pub struct Ls {
    #[command(flatten)]
    place: Place,
    /// Only keys that begin so
    #[arg(long)]
    prefix: Option<String>,
    /// From this key on
    #[arg(long, value_name = "KEY")]
    from: Option<String>,
    /// Before this key
    #[arg(long, value_name = "KEY")]
    to: Option<String>,
    /// These keys are written as hexadecimal digits
    #[arg(long)]
    hex: bool,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u32,
    #[command(flatten)]
    at: At,
}

#[derive(Args)]
pub struct History {
    #[command(flatten)]
    pub place: Place,
    /// What changed since this version, each key once
    #[arg(long, value_name = "VERSION")]
    since: Option<u64>,
    /// Up to this version
    #[arg(long, value_name = "VERSION", requires = "since")]
    until: Option<u64>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
}

impl History {
    pub fn query(&self) -> HistoryQuery {
        HistoryQuery { since: self.since, until: self.until, limit: Some(self.limit) }
    }
}

pub fn run(verb: Verb, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    match verb {
        Verb::Common(verb) => common(verb, DataKind::Bee, client, screen),
        Verb::Keys(verb) => keys(verb, DataKind::Bee, client, screen),
    }
}

pub fn keys(verb: Keys, kind: DataKind, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    match verb {
        Keys::Put { place, key, value: given } => {
            checked(client, &place, kind)?;
            let put = client.entry_put(&place.tenant, &place.name, key.bytes()?, value(given)?)?;
            screen.answer(&put, |put| format!("{} has version {}", place.name, put.version))?;
        }
        Keys::Get { place, key, at } => {
            checked(client, &place, kind)?;
            screen.raw(&client.entry(&place.tenant, &place.name, key.bytes()?, at.version)?)?;
        }
        Keys::Del { place, key } => {
            checked(client, &place, kind)?;
            let deleted = client.entry_delete(&place.tenant, &place.name, key.bytes()?)?;
            screen.answer(&deleted, |deleted| format!("{} has version {}", place.name, deleted.version))?;
        }
        Keys::Ls(ls) => {
            let Ls { place, prefix, from, to, hex, reverse, limit, at } = ls;
            checked(client, &place, kind)?;
            let query = EntryQuery {
                version: at.version,
                hex,
                prefix,
                gte: from,
                lt: to,
                reverse,
                limit: Some(limit),
                ..EntryQuery::default()
            };
            let list = client.entries(&place.tenant, &place.name, &query)?;
            screen.answer(&list, |list| table(list, limit))?;
        }
        Keys::History(history) => {
            checked(client, &history.place, kind)?;
            let list = client.entry_history(&history.place.tenant, &history.place.name, &history.query())?;
            screen.answer(&list, |list| table(list, history.limit))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(list: &EntryList, limit: u32) -> String {
    let mut table = Table::new(["VERSION", "KEY", "SIZE", "VALUE"]);
    for entry in &list.entries {
        let (size, value) = value_of(entry);
        table.row([entry.version.to_string(), key_of(entry), size, value]);
    }
    let more = if list.more {
        format!("… and more: these are the first {limit} (--limit)\n")
    } else {
        String::new()
    };
    format!("{table}{more}")
}

/// As it can be typed: what is no text in hexadecimal digits, for `--hex`.
fn key_of(entry: &Entry) -> String {
    let bytes = STANDARD.decode(&entry.key_base64).unwrap_or_default();
    match String::from_utf8(bytes) {
        Ok(text) => printable(&text),
        Err(error) => {
            let digits: String = error.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{digits} (hex)")
        }
    }
}

/// Its size, and the beginning of what can be read of it.
fn value_of(entry: &Entry) -> (String, String) {
    const SHOWN: usize = 60;
    let Some(value) = &entry.value_base64 else { return ("deleted".to_owned(), String::new()) };
    let bytes = STANDARD.decode(value).unwrap_or_default();
    let size = show_bytes(bytes.len() as u64);
    match String::from_utf8(bytes) {
        Ok(text) => (size, printable(&text.chars().take(SHOWN).collect::<String>())),
        Err(_) => (size, "(no text)".to_owned()),
    }
}
