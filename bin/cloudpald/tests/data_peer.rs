//! A JavaScript Hyperdrive peer on the tenant's overlay, beside the real daemon: it reads, it follows, and what it
//! writes is kept and served here.
//!
//! Invariants: every wait has an end, and a failure says what the peer wrote until then; the peer is ended by its
//! process id.

mod data_kit;

use cloudpal_api::{Client, DataAdd, DataKind};
use cloudpal_model::Kind;
use data_kit::{Host, SECRET, add, fill, name, photo, put};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Longer than the peer's own.
const PATIENCE: Duration = Duration::from_secs(90);
/// For the contents of a drive that was just made known.
const SEED_PATIENCE: Duration = Duration::from_secs(60);

struct Peer {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    complaints: Option<JoinHandle<String>>,
}

impl Peer {
    /// In the tenant's network, which is named in the daemon's own mount namespace.
    fn start(host: &Host, golden: &Path, arguments: &[&str]) -> Peer {
        let pid = host.daemon.as_ref().unwrap().id().to_string();
        let namespace = format!("{}-t1", host.instance());
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "--mount", "ip", "netns", "exec", &namespace, "node"]);
        command.arg(golden.join("drive_peer.js")).args(arguments).current_dir(golden);
        // Killed, it leaves what it stored; that goes with the host's files.
        command.env("TMPDIR", host.path(""));
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
        Peer { child, stdin, lines, complaints: Some(complaints) }
    }

    fn hear(&mut self, what: &str) -> Value {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => serde_json::from_str(&line).unwrap(),
            Err(error) => {
                let _gone = self.child.kill();
                let complaints = self.complaints.take().and_then(|thread| thread.join().ok());
                panic!("{what}: {error}; the peer wrote: {}", complaints.unwrap_or_default());
            }
        }
    }

    fn ask(&mut self, command: &str) -> Value {
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

fn read(client: &Client, drive: &str, path: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut sink = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    client.file(&name("ada"), &name(drive), path, None, &mut sink).ok()?;
    Some(bytes)
}

#[test]
fn a_javascript_drive_takes_part_in_the_tenants_network() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../core/data/golden");
    if !golden.join("node_modules/hyperdrive").is_dir() {
        eprintln!("SKIPPED: the JavaScript stack is not installed; `cargo xtask test` installs it");
        return;
    }
    let Some(host) = Host::make() else { return };
    let client = host.client();
    fill(&client);
    let (ada, photos) = (name("ada"), name("photos"));
    let share = client.data_share(&ada, &photos).unwrap();
    let server = share.addresses[1].split(':').next().unwrap();
    let mut peer = Peer::start(&host, &golden, &[server, "49737", &share.key]);
    assert_eq!(peer.hear("the peer's start"), json!({ "ready": true }));

    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).to_string_lossy().into_owned();
    let got = peer.ask(&format!("get /cat.jpg {}", path("cat")));
    assert_eq!(got, json!({ "bytes": 1_000_003 }));
    assert!(fs::read(path("cat")).unwrap() == photo(), "the photo is another one");
    peer.ask(&format!("get /notes/today.txt {}", path("today")));
    assert_eq!(fs::read(path("today")).unwrap(), SECRET);

    // Live: what is written now comes by itself.
    let version = put(&client, "/new.txt", b"fresh");
    assert_eq!(peer.ask(&format!("wait {version}")), json!({ "version": version }));
    peer.ask(&format!("get /new.txt {}", path("new")));
    assert_eq!(fs::read(path("new")).unwrap(), b"fresh");

    // And the other way: what the device writes is kept and served here.
    let mine: Vec<u8> = photo().into_iter().rev().collect();
    fs::write(path("mine"), &mine).unwrap();
    assert!(peer.ask(&format!("put {} /mine.jpg", path("mine")))["version"].is_u64());
    let key = peer.ask("own")["key"].as_str().unwrap().to_owned();
    client.data_add(&ada, &DataAdd { key: Some(key), ..add("phone", DataKind::Drive) }).unwrap();
    let started = Instant::now();
    let mut found = None;
    // Until its drive is known here, it has no such file.
    while found.is_none() {
        assert!(started.elapsed() < SEED_PATIENCE, "the phone's file did not come");
        found = read(&client, "phone", "/mine.jpg");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(found == Some(mine), "the phone's photo is another one");
    let data = client.data(&ada, &name("phone")).unwrap();
    assert!(!data.writable && data.peers >= 1, "{data:?}");
    let refused = client.file_delete(&ada, &name("phone"), "/mine.jpg").unwrap_err();
    assert_eq!(refused.kind, Kind::Refused, "{refused}");
}
