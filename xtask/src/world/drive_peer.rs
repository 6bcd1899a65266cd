//! A JavaScript Hyperdrive on the phone (`core/data/golden/drive_peer.js`), told what to do a line at a time.
//!
//! Invariants: every wait has an end; a failure says what the peer wrote until then; it is ended by its process id.

use super::Namespace;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

/// Longer than the peer's own patience, so that it can say what it waits for.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct DrivePeer {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    log: PathBuf,
}

impl DrivePeer {
    /// Returns when it is connected and knows the drive. `log` takes what it writes to its standard error.
    pub fn start(place: &Namespace, golden: &Path, arguments: &[&str], log: PathBuf) -> Result<DrivePeer> {
        let script = golden.join("drive_peer.js");
        let mut command = place.exec("node", &[&script.to_string_lossy()]);
        command.args(arguments).current_dir(golden);
        // Killed, it leaves what it stored; that goes with the world's files.
        if let Some(files) = log.parent() {
            command.env("TMPDIR", files);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(fs::File::create(&log)?);
        let mut child = command.spawn().context("cannot start node")?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("node has no standard input or output");
        };
        let (sender, lines) = channel();
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let mut peer = DrivePeer { child, stdin, lines, log };
        let ready = peer.hear("connecting")?;
        ensure!(ready["ready"] == true, "the JavaScript drive said {ready} instead of being ready");
        Ok(peer)
    }

    pub fn ask(&mut self, command: &str) -> Result<Value> {
        writeln!(self.stdin, "{command}").context("the JavaScript drive has ended")?;
        self.hear(command)
    }

    fn hear(&mut self, what: &str) -> Result<Value> {
        let line = self.lines.recv_timeout(PATIENCE).with_context(|| {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            format!("{what}: no answer from the JavaScript drive; it wrote: {}", said.trim())
        })?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("{what}: {line}"))?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{what}: the JavaScript drive says: {error}");
        }
        Ok(answer)
    }
}

impl Drop for DrivePeer {
    fn drop(&mut self) {
        // It may have ended by itself in the meantime.
        let _gone = self.child.kill();
        let _ended = self.child.wait();
    }
}
