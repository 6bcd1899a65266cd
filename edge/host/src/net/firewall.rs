//! nftables: a whole rule set in one transaction, in one namespace.
//!
//! Invariant: nft applies all of a text or nothing of it, so there is never half a rule set.

use crate::net::namespace::Namespace;
use cloudpal_model::{Kind, Problem};
use std::{
    io::{self, Write},
    process::{Command, Output, Stdio},
    sync::Arc,
};

/// Applies the text in the namespace, or in the daemon's own.
pub async fn apply(namespace: Option<Arc<Namespace>>, text: String) -> Result<(), Problem> {
    let applied = tokio::task::spawn_blocking(move || match namespace {
        Some(namespace) => namespace.run(|| nft(&text)).and_then(|output| output),
        None => nft(&text),
    })
    .await
    .unwrap_or_else(|e| Err(io::Error::other(e)));
    let output = applied.map_err(|e| missing(&e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let what = format!("nft refused the rule set: {}", said.trim());
    Err(Problem::new(
        Kind::Internal,
        what,
        "check that the kernel has nf_tables with nat (modprobe nft_chain_nat)",
    ))
}

/// Whether the daemon's own namespace has this table.
pub async fn has_table(name: String) -> Result<bool, Problem> {
    let listed = tokio::task::spawn_blocking(move || {
        let mut nft = Command::new("nft");
        nft.args(["list", "table", "inet", &name]).stdin(Stdio::null());
        nft.stdout(Stdio::null()).stderr(Stdio::null()).status()
    });
    let status = listed.await.unwrap_or_else(|e| Err(io::Error::other(e)));
    status.map(|status| status.success()).map_err(|e| missing(&e))
}

/// The problem when nft cannot be started.
pub fn missing(error: &io::Error) -> Problem {
    Problem::new(
        Kind::HostLacks,
        format!("nft cannot be run: {error}"),
        match error.kind() {
            io::ErrorKind::NotFound => "install it: apt-get install nftables",
            _ => "see the daemon's log",
        },
    )
}

/// Runs `nft -f -`; the child has the calling thread's namespace.
fn nft(text: &str) -> io::Result<Output> {
    let piped = Stdio::piped;
    let mut child =
        Command::new("nft").args(["-f", "-"]).stdin(piped()).stdout(Stdio::null()).stderr(piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(text.as_bytes()) {
            // It gave up early; what it said on stderr is the answer.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    child.wait_with_output()
}
