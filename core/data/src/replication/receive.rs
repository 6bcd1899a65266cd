//! What comes: frames become messages, messages change what is known of the peer, data is proved and kept.

use super::ask::COMPARE;
use super::connection::{Connection, Lines};
use super::peer::{Asked, Peer, ToAnswer};
use super::{Event, Refusal, Replica, Replicas, Replication, Shown};
use crate::error::DataError;
use crate::mux::{self, Arrived, Frame};
use crate::proof::{self, Data, Request, UpgradeWanted};
use crate::wire::{DATA, Message, PROTOCOL, Sync};

/// The JavaScript stack asks for at most 512 at once.
const MAX_TO_ANSWER: usize = 4096;
/// As the JavaScript stack.
/// Of more single blocks than this that came since a peer last listened, it is not told.
const MAX_TO_TELL: usize = 4096;
const MAX_REFUSED: u32 = 32;
const MAX_WANTS: usize = 8;
/// As much as one want asks for; the JavaScript stack sends pages of 1,024 words.
const MAX_WORDS: usize = 1 << 16;
/// Of answers that are made at once: refusals of channels.
const MAX_OUTBOX: usize = 1 << 20;
const MAX_EXTENSION_NAME: usize = 256;
/// Each costs the check of a signature.
const MAX_COMPARISONS: u32 = 64;
/// The hashes of so many blocks are calculated together.
const MAX_TOGETHER: usize = 16;

impl Replication {
    pub(super) fn read_all<C: Replicas>(
        &mut self,
        id: u64,
        connection: &mut Connection,
        now_ms: u64,
        replicas: &mut C,
    ) -> Result<(), Refusal> {
        let Connection { stream, lines } = connection;
        stream.shake()?;
        if lines.session.is_none()
            && let Some(session) = stream.session()
        {
            lines.session = Some(session.clone());
            self.events.push_back(Event::Connected { connection: id, remote: session.remote });
            self.greet(id, lines);
        }
        let mut blocks = Vec::new();
        while let Some(message) = stream.next()? {
            for frame in mux::decode(message)? {
                let Some(arrived) = lines.channels.arrived(frame)? else { continue };
                match block(lines, &arrived)? {
                    Some(block) => blocks.push(block),
                    None => {
                        self.blocks(id, &mut blocks, now_ms, replicas)?;
                        self.arrived(id, lines, arrived, now_ms, replicas)?;
                    }
                }
                if blocks.len() == MAX_TOGETHER {
                    self.blocks(id, &mut blocks, now_ms, replicas)?;
                }
            }
            if lines.outbox.len() > MAX_OUTBOX {
                return Err(Refusal::Flood("it opens channels and does not read our answers"));
            }
        }
        self.blocks(id, &mut blocks, now_ms, replicas)
    }

    /// Takes the blocks that have come one after the other; their hashes are calculated together.
    fn blocks<C: Replicas>(
        &mut self,
        id: u64,
        blocks: &mut Vec<(u64, Data)>,
        now_ms: u64,
        replicas: &mut C,
    ) -> Result<(), Refusal> {
        proof::hash_leaves(blocks.iter_mut().map(|(_, data)| &mut data.proof));
        for (core, data) in blocks.drain(..) {
            let Some(replica) = replicas.replica(core) else { continue };
            self.data(id, core, data, now_ms, replica)?;
        }
        Ok(())
    }

    /// Opens a channel for each core that is shared.
    fn greet(&mut self, id: u64, lines: &mut Lines) {
        for (core, state) in &mut self.cores {
            if state.peers.contains_key(&id) || state.key == [0; 32] {
                continue;
            }
            if let Some(channel) = lines.open(*core, &state.key, &state.discovery_key, None) {
                state.peers.insert(id, Peer { channel, ..Peer::default() });
            }
        }
    }

    fn arrived<C: Replicas>(
        &mut self,
        id: u64,
        lines: &mut Lines,
        arrived: Arrived<'_>,
        now_ms: u64,
        replicas: &mut C,
    ) -> Result<(), Refusal> {
        match arrived {
            Arrived::Offered { remote, protocol, id: name, handshake } => {
                let core = self.offered(id, lines, protocol, name, replicas);
                let Some(core) = core else {
                    lines.outbox.control(&Frame::Reject { channel: remote });
                    return Ok(());
                };
                let Some(state) = self.cores.get_mut(&core) else { return Ok(()) };
                if !lines.is_capable(&state.key, handshake) {
                    return Err(Refusal::Capability);
                }
                let opened = lines.open(core, &state.key, &state.discovery_key, Some(remote));
                if let Some(channel) = opened {
                    state.peers.insert(id, Peer { channel, open: true, ..Peer::default() });
                    self.opened(id, core);
                }
            }
            Arrived::Opened { local, handshake } => {
                let Some(core) = lines.cores.get(&local).copied() else { return Ok(()) };
                let Some(state) = self.cores.get_mut(&core) else { return Ok(()) };
                if !lines.is_capable(&state.key, handshake) {
                    return Err(Refusal::Capability);
                }
                if let Some(peer) = state.peers.get_mut(&id) {
                    peer.open = true;
                    self.opened(id, core);
                }
            }
            Arrived::Closed { local, .. } => {
                let Some(core) = lines.cores.remove(&local) else { return Ok(()) };
                if let Some(state) = self.cores.get_mut(&core) {
                    let was_open = state.peers.get(&id).is_some_and(|peer| peer.open);
                    state.remove_peer(id);
                    self.touched.insert(core);
                    if was_open {
                        self.events.push_back(Event::PeerRemoved { core, connection: id });
                    }
                }
            }
            Arrived::Message { local, kind, body } => {
                let Some(core) = lines.cores.get(&local).copied() else { return Ok(()) };
                if let Some(message) = Message::decode(kind, body)? {
                    self.message(id, core, message, now_ms, lines, replicas)?;
                }
            }
        }
        Ok(())
    }

    fn opened(&mut self, connection: u64, core: u64) {
        self.touched.insert(core);
        self.events.push_back(Event::PeerAdded { core, connection });
    }

    /// Which core the peer means, if it may have it.
    fn offered<C: Replicas>(
        &mut self,
        id: u64,
        lines: &Lines,
        protocol: &str,
        name: &[u8],
        replicas: &mut C,
    ) -> Option<u64> {
        let discovery_key = name.try_into().ok().filter(|_| protocol == PROTOCOL)?;
        let core = replicas.find(&discovery_key, lines.remote()?)?;
        if self.cores.get(&core).is_some_and(|state| state.peers.contains_key(&id)) {
            return None;
        }
        let key = replicas.replica(core)?.key();
        let state = self.cores.entry(core).or_default();
        (state.key, state.discovery_key) = (key, discovery_key);
        Some(core)
    }

    fn message<C: Replicas>(
        &mut self,
        id: u64,
        core: u64,
        message: Message,
        now_ms: u64,
        lines: &mut Lines,
        replicas: &mut C,
    ) -> Result<(), Refusal> {
        let Some(replica) = replicas.replica(core) else { return Ok(()) };
        if let Message::Data(data) = message {
            if data.request == COMPARE {
                lines.to_answer.insert(core);
                return self.compare(id, core, &data, replica);
            }
            return self.data(id, core, *data, now_ms, replica);
        }
        let Some(state) = self.cores.get_mut(&core) else { return Ok(()) };
        let Some(peer) = state.peers.get_mut(&id) else { return Ok(()) };
        match message {
            Message::Sync(sync) => {
                synced(peer, sync, replica.shown().fork);
                self.touched.insert(core);
            }
            Message::Request { id: request, fork, wanted, manifest, .. } => {
                if peer.to_answer.len() >= MAX_TO_ANSWER {
                    return Err(Refusal::Flood("over 4096 requests at once"));
                }
                peer.to_answer.push_back(ToAnswer { id: request, fork, wanted, manifest });
                lines.to_answer.insert(core);
            }
            Message::Cancel { request } => peer.to_answer.retain(|each| each.id != request),
            Message::NoData { request, .. } => {
                let Some(asked) = peer.asked.remove(&request) else { return Ok(()) };
                peer.progress_ms = now_ms;
                peer.refused += 1;
                peer.answered = 0;
                if let Some(block) = asked.wanted.block {
                    peer.bits.drop_range(block.index, 1);
                }
                if peer.refused >= MAX_REFUSED {
                    peer.refused = 0;
                    peer.slow_until_ms = now_ms + self.options.request_timeout_ms;
                }
                state.release(id, request, &asked);
                self.touched.insert(core);
            }
            Message::Want(_) | Message::Unwant(_) | Message::Bitfield { .. } | Message::Range { .. } => {
                lines.attention.insert(core);
                if said(peer, message)? {
                    self.touched.insert(core);
                }
            }
            Message::Extension { name, message } => {
                if name.len() > MAX_EXTENSION_NAME {
                    return Err(DataError::Malformed("an extension with too long a name").into());
                }
                if !name.is_empty() {
                    peer.last_extension_received = name;
                }
                let name = peer.last_extension_received.clone();
                self.events.push_back(Event::Extension { core, connection: id, name, message });
            }
            Message::Data(_) => {}
        }
        Ok(())
    }

    fn data<R: Replica>(
        &mut self,
        id: u64,
        core: u64,
        data: Data,
        now_ms: u64,
        replica: &mut R,
    ) -> Result<(), Refusal> {
        let Some(state) = self.cores.get_mut(&core) else { return Ok(()) };
        let Some(peer) = state.peers.get_mut(&id) else { return Ok(()) };
        // What was not asked for, or is asked for no more, is not looked at.
        let Some(asked) = peer.asked.remove(&data.request) else { return Ok(()) };
        peer.progress_ms = now_ms;
        peer.refused = 0;
        peer.answered += 1;
        self.touched.insert(core);
        self.unsettled.insert(core);
        let shown = replica.shown();
        if data.proof.fork != asked.fork {
            state.release(id, data.request, &asked);
            return Ok(());
        }
        if !answers(&asked, &data) {
            state.release(id, data.request, &asked);
            return Err(DataError::BadProof("it is not what was asked for").into());
        }
        if asked.fork != shown.fork {
            let outcome = self.fork_data(id, core, &asked, &data, replica);
            if let Some(state) = self.cores.get_mut(&core) {
                state.release(id, data.request, &asked);
            }
            return outcome;
        }
        let accepted = match is_empty(&data) {
            true => Ok(()),
            false => replica.accept(&data.proof, data.manifest.as_ref()),
        };
        let block = data.proof.block.as_ref().map(|block| block.index);
        if let (Ok(()), Some(index)) = (&accepted, block) {
            state.under_way.remove(&index);
            for (other, peer) in &mut state.peers {
                if *other != id && peer.open && peer.to_tell.len() < MAX_TO_TELL && !peer.bits.has(index) {
                    peer.to_tell.push(index);
                }
            }
        }
        state.release(id, data.request, &asked);
        self.taken(core, accepted, data.proof.upgrade.is_some(), shown, replica)
    }

    /// What comes of an answer that was taken, or was not.
    fn taken<R: Replica>(
        &mut self,
        core: u64,
        accepted: Result<(), DataError>,
        upgraded: bool,
        before: Shown,
        replica: &R,
    ) -> Result<(), Refusal> {
        match accepted {
            Ok(()) => {
                let after = replica.shown();
                if after != before {
                    self.events.push_back(Event::Grown { core, fork: after.fork, length: after.length });
                }
                if upgraded && let Some(error) = replica.frozen() {
                    self.events.push_back(Event::Frozen { core, error });
                }
                Ok(())
            }
            Err(
                error @ (DataError::Storage(_)
                | DataError::Poisoned
                | DataError::Damaged { .. }
                | DataError::Conflict { .. }),
            ) => {
                self.failed(core, error);
                Ok(())
            }
            Err(error) => {
                // Lies, or another history: the other peers, and this one when it comes again, are asked for theirs.
                if let Some(state) = self.cores.get_mut(&core) {
                    state.doubted = true;
                }
                Err(error.into())
            }
        }
    }

    /// A peer's tree from its beginning, asked for or not: it is compared with ours.
    fn compare<R: Replica>(
        &mut self,
        id: u64,
        core: u64,
        data: &Data,
        replica: &mut R,
    ) -> Result<(), Refusal> {
        let Some(state) = self.cores.get_mut(&core) else { return Ok(()) };
        let Some(peer) = state.peers.get_mut(&id) else { return Ok(()) };
        let from_start = data.proof.upgrade.as_ref().is_some_and(|upgrade| upgrade.start == 0);
        if !from_start || state.paused || data.proof.fork != replica.shown().fork {
            return Ok(());
        }
        peer.comparisons += 1;
        if peer.comparisons > MAX_COMPARISONS {
            return Err(Refusal::Flood("it proves its history over and over"));
        }
        match replica.check_conflict(&data.proof) {
            Ok(false) => Ok(()),
            Ok(true) => {
                state.paused = true;
                // So that it learns of it, too.
                let length = data.proof.upgrade.as_ref().map_or(0, |upgrade| upgrade.length);
                let upgrade = Some(UpgradeWanted { start: 0, length: length.min(replica.shown().length) });
                let wanted = Request { upgrade, ..Request::default() };
                let fork = data.proof.fork;
                peer.to_answer.push_back(ToAnswer { id: COMPARE, fork, wanted, manifest: false });
                let error = replica.frozen().unwrap_or(DataError::BadSignature);
                self.events.push_back(Event::Frozen { core, error });
                Ok(())
            }
            Err(error @ (DataError::Storage(_) | DataError::Poisoned | DataError::Damaged { .. })) => {
                self.failed(core, error);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn failed(&mut self, core: u64, error: DataError) {
        if let Some(state) = self.cores.get_mut(&core) {
            state.paused = true;
        }
        self.events.push_back(Event::Failed { core, error });
    }

    /// Tells of the blocks, downloads and seeks that were waited for and are here, be it that they were so before.
    pub fn settle<C: Replicas>(&mut self, replicas: &mut C) {
        for core in std::mem::take(&mut self.unsettled) {
            let Some(state) = self.cores.get_mut(&core) else { continue };
            if state.downloads.is_empty() && state.seeks.is_empty() && state.gets.is_empty() {
                continue;
            }
            let Some(replica) = replicas.replica(core) else { continue };
            let length = replica.shown().length;
            let events = &mut self.events;
            state.gets.retain(|index| {
                let here = replica.has(*index);
                if here {
                    events.push_back(Event::Block { core, index: *index });
                }
                !here
            });
            state.downloads.retain_mut(|download| {
                let end = download.end.unwrap_or(u64::MAX).min(length);
                download.start =
                    replica.first_missing(download.start, end).unwrap_or(end.max(download.start));
                let done = download.end.is_some_and(|end| download.start >= end);
                if done {
                    events.push_back(Event::Downloaded { core, download: download.id });
                }
                !done
            });
            state.seeks.retain(|seek| {
                let found = super::ask::seek_range(replica, seek.bytes, seek.padding).is_none();
                if found {
                    events.push_back(Event::Sought { core, bytes: seek.bytes });
                }
                !found
            });
        }
    }
}

/// A block that has come, with what proves it in a tree that is known, and its core.
fn block(lines: &Lines, arrived: &Arrived<'_>) -> Result<Option<(u64, Data)>, DataError> {
    let Arrived::Message { local, kind: DATA, body } = arrived else { return Ok(None) };
    let Some(core) = lines.cores.get(local) else { return Ok(None) };
    let data = Data::decode(body)?;
    Ok((data.proof.block.is_some() && data.proof.upgrade.is_none()).then_some((*core, data)))
}

/// An answer holds nothing that was not asked for.
fn answers(asked: &Asked, data: &Data) -> bool {
    let Request { block, hash, seek, upgrade } = &asked.wanted;
    let proof = &data.proof;
    let same = |theirs: Option<u64>, ours: Option<u64>| theirs.is_none() || theirs == ours;
    same(proof.block.as_ref().map(|each| each.index), block.map(|each| each.index))
        && same(proof.hash.as_ref().map(|each| each.index), hash.map(|each| each.index))
        && same(proof.seek.as_ref().map(|each| each.bytes), seek.map(|each| each.bytes))
        && (proof.upgrade.is_none() || upgrade.is_some())
}

fn is_empty(data: &Data) -> bool {
    let proof = &data.proof;
    data.manifest.is_none()
        && proof.block.is_none()
        && proof.hash.is_none()
        && proof.seek.is_none()
        && proof.upgrade.is_none()
}

fn synced(peer: &mut Peer, sync: Sync, fork: u64) {
    let before = peer.remote.replace(sync);
    if before.is_none_or(|before| before.fork != sync.fork) {
        peer.manifest_asked = false;
        peer.look_again_from(0);
    }
    if before.is_some_and(|before| before.fork != sync.fork || sync.length < before.length) {
        // What it had beyond its new end it has no more.
        peer.bits.drop_range(sync.length, u64::MAX);
        if sync.fork == fork {
            peer.look_again_from(sync.length);
        }
    }
}

/// What the peer says of blocks. Answers whether there may be something to ask of it now.
fn said(peer: &mut Peer, message: Message) -> Result<bool, Refusal> {
    match message {
        Message::Want(span) => {
            if !peer.their_wants.contains(&span) {
                if peer.their_wants.len() >= MAX_WANTS {
                    peer.their_wants.pop_front();
                }
                peer.their_wants.push_back(span);
            }
            peer.wants_to_answer.push_back(span);
            peer.wants_to_answer.truncate(MAX_WANTS);
        }
        Message::Unwant(span) => peer.their_wants.retain(|each| *each != span),
        Message::Bitfield { start, words } => {
            if words.len() > MAX_WORDS {
                return Err(Refusal::Flood("a bitfield of more than 2^21 blocks"));
            }
            peer.bits.set_words(start, &words);
            peer.look_again_from(start);
            return Ok(true);
        }
        Message::Range { drop: true, start, length } => peer.bits.drop_range(start, length),
        Message::Range { drop: false, start, length } => {
            peer.bits.set_range(start, length);
            peer.look_again_from(start);
            return Ok(true);
        }
        _ => {}
    }
    Ok(false)
}
