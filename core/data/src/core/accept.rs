//! What comes from peers: everything is checked before anything is stored.

use super::frozen::{self, Frozen, NoNodes};
use super::{Core, Gained};
use crate::error::DataError;
use crate::manifest::Manifest;
use crate::proof::{self, Proof};
use crate::replication::NewFork;
use crate::signature::Verifier;
use crate::store::record::{self, Put, Reorg};
use crate::store::state::CoreState;
use crate::tree::{Head, Node};

/// Who may sign, as far as it can be known from a message.
fn verifier_with(state: &CoreState, manifest: Option<&Manifest>) -> Result<Verifier, DataError> {
    match (&state.verifier, manifest) {
        (Some(verifier), _) => Ok(verifier.clone()),
        (None, Some(manifest)) => Verifier::new(state.key, manifest.clone()),
        (None, None) => Ok(Verifier::compat(state.key)),
    }
}

impl Core {
    /// Checks a proof, and keeps what it proves. Nothing is kept if it fails. What is kept is on the disk after
    /// the next sync of the store.
    pub fn accept(&self, proof: &Proof, manifest: Option<&Manifest>) -> Result<Gained, DataError> {
        self.take(proof, manifest, true)
    }

    pub(super) fn take(
        &self,
        proof: &Proof,
        manifest: Option<&Manifest>,
        from_peer: bool,
    ) -> Result<Gained, DataError> {
        let mut inner = self.store.lock();
        inner.relieve()?;
        let (state, _) = inner.parts(self.id)?;
        let verifier = verifier_with(state, manifest)?;
        if let Some(conflict @ Frozen::Conflict { .. }) = frozen::frozen(state) {
            return Err(conflict.refusal());
        }
        if from_peer
            && proof.upgrade.is_some()
            && inner.written.contains(&self.id)
            && !self.note_behind(&mut inner, &verifier, proof)?
        {
            return Ok(Gained::default());
        }
        let (state, floor) = inner.parts(self.id)?;
        let checked = state.with_nodes(floor, |nodes| proof::check(&state.head, nodes, &verifier, proof))?;
        let new_block = match &proof.block {
            Some(block) if !state.has(floor, block.index)? => Some(block),
            _ => None,
        };
        let mut nodes = Vec::with_capacity(checked.nodes.len());
        for node in checked.nodes {
            if state.node(floor, node.index)?.as_ref() != Some(&node) || checked.signature.is_some() {
                nodes.push(node);
            }
        }
        let learned = (state.verifier.is_none() && !verifier.is_compat()).then(|| verifier.manifest());
        let upgrade = checked.signature.as_deref().map(|signature| (checked.head.length, signature));
        if learned.is_none() && upgrade.is_none() && nodes.is_empty() && new_block.is_none() {
            return Ok(Gained::default());
        }
        let block = new_block.map(|block| (block.index, block.value.as_slice()));
        let (body, skip) = record::put(self.id, learned, upgrade, &nodes, block);
        let put = Put {
            manifest: learned.cloned(),
            upgrade: upgrade.map(|(length, signature)| (length, signature.to_vec())),
            nodes,
            block: block.map(|(index, block)| (index, skip, block.len())),
        };
        let gained =
            Gained { length: upgrade.map(|(length, _)| length), block: block.map(|(index, _)| index) };
        let at = inner.write(body)?;
        let (state, floor) = inner.parts(self.id)?;
        let applied = state.apply_put(floor, put, at);
        inner.dirty.insert(self.id);
        inner.fail(applied)?;
        Ok(gained)
    }

    /// Checks the roots and the signature of another fork, an upgrade from nothing. Keeps nothing.
    pub fn check_fork(
        &self,
        proof: &Proof,
        manifest: Option<&Manifest>,
    ) -> Result<(Head, Vec<Node>, Vec<u8>), DataError> {
        let mut inner = self.store.lock();
        let verifier = verifier_with(inner.parts(self.id)?.0, manifest)?;
        let nothing = Head { fork: proof.fork, ..Head::default() };
        let checked = proof::check(&nothing, &NoNodes, &verifier, proof)?;
        let signature = checked.signature.ok_or(DataError::BadSignature)?;
        Ok((checked.head, checked.nodes, signature))
    }

    /// Goes over to a fork that [`Self::check_fork`] has checked.
    pub fn adopt_fork(&self, fork: NewFork) -> Result<(), DataError> {
        if self.pair.is_some() {
            // A writer's own history is never replaced by what a peer says.
            return Err(DataError::BadRequest("a writer follows no other fork"));
        }
        let NewFork { head, nodes, signature, ancestors } = fork;
        let mut inner = self.store.lock();
        inner.relieve()?;
        let (state, floor) = inner.parts(self.id)?;
        let known = state.with_nodes(floor, |nodes| state.head.truncated(ancestors, head.fork, nodes))?;
        let reorg = Reorg {
            fork: head.fork,
            ancestors,
            length: head.length,
            signature,
            nodes: known.roots.into_iter().chain(nodes).collect(),
        };
        inner.write(record::reorg(self.id, &reorg))?;
        let (state, floor) = inner.parts(self.id)?;
        let applied = state.apply_reorg(floor, reorg);
        inner.note_cut(self.id, head.fork, ancestors);
        inner.dirty.insert(self.id);
        inner.fail(applied)
    }
}
