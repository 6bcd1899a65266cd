//! A core on a storage: what its writer appends, reads and cuts, safe from crashes.
//!
//! Invariants:
//! - A signature is made only over what is already on the disk. So no crash can lose anything that was
//!   signed, and no second history is ever signed for a length of a fork: what is signed again is the same.
//! - What a synced call has answered is there after any crash. A batch is there whole or not at all.
//! - A core whose safe bytes are damaged is refused, not cut to the part that is whole.
//!
//! Tree nodes and the places of the blocks are held in memory (about 100 bytes for each block), and opening
//! reads and hashes the whole storage.

mod journal;
mod open;

use crate::crypto::{self, Hash, KeyPair};
use crate::error::{DataError, StorageError};
use crate::proof::{self, Proof, Request};
use crate::signature::Verifier;
use crate::storage::Storage;
use crate::tree::{Head, Node, NodeTable, Nodes};
use journal::Signed;

/// The largest block, as in the JavaScript stack.
pub const MAX_BLOCK: usize = 15 << 20;

/// What must have happened before a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The storage has taken it. A crash may lose it; it is not signed, and so not shown to peers, before the
    /// next sync.
    Buffered,
    /// It is on the disk and signed.
    Synced,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    pub key: Hash,
    pub discovery_key: Hash,
    pub fork: u64,
    pub length: u64,
    pub byte_length: u64,
    /// Blocks that are on the disk and signed: what peers may be told of.
    pub synced_length: u64,
    pub writable: bool,
}

/// The tree that peers may see, and the signature that proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHead {
    pub head: Head,
    pub signature: Vec<u8>,
}

#[derive(Debug)]
pub struct Core<S> {
    storage: S,
    verifier: Verifier,
    pair: Option<KeyPair>,
    head: Head,
    nodes: NodeTable,
    /// Where each block is in the storage.
    places: Vec<(u64, u32)>,
    signed: Option<SignedHead>,
    /// The end of the last good record, and its CRC.
    end: u64,
    crc: u32,
    poisoned: bool,
}

impl<S: Storage> Core<S> {
    pub fn info(&self) -> Info {
        Info {
            key: *self.verifier.key(),
            discovery_key: crypto::discovery_key(self.verifier.key()),
            fork: self.head.fork,
            length: self.head.length,
            byte_length: self.head.byte_length,
            synced_length: self.signed.as_ref().map_or(0, |signed| signed.head.length),
            writable: self.pair.is_some() && !self.poisoned,
        }
    }

    /// The newest tree that may be shown to peers.
    pub fn signed(&self) -> Option<&SignedHead> {
        self.signed.as_ref()
    }

    pub fn head(&self) -> &Head {
        &self.head
    }

    pub fn storage(&self) -> &S {
        &self.storage
    }

    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }

    pub fn into_storage(self) -> S {
        self.storage
    }

    pub fn has(&self, index: u64) -> bool {
        index < self.head.length
    }

    /// A block, checked against the tree.
    pub fn get(&self, index: u64) -> Result<Vec<u8>, DataError> {
        let place = usize::try_from(index).ok().and_then(|index| self.places.get(index));
        let &(offset, size) = place.ok_or(DataError::OutOfBounds { index, length: self.head.length })?;
        let mut block = vec![0; size as usize];
        self.storage.read(offset, &mut block)?;
        if self.head.node(index * 2, &self.nodes) != Some(Node::leaf(index, &block)) {
            return Err(DataError::Damaged { offset, what: "a block is not the one that was appended" });
        }
        Ok(block)
    }

    /// The block that holds byte `bytes` of the core, and the offset within it.
    pub fn seek(&self, bytes: u64) -> Result<(u64, u64), DataError> {
        self.head.seek(bytes, &self.nodes)
    }

    /// Reads every block and checks it against the tree, and the tree against its signature.
    pub fn verify(&self) -> Result<(), DataError> {
        (0..self.head.length).try_for_each(|index| self.get(index).map(drop))?;
        match &self.signed {
            Some(signed) if !self.verifier.verify(&signed.head, &signed.signature) => {
                Err(DataError::BadSignature)
            }
            _ => Ok(()),
        }
    }

    /// Answers a peer from what is signed.
    pub fn prove(&self, request: &Request) -> Result<Proof, DataError> {
        let signed = self.signed.as_ref().ok_or(DataError::BadRequest("nothing is signed yet"))?;
        let prologue = self.verifier.prologue();
        let mut proof = proof::make(&signed.head, &self.nodes, prologue, &signed.signature, request)?;
        if let Some(block) = &mut proof.block {
            block.value = self.get(block.index)?;
        }
        Ok(proof)
    }

    /// Appends the blocks, all or none. Answers the new length.
    pub fn append(&mut self, blocks: &[&[u8]], durability: Durability) -> Result<u64, DataError> {
        self.writable()?;
        if !blocks.is_empty() {
            self.append_some(blocks)?;
        }
        if durability == Durability::Synced {
            self.sync()?;
        }
        Ok(self.head.length)
    }

    fn append_some(&mut self, blocks: &[&[u8]]) -> Result<(), DataError> {
        if blocks.len() > journal::MAX_BATCH {
            return Err(DataError::TooLarge("a batch of more than 2^20 blocks"));
        }
        if blocks.iter().any(|block| block.len() > MAX_BLOCK) {
            return Err(DataError::TooLarge("a block of more than 15 MiB"));
        }
        let (body, blocks_at) = journal::append(self.head.fork, self.head.length, blocks);
        let (mut head, mut made) = (self.head.clone(), Vec::with_capacity(blocks.len() * 2));
        for block in blocks {
            head.append(block, &mut made)?;
        }
        let at = self.end + (journal::HEAD + blocks_at) as u64;
        self.write(&body)?;
        self.head = head;
        made.iter().for_each(|node| self.nodes.put(node));
        self.places.extend(blocks.iter().scan(at, |at, block| {
            let place = (*at, block.len() as u32);
            *at += block.len() as u64;
            Some(place)
        }));
        Ok(())
    }

    /// Cuts to the first `length` blocks. That makes a new fork, which is on the disk and signed when this
    /// answers.
    pub fn truncate(&mut self, length: u64, fork: u64) -> Result<(), DataError> {
        self.writable()?;
        if fork <= self.head.fork {
            return Err(DataError::BadRequest("a fork that is not above the present one"));
        }
        let head = self.head.truncated(length, fork, &self.nodes)?;
        self.write(&journal::truncate(fork, length))?;
        self.adopt_truncation(head);
        self.sync()
    }

    fn adopt_truncation(&mut self, head: Head) {
        self.nodes.truncate(head.length);
        self.places.truncate(head.length as usize);
        self.head = head;
        // Its blocks may be gone, so it can be shown to nobody.
        self.signed = None;
    }

    /// Puts on the disk, and signs, all that was appended.
    pub fn sync(&mut self) -> Result<(), DataError> {
        self.writable()?;
        if self.signed.as_ref().is_some_and(|signed| signed.head == self.head) {
            return Ok(());
        }
        if let Err(error) = self.storage.sync() {
            // What a failed sync has left on the disk is unknown, also to a second sync.
            self.poisoned = true;
            return Err(error.into());
        }
        self.sign()
    }

    /// Only after a sync. The signature's own record need not be synced: it can be made again, the same.
    fn sign(&mut self) -> Result<(), DataError> {
        let Some(pair) = &self.pair else { return Ok(()) };
        if self.head == Head::default() {
            return Ok(());
        }
        let signature = self.verifier.sign(&self.head, pair)?;
        let record = Signed {
            offset: self.end,
            fork: self.head.fork,
            length: self.head.length,
            tree_hash: self.head.hash(),
            signature: signature.clone(),
        };
        self.signed = Some(SignedHead { head: self.head.clone(), signature });
        match self.write(&journal::signed(&record)) {
            // The blocks are safe; a full disk will be told of at the next append.
            Ok(()) | Err(DataError::Storage(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, body: &[u8]) -> Result<(), DataError> {
        if body.len() > journal::MAX_BODY {
            return Err(DataError::TooLarge("a batch of more than 64 MiB"));
        }
        let (record, crc) = journal::frame(body, self.crc);
        if let Err(error) = self.storage.append(&record) {
            self.undo();
            return Err(error.into());
        }
        self.end += record.len() as u64;
        self.crc = crc;
        Ok(())
    }

    /// Takes back what a failed append may have left.
    fn undo(&mut self) {
        let undone = self.storage.truncate(self.end).and_then(|()| self.storage.len());
        self.poisoned = undone != Ok::<u64, StorageError>(self.end);
    }

    fn writable(&self) -> Result<(), DataError> {
        match self.pair {
            _ if self.poisoned => Err(DataError::Poisoned),
            Some(_) => Ok(()),
            None => Err(DataError::NotWritable),
        }
    }
}

impl<S> Nodes for Core<S> {
    fn node(&self, index: u64) -> Option<Node> {
        self.head.node(index, &self.nodes)
    }
}
