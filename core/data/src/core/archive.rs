//! A core as a row of messages, in an order in which each can be checked when it comes: what an export is made of.
//!
//! ```text
//!   the tree's roots and their signature ─► block, with the hashes up to a known node ─► block ─► …
//! ```
//! The messages are those of the wire (`proof::Data`). Invariants: a packed core is the core as it was signed when the
//! packing began, whatever is appended meanwhile; nothing is unpacked that the signed tree does not prove; blocks stay
//! as they are in the tree, sealed ones sealed.

use super::{Core, Gained, read::read_checked};
use crate::error::DataError;
use crate::proof::{self, Data, Proof, Request, UpgradeWanted, Wanted};
use crate::replication::{NewFork, Replica};
use crate::signature::MultiSignature;
use crate::store::state::SignedHead;
use crate::tree::Head;

/// A core that is being packed.
#[derive(Debug)]
pub struct Pack {
    core: Core,
    signed: SignedHead,
    /// How far the messages until now let a reader know the tree.
    known: Head,
    /// The block that was packed last, and the next to be looked at.
    last: Option<u64>,
    next: u64,
}

impl Core {
    /// Begins to pack the core as it is now.
    pub fn pack(&self) -> Result<Pack, DataError> {
        let nothing = SignedHead { head: Head::default(), signature: Vec::new() };
        let signed = self.signed()?.unwrap_or(nothing);
        let known = Head { fork: signed.head.fork, ..Head::default() };
        Ok(Pack { core: self.clone(), signed, known, last: None, next: 0 })
    }

    /// Takes in a message of [`Pack::message`]. Answers the number of its block, if it has one.
    pub fn unpack(&self, message: &[u8]) -> Result<Option<u64>, DataError> {
        let data = Data::decode(message)?;
        if data.encode() != message || data.request != 0 || data.manifest.is_some() {
            return Err(DataError::Malformed("a message that is not as it was packed"));
        }
        self.check_envelope(&data.proof)?;
        let head = self.head()?;
        if data.proof.fork != head.fork && head.length == 0 && data.proof.upgrade.is_some() {
            let (head, nodes, signature) = self.check_fork(&data.proof, None)?;
            self.adopt_fork(NewFork { head, nodes, signature, ancestors: 0 })?;
            return Ok(None);
        }
        let Gained { block, .. } = self.accept(&data.proof, None)?;
        Ok(block)
    }

    /// What a verifier passes over must be as signers leave it, so that damage there is found, too.
    fn check_envelope(&self, proof: &Proof) -> Result<(), DataError> {
        let manifest =
            Replica::manifest(self).filter(|manifest| manifest.version > 0 && !manifest.allow_patch);
        let (Some(upgrade), Some(_)) = (&proof.upgrade, manifest) else { return Ok(()) };
        if upgrade.signature.is_empty() {
            return Ok(()); // of a prologue
        }
        let envelope = MultiSignature::decode(&upgrade.signature)?;
        if envelope.patch.is_empty() && envelope.parts.iter().all(|part| part.patch == 0) {
            return Ok(());
        }
        Err(DataError::Malformed("a signature with a patch, where the manifest allows none"))
    }

    /// The answer to a request, as it was at a tree that was signed before.
    fn prove_at(&self, signed: &SignedHead, request: &Request) -> Result<Proof, DataError> {
        let mut inner = self.store.lock();
        let (state, floor) = inner.parts(self.id)?;
        if state.head.fork != signed.head.fork {
            return Err(DataError::SnapshotLost { index: state.head.length });
        }
        let prologue = state.verifier.as_ref().and_then(|verifier| verifier.prologue());
        let mut proof = state.with_nodes(floor, |nodes| {
            proof::make(&signed.head, nodes, prologue, &signed.signature, request)
        })?;
        let Some(block) = &mut proof.block else { return Ok(proof) };
        let found = self.find(&mut inner, block.index)?;
        drop(inner);
        block.value = read_checked(&found)?;
        Ok(proof)
    }
}

impl Pack {
    /// What is packed: the core's length and fork, and its bytes as they are in the tree.
    pub fn head(&self) -> &Head {
        &self.signed.head
    }

    /// The next message; `None` at the end. Blocks that are not here are left out.
    pub fn message(&mut self) -> Result<Option<Vec<u8>>, DataError> {
        let length = self.signed.head.length;
        let request = if self.known.length < length {
            let start = self.known.length;
            Request { upgrade: Some(UpgradeWanted { start, length: length - start }), ..Request::default() }
        } else {
            let mut index = self.next;
            while index < length && !self.core.has(index)? {
                index += 1;
            }
            if index == length {
                return Ok(None);
            }
            let nodes = self.missing_nodes(index);
            (self.last, self.next) = (Some(index), index + 1);
            Request { block: Some(Wanted { index, nodes }), ..Request::default() }
        };
        let proof = self.core.prove_at(&self.signed, &request)?;
        if let Some(upgrade) = &proof.upgrade {
            self.known = proof::grow_by_patch(&self.known, upgrade)?;
        }
        Ok(Some(Data { request: 0, proof, manifest: None }.encode()))
    }

    /// How many parents of a block must be proved until one is reached that a reader knows: a root, or a node beside
    /// the path of a block that came before.
    fn missing_nodes(&self, index: u64) -> u64 {
        let end = self.signed.head.length * 2;
        let mut parent = flat_tree::Iterator::new(index * 2);
        let mut count = 0;
        loop {
            parent.parent();
            let first = flat_tree::left_span(parent.index()) / 2;
            if parent.contains(end) || self.last.is_some_and(|last| last >= first) {
                return count;
            }
            count += 1;
        }
    }
}
