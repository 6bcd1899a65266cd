//! `cloudpal operation`, and following an operation to its end.

use crate::{
    screen::{Screen, printable},
    table::Table,
    units::{show_ago, show_bytes},
};
use clap::Subcommand;
use cloudpal_api::{Client, Operation, OperationQuery, OperationState, Progress};
use cloudpal_model::{OperationId, Problem};
use indicatif::{ProgressBar, ProgressStyle};
use std::{process::ExitCode, thread, time::Duration};

/// How often a running operation is asked after.
const POLL: Duration = Duration::from_millis(150);

#[derive(Subcommand)]
pub enum Verb {
    /// The latest operations, newest first
    #[command(after_help = "Example:\n  cloudpal operation list --limit 5")]
    List {
        /// How many at most, up to 1000
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// One operation
    #[command(after_help = "\
A failed operation is shown, not an error of this command.

Example:
  cloudpal operation show op12

Exit codes: 0 shown, 3 no such operation.")]
    Show {
        /// Its number, with or without `op`
        #[arg(value_parser = id)]
        id: OperationId,
    },
}

fn id(text: &str) -> Result<OperationId, String> {
    let number = text.strip_prefix("op").unwrap_or(text);
    number
        .parse()
        .map(OperationId)
        .map_err(|_| "it is not an operation's number, for example op12".to_owned())
}

pub fn run(verb: Verb, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    match verb {
        Verb::List { limit } => {
            let query = OperationQuery { limit: Some(limit as usize) };
            screen.answer(&client.operations(query)?, |list| {
                let mut table = Table::new(["OPERATION", "WHEN", "WHO", "WHAT", "STATE"]);
                for operation in &list.operations {
                    table.row([
                        operation.id.to_string(),
                        show_ago(operation.at_wall_ms),
                        operation.actor.clone(),
                        operation.what.clone(),
                        state(operation),
                    ]);
                }
                table
            })?;
        }
        Verb::Show { id } => screen.answer(&client.operation(id)?, describe)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn state(operation: &Operation) -> String {
    match (&operation.state, &operation.progress, &operation.problem) {
        (OperationState::Running, Some(progress), _) => line(progress),
        (OperationState::Running, None, _) => "running".to_owned(),
        (OperationState::Done, _, _) => "done".to_owned(),
        (OperationState::Failed, _, Some(problem)) => format!("failed: {}", problem.detail),
        (OperationState::Failed, _, None) => "failed".to_owned(),
    }
}

fn describe(operation: &Operation) -> String {
    let mut pairs = Table::pairs().indented(2);
    pairs.pair("what", &operation.what);
    pairs.pair("who", &operation.actor);
    pairs.pair("when", show_ago(operation.at_wall_ms));
    pairs.pair("state", state(operation));
    if let Some(problem) = operation.problem.as_ref().filter(|problem| !problem.mend.is_empty()) {
        pairs.pair("mend", &problem.mend);
    }
    if !operation.undo.is_empty() {
        pairs.pair("undo", &operation.undo);
    }
    format!("{}\n{pairs}", operation.id)
}

fn line(progress: &Progress) -> String {
    let stage = printable(&progress.stage);
    match (progress.done_bytes, progress.total_bytes) {
        (0, 0) => stage,
        (done, 0) => format!("{stage} {}", show_bytes(done)),
        (done, total) => format!("{stage} {} of {}", show_bytes(done), show_bytes(total)),
    }
}

/// Waits for the operation's end, showing how far it is. A failed operation is its problem.
/// Interrupted, only the looking on ends: the operation goes on in the daemon.
pub fn follow(client: &Client, screen: &Screen, id: OperationId) -> Result<Operation, Problem> {
    let mut watcher = Watcher { bar: None, stage: String::new() };
    loop {
        let operation = client.operation(id)?;
        match operation.state {
            OperationState::Running => watcher.show(screen, operation.progress.as_ref()),
            OperationState::Done => {
                watcher.clear();
                return Ok(operation);
            }
            OperationState::Failed => {
                watcher.clear();
                return Err(failure(operation));
            }
        }
        thread::sleep(POLL);
    }
}

fn failure(operation: Operation) -> Problem {
    match operation.problem {
        Some(problem) => problem.into(),
        None => {
            let what = format!("{} ({}) failed", operation.id, operation.what);
            Problem::new(cloudpal_model::Kind::Internal, what, "see the daemon's log")
        }
    }
}

struct Watcher {
    /// Only on a terminal.
    bar: Option<ProgressBar>,
    stage: String,
}

impl Watcher {
    fn show(&mut self, screen: &Screen, progress: Option<&Progress>) {
        let Some(progress) = progress else { return };
        if screen.shows_motion() {
            self.bar.get_or_insert_with(bar);
        } else if self.stage != progress.stage {
            // Without a terminal: a line for each stage, so that a log stays short.
            self.stage.clone_from(&progress.stage);
            screen.note(line(progress));
        }
        if let Some(bar) = &self.bar {
            bar.set_message(printable(&progress.stage));
            match progress.total_bytes {
                0 => bar.unset_length(),
                total => bar.set_length(total),
            }
            bar.set_position(progress.done_bytes);
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    // The template is a constant: were it wrong, the default style would serve.
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {msg} {wide_bar} {binary_bytes}/{binary_total_bytes}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
