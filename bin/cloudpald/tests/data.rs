//! A tenant's data through the real daemon and its API: kept across a restart, sealed on the disk, within its quota.

mod data_kit;

use cloudpal_api::{
    BlockCut, BlockQuery, Client, DataKind, DataQuota, EntryQuery, FileKind, FileListQuery, FilePurge,
    FileQuery, HistoryQuery,
};
use cloudpal_model::Kind;
use data_kit::{Host, SECRET, add, fill, get, name, photo, put};
use std::{fs, path::Path};

fn check(client: &Client) {
    let ada = name("ada");
    let mut blocks = Vec::new();
    let query = BlockQuery { start: Some(1), ..BlockQuery::default() };
    client
        .core_blocks(&ada, &name("journal"), &query, &mut |block| {
            blocks.push(block.to_vec());
            Ok(())
        })
        .unwrap();
    assert_eq!(blocks, [b"day 1".to_vec(), b"day 2".to_vec()]);
    assert_eq!(client.core_block(&ada, &name("journal"), 0).unwrap(), b"day 0");
    assert_eq!(client.core_block(&ada, &name("journal"), 3).unwrap_err().kind, Kind::NotFound);
    for kind in ["contacts", "paths"] {
        assert_eq!(client.entry(&ada, &name(kind), "ada", None).unwrap(), b"lovelace");
        assert_eq!(client.entry(&ada, &name(kind), "a/b c%", None).unwrap(), b"odd");
        assert_eq!(client.entry(&ada, &name(kind), "nobody", None).unwrap_err().kind, Kind::NotFound);
    }
    let list = client.entries(&ada, &name("contacts"), &EntryQuery::default()).unwrap();
    let keys: Vec<&str> = list.entries.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["a/b c%", "ada", "grace", "secret"]);
    let two = EntryQuery { limit: Some(2), reverse: true, ..EntryQuery::default() };
    assert!(client.entries(&ada, &name("contacts"), &two).unwrap().more);
    assert_eq!(get(client, "/cat.jpg", None), photo());
    assert_eq!(get(client, "/notes/today.txt", None), SECRET);
    let root = client.files(&ada, &name("photos"), &FileListQuery::default()).unwrap();
    let shown: Vec<_> = root.files.iter().map(|file| (file.path.as_str(), file.kind.clone())).collect();
    assert_eq!(shown, [("/cat.jpg", FileKind::File), ("/notes", FileKind::Folder)]);
}

#[test]
fn data_outlives_the_daemon_and_its_crash_and_is_sealed() {
    let Some(mut host) = Host::make() else { return };
    fill(&host.client());
    check(&host.client());
    for signal in ["-KILL", "-TERM"] {
        host.end(signal);
        host.start();
        check(&host.client());
    }
    // Nothing of the owner's is in any file in the clear: no name, no key, no content.
    let mut files = 0;
    let photo = photo();
    let plain: [&[u8]; 5] = [SECRET, b"contacts", b"lovelace", b"cat.jpg", &photo[5000..5040]];
    visit(&host.path("state/data"), &mut |bytes| {
        files += 1;
        for text in plain {
            let found = bytes.windows(text.len()).any(|window| window == text);
            assert!(!found, "{:?} is on the disk in the clear", String::from_utf8_lossy(text));
        }
    });
    assert!(files > 1);
    let client = host.client();
    let verified = client.data_verify(&name("ada"), &name("photos")).unwrap();
    assert!(verified.blocks > 16 && verified.damaged.is_empty(), "{verified:?}");
}

fn visit(dir: &Path, look: &mut dyn FnMut(&[u8])) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { visit(&path, look) } else { look(&fs::read(&path).unwrap()) }
    }
}

#[test]
fn the_past_can_be_read_and_its_space_given_back() {
    let Some(host) = Host::make() else { return };
    let client = host.client();
    fill(&client);
    let (ada, photos) = (name("ada"), name("photos"));
    let before = client.data(&ada, &photos).unwrap().length;
    put(&client, "/cat.jpg", b"a smaller cat");
    client.file_delete(&ada, &photos, "/notes/today.txt").unwrap();
    assert_eq!(client.file_delete(&ada, &photos, "/none").unwrap_err().kind, Kind::NotFound);
    assert_eq!(get(&client, "/cat.jpg", None), b"a smaller cat");
    assert_eq!(get(&client, "/cat.jpg", Some(before)), photo());
    assert_eq!(get(&client, "/notes/today.txt", Some(before)), SECRET);
    let since = HistoryQuery { since: Some(before), ..HistoryQuery::default() };
    let changes = client.file_history(&ada, &photos, &since).unwrap().files;
    let shown: Vec<_> = changes.iter().map(|file| (file.path.as_str(), file.kind.clone())).collect();
    assert_eq!(shown, [("/cat.jpg", FileKind::File), ("/notes/today.txt", FileKind::Removed)]);
    let all = client.file_history(&ada, &photos, &HistoryQuery::default()).unwrap().files;
    assert_eq!(all.len(), 4);

    client.entry_delete(&ada, &name("contacts"), "grace").unwrap();
    let history = client.entry_history(&ada, &name("contacts"), &HistoryQuery::default()).unwrap();
    assert_eq!((history.entries.len(), history.entries[0].value_base64.as_ref()), (5, None));

    let now = client.data(&ada, &photos).unwrap().length;
    let disk_bytes = |client: &Client| client.data_list(&ada).unwrap().disk_bytes;
    let full = disk_bytes(&client);
    client.file_purge(&ada, &photos, &FilePurge { keep_from: now }).unwrap();
    client.data_compact(&ada).unwrap();
    assert!(disk_bytes(&client) + 900_000 < full, "{} of {full}", disk_bytes(&client));
    assert_eq!(get(&client, "/cat.jpg", None), b"a smaller cat");

    let cut = client.core_cut(&ada, &name("journal"), &BlockCut::Truncate { length: 1 }).unwrap();
    assert_eq!(cut.version, 1);
    assert_eq!(client.data(&ada, &name("journal")).unwrap().fork, 1);
    assert!(client.core_cut(&ada, &name("journal"), &BlockCut::Truncate { length: 5 }).is_err());
    // A name that is used again is another core: one key never signs two histories.
    let first = client.data(&ada, &name("journal")).unwrap().key;
    client.data_remove(&ada, &name("journal")).unwrap();
    assert_eq!(client.data(&ada, &name("journal")).unwrap_err().kind, Kind::NotFound);
    client.data_add(&ada, &add("journal", DataKind::Core)).unwrap();
    assert_ne!(client.data(&ada, &name("journal")).unwrap().key, first);

    client.data_quota(&ada, &DataQuota { quota_bytes: Some(disk_bytes(&client) + 100_000) }).unwrap();
    let mut photo = &photo()[..];
    let query = FileQuery::default();
    let refused = client.file_put(&ada, &photos, "/two.jpg", &query, (&mut photo, &mut |_| ())).unwrap_err();
    assert_eq!(refused.kind, Kind::DiskFull, "{refused}");
    assert_eq!(get(&client, "/cat.jpg", None), b"a smaller cat", "reads go on");
}
