//! Proofs that a block, a node, a byte or a longer tree belongs to a core: what a peer sends, and what is
//! asked of it.
//!
//! As `hypercore/lib/merkle-tree.js` 11.37.1 makes them, node for node: the receiver knows from its own request
//! which nodes must come in which order, so any other is refused. Making is in `proof/make.rs`, checking in
//! `proof/check.rs`.

mod check;
mod make;

pub(crate) use check::grow_by_patch;
pub use check::{Checked, check};
pub use make::make;

use crate::crypto::{self, Hash};
use crate::encoding::{Reader, Writer};
use crate::error::DataError;
use crate::manifest::Manifest;
use crate::tree::{MAX_LENGTH, Node};

/// No honest list of nodes is longer: a path to the root of the largest tree, and as many roots.
const MAX_NODES: usize = 128;

/// A block or a node is wanted, with the `nodes` next parents proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The number of the block, or of the node.
    pub index: u64,
    pub nodes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeekWanted {
    pub bytes: u64,
    /// What each block has in front that does not count.
    pub padding: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpgradeWanted {
    pub start: u64,
    pub length: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub block: Option<Wanted>,
    pub hash: Option<Wanted>,
    pub seek: Option<SeekWanted>,
    pub upgrade: Option<UpgradeWanted>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockProof {
    pub index: u64,
    pub value: Vec<u8>,
    pub nodes: Vec<Node>,
    /// The hash of the value as a leaf, where it was calculated here already.
    leaf: Option<Hash>,
}

impl BlockProof {
    pub fn new(index: u64, value: Vec<u8>, nodes: Vec<Node>) -> Self {
        BlockProof { index, value, nodes, leaf: None }
    }

    /// The node of the block as it was received.
    pub(crate) fn leaf(&self) -> Node {
        match self.leaf {
            Some(hash) => Node { index: self.index * 2, size: self.value.len() as u64, hash },
            None => Node::leaf(self.index, &self.value),
        }
    }
}

/// Calculates the leaves of several proofs at once.
pub(crate) fn hash_leaves<'a>(proofs: impl Iterator<Item = &'a mut Proof>) {
    let mut blocks: Vec<&mut BlockProof> = proofs.filter_map(|proof| proof.block.as_mut()).collect();
    let values: Vec<&[u8]> = blocks.iter().map(|block| block.value.as_slice()).collect();
    let hashes = crypto::leaf_hashes(&values);
    for (block, hash) in blocks.iter_mut().zip(hashes) {
        block.leaf = Some(hash);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashProof {
    pub index: u64,
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeekProof {
    pub bytes: u64,
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpgradeProof {
    pub start: u64,
    pub length: u64,
    pub nodes: Vec<Node>,
    /// From the length that was asked for up to the length that is signed.
    pub additional: Vec<Node>,
    pub signature: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    pub fork: u64,
    pub block: Option<BlockProof>,
    pub hash: Option<HashProof>,
    pub seek: Option<SeekProof>,
    pub upgrade: Option<UpgradeProof>,
}

/// The message `data`: a proof that answers a request, and the manifest if that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    pub request: u64,
    pub proof: Proof,
    pub manifest: Option<Manifest>,
}

impl Data {
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        self.write(&mut to);
        to.bytes
    }

    pub fn write(&self, to: &mut Writer) {
        let proof = &self.proof;
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        to.uint(
            flag(proof.block.is_some(), 1)
                | flag(proof.hash.is_some(), 2)
                | flag(proof.seek.is_some(), 4)
                | flag(proof.upgrade.is_some(), 8)
                | flag(self.manifest.is_some(), 16),
        );
        to.uint(self.request);
        to.uint(proof.fork);
        if let Some(block) = &proof.block {
            to.uint(block.index);
            to.buffer(&block.value);
            to.array(&block.nodes, write_node);
        }
        if let Some(hash) = &proof.hash {
            to.uint(hash.index);
            to.array(&hash.nodes, write_node);
        }
        if let Some(seek) = &proof.seek {
            to.uint(seek.bytes);
            to.array(&seek.nodes, write_node);
        }
        if let Some(upgrade) = &proof.upgrade {
            to.uint(upgrade.start);
            to.uint(upgrade.length);
            to.array(&upgrade.nodes, write_node);
            to.array(&upgrade.additional, write_node);
            to.buffer(&upgrade.signature);
        }
        if let Some(manifest) = &self.manifest {
            manifest.write(to);
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DataError> {
        let mut from = Reader::new(bytes);
        let flags = from.uint()?;
        let has = |flag: u64| flags & flag != 0;
        let request = from.uint()?;
        let fork = from.uint()?;
        let mut proof = Proof { fork, ..Proof::default() };
        if has(1) {
            let index = read_index(&mut from)?;
            proof.block = Some(BlockProof::new(index, from.buffer()?.to_vec(), read_nodes(&mut from)?));
        }
        if has(2) {
            proof.hash = Some(HashProof { index: read_index(&mut from)?, nodes: read_nodes(&mut from)? });
        }
        if has(4) {
            proof.seek = Some(SeekProof { bytes: from.uint()?, nodes: read_nodes(&mut from)? });
        }
        if has(8) {
            proof.upgrade = Some(UpgradeProof {
                start: read_index(&mut from)?,
                length: read_index(&mut from)?,
                nodes: read_nodes(&mut from)?,
                additional: read_nodes(&mut from)?,
                signature: from.buffer()?.to_vec(),
            });
        }
        let manifest = has(16).then(|| Manifest::read(&mut from)).transpose()?;
        Ok(Data { request, proof, manifest })
    }
}

pub(crate) fn write_node(to: &mut Writer, node: &Node) {
    to.uint(node.index);
    to.uint(node.size);
    to.raw(&node.hash);
}

pub(crate) fn read_nodes(from: &mut Reader<'_>) -> Result<Vec<Node>, DataError> {
    from.array(MAX_NODES, |from| {
        Ok(Node { index: read_index(from)?, size: from.uint()?, hash: from.fixed()? })
    })
}

/// The number of a block or node that a core of at most [`MAX_LENGTH`] can have.
fn read_index(from: &mut Reader<'_>) -> Result<u64, DataError> {
    let index = from.uint()?;
    if index < MAX_LENGTH * 2 { Ok(index) } else { Err(DataError::Malformed("a number beyond any core")) }
}
