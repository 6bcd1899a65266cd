//! Directories: blocks of fixed-size entries followed by their names, sorted by bytes over the whole directory.

use super::{
    BLOCK_BYTES,
    layout::{Layout, Placed},
};
use crate::image::tree::{Dirent, Kind, Tree};
use std::collections::BTreeMap;

/// `struct erofs_dirent`.
const DIRENT_BYTES: usize = 12;

type Children = BTreeMap<Box<[u8]>, Dirent>;

/// One name of a directory; `.` and `..` have no entry in the tree.
enum Named<'a> {
    Itself,
    Parent,
    Child(&'a [u8], u32),
}

impl Named<'_> {
    fn name(&self) -> &[u8] {
        match self {
            Named::Itself => b".",
            Named::Parent => b"..",
            Named::Child(name, _) => name,
        }
    }
}

/// The names, sorted, block by block.
fn blocks(children: &Children) -> Vec<Vec<Named<'_>>> {
    let mut all: Vec<Named<'_>> =
        children.iter().map(|(name, dirent)| Named::Child(name, dirent.node)).collect();
    all.extend([Named::Itself, Named::Parent]);
    all.sort_by(|a, b| a.name().cmp(b.name()));
    let mut blocks = vec![Vec::new()];
    let mut used = 0;
    for named in all {
        let need = DIRENT_BYTES + named.name().len();
        if used + need > BLOCK_BYTES as usize {
            blocks.push(Vec::new());
            used = 0;
        }
        used += need;
        if let Some(block) = blocks.last_mut() {
            block.push(named);
        }
    }
    blocks
}

fn block_bytes(block: &[Named<'_>]) -> u64 {
    block.iter().map(|named| (DIRENT_BYTES + named.name().len()) as u64).sum()
}

/// All blocks but the last count in full.
pub fn size(children: &Children) -> u64 {
    let blocks = blocks(children);
    let last = blocks.last().map_or(0, |block| block_bytes(block));
    (blocks.len() as u64 - 1) * BLOCK_BYTES + last
}

pub fn encode(tree: &Tree, layout: &Layout, directory: &Placed, children: &Children) -> Vec<u8> {
    let mut content: Vec<u8> = Vec::new();
    for block in blocks(children) {
        content.resize(content.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        let mut name_offset = block.len() * DIRENT_BYTES;
        for named in &block {
            let (nid, kind) = match named {
                Named::Itself => (layout.nid(directory.node), FILE_TYPE_DIRECTORY),
                Named::Parent => (layout.parent_nid(directory), FILE_TYPE_DIRECTORY),
                Named::Child(_, node) => (layout.nid(*node), file_type(&tree.nodes()[*node as usize].kind)),
            };
            content.extend(nid.to_le_bytes());
            content.extend((name_offset as u16).to_le_bytes());
            content.extend([kind, 0]);
            name_offset += named.name().len();
        }
        for named in &block {
            content.extend(named.name());
        }
    }
    content
}

const FILE_TYPE_DIRECTORY: u8 = 2;

fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => 1,
        Kind::Directory(_) => FILE_TYPE_DIRECTORY,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}
