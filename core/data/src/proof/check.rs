//! Checking proofs. Nothing of a proof may be stored before [`check`] has answered.
//!
//! Work is bounded by the bytes of the proof: each of its nodes costs one hash, and a tree of any claimed
//! length has at most 52 roots.

use super::{Proof, UpgradeProof};
use crate::error::DataError;
use crate::manifest::Prologue;
use crate::signature::Verifier;
use crate::tree::{Head, MAX_LENGTH, Node, Nodes};
use flat_tree::Iterator as Walk;

/// What a proof has proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The tree after it: longer, if there was an upgrade.
    pub head: Head,
    /// All nodes that are now known to be true.
    pub nodes: Vec<Node>,
    /// The signature of the longer tree.
    pub signature: Option<Vec<u8>>,
}

/// Checks `proof` against the tree that is known, `head` with `nodes`, and against those who may sign.
pub fn check(
    head: &Head,
    nodes: &impl Nodes,
    verifier: &Verifier,
    proof: &Proof,
) -> Result<Checked, DataError> {
    if proof.fork != head.fork {
        return Err(DataError::BadProof("it is of another fork"));
    }
    let mut checked = Checked { head: head.clone(), nodes: Vec::new(), signature: None };
    let mut unproved = subtree(proof, &mut checked.nodes)?;
    if let Some(upgrade) = &proof.upgrade {
        // Consumed by the upgrade if it lies within; else it must match what is known.
        unproved = grow(&mut checked.head, upgrade, unproved, verifier.prologue(), &mut checked.nodes)?;
        if !verifier.verify(&checked.head, &upgrade.signature) {
            return Err(DataError::BadSignature);
        }
        checked.signature = Some(upgrade.signature.clone());
    }
    if let Some(root) = unproved {
        let known = head.node(root.index, nodes).ok_or(DataError::BadProof("it leads to no known node"))?;
        if known != root {
            return Err(DataError::BadProof("its hash is not that of the known node"));
        }
    }
    Ok(checked)
}

/// The nodes of a list in the order in which they must come; `extra` stands in where it belongs.
struct Queue<'a> {
    nodes: std::slice::Iter<'a, Node>,
    extra: Option<Node>,
}

impl<'a> Queue<'a> {
    fn new(nodes: &'a [Node], extra: Option<Node>) -> Self {
        Queue { nodes: nodes.iter(), extra }
    }

    fn is_empty(&self) -> bool {
        self.nodes.len() == 0 && self.extra.is_none()
    }

    fn shift(&mut self, index: u64) -> Result<Node, DataError> {
        if let Some(extra) = self.extra.take_if(|extra| extra.index == index) {
            return Ok(extra);
        }
        let node = self.nodes.next().ok_or(DataError::BadProof("a node is missing"))?;
        if node.index != index {
            return Err(DataError::BadProof("a node that does not belong there"));
        }
        Ok(node.clone())
    }
}

/// Hashes from the block, node or seek up, as far as the nodes reach.
fn subtree(proof: &Proof, made: &mut Vec<Node>) -> Result<Option<Node>, DataError> {
    let mut root = None;
    if let Some(first) = proof.seek.as_ref().and_then(|seek| seek.nodes.first()) {
        let nodes = proof.seek.as_ref().map_or(&[][..], |seek| &seek.nodes[1..]);
        root = Some(climb(first.clone(), Queue::new(nodes, None), made)?);
    }
    if let Some(block) = &proof.block {
        if block.index >= MAX_LENGTH {
            return Err(DataError::BadProof("a core of more than 2^51 blocks"));
        }
        return climb(block.leaf(), Queue::new(&block.nodes, root), made).map(Some);
    }
    if let Some(hash) = &proof.hash {
        let mut queue = Queue::new(&hash.nodes, root);
        let first = queue.shift(hash.index)?;
        return climb(first, queue, made).map(Some);
    }
    Ok(root)
}

fn climb(mut root: Node, mut queue: Queue<'_>, made: &mut Vec<Node>) -> Result<Node, DataError> {
    if root.index >= MAX_LENGTH * 2 {
        return Err(DataError::BadProof("a core of more than 2^51 blocks"));
    }
    let mut walk = Walk::new(root.index);
    made.push(root.clone());
    while !queue.is_empty() {
        if walk.factor() > MAX_LENGTH * 2 || walk.index() > MAX_LENGTH * 2 {
            return Err(DataError::BadProof("it climbs above any core"));
        }
        let node = queue.shift(walk.sibling())?;
        root = Node::parent(walk.parent(), &root, &node)?;
        made.push(node);
        made.push(root.clone());
    }
    Ok(root)
}

/// Grows `head` by the upgrade. Answers `extra` if the upgrade had no place for it.
fn grow(
    head: &mut Head,
    upgrade: &UpgradeProof,
    extra: Option<Node>,
    prologue: Option<&Prologue>,
    made: &mut Vec<Node>,
) -> Result<Option<Node>, DataError> {
    let reached = upgrade.start.checked_add(upgrade.length).filter(|reached| *reached <= MAX_LENGTH);
    let reached = reached.ok_or(DataError::BadProof("a core of more than 2^51 blocks"))?;
    if upgrade.start != head.length || reached <= head.length {
        return Err(DataError::BadProof("an upgrade that does not begin at our end"));
    }
    if let Some(prologue) = prologue
        && upgrade.start < prologue.length
        && (upgrade.start != 0 || upgrade.length < prologue.length)
    {
        return Err(DataError::BadProof("an upgrade that cuts the prologue"));
    }
    let mut queue = Queue::new(&upgrade.nodes, extra);
    let known = head.roots.len();
    let (mut same, mut growing) = (0, known > 0);
    let mut walk = Walk::new(0);
    while walk.full_root(reached * 2) {
        let root = walk.index();
        if same < head.roots.len() && head.roots[same].index == root {
            same += 1;
        } else if growing && same < head.roots.len() {
            growing = false;
            let last = head.roots.last().map_or(0, |root| root.index);
            walk.seek(last);
            while walk.index() != root {
                let node = queue.shift(walk.sibling())?;
                head.append_root(node, &mut walk, made)?;
            }
        } else {
            growing = false;
            let node = queue.shift(root)?;
            head.append_root(node, &mut walk, made)?;
        }
        walk.next_tree();
    }
    if let Some(prologue) = prologue
        && head.length == prologue.length
        && head.hash() != prologue.hash
    {
        return Err(DataError::BadProof("the prologue is another"));
    }
    if queue.nodes.len() > 0 {
        return Err(DataError::BadProof("more nodes than the upgrade needs"));
    }
    append_additional(head, &upgrade.additional, made)?;
    Ok(queue.extra)
}

/// The tree that `upgrade` leads to, its signature aside.
pub(crate) fn grow_by_patch(head: &Head, upgrade: &UpgradeProof) -> Result<Head, DataError> {
    let mut longer = head.clone();
    grow(&mut longer, upgrade, None, None, &mut Vec::new())?;
    Ok(longer)
}

/// Nodes from the end of the tree on, each as large as it may be.
fn append_additional(head: &mut Head, additional: &[Node], made: &mut Vec<Node>) -> Result<(), DataError> {
    let Some(last) = head.roots.last() else {
        return if additional.is_empty() { Ok(()) } else { Err(DataError::BadProof("a tree with no root")) };
    };
    let mut walk = Walk::new(last.index);
    let mut rest = additional.iter().peekable();
    while let Some(node) = rest.next_if(|node| node.index == walk.sibling()) {
        head.append_root(node.clone(), &mut walk, made)?;
    }
    for node in rest {
        while node.index != walk.index() {
            if walk.factor() == 2 {
                return Err(DataError::BadProof("a node that does not belong there"));
            }
            walk.left_child();
        }
        head.append_root(node.clone(), &mut walk, made)?;
        walk.sibling();
    }
    Ok(())
}
