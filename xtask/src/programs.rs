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
const RELEASED: &[&str] = &["build", "--release", "--package", "cloudpald", "--package", "cloudpal"];

pub fn build(profile: Profile) -> Result<Programs> {
    let (arguments, dir): (&[&str], _) = match profile {
        Profile::Dev => (PACKAGES, "debug"),
        Profile::Release => (RELEASED, "release"),
        Profile::Tests => (&["nextest", "run", "--workspace", "--no-run"], "debug"),
    };
    println!("build: cloudpald, cloudpal and cloudpal-vmm ({profile:?})");
    shell::run(shell::cargo(arguments).arg("--locked"))?;
    let programs = in_dir(&paths::target().join(dir));
    if profile == Profile::Release {
        // The daemon looks for it beside itself.
        std::fs::copy(static_vmm()?, &programs.cloudpal_vmm)?;
    }
    Ok(programs)
}

/// The embedded VMM for production: static, for a jail without files, and a third less memory.
pub fn static_vmm() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let mut cargo =
        shell::cargo(&["build", "--release", "--locked", "--package", "cloudpal-vmm", "--target", TARGET]);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    shell::run(&mut cargo)?;
    Ok(paths::target().join(TARGET).join("release/cloudpal-vmm"))
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
