//! Inodes of 64 bytes (`struct erofs_inode_extended`) and the extended attributes behind them.

use super::layout::Placed;
use crate::image::tree::{Kind, Node};

pub const INODE_BYTES: u64 = 64;
/// `struct erofs_xattr_ibody_header`.
const XATTR_HEADER_BYTES: usize = 12;
const XATTR_ALIGN: usize = 4;

const VERSION_EXTENDED: u16 = 1;
const LAYOUT_PLAIN: u16 = 0;
const LAYOUT_INLINE: u16 = 2;

pub fn encode(node: &Node, placed: &Placed) -> [u8; INODE_BYTES as usize] {
    let layout = if placed.inline_bytes > 0 { LAYOUT_INLINE } else { LAYOUT_PLAIN };
    let kind_bits: u16 = match node.kind {
        Kind::Directory(_) => 0o040000,
        Kind::File { .. } => 0o100000,
        Kind::Symlink(_) => 0o120000,
        Kind::Fifo => 0o010000,
    };
    let xattr_units = match xattr_bytes(&node.meta.xattrs) as usize {
        0 => 0,
        bytes => 1 + (bytes - XATTR_HEADER_BYTES) / XATTR_ALIGN,
    };
    let mut inode = [0; INODE_BYTES as usize];
    let mut set = |offset: usize, bytes: &[u8]| inode[offset..offset + bytes.len()].copy_from_slice(bytes);
    set(0, &(VERSION_EXTENDED | layout << 1).to_le_bytes());
    set(2, &(xattr_units as u16).to_le_bytes());
    set(4, &(kind_bits | node.meta.mode).to_le_bytes());
    set(8, &placed.size.to_le_bytes());
    set(16, &(placed.data_block as u32).to_le_bytes());
    set(20, &(placed.node + 1).to_le_bytes());
    set(24, &node.meta.uid.to_le_bytes());
    set(28, &node.meta.gid.to_le_bytes());
    set(32, &node.meta.mtime_s.to_le_bytes());
    set(40, &node.meta.mtime_ns.to_le_bytes());
    set(44, &placed.links.to_le_bytes());
    inode
}

/// How many bytes the attributes take, header included; a multiple of 4.
pub fn xattr_bytes(xattrs: &[(Vec<u8>, Vec<u8>)]) -> u64 {
    if xattrs.is_empty() {
        return 0;
    }
    let entry = |(name, value): &(Vec<u8>, Vec<u8>)| {
        let (_, suffix) = split_name(name);
        (4 + suffix.len() + value.len()).next_multiple_of(XATTR_ALIGN)
    };
    (XATTR_HEADER_BYTES + xattrs.iter().map(entry).sum::<usize>()) as u64
}

pub fn encode_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    if xattrs.is_empty() {
        return Vec::new();
    }
    let mut bytes = vec![0; XATTR_HEADER_BYTES];
    for (name, value) in xattrs {
        let (index, suffix) = split_name(name);
        bytes.push(suffix.len() as u8);
        bytes.push(index);
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend(suffix);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(XATTR_ALIGN), 0);
    }
    bytes
}

/// The well-known beginning of a name becomes a number.
fn split_name(name: &[u8]) -> (u8, &[u8]) {
    const PREFIXES: [(u8, &[u8]); 5] = [
        (1, b"user."),
        (2, b"system.posix_acl_access"),
        (3, b"system.posix_acl_default"),
        (4, b"trusted."),
        (6, b"security."),
    ];
    let split = |(index, prefix): &(u8, &[u8])| Some((*index, name.strip_prefix(*prefix)?));
    PREFIXES.iter().find_map(split).unwrap_or((0, name))
}
