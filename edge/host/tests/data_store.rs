//! A store on a disk that replicates over TCP with the JavaScript stack: what came is there when the store is opened
//! again, and goes on from there.

use cloudpal_data::core::{Core, Durability, Frozen, Open};
use cloudpal_data::crypto::KeyPair;
use cloudpal_data::replication::{Event, Options, StoredCores};
use cloudpal_data::store::{self, RootKey, Store};
use cloudpal_host::data::disk::DirectoryDisk;
use cloudpal_host::data::transport::Hub;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

struct Peer {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Peer {
    fn start() -> Option<Peer> {
        let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../core/data/golden");
        if !golden.join("node_modules/hypercore").is_dir() {
            eprintln!("SKIPPED: the JavaScript stack is not installed; run `npm ci` in core/data/golden");
            return None;
        }
        let mut node = Command::new("node");
        node.args(["peer.js", "11"]).current_dir(golden).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut child) = node.kill_on_drop(true).spawn() else {
            eprintln!("SKIPPED: there is no node here, so that no JavaScript peer can be asked");
            return None;
        };
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Some(Peer { stdin: child.stdin.take().unwrap(), lines, _child: child })
    }

    async fn ask(&mut self, command: Value) -> Value {
        self.stdin.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        let line = tokio::time::timeout(Duration::from_secs(60), self.lines.next_line()).await;
        let answer: Value = serde_json::from_str(&line.unwrap().unwrap().unwrap()).unwrap();
        assert_eq!(answer.get("error"), None, "{command}");
        answer
    }
}

fn open(path: &Path, entropy: u8) -> StoredCores {
    let disk = DirectoryDisk::open(path, 8).unwrap();
    let store = Store::open(Arc::new(disk), RootKey([4; 32]), [entropy; 32], store::Options::default());
    StoredCores::new(store.unwrap())
}

fn hub(cores: StoredCores, number: u64, core: &Core) -> Hub<StoredCores> {
    let hub = Hub::new(KeyPair::from_seed(&[2; 32]), Options::default(), cores, 4);
    hub.with(|replication, _| replication.share(number, core));
    hub
}

fn block(index: u64, size: usize) -> Vec<u8> {
    (0..size).map(|at| (index * 7 + at as u64) as u8).collect()
}

async fn until(hub: &Hub<StoredCores>, what: impl Fn(&Event) -> bool) {
    let waiting = async { while !hub.events().await.iter().any(&what) {} };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it happens within a minute");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_javascript_writes_is_on_our_disk() {
    let Some(mut peer) = Peer::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let told = peer.ask(json!({"do": "open", "core": "a", "seed": 5})).await;
    peer.ask(json!({"do": "append", "core": "a", "start": 0, "count": 800, "size": 3000})).await;
    let port = peer.ask(json!({"do": "listen"})).await["port"].as_u64().unwrap() as u16;
    let key = told["key"].as_str().unwrap();
    let key: Vec<u8> = (0..32).map(|at| u8::from_str_radix(&key[2 * at..2 * at + 2], 16).unwrap()).collect();
    // Half of it, then the store is closed and opened again, and the rest comes.
    for (entropy, end) in [(1, 400), (2, 800)] {
        let mut cores = open(directory.path(), entropy);
        let store = cores.store().clone();
        let number = cores.open(&Open::key(key.clone().try_into().unwrap())).unwrap();
        let core = cores.core(number).unwrap().clone();
        let here = core.info().unwrap().stored_blocks;
        assert_eq!(here, end - 400, "what came before is still here");
        let hub = hub(cores, number, &core);
        let dialler = hub.clone();
        let dialling = tokio::spawn(async move { dialler.dial(([127, 0, 0, 1], port).into()).await });
        hub.with(|replication, _| replication.download(number, 0, Some(end)));
        until(&hub, |event| matches!(event, Event::Downloaded { .. })).await;
        for index in 0..end {
            assert_eq!(core.get(index).unwrap(), block(index, 3000));
        }
        assert!(core.verify().unwrap().is_empty());
        store.sync().unwrap();
        dialling.abort();
        let _ = dialling.await;
        drop((hub, core, store));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn javascript_reads_what_we_write_to_disk() {
    let Some(mut peer) = Peer::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut cores = open(directory.path(), 1);
    let pair = KeyPair::from_seed(&[1; 32]);
    let number = cores.open(&Open::pair(pair).encrypted([9; 32])).unwrap();
    let core = cores.core(number).unwrap().clone();
    let key: String = core.key().iter().map(|byte| format!("{byte:02x}")).collect();
    peer.ask(json!({"do": "open", "core": "a", "key": key, "encryption": "09".repeat(32)})).await;
    let port = peer.ask(json!({"do": "listen"})).await["port"].as_u64().unwrap() as u16;
    let hub = hub(cores, number, &core);
    let dialler = hub.clone();
    tokio::spawn(async move { dialler.dial(([127, 0, 0, 1], port).into()).await });
    for round in 0..5 {
        let blocks: Vec<Vec<u8>> = (round * 50..round * 50 + 50).map(|index| block(index, 500)).collect();
        core.append(&blocks.iter().map(Vec::as_slice).collect::<Vec<_>>(), Durability::Synced).unwrap();
        hub.with(|replication, _| replication.changed(number));
        let end = (round + 1) * 50;
        peer.ask(json!({"do": "download", "core": "a", "start": 0, "end": end})).await;
        let got = peer.ask(json!({"do": "get", "core": "a", "index": end - 1})).await;
        let expected: String = block(end - 1, 500).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(got["block"], expected);
    }
}

/// One key has signed two histories, one here and one with JavaScript: both stop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_histories_freeze_the_core_on_both_sides() {
    let Some(mut peer) = Peer::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut cores = open(directory.path(), 1);
    let number = cores.open(&Open::pair(KeyPair::from_seed(&[1; 32]))).unwrap();
    let core = cores.core(number).unwrap().clone();
    for index in 0..5 {
        core.append(&[&block(index, 100)], Durability::Synced).unwrap();
    }
    let told = peer.ask(json!({"do": "open", "core": "a", "seed": 1})).await;
    assert_eq!(told["key"], core.key().iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    peer.ask(json!({"do": "append", "core": "a", "start": 100, "count": 8, "size": 100})).await;
    let port = peer.ask(json!({"do": "listen"})).await["port"].as_u64().unwrap() as u16;
    let hub = hub(cores, number, &core);
    let dialing = hub.clone();
    tokio::spawn(async move { dialing.dial(([127, 0, 0, 1], port).into()).await });
    until(&hub, |event| matches!(event, Event::Frozen { .. })).await;
    assert!(matches!(core.frozen(), Ok(Some(Frozen::Conflict { .. }))));
    assert!(core.append(&[b"more"], Durability::Synced).is_err());
    assert_eq!(core.get(4).unwrap(), block(4, 100));
    // It prints what it has found, in words, before anything else.
    let line = tokio::time::timeout(Duration::from_secs(60), peer.lines.next_line()).await;
    let line = line.unwrap().unwrap().unwrap();
    assert!(line.contains("conflict detected"), "{line}");
}
