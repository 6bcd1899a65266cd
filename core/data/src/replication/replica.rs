//! What replication needs of a core: the port to what holds it.

use crate::crypto::{Hash, PublicKey};
use crate::error::DataError;
use crate::manifest::Manifest;
use crate::proof::{Proof, Request};
use crate::tree::{Head, Node};

/// The tree that peers may be shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub fork: u64,
    pub length: u64,
    pub byte_length: u64,
}

/// A fork that was proved, and how much of the core it leaves as it is.
#[derive(Clone, Debug)]
pub struct NewFork {
    pub head: Head,
    pub nodes: Vec<Node>,
    pub signature: Vec<u8>,
    /// The first blocks, which both histories have.
    pub ancestors: u64,
}

pub trait Replica {
    fn key(&self) -> Hash;

    fn discovery_key(&self) -> Hash;

    fn shown(&self) -> Shown;

    /// That of the core, unless it has none (because it is a compat core) or it is not known yet.
    fn manifest(&self) -> Option<Manifest>;

    /// Who may sign is not known yet.
    fn needs_manifest(&self) -> bool;

    fn has(&self, index: u64) -> bool;

    /// The first block in `from..to` that is not here.
    fn first_missing(&self, from: u64, to: u64) -> Option<u64>;

    /// A node that is known to be true.
    fn node(&self, index: u64) -> Option<Node>;

    /// The bits of the blocks from `start` on, 32 in a word.
    fn words(&self, start: u64, count: usize) -> Vec<u32> {
        let word = |at: u64| (0..32).map(|bit| u32::from(self.has(at + bit)) << bit).sum();
        (0..count as u64).map(|at| word(start + at * 32)).collect()
    }

    /// How many of the parents of a node are to be asked for, so that what comes leads to a known one.
    fn missing_nodes(&self, index: u64) -> u64 {
        let end = self.shown().length * 2;
        let mut walk = flat_tree::Iterator::new(index);
        if walk.index() + walk.factor() / 2 > end {
            return 0;
        }
        let mut count = 0;
        while !walk.contains(end) && self.node(walk.index()).is_none() {
            count += 1;
            walk.parent();
        }
        count
    }

    /// Answers a request from what is here.
    fn prove(&self, request: &Request) -> Result<Proof, DataError>;

    /// Answers several requests at once.
    fn prove_all(&self, requests: &[Request]) -> Vec<Result<Proof, DataError>> {
        requests.iter().map(|request| self.prove(request)).collect()
    }

    /// Checks a proof, and keeps what it proves. Nothing is kept if it fails.
    fn accept(&mut self, proof: &Proof, manifest: Option<&Manifest>) -> Result<(), DataError>;

    /// It is written here, so that nobody else can have more of it.
    fn is_written_here(&self) -> bool {
        false
    }

    /// A longer tree can be taken: nothing was appended here that was never signed.
    fn may_grow(&self) -> bool {
        true
    }

    /// Nothing more is written to it, or taken of it.
    fn frozen(&self) -> Option<DataError> {
        None
    }

    /// Compares our tree with a peer's, proved from its beginning: are they signed, and of two histories?
    fn check_conflict(&mut self, _proof: &Proof) -> Result<bool, DataError> {
        Ok(false)
    }

    /// Checks the roots and the signature of another fork, an upgrade from nothing. Keeps nothing but the
    /// manifest.
    fn check_fork(
        &mut self,
        proof: &Proof,
        manifest: Option<&Manifest>,
    ) -> Result<(Head, Vec<Node>, Vec<u8>), DataError>;

    /// Goes over to a fork that [`Self::check_fork`] has checked.
    fn adopt_fork(&mut self, fork: NewFork) -> Result<(), DataError>;
}

/// The cores that may be replicated.
pub trait Replicas {
    type Replica: Replica;

    /// A peer asks for the core of this discovery key. Answers its number, opening it if need be; `None` where
    /// there is none, or none for this peer.
    fn find(&mut self, discovery_key: &Hash, remote: &PublicKey) -> Option<u64>;

    fn replica(&mut self, core: u64) -> Option<&mut Self::Replica>;
}
