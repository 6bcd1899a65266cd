//! What is known of one core: on our side, and at each peer that has a channel for it.

use super::bits::PeerBits;
use super::fork::Reorg;
use crate::crypto::Hash;
use crate::proof::Request;
use crate::wire::{Span, Sync};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// A request of ours that is under way.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub wanted: Request,
    pub fork: u64,
    pub manifest: bool,
}

/// A request of the peer that is not answered yet.
#[derive(Clone, Debug)]
pub(super) struct ToAnswer {
    pub id: u64,
    pub fork: u64,
    pub wanted: Request,
    pub manifest: bool,
}

#[derive(Debug, Default)]
pub(super) struct Peer {
    pub channel: u64,
    /// The peer has opened the channel too, and shown its capability.
    pub open: bool,
    /// What it has last told, once it has.
    pub remote: Option<Sync>,
    pub bits: PeerBits,
    /// What we have last told.
    pub sent: Option<Sync>,
    /// Whether we can prove our tree to it: for its length, our length and fork.
    pub can_upgrade: Option<((u64, u64, u64), bool)>,
    pub told_contiguous: u64,
    /// Blocks that came lately, to be told of.
    pub to_tell: Vec<u64>,
    /// Spans that were dropped here, to be told of.
    pub dropped: Vec<(u64, u64)>,
    /// By the number of the request; numbers grow, so the first is the oldest.
    pub asked: BTreeMap<u64, Asked>,
    /// When it last answered, or was asked with nothing under way.
    pub progress_ms: u64,
    /// How many requests it has answered since it last failed to: the more, the more it is asked at once.
    pub answered: u64,
    /// It let a request time out: asked no more until then.
    pub slow_until_ms: u64,
    pub to_answer: VecDeque<ToAnswer>,
    /// No block below it is to be asked of this peer.
    pub cursor: u64,
    /// The parts of the core whose bitfield we have asked for.
    pub wants: BTreeSet<u64>,
    pub their_wants: VecDeque<Span>,
    /// Of those, the ones that are not answered yet.
    pub wants_to_answer: VecDeque<Span>,
    /// Requests of the peer that could never be answered.
    pub invalid: u32,
    /// Requests of ours in a row that it could not answer.
    pub refused: u32,
    pub last_extension_received: String,
    pub last_extension_sent: String,
    /// It was asked for a proof that its history is ours.
    pub compared: bool,
    /// How many such proofs it has sent.
    pub comparisons: u32,
    /// The manifest was asked for while the core is empty.
    pub manifest_asked: bool,
}

impl Peer {
    pub fn look_again_from(&mut self, index: u64) {
        self.cursor = self.cursor.min(index);
    }
}

/// Blocks that are wanted, and come when a peer has them.
#[derive(Clone, Debug)]
pub(super) struct Download {
    pub id: u64,
    pub from: u64,
    /// All from there up to this are here.
    pub start: u64,
    /// Without an end it goes on as the core grows.
    pub end: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Seek {
    pub bytes: u64,
    pub padding: u64,
    pub under_way: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
pub(super) struct CoreState {
    pub key: Hash,
    pub discovery_key: Hash,
    pub peers: HashMap<u64, Peer>,
    pub downloads: Vec<Download>,
    /// Single blocks that are waited for; they go before downloads.
    pub gets: BTreeSet<u64>,
    pub seeks: Vec<Seek>,
    /// Which connection was last asked for a block, and when.
    pub under_way: HashMap<u64, (u64, u64)>,
    /// The connection and the request that are to lengthen the tree.
    pub upgrade: Option<(u64, u64)>,
    pub reorg: Option<Reorg>,
    pub last_request: u64,
    /// Somebody has sent what does not fit our tree: each peer is asked to prove that its history is ours.
    pub doubted: bool,
    /// Our storage failed: nothing more is asked for until the owner says so.
    pub paused: bool,
}

impl CoreState {
    /// Gives back what request `id` of `connection` was to bring.
    pub fn release(&mut self, connection: u64, id: u64, asked: &Asked) {
        if let Some(block) = asked.wanted.block
            && self.under_way.get(&block.index).is_some_and(|(at, _)| *at == connection)
        {
            self.under_way.remove(&block.index);
            self.peers.values_mut().for_each(|peer| peer.look_again_from(block.index));
        }
        if self.upgrade == Some((connection, id)) {
            self.upgrade = None;
        }
        for seek in &mut self.seeks {
            seek.under_way.take_if(|under_way| *under_way == (connection, id));
        }
        if let Some(reorg) = &mut self.reorg {
            reorg.under_way.take_if(|under_way| *under_way == (connection, id));
        }
    }

    /// Gives back all that `connection` was asked for.
    pub fn release_all(&mut self, connection: u64) -> Vec<u64> {
        let Some(peer) = self.peers.get_mut(&connection) else { return Vec::new() };
        let all = std::mem::take(&mut peer.asked);
        all.iter().for_each(|(id, asked)| self.release(connection, *id, asked));
        all.into_keys().collect()
    }

    pub fn remove_peer(&mut self, connection: u64) {
        self.release_all(connection);
        self.peers.remove(&connection);
        if self.reorg.as_ref().is_some_and(|reorg| reorg.connection == connection) {
            self.reorg = None;
        }
    }
}
