//! What is told to a peer: our length, which blocks are here, and the answers to its requests.

use super::ask::Asking;
use super::connection::Connection;
use super::peer::{CoreState, Peer, ToAnswer};
use super::{Refusal, Replica, Replicas, Replication, Shown};
use crate::error::DataError;
use crate::proof::{Data, Proof, Request, UpgradeWanted};
use crate::wire::{Message, Span, Sync};

/// As the JavaScript stack gives up on a peer.
const MAX_INVALID: u32 = 64;
/// Of these last blocks every peer is told, of others only who wants to know.
const LAST_BLOCKS: u64 = 256;
/// A page of bits, as the JavaScript stack sends them.
const PAGE: u64 = 1 << 15;
/// The most of a core that is told of in answer to one want.
const MAX_WANTED: u64 = 1 << 21;

/// Of so many bytes are blocks read and checked together, and at most so many blocks.
const TOGETHER: u64 = 256 << 10;
const MAX_TOGETHER: usize = 16;

const NOT_AVAILABLE: u64 = 1;
const INVALID_REQUEST: u64 = 2;

impl Replication {
    pub(super) fn write_all<C: Replicas>(
        &mut self,
        id: u64,
        connection: &mut Connection,
        now_ms: u64,
        replicas: &mut C,
    ) -> Result<(), Refusal> {
        if connection.lines.session.is_none() {
            return Ok(());
        }
        for core in std::mem::take(&mut connection.lines.attention) {
            let Some(replica) = replicas.replica(core) else { continue };
            let mut asking = Asking { id, connection, now_ms };
            if let Some(state) = self.cores.get_mut(&core) {
                state.tell(&mut asking, replica)?;
            }
            self.ask(core, &mut asking, replica)?;
        }
        self.answer_all(id, connection, now_ms, replicas)?;
        connection.flush(now_ms)?;
        Ok(())
    }

    /// Answers requests, core by core, until enough waits to be sent.
    fn answer_all<C: Replicas>(
        &mut self,
        id: u64,
        connection: &mut Connection,
        now_ms: u64,
        replicas: &mut C,
    ) -> Result<(), Refusal> {
        let backlog = self.options.backlog_bytes;
        while connection.backlog() < backlog {
            let Some(core) = connection.lines.to_answer.pop_first() else { break };
            let Some(replica) = replicas.replica(core) else { continue };
            let Some(state) = self.cores.get_mut(&core) else { continue };
            let Some(peer) = state.peers.get_mut(&id) else { continue };
            while connection.backlog() < backlog && !peer.to_answer.is_empty() {
                for message in answers(peer, replica) {
                    connection.send(peer.channel, &message, now_ms)?;
                }
                if peer.invalid >= MAX_INVALID {
                    return Err(Refusal::Flood("64 requests that no tree could answer"));
                }
            }
            if !peer.to_answer.is_empty() {
                connection.lines.to_answer.insert(core);
            }
        }
        Ok(())
    }
}

/// Answers the next few requests together: their blocks are checked at once.
fn answers<R: Replica>(peer: &mut Peer, replica: &R) -> Vec<Message> {
    let shown = replica.shown();
    let (mut requests, mut bytes) = (Vec::new(), 0);
    while bytes < TOGETHER && requests.len() < MAX_TOGETHER {
        let Some(request) = peer.to_answer.pop_front() else { break };
        let leaf = request.wanted.block.and_then(|block| replica.node(block.index.checked_mul(2)?));
        bytes += leaf.map_or(0, |leaf| leaf.size);
        requests.push(request);
    }
    let here = |request: &ToAnswer| {
        let absent = request.wanted.block.is_some_and(|block| !replica.has(block.index));
        request.fork == shown.fork && !absent && request.wanted != Request::default()
    };
    let here: Vec<bool> = requests.iter().map(here).collect();
    let wanted = requests.iter().zip(&here).filter(|(_, here)| **here).map(|(request, _)| request.wanted);
    let mut proofs = replica.prove_all(&wanted.collect::<Vec<_>>()).into_iter();
    let answers = requests.iter().zip(here).map(|(request, here)| {
        let proof = if here { proofs.next() } else { None };
        answer(request, proof, shown, peer, replica)
    });
    answers.collect()
}

/// Without a proof, what is asked for is not here.
fn answer<R: Replica>(
    request: &ToAnswer,
    proof: Option<Result<Proof, DataError>>,
    shown: Shown,
    peer: &mut Peer,
    replica: &R,
) -> Message {
    let manifest = request.manifest.then(|| replica.manifest()).flatten();
    let no_data = |reason| Message::NoData { request: request.id, reason };
    let data = |proof, manifest| Message::Data(Box::new(Data { request: request.id, proof, manifest }));
    let Some(proof) = proof else {
        return match manifest {
            Some(manifest) => data(Proof { fork: shown.fork, ..Proof::default() }, Some(manifest)),
            None => no_data(NOT_AVAILABLE),
        };
    };
    match proof {
        Ok(proof) => data(proof, manifest),
        Err(DataError::BadRequest(_) | DataError::OutOfBounds { .. }) => {
            peer.invalid += 1;
            no_data(INVALID_REQUEST)
        }
        // Our own fault: the peer may ask somebody else.
        Err(_) => no_data(NOT_AVAILABLE),
    }
}

impl CoreState {
    fn tell<R: Replica>(&mut self, asking: &mut Asking<'_>, replica: &R) -> Result<(), Refusal> {
        let Some(peer) = self.peers.get_mut(&asking.id).filter(|peer| peer.open) else { return Ok(()) };
        let (shown, channel) = (replica.shown(), peer.channel);
        let mut messages = Vec::new();
        tell_length(peer, shown, replica, &mut messages);
        messages.extend(
            std::mem::take(&mut peer.dropped).into_iter().map(|(start, length)| Message::Range {
                drop: true,
                start,
                length,
            }),
        );
        if peer.told_contiguous > shown.length {
            let (start, length) = (shown.length, peer.told_contiguous - shown.length);
            messages.push(Message::Range { drop: true, start, length });
        }
        let first = peer.told_contiguous.min(shown.length);
        let contiguous = match replica.first_missing(0, first) {
            Some(index) => index,
            None => replica.first_missing(first, shown.length).unwrap_or(shown.length),
        };
        if contiguous > peer.told_contiguous && contiguous > peer.bits.contiguous() {
            messages.push(Message::Range { drop: false, start: 0, length: contiguous });
        }
        peer.told_contiguous = contiguous;
        tell_blocks(peer, shown, contiguous, &mut messages);
        for span in std::mem::take(&mut peer.wants_to_answer) {
            answer_want(span, shown, contiguous, replica, &mut messages);
        }
        for message in messages {
            asking.connection.send(channel, &message, asking.now_ms)?;
        }
        Ok(())
    }
}

fn tell_length<R: Replica>(peer: &mut Peer, shown: Shown, replica: &R, messages: &mut Vec<Message>) {
    let remote = peer.remote.filter(|remote| remote.fork == shown.fork);
    let remote_length = remote.map_or(0, |remote| remote.length);
    let can_upgrade = match (peer.remote, remote) {
        (Some(_), None) => false,
        (_, Some(remote)) if remote.length > 0 && remote.length < shown.length => {
            let at = (remote.length, shown.length, shown.fork);
            match peer.can_upgrade {
                Some((then, can)) if then == at => can,
                _ => {
                    let length = shown.length - remote.length;
                    let upgrade = Some(UpgradeWanted { start: remote.length, length });
                    let can = replica.prove(&Request { upgrade, ..Request::default() }).is_ok();
                    peer.can_upgrade = Some((at, can));
                    can
                }
            }
        }
        _ => true,
    };
    let sync = Sync {
        fork: shown.fork,
        length: shown.length,
        remote_length,
        can_upgrade,
        uploading: true,
        downloading: true,
        has_manifest: replica.manifest().is_some(),
        allow_push: false,
    };
    let told = peer.sent.is_some_and(|sent| {
        let unacknowledged = shown.length > remote_length && sent.remote_length != remote_length;
        Sync { remote_length, ..sent } == sync && !unacknowledged
    });
    if !told {
        peer.sent = Some(sync);
        messages.push(Message::Sync(sync));
    }
}

/// Tells of single blocks that came, in as few spans as they make.
fn tell_blocks(peer: &mut Peer, shown: Shown, contiguous: u64, messages: &mut Vec<Message>) {
    let mut blocks = std::mem::take(&mut peer.to_tell);
    blocks.sort_unstable();
    blocks.dedup();
    let wanted = |index: u64| {
        index + LAST_BLOCKS >= shown.length
            || peer.their_wants.iter().any(|span| span.start <= index && index - span.start < span.length)
    };
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for index in blocks.into_iter().filter(|index| *index >= contiguous && wanted(*index)) {
        match spans.last_mut() {
            Some((start, length)) if *start + *length == index => *length += 1,
            _ => spans.push((index, 1)),
        }
    }
    messages.extend(spans.into_iter().map(|(start, length)| Message::Range { drop: false, start, length }));
}

fn answer_want<R: Replica>(
    span: Span,
    shown: Shown,
    contiguous: u64,
    replica: &R,
    messages: &mut Vec<Message>,
) {
    let end = span.start.saturating_add(span.length.min(MAX_WANTED)).min(shown.length);
    if end <= contiguous || (span.any && span.start < contiguous) {
        messages.push(Message::Range { drop: false, start: 0, length: contiguous });
        return;
    }
    if span.any {
        let first = (span.start..end).find(|index| replica.has(*index));
        messages.extend(first.map(|start| Message::Range { drop: false, start, length: 1 }));
        return;
    }
    let mut start = span.start / PAGE * PAGE;
    while start < end {
        let words = (end - start).min(PAGE).div_ceil(32) as usize;
        let words = replica.words(start, words);
        if words.iter().any(|word| *word != 0) {
            messages.push(Message::Bitfield { start, words });
        }
        start += PAGE;
    }
}
