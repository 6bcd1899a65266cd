//! A core of which nothing more is written, because its signer has signed more than this store knows of.
//!
//! ```text
//! written here --a peer proves a longer history of the same key--> behind --catch_up--> written here
//! any --a peer proves a history that ours is no part of--> in conflict, for good
//! ```
//! The first is what a store that was restored from an old backup is like: were it written to, its key would sign a
//! second history. The second is what comes of that. Blocks can be read in both states; the mark is on the disk.

use super::Core;
use crate::encoding::{Reader, Writer};
use crate::error::DataError;
use crate::proof::{self, Proof};
use crate::signature::Verifier;
use crate::store::Inner;
use crate::store::record::{self, Change};
use crate::store::state::CoreState;
use crate::tree::{Head, Node, Nodes};

/// The mark is kept as the core's user data, under a name that nobody else may use.
pub(super) const MARK: &[u8] = b"cloudpal/frozen";

/// Why a core is written no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frozen {
    /// Its key has signed this length, of which less is here.
    Behind { fork: u64, length: u64 },
    /// Its key has signed another history of this fork, of this length, that ours is no part of, nor it of ours.
    Conflict { fork: u64, length: u64 },
}

impl Frozen {
    fn encode(self) -> Vec<u8> {
        let (kind, fork, length) = match self {
            Frozen::Behind { fork, length } => (0, fork, length),
            Frozen::Conflict { fork, length } => (1, fork, length),
        };
        let mut to = Writer::default();
        [kind, fork, length].into_iter().for_each(|number| to.uint(number));
        to.bytes
    }

    /// A mark that cannot be read freezes too.
    fn decode(mark: &[u8]) -> Frozen {
        let mut from = Reader::new(mark);
        let mut number = || from.uint().unwrap_or(1);
        match (number(), number(), number()) {
            (0, fork, length) => Frozen::Behind { fork, length },
            (_, fork, length) => Frozen::Conflict { fork, length },
        }
    }

    /// What whoever wants to write is told.
    pub fn refusal(self) -> DataError {
        match self {
            Frozen::Behind { length, .. } => DataError::Behind { length },
            Frozen::Conflict { fork, length } => DataError::Conflict { fork, length },
        }
    }
}

pub(super) fn frozen(state: &CoreState) -> Option<Frozen> {
    state.user_data.get(MARK).map(|mark| Frozen::decode(mark))
}

/// Fails if the core is frozen.
pub(super) fn refuse_frozen(state: &CoreState) -> Result<(), DataError> {
    match frozen(state) {
        Some(frozen) => Err(frozen.refusal()),
        None => Ok(()),
    }
}

pub(super) struct NoNodes;

impl Nodes for NoNodes {
    fn node(&self, _index: u64) -> Option<Node> {
        None
    }
}

impl Core {
    /// Why nothing is written to the core, if that is so.
    pub fn frozen(&self) -> Result<Option<Frozen>, DataError> {
        Ok(frozen(self.store.lock().parts(self.id)?.0))
    }

    pub(super) fn mark_frozen(&self, inner: &mut Inner, why: Option<Frozen>) -> Result<(), DataError> {
        let value = why.map(Frozen::encode);
        let change = Change::UserData { key: MARK.to_vec(), value: value.clone() };
        inner.write(record::small(self.id, &change))?;
        inner.parts(self.id)?.0.apply_user_data(MARK.to_vec(), value);
        inner.dirty.insert(self.id);
        Ok(())
    }

    /// A core that is behind is written again, after the history that peers have proved; call it when they have
    /// brought the blocks that are needed. What was appended here and never signed, and so never shown to anybody, is
    /// dropped. False where the longer history is still to come: the core goes on waiting for it.
    pub fn catch_up(&self) -> Result<bool, DataError> {
        let mut inner = self.store.lock();
        let (state, floor) = inner.parts(self.id)?;
        let (fork, length) = match frozen(state) {
            None => return Ok(true),
            Some(Frozen::Behind { fork, length }) => (fork, length),
            Some(conflict) => return Err(conflict.refusal()),
        };
        let signed = state.signed.clone();
        let signed_head = signed.as_ref().map(|signed| signed.head.clone()).unwrap_or_default();
        if state.head.fork == fork && signed_head.length < state.head.length {
            let head =
                state.with_nodes(floor, |nodes| state.head.truncated(signed_head.length, fork, nodes))?;
            inner.write(record::small(self.id, &Change::Truncate { fork, length: head.length }))?;
            let (state, floor) = inner.parts(self.id)?;
            let applied = state.apply_truncate(floor, head);
            inner.note_cut(self.id, fork, signed_head.length);
            inner.fail(applied)?;
            if let Some(signed) = signed {
                let (length, signature) = (signed.head.length, signed.signature.clone());
                inner.write(record::small(self.id, &Change::Signed { fork, length, signature }))?;
                inner.parts(self.id)?.0.signed = Some(signed);
            }
            inner.dirty.insert(self.id);
        }
        let caught_up = signed_head.fork > fork || signed_head.length >= length;
        if caught_up {
            self.mark_frozen(&mut inner, None)?;
        }
        let end = inner.floor.log.end;
        self.store.sync_to(inner, end).map(drop)?;
        Ok(caught_up)
    }

    /// A peer has proved a longer history of a core that is written here. Answers whether it can be adopted now.
    pub(super) fn note_behind(
        &self,
        inner: &mut Inner,
        verifier: &Verifier,
        proof: &Proof,
    ) -> Result<bool, DataError> {
        let (state, floor) = inner.parts(self.id)?;
        let signed = state
            .signed
            .as_ref()
            .map_or_else(|| Head { fork: state.head.fork, ..Head::default() }, |signed| signed.head.clone());
        let whole = signed.length == state.head.length;
        let checked = state.with_nodes(floor, |nodes| proof::check(&signed, nodes, verifier, proof))?;
        if checked.signature.is_some() && frozen(state).is_none() {
            let behind = Frozen::Behind { fork: checked.head.fork, length: checked.head.length };
            self.mark_frozen(inner, Some(behind))?;
        }
        Ok(whole)
    }

    /// Looks at the tree of a peer, proved from its beginning. If it is signed, and ours is no part of it, nor it
    /// of ours, the core is frozen for good. Answers whether that is so.
    pub fn check_conflict(&self, proof: &Proof) -> Result<bool, DataError> {
        let mut inner = self.store.lock();
        let (state, floor) = inner.parts(self.id)?;
        let (Some(verifier), Some(signed)) = (state.verifier.clone(), state.signed.clone()) else {
            return Ok(false);
        };
        if proof.fork != signed.head.fork {
            return Ok(false);
        }
        let nothing = Head { fork: proof.fork, ..Head::default() };
        let theirs = proof::check(&nothing, &NoNodes, &verifier, proof)?;
        if theirs.signature.is_none() {
            return Ok(false);
        }
        let common = theirs.head.length.min(signed.head.length);
        let mut differs = false;
        for node in theirs.head.roots.iter().chain(&theirs.nodes) {
            // Of what is in both trees, all is the same, or they are of two histories.
            if flat_tree::right_span(node.index) < common * 2
                && state.node(floor, node.index)?.is_some_and(|ours| ours != *node)
            {
                differs = true;
            }
        }
        if differs && !matches!(frozen(state), Some(Frozen::Conflict { .. })) {
            let conflict = Frozen::Conflict { fork: proof.fork, length: theirs.head.length };
            self.mark_frozen(&mut inner, Some(conflict))?;
            let end = inner.floor.log.end;
            self.store.sync_to(inner, end).map(drop)?;
        }
        Ok(differs)
    }
}
