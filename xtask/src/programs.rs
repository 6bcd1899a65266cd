//! Builds the programs that the commands run.

use crate::{paths, shell};
use anyhow::Result;
use std::path::PathBuf;

/// `Dev` is what the tests are built with, so that both share one build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    Dev,
    Release,
}

#[derive(Clone)]
pub struct Programs {
    pub cloudpal: PathBuf,
    pub cloudpald: PathBuf,
}

pub fn build(profile: Profile) -> Result<Programs> {
    let (name, dir) = match profile {
        Profile::Dev => ("dev", "debug"),
        Profile::Release => ("release", "release"),
    };
    println!("build: cloudpald and cloudpal ({name})");
    let arguments =
        ["build", "--locked", "--profile", name, "--package", "cloudpald", "--package", "cloudpal"];
    shell::run(shell::command("cargo", &arguments).current_dir(paths::root()))?;
    let built = |program| paths::target().join(dir).join(program);
    Ok(Programs { cloudpal: built("cloudpal"), cloudpald: built("cloudpald") })
}
