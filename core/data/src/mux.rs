//! Protomux: many channels over one stream of frames, as `protomux` 3 lays them out.
//!
//! A frame is a channel's number and the kind of message. Channel 0 is the multiplexer itself: a batch of
//! frames, or a channel is opened, refused or closed. Frames within a batch may be of any channel; a batch
//! within a batch is refused, so work is bounded by the bytes.

mod channels;

pub use channels::{Arrived, Channels, MAX_CHANNELS};

use crate::encoding::{Reader, Writer};
use crate::error::DataError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// `rest` holds the handshake of the protocol.
    Open {
        channel: u64,
        protocol: &'a str,
        id: &'a [u8],
        rest: &'a [u8],
    },
    Reject {
        channel: u64,
    },
    Close {
        channel: u64,
    },
    Message {
        channel: u64,
        kind: u64,
        body: &'a [u8],
    },
}

/// All frames of what one message of the stream holds. Kinds that the multiplexer does not know are left out,
/// as the JavaScript stack leaves them out.
pub fn decode(bytes: &[u8]) -> Result<Vec<Frame<'_>>, DataError> {
    let mut from = Reader::new(bytes);
    let channel = from.uint()?;
    let mut frames = Vec::new();
    if channel != 0 || from.peek() != Some(0) {
        frames.extend(read(channel, &mut from)?);
        return Ok(frames);
    }
    from.uint()?;
    let mut channel = from.uint()?;
    while !from.is_empty() {
        let inner = from.buffer()?;
        if inner.is_empty() {
            channel = from.uint()?;
            continue;
        }
        if channel == 0 && inner[0] == 0 {
            return Err(DataError::Malformed("a batch within a batch"));
        }
        frames.extend(read(channel, &mut Reader::new(inner))?);
    }
    Ok(frames)
}

fn read<'a>(channel: u64, from: &mut Reader<'a>) -> Result<Option<Frame<'a>>, DataError> {
    let kind = from.uint()?;
    if channel != 0 {
        return Ok(Some(Frame::Message { channel, kind, body: from.take(from.rest())? }));
    }
    Ok(match kind {
        1 => {
            let channel = from.uint()?;
            let protocol = std::str::from_utf8(from.buffer()?);
            let protocol = protocol.map_err(|_| DataError::Malformed("a protocol's name that is no text"))?;
            Some(Frame::Open { channel, protocol, id: from.buffer()?, rest: from.take(from.rest())? })
        }
        2 => Some(Frame::Reject { channel: from.uint()? }),
        3 => Some(Frame::Close { channel: from.uint()? }),
        _ => None,
    })
}

impl Frame<'_> {
    /// The channel in whose name it is sent, and what follows that.
    pub(crate) fn parts(&self) -> (u64, Vec<u8>) {
        let mut to = Writer::default();
        let channel = match self {
            Frame::Open { channel, protocol, id, rest } => {
                to.uint(1);
                to.uint(*channel);
                to.buffer(protocol.as_bytes());
                to.buffer(id);
                to.raw(rest);
                0
            }
            Frame::Reject { channel } => {
                to.uint(2);
                to.uint(*channel);
                0
            }
            Frame::Close { channel } => {
                to.uint(3);
                to.uint(*channel);
                0
            }
            Frame::Message { channel, kind, body } => {
                to.uint(*kind);
                to.raw(body);
                *channel
            }
        };
        (channel, to.bytes)
    }

    pub fn encode(&self) -> Vec<u8> {
        let (channel, inner) = self.parts();
        let mut to = Writer::default();
        to.uint(channel);
        to.raw(&inner);
        to.bytes
    }
}

/// Several frames as one batch.
pub fn encode_batch(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut to = Writer::default();
    let mut last = None;
    for (channel, inner) in frames.iter().map(Frame::parts) {
        match last {
            None => {
                to.raw(&[0, 0]);
                to.uint(channel);
            }
            Some(last) if last != channel => {
                to.uint(0);
                to.uint(channel);
            }
            Some(_) => {}
        }
        last = Some(channel);
        to.buffer(&inner);
    }
    to.bytes
}
