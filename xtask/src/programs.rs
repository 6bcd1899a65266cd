//! Builds the programs that the commands run.

use crate::{paths, shell};
use anyhow::Result;
use std::path::{Path, PathBuf};

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
    pub cloudpal_vmm: PathBuf,
}

const PACKAGES: &[&str] =
    &["build", "--package", "cloudpald", "--package", "cloudpal", "--package", "cloudpal-vmm"];
const RELEASED: &[&str] =
    &["build", "--release", "--package", "cloudpald", "--package", "cloudpal", "--package", "cloudpal-vmm"];

pub fn build(profile: Profile) -> Result<Programs> {
    let (arguments, dir): (&[&str], _) = match profile {
        Profile::Dev => (PACKAGES, "debug"),
        Profile::Release => (RELEASED, "release"),
        Profile::Tests => (&["nextest", "run", "--workspace", "--no-run"], "debug"),
    };
    println!("build: cloudpald, cloudpal and cloudpal-vmm ({profile:?})");
    shell::run(shell::cargo(arguments).arg("--locked"))?;
    Ok(in_dir(&paths::target().join(dir)))
}

/// Those that lie in a directory already.
pub fn in_dir(dir: &Path) -> Programs {
    let built = |program| dir.join(program);
    Programs {
        cloudpal: built("cloudpal"),
        cloudpald: built("cloudpald"),
        cloudpal_vmm: built("cloudpal-vmm"),
    }
}
