//! A trie: a key-value store on a feed, with its whole history, in the block format of Hypertrie 5.
//!
//! Each write appends a block; the last one is the way to all others: it holds, for every place of the path of
//! its key, the blocks whose keys part there ([`node`]). The blocks are byte for byte those that `hypertrie`
//! 5.1.3 writes for the same operations. Keys are paths: what lies below a prefix can be listed.
//!
//! Invariants: nothing waits, as in [`crate::bee`]; a block leads only to earlier ones, and only to keys whose
//! path is that under which they are found, so that going through hostile blocks ends: no place of the trie
//! is reached twice.

mod diff;
mod list;
mod node;
mod siphash;
mod write;

pub use diff::{Change, Diff};
pub use list::{List, ListOptions};
pub use node::Header;
pub use write::{Batch, PutOptions};

use crate::bee::cache::Cache;
use crate::error::DataError;
use crate::feed::{Feed, FeedMut};
use node::{Node, ends_part};
use std::cell::RefCell;
use std::sync::Arc;

/// Memory for decoded blocks.
const CACHE_BYTES: usize = 16 << 20;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry(Arc<Node>);

impl Entry {
    /// The block that holds it.
    pub fn seq(&self) -> u64 {
        self.0.seq
    }

    pub fn key(&self) -> &str {
        &self.0.key
    }

    pub fn value(&self) -> Option<&[u8]> {
        self.0.value.as_deref()
    }

    pub fn hidden(&self) -> bool {
        self.0.hidden()
    }

    pub fn flags(&self) -> u64 {
        self.0.user_flags()
    }
}

/// A feed and its decoded blocks.
#[derive(Debug)]
struct Nodes<F> {
    feed: F,
    cache: RefCell<Cache<Node>>,
}

impl<F: Feed> Nodes<F> {
    /// `None` for the block that says that everything is deleted.
    fn get(&self, seq: u64) -> Result<Option<Arc<Node>>, DataError> {
        let fork = self.feed.fork();
        let cached = self.cache.borrow_mut().of_fork(fork).get(seq);
        let node = match cached {
            Some(node) => node,
            None => {
                let node = Arc::new(Node::decode(seq, &self.feed.get(seq)?)?);
                self.cache.borrow_mut().put(seq, node.clone());
                node
            }
        };
        Ok((!node.key.is_empty()).then_some(node))
    }

    fn keep(&self, node: Arc<Node>) {
        self.cache.borrow_mut().of_fork(self.feed.fork()).put(node.seq, node);
    }

    /// What a bucket leads to, which must have the path under which it stands there.
    fn follow(&self, parent: &Node, at: usize, place: usize) -> Result<Option<Arc<Node>>, DataError> {
        let seq = parent.bucket(at).get(place).copied().unwrap_or_default();
        if seq == 0 {
            return Ok(None);
        }
        let Some(node) = self.get(seq)? else { return Ok(None) };
        let same = (0..at).all(|at| node.path(at) == parent.path(at));
        let apart = place < 5 || ends_part(at);
        if same && apart && usize::from(node.path(at)) == place % 5 {
            Ok(Some(node))
        } else {
            Err(DataError::Malformed("a trie that leads to a key of another path"))
        }
    }

    /// Of the nodes in a bucket, all to a digit. At the end of a part they must be of different keys.
    fn follow_all(&self, parent: &Node, at: usize, digit: usize) -> Result<Vec<Arc<Node>>, DataError> {
        let mut all: Vec<Arc<Node>> = Vec::new();
        for place in (digit..parent.bucket(at).len()).step_by(5) {
            let Some(node) = self.follow(parent, at, place)? else { continue };
            let own = usize::from(parent.path(at)) == digit && !node.collides(parent, at);
            if own || all.iter().any(|other| !other.collides(&node, at)) {
                return Err(DataError::Malformed("a trie that leads to a key twice"));
            }
            all.push(node);
        }
        Ok(all)
    }
}

#[derive(Debug)]
pub struct Trie<F> {
    nodes: Nodes<F>,
    header: Header,
}

impl<F: Feed> Trie<F> {
    pub fn new(feed: F) -> Self {
        Trie::with(feed, None, None)
    }

    /// `metadata` and `subtype` go into the first block, when that is written.
    pub fn with(feed: F, metadata: Option<Vec<u8>>, subtype: Option<String>) -> Self {
        let header = Header { kind: "hypertrie".into(), metadata, subtype };
        Trie { nodes: Nodes { feed, cache: RefCell::new(Cache::new(CACHE_BYTES)) }, header }
    }

    pub fn feed(&self) -> &F {
        &self.nodes.feed
    }

    pub fn feed_mut(&mut self) -> &mut F {
        &mut self.nodes.feed
    }

    /// The number of blocks.
    pub fn version(&self) -> u64 {
        self.nodes.feed.length()
    }

    pub fn header(&self) -> Result<Header, DataError> {
        Header::decode(&self.nodes.feed.get(0)?)
    }

    /// The trie as it is now.
    pub fn head(&self) -> Snapshot<'_, F> {
        Snapshot { nodes: &self.nodes, version: self.version() }
    }

    /// The trie as it was at a version.
    pub fn checkout(&self, version: u64) -> Result<Snapshot<'_, F>, DataError> {
        let length = self.version();
        if version > length.max(1) {
            return Err(DataError::OutOfBounds { index: version, length });
        }
        Ok(Snapshot { nodes: &self.nodes, version })
    }

    pub fn get(&self, key: &str) -> Result<Option<Entry>, DataError> {
        self.head().get(key)
    }

    /// What is below a prefix.
    pub fn list(&self, prefix: &str) -> Result<List<'_, F>, DataError> {
        self.head().list(prefix, ListOptions::default())
    }

    /// What changed below a prefix since a version.
    pub fn diff(&self, since: u64, prefix: &str) -> Result<Diff<'_, F>, DataError> {
        self.head().diff(&self.checkout(since)?, prefix)
    }

    /// Tells of changes below a prefix, from now on.
    pub fn watch(&self, prefix: &str) -> Watch {
        Watch { prefix: prefix.to_owned(), fork: self.feed().fork(), version: self.version() }
    }
}

impl<F: FeedMut> Trie<F> {
    pub fn put(&mut self, key: &str, value: &[u8]) -> Result<u64, DataError> {
        self.put_with(key, Some(value), PutOptions::default())
    }

    pub fn put_with(
        &mut self,
        key: &str,
        value: Option<&[u8]>,
        options: PutOptions,
    ) -> Result<u64, DataError> {
        let mut batch = self.batch()?;
        let seq = batch.put_with(key, value, options)?;
        batch.flush()?;
        Ok(seq)
    }

    /// Answers whether the key was there.
    pub fn del(&mut self, key: &str) -> Result<bool, DataError> {
        let mut batch = self.batch()?;
        let found = batch.del(key)?;
        batch.flush()?;
        Ok(found)
    }

    /// Several operations, of which all become visible at once.
    pub fn batch(&mut self) -> Result<Batch<'_, F>, DataError> {
        Batch::new(self)
    }
}

/// A trie at one version.
#[derive(Debug)]
pub struct Snapshot<'a, F> {
    nodes: &'a Nodes<F>,
    version: u64,
}

impl<F> Clone for Snapshot<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Snapshot<'_, F> {}

impl<'a, F: Feed> Snapshot<'a, F> {
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn get(&self, key: &str) -> Result<Option<Entry>, DataError> {
        let target = Node::new(key, None, false, 0);
        Ok(self.find(&target, target.length())?.map(Entry))
    }

    pub fn get_hidden(&self, key: &str) -> Result<Option<Entry>, DataError> {
        let target = Node::new(key, None, true, 0);
        Ok(self.find(&target, target.length())?.map(Entry))
    }

    /// The newest node whose path begins as that of `target`, up to `length`.
    fn find(&self, target: &Node, length: usize) -> Result<Option<Arc<Node>>, DataError> {
        let Some(mut head) = self.nodes.head(self.version)? else { return Ok(None) };
        let mut at = 0;
        while at < length {
            let (digit, ends) = (usize::from(target.path(at)), ends_part(at));
            if usize::from(head.path(at)) == digit && !(ends && target.collides(&head, at)) {
                at += 1;
                continue;
            }
            let next = if ends {
                let all = self.nodes.follow_all(&head, at, digit)?;
                all.into_iter().find(|other| !other.collides(target, at))
            } else {
                self.nodes.follow(&head, at, digit)?
            };
            let Some(next) = next else { return Ok(None) };
            (head, at) = (next, at + 1);
        }
        Ok(Some(head))
    }

    pub fn list(&self, prefix: &str, options: ListOptions) -> Result<List<'a, F>, DataError> {
        Ok(List::new(*self, prefix, options))
    }

    /// Where this and another version of the same trie differ below a prefix. What both share is passed over.
    pub fn diff(&self, other: &Snapshot<'a, F>, prefix: &str) -> Result<Diff<'a, F>, DataError> {
        Ok(Diff::new(*self, *other, prefix))
    }

    /// What was written, in the order of writing, from the block `from` on. A deletion writes the entry again
    /// that lies nearest, or, if there is none, an empty key.
    pub fn history(&self, from: u64) -> History<'a, F> {
        History { snapshot: *self, next: from.max(1) }
    }
}

/// After an error, `next` tries the same block again.
pub struct History<'a, F> {
    snapshot: Snapshot<'a, F>,
    next: u64,
}

impl<F: Feed> Iterator for History<'_, F> {
    type Item = Result<Entry, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let seq = (self.next < self.snapshot.version).then_some(self.next)?;
        let feed = &self.snapshot.nodes.feed;
        let node = feed.get(seq).and_then(|block| Node::decode(seq, &block));
        self.next += u64::from(node.is_ok());
        Some(node.map(|node| Entry(Arc::new(node))))
    }
}

/// Tells when anything below a prefix changed, when it is asked.
#[derive(Clone, Debug)]
pub struct Watch {
    prefix: String,
    fork: u64,
    version: u64,
}

impl Watch {
    /// The version that was seen last, if something changed since then.
    pub fn poll<F: Feed>(&mut self, trie: &Trie<F>) -> Result<Option<u64>, DataError> {
        let (fork, version, seen) = (trie.feed().fork(), trie.version(), self.version);
        let changed = fork != self.fork
            || (version != seen && trie.diff(seen, &self.prefix)?.next().transpose()?.is_some());
        (self.fork, self.version) = (fork, version);
        Ok(changed.then_some(seen))
    }
}
