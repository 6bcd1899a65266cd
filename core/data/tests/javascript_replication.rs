//! Replication with Hypercore 11 and 10 of the JavaScript stack over TCP on loopback.

mod golden_kit;
mod javascript_kit;
#[path = "javascript_kit/node.rs"]
mod node;
mod replication_kit;

use cloudpal_data::crypto::hash;
use cloudpal_data::replication::{Event, MemoryCore, PeerInfo, Replica};
use golden_kit::block;
use javascript_kit::{Peer, hex, unhex};
use node::Node;
use replication_kit::verifier;
use serde_json::json;

const VERSIONS: [&str; 2] = ["11", "10"];

fn blocks(range: std::ops::Range<u64>, size: u64) -> Vec<Vec<u8>> {
    range.map(|index| block(index, size)).collect()
}

fn append(node: &mut Node, range: std::ops::Range<u64>, size: u64) {
    let blocks = blocks(range, size);
    node.append(&blocks.iter().map(Vec::as_slice).collect::<Vec<_>>());
}

fn writer(compat: bool, length: u64, size: u64) -> Node {
    let (verifier, pair) = verifier(compat);
    let mut node = Node::new(1, MemoryCore::writer(verifier, pair));
    append(&mut node, 0..length, size);
    node
}

fn key(told: &serde_json::Value) -> [u8; 32] {
    unhex(told["key"].as_str().unwrap()).try_into().unwrap()
}

#[test]
fn we_write_and_javascript_reads() {
    for version in VERSIONS {
        for (compat, we_dial) in [(false, true), (true, false)] {
            let Some(mut peer) = Peer::start("peer.js", &[version]) else { return };
            let mut node = writer(compat, 1000, 100);
            peer.ask(&json!({"do": "open", "core": "a", "key": hex(&node.core().key())}));
            if we_dial {
                node.dial(&mut peer);
            } else {
                node.accept(&mut peer);
            }
            let got = node.ask(&mut peer, json!({"do": "get", "core": "a", "index": 777}));
            assert_eq!(got["block"], hex(&block(777, 100)), "hypercore {version}, compat {compat}");
            node.ask(&mut peer, json!({"do": "download", "core": "a", "start": 0, "end": 1000}));
            // Live: what is appended now arrives without being asked about.
            append(&mut node, 1000..1100, 100);
            let told = node.ask(&mut peer, json!({"do": "length", "core": "a", "length": 1100}));
            assert_eq!(told["length"], 1100);
            let got = node.ask(&mut peer, json!({"do": "get", "core": "a", "index": 1099}));
            assert_eq!(got["block"], hex(&block(1099, 100)));
            let seek = node.ask(&mut peer, json!({"do": "seek", "core": "a", "bytes": 105_050}));
            assert_eq!((seek["index"].as_u64(), seek["offset"].as_u64()), (Some(1050), Some(50)));
            assert_eq!(node.refused, []);
        }
    }
}

#[test]
fn javascript_writes_and_we_read() {
    for version in VERSIONS {
        for (compat, we_dial) in [(false, false), (true, true)] {
            let Some(mut peer) = Peer::start("peer.js", &[version]) else { return };
            let told = peer.ask(&json!({"do": "open", "core": "a", "seed": 5, "compat": compat}));
            peer.ask(&json!({"do": "append", "core": "a", "start": 0, "count": 1000, "size": 100}));
            let mut node = Node::new(1, MemoryCore::reader(key(&told)));
            let connection = if we_dial { node.dial(&mut peer) } else { node.accept(&mut peer) };
            node.replication.want(1, 777);
            node.run_until("one block", |node| node.events.contains(&Event::Block { core: 1, index: 777 }));
            assert_eq!(node.core().get(777), Some(&block(777, 100)[..]), "hypercore {version}, {compat}");
            assert!(!node.core().has(778));
            node.replication.want_seek(1, 50_050, 0);
            node.run_until("a seek", |node| node.core().seek(50_050) == Ok((500, 50)));
            let download = node.replication.download(1, 0, Some(1000));
            let done = Event::Downloaded { core: 1, download };
            node.run_until("all blocks", |node| node.events.contains(&done));
            node.replication.download(1, 0, None);
            peer.ask(&json!({"do": "append", "core": "a", "start": 1000, "count": 100, "size": 70_000}));
            node.run_until("live blocks", |node| node.core().first_missing(0, 1100).is_none());
            for index in 0..1100 {
                let size = if index < 1000 { 100 } else { 70_000 };
                assert!(node.core().get(index) == Some(&block(index, size)[..]), "block {index}");
            }
            assert_eq!(node.refused, []);
            node.hang_up(connection);
        }
    }
}

#[test]
fn forks_go_both_ways() {
    for version in VERSIONS {
        let Some(mut peer) = Peer::start("peer.js", &[version]) else { return };
        let told = peer.ask(&json!({"do": "open", "core": "a", "seed": 5}));
        peer.ask(&json!({"do": "append", "core": "a", "start": 0, "count": 200, "size": 50}));
        let mut node = Node::new(1, MemoryCore::reader(key(&told)));
        node.dial(&mut peer);
        node.replication.download(1, 0, None);
        node.run_until("all blocks", |node| {
            node.core().first_missing(0, 200).is_none() && node.core().has(199)
        });
        node.ask(&mut peer, json!({"do": "truncate", "core": "a", "length": 130}));
        node.ask(&mut peer, json!({"do": "append", "core": "a", "start": 1000, "count": 90, "size": 60}));
        node.run_until("the fork", |node| node.core().shown().length == 220 && node.core().has(219));
        node.run_until("its blocks", |node| node.core().first_missing(0, 220).is_none());
        assert_eq!(node.core().shown().fork, 1);
        assert_eq!(node.core().get(129), Some(&block(129, 50)[..]));
        assert_eq!(node.core().get(130), Some(&block(1000, 60)[..]));
        assert_eq!(node.core().get(219), Some(&block(1089, 60)[..]));

        let Some(mut peer) = Peer::start("peer.js", &[version]) else { return };
        let mut node = writer(false, 200, 50);
        peer.ask(&json!({"do": "open", "core": "a", "key": hex(&node.core().key())}));
        node.dial(&mut peer);
        node.ask(&mut peer, json!({"do": "download", "core": "a", "start": 0, "end": 200}));
        node.truncate(130, 1);
        append(&mut node, 1000..1090, 60);
        let told = node.ask(&mut peer, json!({"do": "fork", "core": "a", "fork": 1, "length": 220}));
        assert_eq!((told["length"].as_u64(), told["fork"].as_u64()), (Some(220), Some(1)), "{version}");
        for (index, expected) in [(129, block(129, 50)), (130, block(1000, 60)), (219, block(1089, 60))] {
            let got = node.ask(&mut peer, json!({"do": "get", "core": "a", "index": index}));
            assert_eq!(got["block"], hex(&expected), "block {index}");
        }
        assert_eq!(node.refused, []);
    }
}

#[test]
fn cut_in_the_middle_and_resumed() {
    let Some(mut peer) = Peer::start("peer.js", &["11"]) else { return };
    let told = peer.ask(&json!({"do": "open", "core": "a", "seed": 5}));
    peer.ask(&json!({"do": "append", "core": "a", "start": 0, "count": 3000, "size": 2000}));
    let mut node = Node::new(1, MemoryCore::reader(key(&told)));
    let download = node.replication.download(1, 0, Some(3000));
    let mut cuts = 0;
    let mut connection = node.dial(&mut peer);
    let mut next = 500;
    let done = Event::Downloaded { core: 1, download };
    node.run_until("a download that is cut", |node| {
        let here = node.core().first_missing(0, 3000).unwrap_or(3000);
        if here >= next && cuts < 4 {
            node.hang_up(connection);
            connection = node.accept(&mut peer);
            cuts += 1;
            next = here + 500;
        }
        node.events.contains(&done)
    });
    assert!(cuts >= 2, "{cuts}");
    // No block came much more than once: 6 MB in all, and what was under way at four cuts.
    let received: usize = node.received.values().sum();
    assert!(received < 12_000_000, "{received}");
}

#[test]
fn three_peers_of_which_one_lies() {
    let Some(mut honest) = Peer::start("peer.js", &["11"]) else { return };
    let told = honest.ask(&json!({"do": "open", "core": "a", "seed": 5}));
    honest.ask(&json!({"do": "append", "core": "a", "start": 0, "count": 500, "size": 5000}));
    let port = honest.ask(&json!({"do": "listen"}))["port"].clone();
    let mut others: Vec<Peer> =
        ["11", "10"].map(|version| Peer::start("peer.js", &[version]).unwrap()).into();
    for other in &mut others {
        other.ask(&json!({"do": "open", "core": "a", "key": told["key"]}));
        other.ask(&json!({"do": "dial", "port": port}));
        other.ask(&json!({"do": "download", "core": "a", "start": 0, "end": 500}));
        other.ask(&json!({"do": "hangup"}));
    }
    let mut liar = others.remove(0);
    liar.ask(&json!({"do": "lie", "core": "a"}));
    let mut node = Node::new(1, MemoryCore::reader(key(&told)));
    let from_liar = node.dial(&mut liar);
    let from_honest = node.dial(&mut honest);
    let from_old = node.dial(&mut others[0]);
    node.run_until("three peers", |node| {
        let knows_all = |peer: &PeerInfo| peer.contiguous_length == 500;
        let peers = node.replication.peers(1);
        peers.len() == 3 && peers.iter().all(knows_all) && node.core().shown().length == 500
    });
    let download = node.replication.download(1, 0, Some(500));
    let done = Event::Downloaded { core: 1, download };
    node.run_until("all blocks", |node| node.events.contains(&done));
    for index in 0..500 {
        assert!(node.core().get(index) == Some(&block(index, 5000)[..]), "block {index}");
    }
    assert_eq!(node.refused.len(), 1, "{:?}", node.refused);
    assert_eq!(node.refused[0].0, from_liar);
    // The others have shared the work: each has answered at least what is asked of a peer at first, 32 blocks. Which of
    // them does the rest is up to how much of the CPU each one's process is given.
    for peer in [from_honest, from_old] {
        assert!(node.received[&peer] > 32 * 5000, "{:?}", node.received);
    }
}

/// We hold and serve what we cannot read: the JavaScript writer is gone when the JavaScript reader comes.
#[test]
fn a_blind_seeder() {
    for version in VERSIONS {
        let Some(mut writer) = Peer::start("peer.js", &[version]) else { return };
        let encryption = "07".repeat(32);
        let told = writer.ask(&json!({"do": "open", "core": "a", "seed": 5, "encryption": encryption}));
        writer.ask(&json!({"do": "append", "core": "a", "start": 0, "count": 300, "size": 100}));
        let mut node = Node::new(1, MemoryCore::reader(key(&told)));
        node.dial(&mut writer);
        let download = node.replication.download(1, 0, Some(300));
        let done = Event::Downloaded { core: 1, download };
        node.run_until("all blocks", |node| node.events.contains(&done));
        writer.kill();
        node.run_until("the writer goes", |node| node.replication.peers(1).is_empty());
        let held = node.core().get(42).unwrap();
        assert_eq!(held.len(), 108);
        assert_ne!(held[8..], block(42, 100));
        let mut reader = Peer::start("peer.js", &[version]).unwrap();
        reader.ask(&json!({"do": "open", "core": "a", "key": told["key"], "encryption": encryption}));
        node.accept(&mut reader);
        let got = node.ask(&mut reader, json!({"do": "get", "core": "a", "index": 42}));
        assert_eq!(got["block"], hex(&block(42, 100)), "hypercore {version}");
        node.ask(&mut reader, json!({"do": "download", "core": "a", "start": 0, "end": 300}));
    }
}

/// Both ends write, each its own core, over one connection, and both read the other's.
#[test]
fn both_live_at_once() {
    let Some(mut peer) = Peer::start("peer.js", &["11"]) else { return };
    let mut node = writer(false, 0, 10);
    let told = peer.ask(&json!({"do": "open", "core": "theirs", "seed": 5}));
    peer.ask(&json!({"do": "open", "core": "ours", "key": hex(&node.core().key())}));
    node.cores.cores.insert(2, MemoryCore::reader(key(&told)));
    node.replication.share(2, &node.cores.cores[&2]);
    node.replication.download(2, 0, None);
    node.accept(&mut peer);
    for round in 0..10 {
        append(&mut node, round * 100..(round + 1) * 100, 500);
        let command =
            json!({"do": "append", "core": "theirs", "start": round * 100, "count": 100, "size": 300});
        node.ask(&mut peer, command);
        node.ask(&mut peer, json!({"do": "download", "core": "ours", "start": 0, "end": (round + 1) * 100}));
    }
    node.run_until("theirs", |node| node.cores.cores[&2].first_missing(0, 1000).is_none());
    for index in 0..1000 {
        assert_eq!(node.cores.cores[&2].get(index), Some(&block(index, 300)[..]));
    }
    let digest = node.ask(&mut peer, json!({"do": "digest", "core": "ours", "start": 0, "end": 1000}));
    let all: Vec<u8> = blocks(0..1000, 500).concat();
    assert_eq!(digest["digest"], hex(&hash(&[&all])));
    assert_eq!(node.refused, []);
}

#[test]
fn a_hundred_thousand_small_blocks_and_thousands_of_full_ones() {
    for (count, size) in [(100_000u64, 100u64), (4_000, 65_536)] {
        let Some(mut peer) = Peer::start("peer.js", &["11"]) else { return };
        let mut node = writer(false, count, size);
        peer.ask(&json!({"do": "open", "core": "a", "key": hex(&node.core().key())}));
        node.dial(&mut peer);
        node.ask(&mut peer, json!({"do": "download", "core": "a", "start": 0, "end": count}));
        let told = node.ask(&mut peer, json!({"do": "info", "core": "a"}));
        assert_eq!(told["contiguous"].as_u64(), Some(count));
        drop(node);
        // And back: who has it from us now gives it to another of ours.
        let mut node = Node::new(2, MemoryCore::reader(key(&told)));
        node.dial(&mut peer);
        let download = node.replication.download(1, 0, Some(count));
        let done = Event::Downloaded { core: 1, download };
        node.run_until("all blocks", |node| node.events.contains(&done));
        let whole = (0..count).all(|index| node.core().get(index) == Some(&block(index, size)[..]));
        assert!(whole);
    }
}

/// What we have not asked the bitfield of, we cannot know: the peer holds some blocks only.
#[test]
fn a_sparse_peer_is_asked_for_its_bitfield() {
    let Some(mut writer) = Peer::start("peer.js", &["11"]) else { return };
    let told = writer.ask(&json!({"do": "open", "core": "a", "seed": 5}));
    writer.ask(&json!({"do": "append", "core": "a", "start": 0, "count": 2000, "size": 50}));
    let port = writer.ask(&json!({"do": "listen"}))["port"].clone();
    let mut sparse = Peer::start("peer.js", &["11"]).unwrap();
    sparse.ask(&json!({"do": "open", "core": "a", "key": told["key"]}));
    sparse.ask(&json!({"do": "dial", "port": port}));
    for (start, end) in [(100, 200), (700, 710), (1500, 1501)] {
        sparse.ask(&json!({"do": "download", "core": "a", "start": start, "end": end}));
    }
    sparse.ask(&json!({"do": "hangup"}));
    writer.kill();
    let mut node = Node::new(1, MemoryCore::reader(key(&told)));
    node.dial(&mut sparse);
    node.replication.download(1, 0, None);
    node.run_until("what it has", |node| [150, 705, 1500].iter().all(|index| node.core().has(*index)));
    node.run_for(200);
    assert_eq!((0..2000).filter(|index| node.core().has(*index)).count(), 111);
    // And the other way: we are the sparse one now.
    let mut reader = Peer::start("peer.js", &["11"]).unwrap();
    reader.ask(&json!({"do": "open", "core": "a", "key": told["key"]}));
    node.dial(&mut reader);
    for index in [150, 705, 1500] {
        let got = node.ask(&mut reader, json!({"do": "get", "core": "a", "index": index}));
        assert_eq!(got["block"], hex(&block(index, 50)));
    }
    assert_eq!(node.refused, []);
}

#[test]
fn extensions_both_ways() {
    let Some(mut peer) = Peer::start("peer.js", &["11"]) else { return };
    let mut node = writer(false, 1, 10);
    peer.ask(&json!({"do": "open", "core": "a", "key": hex(&node.core().key())}));
    let connection = node.dial(&mut peer);
    node.ask(&mut peer, json!({"do": "get", "core": "a", "index": 0}));
    node.ask(&mut peer, json!({"do": "extension", "core": "a", "name": "greeting", "send": "from there"}));
    node.run_until("an extension", |node| {
        node.events.iter().any(|event| {
            matches!(event, Event::Extension { name, message, .. } if name == "greeting" && message == b"from there")
        })
    });
    node.replication.send_extension(connection, 1, "greeting", b"from here", 0).unwrap();
    let mut heard = None;
    node.run_until("an extension", |_| {
        heard = peer.try_hear();
        heard.is_some()
    });
    assert_eq!(heard.unwrap()["message"], "from here");
}
