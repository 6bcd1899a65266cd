//! `cloudpal completions`

use crate::{Cli, screen::Screen};
use clap::{CommandFactory, ValueEnum};
use cloudpal_model::Problem;
use std::process::ExitCode;

pub const HELP: &str = "\
Examples:
  cloudpal completions bash > /etc/bash_completion.d/cloudpal
  cloudpal completions zsh > ~/.zfunc/_cloudpal
  cloudpal completions fish > ~/.config/fish/completions/cloudpal.fish";

#[derive(clap::Args)]
pub struct Args {
    /// The shell
    shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub fn run(args: Args) -> Result<ExitCode, Problem> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    // Into memory first: the generator takes a closed pipe for a bug of its own.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cloudpal", &mut script);
    Screen::new(false).raw(&script)?;
    Ok(ExitCode::SUCCESS)
}
