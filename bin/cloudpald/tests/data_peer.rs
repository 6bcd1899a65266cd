//! A JavaScript Hyperdrive peer on the tenant's overlay, beside the real daemon: it reads, it follows, and what it
//! writes is kept and served here.
//!
//! Invariant: every wait has an end.

mod data_kit;
mod drive_peer;

use cloudpal_api::{Client, DataAdd, DataKind};
use cloudpal_model::Kind;
use data_kit::{Host, SECRET, add, fill, name, photo, put};
use drive_peer::{Peer, golden};
use serde_json::json;
use std::{
    fs, thread,
    time::{Duration, Instant},
};

/// For the contents of a drive that was just made known.
const SEED_PATIENCE: Duration = Duration::from_secs(60);

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
    let Some(golden) = golden() else { return };
    let Some(host) = Host::make() else { return };
    let client = host.client();
    fill(&client);
    let (ada, photos) = (name("ada"), name("photos"));
    let mut peer = Peer::start(&host, &golden, &photos, &host.path("peer"));

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
