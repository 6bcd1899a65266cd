//! Builds the programs that the commands run.

use crate::{paths, shell};
use anyhow::Result;
use std::path::PathBuf;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    Dev,
    Release,
    /// As the tests' build leaves them: the libraries' features are those that the tests need, too.
    Tests,
}

#[derive(Clone)]
pub struct Programs {
    pub cloudpal: PathBuf,
    pub cloudpald: PathBuf,
}

pub fn build(profile: Profile) -> Result<Programs> {
    let (arguments, dir): (&[&str], _) = match profile {
        Profile::Dev => (&["build", "--package", "cloudpald", "--package", "cloudpal"], "debug"),
        Profile::Release => {
            (&["build", "--release", "--package", "cloudpald", "--package", "cloudpal"], "release")
        }
        Profile::Tests => (&["nextest", "run", "--workspace", "--no-run"], "debug"),
    };
    println!("build: cloudpald and cloudpal ({profile:?})");
    shell::run(shell::cargo(arguments).arg("--locked"))?;
    let built = |program| paths::target().join(dir).join(program);
    Ok(Programs { cloudpal: built("cloudpal"), cloudpald: built("cloudpald") })
}
