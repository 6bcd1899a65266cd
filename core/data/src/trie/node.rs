//! A block of a trie: a key, its value, and where the keys are that part from its path.
//!
//! `Node { key = 1, valueBuffer = 2, trieBuffer = 3, seq = 4, flags = 5 }` (`hypertrie/schema.proto` 5.1.3). The
//! path of a key begins with whether it is hidden, then come the two-bit digits of the SipHash of each part
//! between slashes, and 4 as the end. For each place of the path there is a bucket: to every digit the last
//! block whose key has the same path up to there, and then that digit. Only where a part ends, whose hash may
//! be that of another part, can there be more than one to a digit, each five places on.

use super::siphash::siphash24;
use crate::bee::cache::Weigh;
use crate::error::DataError;
use crate::protobuf::{Field, Fields, put_bytes, put_uint, put_varint, take_varint};
use std::collections::BTreeMap;

/// The digit at the end of every path.
pub(super) const END: u8 = 4;
/// Digits in the hash of a part.
const PART: usize = 32;
/// Places in a bucket: `hypertrie` counts them in 32 bits.
const MAX_BUCKET: usize = 32;
const HIDDEN: u64 = 1;

pub(super) type Buckets = BTreeMap<usize, Vec<u64>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub seq: u64,
    pub key: String,
    pub value: Option<Vec<u8>>,
    pub flags: u64,
    pub buckets: Buckets,
    hash: Vec<u8>,
}

impl Weigh for Node {
    fn weight(&self) -> usize {
        let buckets: usize = self.buckets.values().map(|bucket| 8 * bucket.len() + 64).sum();
        self.key.len() + self.value.as_ref().map_or(0, Vec::len) + self.hash.len() + buckets + 200
    }
}

/// The parts of a key: a slash at either end does not count.
fn parts(key: &str) -> impl Iterator<Item = &str> {
    let mut parts: Vec<&str> = key.split('/').collect();
    if parts.first() == Some(&"") {
        parts.remove(0);
    }
    if parts.last() == Some(&"") {
        parts.pop();
    }
    parts.into_iter()
}

/// One hash after the other ends where a place is a multiple of this.
pub(super) fn ends_part(at: usize) -> bool {
    at > 0 && at.is_multiple_of(PART)
}

impl Node {
    pub fn new(key: &str, value: Option<&[u8]>, hidden: bool, flags: u64) -> Node {
        let key = key.strip_prefix('/').unwrap_or(key).to_owned();
        let hash = parts(&key).flat_map(|part| siphash24([0, 0], part.as_bytes())).collect();
        let flags = flags << 8 | if hidden { HIDDEN } else { 0 };
        Node { seq: 0, key, value: value.map(<[u8]>::to_vec), flags, buckets: Buckets::new(), hash }
    }

    pub fn hidden(&self) -> bool {
        self.flags & HIDDEN != 0
    }

    /// The flags of the user's.
    pub fn user_flags(&self) -> u64 {
        self.flags >> 8
    }

    /// The length of the path.
    pub fn length(&self) -> usize {
        self.hash.len() * 4 + 2
    }

    pub fn path(&self, at: usize) -> u8 {
        let Some(digit) = at.checked_sub(1) else { return u8::from(self.hidden()) };
        self.hash.get(digit / 4).map_or(END, |byte| byte >> (2 * (digit % 4)) & 3)
    }

    pub fn bucket(&self, at: usize) -> &[u64] {
        self.buckets.get(&at).map_or(&[], Vec::as_slice)
    }

    /// The paths are the same up to here: are the keys others nevertheless?
    pub fn collides(&self, other: &Node, at: usize) -> bool {
        if at == 0 {
            return false;
        }
        if at == self.length() - 1 {
            return self.key != other.key;
        }
        let part = (at - 1) / PART;
        parts(&self.key).nth(part) != parts(&other.key).nth(part)
    }

    pub fn push(&mut self, at: usize, digit: usize, seq: u64) {
        let bucket = self.buckets.entry(at).or_default();
        let mut place = digit % 5;
        while bucket.get(place).is_some_and(|seq| *seq != 0) {
            place += 5;
        }
        if !bucket.contains(&seq) {
            bucket.resize(bucket.len().max(place + 1), 0);
            bucket[place] = seq;
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut trie = Vec::new();
        put_varint(&mut trie, self.buckets.last_key_value().map_or(0, |(at, _)| *at as u64 + 1));
        for (at, bucket) in &self.buckets {
            put_varint(&mut trie, *at as u64);
            let bits = bucket.iter().take(MAX_BUCKET).enumerate();
            put_varint(&mut trie, bits.fold(0, |bits, (place, seq)| bits | u64::from(*seq != 0) << place));
            bucket
                .iter()
                .take(MAX_BUCKET)
                .filter(|seq| **seq != 0)
                .for_each(|seq| put_varint(&mut trie, *seq));
        }
        let mut bytes = Vec::new();
        put_bytes(&mut bytes, 1, self.key.as_bytes());
        if let Some(value) = &self.value {
            put_bytes(&mut bytes, 2, value);
        }
        put_bytes(&mut bytes, 3, &trie);
        put_uint(&mut bytes, 4, self.seq);
        put_uint(&mut bytes, 5, self.flags);
        bytes
    }

    pub fn decode(seq: u64, bytes: &[u8]) -> Result<Node, DataError> {
        let (mut key, mut value, mut buckets, mut flags) = (None, None, Buckets::new(), 0);
        let mut fields = Fields::new(bytes);
        while let Some(field) = fields.next()? {
            match field {
                Field::Bytes(1, part) => key = Some(String::from_utf8_lossy(part).into_owned()),
                Field::Bytes(2, part) => value = Some(part.to_vec()),
                Field::Bytes(3, part) => buckets = decode_buckets(seq, part)?,
                Field::Varint(5, number) => flags = number,
                _ => (),
            }
        }
        let key = key.ok_or(DataError::Malformed("a block of a trie without a key"))?;
        Ok(Node { seq, flags, buckets, ..Node::new(&key, value.as_deref(), false, 0) })
    }
}

/// A node knows only what was written before it.
fn decode_buckets(seq: u64, mut rest: &[u8]) -> Result<Buckets, DataError> {
    let length = take_varint(&mut rest)?;
    let mut buckets = Buckets::new();
    while !rest.is_empty() {
        let at = take_varint(&mut rest)?;
        let bits = take_varint(&mut rest)?;
        if at >= length || bits >> MAX_BUCKET != 0 {
            return Err(DataError::Malformed("a block of a trie with a bucket that cannot be"));
        }
        let at = usize::try_from(at).map_err(|_| DataError::Malformed("a path without end"))?;
        let mut bucket = vec![0; 64 - bits.leading_zeros() as usize];
        for (place, known) in bucket.iter_mut().enumerate() {
            if bits >> place & 1 == 1 {
                *known = take_varint(&mut rest)?;
                if *known == 0 || *known >= seq {
                    return Err(DataError::Malformed("a block of a trie leads to one that came after it"));
                }
            }
        }
        buckets.insert(at, bucket);
    }
    Ok(buckets)
}

/// The first block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub kind: String,
    pub metadata: Option<Vec<u8>>,
    pub subtype: Option<String>,
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_bytes(&mut bytes, 1, self.kind.as_bytes());
        if let Some(metadata) = &self.metadata {
            put_bytes(&mut bytes, 2, metadata);
        }
        if let Some(subtype) = &self.subtype {
            put_bytes(&mut bytes, 3, subtype.as_bytes());
        }
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Header, DataError> {
        let (mut header, mut fields, mut found) = (Header::default(), Fields::new(bytes), false);
        while let Some(field) = fields.next()? {
            let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
            match field {
                Field::Bytes(1, part) => (header.kind, found) = (text(part), true),
                Field::Bytes(2, part) => header.metadata = Some(part.to_vec()),
                Field::Bytes(3, part) => header.subtype = Some(text(part)),
                _ => (),
            }
        }
        if found { Ok(header) } else { Err(DataError::Malformed("a header without a type")) }
    }
}
