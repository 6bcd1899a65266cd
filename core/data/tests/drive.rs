//! A drive of ours and one of JavaScript: the same operations write the same blocks into both cores, and what
//! either wrote the other reads and goes on from. `golden/drive.js` made `golden/drive.json`.

mod feed_kit;
mod javascript_kit;

use cloudpal_data::DataError;
use cloudpal_data::bee::{Header, Metadata};
use cloudpal_data::blobs::{BlobId, Blobs};
use cloudpal_data::crypto;
use cloudpal_data::drive::{
    Drive, Entry, File, Folder, Found, Keep, Kind, contents_key, contents_manifest, mirror_from, mirror_to,
};
use cloudpal_data::manifest::Manifest;
use feed_kit::{MemoryFeed, hex, hex_list, unhex, unhex_list};
use javascript_kit::Peer;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

type TestDrive = Drive<MemoryFeed, MemoryFeed>;

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/drive.json")).unwrap()
}

fn hash(bytes: &[u8]) -> String {
    hex(&crypto::hash(&[bytes])[..8])
}

/// The same contents as in the golden script.
fn contents(size: usize, seed: usize) -> Vec<u8> {
    (0..size).map(|i| (i * 31 + seed * 7 + (i >> 8)) as u8).collect()
}

fn empty() -> TestDrive {
    Drive::new(MemoryFeed::default(), MemoryFeed::default(), None)
}

fn first(drive: &mut TestDrive) {
    drive.put("/hello.txt", b"hello").unwrap();
    drive.put("empty", b"").unwrap();
    drive.put_with("/dir/one block", &contents(65536, 1), true, None).unwrap();
    let metadata = Some("{\"b\":1,\"a\":[\"x\",null,\"é\\n\"]}");
    drive.put_with("/dir/sub/more.bin", &contents(200_000, 2), false, metadata).unwrap();
    drive.symlink("/dir/link", "/hello.txt").unwrap();
    drive.symlink("/dir/beside", "../sub/more.bin").unwrap();
    drive.symlink("/loop", "/loop").unwrap();
}

/// All but the file that JavaScript streams: there each piece became a block.
fn second(drive: &mut TestDrive) {
    drive.put("/hello.txt", b"hello again").unwrap();
    assert!(drive.del("empty").unwrap());
    assert!(!drive.del("/never").unwrap());
    let mut batch = drive.batch();
    batch.put("/z/1", &contents(10, 3)).unwrap();
    batch.put("/z/2", &contents(66000, 4)).unwrap();
    batch.symlink("/z/3", "/z/1").unwrap();
    batch.del("/dir/one block").unwrap();
    batch.flush().unwrap();
}

/// The file that JavaScript streams, in the same pieces.
fn streamed(drive: &mut TestDrive) {
    let feed = drive.blobs().feed().clone();
    let (block_offset, byte_offset) =
        (feed.blocks.len() as u64, feed.blocks.iter().map(Vec::len).sum::<usize>());
    for size in [1000, 50000, 3] {
        drive.blobs_mut().feed_mut().blocks.push(contents(size, size));
    }
    let blob = BlobId {
        block_offset,
        byte_offset: byte_offset as u64,
        block_length: 3,
        byte_length: 51003,
        block_map: false,
    };
    let file = File { executable: true, blob: Some(blob), ..File::default() };
    drive.put_entry("/streamed", &file).unwrap();
}

fn told(drive: &TestDrive) -> Value {
    let head = drive.head();
    let listing: Value = head
        .list("/")
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let file: Value = serde_json::from_slice(&entry.file.encode().unwrap()).unwrap();
            json!([entry.seq, entry.path, file, drive.get(&entry.path).unwrap().map(|got| hash(&got))])
        })
        .collect();
    let below: Value = head
        .list("/dir")
        .unwrap()
        .map(|entry| entry.map(|entry| json!([entry.seq, entry.path])).unwrap())
        .collect();
    let names =
        |folder: &str| -> Value { head.readdir(folder).unwrap().map(|name| name.unwrap().0).collect() };
    let follow = |path: &str| head.follow(path).unwrap().unwrap().path;
    let part: Vec<Vec<u8>> =
        head.reader("/dir/sub/more.bin", 65000..135_000).unwrap().unwrap().map(Result::unwrap).collect();
    let looped = head.follow("/loop").is_err();
    json!({
        "version": drive.version(),
        "listing": listing,
        "below": below,
        "root": names("/"),
        "dir": names("/dir"),
        "follow": [follow("/dir/link"), follow("/dir/beside")],
        "loop": if looped { "Recursive symlink" } else { "" },
        "part": hash(&part.concat()),
    })
}

fn hashes(feed: &MemoryFeed) -> Value {
    feed.blocks.iter().map(|block| hash(block)).collect()
}

#[test]
fn the_same_operations_write_the_same_two_cores() {
    let golden = golden();
    let mut drive = empty();
    first(&mut drive);
    assert_eq!(told(&drive), golden["before"]);
    assert_eq!(drive.version(), golden["middle"]);
    second(&mut drive);
    streamed(&mut drive);
    assert_eq!(hex_list(&drive.db().feed().blocks), golden["db"]);
    assert_eq!(hashes(drive.blobs().feed()), golden["blobs"]);
    assert_eq!(told(&drive), golden["after"]);
    let middle = drive.checkout(golden["middle"].as_u64().unwrap()).unwrap();
    for (folder, wanted) in [("/", &golden["diff"]), ("/z", &golden["diff_dir"])] {
        let changes: Value = drive
            .head()
            .diff(&middle, folder)
            .unwrap()
            .map(|change| {
                let change = change.unwrap();
                let seq = |side: &Option<Entry>| side.as_ref().map(|entry| entry.seq);
                let path = change.left.as_ref().or(change.right.as_ref()).unwrap().path.clone();
                json!([seq(&change.left), seq(&change.right), path])
            })
            .collect();
        assert_eq!(&changes, wanted);
    }
}

#[test]
fn the_key_of_the_contents_follows_from_the_manifest_or_the_header() {
    let golden = golden();
    let manifest = Manifest::decode(&unhex(golden["manifest"].as_str().unwrap())).unwrap();
    let key = manifest.key();
    assert_eq!(hex(&key), golden["key"]);
    let header = Header::decode(&unhex(golden["db"][0].as_str().unwrap())).unwrap();
    let contents = contents_key(&header, Some(&manifest), &key).unwrap();
    assert_eq!(hex(&contents), golden["blobs_key"]);
    assert_eq!(contents_manifest(&manifest, &key).unwrap().key(), contents);
    let named = Metadata { content_feed: Some(vec![9; 32]), user_data: None };
    assert_eq!(contents_key(&Header::new(Some(named)), None, &key), Ok([9; 32]));
    let cut = Metadata { content_feed: Some(vec![9; 31]), user_data: None };
    assert!(contents_key(&Header::new(Some(cut)), Some(&manifest), &key).is_err());
    assert!(contents_key(&header, None, &key).is_err());
}

#[test]
fn javascript_reads_ours_and_we_theirs() {
    let Some(mut peer) = Peer::start("drive.js", &[]) else { return };
    let mut ours = empty();
    first(&mut ours);
    let answer = peer.ask(&json!({
        "db": hex_list(&ours.db().feed().blocks),
        "blobs": hex_list(&ours.blobs().feed().blocks),
    }));
    assert_eq!(answer["read"], told(&ours), "JavaScript reads what we wrote");
    second(&mut ours);
    streamed(&mut ours);
    assert_eq!(hex_list(&ours.db().feed().blocks), answer["db"], "and writes what we write");
    assert_eq!(hex_list(&ours.blobs().feed().blocks), answer["blobs"]);
    let feed = |name: &str| MemoryFeed::of(unhex_list(&answer[name]));
    let mut theirs = Drive::new(feed("db"), feed("blobs"), None);
    assert_eq!(told(&theirs), answer["after"], "we read what JavaScript wrote");
    // And it reads what we write on top of its own.
    theirs.del("/hello.txt").unwrap();
    theirs.put("/hello.txt", b"from us").unwrap();
    let answer = peer.ask(&json!({
        "db": hex_list(&theirs.db().feed().blocks),
        "blobs": hex_list(&theirs.blobs().feed().blocks),
    }));
    assert_eq!(answer["read"], told(&theirs));
}

#[test]
fn contents_with_a_map_of_blocks_are_read() {
    let golden = &golden()["dedup"];
    let twice: Vec<u8> = contents(3 * 65536, 9);
    let blocks = golden["maps"].as_array().unwrap().iter().map(|block| match block.as_str() {
        Some(map) => unhex(map),
        None => {
            let start =
                (0..3).map(|at| at * 65536).find(|at| hash(&twice[*at..at + 65536]) == block[0]).unwrap();
            twice[start..start + 65536].to_vec()
        }
    });
    let blobs = MemoryFeed::of(blocks.collect());
    let drive = Drive::new(MemoryFeed::of(unhex_list(&golden["db"])), blobs, None);
    let got = drive.get("/one").unwrap().unwrap();
    assert_eq!(hash(&got), golden["contents"].as_str().unwrap());
    let part = drive.head().reader("/one", 65530..65540).unwrap().unwrap().map(Result::unwrap);
    assert_eq!(part.collect::<Vec<_>>().concat(), &got[65530..65540]);
}

#[test]
fn blobs_are_read_in_any_part() {
    let mut blobs = Blobs::new(MemoryFeed::default());
    blobs.put(b"before").unwrap();
    let all = contents(300_000, 5);
    let mut writer = blobs.writer();
    all.chunks(7001).for_each(|part| writer.write(part).unwrap());
    let id = writer.finish().unwrap();
    assert_eq!((id.block_length, id.byte_length), (5, 300_000));
    blobs.put(b"after").unwrap();
    for part in [0..0, 0..1, 65535..65537, 131_072..131_073, 10..299_999, 299_999..300_001, 300_000..u64::MAX]
    {
        let wanted = &all[part.start as usize..(part.end as usize).min(all.len())];
        assert_eq!(blobs.read(&id, part).unwrap(), wanted);
    }
    // A name that claims more than there is, or another place, gives no bytes of others.
    let longer = BlobId { byte_length: 300_005, ..id };
    assert!(blobs.get(&longer).is_err());
    let elsewhere = BlobId { byte_offset: 0, ..id };
    assert!(blobs.read(&elsewhere, 1..300_000).is_err());
    let endless = BlobId { block_length: u64::MAX, byte_length: u64::MAX, ..id };
    assert!(blobs.get(&endless).is_err());
}

#[test]
fn what_was_deleted_comes_back_unless_it_was_purged() {
    let mut drive = empty();
    let large = contents(200_000, 1);
    drive.put("/a", &large).unwrap();
    drive.put("/a", b"second").unwrap();
    let version = drive.version();
    drive.put("/b", b"third").unwrap();
    drive.del("/a").unwrap();
    assert!(drive.undelete("/a").unwrap());
    assert_eq!(drive.get("/a").unwrap().unwrap(), b"second");
    assert!(!drive.undelete("/never").unwrap());
    assert!(drive.restore("/a", 2).unwrap());
    assert_eq!(drive.get("/a").unwrap().unwrap(), large);
    drive.put("/a", b"fourth").unwrap();
    // Of the earlier contents of /a go those that are not kept, and nothing else.
    let gone = |drive: &TestDrive| drive.blobs().feed().missing.borrow().len();
    assert_eq!(drive.purge(Keep::PerFile(2)).unwrap().blocks, 1, "the second one");
    assert_eq!(drive.get("/a").unwrap().unwrap(), b"fourth");
    assert_eq!(drive.checkout(2).unwrap().get("/a").unwrap().unwrap(), large);
    drive.purge(Keep::Since(drive.version())).unwrap();
    assert_eq!(gone(&drive), 5);
    assert_eq!(drive.checkout(version).unwrap().get("/a"), Err(DataError::NotHere { index: 4 }));
    assert_eq!(drive.restore("/a", 2), Err(DataError::NotHere { index: 0 }));
    assert_eq!(drive.get("/b").unwrap().unwrap(), b"third");
    assert_eq!(drive.purge(Keep::Since(drive.version())).unwrap().blocks, 5, "what is gone is gone again");
}

/// A folder in memory.
#[derive(Debug, Default, PartialEq)]
struct Shelf(BTreeMap<String, (Kind, Vec<u8>)>);

impl Folder for Shelf {
    fn list(&mut self) -> Result<Vec<Found>, DataError> {
        Ok(self.0.iter().map(|(path, (kind, _))| Found { path: path.clone(), kind: kind.clone() }).collect())
    }

    fn read(&mut self, path: &str, offset: u64, into: &mut [u8]) -> Result<usize, DataError> {
        let rest = self.0[path].1.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(into.len()).min(1000);
        into[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write(
        &mut self,
        path: &str,
        executable: bool,
        next: &mut dyn FnMut() -> Result<Option<Vec<u8>>, DataError>,
    ) -> Result<(), DataError> {
        let mut all = Vec::new();
        while let Some(part) = next()? {
            all.extend(part);
        }
        self.0.insert(path.into(), (Kind::File { executable, bytes: all.len() as u64 }, all));
        Ok(())
    }

    fn symlink(&mut self, path: &str, target: &str) -> Result<(), DataError> {
        self.0.insert(path.into(), (Kind::Link { target: target.into() }, Vec::new()));
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Result<(), DataError> {
        self.0.remove(path);
        Ok(())
    }
}

#[test]
fn a_drive_and_a_folder_become_the_same() {
    let mut drive = empty();
    first(&mut drive);
    let mut shelf = Shelf::default();
    shelf.write("/stale", false, &mut || Ok(None)).unwrap();
    let report = mirror_to(&drive.head(), &mut shelf, true).unwrap();
    assert_eq!((report.added.len(), report.removed), (7, vec!["/stale".to_owned()]));
    assert_eq!(shelf.0["/dir/sub/more.bin"].1, contents(200_000, 2));
    assert_eq!(mirror_to(&drive.head(), &mut shelf, true).unwrap().same, 7);
    // Back, after changes: of the same length, of the mode, of the kind, one new, one gone.
    shelf.0.get_mut("/dir/sub/more.bin").unwrap().1[199_999] ^= 1;
    shelf.0.get_mut("/hello.txt").unwrap().0 = Kind::File { executable: true, bytes: 5 };
    shelf.symlink("/empty", "/hello.txt").unwrap();
    shelf.symlink("/new", "hello.txt").unwrap();
    shelf.remove("/loop").unwrap();
    let version = drive.version();
    let report = mirror_from(&mut drive, &mut shelf, true).unwrap();
    assert_eq!(report.changed, ["/dir/sub/more.bin", "/empty", "/hello.txt"]);
    assert_eq!((report.added, report.removed, report.same), (vec!["/new".into()], vec!["/loop".into()], 3));
    assert_eq!(drive.version(), version + 5);
    let mut other = Shelf::default();
    mirror_to(&drive.head(), &mut other, true).unwrap();
    assert_eq!(other, shelf);
}

#[test]
fn names_that_lead_out_of_a_folder_stay_out() {
    let mut drive = empty();
    for path in ["files\0/../../etc/passwd", "files\0relative", "files\0/a//b", "files\0/a\0b", "files\0/ok"]
    {
        drive.db_mut().put(path.as_bytes(), b"{}").unwrap();
    }
    let mut shelf = Shelf::default();
    let report = mirror_to(&drive.head(), &mut shelf, true).unwrap();
    assert_eq!(report.added, ["/ok"]);
    assert_eq!(shelf.0.len(), 1);
}

/// An entry with such a blob.
fn blob(block_offset: u64, byte_offset: u64, block_length: u64, byte_length: u64, block_map: bool) -> String {
    let id = BlobId { block_offset, byte_offset, block_length, byte_length, block_map };
    json!({ "blob": serde_json::to_value(id).unwrap() }).to_string()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn entries_from_outside_do_no_harm(
        text in prop_oneof![
            "\\PC*",
            Just(blob(u64::MAX, 1, 9, 9, false)),
            (0..5u64, any::<u64>(), 0..9u64, any::<u64>(), any::<bool>())
                .prop_map(|(a, b, c, d, map)| blob(a, b, c, d, map)),
            (0..5u64, 0..100_000u64, 0..5u64, 0..100_000u64, any::<bool>())
                .prop_map(|(a, b, c, d, map)| blob(a, b, c, d, map)),
        ],
        block in prop::collection::vec(any::<u8>(), 0..40),
        start: u64,
        length in 0..1000u64,
    ) {
        let mut drive = empty();
        drive.put("/real", &contents(70_000, 1)).unwrap();
        drive.blobs_mut().feed_mut().blocks.push(block);
        drive.db_mut().put(b"files\0/x", text.as_bytes()).unwrap();
        let _ = drive.get("/x");
        for start in [start, start % 70_000] {
            if let Ok(Some(reader)) = drive.head().reader("/x", start..start.saturating_add(length)) {
                let all: usize = reader.map_while(Result::ok).map(|part| part.len()).sum();
                prop_assert!(all as u64 <= length);
            }
        }
        let _ = drive.head().follow("/x");
        let _ = drive.head().list("/").unwrap().count();
        let _ = drive.purgeable(Keep::PerFile(1));
        let _ = drive.undelete("/x");
        let _ = mirror_to(&drive.head(), &mut Shelf::default(), true);
    }
}
