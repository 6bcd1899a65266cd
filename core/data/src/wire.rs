//! The messages of the channel `hypercore/alpha`, 0 to 9, as `hypercore/lib/messages.js` 11.37.1 lays them out.
//!
//! Bytes after the known fields are ignored, as JavaScript ignores them: that is how later versions add fields.

use crate::crypto::{self, Hash};
use crate::encoding::{Reader, Writer};
use crate::error::DataError;
use crate::proof::{Data, Request, SeekWanted, UpgradeWanted, Wanted};

pub const PROTOCOL: &str = "hypercore/alpha";

/// What is told when the channel opens. The capability proves knowledge of the core's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    pub seeks: bool,
    pub capability: Hash,
}

impl Handshake {
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.uint(u64::from(self.seeks));
        to.raw(&self.capability);
        to.bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DataError> {
        let mut from = Reader::new(bytes);
        Ok(Handshake { seeks: from.uint()? & 1 == 1, capability: from.fixed()? })
    }
}

/// The capability of the initiator or of the responder, bound to the hash of their Noise handshake.
pub fn capability(initiator: bool, key: &Hash, handshake_hash: &[u8; 64]) -> Hash {
    let (first, second) = crypto::replicate_namespaces();
    crypto::keyed_hash(handshake_hash, &[if initiator { first } else { second }, key])
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sync {
    pub fork: u64,
    pub length: u64,
    /// The length that the sender knows of the receiver.
    pub remote_length: u64,
    pub can_upgrade: bool,
    pub uploading: bool,
    pub downloading: bool,
    pub has_manifest: bool,
    pub allow_push: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub length: u64,
    pub any: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Sync(Sync),
    Request {
        id: u64,
        fork: u64,
        wanted: Request,
        manifest: bool,
        priority: u64,
    },
    Cancel {
        request: u64,
    },
    Data(Box<Data>),
    NoData {
        request: u64,
        reason: u64,
    },
    Want(Span),
    Unwant(Span),
    /// Which blocks the sender has, 32 in a word, from block `start` on.
    Bitfield {
        start: u64,
        words: Vec<u32>,
    },
    /// The sender has these blocks, or has them no more.
    Range {
        drop: bool,
        start: u64,
        length: u64,
    },
    Extension {
        name: String,
        message: Vec<u8>,
    },
}

/// The number of messages with blocks.
pub(crate) const DATA: u64 = 3;

impl Message {
    /// The number of its kind in the channel.
    pub fn kind(&self) -> u64 {
        match self {
            Message::Sync(_) => 0,
            Message::Request { .. } => 1,
            Message::Cancel { .. } => 2,
            Message::Data(_) => DATA,
            Message::NoData { .. } => 4,
            Message::Want(_) => 5,
            Message::Unwant(_) => 6,
            Message::Bitfield { .. } => 7,
            Message::Range { .. } => 8,
            Message::Extension { .. } => 9,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        self.write(&mut to);
        to.bytes
    }

    pub fn write(&self, to: &mut Writer) {
        match self {
            Message::Sync(sync) => {
                to.uint(flags(&[
                    sync.can_upgrade,
                    sync.uploading,
                    sync.downloading,
                    sync.has_manifest,
                    sync.allow_push,
                ]));
                [sync.fork, sync.length, sync.remote_length].into_iter().for_each(|number| to.uint(number));
            }
            Message::Request { id, fork, wanted, manifest, priority } => {
                let Request { block, hash, seek, upgrade } = wanted;
                let has = [block.is_some(), hash.is_some(), seek.is_some(), upgrade.is_some()];
                to.uint(flags(&[has[0], has[1], has[2], has[3], *manifest, *priority != 0]));
                [*id, *fork].into_iter().for_each(|number| to.uint(number));
                let pairs = [
                    block.map(|block| (block.index, block.nodes)),
                    hash.map(|hash| (hash.index, hash.nodes)),
                    seek.map(|seek| (seek.bytes, seek.padding)),
                    upgrade.map(|upgrade| (upgrade.start, upgrade.length)),
                ];
                for (first, second) in pairs.into_iter().flatten() {
                    to.uint(first);
                    to.uint(second);
                }
                if *priority != 0 {
                    to.uint(*priority);
                }
            }
            Message::Cancel { request } => to.uint(*request),
            Message::Data(data) => data.write(to),
            Message::NoData { request, reason } => {
                to.uint(*request);
                to.uint(flags(&[*reason != 0]));
                if *reason != 0 {
                    to.uint(*reason);
                }
            }
            Message::Want(span) | Message::Unwant(span) => {
                to.uint(span.start);
                to.uint(span.length);
                if span.any {
                    to.uint(1);
                }
            }
            Message::Bitfield { start, words } => {
                to.uint(*start);
                to.array(words, |to, word| to.raw(&word.to_le_bytes()));
            }
            Message::Range { drop, start, length } => {
                to.uint(flags(&[*drop, *length == 1]));
                to.uint(*start);
                if *length != 1 {
                    to.uint(*length);
                }
            }
            Message::Extension { name, message } => {
                to.buffer(name.as_bytes());
                to.raw(message);
            }
        }
    }

    /// `None` is a kind that we do not know, and that is to be ignored.
    pub fn decode(kind: u64, bytes: &[u8]) -> Result<Option<Self>, DataError> {
        let mut from = Reader::new(bytes);
        Ok(Some(match kind {
            0 => Message::Sync(read_sync(&mut from)?),
            1 => read_request(&mut from)?,
            2 => Message::Cancel { request: from.uint()? },
            DATA => Message::Data(Box::new(Data::decode(bytes)?)),
            4 => {
                let request = from.uint()?;
                let told = !from.is_empty() && from.uint()? & 1 == 1;
                Message::NoData { request, reason: if told { from.uint()? } else { 0 } }
            }
            5 => Message::Want(read_span(&mut from)?),
            6 => Message::Unwant(read_span(&mut from)?),
            7 => {
                let start = from.uint()?;
                let most = from.rest() / 4;
                let words = from.array(most, |from| Ok(u32::from_le_bytes(from.fixed()?)))?;
                Message::Bitfield { start, words }
            }
            8 => {
                let flags = from.uint()?;
                let start = from.uint()?;
                let length = if flags & 2 != 0 { 1 } else { from.uint()? };
                Message::Range { drop: flags & 1 != 0, start, length }
            }
            9 => {
                let name = std::str::from_utf8(from.buffer()?);
                let name = name.map_err(|_| DataError::Malformed("an extension's name that is no text"))?;
                Message::Extension { name: name.to_owned(), message: from.take(from.rest())?.to_vec() }
            }
            _ => return Ok(None),
        }))
    }
}

fn flags(set: &[bool]) -> u64 {
    set.iter().enumerate().map(|(bit, set)| u64::from(*set) << bit).sum()
}

fn read_sync(from: &mut Reader<'_>) -> Result<Sync, DataError> {
    let flags = from.uint()?;
    let has = |bit: u32| flags >> bit & 1 == 1;
    Ok(Sync {
        fork: from.uint()?,
        length: from.uint()?,
        remote_length: from.uint()?,
        can_upgrade: has(0),
        uploading: has(1),
        downloading: has(2),
        has_manifest: has(3),
        allow_push: has(4),
    })
}

fn read_request(from: &mut Reader<'_>) -> Result<Message, DataError> {
    let flags = from.uint()?;
    let (id, fork) = (from.uint()?, from.uint()?);
    let mut pair = |bit: u32| -> Result<Option<(u64, u64)>, DataError> {
        if flags >> bit & 1 == 0 { Ok(None) } else { Ok(Some((from.uint()?, from.uint()?))) }
    };
    let wanted = Request {
        block: pair(0)?.map(|(index, nodes)| Wanted { index, nodes }),
        hash: pair(1)?.map(|(index, nodes)| Wanted { index, nodes }),
        seek: pair(2)?.map(|(bytes, padding)| SeekWanted { bytes, padding }),
        upgrade: pair(3)?.map(|(start, length)| UpgradeWanted { start, length }),
    };
    let priority = if flags & 32 != 0 { from.uint()? } else { 0 };
    Ok(Message::Request { id, fork, wanted, manifest: flags & 16 != 0, priority })
}

fn read_span(from: &mut Reader<'_>) -> Result<Span, DataError> {
    let (start, length) = (from.uint()?, from.uint()?);
    let any = !from.is_empty() && from.uint()? & 1 == 1;
    Ok(Span { start, length, any })
}
