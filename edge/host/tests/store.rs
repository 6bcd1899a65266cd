//! The state store, on a real file system.

use cloudpal_host::store::RedbStore;
use cloudpal_model::{
    Kind,
    store::{Change, Store},
};
use std::{fs, os::unix::fs::PermissionsExt};

fn put(key: &str, value: &str) -> Change {
    Change::Put { key: key.to_owned(), value: value.as_bytes().to_vec() }
}

#[test]
fn what_was_committed_is_there_after_reopening_and_only_the_owner_may_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let mut store = RedbStore::open(&path).unwrap();
    assert_eq!(store.load().unwrap(), []);
    store.commit(&[put("b", "2"), put("a", "1"), put("c", "3")]).unwrap();
    store.commit(&[put("a", "one"), Change::Delete { key: "c".to_owned() }]).unwrap();
    drop(store);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let wanted = [("a".to_owned(), b"one".to_vec()), ("b".to_owned(), b"2".to_vec())];
    assert_eq!(RedbStore::open(&path).unwrap().load().unwrap(), wanted);
}

#[test]
fn a_second_daemon_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let _first = RedbStore::open(&path).unwrap();
    let problem = RedbStore::open(&path).err().expect("the store is locked");
    assert_eq!(problem.kind, Kind::Taken);
    assert!(problem.what.contains("in use by another daemon"), "{problem}");
}

#[test]
fn every_kind_of_damage_is_named_with_its_mend_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.redb");
    let mut store = RedbStore::open(&path).unwrap();
    for number in 0..200 {
        store.commit(&[put(&format!("record/{number:03}"), &"x".repeat(500))]).unwrap();
    }
    drop(store);
    let good = fs::read(&path).unwrap();
    let mut refused = 0;
    let mut damages: Vec<(String, Vec<u8>)> = vec![
        ("garbage".to_owned(), vec![0x5a; 4096]),
        ("text".to_owned(), b"{}".to_vec()),
        ("cut in the magic".to_owned(), good[..5].to_vec()),
        ("cut after the header".to_owned(), good[..4096].to_vec()),
        ("cut in half".to_owned(), good[..good.len() / 2].to_vec()),
    ];
    for at in (0..good.len()).step_by(4096) {
        let mut bytes = good.clone();
        bytes[at..(at + 512).min(good.len())].fill(0xa5);
        damages.push((format!("512 bytes at {at}"), bytes));
    }
    let whole = RedbStore::open(&path).unwrap().load().unwrap();
    for (name, bytes) in damages {
        fs::write(&path, &bytes).unwrap();
        match RedbStore::open(&path).and_then(|store| store.load()) {
            // Damage to a free page harms nothing.
            Ok(loaded) => assert_eq!(loaded, whole, "{name}: other records than were written"),
            Err(problem) => {
                refused += 1;
                assert!(problem.what.contains("state.redb") && !problem.mend.is_empty(), "{name}: {problem}");
            }
        }
    }
    assert!(refused >= 5, "only {refused} damages were noticed");
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let problem =
        RedbStore::open(std::path::Path::new("/proc/no/state.redb")).err().expect("cannot be written");
    assert!(problem.what.contains("/proc/no/state.redb"), "{problem}");
}

/// A file system of a few MiB, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mib: u32) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).status();
        mounted.is_ok_and(|status| status.success()).then_some(SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_full_disk_is_told_loses_nothing_and_is_survived() {
    let Some(disk) = SmallDisk::mount(6) else {
        eprintln!("skipped: mounting a small tmpfs needs root");
        return;
    };
    let path = disk.0.path().join("state.redb");
    let mut store = RedbStore::open(&path).unwrap();
    store.commit(&[put("first", "1")]).unwrap();
    let filler = disk.0.path().join("filler");
    // Fill the disk to the last byte: the write fails with what could be written still there.
    assert!(fs::write(&filler, vec![1; 8 << 20]).is_err());
    let big = "x".repeat(2 << 20);
    let problem = store.commit(&[put("second", &big), put("third", &big)]).unwrap_err();
    assert_eq!(problem.kind, Kind::DiskFull, "{problem}");
    assert_eq!(store.commit(&[put("second", &big), put("third", &big)]).unwrap_err().kind, Kind::DiskFull);
    fs::remove_file(&filler).unwrap();
    store.commit(&[put("fourth", "4")]).unwrap();
    drop(store);
    let records = RedbStore::open(&path).unwrap().load().unwrap();
    assert_eq!(records, [("first".to_owned(), b"1".to_vec()), ("fourth".to_owned(), b"4".to_vec())]);
}
