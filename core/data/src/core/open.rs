//! Opening: the journal is read from its start, the tree is built again from the blocks, and compared with
//! what was signed. What a crash has torn off the end is cut.

use super::journal::{self, Record, Signed};
use super::{Core, SignedHead};
use crate::crypto::KeyPair;
use crate::error::DataError;
use crate::signature::Verifier;
use crate::storage::Storage;
use crate::tree::{Head, NodeTable};

impl<S: Storage> Core<S> {
    /// Opens the core that is in `storage`, or makes one there if it is empty. With a key pair it can be
    /// written; only cores that this key pair alone may sign can be.
    pub fn open(storage: S, verifier: Verifier, pair: Option<KeyPair>) -> Result<Self, DataError> {
        if pair.as_ref().is_some_and(|pair| !verifier.is_sole_signer(pair)) {
            return Err(DataError::NotWritable);
        }
        let mut core = Core {
            storage,
            verifier,
            pair,
            head: Head::default(),
            nodes: NodeTable::default(),
            places: Vec::new(),
            signed: None,
            end: 0,
            crc: 0,
            poisoned: false,
        };
        core.replay()?;
        if core.pair.is_some() {
            core.recover()?;
        }
        Ok(core)
    }

    fn replay(&mut self) -> Result<(), DataError> {
        let length = self.storage.len()?;
        while let Some((body, crc)) = journal::read(&self.storage, self.end, length, self.crc)? {
            let offset = self.end;
            let record = journal::decode(&body);
            self.take(record.map_err(|_| damaged(offset, "a record makes no sense"))?, &body)?;
            self.end += (journal::HEAD + body.len()) as u64;
            self.crc = crc;
        }
        if let Some(signed) = &self.signed
            && !self.verifier.verify(&signed.head, &signed.signature)
        {
            return Err(damaged(self.end, "the signature does not fit the blocks"));
        }
        let lost = journal::signed_after(&self.storage, self.end, length)?;
        if lost.iter().any(|signed| self.was_safe(signed)) {
            return Err(damaged(self.end, "what was synced is no longer whole"));
        }
        Ok(())
    }

    fn take(&mut self, record: Record, body: &[u8]) -> Result<(), DataError> {
        let offset = self.end;
        match record {
            Record::Create { key, manifest } => {
                let ours = (!self.verifier.is_compat()).then(|| self.verifier.manifest());
                if offset != 0 || key != *self.verifier.key() || manifest.as_ref() != ours {
                    return Err(DataError::WrongManifest);
                }
            }
            _ if offset == 0 => return Err(damaged(0, "it does not begin with its key")),
            Record::Append { fork, length, sizes, blocks_at } => {
                if (fork, length) != (self.head.fork, self.head.length) {
                    return Err(damaged(offset, "blocks that do not follow the last"));
                }
                let (mut at, mut made) = (blocks_at, Vec::with_capacity(sizes.len() * 2));
                for size in sizes {
                    let place = offset + (journal::HEAD + at) as u64;
                    let size = u32::try_from(size).map_err(|_| damaged(offset, "a block too large"))?;
                    let block = body.get(at..at + size as usize);
                    let block = block.ok_or(damaged(offset, "sizes that do not add up"))?;
                    self.head.append(block, &mut made)?;
                    self.places.push((place, size));
                    at += size as usize;
                }
                made.iter().for_each(|node| self.nodes.put(node));
            }
            Record::Truncate { fork, length } => {
                if fork <= self.head.fork || length > self.head.length {
                    return Err(damaged(offset, "a cut that cannot be"));
                }
                let head = self.head.truncated(length, fork, &self.nodes)?;
                self.adopt_truncation(head);
            }
            Record::Signed(signed) => {
                let ours = (self.head.fork, self.head.length, self.head.hash());
                if ours != (signed.fork, signed.length, signed.tree_hash) {
                    return Err(damaged(offset, "the signed tree is another"));
                }
                let (head, signature) = (self.head.clone(), signed.signature);
                self.signed = Some(SignedHead { head, signature });
            }
        }
        Ok(())
    }

    /// A true signature over more than we have: the bytes before it were safe once. A block may hold
    /// anything, also a copy of a signed record, but none that is signed beyond our end.
    fn was_safe(&self, signed: &Signed) -> bool {
        let beyond = (signed.fork, signed.length) > (self.head.fork, self.head.length);
        beyond && self.verifier.verify_hash(&signed.tree_hash, signed.length, signed.fork, &signed.signature)
    }

    /// Makes the storage such that the next record can follow, and signs what is not signed.
    fn recover(&mut self) -> Result<(), DataError> {
        let manifest = (!self.verifier.is_compat()).then(|| self.verifier.manifest());
        let create = journal::create(self.verifier.key(), manifest);
        let length = self.storage.len()?;
        if self.end == 0 && length > (journal::HEAD + create.len()) as u64 {
            return Err(damaged(0, "it does not begin with its key"));
        }
        if length > self.end {
            self.storage.truncate(self.end)?;
            self.storage.sync()?;
        }
        if self.end == 0 {
            self.write(&create)?;
            self.storage.sync()?;
        }
        self.sync()
    }
}

fn damaged(offset: u64, what: &'static str) -> DataError {
    DataError::Damaged { offset, what }
}
