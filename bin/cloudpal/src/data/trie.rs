//! `cloudpal trie`: key-value stores by paths.

use super::{Common, bee, common};
use crate::screen::Screen;
use clap::Subcommand;
use cloudpal_api::{Client, DataKind};
use cloudpal_model::Problem;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Verb {
    #[command(flatten)]
    Common(Common),
    #[command(flatten)]
    Keys(bee::Keys),
}

pub fn run(verb: Verb, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    match verb {
        Verb::Common(verb) => common(verb, DataKind::Trie, client, screen),
        Verb::Keys(verb) => bee::keys(verb, DataKind::Trie, client, screen),
    }
}
