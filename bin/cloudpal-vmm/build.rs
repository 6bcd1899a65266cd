//! Builds the tiny guest with the same compiler: a freestanding ELF of a few KB that the library carries in itself.
//!
//! The stock toolchain has `core` for the host's target, and nothing else is needed: no libc, no start files, a link
//! script of our own.

use std::{env, error::Error, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    for input in ["guest/tiny.rs", "guest/tiny.ld", "src/protocol.rs"] {
        println!("cargo::rerun-if-changed={input}");
    }
    let guest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("guest");
    let elf = PathBuf::from(env::var("OUT_DIR")?).join("tiny-guest.elf");
    let script =
        format!("link-arg=-Wl,-T,{},--build-id=none,-z,noexecstack", guest.join("tiny.ld").display());
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc.args(["--edition=2024", "--crate-name=tiny_guest", "--crate-type=bin"]);
    rustc.args(["--target=x86_64-unknown-linux-gnu", "-Dwarnings", "-Cpanic=abort", "-Copt-level=s"]);
    rustc.args(["-Crelocation-model=static", "-Cforce-unwind-tables=no", "-Cstrip=symbols"]);
    rustc.args(["-Clink-arg=-nostdlib", "-Clink-arg=-static", "-Clink-arg=-no-pie", "-C", &script]);
    let status = rustc.arg("-o").arg(&elf).arg(guest.join("tiny.rs")).status()?;
    if !status.success() {
        return Err("the tiny guest does not build: rustc's words stand above".into());
    }
    Ok(())
}
