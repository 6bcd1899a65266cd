//! A drive to a folder, and a folder to a drive.
//!
//! Names in a drive come from outside. Those that could lead out of a folder, or mean something else on
//! another system, are not written but told in the report. What a folder must do itself stands at [`Folder`].

use super::{Drive, File, path};
use crate::blobs::{BlobId, ByteFeed};
use crate::error::DataError;
use crate::feed::{Feed, FeedMut};
use std::collections::BTreeMap;

/// Files on a disk, or in a test.
///
/// An implementation must keep to its folder whatever it is asked: a path is plain (no `..`), but a part of it
/// may be a symbolic link that an earlier call made, and that must not be followed.
pub trait Folder {
    /// Everything but folders, below the whole folder.
    fn list(&mut self) -> Result<Vec<Found>, DataError>;

    /// Reads from an offset on; at the end, nothing.
    fn read(&mut self, path: &str, offset: u64, into: &mut [u8]) -> Result<usize, DataError>;

    /// Makes or replaces a file, whole or not at all: `next` gives the contents piece by piece.
    fn write(
        &mut self,
        path: &str,
        executable: bool,
        next: &mut dyn FnMut() -> Result<Option<Vec<u8>>, DataError>,
    ) -> Result<(), DataError>;

    fn symlink(&mut self, path: &str, target: &str) -> Result<(), DataError>;

    /// Removes a file, and the folders that are empty then.
    fn remove(&mut self, path: &str) -> Result<(), DataError>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Like that in a drive: `/a/b`.
    pub path: String,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File { executable: bool, bytes: u64 },
    Link { target: String },
}

/// What a mirroring did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
    pub same: u64,
    /// Names that cannot be in a folder.
    pub refused: Vec<String>,
}

/// The files of a folder, by their names.
fn listed(folder: &mut dyn Folder) -> Result<BTreeMap<String, Kind>, DataError> {
    Ok(folder.list()?.into_iter().map(|found| (found.path, found.kind)).collect())
}

/// Is the file in the folder what the drive holds? Contents are compared only where all else is the same.
fn is_same<B: ByteFeed>(
    blobs: &crate::blobs::Blobs<B>,
    file: &File,
    path: &str,
    kind: &Kind,
    folder: &mut dyn Folder,
) -> Result<bool, DataError> {
    match (kind, &file.linkname, &file.blob) {
        (Kind::Link { target }, Some(linkname), _) => Ok(target == linkname),
        (Kind::File { executable, bytes }, None, blob) => {
            let length = blob.map_or(Ok(0), |blob| blobs.byte_length(&blob))?;
            if *executable != file.executable || *bytes != length {
                return Ok(false);
            }
            blob.map_or(Ok(true), |blob| same_contents(blobs, &blob, path, folder))
        }
        _ => Ok(false),
    }
}

fn same_contents<B: ByteFeed>(
    blobs: &crate::blobs::Blobs<B>,
    blob: &BlobId,
    path: &str,
    folder: &mut dyn Folder,
) -> Result<bool, DataError> {
    let mut offset = 0;
    let mut buffer = Vec::new();
    for chunk in blobs.reader(blob, 0..u64::MAX) {
        let chunk = chunk?;
        buffer.resize(chunk.len(), 0);
        if read_full(folder, path, offset, &mut buffer)? != chunk.len() || buffer != chunk {
            return Ok(false);
        }
        offset += chunk.len() as u64;
    }
    Ok(true)
}

fn read_full(folder: &mut dyn Folder, path: &str, offset: u64, into: &mut [u8]) -> Result<usize, DataError> {
    let mut done = 0;
    while done < into.len() {
        match folder.read(path, offset + done as u64, &mut into[done..])? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

/// Makes a folder what the drive is at a version. With `prune`, what the drive does not have is removed there.
pub fn mirror_to<D: Feed, B: ByteFeed>(
    drive: &super::Snapshot<'_, D, B>,
    folder: &mut dyn Folder,
    prune: bool,
) -> Result<Report, DataError> {
    let (mut report, mut there) = (Report::default(), listed(folder)?);
    for entry in drive.list("/")? {
        let super::Entry { path, file, .. } = entry?;
        if !path::is_plain(&path) {
            report.refused.push(path);
            continue;
        }
        let known = there.remove(&path);
        if let Some(kind) = &known
            && is_same(drive.blobs(), &file, &path, kind, folder)?
        {
            report.same += 1;
            continue;
        }
        match (&file.linkname, &file.blob) {
            (Some(target), _) => folder.symlink(&path, target)?,
            (None, Some(blob)) => {
                let mut reader = drive.blobs().reader(blob, 0..u64::MAX);
                folder.write(&path, file.executable, &mut || reader.next_chunk())?;
            }
            (None, None) => folder.write(&path, file.executable, &mut || Ok(None))?,
        }
        if known.is_some() { report.changed.push(path) } else { report.added.push(path) }
    }
    if prune {
        for path in there.into_keys() {
            folder.remove(&path)?;
            report.removed.push(path);
        }
    }
    Ok(report)
}

/// Makes a drive what the folder is, in one batch. With `prune`, what the folder does not have is deleted.
pub fn mirror_from<D: FeedMut, B: ByteFeed + FeedMut>(
    drive: &mut Drive<D, B>,
    folder: &mut dyn Folder,
    prune: bool,
) -> Result<Report, DataError> {
    let mut report = Report::default();
    let there = listed(folder)?;
    let mut changes: Vec<(String, File)> = Vec::new();
    for (path, kind) in &there {
        let known = drive.entry(path)?;
        if let Some(known) = &known
            && is_same(&drive.blobs, &known.file, path, kind, folder)?
        {
            report.same += 1;
            continue;
        }
        let mut file = File::default();
        match kind {
            Kind::Link { target } => file.linkname = Some(target.clone()),
            Kind::File { executable, .. } => {
                file.executable = *executable;
                file.blob = Some(copy_in(drive, path, folder)?);
            }
        }
        changes.push((path.clone(), file));
        if known.is_some() { report.changed.push(path.clone()) } else { report.added.push(path.clone()) }
    }
    if prune {
        for entry in drive.head().list("/")? {
            let path = entry?.path;
            if !there.contains_key(&path) {
                report.removed.push(path);
            }
        }
    }
    let mut batch = drive.batch();
    for (path, file) in &changes {
        batch.put_entry(path, file)?;
    }
    for path in &report.removed {
        batch.del(path)?;
    }
    batch.flush()?;
    Ok(report)
}

fn copy_in<D: FeedMut, B: ByteFeed + FeedMut>(
    drive: &mut Drive<D, B>,
    path: &str,
    folder: &mut dyn Folder,
) -> Result<BlobId, DataError> {
    let mut writer = drive.blobs.writer();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        match read_full(folder, path, offset, &mut buffer)? {
            0 => return writer.finish(),
            count => {
                writer.write(&buffer[..count])?;
                offset += count as u64;
            }
        }
    }
}
