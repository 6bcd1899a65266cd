//! Making proofs. Which nodes belong to a proof follows from the request alone.

use super::{BlockProof, HashProof, Proof, Request, SeekProof, SeekWanted, UpgradeProof};
use crate::error::DataError;
use crate::manifest::Prologue;
use crate::tree::{Head, MAX_LENGTH, Node, Nodes, full_roots};
use flat_tree::Iterator as Walk;

/// Answers `request`, but for the block's value, which the caller fills in. `signature` is that of `head`.
pub fn make<N: Nodes>(
    head: &Head,
    nodes: &N,
    prologue: Option<&Prologue>,
    signature: &[u8],
    request: &Request,
) -> Result<Proof, DataError> {
    if head.length == 0 {
        return Ok(Proof { fork: head.fork, ..Proof::default() });
    }
    let mut request = *request;
    if let (Some(prologue), Some(upgrade)) = (prologue, &mut request.upgrade)
        && upgrade.start < prologue.length
    {
        *upgrade = super::UpgradeWanted { start: 0, length: prologue.length };
    }
    let mut maker = Maker::new(head, nodes, &request)?;
    maker.run()?;
    let Maker { node: proved, seek: sought, upgrade, additional, .. } = maker;
    let mut proof = Proof { fork: head.fork, ..Proof::default() };
    if let Some(block) = request.block {
        let nodes = proved.ok_or(DataError::BadRequest("a block outside the upgrade"))?;
        proof.block = Some(BlockProof::new(block.index, Vec::new(), nodes));
    } else if let Some(hash) = request.hash {
        let nodes = proved.ok_or(DataError::BadRequest("a node outside the upgrade"))?;
        proof.hash = Some(HashProof { index: hash.index, nodes });
    }
    if let (Some(seek), Some(nodes)) = (request.seek, sought) {
        proof.seek = Some(SeekProof { bytes: seek.bytes, nodes });
    }
    if let Some(wanted) = request.upgrade {
        proof.upgrade = Some(UpgradeProof {
            start: wanted.start,
            length: wanted.length,
            nodes: upgrade.unwrap_or_default(),
            additional: additional.unwrap_or_default(),
            signature: signature.to_vec(),
        });
    }
    Ok(proof)
}

struct Maker<'a, N> {
    head: &'a Head,
    nodes: &'a N,
    /// The node that is wanted, and whether its value goes along.
    wanted: Option<(u64, bool)>,
    /// How many parents of it, and the last block below it.
    span: (u64, u64),
    with_seek: Option<SeekWanted>,
    from: u64,
    to: u64,
    upgrading: bool,
    node: Option<Vec<Node>>,
    seek: Option<Vec<Node>>,
    upgrade: Option<Vec<Node>>,
    additional: Option<Vec<Node>>,
}

impl<'a, N: Nodes> Maker<'a, N> {
    fn new(head: &'a Head, nodes: &'a N, request: &Request) -> Result<Self, DataError> {
        let end = head.length * 2;
        let (from, to) = match request.upgrade {
            Some(upgrade) => {
                let reached = upgrade.start.checked_add(upgrade.length).filter(|to| *to <= head.length);
                let reached = reached.ok_or(DataError::BadRequest("an upgrade beyond the end"))?;
                (upgrade.start * 2, reached * 2)
            }
            None => (0, end),
        };
        if from >= to {
            return Err(DataError::BadRequest("an upgrade of nothing"));
        }
        let (wanted, span) = match (request.block, request.hash) {
            (Some(block), _) if block.index < head.length => {
                (Some((block.index * 2, true)), (block.nodes, block.index))
            }
            (None, Some(hash)) if hash.index < end && flat_tree::right_span(hash.index) < end => {
                (Some((hash.index, false)), (hash.nodes, flat_tree::right_span(hash.index) / 2))
            }
            (None, None) => (None, (0, 0)),
            _ => return Err(DataError::BadRequest("a node beyond the end")),
        };
        if request.seek.is_some()
            && request.upgrade.is_some()
            && wanted.is_some_and(|(index, _)| index >= from)
        {
            return Err(DataError::BadRequest("a seek and a block in one upgrade"));
        }
        let (with_seek, upgrading) = (request.seek, request.upgrade.is_some());
        Ok(Maker {
            head,
            nodes,
            wanted,
            span,
            with_seek,
            from,
            to,
            upgrading,
            node: None,
            seek: None,
            upgrade: None,
            additional: None,
        })
    }

    fn run(&mut self) -> Result<(), DataError> {
        let end = self.head.length * 2;
        let mut subtree = end;
        if let Some((index, _)) = self.wanted.filter(|_| !self.upgrading || self.span.1 < self.from / 2) {
            subtree = self.ancestor(index)?;
            let seek_root = match self.with_seek {
                Some(seek) => self.seek_within(subtree, seek)?,
                None => end,
            };
            self.block_and_seek(seek_root, subtree)?;
        } else if self.upgrading {
            subtree = match (self.with_seek, self.wanted) {
                (Some(seek), _) => self.seek_from_start(seek)?,
                (None, Some((index, _))) => index,
                (None, None) => end,
            };
        }
        if self.upgrading {
            self.upgrade_nodes(subtree)?;
            if end > self.to {
                self.additional_nodes()?;
            }
        }
        Ok(())
    }

    fn get(&self, index: u64) -> Result<Node, DataError> {
        self.head.node(index, self.nodes).ok_or(DataError::BadRequest("a node that is not here"))
    }

    fn ancestor(&self, index: u64) -> Result<u64, DataError> {
        let mut walk = Walk::new(index);
        for _ in 0..self.span.0 {
            walk.parent();
            if walk.contains(self.to) {
                return Err(DataError::BadRequest("more parents than the tree has"));
            }
        }
        Ok(walk.index())
    }

    fn block_and_seek(&mut self, seek_root: u64, root: u64) -> Result<(), DataError> {
        let Some((index, value)) = self.wanted else { return self.seek_nodes(seek_root, root) };
        let mut walk = Walk::new(index);
        let mut list = Vec::new();
        if !value {
            list.push(self.get(index)?);
        }
        while walk.index() != root {
            walk.sibling();
            if self.with_seek.is_some() && walk.contains(seek_root) && walk.index() != seek_root {
                self.seek_nodes(seek_root, walk.index())?;
            } else {
                list.push(self.get(walk.index())?);
            }
            climb(&mut walk)?;
        }
        self.node = Some(list);
        Ok(())
    }

    fn seek_nodes(&mut self, seek_root: u64, root: u64) -> Result<(), DataError> {
        let mut walk = Walk::new(seek_root);
        let mut list = vec![self.get(seek_root)?];
        while walk.index() != root {
            list.push(self.get(walk.sibling())?);
            climb(&mut walk)?;
        }
        self.seek = Some(list);
        Ok(())
    }

    fn upgrade_nodes(&mut self, subtree: u64) -> Result<(), DataError> {
        let (from, to) = (self.from, self.to);
        let mut list = (from == 0).then(Vec::new);
        let mut walk = Walk::new(0);
        while walk.full_root(to) {
            let root = walk.index();
            if root + walk.factor() / 2 < from {
                walk.next_tree();
                continue;
            }
            // The subtree that the peer has in part: what is right of its end.
            if list.is_none() && walk.contains(from - 2) {
                let mut missing = Vec::new();
                walk.seek(from - 2);
                while walk.index() != root {
                    walk.sibling();
                    if walk.index() > from - 2 {
                        if self.node.is_none() && self.seek.is_none() && walk.contains(subtree) {
                            self.block_and_seek(subtree, walk.index())?;
                        } else {
                            missing.push(self.get(walk.index())?);
                        }
                    }
                    walk.parent();
                }
                list = Some(missing);
                walk.next_tree();
                continue;
            }
            let list = list.get_or_insert_default();
            if self.node.is_none() && self.seek.is_none() && walk.contains(subtree) {
                self.block_and_seek(subtree, root)?;
            } else {
                list.push(self.get(root)?);
            }
            walk.next_tree();
        }
        self.upgrade = list;
        Ok(())
    }

    /// From the end of the upgrade to the end of the tree, whose signature goes along.
    fn additional_nodes(&mut self) -> Result<(), DataError> {
        let (from, end) = (self.to, self.head.length * 2);
        let mut list: Option<Vec<Node>> = None;
        let mut walk = Walk::new(0);
        while walk.full_root(end) {
            let root = walk.index();
            if root + walk.factor() / 2 < from {
                walk.next_tree();
                continue;
            }
            if list.is_none() && walk.contains(from - 2) {
                let mut missing = Vec::new();
                walk.seek(from - 2);
                while walk.index() != root {
                    if walk.sibling() > from - 2 {
                        missing.push(self.get(walk.index())?);
                    }
                    walk.parent();
                }
                list = Some(missing);
            } else {
                list.get_or_insert_default().push(self.get(root)?);
            }
            walk.next_tree();
        }
        self.additional = list;
        Ok(())
    }

    fn unpadded(&self, index: u64, seek: SeekWanted) -> Result<u64, DataError> {
        let padding = seek.padding.checked_mul(flat_tree::count_leaves(index));
        let size = padding.and_then(|padding| self.get(index).ok()?.size.checked_sub(padding));
        size.ok_or(DataError::BadRequest("a seek with more padding than there are bytes"))
    }

    fn seek_from_start(&self, seek: SeekWanted) -> Result<u64, DataError> {
        let mut rest = seek.bytes;
        for root in full_roots(self.to / 2) {
            let size = self.unpadded(root, seek)?;
            if rest == size {
                return Ok(root);
            }
            if rest < size {
                return self.seek_below(root, SeekWanted { bytes: rest, ..seek });
            }
            rest -= size;
        }
        Ok(self.to)
    }

    fn seek_within(&self, root: u64, seek: SeekWanted) -> Result<u64, DataError> {
        let before = self.head.byte_offset(root, self.nodes)?;
        let padding = seek.padding.checked_mul(flat_tree::left_span(root) / 2);
        let before = padding.and_then(|padding| before.checked_sub(padding));
        let before = before.ok_or(DataError::BadRequest("a seek with more padding than there are bytes"))?;
        match seek.bytes.checked_sub(before) {
            None => Err(DataError::BadRequest("a seek outside the subtree")),
            Some(0) => Ok(root),
            Some(rest) if rest >= self.unpadded(root, seek)? => {
                Err(DataError::BadRequest("a seek outside the subtree"))
            }
            Some(bytes) => self.seek_below(root, SeekWanted { bytes, ..seek }),
        }
    }

    fn seek_below(&self, root: u64, seek: SeekWanted) -> Result<u64, DataError> {
        if seek.bytes == 0 {
            return Ok(root);
        }
        let mut rest = seek.bytes;
        let mut walk = Walk::new(root);
        while walk.index() & 1 == 1 {
            if self.get(walk.left_child()).is_err() {
                return Ok(walk.parent());
            }
            let size = self.unpadded(walk.index(), seek)?;
            if size == rest {
                return Ok(walk.index());
            }
            if size < rest {
                rest -= size;
                walk.sibling();
            }
        }
        Ok(walk.index())
    }
}

/// To the parent. A request may name a node that is not below the one that is climbed to, so this must end.
fn climb(walk: &mut Walk) -> Result<(), DataError> {
    if walk.factor() > MAX_LENGTH * 2 {
        return Err(DataError::BadRequest("a node outside the subtree"));
    }
    walk.parent();
    Ok(())
}
