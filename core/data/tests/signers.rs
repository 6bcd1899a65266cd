//! Cores of several signers, and cores that begin with a prologue, on a store: with the signatures that the JavaScript
//! stack has made.

mod golden_kit;

use cloudpal_data::DataError;
use cloudpal_data::core::{Core, Durability, Open};
use cloudpal_data::manifest::{Manifest, Prologue};
use cloudpal_data::proof::{Request, UpgradeWanted, Wanted};
use cloudpal_data::replication::Replica;
use cloudpal_data::storage::MemoryDisk;
use cloudpal_data::store::{Options, RootKey, Store};
use golden_kit::{block, bytes, golden, grown, hash, list, number, pair};
use std::sync::Arc;

fn open(disk: &MemoryDisk, time: u8) -> Store {
    Store::open(Arc::new(disk.clone()), RootKey([9; 32]), [time; 32], Options::default()).unwrap()
}

fn fill(core: &Core, length: u64) {
    for index in core.info().unwrap().length..length {
        core.append(&[&block(index, (index * 37) % 101)], Durability::Synced).unwrap();
    }
}

/// Takes all that `from` shows.
fn copy(from: &Core, to: &Core, manifest: &Manifest) -> Result<(), DataError> {
    let (known, shown) = (to.info()?.length, from.info()?.synced_length);
    let upgrade = Some(UpgradeWanted { start: known, length: shown - known });
    to.accept(&from.prove(&Request { upgrade, ..Request::default() })?, Some(manifest))?;
    for index in 0..shown {
        let wanted = Some(Wanted { index, nodes: to.missing_nodes(index * 2) });
        let proof = from.prove(&Request { block: wanted, ..Request::default() })?;
        to.accept(&proof, None)?;
    }
    Ok(())
}

fn is_whole(core: &Core, length: u64) {
    assert_eq!(core.info().unwrap().contiguous_length, length);
    for index in 0..length {
        assert_eq!(core.get(index).unwrap(), block(index, (index * 37) % 101));
    }
    assert!(core.verify().unwrap().is_empty());
}

/// Two of three have signed, in versions 0 and 1, and once one of them only a shorter tree.
#[test]
fn two_of_three_signers_show_a_core() {
    for row in list(&golden()["multi"]) {
        let manifest = Manifest::decode(&bytes(&row["encoded"])).unwrap();
        let (length, signature) = (number(&row["length"]), bytes(&row["signature"]));
        let (disk, readers) = (MemoryDisk::default(), MemoryDisk::default());
        let core = open(&disk, 1).core(&Open::manifest(manifest.clone()).with_pair(pair(1))).unwrap();
        assert_eq!(core.key(), &hash(&row["key"]));
        // What one of them has appended nobody sees.
        fill(&core, length + 3);
        assert_eq!(core.info().unwrap().synced_length, 0);
        for other in [length - 1, length + 1] {
            assert_eq!(core.commit(other, signature.clone()), Err(DataError::BadSignature), "{row}");
        }
        let (head, part) = core.sign_part().unwrap();
        assert_eq!(head.length, length + 3);
        assert_eq!(core.commit(length + 3, part), Err(DataError::BadSignature), "one is not enough");
        core.commit(length, signature).unwrap();
        drop(core);
        let core = open(&disk, 2).core(&Open::manifest(manifest.clone())).unwrap();
        assert_eq!(core.info().unwrap().synced_length, length);
        let reader = open(&readers, 3).core(&Open::key(*core.key())).unwrap();
        copy(&core, &reader, &manifest).unwrap();
        is_whole(&reader, length);
        drop(reader);
        is_whole(&open(&readers, 4).core(&Open::key(*core.key())).unwrap(), length);
    }
}

/// The blocks of the prologue are proved by the manifest, and so by the key; what follows, by the signer.
#[test]
fn a_prologue_needs_no_signature() {
    let prologue = Prologue { hash: grown(9).0.hash(), length: 9 };
    for signers in [1, 0] {
        let mut manifest = Manifest::single(pair(1).public_key());
        manifest.prologue = Some(prologue.clone());
        if signers == 0 {
            manifest.signers.clear();
            manifest.quorum = 0;
        }
        let disk = MemoryDisk::default();
        let store = open(&disk, 1);
        // Who may write: whoever has the blocks of a prologue, which can be no others.
        let mut as_writer = Open::manifest(manifest.clone());
        if signers == 1 {
            as_writer = as_writer.with_pair(pair(1));
        }
        let core = store.core(&as_writer).unwrap();
        let reader = open(&MemoryDisk::default(), 3).core(&Open::key(manifest.key())).unwrap();
        if signers == 0 {
            // Nobody can append; so there is nothing that could be shown.
            assert_eq!(core.append(&[b"x"], Durability::Synced), Err(DataError::NotWritable));
            continue;
        }
        fill(&core, 9);
        core.commit(9, Vec::new()).unwrap();
        copy(&core, &reader, &manifest).unwrap();
        is_whole(&reader, 9);
        fill(&core, 14);
        let (head, signature) = core.sign_part().unwrap();
        core.commit(head.length, signature).unwrap();
        copy(&core, &reader, &manifest).unwrap();
        is_whole(&reader, 14);
    }
}

/// Another beginning than the manifest's is refused, however it is signed.
#[test]
fn another_prologue_is_refused() {
    let mut manifest = Manifest::single(pair(1).public_key());
    manifest.prologue = Some(Prologue { hash: [9; 32], length: 9 });
    let core =
        open(&MemoryDisk::default(), 1).core(&Open::manifest(manifest.clone()).with_pair(pair(1))).unwrap();
    fill(&core, 12);
    let reader = open(&MemoryDisk::default(), 3).core(&Open::key(manifest.key())).unwrap();
    let copied = copy(&core, &reader, &manifest);
    assert!(copied.is_err(), "{copied:?}");
    assert_eq!(reader.info().unwrap().length, 0);
}
