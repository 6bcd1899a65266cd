//! `cloudpal core`: append-only logs.

use super::{Common, Place, checked, common, value};
use crate::screen::{Screen, printable};
use clap::Subcommand;
use cloudpal_api::{BlockCut, BlockQuery, Client, DataKind};
use cloudpal_model::Problem;
use std::{
    io::{self, Write},
    process::ExitCode,
};

#[derive(Subcommand)]
pub enum Verb {
    #[command(flatten)]
    Common(Common),
    /// Append a block: the text given, or all of stdin
    #[command(after_help = "\
Examples:
  cloudpal core append ada journal 'water the plants'
  cloudpal core append ada journal < note.txt

Exit codes: 0 done, 3 not there, 5 somebody else writes it, 8 the disk or the quota is full.")]
    Append {
        #[command(flatten)]
        place: Place,
        /// The block; absent: stdin
        block: Option<String>,
    },
    /// One block, as it is
    #[command(after_help = "Example:\n  cloudpal core get ada journal 0\n\n\
                            Exit codes: 0 done, 3 no such block.")]
    Get {
        #[command(flatten)]
        place: Place,
        /// Its number, from 0
        index: u64,
    },
    /// The blocks one after the other, each on a line of its own
    #[command(after_help = "\
Examples:
  cloudpal core tail ada journal
  cloudpal core tail ada journal --start 100 --follow

Exit codes: 0 done, 3 not there.
With --json: one object a line, {\"block\": \"…\"}.")]
    Tail {
        #[command(flatten)]
        place: Place,
        /// The first block
        #[arg(long, value_name = "N", default_value_t = 0)]
        start: u64,
        /// Before this block
        #[arg(long, value_name = "N")]
        end: Option<u64>,
        /// Go on with what is appended from now on, until interrupted
        #[arg(short, long, conflicts_with = "end")]
        follow: bool,
    },
    /// Cut it to its first blocks, which makes a new fork
    #[command(after_help = "Example:\n  cloudpal core truncate ada journal 100\n\n\
                            Exit codes: 0 done, 3 not there, 5 somebody else writes it.")]
    Truncate {
        #[command(flatten)]
        place: Place,
        /// So many blocks stay
        length: u64,
    },
    /// Forget blocks here, and give their space back
    #[command(
        after_help = "Example:\n  cloudpal core clear ada journal 0 100\n\nExit codes: 0 done, 3 not there."
    )]
    Clear {
        #[command(flatten)]
        place: Place,
        /// From this block
        start: u64,
        /// Before this block
        end: u64,
    },
}

pub fn run(verb: Verb, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    let kind = DataKind::Core;
    match verb {
        Verb::Common(verb) => return common(verb, kind, client, screen),
        Verb::Append { place, block } => {
            checked(client, &place, kind)?;
            let appended = client.core_append(&place.tenant, &place.name, value(block)?)?;
            screen.answer(&appended, |appended| format!("{} has {} blocks", place.name, appended.version))?;
        }
        Verb::Get { place, index } => {
            checked(client, &place, kind)?;
            screen.raw(&client.core_block(&place.tenant, &place.name, index)?)?;
        }
        Verb::Tail { place, start, end, follow } => {
            checked(client, &place, kind)?;
            let query = BlockQuery { follow, start: Some(start), end };
            client.core_blocks(&place.tenant, &place.name, &query, &mut |block| line(screen, block))?;
        }
        Verb::Truncate { place, length } => {
            checked(client, &place, kind)?;
            let cut = client.core_cut(&place.tenant, &place.name, &BlockCut::Truncate { length })?;
            screen.answer(&cut, |cut| format!("{} has {} blocks", place.name, cut.version))?;
        }
        Verb::Clear { place, start, end } => {
            checked(client, &place, kind)?;
            let cut = client.core_cut(&place.tenant, &place.name, &BlockCut::Clear { start, end })?;
            screen
                .answer(&cut, |_| format!("blocks {start} to {end} of {} are forgotten here", place.name))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(screen: &Screen, block: &[u8]) -> io::Result<()> {
    let text = String::from_utf8_lossy(block);
    let mut stdout = io::stdout().lock();
    match (screen.json, screen.stdout_is_terminal()) {
        (true, _) => writeln!(stdout, "{}", serde_json::json!({ "block": text }))?,
        (false, true) => writeln!(stdout, "{}", printable(&text))?,
        (false, false) => {
            stdout.write_all(block)?;
            stdout.write_all(b"\n")?;
        }
    }
    stdout.flush()
}
