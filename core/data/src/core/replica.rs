//! A core as replication sees it. A failure of the disk shows there as something that is not here.

use super::{Core, frozen};
use crate::crypto::Hash;
use crate::error::DataError;
use crate::manifest::Manifest;
use crate::proof::{Proof, Request};
use crate::replication::{NewFork, Replica, Shown};
use crate::tree::{Head, Node};

impl Replica for Core {
    fn key(&self) -> Hash {
        self.key
    }

    fn discovery_key(&self) -> Hash {
        self.discovery_key
    }

    fn shown(&self) -> Shown {
        let mut inner = self.store.lock();
        let Ok((state, _)) = inner.parts(self.id) else { return Shown::default() };
        let Some(signed) = &state.signed else { return Shown { fork: state.head.fork, ..Shown::default() } };
        let Head { fork, length, byte_length, .. } = signed.head;
        Shown { fork, length, byte_length }
    }

    fn manifest(&self) -> Option<Manifest> {
        let mut inner = self.store.lock();
        let (state, _) = inner.parts(self.id).ok()?;
        let verifier = state.verifier.as_ref().filter(|verifier| !verifier.is_compat());
        verifier.map(|verifier| verifier.manifest().clone())
    }

    fn needs_manifest(&self) -> bool {
        self.store.lock().parts(self.id).is_ok_and(|(state, _)| state.verifier.is_none())
    }

    fn has(&self, index: u64) -> bool {
        Core::has(self, index).unwrap_or(false)
    }

    fn first_missing(&self, from: u64, to: u64) -> Option<u64> {
        Core::first_missing(self, from, to).ok().flatten()
    }

    fn node(&self, index: u64) -> Option<Node> {
        Core::node(self, index).ok().flatten()
    }

    fn words(&self, start: u64, count: usize) -> Vec<u32> {
        Core::words(self, start, count).unwrap_or_default()
    }

    fn prove(&self, request: &Request) -> Result<Proof, DataError> {
        Core::prove(self, request)
    }

    fn prove_all(&self, requests: &[Request]) -> Vec<Result<Proof, DataError>> {
        Core::prove_all(self, requests)
    }

    fn accept(&mut self, proof: &Proof, manifest: Option<&Manifest>) -> Result<(), DataError> {
        Core::accept(self, proof, manifest).map(drop)
    }

    fn is_written_here(&self) -> bool {
        self.store.lock().written.contains(&self.id)
    }

    fn may_grow(&self) -> bool {
        let mut inner = self.store.lock();
        let Ok((state, _)) = inner.parts(self.id) else { return false };
        let signed = state.signed.as_ref().map_or(0, |signed| signed.head.length);
        frozen::frozen(state).is_none() || signed == state.head.length
    }

    fn frozen(&self) -> Option<DataError> {
        frozen::refuse_frozen(self.store.lock().parts(self.id).ok()?.0).err()
    }

    fn check_conflict(&mut self, proof: &Proof) -> Result<bool, DataError> {
        Core::check_conflict(self, proof)
    }

    fn check_fork(
        &mut self,
        proof: &Proof,
        manifest: Option<&Manifest>,
    ) -> Result<(Head, Vec<Node>, Vec<u8>), DataError> {
        Core::check_fork(self, proof, manifest)
    }

    fn adopt_fork(&mut self, fork: NewFork) -> Result<(), DataError> {
        Core::adopt_fork(self, fork)
    }
}
