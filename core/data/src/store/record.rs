//! What the records of a store say: each is one whole change of one core, or a part of the index. The bytes
//! are described in docs/formats/cores.md.

use crate::crypto::Hash;
use crate::encoding::{Reader, Writer};
use crate::error::DataError;
use crate::manifest::Manifest;
use crate::tree::{Head, MAX_LENGTH, Node, full_roots};

/// No record is larger.
pub(crate) const MAX_BODY: usize = 64 << 20;
/// Blocks of one append, at most.
pub(crate) const MAX_BATCH: usize = 1 << 20;
const MAX_ITEMS: usize = 1 << 24;

/// Where a record is: segment, and the offset of its header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    pub segment: u32,
    pub offset: u32,
}

/// Where a page or a root is: the record and the bytes of its body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub at: At,
    pub size: u32,
}

/// Blocks that a record carries: their sizes, and where in the body the first begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub sizes: Vec<u64>,
    pub at: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Put {
    pub manifest: Option<Manifest>,
    /// The new length, and its signature.
    pub upgrade: Option<(u64, Vec<u8>)>,
    pub nodes: Vec<Node>,
    pub block: Option<(u64, usize, usize)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reorg {
    pub fork: u64,
    pub ancestors: u64,
    pub length: u64,
    pub signature: Vec<u8>,
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Create {
        key: Hash,
        manifest: Option<Manifest>,
    },
    Remove,
    Append {
        fork: u64,
        length: u64,
        blocks: Blocks,
    },
    Put(Put),
    Truncate {
        fork: u64,
        length: u64,
    },
    Reorg(Reorg),
    Clear {
        start: u64,
        end: u64,
    },
    Signed {
        fork: u64,
        length: u64,
        signature: Vec<u8>,
    },
    UserData {
        key: Vec<u8>,
        value: Option<Vec<u8>>,
    },
    /// Blocks that were copied here, so that their segment can go: their numbers.
    Moved {
        indexes: Vec<u64>,
        blocks: Blocks,
    },
    /// All blocks and nodes that are damaged on the disk are given up.
    Drop {
        kind: u8,
        number: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Change {
        core: u32,
        change: Change,
    },
    /// Of the store itself, not of a core.
    Meta {
        key: Vec<u8>,
        value: Option<Vec<u8>>,
    },
    /// A part of the index: it is found by its place, never replayed.
    Page {
        core: u32,
        kind: u8,
        number: u64,
        bytes_at: usize,
    },
    Root {
        core: u32,
        bytes_at: usize,
    },
    Checkpoint {
        bytes_at: usize,
    },
}

const CREATE: u64 = 1;
const REMOVE: u64 = 2;
const APPEND: u64 = 3;
const PUT: u64 = 4;
const TRUNCATE: u64 = 5;
const REORG: u64 = 6;
const CLEAR: u64 = 7;
const SIGNED: u64 = 8;
const USER_DATA: u64 = 9;
const MOVED: u64 = 10;
const DROP: u64 = 11;
const META: u64 = 16;
const PAGE: u64 = 17;
const ROOT: u64 = 18;
const CHECKPOINT: u64 = 19;

fn begin(kind: u64, core: u32) -> Writer {
    let mut to = Writer::default();
    to.uint(kind);
    to.uint(u64::from(core));
    to
}

/// Answers the body and where the first block is in it.
pub(crate) fn append(core: u32, fork: u64, length: u64, blocks: &[&[u8]]) -> (Vec<u8>, usize) {
    let mut to = begin(APPEND, core);
    to.bytes.reserve(blocks.iter().map(|block| block.len() + 5).sum::<usize>() + 64);
    to.uint(fork);
    to.uint(length);
    to.array(blocks, |to, block| to.uint(block.len() as u64));
    let at = to.bytes.len();
    blocks.iter().for_each(|block| to.raw(block));
    (to.bytes, at)
}

pub(crate) fn moved(core: u32, blocks: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut to = begin(MOVED, core);
    to.array(blocks, |to, (index, _)| to.uint(*index));
    to.array(blocks, |to, (_, block)| to.uint(block.len() as u64));
    blocks.iter().for_each(|(_, block)| to.raw(block));
    to.bytes
}

/// Answers the body and where the block is in it.
pub(crate) fn put(
    core: u32,
    manifest: Option<&Manifest>,
    upgrade: Option<(u64, &[u8])>,
    nodes: &[Node],
    block: Option<(u64, &[u8])>,
) -> (Vec<u8>, usize) {
    let mut to = begin(PUT, core);
    let flag = |set: bool, flag: u64| if set { flag } else { 0 };
    to.uint(flag(manifest.is_some(), 1) | flag(upgrade.is_some(), 2) | flag(block.is_some(), 4));
    if let Some(manifest) = manifest {
        to.buffer(&manifest.encode());
    }
    if let Some((length, signature)) = upgrade {
        to.uint(length);
        to.buffer(signature);
    }
    to.array(nodes, write_node);
    let mut at = to.bytes.len();
    if let Some((index, block)) = block {
        to.uint(index);
        to.uint(block.len() as u64);
        at = to.bytes.len();
        to.raw(block);
    }
    (to.bytes, at)
}

pub(crate) fn reorg(core: u32, reorg: &Reorg) -> Vec<u8> {
    let mut to = begin(REORG, core);
    [reorg.fork, reorg.ancestors, reorg.length].iter().for_each(|number| to.uint(*number));
    to.buffer(&reorg.signature);
    to.array(&reorg.nodes, write_node);
    to.bytes
}

/// The changes that carry neither nodes nor blocks.
pub(crate) fn small(core: u32, change: &Change) -> Vec<u8> {
    match change {
        Change::Create { key, manifest } => {
            let mut to = begin(CREATE, core);
            to.raw(key);
            if let Some(manifest) = manifest {
                to.raw(&manifest.encode());
            }
            to.bytes
        }
        Change::Truncate { fork, length } => numbers(TRUNCATE, core, &[*fork, *length]),
        Change::Clear { start, end } => numbers(CLEAR, core, &[*start, *end]),
        Change::Signed { fork, length, signature } => {
            let mut bytes = numbers(SIGNED, core, &[*fork, *length]);
            bytes.extend_from_slice(signature);
            bytes
        }
        Change::UserData { key, value } => pair(begin(USER_DATA, core), key, value.as_deref()),
        Change::Drop { kind, number } => numbers(DROP, core, &[u64::from(*kind), *number]),
        _ => numbers(REMOVE, core, &[]),
    }
}

fn numbers(kind: u64, core: u32, numbers: &[u64]) -> Vec<u8> {
    let mut to = begin(kind, core);
    numbers.iter().for_each(|number| to.uint(*number));
    to.bytes
}

fn pair(mut to: Writer, key: &[u8], value: Option<&[u8]>) -> Vec<u8> {
    to.buffer(key);
    if let Some(value) = value {
        to.buffer(value);
    }
    to.bytes
}

pub(crate) fn meta(key: &[u8], value: Option<&[u8]>) -> Vec<u8> {
    pair(begin(META, 0), key, value)
}

pub(crate) fn page(core: u32, kind: u8, number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut body = numbers(PAGE, core, &[u64::from(kind), number]);
    body.extend_from_slice(bytes);
    body
}

pub(crate) fn root(core: u32, bytes: &[u8]) -> Vec<u8> {
    let mut body = numbers(ROOT, core, &[]);
    body.extend_from_slice(bytes);
    body
}

pub(crate) fn checkpoint(bytes: &[u8]) -> Vec<u8> {
    let mut body = numbers(CHECKPOINT, 0, &[]);
    body.extend_from_slice(bytes);
    body
}

fn write_node(to: &mut Writer, node: &Node) {
    to.uint(node.index);
    to.uint(node.size);
    to.raw(&node.hash);
}

fn read_nodes(from: &mut Reader<'_>) -> Result<Vec<Node>, DataError> {
    from.array(MAX_ITEMS, |from| Ok(Node { index: from.uint()?, size: from.uint()?, hash: from.fixed()? }))
}

fn read_blocks(from: &mut Reader<'_>, whole: usize) -> Result<Blocks, DataError> {
    let sizes = from.array(MAX_BATCH, Reader::uint)?;
    let total = sizes.iter().try_fold(0u64, |sum, size| sum.checked_add(*size));
    if total != Some(from.rest() as u64) {
        return Err(DataError::Malformed("sizes that do not add up"));
    }
    let at = whole - from.rest();
    from.take(from.rest())?;
    Ok(Blocks { sizes, at })
}

fn read_pair(from: &mut Reader<'_>) -> Result<(Vec<u8>, Option<Vec<u8>>), DataError> {
    let key = from.buffer()?.to_vec();
    let value = if from.is_empty() { None } else { Some(from.buffer()?.to_vec()) };
    Ok((key, value))
}

pub(crate) fn decode(body: &[u8]) -> Result<Record, DataError> {
    let mut from = Reader::new(body);
    let kind = from.uint()?;
    let core = u32::try_from(from.uint()?).map_err(|_| DataError::Malformed("a core beyond 2^32"))?;
    let record = match kind {
        META => {
            let (key, value) = read_pair(&mut from)?;
            Record::Meta { key, value }
        }
        PAGE => {
            let kind = u8::try_from(from.uint()?).map_err(|_| DataError::Malformed("an unknown page"))?;
            let number = from.uint()?;
            return Ok(Record::Page { core, kind, number, bytes_at: body.len() - from.rest() });
        }
        ROOT => return Ok(Record::Root { core, bytes_at: body.len() - from.rest() }),
        CHECKPOINT => return Ok(Record::Checkpoint { bytes_at: body.len() - from.rest() }),
        _ => Record::Change { core, change: decode_change(kind, &mut from, body.len())? },
    };
    from.end()?;
    Ok(record)
}

fn decode_change(kind: u64, from: &mut Reader<'_>, whole: usize) -> Result<Change, DataError> {
    Ok(match kind {
        CREATE => {
            let key = from.fixed()?;
            let manifest = (!from.is_empty()).then(|| Manifest::read(from)).transpose()?;
            Change::Create { key, manifest }
        }
        REMOVE => Change::Remove,
        APPEND => {
            let (fork, length) = (from.uint()?, from.uint()?);
            Change::Append { fork, length, blocks: read_blocks(from, whole)? }
        }
        PUT => Change::Put(decode_put(from, whole)?),
        TRUNCATE => Change::Truncate { fork: from.uint()?, length: from.uint()? },
        REORG => Change::Reorg(Reorg {
            fork: from.uint()?,
            ancestors: from.uint()?,
            length: from.uint()?,
            signature: from.buffer()?.to_vec(),
            nodes: read_nodes(from)?,
        }),
        CLEAR => Change::Clear { start: from.uint()?, end: from.uint()? },
        SIGNED => {
            let (fork, length) = (from.uint()?, from.uint()?);
            Change::Signed { fork, length, signature: from.take(from.rest())?.to_vec() }
        }
        USER_DATA => {
            let (key, value) = read_pair(from)?;
            Change::UserData { key, value }
        }
        MOVED => {
            let indexes = from.array(MAX_BATCH, Reader::uint)?;
            let blocks = read_blocks(from, whole)?;
            if blocks.sizes.len() != indexes.len() {
                return Err(DataError::Malformed("sizes that do not fit the blocks"));
            }
            Change::Moved { indexes, blocks }
        }
        DROP => Change::Drop { kind: from.uint()? as u8, number: from.uint()? },
        _ => return Err(DataError::Malformed("a record of an unknown kind")),
    })
}

fn decode_put(from: &mut Reader<'_>, whole: usize) -> Result<Put, DataError> {
    let flags = from.uint()?;
    let manifest = (flags & 1 != 0).then(|| from.buffer()).transpose()?;
    let manifest = manifest.map(|bytes| Manifest::read(&mut Reader::new(bytes))).transpose()?;
    let upgrade =
        (flags & 2 != 0).then(|| Ok::<_, DataError>((from.uint()?, from.buffer()?.to_vec()))).transpose()?;
    let nodes = read_nodes(from)?;
    let mut block = None;
    if flags & 4 != 0 {
        let (index, size) = (from.uint()?, from.uint()? as usize);
        block = Some((index, whole - from.rest(), size));
        from.take(size)?;
    }
    Ok(Put { manifest, upgrade, nodes, block })
}

/// A tree's roots: their numbers follow from its length.
pub(crate) fn write_head(to: &mut Writer, head: &Head) {
    to.uint(head.fork);
    to.uint(head.length);
    for root in &head.roots {
        to.uint(root.size);
        to.raw(&root.hash);
    }
}

pub(crate) fn read_head(from: &mut Reader<'_>) -> Result<Head, DataError> {
    let (fork, length) = (from.uint()?, from.uint()?);
    if length > MAX_LENGTH {
        return Err(DataError::Malformed("a core of more than 2^51 blocks"));
    }
    let roots = full_roots(length)
        .into_iter()
        .map(|index| Ok(Node { index, size: from.uint()?, hash: from.fixed()? }))
        .collect::<Result<Vec<_>, DataError>>()?;
    let byte_length = roots.iter().map(|root| root.size).sum();
    Ok(Head { fork, length, byte_length, roots })
}

pub(crate) fn write_place(to: &mut Writer, place: &Place) {
    to.uint(u64::from(place.at.segment));
    to.uint(u64::from(place.at.offset));
    to.uint(u64::from(place.size));
}

pub(crate) fn read_place(from: &mut Reader<'_>) -> Result<Place, DataError> {
    let mut number = || u32::try_from(from.uint()?).map_err(|_| DataError::Malformed("a place beyond 2^32"));
    Ok(Place { at: At { segment: number()?, offset: number()? }, size: number()? })
}
