//! Writes a file tree as an EROFS image (Linux: fs/erofs/erofs_fs.h): uncompressed, 4 KiB blocks, read by
//! Linux 5.4 and later.
//!
//! Invariants:
//! - Deterministic: the bytes depend on the tree, the spool's contents and the id alone.
//! - The tree holds no more than the format can say; what it cannot is refused while the tree is built.
//!
//! The layout, in blocks: 0 the superblock; from 1 on the inodes, root first, each followed by its extended attributes
//! and, if it fits in the same block, the tail of its content; then the whole blocks of all contents, in the
//! inodes' order.

mod directory;
mod inode;
mod layout;

use super::tree::{Kind, Tree};
use layout::{Layout, Placed};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

pub const BLOCK_BYTES: u64 = 4096;
/// Inodes are numbered by where they lie, in units of this.
const SLOT_BYTES: u64 = 32;
/// One inode's attributes with names; the format's counter of 4-byte units is 16 bits wide.
pub const MAX_XATTR_BYTES: u64 = 128 << 10;

const SUPERBLOCK_OFFSET: usize = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
const FEATURE_COMPAT_CHECKSUM: u32 = 0x1;
const FEATURE_COMPAT_MTIME: u32 = 0x2;
const ROOT_NID: u16 = (BLOCK_BYTES / SLOT_BYTES) as u16;

/// Counts what it passes on, so that every part knows where it is.
struct Output<W: Write> {
    writer: BufWriter<W>,
    position: u64,
}

impl<W: Write> Output<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        let zeros = [0; 512];
        while self.position < position {
            let count = (position - self.position).min(zeros.len() as u64);
            self.put(&zeros[..count as usize])?;
        }
        Ok(())
    }
}

/// Writes the image and says how many bytes it has. `id` becomes the file system's UUID.
pub fn write<S: Read + Seek, W: Write>(
    tree: &Tree,
    spool: &mut S,
    id: [u8; 16],
    writer: W,
) -> io::Result<u64> {
    let layout = Layout::of(tree)?;
    let mut output = Output { writer: BufWriter::with_capacity(1 << 20, writer), position: 0 };
    output.put(&superblock(&layout, id))?;
    for placed in layout.inodes() {
        output.pad_to(placed.position)?;
        write_inode(tree, &layout, placed, spool, &mut output)?;
    }
    for placed in layout.inodes().filter(|placed| placed.data_blocks > 0) {
        output.pad_to(placed.data_block * BLOCK_BYTES)?;
        let whole = placed.size - placed.inline_bytes;
        write_content(tree, &layout, placed, 0, whole, spool, &mut output)?;
    }
    let total = layout.blocks() * BLOCK_BYTES;
    output.pad_to(total)?;
    output.writer.flush()?;
    Ok(total)
}

fn write_inode<S: Read + Seek, W: Write>(
    tree: &Tree,
    layout: &Layout,
    placed: &Placed,
    spool: &mut S,
    output: &mut Output<W>,
) -> io::Result<()> {
    let node = &tree.nodes()[placed.node as usize];
    output.put(&inode::encode(node, placed))?;
    output.put(&inode::encode_xattrs(&node.meta.xattrs))?;
    if placed.inline_bytes > 0 {
        let start = placed.size - placed.inline_bytes;
        write_content(tree, layout, placed, start, placed.inline_bytes, spool, output)?;
    }
    Ok(())
}

/// Writes a part of a file's, link's or directory's content.
fn write_content<S: Read + Seek, W: Write>(
    tree: &Tree,
    layout: &Layout,
    placed: &Placed,
    start: u64,
    count: u64,
    spool: &mut S,
    output: &mut Output<W>,
) -> io::Result<()> {
    match &tree.nodes()[placed.node as usize].kind {
        Kind::File { offset, .. } => {
            spool.seek(SeekFrom::Start(offset + start))?;
            let mut buffer = [0; 64 << 10];
            let mut left = count;
            while left > 0 {
                let most = left.min(buffer.len() as u64) as usize;
                spool.read_exact(&mut buffer[..most])?;
                output.put(&buffer[..most])?;
                left -= most as u64;
            }
            Ok(())
        }
        Kind::Symlink(target) => output.put(&target[start as usize..(start + count) as usize]),
        Kind::Directory(children) => {
            let content = directory::encode(tree, layout, placed, children);
            output.put(&content[start as usize..(start + count) as usize])
        }
        Kind::Fifo => Ok(()),
    }
}

fn superblock(layout: &Layout, id: [u8; 16]) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES as usize];
    let mut set = |offset: usize, bytes: &[u8]| {
        let start = SUPERBLOCK_OFFSET + offset;
        block[start..start + bytes.len()].copy_from_slice(bytes);
    };
    set(0, &MAGIC.to_le_bytes());
    set(8, &(FEATURE_COMPAT_CHECKSUM | FEATURE_COMPAT_MTIME).to_le_bytes());
    set(12, &[BLOCK_BYTES.ilog2() as u8]);
    set(14, &ROOT_NID.to_le_bytes());
    set(16, &(layout.inodes().count() as u64).to_le_bytes());
    // The build time, the start of the inodes' numbering and that of shared attributes stay 0.
    set(36, &(layout.blocks() as u32).to_le_bytes());
    set(48, &id);
    // The kernel's crc32c is not inverted at the end.
    let checksum = !crc32c::crc32c(&block[SUPERBLOCK_OFFSET..]);
    block[SUPERBLOCK_OFFSET + 4..SUPERBLOCK_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    block
}
