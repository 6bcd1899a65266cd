//! Programs of the JavaScript stack, started from `golden/`, that talk in lines of JSON.

#![allow(dead_code)] // each test uses its part

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Where the scripts are, or `None`, and it is said, where they cannot run.
pub fn golden_dir() -> Option<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    let node = Command::new("node").arg("--version").stdout(Stdio::null()).status();
    if !node.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: there is no node here, so that no JavaScript peer can be asked");
        return None;
    }
    if !dir.join("node_modules/hypercore").is_dir() {
        eprintln!("SKIPPED: the JavaScript stack is not installed; run `npm ci` in core/data/golden");
        return None;
    }
    Some(dir)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// A running program. It is killed when this is dropped.
pub struct Peer {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
}

impl Peer {
    pub fn start(script: &str, arguments: &[&str]) -> Option<Peer> {
        let mut child = Command::new("node")
            .arg(script)
            .args(arguments)
            .current_dir(golden_dir()?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    Ok(value) => drop(sender.send(value)),
                    Err(_) => eprintln!("{line}"),
                }
            }
        });
        Some(Peer { child, stdin, lines })
    }

    pub fn tell(&mut self, command: &Value) {
        writeln!(self.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// The next line that it prints.
    pub fn hear(&self) -> Value {
        self.lines.recv_timeout(Duration::from_secs(120)).expect("the JavaScript peer answers in time")
    }

    pub fn try_hear(&self) -> Option<Value> {
        self.lines.try_recv().ok()
    }

    pub fn ask(&mut self, command: &Value) -> Value {
        self.tell(command);
        self.hear()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends when it is told nothing more, and removes its files, which one that is killed leaves behind.
        drop(self.stdin.take());
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(5) && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }
}
