//! The blocks of a bee: one key, its value, and the nodes of the tree that writing it changed.
//!
//! `Node { index = 1, key = 2, value = 3 }` and, within `index`, `YoloIndex { levels = 1 }` of
//! `Level { keys = 1, children = 2 }`, both packed (`hyperbee/lib/messages.js` 2.27.3). A level is a node of
//! the tree, named by its block and its place in it. Keys are numbers of blocks; children are pairs of a block
//! and a level.
//!
//! Only what is followed is checked: the JavaScript writer leaves levels behind that nothing points to, and
//! those may hold anything.

use crate::error::DataError;
use crate::protobuf::{Field, Fields, put_bytes, put_varint, take_varint, varint_size};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// More nodes than any operation changes: each changes at most two on each of some twenty levels.
const MAX_LEVELS: usize = 256;
/// More numbers than so many nodes of eight keys and nine children have.
const MAX_NUMBERS: usize = 26 * MAX_LEVELS;

/// A decoded block. The index is decoded when it is first needed.
#[derive(Debug)]
pub(crate) struct Block {
    pub seq: u64,
    raw: Vec<u8>,
    key: Range<usize>,
    value: Option<Range<usize>>,
    index: Range<usize>,
    levels: OnceLock<Result<Levels, DataError>>,
}

#[derive(Debug)]
struct Levels {
    numbers: Vec<u64>,
    /// Where the keys and the children of each level are among the numbers.
    levels: Vec<(Range<usize>, Range<usize>)>,
}

/// A node of the tree, as it was written.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    block: Arc<Block>,
    keys: Range<usize>,
    children: Range<usize>,
}

impl Block {
    pub fn decode(seq: u64, raw: Vec<u8>) -> Result<Block, DataError> {
        let (mut index, mut key, mut value) = (None, None, None);
        let mut fields = Fields::new(&raw);
        let place = |part: &[u8]| {
            let start = part.as_ptr() as usize - raw.as_ptr() as usize;
            start..start + part.len()
        };
        while let Some(field) = fields.next()? {
            match field {
                Field::Bytes(1, part) => index = Some(place(part)),
                Field::Bytes(2, part) => key = Some(place(part)),
                Field::Bytes(3, part) => value = Some(place(part)),
                _ => (),
            }
        }
        let (Some(index), Some(key)) = (index, key) else {
            return Err(DataError::Malformed("a block of a bee without an index or a key"));
        };
        Ok(Block { seq, raw, key, value, index, levels: OnceLock::new() })
    }

    pub fn encode(index: &[u8], key: &[u8], value: Option<&[u8]>) -> Vec<u8> {
        let size = index.len() + key.len() + value.map_or(0, <[u8]>::len);
        let mut bytes = Vec::with_capacity(size + 24);
        put_bytes(&mut bytes, 1, index);
        put_bytes(&mut bytes, 2, key);
        if let Some(value) = value {
            put_bytes(&mut bytes, 3, value);
        }
        bytes
    }

    pub fn key(&self) -> &[u8] {
        self.raw.get(self.key.clone()).unwrap_or_default()
    }

    pub fn value(&self) -> Option<&[u8]> {
        self.raw.get(self.value.clone()?)
    }

    /// About how much memory it takes, the decoded index included.
    pub fn weight(&self) -> usize {
        self.raw.len() + 8 * self.index.len() + 200
    }

    fn levels(&self) -> Result<&Levels, DataError> {
        let bytes = self.raw.get(self.index.clone()).unwrap_or_default();
        self.levels.get_or_init(|| Levels::decode(bytes)).as_ref().map_err(Clone::clone)
    }

    /// What it wrote was that the key is gone.
    pub fn is_deletion(&self) -> Result<bool, DataError> {
        if self.value.is_some() {
            return Ok(false);
        }
        let levels = self.levels()?;
        let mut keys = levels.levels.iter().flat_map(|(keys, _)| &levels.numbers[keys.clone()]);
        Ok(!keys.any(|seq| *seq == self.seq))
    }

    pub fn node(self: &Arc<Self>, offset: u64) -> Result<Node, DataError> {
        let levels = self.levels()?;
        let level = usize::try_from(offset).ok().and_then(|offset| levels.levels.get(offset));
        let (keys, children) =
            level.ok_or(DataError::Malformed("a bee's tree leads to a node that is not there"))?;
        let node = Node { block: self.clone(), keys: keys.clone(), children: children.clone() };
        let children = node.children.len();
        let whole = if node.keys.is_empty() { children == 0 } else { true };
        if !whole || (children != 0 && children != 2 * (node.keys.len() + 1)) {
            return Err(DataError::Malformed(
                "a node of a bee's tree with children that do not fit its keys",
            ));
        }
        Ok(node)
    }
}

impl Levels {
    fn decode(bytes: &[u8]) -> Result<Levels, DataError> {
        let mut all = Levels { numbers: Vec::new(), levels: Vec::new() };
        let mut fields = Fields::new(bytes);
        while let Some(field) = fields.next()? {
            if let Field::Bytes(1, level) = field {
                let keys = all.packed(level, 1)?;
                let children = all.packed(level, 2)?;
                all.levels.push((keys, children));
                if all.levels.len() > MAX_LEVELS {
                    return Err(DataError::Malformed(
                        "a block of a bee with more nodes than a write changes",
                    ));
                }
            }
        }
        Ok(all)
    }

    fn packed(&mut self, level: &[u8], wanted: u64) -> Result<Range<usize>, DataError> {
        let start = self.numbers.len();
        let mut fields = Fields::new(level);
        while let Some(field) = fields.next()? {
            if let Field::Bytes(number, mut packed) = field
                && number == wanted
            {
                while !packed.is_empty() {
                    self.numbers.push(take_varint(&mut packed)?);
                    if self.numbers.len() > MAX_NUMBERS {
                        return Err(DataError::Malformed(
                            "a block of a bee with more keys than a write changes",
                        ));
                    }
                }
            }
        }
        Ok(start..self.numbers.len())
    }
}

impl Node {
    pub fn seq(&self) -> u64 {
        self.block.seq
    }

    fn numbers(&self, range: &Range<usize>) -> &[u64] {
        match self.block.levels.get() {
            Some(Ok(levels)) => levels.numbers.get(range.clone()).unwrap_or_default(),
            _ => &[],
        }
    }

    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    pub fn is_leaf(&self) -> bool {
        self.children.is_empty()
    }

    /// The block that holds a key. A node knows only what was written before it, or with it.
    pub fn key(&self, at: usize) -> Result<u64, DataError> {
        self.earlier(self.numbers(&self.keys).get(at).copied())
    }

    /// The block of a child, and the child's place in it.
    pub fn child(&self, at: usize) -> Result<(u64, u64), DataError> {
        let pair = self.numbers(&self.children).get(2 * at..2 * at + 2);
        let (seq, offset) = pair.map_or((None, 0), |pair| (Some(pair[0]), pair[1]));
        Ok((self.earlier(seq)?, offset))
    }

    fn earlier(&self, seq: Option<u64>) -> Result<u64, DataError> {
        match seq {
            Some(seq) if (1..=self.block.seq).contains(&seq) => Ok(seq),
            _ => Err(DataError::Malformed("a node of a bee's tree leads to a block that came after it")),
        }
    }
}

/// Writes the levels of an index.
#[derive(Default)]
pub(crate) struct IndexWriter {
    pub bytes: Vec<u8>,
}

impl IndexWriter {
    pub fn level(&mut self, keys: &[u64], children: &[u64]) {
        let packed = |numbers: &[u64]| numbers.iter().map(|number| varint_size(*number)).sum::<usize>();
        let sizes = [packed(keys), packed(children)];
        let field = |size: usize| if size == 0 { 0 } else { 1 + varint_size(size as u64) + size };
        self.bytes.push(1 << 3 | 2);
        put_varint(&mut self.bytes, sizes.into_iter().map(field).sum::<usize>() as u64);
        for (number, (numbers, size)) in [(1u8, (keys, sizes[0])), (2, (children, sizes[1]))] {
            if size != 0 {
                self.bytes.push(number << 3 | 2);
                put_varint(&mut self.bytes, size as u64);
                numbers.iter().for_each(|number| put_varint(&mut self.bytes, *number));
            }
        }
    }
}
