//! `cloudpal core`: append-only logs.

use super::{Common, Place, checked, common, value};
use crate::screen::{Screen, printable};
use clap::Subcommand;
use cloudpal_api::{BlockCut, BlockQuery, Client, DataCursorMove, DataKind};
use cloudpal_model::{Name, Problem};
use std::{
    io::{self, Write},
    process::ExitCode,
    sync::mpsc,
    thread,
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
With --consumer it begins where the consumer of this name was, and keeps how far it came: what was not
written out comes again.

Examples:
  cloudpal core tail ada journal
  cloudpal core tail ada journal --start 100 --follow
  cloudpal core tail ada journal --consumer mailer --follow

Exit codes: 0 done, 3 not there.
With --json: one object a line, {\"block\": \"…\"}.")]
    Tail {
        #[command(flatten)]
        place: Place,
        /// The first block
        #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "consumer")]
        start: u64,
        /// Go on where the consumer of this name was
        #[arg(long, value_name = "NAME")]
        consumer: Option<Name>,
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
        Verb::Tail { place, start, consumer, end, follow } => {
            checked(client, &place, kind)?;
            let query = BlockQuery { follow, start: Some(start), end };
            let write = |block: &[u8]| line(screen, block);
            consume(client, screen, &place, (query, consumer.as_ref()), write)?;
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

/// Hands the blocks on; those of a consumer from where it was.
pub fn consume(
    client: &Client,
    screen: &Screen,
    place: &Place,
    (mut query, consumer): (BlockQuery, Option<&Name>),
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), Problem> {
    let Place { tenant, name } = place;
    let Some(consumer) = consumer else { return client.core_blocks(tenant, name, &query, &mut write) };
    let cursor = client.cursor(tenant, name, consumer)?;
    if cursor.cut {
        screen.note(format!("{name} was cut since; {consumer} goes on at block {}", cursor.next));
    }
    query.start = Some(cursor.next);
    // Calls to the daemon cannot be made from within one, so another thread keeps the cursor.
    let (written, positions) = mpsc::channel::<u64>();
    let socket = client.socket();
    thread::scope(|scope| {
        let keeper = scope.spawn(move || -> Result<(), Problem> {
            let client = Client::new(socket)?;
            while let Ok(next) = positions.recv() {
                let next = positions.try_iter().last().unwrap_or(next);
                client.cursor_move(tenant, name, consumer, &DataCursorMove { fork: cursor.fork, next })?;
            }
            Ok(())
        });
        let mut next = cursor.next;
        let read = client.core_blocks(tenant, name, &query, &mut |block| {
            write(block)?;
            next += 1;
            written.send(next).map_err(|_| io::Error::other("the consumer's place is not kept"))
        });
        drop(written);
        let kept = keeper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        kept.and(read)
    })
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
