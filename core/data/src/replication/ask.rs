//! What is asked of a peer: a longer tree, nodes that a seek needs, and blocks, as many as its window holds.

use super::connection::Connection;
use super::peer::{Asked, CoreState, Peer};
use super::{Options, Refusal, Replica, Replication, Shown};
use crate::proof::{Request, SeekWanted, UpgradeWanted, Wanted};
use crate::tree::full_roots;
use crate::wire::{Message, Span, Sync};

/// The unit in which the JavaScript stack wants bitfields.
const WANT: u64 = 1 << 21;
/// As many as it answers at once.
const MAX_WANTS: usize = 4;
/// The number of a request for a proof that the peer's history is ours.
pub(super) const COMPARE: u64 = 0;
const MIN_WINDOW: u64 = 16;
/// So many requests to begin with, and one more for each answer: a peer that is slow, or new, does not get all the
/// work while others wait for some.
const FIRST_WINDOW: u64 = 32;

/// Sends requests of one core to one peer.
pub(super) struct Asking<'a> {
    pub id: u64,
    pub connection: &'a mut Connection,
    pub now_ms: u64,
}

impl Asking<'_> {
    pub fn send(&mut self, last_request: &mut u64, peer: &mut Peer, asked: Asked) -> Result<u64, Refusal> {
        *last_request += 1;
        let Asked { wanted, fork, manifest } = asked;
        let id = *last_request;
        self.connection.send(
            peer.channel,
            &Message::Request { id, fork, wanted, manifest, priority: 0 },
            self.now_ms,
        )?;
        if peer.asked.is_empty() {
            peer.progress_ms = self.now_ms;
        }
        peer.asked.insert(id, asked);
        Ok(id)
    }
}

impl Replication {
    pub(super) fn ask<R: Replica>(
        &mut self,
        core: u64,
        asking: &mut Asking<'_>,
        replica: &R,
    ) -> Result<(), Refusal> {
        let options = self.options;
        let Some(state) = self.cores.get_mut(&core).filter(|state| !state.paused) else { return Ok(()) };
        let Some(peer) = state.peers.get_mut(&asking.id) else { return Ok(()) };
        let Some(remote) = peer.remote.filter(|remote| peer.open && remote.uploading) else { return Ok(()) };
        if asking.now_ms < peer.slow_until_ms {
            return Ok(());
        }
        let shown = replica.shown();
        if remote.fork > shown.fork {
            return state.ask_fork(asking, remote, replica);
        }
        if remote.fork != shown.fork {
            return Ok(());
        }
        state.ask_whether_same(asking, remote, replica)?;
        state.ask_tree(asking, remote, replica)?;
        state.ask_seeks(asking, replica)?;
        state.ask_blocks(asking, remote, replica, &options)?;
        state.ask_bitfields(asking, shown, replica)
    }
}

impl CoreState {
    /// A proof of what both have, from the beginning, as the JavaScript stack asks for it: as number 0. Two histories
    /// of one key are found by it.
    fn ask_whether_same<R: Replica>(
        &mut self,
        asking: &mut Asking<'_>,
        remote: Sync,
        replica: &R,
    ) -> Result<(), Refusal> {
        let Some(peer) = self.peers.get_mut(&asking.id) else { return Ok(()) };
        let (length, fork) = (remote.length.min(replica.shown().length), remote.fork);
        if length == 0 || peer.compared || !(self.doubted || replica.is_written_here()) {
            return Ok(());
        }
        peer.compared = true;
        let wanted = Request { upgrade: Some(UpgradeWanted { start: 0, length }), ..Request::default() };
        let message = Message::Request { id: COMPARE, fork, wanted, manifest: false, priority: 0 };
        Ok(asking.connection.send(peer.channel, &message, asking.now_ms)?)
    }

    /// The manifest, or a longer tree.
    fn ask_tree<R: Replica>(
        &mut self,
        asking: &mut Asking<'_>,
        remote: Sync,
        replica: &R,
    ) -> Result<(), Refusal> {
        let Some(peer) = self.peers.get_mut(&asking.id) else { return Ok(()) };
        let (shown, fork) = (replica.shown(), remote.fork);
        let manifest = remote.has_manifest && replica.needs_manifest();
        if manifest && remote.length == 0 && !std::mem::replace(&mut peer.manifest_asked, true) {
            let asked = Asked { wanted: Request::default(), fork, manifest };
            asking.send(&mut self.last_request, peer, asked)?;
        }
        // Only who knows our length can prove from there.
        let longer = remote.length > shown.length && remote.remote_length == shown.length;
        if self.upgrade.is_none() && longer && remote.can_upgrade && replica.may_grow() {
            let upgrade = UpgradeWanted { start: shown.length, length: remote.length - shown.length };
            let wanted = Request { upgrade: Some(upgrade), ..Request::default() };
            let id = asking.send(&mut self.last_request, peer, Asked { wanted, fork, manifest })?;
            self.upgrade = Some((asking.id, id));
        }
        Ok(())
    }

    fn ask_seeks<R: Replica>(&mut self, asking: &mut Asking<'_>, replica: &R) -> Result<(), Refusal> {
        let Some(peer) = self.peers.get_mut(&asking.id) else { return Ok(()) };
        for seek in self.seeks.iter_mut().filter(|seek| seek.under_way.is_none()) {
            let Some((start, end)) = seek_range(replica, seek.bytes, seek.padding) else { continue };
            if start == end || peer.refused > 0 {
                continue;
            }
            let nodes = u64::from((end - start).ilog2());
            let wanted = Request {
                hash: Some(Wanted { index: start * 2, nodes }),
                seek: Some(SeekWanted { bytes: seek.bytes, padding: seek.padding }),
                ..Request::default()
            };
            let asked = Asked { wanted, fork: replica.shown().fork, manifest: false };
            let id = asking.send(&mut self.last_request, peer, asked)?;
            seek.under_way = Some((asking.id, id));
        }
        Ok(())
    }

    fn ask_blocks<R: Replica>(
        &mut self,
        asking: &mut Asking<'_>,
        remote: Sync,
        replica: &R,
        options: &Options,
    ) -> Result<(), Refusal> {
        let shown = replica.shown();
        let most = window(shown, options);
        let answered = self.peers.get(&asking.id).map_or(0, |peer| peer.answered);
        let window = usize::try_from(FIRST_WINDOW + answered).map_or(most, |window| window.min(most));
        while let Some(peer) = self.peers.get(&asking.id).filter(|peer| peer.asked.len() < window) {
            let late_ms = asking.now_ms.saturating_sub(options.request_timeout_ms);
            let next =
                self.next_block(peer, shown, replica).or_else(|| self.late_block(asking.id, peer, late_ms));
            let Some(index) = next else { break };
            let Some(peer) = self.peers.get_mut(&asking.id) else { break };
            if !self.gets.contains(&index) {
                peer.cursor = peer.cursor.max(index + 1);
            }
            let nodes = replica.missing_nodes(index * 2);
            if remote.length < shown.length && end_of_ancestor(index, nodes) > remote.length {
                peer.bits.drop_range(index, 1);
                continue; // it cannot prove that up to a node that we know
            }
            let wanted = Request { block: Some(Wanted { index, nodes }), ..Request::default() };
            let asked = Asked { wanted, fork: shown.fork, manifest: false };
            asking.send(&mut self.last_request, peer, asked)?;
            self.under_way.insert(index, (asking.id, asking.now_ms));
        }
        Ok(())
    }

    /// The next block that is wanted, not under way, and there at the peer.
    fn next_block<R: Replica>(&self, peer: &Peer, shown: Shown, replica: &R) -> Option<u64> {
        let free = |index: u64| !self.under_way.contains_key(&index);
        let mut gets = self.gets.range(..shown.length).copied();
        let got = gets.find(|index| free(*index) && peer.bits.has(*index) && !replica.has(*index));
        if got.is_some() {
            return got;
        }
        let downloads = self.downloads.iter().filter_map(|download| {
            let end = download.end.unwrap_or(u64::MAX).min(shown.length);
            let mut at = download.start.max(peer.cursor);
            loop {
                at = replica.first_missing(at, end)?;
                let there = peer.bits.first(at, end)?;
                if there == at && free(at) {
                    return Some(at);
                }
                at = there.max(at + u64::from(there == at));
            }
        });
        downloads.min()
    }

    /// With nothing else left to ask for: a block that another peer was asked for long ago. Whose answer comes
    /// first is kept, so who answers drop by drop holds up nothing.
    fn late_block(&self, id: u64, peer: &Peer, late_ms: u64) -> Option<u64> {
        let late = |(index, (at, since)): (&u64, &(u64, u64))| {
            (*at != id && *since < late_ms && peer.bits.has(*index)).then_some(*index)
        };
        self.under_way.iter().find_map(late)
    }

    /// Of whom the blocks that are wanted are not known to have, the bitfield is asked for.
    fn ask_bitfields<R: Replica>(
        &mut self,
        asking: &mut Asking<'_>,
        shown: Shown,
        replica: &R,
    ) -> Result<(), Refusal> {
        let Some(peer) = self.peers.get_mut(&asking.id) else { return Ok(()) };
        if peer.bits.contiguous() >= shown.length {
            return Ok(());
        }
        let gets = self.gets.range(..shown.length).map(|index| (*index, *index + 1));
        let downloads = self.downloads.iter();
        let spans = downloads.map(|each| (each.start, each.end.unwrap_or(u64::MAX).min(shown.length)));
        for (start, end) in gets.chain(spans) {
            let mut at = start;
            while let Some(missing) = replica.first_missing(at, end) {
                let part = missing / WANT;
                at = (part + 1) * WANT;
                if peer.bits.contiguous() >= at.min(end) || !peer.wants.insert(part) {
                    continue;
                }
                let span = |part: u64| Span { start: part * WANT, length: WANT, any: false };
                if peer.wants.len() > MAX_WANTS {
                    let old = peer.wants.iter().copied().find(|each| *each != part);
                    if let Some(old) = old.filter(|old| peer.wants.remove(old)) {
                        let unwant = Message::Unwant(span(old));
                        asking.connection.send(peer.channel, &unwant, asking.now_ms)?;
                    }
                }
                let want = Message::Want(span(part));
                asking.connection.send(peer.channel, &want, asking.now_ms)?;
                break;
            }
        }
        Ok(())
    }
}

/// How many requests may be under way: many of small blocks, few of large ones.
fn window(shown: Shown, options: &Options) -> usize {
    let average = shown.byte_length.checked_div(shown.length).unwrap_or(0).max(1);
    let most = options.window_blocks as u64;
    (options.window_bytes / average).clamp(MIN_WINDOW.min(most), most) as usize
}

/// The end of the subtree `nodes` parents above a block.
fn end_of_ancestor(index: u64, nodes: u64) -> u64 {
    let nodes = nodes.min(60);
    ((index >> nodes) + 1) << nodes
}

/// The blocks among which byte `bytes` is, as long as the nodes between are not here; nothing once they are.
pub(super) fn seek_range<R: Replica>(replica: &R, bytes: u64, padding: u64) -> Option<(u64, u64)> {
    let length = replica.shown().length;
    let mut rest = bytes;
    if rest == 0 {
        return None;
    }
    let span = |index: u64| (flat_tree::left_span(index) / 2, flat_tree::right_span(index) / 2 + 1);
    let size = |index: u64| {
        let (start, end) = span(index);
        Some(replica.node(index)?.size.saturating_sub((end - start) * padding))
    };
    for root in full_roots(length) {
        let whole = size(root)?;
        if rest == whole {
            return None;
        }
        if rest > whole {
            rest -= whole;
            continue;
        }
        let mut walk = flat_tree::Iterator::new(root);
        while walk.index() & 1 == 1 {
            let parent = walk.index();
            let Some(left) = size(walk.left_child()) else { return Some(span(parent)) };
            if rest == left {
                return None;
            }
            if rest > left {
                rest -= left;
                walk.sibling();
            }
        }
        return None;
    }
    Some((length, length)) // beyond the end: it waits for the core to grow
}
