//! One layer: a tar stream whose entries go into the [`Tree`] and whose file contents go into the spool.
//!
//! Invariant: the stream is not trusted. Lengths are bounded before anything is kept, a stream cut short is an
//! error, and no entry can name anything outside the image's root.

use super::{
    decompress::Bomb,
    error::{EntryFault, ImageError},
    limits::Limits,
    pax::Pax,
    tree::{Kind, Meta, Tree, lossy},
};
use std::io::{self, Read, Write};
use tar::{EntryType, Header};

const TAR_BLOCK_BYTES: u64 = 512;
/// An extended header holds the attributes of one file; more than this is an attack on our memory.
const MAX_EXTENDED_BYTES: u64 = 1 << 20;
/// The device nodes that every Linux has. The guest makes its own, so those of an image are left out.
const STANDARD_DEVICES: [(&str, u32, u32); 9] = [
    ("dev/null", 1, 3),
    ("dev/zero", 1, 5),
    ("dev/full", 1, 7),
    ("dev/random", 1, 8),
    ("dev/urandom", 1, 9),
    ("dev/tty", 5, 0),
    ("dev/console", 5, 1),
    ("dev/ptmx", 5, 2),
    ("dev/pts/ptmx", 5, 2),
];

/// Where file contents go: appended, and found again by their offset.
pub struct Spool<W> {
    pub writer: W,
    pub length: u64,
}

/// What was left out of an image, for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Standard device nodes below /dev; the guest has its own.
    pub devices: u64,
    /// Extended attributes that only another host or overlay could read.
    pub xattrs: u64,
}

/// Reads one layer into the tree.
pub struct LayerReader<'a, R: Read, W> {
    pub stream: &'a mut R,
    pub tree: &'a mut Tree,
    pub spool: &'a mut Spool<W>,
    pub limits: &'a Limits,
    /// The layer's digest, for messages.
    pub name: &'a str,
    /// Entries so far, over all layers.
    pub entries: &'a mut u64,
    pub left_out: &'a mut LeftOut,
}

/// What came before an entry to describe it.
#[derive(Default)]
struct Before {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Pax,
}

/// An entry, put together from its header and what came before it.
struct Entry {
    kind: EntryType,
    path: Vec<u8>,
    link: Vec<u8>,
    size: u64,
    meta: Meta,
    device: (u32, u32),
}

impl<R: Read, W: Write> LayerReader<'_, R, W> {
    pub fn read(mut self) -> Result<(), ImageError> {
        self.tree.begin_layer();
        let mut before = Before::default();
        while let Some(header) = self.next_header()? {
            let kind = header.entry_type();
            let size = or_blank(header.entry_size(), &header.as_old().size)
                .map_err(|_| self.damaged("a header has no valid size"))?;
            match kind {
                EntryType::XHeader => {
                    let data = self.extended(size)?;
                    let parsed = Pax::parse(&data);
                    before.pax = parsed.ok_or_else(|| self.fault(b"", EntryFault::BadExtendedHeader))?;
                }
                EntryType::GNULongName => before.long_path = Some(until_nul(self.extended(size)?)),
                EntryType::GNULongLink => before.long_link = Some(until_nul(self.extended(size)?)),
                // Comments of the archive as a whole; what they may say of entries is not used in images.
                EntryType::XGlobalHeader => self.skip(padded(size))?,
                _ => {
                    let entry = self.entry(&header, size, std::mem::take(&mut before))?;
                    self.take(entry)?;
                }
            }
            self.check_totals()?;
        }
        Ok(())
    }

    /// The next header, or `None` at the archive's end: an empty block, or just the end of the stream.
    fn next_header(&mut self) -> Result<Option<Header>, ImageError> {
        let mut block = [0; TAR_BLOCK_BYTES as usize];
        let mut filled = 0;
        while filled < block.len() {
            match self.stream.read(&mut block[filled..]).map_err(|error| self.read_error(error))? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(self.damaged("it ends within a header")),
                count => filled += count,
            }
        }
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let sum = |bytes: &[u8]| bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
        let expected = sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..]);
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        match header.cksum() {
            Ok(found) if found == expected => Ok(Some(header)),
            _ => Err(self.damaged("a header's checksum is wrong; it is not a tar, or a changed one")),
        }
    }

    fn entry(&self, header: &Header, header_size: u64, before: Before) -> Result<Entry, ImageError> {
        let pax = before.pax;
        let path = pax.path.or(before.long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax.link_path.or(before.long_link);
        let link =
            link.or_else(|| header.link_name_bytes().map(|link| link.into_owned())).unwrap_or_default();
        let mut kind = header.entry_type();
        if kind.is_gnu_sparse() || pax.is_sparse {
            return Err(self.fault(&path, EntryFault::Sparse));
        }
        if kind.as_byte() == 0 || kind == EntryType::Regular || kind == EntryType::Continuous {
            // Before POSIX, a directory was a file whose name ends with a slash.
            kind = if path.ends_with(b"/") { EntryType::Directory } else { EntryType::Regular };
        }
        for bytes in [&path, &link] {
            let limit = self.limits.path_bytes;
            if bytes.len() as u64 > limit {
                return Err(self.over(&path, "the length of a path", limit));
            }
        }
        let damaged = |_| self.damaged(&format!("the header of `{}` cannot be understood", lossy(&path)));
        let narrow = |id: u64| u32::try_from(id).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        let (mtime_s, mtime_ns) = match pax.mtime {
            Some(mtime) => mtime,
            None => (
                i64::try_from(or_blank(header.mtime(), &header.as_old().mtime).map_err(damaged)?)
                    .unwrap_or(i64::MAX),
                0,
            ),
        };
        let uid = pax
            .uid
            .map_or_else(|| or_blank(header.uid(), &header.as_old().uid).and_then(narrow), Ok)
            .map_err(damaged)?;
        let gid = pax
            .gid
            .map_or_else(|| or_blank(header.gid(), &header.as_old().gid).and_then(narrow), Ok)
            .map_err(damaged)?;
        let mode = (or_blank(header.mode(), &header.as_old().mode).map_err(damaged)? & 0o7777) as u16;
        let meta = Meta { mode, uid, gid, mtime_s, mtime_ns, xattrs: pax.xattrs };
        let major = header.device_major().ok().flatten().unwrap_or_default();
        let minor = header.device_minor().ok().flatten().unwrap_or_default();
        // Only files have content; some archivers give links the size of what they point at.
        let size = if kind == EntryType::Regular { pax.size.unwrap_or(header_size) } else { 0 };
        Ok(Entry { kind, path, link, size, meta, device: (major, minor) })
    }

    fn take(&mut self, mut entry: Entry) -> Result<(), ImageError> {
        let path = std::mem::take(&mut entry.path);
        if self.white_out(&path, &entry)? {
            return self.skip(padded(entry.size));
        }
        self.keep_known_xattrs(&path, &mut entry.meta)?;
        let put = match entry.kind {
            EntryType::Regular => {
                if entry.size > self.limits.file_bytes {
                    return Err(self.over(&path, "the size of a file", self.limits.file_bytes));
                }
                let offset = self.spool.length;
                self.spool_content(&path, entry.size)?;
                self.tree.put_leaf(&path, entry.meta, Kind::File { offset, size: entry.size })
            }
            EntryType::Directory => self.tree.put_directory(&path, entry.meta),
            EntryType::Symlink if entry.link.is_empty() => Err(EntryFault::BadName),
            EntryType::Symlink => self.tree.put_leaf(&path, entry.meta, Kind::Symlink(entry.link.into())),
            EntryType::Link => self.tree.put_hard_link(&path, &entry.link),
            EntryType::Fifo => self.tree.put_leaf(&path, entry.meta, Kind::Fifo),
            EntryType::Char | EntryType::Block => self.refuse_device(&path, entry.kind, entry.device),
            other => Err(EntryFault::UnknownType(other.as_byte())),
        };
        put.map_err(|fault| self.fault(&path, fault))
    }

    /// Handles the marks by which a layer removes what earlier ones have (OCI image-spec, "Whiteouts").
    fn white_out(&mut self, path: &[u8], entry: &Entry) -> Result<bool, ImageError> {
        if entry.kind == EntryType::Directory {
            return Ok(false);
        }
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&path[..=slash], &path[slash + 1..]),
            None => (&b"./"[..], path),
        };
        let Some(removed) = name.strip_prefix(b".wh.") else { return Ok(false) };
        let result = match removed {
            b".wh..opq" => self.tree.make_opaque(parent),
            // Other marks with two prefixes are notes that AUFS made for itself.
            _ if removed.starts_with(b".wh.") => Ok(()),
            b"" | b"." | b".." => Err(EntryFault::BadName),
            _ => self.tree.white_out(&[parent, removed].concat()),
        };
        result.map_err(|fault| self.fault(path, fault))?;
        Ok(true)
    }

    fn refuse_device(
        &mut self,
        path: &[u8],
        kind: EntryType,
        (major, minor): (u32, u32),
    ) -> Result<(), EntryFault> {
        let names = super::tree::components(path)?;
        let plain = names.join(&b'/');
        let is_standard =
            |(name, a, b): &(&str, u32, u32)| name.as_bytes() == plain && (*a, *b) == (major, minor);
        if kind == EntryType::Char && STANDARD_DEVICES.iter().any(is_standard) {
            self.left_out.devices += 1;
            return Ok(());
        }
        let class = if kind == EntryType::Char { "character" } else { "block" };
        Err(EntryFault::DeviceNode { class, major, minor })
    }

    /// Keeps the attributes that mean something inside the guest, sorted; counts the others.
    fn keep_known_xattrs(&mut self, path: &[u8], meta: &mut Meta) -> Result<(), ImageError> {
        let before = meta.xattrs.len();
        meta.xattrs.retain(|(name, _)| xattr_is_kept(name));
        self.left_out.xattrs += (before - meta.xattrs.len()) as u64;
        meta.xattrs.sort();
        meta.xattrs.dedup_by(|a, b| a.0 == b.0);
        let limit = self.limits.xattr_bytes.min(super::erofs::MAX_XATTR_BYTES);
        let total: u64 = meta.xattrs.iter().map(|(name, value)| (name.len() + value.len() + 8) as u64).sum();
        let longest = meta.xattrs.iter().map(|(_, value)| value.len() as u64).max().unwrap_or_default();
        if total > limit || longest > u64::from(u16::MAX) {
            return Err(self.over(path, "the size of extended attributes", limit));
        }
        Ok(())
    }

    fn spool_content(&mut self, path: &[u8], size: u64) -> Result<(), ImageError> {
        let mut buffer = [0; 16 << 10];
        let mut left = size;
        while left > 0 {
            let most = left.min(buffer.len() as u64) as usize;
            let count = self.stream.read(&mut buffer[..most]).map_err(|error| self.read_error(error))?;
            if count == 0 {
                return Err(self.damaged(&format!("it ends within `{}`", lossy(path))));
            }
            let written = self.spool.writer.write_all(&buffer[..count]);
            written.map_err(|error| ImageError::Write { place: "the unpacked image", error })?;
            self.spool.length += count as u64;
            left -= count as u64;
        }
        // After the last entry the padding may be missing: `umoci insert` leaves it out, and all tools take that.
        let padding = &mut self.stream.by_ref().take(padded(size) - size);
        io::copy(padding, &mut io::sink()).map(drop).map_err(|error| self.read_error(error))
    }

    fn extended(&mut self, size: u64) -> Result<Vec<u8>, ImageError> {
        if size > MAX_EXTENDED_BYTES {
            return Err(self.over(b"", "the size of an extended header", MAX_EXTENDED_BYTES));
        }
        let mut data = Vec::new();
        self.stream.by_ref().take(size).read_to_end(&mut data).map_err(|error| self.read_error(error))?;
        if (data.len() as u64) < size {
            return Err(self.damaged("it ends within an extended header"));
        }
        self.skip(padded(size) - size)?;
        Ok(data)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), ImageError> {
        let skipped = io::copy(&mut self.stream.by_ref().take(bytes), &mut io::sink());
        match skipped.map_err(|error| self.read_error(error))? {
            count if count < bytes => Err(self.damaged("it ends within an entry")),
            _ => Ok(()),
        }
    }

    fn check_totals(&mut self) -> Result<(), ImageError> {
        *self.entries += 1;
        let limits = self.limits;
        if (*self.entries).max(self.tree.nodes().len() as u64) > limits.entries {
            return Err(self.over(b"", "the number of files", limits.entries));
        }
        if self.tree.metadata_bytes() > limits.metadata_bytes {
            return Err(self.over(b"", "the size of all names and attributes", limits.metadata_bytes));
        }
        Ok(())
    }

    fn fault(&self, path: &[u8], fault: EntryFault) -> ImageError {
        ImageError::BadEntry { layer: self.name.to_owned(), path: lossy(path), fault }
    }

    fn over(&self, path: &[u8], what: &'static str, limit: u64) -> ImageError {
        let place = match path {
            b"" => format!("layer {}", self.name),
            path => format!("layer {}, entry `{}`", self.name, lossy(path)),
        };
        ImageError::OverLimit { place, what, limit }
    }

    fn damaged(&self, why: &str) -> ImageError {
        ImageError::BadLayer { layer: self.name.to_owned(), why: why.to_owned() }
    }

    fn read_error(&self, error: io::Error) -> ImageError {
        stream_error(self.name, error)
    }
}

/// Tells apart what is wrong with the packed stream from what is wrong with the disk or the network that it comes from.
pub fn stream_error(layer: &str, error: io::Error) -> ImageError {
    if let Some(bomb) = error.get_ref().and_then(|inner| inner.downcast_ref::<Bomb>()) {
        let place = format!("layer {layer}");
        return match *bomb {
            Bomb::Ratio { limit } => {
                ImageError::OverLimit { place, what: "the number of bytes per packed byte", limit }
            }
            Bomb::Size { limit } => {
                ImageError::OverLimit { place, what: "the size of the unpacked image", limit }
            }
        };
    }
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            ImageError::BadLayer { layer: layer.to_owned(), why: error.to_string() }
        }
        io::ErrorKind::UnexpectedEof => ImageError::BadLayer {
            layer: layer.to_owned(),
            why: "its compressed data is cut short".to_owned(),
        },
        _ => ImageError::Read { place: format!("layer {layer}"), error },
    }
}

/// A number that was left out is 0, as other readers have it.
fn or_blank<N: Default>(parsed: io::Result<N>, field: &[u8]) -> io::Result<N> {
    if field.iter().all(|b| matches!(b, 0 | b' ')) { Ok(N::default()) } else { parsed }
}

/// Overlay's own marks would change what the guest sees; other namespaces mean nothing to its kernel.
fn xattr_is_kept(name: &[u8]) -> bool {
    let known = [&b"user."[..], b"security.", b"trusted."]
        .iter()
        .any(|p| name.len() > p.len() && name.starts_with(p));
    let overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    let acl = name == b"system.posix_acl_access" || name == b"system.posix_acl_default";
    (known && !overlay || acl) && name.len() <= 255 && !name.contains(&0)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn padded(size: u64) -> u64 {
    size.div_ceil(TAR_BLOCK_BYTES).saturating_mul(TAR_BLOCK_BYTES)
}
