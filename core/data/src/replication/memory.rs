//! A core in memory: whole or sparse, written here or by somebody else. For tests of replication, and for what may
//! be lost.

use super::{NewFork, Replica, Replicas, Shown};
use crate::crypto::{self, Hash, KeyPair, PublicKey};
use crate::error::DataError;
use crate::manifest::Manifest;
use crate::proof::{self, Proof, Request};
use crate::signature::Verifier;
use crate::tree::{Head, Node, Nodes, full_roots};
use std::collections::{BTreeMap, HashMap};

#[derive(Debug)]
pub struct MemoryCore {
    key: Hash,
    discovery_key: Hash,
    verifier: Option<Verifier>,
    pair: Option<KeyPair>,
    head: Head,
    signature: Vec<u8>,
    nodes: Table,
    blocks: BTreeMap<u64, Vec<u8>>,
    /// All blocks before it are here.
    contiguous: u64,
}

#[derive(Debug, Default)]
struct Table(HashMap<u64, Node>);

impl Nodes for Table {
    fn node(&self, index: u64) -> Option<Node> {
        self.0.get(&index).cloned()
    }
}

impl MemoryCore {
    /// A core that is read: of its signer nothing is known but the key.
    pub fn reader(key: Hash) -> Self {
        MemoryCore {
            key,
            discovery_key: crypto::discovery_key(&key),
            verifier: None,
            pair: None,
            head: Head::default(),
            signature: Vec::new(),
            nodes: Table::default(),
            blocks: BTreeMap::new(),
            contiguous: 0,
        }
    }

    pub fn writer(verifier: Verifier, pair: KeyPair) -> Self {
        let mut core = MemoryCore::reader(*verifier.key());
        core.verifier = Some(verifier);
        core.pair = Some(pair);
        core
    }

    /// The same core under another discovery key: what a peer does that knows no key.
    pub fn disguised(mut self, discovery_key: Hash) -> Self {
        self.discovery_key = discovery_key;
        self
    }

    pub fn append(&mut self, blocks: &[&[u8]]) -> Result<u64, DataError> {
        let mut made = Vec::new();
        for block in blocks {
            self.blocks.insert(self.head.length, block.to_vec());
            self.head.append(block, &mut made)?;
        }
        self.keep(made);
        self.sign()?;
        Ok(self.head.length)
    }

    pub fn truncate(&mut self, length: u64, fork: u64) -> Result<(), DataError> {
        let head = self.head.truncated(length, fork, &self.nodes)?;
        self.cut(length);
        self.head = head;
        self.sign()
    }

    pub fn get(&self, index: u64) -> Option<&[u8]> {
        self.blocks.get(&index).map(Vec::as_slice)
    }

    pub fn clear(&mut self, start: u64, end: u64) {
        (start..end).for_each(|index| drop(self.blocks.remove(&index)));
        self.contiguous = self.contiguous.min(start);
    }

    pub fn seek(&self, bytes: u64) -> Result<(u64, u64), DataError> {
        self.head.seek(bytes, &self.nodes)
    }

    fn sign(&mut self) -> Result<(), DataError> {
        if let (Some(verifier), Some(pair)) = (&self.verifier, &self.pair) {
            self.signature = verifier.sign(&self.head, pair)?;
        }
        self.advance();
        Ok(())
    }

    fn keep(&mut self, nodes: Vec<Node>) {
        self.nodes.0.extend(nodes.into_iter().map(|node| (node.index, node)));
    }

    fn cut(&mut self, length: u64) {
        self.blocks.split_off(&length);
        let end = length * 2;
        self.nodes.0.retain(|index, _| flat_tree::right_span(*index) < end);
        self.contiguous = self.contiguous.min(length);
    }

    fn advance(&mut self) {
        while self.blocks.contains_key(&self.contiguous) {
            self.contiguous += 1;
        }
    }

    /// Who may sign, as far as it can be known from a message.
    fn verifier_with(&self, manifest: Option<&Manifest>) -> Result<Verifier, DataError> {
        match (&self.verifier, manifest) {
            (Some(verifier), _) => Ok(verifier.clone()),
            (None, Some(manifest)) => Verifier::new(self.key, manifest.clone()),
            (None, None) => Ok(Verifier::compat(self.key)),
        }
    }
}

impl Replica for MemoryCore {
    fn key(&self) -> Hash {
        self.key
    }

    fn discovery_key(&self) -> Hash {
        self.discovery_key
    }

    fn shown(&self) -> Shown {
        let Head { fork, length, byte_length, .. } = self.head;
        Shown { fork, length, byte_length }
    }

    fn manifest(&self) -> Option<Manifest> {
        let verifier = self.verifier.as_ref().filter(|verifier| !verifier.is_compat());
        verifier.map(|verifier| verifier.manifest().clone())
    }

    fn needs_manifest(&self) -> bool {
        self.verifier.is_none()
    }

    fn has(&self, index: u64) -> bool {
        index < self.contiguous || self.blocks.contains_key(&index)
    }

    fn first_missing(&self, from: u64, to: u64) -> Option<u64> {
        let mut at = from.max(self.contiguous);
        while at < to {
            if !self.blocks.contains_key(&at) {
                return Some(at);
            }
            at += 1;
        }
        None
    }

    fn node(&self, index: u64) -> Option<Node> {
        self.head.node(index, &self.nodes)
    }

    fn prove(&self, request: &Request) -> Result<Proof, DataError> {
        let prologue = self.verifier.as_ref().and_then(Verifier::prologue);
        let mut proof = proof::make(&self.head, &self.nodes, prologue, &self.signature, request)?;
        if let Some(block) = &mut proof.block {
            let value =
                self.blocks.get(&block.index).ok_or(DataError::BadRequest("a block that is not here"))?;
            block.value = value.clone();
        }
        Ok(proof)
    }

    fn accept(&mut self, proof: &Proof, manifest: Option<&Manifest>) -> Result<(), DataError> {
        let verifier = self.verifier_with(manifest)?;
        let checked = proof::check(&self.head, &self.nodes, &verifier, proof)?;
        if checked.signature.is_some() || manifest.is_some() {
            self.verifier = Some(verifier);
        }
        self.head = checked.head;
        if let Some(signature) = checked.signature {
            self.signature = signature;
        }
        self.keep(checked.nodes);
        if let Some(block) = &proof.block {
            self.blocks.insert(block.index, block.value.clone());
        }
        self.advance();
        Ok(())
    }

    fn check_fork(
        &mut self,
        proof: &Proof,
        manifest: Option<&Manifest>,
    ) -> Result<(Head, Vec<Node>, Vec<u8>), DataError> {
        let verifier = self.verifier_with(manifest)?;
        let nothing = Head { fork: proof.fork, ..Head::default() };
        let checked = proof::check(&nothing, &Table::default(), &verifier, proof)?;
        let signature = checked.signature.ok_or(DataError::BadSignature)?;
        self.verifier = Some(verifier);
        Ok((checked.head, checked.nodes, signature))
    }

    fn adopt_fork(&mut self, fork: NewFork) -> Result<(), DataError> {
        // The roots up to there are whole subtrees of both histories.
        let roots: Vec<Node> =
            full_roots(fork.ancestors).iter().filter_map(|root| self.node(*root)).collect();
        self.cut(fork.ancestors);
        self.keep(roots);
        self.head = fork.head;
        self.signature = fork.signature;
        self.keep(fork.nodes);
        self.advance();
        Ok(())
    }
}

/// Cores by their numbers, shown to everybody.
#[derive(Debug, Default)]
pub struct MemoryCores {
    pub cores: BTreeMap<u64, MemoryCore>,
}

impl MemoryCores {
    pub fn of(core: MemoryCore) -> Self {
        MemoryCores { cores: BTreeMap::from([(1, core)]) }
    }
}

impl Replicas for MemoryCores {
    type Replica = MemoryCore;

    fn find(&mut self, discovery_key: &Hash, _remote: &PublicKey) -> Option<u64> {
        let mut cores = self.cores.iter();
        cores.find(|(_, core)| core.discovery_key == *discovery_key).map(|(number, _)| *number)
    }

    fn replica(&mut self, core: u64) -> Option<&mut MemoryCore> {
        self.cores.get_mut(&core)
    }
}
