//! A host that was restored from an old backup, while a JavaScript peer knows what it has written since.

mod data_kit;
mod drive_peer;

use cloudpal_api::{Client, Data, DataFrozen, FileQuery};
use cloudpal_model::Kind;
use data_kit::{Host, fill, get, name, photo, put};
use drive_peer::{Peer, golden};
use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

fn until(what: &str, client: &Client, good: impl Fn(&Data) -> bool) -> Data {
    let started = Instant::now();
    loop {
        let data = client.data(&name("ada"), &name("photos")).unwrap();
        if good(&data) {
            return data;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: {data:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_drive_restored_from_an_old_backup_writes_nothing_until_it_has_caught_up() {
    let Some(golden) = golden() else { return };
    let Some(mut host) = Host::make() else { return };
    let (ada, photos, store) = (name("ada"), name("photos"), host.path("peer"));
    fill(&host.client());
    host.end("-TERM");
    copy(&host.path("state"), &host.path("backup"));

    host.start();
    let latest = put(&host.client(), "/dog.jpg", &photo());
    let mut peer = Peer::start(&host, &golden, &photos, &store);
    peer.ask(&format!("wait {latest}"));
    let all = peer.ask("all");
    assert!(all["blocks"].as_u64().is_some_and(|blocks| blocks > latest), "{all}");
    drop(peer);
    host.end("-KILL");
    fs::remove_dir_all(host.path("state")).unwrap();
    copy(&host.path("backup"), &host.path("state"));

    host.start();
    let client = host.client();
    let before = client.data(&ada, &photos).unwrap();
    assert!(before.frozen.is_none() && before.length < latest, "{before:?}");
    let peer = Peer::start(&host, &golden, &photos, &store);
    let behind = until("it does not find out", &client, |data| data.frozen.is_some());
    assert!(
        matches!(behind.frozen, Some(DataFrozen::Behind { length, .. }) if length >= latest),
        "{behind:?}"
    );
    let mut content: &[u8] = b"a second history";
    let query = FileQuery::default();
    let refused = client.file_put(&ada, &photos, "/other", &query, (&mut content, &mut |_| ())).unwrap_err();
    assert_eq!(refused.kind, Kind::Refused, "{refused}");
    assert!(refused.mend.contains("catch-up"), "{refused}");

    // Nobody is there any more to say how much it was.
    drop(peer);
    let refused = client.data_catch_up(&ada, &photos).unwrap_err();
    assert_eq!(refused.kind, Kind::Unavailable, "{refused}");
    assert!(client.data(&ada, &photos).unwrap().frozen.is_some());

    let mut peer = Peer::start(&host, &golden, &photos, &store);
    let caught = client.data_catch_up(&ada, &photos).unwrap();
    assert!(caught.frozen.is_none() && caught.length == latest, "{caught:?}");
    assert_eq!(get(&client, "/dog.jpg", None), photo());
    let next = put(&client, "/bird.jpg", b"after it");
    assert!(next > latest);
    assert_eq!(peer.ask(&format!("wait {next}"))["version"], next);
    let bird = host.path("bird");
    peer.ask(&format!("get /bird.jpg {}", bird.display()));
    assert_eq!(fs::read(bird).unwrap(), b"after it");
    until("its blocks are not all here", &client, |data| data.blocks_here == data.length);
    assert!(client.data_verify(&ada, &photos).unwrap().damaged.is_empty());
    // There is nothing to do the second time.
    assert_eq!(client.data_catch_up(&ada, &photos).unwrap().length, next);
}
