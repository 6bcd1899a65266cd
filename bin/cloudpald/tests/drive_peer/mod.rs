//! A JavaScript Hyperdrive peer in the network of the tenant of a daemon under test.
//!
//! Invariants: every wait has an end, and a failure says what the peer wrote until then; the peer is ended by its
//! process id.

use crate::data_kit::{Host, name};
use cloudpal_model::Name;
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::{self, JoinHandle},
    time::Duration,
};

/// Longer than the peer's own.
const PATIENCE: Duration = Duration::from_secs(90);

/// `None`: said why it is skipped.
pub fn golden() -> Option<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../core/data/golden");
    if !golden.join("node_modules/hyperdrive").is_dir() {
        eprintln!("SKIPPED: the JavaScript stack is not installed; `cargo xtask test` installs it");
        return None;
    }
    Some(golden)
}

pub struct Peer {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    complaints: Option<JoinHandle<String>>,
}

impl Peer {
    /// In the tenant's network, which is named in the daemon's own mount namespace. What it stores stays in `store`.
    pub fn start(host: &Host, golden: &Path, drive: &Name, store: &Path) -> Peer {
        let share = host.client().data_share(&name("ada"), drive).unwrap();
        let server = share.addresses[1].split(':').next().unwrap();
        let pid = host.daemon.as_ref().unwrap().id().to_string();
        let namespace = format!("{}-t1", host.instance());
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "--mount", "ip", "netns", "exec", &namespace, "node"]);
        command.arg(golden.join("drive_peer.js")).args([server, "49737", &share.key]).current_dir(golden);
        command.env("STORE_DIR", store);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut stderr = child.stderr.take().unwrap();
        let complaints = thread::spawn(move || {
            let mut text = String::new();
            let _ended = stderr.read_to_string(&mut text);
            text
        });
        let stdin = child.stdin.take().unwrap();
        let mut peer = Peer { child, stdin, lines, complaints: Some(complaints) };
        assert_eq!(peer.hear("the peer's start"), json!({ "ready": true }));
        peer
    }

    pub fn hear(&mut self, what: &str) -> Value {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => serde_json::from_str(&line).unwrap(),
            Err(error) => {
                let _gone = self.child.kill();
                let complaints = self.complaints.take().and_then(|thread| thread.join().ok());
                panic!("{what}: {error}; the peer wrote: {}", complaints.unwrap_or_default());
            }
        }
    }

    pub fn ask(&mut self, command: &str) -> Value {
        writeln!(self.stdin, "{command}").unwrap();
        self.hear(command)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _ended = self.child.wait();
    }
}
