//! The tree as its writer changes it: B-tree nodes of up to eight keys, in memory, as far as they were needed.
//!
//! The blocks must come out as `hyperbee/index.js` 2.27.3 writes them, so this moves keys and children as that
//! does, step by step. Two things there are part of the format without looking like it. A child is an object
//! of its own that nodes hand on to each other; the index of a block lists such objects, and what later
//! operations of the same batch did to them decides what the block holds in the end. And a node is written
//! again once its `changed` is set, even where an operation set it and then wrote nothing.
//!
//! Invariant: between two batches this mirrors the feed; whatever fails half-way throws it away.

use super::block::IndexWriter;
use super::cache::Blocks;
use super::snapshot::MAX_DEPTH;
use crate::error::DataError;
use crate::feed::Feed;
use std::cmp::Ordering;
use std::sync::Arc;

const MIN_KEYS: usize = 4;
const MAX_CHILDREN: usize = 2 * MIN_KEYS + 1;

type NodeId = usize;
pub(super) type ChildId = usize;

#[derive(Clone, Debug)]
struct Key {
    seq: u64,
    bytes: Option<Arc<[u8]>>,
}

#[derive(Debug, Default)]
struct TreeNode {
    keys: Vec<Key>,
    children: Vec<ChildId>,
    changed: bool,
}

/// A place in the feed, and the node that is there, once it was needed.
#[derive(Debug)]
struct Child {
    seq: u64,
    offset: u64,
    node: Option<NodeId>,
}

#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<TreeNode>,
    children: Vec<Child>,
    root: Option<NodeId>,
    /// The feed of which it is the mirror.
    pub length: u64,
    pub fork: u64,
}

/// What became of an operation.
pub(super) enum Outcome {
    Nothing,
    /// The nodes that changed, the root first.
    Changed(Vec<ChildId>),
}

/// Asks whether to go on, given the block of the entry there is.
pub(super) type Condition<'c> = &'c mut dyn FnMut(Option<u64>) -> Result<bool, DataError>;

impl Tree {
    pub fn open<F: Feed>(blocks: &Blocks<F>) -> Result<Tree, DataError> {
        let (length, fork) = (blocks.feed.length(), blocks.feed.fork());
        let mut tree = Tree { nodes: Vec::new(), children: Vec::new(), root: None, length, fork };
        if length > 1 {
            tree.root = Some(tree.load(blocks, length - 1, 0)?);
        }
        Ok(tree)
    }

    /// How many nodes and children it holds in memory.
    pub fn size(&self) -> usize {
        self.nodes.len() + self.children.len()
    }

    fn load<F: Feed>(&mut self, blocks: &Blocks<F>, seq: u64, offset: u64) -> Result<NodeId, DataError> {
        let found = blocks.node(seq, offset)?;
        let mut node = TreeNode::default();
        for at in 0..found.keys() {
            node.keys.push(Key { seq: found.key(at)?, bytes: None });
        }
        if !found.is_leaf() {
            for at in 0..=found.keys() {
                let (seq, offset) = found.child(at)?;
                node.children.push(self.add_child(seq, offset, None));
            }
        }
        Ok(self.add_node(node))
    }

    fn add_node(&mut self, node: TreeNode) -> NodeId {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn add_child(&mut self, seq: u64, offset: u64, node: Option<NodeId>) -> ChildId {
        self.children.push(Child { seq, offset, node });
        self.children.len() - 1
    }

    fn child<F: Feed>(&mut self, blocks: &Blocks<F>, node: NodeId, at: usize) -> Result<NodeId, DataError> {
        let child = self.nodes[node].children[at];
        let Child { seq, offset, node } = self.children[child];
        if let Some(node) = node {
            return Ok(node);
        }
        let loaded = self.load(blocks, seq, offset)?;
        self.children[child].node = Some(loaded);
        Ok(loaded)
    }

    fn key<F: Feed>(&mut self, blocks: &Blocks<F>, node: NodeId, at: usize) -> Result<Arc<[u8]>, DataError> {
        let key = &mut self.nodes[node].keys[at];
        if let Some(bytes) = &key.bytes {
            return Ok(bytes.clone());
        }
        let bytes: Arc<[u8]> = blocks.get(key.seq)?.key().into();
        key.bytes = Some(bytes.clone());
        Ok(bytes)
    }

    /// Where a key is in a node, or before which key it would be.
    fn place<F: Feed>(
        &mut self,
        blocks: &Blocks<F>,
        node: NodeId,
        key: &[u8],
    ) -> Result<Result<usize, usize>, DataError> {
        let (mut start, mut end) = (0, self.nodes[node].keys.len());
        while start < end {
            let middle = (start + end) / 2;
            if self.nodes[node].keys[middle].bytes.is_none() {
                self.key(blocks, node, middle)?;
            }
            match key.cmp(self.nodes[node].keys[middle].bytes.as_deref().unwrap_or_default()) {
                Ordering::Equal => return Ok(Ok(middle)),
                Ordering::Less => end = middle,
                Ordering::Greater => start = middle + 1,
            }
        }
        Ok(Err(start))
    }

    /// The block that holds a key.
    pub fn find<F: Feed>(&mut self, blocks: &Blocks<F>, key: &[u8]) -> Result<Option<u64>, DataError> {
        let Some(mut node) = self.root else { return Ok(None) };
        for _ in 0..MAX_DEPTH {
            match self.place(blocks, node, key)? {
                Ok(at) => return Ok(Some(self.nodes[node].keys[at].seq)),
                Err(_) if self.nodes[node].children.is_empty() => return Ok(None),
                Err(at) => node = self.child(blocks, node, at)?,
            }
        }
        Err(DataError::Malformed("a bee's tree that is deeper than its keys allow"))
    }

    pub fn put<F: Feed>(
        &mut self,
        blocks: &Blocks<F>,
        seq: u64,
        key: &Arc<[u8]>,
        proceed: Condition<'_>,
    ) -> Result<Outcome, DataError> {
        let target = Key { seq, bytes: Some(key.clone()) };
        let root = match self.root {
            Some(root) => root,
            None => self.add_node(TreeNode { changed: true, ..TreeNode::default() }),
        };
        let (mut stack, mut node) = (Vec::new(), root);
        let at = loop {
            let leaf = self.nodes[node].children.is_empty();
            // What is passed on the way counts as changed, even if nothing comes of it.
            self.nodes[node].changed |= !leaf;
            match self.place(blocks, node, key)? {
                Ok(at) => {
                    if !proceed(Some(self.nodes[node].keys[at].seq))? {
                        return Ok(Outcome::Nothing);
                    }
                    self.nodes[node].keys[at] = target;
                    self.nodes[node].changed = true;
                    return Ok(Outcome::Changed(self.commit(root, seq)));
                }
                Err(at) if leaf => break at,
                Err(at) => {
                    stack.push(node);
                    node = self.child(blocks, node, at)?;
                }
            }
            if stack.len() > MAX_DEPTH {
                return Err(DataError::Malformed("a bee's tree that is deeper than its keys allow"));
            }
        };
        if !proceed(None)? {
            return Ok(Outcome::Nothing);
        }
        self.nodes[node].keys.insert(at, target);
        self.nodes[node].changed = true;
        let root = self.split_upwards(blocks, root, stack, node)?;
        Ok(Outcome::Changed(self.commit(root, seq)))
    }

    /// Splits the node while it has too many keys, and then its parent. Answers the root.
    fn split_upwards<F: Feed>(
        &mut self,
        blocks: &Blocks<F>,
        root: NodeId,
        mut stack: Vec<NodeId>,
        mut node: NodeId,
    ) -> Result<NodeId, DataError> {
        while self.nodes[node].keys.len() >= MAX_CHILDREN {
            let half = self.nodes[node].keys.len() / 2;
            let left_keys = self.nodes[node].keys.len() - half;
            let middle = self.key(blocks, node, left_keys - 1)?;
            let left = &mut self.nodes[node];
            let keys = left.keys.split_off(left_keys);
            let children = match left.children.len() {
                0 => Vec::new(),
                count => left.children.split_off(count - half - 1),
            };
            left.changed = true;
            let Some(median) = left.keys.pop() else { break };
            let right = self.add_node(TreeNode { keys, children, changed: true });
            let Some(parent) = stack.pop() else {
                let children = vec![self.add_child(0, 0, Some(node)), self.add_child(0, 0, Some(right))];
                return Ok(self.add_node(TreeNode { keys: vec![median], children, changed: true }));
            };
            let (Ok(at) | Err(at)) = self.place(blocks, parent, &middle)?;
            let right = self.add_child(0, 0, Some(right));
            let above = &mut self.nodes[parent];
            above.keys.insert(at, median);
            above.children.insert(at + 1, right);
            above.changed = true;
            node = parent;
        }
        Ok(root)
    }

    pub fn del<F: Feed>(
        &mut self,
        blocks: &Blocks<F>,
        seq: u64,
        key: &[u8],
        proceed: Condition<'_>,
    ) -> Result<Outcome, DataError> {
        let Some(mut node) = self.root else { return Ok(Outcome::Nothing) };
        let mut stack = Vec::new();
        let at = loop {
            stack.push(node);
            match self.place(blocks, node, key)? {
                Ok(at) => break at,
                Err(_) if self.nodes[node].children.is_empty() => return Ok(Outcome::Nothing),
                Err(at) => node = self.child(blocks, node, at)?,
            }
            if stack.len() > MAX_DEPTH {
                return Err(DataError::Malformed("a bee's tree that is deeper than its keys allow"));
            }
        };
        if !proceed(Some(self.nodes[node].keys[at].seq))? {
            return Ok(Outcome::Nothing);
        }
        if self.nodes[node].children.is_empty() {
            self.nodes[node].keys.remove(at);
        } else {
            self.replace_by_nearest(blocks, node, at, &mut stack)?;
        }
        for node in &stack {
            self.nodes[*node].changed = true;
        }
        let root = self.rebalance(blocks, stack)?;
        Ok(Outcome::Changed(self.commit(root, seq)))
    }

    /// The path from a node along its outermost children down to a leaf.
    fn descend<F: Feed>(
        &mut self,
        blocks: &Blocks<F>,
        mut node: NodeId,
        first: bool,
    ) -> Result<Vec<NodeId>, DataError> {
        let mut path = vec![node];
        while let Some(last) = self.nodes[node].children.len().checked_sub(1) {
            node = self.child(blocks, node, if first { 0 } else { last })?;
            path.push(node);
            if path.len() > MAX_DEPTH {
                return Err(DataError::Malformed("a bee's tree that is deeper than its keys allow"));
            }
        }
        Ok(path)
    }

    /// Puts the next smaller or the next larger key, whichever leaf has more, in the place of a key.
    fn replace_by_nearest<F: Feed>(
        &mut self,
        blocks: &Blocks<F>,
        node: NodeId,
        at: usize,
        stack: &mut Vec<NodeId>,
    ) -> Result<(), DataError> {
        let (left, right) = (self.child(blocks, node, at)?, self.child(blocks, node, at + 1)?);
        let (left, right) = (self.descend(blocks, left, false)?, self.descend(blocks, right, true)?);
        let keys = |tree: &Tree, path: &[NodeId]| path.last().map_or(0, |leaf| tree.nodes[*leaf].keys.len());
        let from_right = keys(self, &left) < keys(self, &right);
        let path = if from_right { right } else { left };
        let leaf = path.last().copied().unwrap_or(node);
        let keys = &mut self.nodes[leaf].keys;
        let nearest = if from_right && !keys.is_empty() { Some(keys.remove(0)) } else { keys.pop() };
        self.nodes[node].keys[at] =
            nearest.ok_or(DataError::Malformed("a leaf of a bee's tree without a key"))?;
        stack.extend(path);
        Ok(())
    }

    /// Gives nodes that have too few keys some of their neighbours', or joins them. Answers the root.
    fn rebalance<F: Feed>(
        &mut self,
        blocks: &Blocks<F>,
        mut stack: Vec<NodeId>,
    ) -> Result<NodeId, DataError> {
        let root = stack[0];
        while stack.len() > 1 {
            let (Some(node), Some(&parent)) = (stack.pop(), stack.last()) else { break };
            if self.nodes[node].keys.len() >= MIN_KEYS {
                return Ok(root);
            }
            let among = &self.nodes[parent].children;
            let index = among.iter().position(|child| self.children[*child].node == Some(node));
            let index = index.ok_or(DataError::Malformed("a node that is no child of its parent"))?;
            let last = among.len() - 1;
            let left = if index > 0 { Some(self.child(blocks, parent, index - 1)?) } else { None };
            let right = if index < last { Some(self.child(blocks, parent, index + 1)?) } else { None };
            if let Some(left) = left
                && self.nodes[left].keys.len() > MIN_KEYS
            {
                self.borrow(parent, index - 1, left, node, false);
                return Ok(root);
            }
            if let Some(right) = right
                && self.nodes[right].keys.len() > MIN_KEYS
            {
                self.borrow(parent, index, right, node, true);
                return Ok(root);
            }
            match (left, right) {
                (Some(left), _) => self.merge(parent, index - 1, left, node),
                (None, Some(right)) => self.merge(parent, index, node, right),
                (None, None) => break,
            }
        }
        if self.nodes[root].keys.is_empty() && !self.nodes[root].children.is_empty() {
            return self.child(blocks, root, 0);
        }
        Ok(root)
    }

    /// Moves a key from a sibling over the parent's key number `at` into the node, and a child with it.
    fn borrow(&mut self, parent: NodeId, at: usize, sibling: NodeId, node: NodeId, from_right: bool) {
        let from = &mut self.nodes[sibling];
        from.changed = true;
        let (key, child) = if from_right {
            let child = if from.children.is_empty() { None } else { Some(from.children.remove(0)) };
            (from.keys.remove(0), child)
        } else {
            let child = from.children.pop();
            (from.keys.remove(from.keys.len() - 1), child)
        };
        let key = std::mem::replace(&mut self.nodes[parent].keys[at], key);
        let into = &mut self.nodes[node];
        if from_right {
            into.keys.push(key);
            into.children.extend(child);
        } else {
            into.keys.insert(0, key);
            child.into_iter().for_each(|child| into.children.insert(0, child));
        }
    }

    /// Joins two neighbours and the parent's key number `at`, which is between them.
    fn merge(&mut self, parent: NodeId, at: usize, left: NodeId, right: NodeId) {
        let median = self.nodes[parent].keys.remove(at);
        let gone = self.nodes[parent].children.remove(at + 1);
        // So it is marked as gone in the blocks of this batch that list it.
        self.children[gone].seq = 0;
        self.nodes[parent].changed = true;
        let right = std::mem::take(&mut self.nodes[right]);
        let left = &mut self.nodes[left];
        left.changed = true;
        left.keys.push(median);
        left.keys.extend(right.keys);
        left.children.extend(right.children);
    }

    /// Numbers the nodes that changed, the root first, and lists them.
    fn commit(&mut self, root: NodeId, seq: u64) -> Vec<ChildId> {
        self.root = Some(root);
        let mut index = Vec::new();
        index.push(self.add_child(seq, 0, Some(root)));
        self.number(root, seq, &mut index);
        index
    }

    fn number(&mut self, node: NodeId, seq: u64, index: &mut Vec<ChildId>) {
        self.nodes[node].changed = false;
        for at in 0..self.nodes[node].children.len() {
            let child = self.nodes[node].children[at];
            if let Some(below) = self.children[child].node
                && self.nodes[below].changed
            {
                (self.children[child].seq, self.children[child].offset) = (seq, index.len() as u64);
                index.push(child);
                self.number(below, seq, index);
            }
        }
    }

    /// Between batches nothing counts as changed.
    pub fn settle(&mut self) {
        let mut stack: Vec<NodeId> = self.root.into_iter().collect();
        while let Some(node) = stack.pop() {
            if std::mem::take(&mut self.nodes[node].changed) {
                let children = &self.nodes[node].children;
                stack.extend(children.iter().filter_map(|child| self.children[*child].node));
            }
        }
    }

    /// Drops from a list what a later block of the batch wrote again, and the root, which it always did.
    pub fn compact(&mut self, seq: u64, index: &mut Vec<ChildId>) {
        let mut gone = true;
        let mut at = 0;
        while at < index.len() {
            let child = index[at];
            if !gone && self.children[child].seq == seq {
                self.children[child].offset = at as u64;
                at += 1;
            } else {
                index.swap_remove(at);
            }
            gone = false;
        }
    }

    pub fn encode(&self, index: &[ChildId]) -> Vec<u8> {
        let (mut to, mut keys, mut children) = (IndexWriter::default(), Vec::new(), Vec::new());
        for child in index {
            let Some(node) = self.children[*child].node else { continue };
            let node = &self.nodes[node];
            keys.clear();
            keys.extend(node.keys.iter().map(|key| key.seq));
            children.clear();
            let children_of = node.children.iter().map(|child| &self.children[*child]);
            children.extend(children_of.flat_map(|child| [child.seq, child.offset]));
            to.level(&keys, &children);
        }
        to.bytes
    }
}
