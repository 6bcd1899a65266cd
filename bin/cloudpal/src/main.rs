//! The CloudPal command line: noun, verb, and the daemon's API behind it. One file per noun.
//!
//! Invariants: what a program reads goes to stdout, everything else to stderr; with `--json` stdout holds the API's own
//! types and stderr the problem; the exit code tells the kind of the problem (see `exit`).

mod app;
mod completions;
mod data;
mod device;
mod exit;
mod host;
mod logs;
mod machine;
mod manifest;
mod operation;
mod qr;
mod screen;
mod table;
mod tenant;
mod units;

use clap::{Parser, Subcommand};
use cloudpal_api::Client;
use cloudpal_model::Problem;
use screen::Screen;
use std::{path::PathBuf, process::ExitCode};

/// Your own always-on device in the cloud: its network, its apps, asleep until a packet for them arrives.
#[derive(Parser)]
#[command(name = "cloudpal", version, after_help = exit::HELP, propagate_version = true, max_term_width = 100)]
struct Cli {
    /// Print JSON: the types of the API, whose description the daemon serves at /v1/openapi.json
    #[arg(long, global = true)]
    json: bool,
    /// The daemon's socket
    #[arg(long, global = true, value_name = "PATH", env = cloudpal_api::SOCKET_ENV,
          default_value = cloudpal_api::DEFAULT_SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Subcommand)]
enum Noun {
    /// A person's cloud on this host
    #[command(subcommand)]
    Tenant(tenant::Verb),
    /// A tenant's WireGuard clients
    #[command(subcommand)]
    Device(device::Verb),
    /// A tenant's apps
    #[command(subcommand)]
    App(app::Verb),
    /// The microVMs that the apps run in
    #[command(subcommand)]
    Machine(machine::Verb),
    /// Everything at a glance
    #[command(after_help = host::STATUS_HELP)]
    Status,
    /// Whether this host can do its work, and the mend where it cannot
    #[command(after_help = host::DOCTOR_HELP)]
    Doctor,
    /// What an app wrote to stdout and stderr
    #[command(after_help = logs::HELP)]
    Logs(logs::Args),
    /// A tenant's append-only logs, signed and replicated (Hypercore)
    #[command(subcommand)]
    Core(data::core::Verb),
    /// A tenant's sorted key-value stores, with their history (Hyperbee)
    #[command(subcommand)]
    Bee(data::bee::Verb),
    /// A tenant's files and folders, with their history, on all devices (Hyperdrive)
    #[command(subcommand)]
    Drive(data::drive::Verb),
    /// A tenant's key-value stores by paths (Hypertrie)
    #[command(subcommand)]
    Trie(data::trie::Verb),
    /// All of a tenant's data: what it takes, and its limit
    #[command(subcommand)]
    Data(data::Verb),
    /// The log of every change: who, what, when, and how it went
    #[command(subcommand)]
    Operation(operation::Verb),
    /// A completion script for your shell
    #[command(after_help = completions::HELP)]
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let screen = Screen::new(cli.json);
    run(cli, &screen).unwrap_or_else(|problem| {
        screen.problem(&problem);
        exit::code(problem.kind)
    })
}

fn run(cli: Cli, screen: &Screen) -> Result<ExitCode, Problem> {
    if let Noun::Completions(args) = cli.noun {
        return completions::run(args);
    }
    let client = Client::new(cli.socket)?;
    match cli.noun {
        Noun::Tenant(verb) => tenant::run(verb, &client, screen),
        Noun::Device(verb) => device::run(verb, &client, screen),
        Noun::App(verb) => app::run(verb, &client, screen),
        Noun::Machine(verb) => machine::run(verb, &client, screen),
        Noun::Status => host::status(&client, screen),
        Noun::Doctor => host::doctor(&client, screen),
        Noun::Logs(args) => logs::run(args, &client, screen),
        Noun::Core(verb) => data::core::run(verb, &client, screen),
        Noun::Bee(verb) => data::bee::run(verb, &client, screen),
        Noun::Drive(verb) => data::drive::run(verb, &client, screen),
        Noun::Trie(verb) => data::trie::run(verb, &client, screen),
        Noun::Data(verb) => data::run(verb, &client, screen),
        Noun::Operation(verb) => operation::run(verb, &client, screen),
        Noun::Completions(args) => completions::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Help is the manual: every command says what it is for and shows how it is used.
    #[test]
    fn every_command_is_documented_with_an_example() {
        fn visit(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} has no description");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path}: {} has no help", argument.get_id());
            }
            let mut children =
                command.get_subcommands().filter(|child| child.get_name() != "help").peekable();
            if children.peek().is_none() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{path} shows no example");
            }
            for child in children {
                visit(child, &format!("{path} {}", child.get_name()));
            }
        }
        visit(&Cli::command(), "cloudpal");
    }
}
