//! A drive: files and folders with their whole history, in the format of Hyperdrive 13.
//!
//! The names are the keys of a bee, under the sub `files`; what each holds is JSON, and leads to a blob in a
//! second core. That core's key follows from the manifest of the bee's core ([`contents_manifest`]) or, in
//! drives that predate manifests, stands in the bee's header.
//!
//! Invariants: as for bees, what fails for want of a block has changed nothing but, where a blob was written,
//! the core of contents, in which it then has no name; a name or an entry from outside is checked when it is
//! used.

mod entry;
mod mirror;
mod path;
mod purge;
mod snapshot;

pub use entry::{Entry, File};
pub use mirror::{Folder, Found, Kind, Report, mirror_from, mirror_to};
pub use purge::{Keep, Purged};
pub use snapshot::{Change, Entries, Shallow, Snapshot};

use crate::bee::{self, Bee, Metadata, Options, Sub};
use crate::blobs::{BlobId, Blobs, ByteFeed, Writer};
use crate::crypto::{self, Hash};
use crate::error::DataError;
use crate::feed::{Feed, FeedMut};
use crate::manifest::{Manifest, Signer};

/// The sub of the bee in which the files are.
pub(crate) fn files() -> Sub {
    Sub::new(b"files")
}

/// The manifest of the core with the contents, from that of the drive's core and its key. `None` for the old
/// manifests that do not have one; there the header says the key.
pub fn contents_manifest(manifest: &Manifest, key: &Hash) -> Option<Manifest> {
    if manifest.version < 1 {
        return None;
    }
    let label = crypto::namespace(b"hyperdrive", 0);
    let signer = |signer: &Signer| Signer {
        namespace: crypto::hash(&[&label, key, &signer.namespace]),
        public_key: signer.public_key,
    };
    Some(Manifest {
        version: manifest.version,
        allow_patch: manifest.allow_patch,
        quorum: manifest.quorum,
        signers: manifest.signers.iter().map(signer).collect(),
        prologue: None,
        linked: None,
        user_data: None,
    })
}

/// The key of the core with the contents. `manifest` is that of the drive's core, unless that is a core as
/// before manifests.
pub fn contents_key(
    header: &bee::Header,
    manifest: Option<&Manifest>,
    key: &Hash,
) -> Result<Hash, DataError> {
    let named = header.metadata.as_ref().and_then(|metadata| metadata.content_feed.as_ref());
    if let Some(named) = named {
        let key = named.first_chunk::<32>().copied();
        return key.ok_or(DataError::Malformed("a drive whose header has a cut key of its contents"));
    }
    let manifest = manifest.and_then(|manifest| contents_manifest(manifest, key));
    manifest
        .map(|manifest| manifest.key())
        .ok_or(DataError::Malformed("a drive that does not say where its contents are"))
}

/// The bee's core `D`, and the core of contents `B`.
#[derive(Debug)]
pub struct Drive<D, B> {
    pub(crate) db: Bee<D>,
    pub(crate) blobs: Blobs<B>,
}

impl<D: Feed, B: ByteFeed> Drive<D, B> {
    /// A drive on its two cores. `content_feed` goes into the header of a drive that predates manifests.
    pub fn new(db: D, blobs: B, content_feed: Option<Hash>) -> Self {
        let metadata = Metadata { content_feed: content_feed.map(|key| key.to_vec()), user_data: None };
        let options = Options { metadata: Some(metadata), ..Options::default() };
        Drive { db: Bee::with(db, options), blobs: Blobs::new(blobs) }
    }

    pub fn db(&self) -> &Bee<D> {
        &self.db
    }

    pub fn blobs(&self) -> &Blobs<B> {
        &self.blobs
    }

    pub fn db_mut(&mut self) -> &mut Bee<D> {
        &mut self.db
    }

    pub fn blobs_mut(&mut self) -> &mut Blobs<B> {
        &mut self.blobs
    }

    pub fn into_feeds(self) -> (D, B) {
        (self.db.into_feed(), self.blobs.into_feed())
    }

    pub fn version(&self) -> u64 {
        self.db.version()
    }

    /// The drive as it is now.
    pub fn head(&self) -> Snapshot<'_, D, B> {
        Snapshot::new(self.db.head(), &self.blobs)
    }

    /// The drive as it was at a version. The contents of files that were purged since are gone.
    pub fn checkout(&self, version: u64) -> Result<Snapshot<'_, D, B>, DataError> {
        Ok(Snapshot::new(self.db.checkout(version)?, &self.blobs))
    }

    pub fn entry(&self, path: &str) -> Result<Option<Entry>, DataError> {
        self.head().entry(path)
    }

    /// The contents of a file; `None` if there is none, or it is a symbolic link.
    pub fn get(&self, path: &str) -> Result<Option<Vec<u8>>, DataError> {
        self.head().get(path)
    }
}

impl<D: FeedMut, B: ByteFeed + FeedMut> Drive<D, B> {
    pub fn put(&mut self, path: &str, contents: &[u8]) -> Result<u64, DataError> {
        self.put_with(path, contents, false, None)
    }

    /// `metadata` is JSON.
    pub fn put_with(
        &mut self,
        path: &str,
        contents: &[u8],
        executable: bool,
        metadata: Option<&str>,
    ) -> Result<u64, DataError> {
        let path = path::of_file(path)?;
        let metadata = entry::metadata(metadata)?;
        let blob = Some(self.blobs.put(contents)?);
        self.put_entry(&path, &File { executable, linkname: None, blob, metadata })
    }

    pub fn put_entry(&mut self, path: &str, file: &File) -> Result<u64, DataError> {
        self.db.put(&files().key(path::of_file(path)?.as_bytes()), &file.encode()?)
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<u64, DataError> {
        self.put_entry(path, &File { linkname: Some(target.to_owned()), ..File::default() })
    }

    /// Answers whether there was such a file.
    pub fn del(&mut self, path: &str) -> Result<bool, DataError> {
        Ok(self.db.del(&files().key(path::of_file(path)?.as_bytes()))?.is_some())
    }

    /// Writes the contents of a file piece by piece. [`Upload::finish`] gives it its name.
    pub fn writer(&mut self) -> Upload<'_, D, B> {
        Upload { db: &mut self.db, writer: self.blobs.writer() }
    }

    /// Several changes, of which all become visible at once. Contents are written at once, without a name.
    pub fn batch(&mut self) -> Batch<'_, D, B> {
        Batch { db: self.db.batch(), blobs: &mut self.blobs }
    }

    /// Makes a file what it was at a version. Answers whether it was there then.
    pub fn restore(&mut self, path: &str, version: u64) -> Result<bool, DataError> {
        let Some(entry) = self.checkout(version)?.entry(path)? else { return Ok(false) };
        self.check_contents(&entry.file)?;
        self.put_entry(&entry.path, &entry.file)?;
        Ok(true)
    }

    /// Makes a deleted file what it was before. Answers whether there ever was one.
    pub fn undelete(&mut self, path: &str) -> Result<bool, DataError> {
        let key = files().key(path::of_file(path)?.as_bytes());
        if self.db.get(&key)?.is_some() {
            return Ok(true);
        }
        let mut found = None;
        for change in self.db.head().history(1).rev() {
            if let bee::Written::Put(entry) = change?
                && entry.key() == key
            {
                found = Some(Entry::decode(&entry)?);
                break;
            }
        }
        let Some(entry) = found else { return Ok(false) };
        self.check_contents(&entry.file)?;
        self.put_entry(&entry.path, &entry.file)?;
        Ok(true)
    }

    /// Contents that were purged fail here, with the block that is not there.
    fn check_contents(&self, file: &File) -> Result<(), DataError> {
        let Some(blob) = &file.blob else { return Ok(()) };
        for blocks in self.blobs.blocks(blob)? {
            if let Some(first) = blocks.clone().next() {
                self.blobs.feed().get(first)?;
            }
        }
        Ok(())
    }
}

/// A file that is being written.
pub struct Upload<'a, D, B> {
    db: &'a mut Bee<D>,
    writer: Writer<'a, B>,
}

impl<D: FeedMut, B: ByteFeed + FeedMut> Upload<'_, D, B> {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.writer.write(bytes)
    }

    pub fn finish(self, path: &str, executable: bool) -> Result<BlobId, DataError> {
        let path = path::of_file(path)?;
        let id = self.writer.finish()?;
        let file = File { executable, blob: Some(id), ..File::default() };
        self.db.put(&files().key(path.as_bytes()), &file.encode()?)?;
        Ok(id)
    }
}

pub struct Batch<'a, D: FeedMut, B> {
    db: bee::Batch<'a, D>,
    blobs: &'a mut Blobs<B>,
}

impl<D: FeedMut, B: ByteFeed + FeedMut> Batch<'_, D, B> {
    pub fn put(&mut self, path: &str, contents: &[u8]) -> Result<u64, DataError> {
        let path = path::of_file(path)?;
        let blob = Some(self.blobs.put(contents)?);
        self.put_entry(&path, &File { blob, ..File::default() })
    }

    pub fn put_entry(&mut self, path: &str, file: &File) -> Result<u64, DataError> {
        self.db.put(&files().key(path::of_file(path)?.as_bytes()), &file.encode()?)
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<u64, DataError> {
        self.put_entry(path, &File { linkname: Some(target.to_owned()), ..File::default() })
    }

    pub fn del(&mut self, path: &str) -> Result<bool, DataError> {
        self.db.del(&files().key(path::of_file(path)?.as_bytes()))
    }

    pub fn entry(&mut self, path: &str) -> Result<Option<Entry>, DataError> {
        let found = self.db.get(&files().key(path::of_file(path)?.as_bytes()))?;
        found.map(|found| Entry::decode(&found)).transpose()
    }

    pub fn flush(self) -> Result<u64, DataError> {
        self.db.flush()
    }
}
