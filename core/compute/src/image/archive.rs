//! The table of contents of a tar that holds an image (oci-archive, docker-archive), so that its parts can be
//! read in place.

use super::{error::ImageError, pax::Pax, tree::components};
use std::{
    collections::HashMap,
    io::{self, Read, Seek},
};
use tar::{Archive, EntryType};

/// An image has at most a few hundred parts.
const MAX_MEMBERS: usize = 100_000;
const MAX_NAME_BYTES: u64 = 64 << 10;
/// `docker save` of old wrote a layer that two images share as a symbolic link.
const MAX_LINKS_FOLLOWED: usize = 8;

/// Where a part lies in the archive's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub offset: u64,
    pub size: u64,
}

#[derive(Clone, Debug)]
enum Found {
    File(Member),
    Link(Vec<u8>),
}

/// Parts by their path.
#[derive(Debug, Default)]
pub struct Members {
    by_path: HashMap<Vec<u8>, Found>,
}

impl Members {
    /// Reads the headers of a plain tar and skips the contents.
    pub fn read(file: impl Read + Seek) -> Result<Members, ImageError> {
        let damaged = |error: io::Error| match error.kind() {
            io::ErrorKind::Other | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                ImageError::BadDocument { document: "the archive".to_owned(), why: error.to_string() }
            }
            _ => ImageError::Read { place: "the archive".to_owned(), error },
        };
        let mut archive = Archive::new(file);
        let mut members = Members::default();
        let (mut long_path, mut pax) = (None, Pax::default());
        for entry in archive.entries_with_seek().map_err(damaged)?.raw(true) {
            let mut entry = entry.map_err(damaged)?;
            let kind = entry.header().entry_type();
            let size = entry.size();
            let mut extended = || {
                let mut data = Vec::new();
                entry.by_ref().take(MAX_NAME_BYTES).read_to_end(&mut data).map_err(damaged)?;
                Ok::<_, ImageError>(data)
            };
            match kind {
                EntryType::GNULongName => {
                    let name = extended()?;
                    long_path = Some(name.split(|b| *b == 0).next().unwrap_or_default().to_vec());
                    continue;
                }
                EntryType::XHeader => {
                    pax = Pax::parse(&extended()?).unwrap_or_default();
                    continue;
                }
                EntryType::XGlobalHeader => continue,
                _ => {}
            }
            let Pax { path, size: pax_size, .. } = std::mem::take(&mut pax);
            if pax_size.is_some_and(|pax_size| pax_size != size) {
                let what = "a part of the archive".to_owned();
                return Err(ImageError::Unsupported { what, found: "more than 8 GiB".to_owned() });
            }
            let path = path.or(long_path.take()).unwrap_or_else(|| entry.path_bytes().into_owned());
            let found = match kind {
                EntryType::Symlink => Found::Link(entry.link_name_bytes().unwrap_or_default().into_owned()),
                kind if kind.is_file() => Found::File(Member { offset: entry.raw_file_position(), size }),
                _ => continue,
            };
            // Parts that no image asks for may have any name.
            if let Ok(names) = components(&path) {
                members.by_path.insert(names.join(&b'/'), found);
            }
            if members.by_path.len() > MAX_MEMBERS {
                let place = "the archive".to_owned();
                return Err(ImageError::OverLimit {
                    place,
                    what: "the number of parts",
                    limit: MAX_MEMBERS as u64,
                });
            }
        }
        Ok(members)
    }

    pub fn find(&self, path: &str) -> Result<Member, ImageError> {
        let missing = || ImageError::Missing { what: format!("`{path}` in its archive") };
        let mut key = components(path.as_bytes()).map_err(|_| missing())?.join(&b'/');
        for _ in 0..MAX_LINKS_FOLLOWED {
            match self.by_path.get(&key).ok_or_else(missing)? {
                Found::File(member) => return Ok(*member),
                Found::Link(target) => key = beside(&key, target).ok_or_else(missing)?,
            }
        }
        Err(missing())
    }
}

/// Where a relative link leads from its own place; nothing when it leaves the archive.
fn beside(link: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut names: Vec<&[u8]> = link.split(|b| *b == b'/').collect();
    names.pop();
    for name in target.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    Some(names.join(&b'/'))
}
