//! What can be done with the files of a drive.
//!
//! Invariant: a file appears under its name only when all of its content is on the disk; of an upload that breaks off
//! nothing stays.

use super::{
    TenantData, blocking,
    feeds::Tracked,
    item::{Opened, Shared},
};
use crate::http::{Content, Part, Pieces};
use axum::body::Bytes;
use cloudpal_api::{
    DataCompacted, DataKind, DataVersion, File, FileKind, FileList, FileListQuery, FilePurge, FileQuery,
    HistoryQuery,
};
use cloudpal_data::{
    DataError,
    bee::Written,
    blobs::{BlobId, Blobs},
    core::Durability,
    drive::{self, Drive, Keep, Snapshot},
    feed::Feed,
};
use cloudpal_model::{Kind, Name, Problem};
use futures_util::{StreamExt, stream};
use std::sync::Arc;
use tokio::sync::mpsc;

const DRIVE: &[DataKind] = &[DataKind::Drive];
const PIECE_BYTES: u64 = 256 << 10;
const DEFAULT_LIMIT: usize = 1000;
const NO_CONTENTS: DataError = DataError::NotHere { index: 0 };

type Open = Drive<Tracked, Tracked>;

fn of(opened: &mut Opened) -> Result<&mut Open, DataError> {
    match opened {
        Opened::Drive(drive) => Ok(drive),
        Opened::DriveWithoutContents(bee) => {
            // Asked for, it says where the contents are.
            bee.feed().get(0)?;
            Err(NO_CONTENTS)
        }
        _ => Err(DataError::BadRequest("it is no drive")),
    }
}

fn at(drive: &Open, version: Option<u64>) -> Result<Snapshot<'_, Tracked, Tracked>, DataError> {
    version.map_or(Ok(drive.head()), |version| drive.checkout(version))
}

fn shown(entry: drive::Entry) -> File {
    let kind = if entry.file.linkname.is_some() { FileKind::Link } else { FileKind::File };
    File {
        path: entry.path,
        kind,
        bytes: entry.file.blob.map_or(0, |blob| blob.byte_length),
        executable: entry.file.executable,
        target: entry.file.linkname,
        version: entry.seq + 1,
    }
}

fn removed(path: String, seq: u64) -> File {
    File { path, kind: FileKind::Removed, bytes: 0, executable: false, target: None, version: seq + 1 }
}

impl TenantData {
    pub async fn files(&self, name: &Name, query: FileListQuery) -> Result<FileList, Problem> {
        let item = self.item_of(name, DRIVE)?;
        self.with(&item, move |opened| {
            let drive = of(opened)?;
            let snapshot = at(drive, query.version)?;
            let folder = query.folder.as_deref().unwrap_or("/");
            let files = match query.recursive {
                true => snapshot.list(folder)?.map(|entry| entry.map(shown)).collect::<Result<_, _>>()?,
                false => listed(&snapshot, folder)?,
            };
            Ok(FileList { files, version: snapshot.version() })
        })
        .await
    }

    /// Where the content of a file is, links followed.
    async fn blob(&self, item: &Shared, path: &str, version: Option<u64>) -> Result<Option<BlobId>, Problem> {
        let path = path.to_owned();
        self.with(item, move |opened| {
            let entry = at(of(opened)?, version)?.follow(&path)?;
            let empty =
                BlobId { block_offset: 0, byte_offset: 0, block_length: 0, byte_length: 0, block_map: false };
            Ok(entry.map(|entry| entry.file.blob.unwrap_or(empty)))
        })
        .await
    }

    pub async fn file(
        self: &Arc<Self>,
        name: &Name,
        path: &str,
        version: Option<u64>,
        part: Option<Part>,
    ) -> Result<Option<Content>, Problem> {
        let item = self.item_of(name, DRIVE)?;
        let Some(blob) = self.blob(&item, path, version).await? else { return Ok(None) };
        let total_bytes = match blob.block_map {
            true => self.with(&item, move |opened| of(opened)?.blobs().byte_length(&blob)).await?,
            false => blob.byte_length,
        };
        let (first, end) = part.map_or((0, total_bytes), |(first, end)| (first, end.unwrap_or(total_bytes)));
        let state = Some((self.clone(), item, first));
        let end = end.min(total_bytes);
        let pieces = stream::unfold(state, move |state| async move {
            let (data, item, at) = state?;
            if at >= end {
                return None;
            }
            let next = end.min(at + PIECE_BYTES);
            let read = move |opened: &mut Opened| of(opened)?.blobs().read(&blob, at..next);
            match data.with(&item, read).await {
                Ok(piece) => Some((Ok(Bytes::from(piece)), Some((data, item, next)))),
                Err(problem) => Some((Err(problem), None)),
            }
        });
        Ok(Some(Content { total_bytes, pieces: Box::pin(pieces) }))
    }

    pub async fn file_put(
        self: &Arc<Self>,
        name: &Name,
        path: &str,
        query: FileQuery,
        content: Pieces,
    ) -> Result<DataVersion, Problem> {
        let item = self.item_of(name, DRIVE)?;
        self.writable(&item)?;
        let _writing = item.writing.lock().await;
        let file = match &query.link {
            Some(target) => drive::File { linkname: Some(target.clone()), ..drive::File::default() },
            None => {
                let blob = self.upload(&item, content).await?;
                drive::File { blob, executable: query.executable, ..drive::File::default() }
            }
        };
        let path = path.to_owned();
        let put = move |opened: &mut Opened| {
            let drive = of(opened)?;
            drive.put_entry(&path, &file)?;
            Ok(drive.version())
        };
        let version = self.with(&item, put).await?;
        self.wrote(&item.cores());
        Ok(DataVersion { version })
    }

    /// Writes the content beside what is there; no name leads to it yet. `None`: it is empty.
    async fn upload(self: &Arc<Self>, item: &Shared, mut content: Pieces) -> Result<Option<BlobId>, Problem> {
        let contents = item.contents().ok_or(NO_CONTENTS)?;
        let (pieces, mut receiver) = mpsc::channel::<Result<Bytes, Problem>>(4);
        let data = self.clone();
        let writing = blocking(move || {
            let core = contents.core.clone().with_durability(Durability::Buffered);
            let start = core.length();
            let mut blobs = Blobs::new(contents.with_core(core.clone()));
            let written = (|| {
                let mut writer = blobs.writer();
                let mut bytes = 0;
                while let Some(piece) = receiver.blocking_recv() {
                    let piece = piece?;
                    data.within_quota(piece.len() as u64)?;
                    bytes += piece.len();
                    writer.write(&piece)?;
                }
                let blob = writer.finish()?;
                Ok(Some(blob).filter(|_| bytes > 0))
            })();
            if written.is_err() {
                core.clear(start, core.length())?;
            }
            core.sync()?;
            written
        });
        let feeding = async {
            while let Some(piece) = content.next().await {
                // The writer has failed: it says why.
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
            drop(pieces);
        };
        tokio::join!(writing, feeding).0
    }

    pub async fn file_delete(self: &Arc<Self>, name: &Name, path: &str) -> Result<DataVersion, Problem> {
        let item = self.item_of(name, DRIVE)?;
        self.writable(&item)?;
        let _writing = item.writing.lock().await;
        let asked = path.to_owned();
        let (was_there, version) = self
            .with(&item, move |opened| {
                let drive = of(opened)?;
                Ok((drive.del(&asked)?, drive.version()))
            })
            .await?;
        if !was_there {
            let mend = "`cloudpal drive ls` shows what there is";
            return Err(Problem::new(Kind::NotFound, format!("{name} has no file {path}"), mend));
        }
        self.wrote(&item.cores());
        Ok(DataVersion { version })
    }

    pub async fn file_history(&self, name: &Name, query: HistoryQuery) -> Result<FileList, Problem> {
        let item = self.item_of(name, DRIVE)?;
        let limit = query.limit.map_or(DEFAULT_LIMIT, |limit| limit as usize);
        self.with(&item, move |opened| {
            let drive = of(opened)?;
            let now = at(drive, query.until)?;
            let files = match query.since {
                Some(since) => {
                    let changes = now.diff(&drive.checkout(since)?, "/")?;
                    let side = |change: drive::Change| match (change.left, change.right) {
                        (Some(now), _) => Some(shown(now)),
                        (None, then) => then.map(|then| removed(then.path, then.seq)),
                    };
                    changes
                        .filter_map(|change| change.map(side).transpose())
                        .take(limit)
                        .collect::<Result<_, _>>()?
                }
                None => writes(drive, query.until, limit)?,
            };
            Ok(FileList { files, version: now.version() })
        })
        .await
    }

    pub async fn file_purge(
        self: &Arc<Self>,
        name: &Name,
        purge: FilePurge,
    ) -> Result<DataCompacted, Problem> {
        let item = self.item_of(name, DRIVE)?;
        let _writing = item.writing.lock().await;
        let gaps = self.with(&item, move |opened| {
            let drive = of(opened)?;
            let gaps = drive.purgeable(Keep::Since(purge.keep_from))?;
            drive.purge(Keep::Since(purge.keep_from))?;
            Ok(gaps)
        });
        let gaps = gaps.await?;
        if let Some(contents) = item.contents() {
            self.hub.with(|replication, _| {
                gaps.iter()
                    .for_each(|gap| replication.dropped(contents.number, gap.start, gap.end - gap.start));
            });
        }
        let store = self.store.clone();
        blocking(move || {
            store.sync()?;
            Ok(DataCompacted { freed_bytes: store.compact()? })
        })
        .await
    }
}

/// What is right below a folder: of a folder only its name.
fn listed(snapshot: &Snapshot<'_, Tracked, Tracked>, folder: &str) -> Result<Vec<File>, DataError> {
    let base = if folder.ends_with('/') { folder.to_owned() } else { format!("{folder}/") };
    let mut files = Vec::new();
    for found in snapshot.readdir(folder)? {
        let (name, entry) = found?;
        let path = format!("{base}{name}");
        let is_folder = entry.path != path;
        let folder =
            || File { path, kind: FileKind::Folder, bytes: 0, executable: false, target: None, version: 0 };
        files.push(if is_folder { folder() } else { shown(entry) });
    }
    Ok(files)
}

/// Every write, newest first.
fn writes(drive: &Open, until: Option<u64>, limit: usize) -> Result<Vec<File>, DataError> {
    let bee = until.map_or(Ok(drive.db().head()), |version| drive.db().checkout(version))?;
    let mut files = Vec::new();
    for change in bee.history(1).rev() {
        if files.len() >= limit {
            break;
        }
        let (entry, there) = match change? {
            Written::Put(entry) => (entry, true),
            Written::Del(entry) => (entry, false),
        };
        // Keys beside the files are none of ours.
        let Some(path) = entry.key().strip_prefix(b"files\0") else { continue };
        let path = String::from_utf8_lossy(path).into_owned();
        files.push(match (there, entry.value()) {
            (true, Some(value)) => {
                shown(drive::Entry { seq: entry.seq(), path, file: drive::File::decode(value)? })
            }
            _ => removed(path, entry.seq()),
        });
    }
    Ok(files)
}
