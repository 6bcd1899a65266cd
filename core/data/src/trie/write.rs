//! Puts and deletions: which buckets a new block gets. Step by step as `hypertrie/lib/put.js` and `del.js`
//! 5.1.3 do it, so that the blocks are the same.

use super::node::{Node, ends_part};
use super::{Nodes, Trie};
use crate::error::DataError;
use crate::feed::{Feed, FeedMut};
use std::sync::Arc;

/// How a key is put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Apart from the other keys: found and listed only as hidden.
    pub hidden: bool,
    /// Of the user's.
    pub flags: u32,
}

/// Operations that become visible together, by [`Batch::flush`].
pub struct Batch<'a, F> {
    trie: &'a mut Trie<F>,
    first: u64,
    head: Option<Arc<Node>>,
    pending: Vec<Arc<Node>>,
    header: bool,
}

impl<'a, F: FeedMut> Batch<'a, F> {
    pub(super) fn new(trie: &'a mut Trie<F>) -> Result<Self, DataError> {
        let length = trie.nodes.feed.length();
        let head = trie.nodes.head(length)?;
        Ok(Batch { trie, first: length.max(1), head, pending: Vec::new(), header: length == 0 })
    }

    pub fn put(&mut self, key: &str, value: &[u8]) -> Result<u64, DataError> {
        self.put_with(key, Some(value), PutOptions::default())
    }

    pub fn put_with(
        &mut self,
        key: &str,
        value: Option<&[u8]>,
        options: PutOptions,
    ) -> Result<u64, DataError> {
        let node = Node::new(key, value, options.hidden, options.flags.into());
        self.insert(node, 0)
    }

    /// Answers whether the key was there.
    pub fn del(&mut self, key: &str) -> Result<bool, DataError> {
        self.del_with(key, false)
    }

    pub fn del_with(&mut self, key: &str, hidden: bool) -> Result<bool, DataError> {
        let target = Node::new(key, None, hidden, 0);
        let Some((found, closest)) = self.find_for_deletion(&target)? else { return Ok(false) };
        let closest = if closest == 0 { None } else { self.get(closest)? };
        let node = match closest {
            Some(closest) => {
                let value = closest.value.as_deref();
                Node::new(&closest.key, value, closest.hidden(), closest.user_flags())
            }
            None => Node::new("", None, found.hidden(), 0),
        };
        self.insert(node, found.seq)?;
        Ok(true)
    }

    fn get(&self, seq: u64) -> Result<Option<Arc<Node>>, DataError> {
        match seq.checked_sub(self.first) {
            Some(at) => Ok(self.pending.get(at as usize).cloned()),
            None => self.trie.nodes.get(seq),
        }
    }

    /// The node to delete, and the block nearest to it, which is to be written again (0: there is none).
    fn find_for_deletion(&self, target: &Node) -> Result<Option<(Arc<Node>, u64)>, DataError> {
        let Some(mut head) = self.head.clone() else { return Ok(None) };
        let (mut closest, mut at) = (0, 0);
        while at < target.length() {
            let digit = target.path(at) as usize;
            let bucket = head.bucket(at);
            if head.path(at) as usize == digit {
                let other = bucket.iter().enumerate().find(|(place, seq)| *place != digit && **seq != 0);
                closest = other.map_or(closest, |(_, seq)| *seq);
                at += 1;
                continue;
            }
            let Some(&seq) = bucket.get(digit).filter(|seq| **seq != 0) else { return Ok(None) };
            closest = head.seq;
            let Some(next) = self.get(seq)? else { return Ok(None) };
            (head, at) = (next, at + 1);
        }
        Ok((target.key == head.key).then_some((head, closest)))
    }

    /// Gives a node its buckets, without what leads to the node that is deleted, and makes it the head.
    fn insert(&mut self, mut node: Node, deleted: u64) -> Result<u64, DataError> {
        let mut at = 0;
        let mut next = self.head.clone();
        while let Some(head) = next.take() {
            while at < node.length() {
                let (digit, ends) = (node.path(at) as usize, ends_part(at));
                let bucket = head.bucket(at);
                for (place, seq) in bucket.iter().enumerate().filter(|(_, seq)| **seq != 0) {
                    if (place == digit && !ends) || *seq == deleted {
                        continue;
                    }
                    if !ends || self.get(*seq)?.is_some_and(|other| other.collides(&node, at)) {
                        node.push(at, place, *seq);
                    }
                }
                let of_head = head.path(at) as usize;
                if of_head == digit && !(ends && node.collides(&head, at)) {
                    at += 1;
                    continue;
                }
                if head.seq != deleted {
                    node.push(at, of_head, head.seq);
                }
                next = self.onward(&node, bucket, at)?;
                at += 1;
                break;
            }
        }
        node.seq = self.first + self.pending.len() as u64;
        let node = Arc::new(node);
        self.pending.push(node.clone());
        let seq = node.seq;
        self.head = Some(node);
        Ok(seq)
    }

    /// The node that shares more of the path.
    fn onward(&self, node: &Node, bucket: &[u64], at: usize) -> Result<Option<Arc<Node>>, DataError> {
        let digit = node.path(at) as usize;
        if !ends_part(at) {
            let seq = bucket.get(digit).copied().unwrap_or_default();
            return if seq == 0 { Ok(None) } else { self.get(seq) };
        }
        let mut found = None;
        for seq in bucket.iter().skip(digit).step_by(5).take_while(|seq| **seq != 0) {
            found = self.get(*seq)?.filter(|other| !other.collides(node, at)).or(found);
        }
        Ok(found)
    }

    /// Appends everything. Answers the version that results.
    pub fn flush(self) -> Result<u64, DataError> {
        let header = self.header.then(|| self.trie.header.encode());
        let raw: Vec<Vec<u8>> =
            header.into_iter().chain(self.pending.iter().map(|node| node.encode())).collect();
        if !raw.is_empty() {
            let blocks: Vec<&[u8]> = raw.iter().map(Vec::as_slice).collect();
            self.trie.nodes.feed.append(&blocks)?;
        }
        self.pending.into_iter().for_each(|node| self.trie.nodes.keep(node));
        Ok(self.trie.version())
    }
}

impl<F: Feed> Nodes<F> {
    /// The newest node at a length, unless everything is deleted.
    pub fn head(&self, length: u64) -> Result<Option<Arc<Node>>, DataError> {
        if length < 2 { Ok(None) } else { self.get(length - 1) }
    }
}
