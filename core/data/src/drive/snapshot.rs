//! A drive as it was at a version: reading and listing.

use super::{Entry, files, path};
use crate::bee::{self, KeyRange};
use crate::blobs::{Blobs, ByteFeed, Reader};
use crate::error::DataError;
use crate::feed::Feed;
use std::ops::Range;

/// How many symbolic links are followed, as in `hyperdrive`.
const MAX_LINKS: usize = 16;

pub struct Snapshot<'a, D, B> {
    db: bee::Snapshot<'a, D>,
    blobs: &'a Blobs<B>,
}

impl<D, B> Clone for Snapshot<'_, D, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D, B> Copy for Snapshot<'_, D, B> {}

/// A file that differs between two versions.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub left: Option<Entry>,
    pub right: Option<Entry>,
}

impl<'a, D: Feed, B: ByteFeed> Snapshot<'a, D, B> {
    pub(super) fn new(db: bee::Snapshot<'a, D>, blobs: &'a Blobs<B>) -> Self {
        Snapshot { db, blobs }
    }

    pub fn version(&self) -> u64 {
        self.db.version()
    }

    pub fn blobs(&self) -> &'a Blobs<B> {
        self.blobs
    }

    pub fn entry(&self, path: &str) -> Result<Option<Entry>, DataError> {
        let found = self.db.get(&files().key(path::of_file(path)?.as_bytes()))?;
        found.map(|found| Entry::decode(&found)).transpose()
    }

    /// What symbolic links lead to. As in `hyperdrive`, a link that is not absolute is seen from itself as if
    /// it were a folder: `../b` is beside it.
    pub fn follow(&self, path: &str) -> Result<Option<Entry>, DataError> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let Some(entry) = self.entry(&path)? else { return Ok(None) };
            let Some(link) = entry.file.linkname.as_ref().filter(|link| !link.is_empty()) else {
                return Ok(Some(entry));
            };
            path = path::resolve(&entry.path, link)?;
        }
        Err(DataError::Malformed("symbolic links that lead in a circle"))
    }

    /// The contents of a file; `None` if there is none, or it is a symbolic link.
    pub fn get(&self, path: &str) -> Result<Option<Vec<u8>>, DataError> {
        let blob = self.entry(path)?.and_then(|entry| entry.file.blob);
        blob.map(|blob| self.blobs.get(&blob)).transpose()
    }

    /// Reads a part of a file block by block.
    pub fn reader(&self, path: &str, bytes: Range<u64>) -> Result<Option<Reader<'a, B>>, DataError> {
        let blob = self.entry(path)?.and_then(|entry| entry.file.blob);
        Ok(blob.map(|blob| self.blobs.reader(&blob, bytes)))
    }

    /// All files below a folder, in the order of their names; that of the root is `/`.
    pub fn list(&self, folder: &str) -> Result<Entries<'a, D>, DataError> {
        let folder = path::of_folder(folder)?;
        Ok(Entries { range: self.db.range(below(&folder, "/")) })
    }

    /// The names right below a folder, and of each the first entry.
    pub fn readdir(&self, folder: &str) -> Result<Shallow<'a, D>, DataError> {
        Ok(Shallow { db: self.db, folder: path::of_folder(folder)?, after: "/".into(), last: None })
    }

    /// Where this and another version of the drive differ, below a folder.
    pub fn diff(
        &self,
        other: &Snapshot<'a, D, B>,
        folder: &str,
    ) -> Result<impl Iterator<Item = Result<Change, DataError>> + use<'a, D, B>, DataError> {
        let folder = path::of_folder(folder)?;
        let entry = |side: Option<bee::Entry>| side.map(|side| Entry::decode(&side)).transpose();
        Ok(self.db.diff(&other.db, below(&folder, "/")).map(move |change| {
            let bee::Change { left, right } = change?;
            Ok(Change { left: entry(left)?, right: entry(right)? })
        }))
    }
}

/// The keys below a folder that come after a name. `0` is what follows `/`.
fn below(folder: &str, after: &str) -> KeyRange {
    let key = |end: &str| files().key([folder, end].concat().as_bytes());
    KeyRange::all().gt(&key(after)).lt(&key("0"))
}

pub struct Entries<'a, D> {
    range: bee::Range<'a, D>,
}

impl<D: Feed> Iterator for Entries<'_, D> {
    type Item = Result<Entry, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.range.next()?;
        Some(found.and_then(|found| Entry::decode(&found)))
    }
}

/// The names right below a folder. What is within them is not read.
pub struct Shallow<'a, D> {
    db: bee::Snapshot<'a, D>,
    folder: String,
    after: String,
    last: Option<String>,
}

impl<D: Feed> Shallow<'_, D> {
    fn step(&mut self) -> Result<Option<(String, Entry)>, DataError> {
        loop {
            let Some(found) = self.db.peek(below(&self.folder, &self.after))? else { return Ok(None) };
            let entry = Entry::decode(&found)?;
            let name = entry.path.get(self.folder.len() + 1..).unwrap_or_default();
            let (name, folder) = name.split_once('/').map_or((name, false), |(name, _)| (name, true));
            let name = name.to_owned();
            self.after = format!("/{name}{}", if folder { "0" } else { "" });
            if self.last.as_ref() != Some(&name) {
                self.last = Some(name.clone());
                return Ok(Some((name, entry)));
            }
        }
    }
}

impl<D: Feed> Iterator for Shallow<'_, D> {
    type Item = Result<(String, Entry), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}
