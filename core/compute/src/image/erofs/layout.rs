//! Where everything lies in the image: decided before the first byte is written.

use super::{
    BLOCK_BYTES, SLOT_BYTES, directory,
    inode::{INODE_BYTES, xattr_bytes},
};
use crate::image::tree::{Kind, Tree};
use std::io;

/// One inode with its place.
#[derive(Clone, Debug)]
pub struct Placed {
    pub node: u32,
    /// Byte offset of the inode in the image.
    pub position: u64,
    /// Of the content.
    pub size: u64,
    /// How much of the content's end lies right behind the inode.
    pub inline_bytes: u64,
    /// Where the rest lies, and how many blocks it has.
    pub data_block: u64,
    pub data_blocks: u64,
    pub links: u32,
    /// Of a directory; the root is its own.
    parent: u32,
}

pub struct Layout {
    /// By node; `None` for what a later layer removed.
    placed: Vec<Option<Placed>>,
    blocks: u64,
}

impl Layout {
    pub fn of(tree: &Tree) -> io::Result<Layout> {
        let mut placed = reachable(tree);
        let mut position = BLOCK_BYTES;
        for inode in placed.iter_mut().flatten() {
            position = place(tree, inode, position);
        }
        let mut next_block = position.div_ceil(BLOCK_BYTES);
        for inode in placed.iter_mut().flatten().filter(|inode| inode.data_blocks > 0) {
            inode.data_block = next_block;
            next_block += inode.data_blocks;
        }
        if next_block > u64::from(u32::MAX) {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "an EROFS image has at most 16 TiB"));
        }
        Ok(Layout { placed, blocks: next_block })
    }

    /// In the order in which they lie.
    pub fn inodes(&self) -> impl Iterator<Item = &Placed> {
        self.placed.iter().flatten()
    }

    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The number that directories know an inode by.
    pub fn nid(&self, node: u32) -> u64 {
        self.placed[node as usize].as_ref().map_or(0, |inode| inode.position / SLOT_BYTES)
    }

    pub fn parent_nid(&self, directory: &Placed) -> u64 {
        self.nid(directory.parent)
    }
}

/// Walks the tree from the root: what is still there, with how many names.
fn reachable(tree: &Tree) -> Vec<Option<Placed>> {
    let mut placed: Vec<Option<Placed>> = vec![None; tree.nodes().len()];
    let fresh = |node, parent, links| Placed {
        node,
        position: 0,
        size: 0,
        inline_bytes: 0,
        data_block: 0,
        data_blocks: 0,
        links,
        parent,
    };
    placed[0] = Some(fresh(0, 0, 2));
    let mut waiting = vec![0];
    while let Some(directory) = waiting.pop() {
        let Kind::Directory(children) = &tree.nodes()[directory as usize].kind else { continue };
        let mut subdirectories = 0;
        for dirent in children.values() {
            let slot = &mut placed[dirent.node as usize];
            if matches!(tree.nodes()[dirent.node as usize].kind, Kind::Directory(_)) {
                *slot = Some(fresh(dirent.node, directory, 2));
                subdirectories += 1;
                waiting.push(dirent.node);
            } else {
                slot.get_or_insert_with(|| fresh(dirent.node, directory, 0)).links += 1;
            }
        }
        if let Some(inode) = &mut placed[directory as usize] {
            inode.links += subdirectories;
        }
    }
    placed
}

/// Places one inode at or after `position`; answers the first byte behind it.
fn place(tree: &Tree, inode: &mut Placed, position: u64) -> u64 {
    let node = &tree.nodes()[inode.node as usize];
    inode.size = match &node.kind {
        Kind::Directory(children) => directory::size(children),
        Kind::File { size, .. } => *size,
        Kind::Symlink(target) => target.len() as u64,
        Kind::Fifo => 0,
    };
    let head = INODE_BYTES + xattr_bytes(&node.meta.xattrs);
    let tail = inode.size % BLOCK_BYTES;
    // A tail must share a block with its inode; one that cannot gets a block of its own.
    inode.inline_bytes = if head + tail <= BLOCK_BYTES { tail } else { 0 };
    inode.data_blocks = (inode.size - inode.inline_bytes).div_ceil(BLOCK_BYTES);
    let mut position = position.next_multiple_of(SLOT_BYTES);
    let room = BLOCK_BYTES - position % BLOCK_BYTES;
    let together = if inode.inline_bytes > 0 { head + inode.inline_bytes } else { INODE_BYTES };
    if together > room {
        position += room;
    }
    inode.position = position;
    position + head + inode.inline_bytes
}
