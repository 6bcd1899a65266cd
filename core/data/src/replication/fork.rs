//! Another history: the writer has cut the core, which makes a new fork with a higher number.
//!
//! ```text
//! told of --(upgrade from nothing)--> signed --(nodes where both differ)*--> the common beginning known -> adopted
//! ```
//! First the roots of the new tree come, with their signature. Where a root is not ours too, its nodes are asked
//! for from the left, until the first block that differs is found: what is before it is kept.

use super::ask::Asking;
use super::peer::{Asked, CoreState};
use super::{Event, NewFork, Refusal, Replica, Replication};
use crate::error::DataError;
use crate::proof::{Data, Request, UpgradeWanted, Wanted, check};
use crate::signature::Verifier;
use crate::tree::{Head, Node, Nodes};
use crate::wire::Sync;
use std::collections::HashMap;

#[derive(Debug)]
pub(super) struct Reorg {
    pub connection: u64,
    pub fork: u64,
    pub under_way: Option<(u64, u64)>,
    /// Once it is known to be signed.
    tree: Option<Tree>,
}

#[derive(Debug)]
struct Tree {
    head: Head,
    nodes: HashMap<u64, Node>,
    signature: Vec<u8>,
    /// The first node that differs from ours: what is before it does not.
    differs: Option<Node>,
}

impl Nodes for Tree {
    fn node(&self, index: u64) -> Option<Node> {
        self.nodes.get(&index).cloned()
    }
}

impl Tree {
    /// Goes down from the node that differs, as far as its children are known.
    fn descend<R: Replica>(&mut self, replica: &R) {
        while let Some(node) = self.differs.take_if(|node| node.index & 1 == 1) {
            let mut walk = flat_tree::Iterator::new(node.index);
            let left = self.nodes.get(&walk.left_child()).cloned();
            let right = self.nodes.get(&walk.sibling()).cloned();
            let (Some(left), Some(right)) = (left, right) else {
                self.differs = Some(node);
                return;
            };
            self.differs = Some(if replica.node(left.index).as_ref() == Some(&left) { right } else { left });
        }
    }

    fn ancestors(&self) -> u64 {
        let start = |node: &Node| flat_tree::left_span(node.index) / 2;
        self.differs.as_ref().map_or(self.head.length, start)
    }
}

impl CoreState {
    pub(super) fn ask_fork<R: Replica>(
        &mut self,
        asking: &mut Asking<'_>,
        remote: Sync,
        replica: &R,
    ) -> Result<(), Refusal> {
        let Some(peer) = self.peers.get_mut(&asking.id) else { return Ok(()) };
        // A newer fork than the one that is looked at, or the first.
        if self.reorg.as_ref().is_none_or(|reorg| remote.fork > reorg.fork) {
            let (connection, fork) = (asking.id, remote.fork);
            self.reorg = Some(Reorg { connection, fork, under_way: None, tree: None });
        }
        let Some(reorg) = &mut self.reorg else { return Ok(()) };
        if reorg.connection != asking.id || reorg.fork != remote.fork || reorg.under_way.is_some() {
            return Ok(());
        }
        let mut wanted = Request::default();
        match reorg.tree.as_ref().map(|tree| tree.differs.as_ref()) {
            None if remote.length == 0 => return Ok(()),
            None => wanted.upgrade = Some(UpgradeWanted { start: 0, length: remote.length }),
            Some(None) => return Ok(()),
            Some(Some(node)) => {
                let (start, end) = (flat_tree::left_span(node.index), flat_tree::right_span(node.index));
                let nodes = u64::from((end - start + 2).ilog2()) - 1;
                wanted.hash = Some(Wanted { index: start, nodes });
            }
        }
        let asked = Asked { wanted, fork: remote.fork, manifest: replica.needs_manifest() };
        let id = asking.send(&mut self.last_request, peer, asked)?;
        reorg.under_way = Some((asking.id, id));
        Ok(())
    }
}

impl Replication {
    /// An answer of another fork than ours.
    pub(super) fn fork_data<R: Replica>(
        &mut self,
        connection: u64,
        core: u64,
        asked: &Asked,
        data: &Data,
        replica: &mut R,
    ) -> Result<(), Refusal> {
        let Some(state) = self.cores.get_mut(&core) else { return Ok(()) };
        let Some(reorg) = &mut state.reorg else { return Ok(()) };
        if reorg.connection != connection || reorg.fork != asked.fork || asked.fork <= replica.shown().fork {
            return Ok(());
        }
        if data.proof.upgrade.is_some() {
            let (head, nodes, signature) = replica.check_fork(&data.proof, data.manifest.as_ref())?;
            let differs = head.roots.iter().find(|root| replica.node(root.index).as_ref() != Some(root));
            let differs = differs.cloned();
            let nodes = nodes.into_iter().map(|node| (node.index, node)).collect();
            reorg.tree = Some(Tree { head, nodes, signature, differs });
        } else if let (Some(tree), Some(_)) = (&mut reorg.tree, &data.proof.hash) {
            // Nothing is signed anew, so whoever may sign is of no account.
            let checked = check(&tree.head, tree, &Verifier::compat([0; 32]), &data.proof)?;
            let news = checked.nodes.into_iter().map(|node| (node.index, node));
            tree.nodes.extend(news);
        } else {
            return Err(DataError::BadProof("it is not what was asked for").into());
        }
        let Some(tree) = &mut reorg.tree else { return Ok(()) };
        tree.descend(replica);
        // Beyond our own end all differs.
        let beyond = tree.ancestors() >= replica.shown().length;
        if !beyond && tree.differs.as_ref().is_some_and(|node| node.index & 1 == 1) {
            return Ok(());
        }
        let ancestors = tree.ancestors().min(replica.shown().length);
        let (length, fork) = (tree.head.length, tree.head.fork);
        let Some(Tree { head, nodes, signature, .. }) = reorg.tree.take() else { return Ok(()) };
        state.reorg = None;
        let nodes = nodes.into_values().collect();
        if let Err(error) = replica.adopt_fork(NewFork { head, nodes, signature, ancestors }) {
            self.failed(core, error);
            return Ok(());
        }
        state.peers.values_mut().for_each(|peer| peer.cursor = 0);
        state.downloads.iter_mut().for_each(|download| download.start = download.from);
        self.events.push_back(Event::Reorganised { core, fork, ancestors, length });
        Ok(())
    }
}
