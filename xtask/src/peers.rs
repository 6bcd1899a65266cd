//! The JavaScript Hypercore stack, against which the data engine is tested.
//!
//! Invariant: exactly the versions of the committed lockfile; without Node the tests that need it are skipped, and it
//! is said.

use crate::{paths, shell};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where the scripts and their lockfile are.
pub fn dir() -> PathBuf {
    paths::root().join("core/data/golden")
}

/// The directory, if the stack is installed in it and there is a Node to run it.
pub fn installed_in(dir: &Path) -> Option<PathBuf> {
    let node = shell::succeeds(&mut shell::command("node", &["--version"]));
    (node && dir.join("node_modules/hyperdrive").is_dir()).then(|| dir.to_owned())
}

/// Installs the stack beside the golden data, unless it is there already.
pub fn install() -> Result<()> {
    if !shell::succeeds(&mut shell::command("npm", &["--version"])) {
        println!(
            "SKIPPED: there is no npm here, so no JavaScript core judges what ours writes (install nodejs and npm)"
        );
        return Ok(());
    }
    let dir = dir();
    let lock =
        fs::read(dir.join("package-lock.json")).context("the lockfile of the JavaScript stack is missing")?;
    let stamp = dir.join("node_modules/.installed-lock.json");
    if fs::read(&stamp).is_ok_and(|installed| installed == lock) {
        return Ok(());
    }
    println!("peers: installing the JavaScript Hypercore stack (npm ci)");
    shell::output(shell::command("npm", &["ci", "--no-audit", "--no-fund"]).current_dir(&dir))?;
    fs::write(&stamp, lock).context("cannot note what was installed")
}
