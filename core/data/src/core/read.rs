//! Reading a core: blocks, bits, proofs.

use super::{Core, Info};
use crate::crypto;
use crate::encryption::PADDING;
use crate::error::{DataError, StorageError};
use crate::proof::{self, Proof, Request};
use crate::store::Inner;
use crate::store::pages::BlockPlace;
use crate::tree::{Head, Node, Nodes};
use std::sync::MutexGuard;

/// All that is needed to read a block when the store is no longer held.
pub(super) struct Found {
    place: BlockPlace,
    leaf: Node,
    source: crate::store::Source,
}

/// A tree as it would be without what encryption adds to each block.
struct Unpadded<'a, N> {
    nodes: &'a N,
    padding: u64,
}

impl<N> Unpadded<'_, N> {
    fn node(&self, mut node: Node) -> Node {
        node.size = node.size.saturating_sub(self.padding * flat_tree::count_leaves(node.index));
        node
    }
}

impl<N: Nodes> Nodes for Unpadded<'_, N> {
    fn node(&self, index: u64) -> Option<Node> {
        self.nodes.node(index).map(|node| Unpadded::node(self, node))
    }
}

impl Core {
    pub(super) fn head(&self) -> Result<Head, DataError> {
        Ok(self.store.lock().parts(self.id)?.0.head.clone())
    }

    fn padding(&self) -> u64 {
        if self.cipher.is_some() { PADDING as u64 } else { 0 }
    }

    pub fn info(&self) -> Result<Info, DataError> {
        let mut inner = self.store.lock();
        let writable = self.pair.is_some() && !inner.poisoned;
        let (state, _) = inner.parts(self.id)?;
        let length = self.seen.map_or(state.head.length, |seen| seen.length);
        Ok(Info {
            key: self.key,
            discovery_key: self.discovery_key,
            fork: state.head.fork,
            length,
            byte_length: state.head.byte_length.saturating_sub(self.padding() * state.head.length),
            synced_length: state.signed.as_ref().map_or(0, |signed| signed.head.length),
            contiguous_length: state.contiguous,
            stored_blocks: state.stored_blocks,
            stored_bytes: state.stored_bytes,
            writable,
        })
    }

    pub fn has(&self, index: u64) -> Result<bool, DataError> {
        let mut inner = self.store.lock();
        let (state, floor) = inner.parts(self.id)?;
        Ok(index < state.head.length && state.has(floor, index)?)
    }

    /// The first block of `from..to` that is not here.
    pub fn first_missing(&self, from: u64, to: u64) -> Result<Option<u64>, DataError> {
        let mut inner = self.store.lock();
        let (state, floor) = inner.parts(self.id)?;
        state.first_missing(floor, from, to)
    }

    /// The bits of the blocks from `start` on, 32 in a word; `start` is a multiple of 32.
    pub fn words(&self, start: u64, count: usize) -> Result<Vec<u32>, DataError> {
        let mut inner = self.store.lock();
        let (state, floor) = inner.parts(self.id)?;
        (0..count as u64).map(|at| state.word(floor, start + at * 32)).collect()
    }

    pub fn node(&self, index: u64) -> Result<Option<Node>, DataError> {
        let mut inner = self.store.lock();
        let (state, floor) = inner.parts(self.id)?;
        state.node(floor, index)
    }

    pub fn user_data(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DataError> {
        Ok(self.store.lock().parts(self.id)?.0.user_data.get(key).cloned())
    }

    /// A block, checked against the tree and decrypted.
    pub fn get(&self, index: u64) -> Result<Vec<u8>, DataError> {
        let block = self.get_raw(index)?;
        match &self.cipher {
            Some(cipher) => cipher.decrypt(index, &block),
            None => Ok(block),
        }
    }

    /// A block as it is in the tree.
    pub fn get_raw(&self, index: u64) -> Result<Vec<u8>, DataError> {
        let found = self.find(&mut self.store.lock(), index)?;
        match read_checked(&found) {
            Ok(block) => Ok(block),
            // It may have been moved, or replaced, since we looked.
            Err(_) => {
                let found = self.find(&mut self.store.lock(), index)?;
                read_checked(&found)
            }
        }
    }

    /// Several blocks at once, each as [`Self::get`] answers it: the store is held only once for all of them.
    pub fn get_many(&self, indexes: &[u64]) -> Vec<Result<Vec<u8>, DataError>> {
        let mut inner = self.store.lock();
        let found: Vec<_> = indexes.iter().map(|index| self.find(&mut inner, *index)).collect();
        drop(inner);
        let read = |found: &Result<Found, DataError>| read_unchecked(found.as_ref().ok()?).ok();
        let blocks: Vec<Option<Vec<u8>>> = found.iter().map(read).collect();
        let values: Vec<&[u8]> = blocks.iter().map(|block| block.as_deref().unwrap_or_default()).collect();
        let hashes = crypto::leaf_hashes(&values);
        let all = found.into_iter().zip(blocks).zip(hashes).zip(indexes);
        let mut answers = Vec::with_capacity(indexes.len());
        for (((found, block), hash), index) in all {
            answers.push(match (found, block) {
                (Err(error), _) => Err(error),
                (Ok(found), Some(block)) if hash == found.leaf.hash => match &self.cipher {
                    Some(cipher) => cipher.decrypt(*index, &block),
                    None => Ok(block),
                },
                // It may have been moved, or replaced, since we looked.
                (Ok(_), _) => self.get(*index),
            });
        }
        answers
    }

    pub(super) fn find(&self, inner: &mut MutexGuard<'_, Inner>, index: u64) -> Result<Found, DataError> {
        self.within(inner, index)?;
        let (state, floor) = inner.parts(self.id)?;
        if !state.has(floor, index)? {
            return Err(DataError::NotHere { index });
        }
        let lost = |what| DataError::Damaged { file: 0, offset: index, what };
        let place = state.place(floor, index)?.ok_or(lost("the place of a block is missing"))?;
        let leaf = state.node(floor, index * 2)?.ok_or(lost("the hash of a block is missing"))?;
        let source = floor.source(place.at.segment)?;
        Ok(Found { place, leaf, source })
    }

    fn within(&self, inner: &mut Inner, index: u64) -> Result<(), DataError> {
        let length = inner.parts(self.id)?.0.head.length;
        let Some(seen) = self.seen else {
            return if index < length { Ok(()) } else { Err(DataError::OutOfBounds { index, length }) };
        };
        if index >= seen.length {
            return Err(DataError::OutOfBounds { index, length: seen.length });
        }
        let mut cuts = inner.cuts.get(&self.id).into_iter().flatten();
        if cuts.any(|(fork, length)| *fork > seen.fork && *length <= index) {
            return Err(DataError::SnapshotLost { index });
        }
        Ok(())
    }

    /// The block that holds byte `bytes` of the core, and the offset within it.
    pub fn seek(&self, bytes: u64) -> Result<(u64, u64), DataError> {
        let padding = self.padding();
        let mut inner = self.store.lock();
        let (state, floor) = inner.parts(self.id)?;
        state.with_nodes(floor, |nodes| {
            let nodes = Unpadded { nodes, padding };
            let mut head = state.head.clone();
            head.roots = head.roots.into_iter().map(|root| Unpadded::node(&nodes, root)).collect();
            head.seek(bytes, &nodes)
        })
    }

    /// Answers a peer from what is signed.
    pub fn prove(&self, request: &Request) -> Result<Proof, DataError> {
        self.prove_all(std::slice::from_ref(request)).pop().unwrap_or(Err(DataError::BadRequest("none")))
    }

    /// Answers several requests at once: the store is held once, and the blocks are checked together.
    pub fn prove_all(&self, requests: &[Request]) -> Vec<Result<Proof, DataError>> {
        let mut inner = self.store.lock();
        let planned: Vec<_> = requests.iter().map(|request| self.plan(&mut inner, request)).collect();
        drop(inner);
        let read = |plan: Result<(Proof, Option<Found>), DataError>| {
            let (mut proof, found) = plan?;
            if let (Some(block), Some(found)) = (&mut proof.block, &found) {
                block.value = read_unchecked(found)?;
            }
            Ok((proof, found))
        };
        let mut read: Vec<_> = planned.into_iter().map(read).collect();
        proof::hash_leaves(read.iter_mut().flatten().map(|(proof, _)| proof));
        let checked = |(proof, found): (Proof, Option<Found>)| match (&proof.block, found) {
            (Some(block), Some(found)) if block.leaf() != found.leaf => Err(found.damaged(NOT_THE_BLOCK)),
            _ => Ok(proof),
        };
        read.into_iter().map(|each| each.and_then(checked)).collect()
    }

    /// All of an answer but the block's value, and where that is.
    fn plan(
        &self,
        inner: &mut MutexGuard<'_, Inner>,
        request: &Request,
    ) -> Result<(Proof, Option<Found>), DataError> {
        let (state, floor) = inner.parts(self.id)?;
        let signed = state.signed.as_ref().ok_or(DataError::BadRequest("nothing is signed yet"))?;
        let prologue = state.verifier.as_ref().and_then(|verifier| verifier.prologue());
        let proof = state.with_nodes(floor, |nodes| {
            proof::make(&signed.head, nodes, prologue, &signed.signature, request)
        })?;
        let found = proof.block.as_ref().map(|block| self.find(inner, block.index)).transpose()?;
        Ok((proof, found))
    }
}

const NOT_THE_BLOCK: &str = "a block is not the one that was appended";

impl Found {
    fn damaged(&self, what: &'static str) -> DataError {
        DataError::Damaged {
            file: u64::from(self.place.at.segment),
            offset: u64::from(self.place.at.offset) + u64::from(self.place.skip),
            what,
        }
    }
}

fn read_unchecked(found: &Found) -> Result<Vec<u8>, DataError> {
    if found.leaf.size != u64::from(found.place.size) {
        return Err(found.damaged("a block is not as long as it was"));
    }
    found.source.read(&found.place).map_err(|error| match error {
        StorageError::Short | StorageError::Missing => found.damaged("a block is gone"),
        error => error.into(),
    })
}

pub(super) fn read_checked(found: &Found) -> Result<Vec<u8>, DataError> {
    let block = read_unchecked(found)?;
    let genuine = Node::leaf(found.leaf.index / 2, &block).hash == found.leaf.hash;
    if genuine { Ok(block) } else { Err(found.damaged(NOT_THE_BLOCK)) }
}
