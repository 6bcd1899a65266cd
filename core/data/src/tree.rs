//! The Merkle tree over a core's blocks: what is known of it, and how it grows and shrinks.
//!
//! Nodes are numbered as in `flat-tree`: block `n` is node `2n`, a parent lies between its children. A tree
//! of any length is a row of full subtrees, whose roots are kept in [`Head`]; the other nodes are looked up
//! through [`Nodes`].

use crate::crypto::{self, Hash};
use crate::encoding::MAX_UINT;
use crate::error::DataError;
use flat_tree::Iterator as Walk;

/// A core of more blocks than this is refused: node numbers would not fit JavaScript's integers.
pub const MAX_LENGTH: u64 = 1 << 51;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub index: u64,
    /// The bytes of all blocks below.
    pub size: u64,
    pub hash: Hash,
}

impl Node {
    /// The node of block number `index`.
    pub fn leaf(index: u64, block: &[u8]) -> Self {
        Node { index: index * 2, size: block.len() as u64, hash: crypto::leaf_hash(block) }
    }

    /// Fails if the sizes add up to more than an honest core can hold.
    pub fn parent(index: u64, left: &Node, right: &Node) -> Result<Self, DataError> {
        let (left, right) = if left.index < right.index { (left, right) } else { (right, left) };
        let size = left.size.checked_add(right.size).filter(|size| *size <= MAX_UINT);
        let size = size.ok_or(DataError::BadProof("sizes above 2^53"))?;
        Ok(Node { index, size, hash: crypto::parent_hash(size, &left.hash, &right.hash) })
    }
}

/// Where the nodes below the roots are.
pub trait Nodes {
    fn node(&self, index: u64) -> Option<Node>;
}

/// Nodes in memory, by their number.
#[derive(Clone, Debug, Default)]
pub struct NodeTable {
    nodes: Vec<Option<(u64, Hash)>>,
}

impl NodeTable {
    /// Grows the table up to the node's number, so only for nodes of trees whose blocks are here.
    pub fn put(&mut self, node: &Node) {
        let at = node.index as usize;
        if at >= self.nodes.len() {
            self.nodes.resize(at + 1, None);
        }
        self.nodes[at] = Some((node.size, node.hash));
    }

    /// Forgets what is not of a tree of `length` blocks.
    pub fn truncate(&mut self, length: u64) {
        let end = length * 2;
        self.nodes.truncate(end as usize);
        if length == 0 {
            return;
        }
        // The parents left of the end that span blocks beyond it.
        let mut walk = Walk::new(end - 2);
        loop {
            let index = walk.index();
            if walk.contains(end) && index < end && index < self.nodes.len() as u64 {
                self.nodes[index as usize] = None;
            }
            if walk.offset() == 0 && walk.contains(end) {
                break;
            }
            walk.parent();
        }
    }
}

impl Nodes for NodeTable {
    fn node(&self, index: u64) -> Option<Node> {
        let (size, hash) = (*self.nodes.get(usize::try_from(index).ok()?)?)?;
        Some(Node { index, size, hash })
    }
}

/// The tree at one length of one fork.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub fork: u64,
    pub length: u64,
    pub byte_length: u64,
    pub roots: Vec<Node>,
}

impl Head {
    /// What is signed.
    pub fn hash(&self) -> Hash {
        let mut bytes = vec![2];
        for root in &self.roots {
            bytes.extend_from_slice(&root.hash);
            bytes.extend_from_slice(&root.index.to_le_bytes());
            bytes.extend_from_slice(&root.size.to_le_bytes());
        }
        crypto::hash(&[&bytes])
    }

    /// Appends a block; every new node goes to `made`.
    pub fn append(&mut self, block: &[u8], made: &mut Vec<Node>) -> Result<(), DataError> {
        let node = Node::leaf(self.length, block);
        let mut walk = Walk::new(node.index);
        self.append_root(node, &mut walk, made)
    }

    /// Appends several blocks, whose hashes are calculated together.
    pub fn append_all(&mut self, blocks: &[&[u8]], made: &mut Vec<Node>) -> Result<(), DataError> {
        const TOGETHER: usize = 64;
        for blocks in blocks.chunks(TOGETHER) {
            for (block, hash) in blocks.iter().zip(crypto::leaf_hashes(blocks)) {
                let node = Node { index: self.length * 2, size: block.len() as u64, hash };
                let mut walk = Walk::new(node.index);
                self.append_root(node, &mut walk, made)?;
            }
        }
        Ok(())
    }

    /// Appends a full subtree, on whose root `walk` stands, and joins it with those to its left. Leaves
    /// `walk` on the last root.
    pub fn append_root(
        &mut self,
        node: Node,
        walk: &mut Walk,
        made: &mut Vec<Node>,
    ) -> Result<(), DataError> {
        if flat_tree::left_span(node.index) != self.length * 2 {
            return Err(DataError::BadProof("a subtree that does not follow the last"));
        }
        let length = self.length.checked_add(walk.factor() / 2).filter(|length| *length <= MAX_LENGTH);
        self.length = length.ok_or(DataError::BadProof("a core of more than 2^51 blocks"))?;
        let byte_length = self.byte_length.checked_add(node.size).filter(|size| *size <= MAX_UINT);
        self.byte_length = byte_length.ok_or(DataError::BadProof("sizes above 2^53"))?;
        made.push(node.clone());
        self.roots.push(node);
        while let [.., left, right] = &self.roots[..] {
            if walk.sibling() != left.index {
                walk.sibling(); // back onto the last root
                break;
            }
            let node = Node::parent(walk.parent(), left, right)?;
            made.push(node.clone());
            self.roots.truncate(self.roots.len() - 2);
            self.roots.push(node);
        }
        Ok(())
    }

    /// The same tree cut to its first `length` blocks, as fork `fork`.
    pub fn truncated(&self, length: u64, fork: u64, nodes: &impl Nodes) -> Result<Head, DataError> {
        if length > self.length {
            return Err(DataError::OutOfBounds { index: length, length: self.length });
        }
        let roots: Vec<Node> = full_roots(length)
            .into_iter()
            .map(|index| self.node(index, nodes).ok_or(DataError::BadRequest("a node that is not here")))
            .collect::<Result<_, _>>()?;
        let byte_length = roots.iter().map(|root| root.size).sum();
        Ok(Head { fork, length, byte_length, roots })
    }

    /// A node of this tree, be it one of the roots or below.
    pub fn node(&self, index: u64, nodes: &impl Nodes) -> Option<Node> {
        self.roots.iter().find(|root| root.index == index).cloned().or_else(|| nodes.node(index))
    }

    /// The bytes before node `index`.
    pub fn byte_offset(&self, index: u64, nodes: &impl Nodes) -> Result<u64, DataError> {
        if index == self.length * 2 {
            return Ok(self.byte_length);
        }
        let index = flat_tree::left_span(index);
        let mut offset = 0;
        for root in &self.roots {
            if index > flat_tree::right_span(root.index) {
                offset += root.size;
                continue;
            }
            let mut walk = Walk::new(root.index);
            while walk.index() != index {
                if index < walk.index() {
                    walk.left_child();
                } else {
                    let left = walk.left_child();
                    offset +=
                        self.node(left, nodes).ok_or(DataError::BadRequest("a node that is not here"))?.size;
                    walk.sibling();
                }
            }
            return Ok(offset);
        }
        Err(DataError::OutOfBounds { index: index / 2, length: self.length })
    }

    /// The block that holds byte `bytes`, and the offset within it. As in JavaScript, a byte that begins a
    /// block may also be found in an empty block just before it.
    pub fn seek(&self, bytes: u64, nodes: &impl Nodes) -> Result<(u64, u64), DataError> {
        let mut rest = bytes;
        if rest == 0 {
            return Ok((0, 0));
        }
        for root in &self.roots {
            if rest == root.size {
                return Ok((flat_tree::right_span(root.index) / 2 + 1, 0));
            }
            if rest > root.size {
                rest -= root.size;
                continue;
            }
            let mut walk = Walk::new(root.index);
            while walk.index() & 1 == 1 {
                let left = walk.left_child();
                let left = nodes.node(left).ok_or(DataError::BadRequest("a node that is not here"))?;
                if rest == left.size {
                    return Ok((flat_tree::right_span(left.index) / 2 + 1, 0));
                }
                if rest > left.size {
                    rest -= left.size;
                    walk.sibling();
                }
            }
            return Ok((walk.index() / 2, rest));
        }
        Err(DataError::BadRequest("a byte beyond the end"))
    }
}

/// The roots of a tree of `length` blocks, from the left.
pub fn full_roots(length: u64) -> Vec<u64> {
    let mut roots = Vec::new();
    flat_tree::full_roots(length * 2, &mut roots);
    roots
}
