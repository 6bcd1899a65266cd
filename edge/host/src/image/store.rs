//! The images of this host: one directory each, named by the image's digest.
//!
//! Invariants:
//! - A directory `sha256-<hex>` is complete: it is written under a temporary name, made durable, then renamed.
//! - A failed or interrupted import leaves nothing: its temporary directory is removed at once, or when the store is
//!   opened next.

use super::{
    Credentials,
    source::{self, Opening},
};
use cloudpal_compute::image::{Digest, ImageConfig, ImageError, Limits, Reference, RootfsBuilder};
use cloudpal_model::{Kind, Problem};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

const TEMPORARY_PREFIX: &str = ".import-";
const ROOTFS: &str = "rootfs.erofs";
const RECORD: &str = "image.json";

/// What an image that brings its own kernel has in it, by the paths where it may lie, and our name for it. Unikraft's
/// images have theirs below /unikraft/bin; for other library OSes the root is the place.
const UNIKERNEL_FILES: [(&str, [&str; 2]); 3] = [
    ("kernel", ["unikraft/bin/kernel", "kernel"]),
    ("initrd", ["unikraft/bin/initrd", "initrd"]),
    ("disk.img", ["unikraft/bin/disk.img", "disk.img"]),
];

/// How far an import has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub stage: Stage,
    /// For people: `layer 2 of 5`.
    pub part: String,
    pub done_bytes: u64,
    /// 0 when it is not known.
    pub total_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Fetching,
    Unpacking,
    Writing,
}

/// An image that machines can boot.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredImage {
    /// Of the manifest (of the configuration, where an archive has no manifest).
    pub digest: Digest,
    pub config: ImageConfig,
    pub rootfs: PathBuf,
    pub rootfs_bytes: u64,
    /// The kernel of its own that it brings; then perhaps also an initial RAM disk and a disk.
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    pub disk: Option<PathBuf>,
}

/// What `image.json` says.
#[derive(Serialize, Deserialize)]
struct Record {
    digest: Digest,
    config: ImageConfig,
    rootfs_bytes: u64,
}

#[derive(Clone, Debug)]
pub struct ImageStore {
    dir: PathBuf,
}

impl ImageStore {
    /// Opens the store and removes what interrupted imports have left.
    pub fn open(dir: &Path) -> Result<ImageStore, Problem> {
        let clean = || {
            fs::create_dir_all(dir)?;
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
                    fs::remove_dir_all(entry.path())?;
                }
            }
            Ok(())
        };
        clean().map_err(|error: io::Error| Problem::io(dir.display(), &error))?;
        Ok(ImageStore { dir: dir.to_owned() })
    }

    /// The image with this digest, if it is here and whole.
    pub fn get(&self, digest: &Digest) -> Option<StoredImage> {
        let dir = self.dir.join(digest.file_name());
        let record: Record = serde_json::from_slice(&fs::read(dir.join(RECORD)).ok()?).ok()?;
        let rootfs = dir.join(ROOTFS);
        let whole = fs::metadata(&rootfs).is_ok_and(|metadata| metadata.len() == record.rootfs_bytes);
        let Record { digest: found, config, rootfs_bytes } = record;
        let [kernel, initrd, disk] =
            UNIKERNEL_FILES.map(|(name, _)| Some(dir.join(name)).filter(|path| path.is_file()));
        let image = StoredImage { digest: found, config, rootfs, rootfs_bytes, kernel, initrd, disk };
        (whole && image.digest == *digest).then_some(image)
    }

    /// Every image of the store.
    pub fn list(&self) -> Result<Vec<StoredImage>, Problem> {
        let read_error = |error: io::Error| Problem::io(self.dir.display(), &error);
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(read_error)? {
            let name = entry.map_err(read_error)?.file_name();
            let digest = name.to_str().and_then(|name| name.replacen('-', ":", 1).parse::<Digest>().ok());
            images.extend(digest.and_then(|digest| self.get(&digest)));
        }
        images.sort_by(|a, b| a.digest.cmp(&b.digest));
        Ok(images)
    }

    /// Removes an image that no machine uses any more. A missing one is fine.
    pub fn remove(&self, digest: &Digest) -> Result<(), Problem> {
        let dir = self.dir.join(digest.file_name());
        let gone = self.dir.join(format!("{TEMPORARY_PREFIX}removed-{}", digest.file_name()));
        let remove = || match fs::rename(&dir, &gone) {
            Ok(()) => fs::remove_dir_all(&gone),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        remove().map_err(|error| Problem::io(dir.display(), &error))
    }

    /// Brings an image in. `argv_given`: the owner says what to run, so that the image need not.
    /// Dropping the future does not stop an import that has begun; its outcome is then kept in the store or nothing is.
    pub async fn import(
        &self,
        source: &str,
        auth: Option<Credentials>,
        limits: &Limits,
        argv_given: bool,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<StoredImage, Problem> {
        let (store, source, limits) = (self.clone(), source.to_owned(), limits.clone());
        let import = move || store.import_blocking(&source, auth, &limits, argv_given, &progress);
        match tokio::task::spawn_blocking(import).await {
            Ok(outcome) => outcome,
            Err(error) => {
                Err(Problem::new(Kind::Internal, format!("the import: {error}"), "see the daemon's log"))
            }
        }
    }

    fn import_blocking(
        &self,
        source: &str,
        credentials: Option<Credentials>,
        limits: &Limits,
        argv_given: bool,
        progress: &dyn Fn(Progress),
    ) -> Result<StoredImage, Problem> {
        let reference: Reference = source.parse()?;
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY_PREFIX)
            .tempdir_in(&self.dir)
            .map_err(|error| Problem::io(self.dir.display(), &error))?;
        let opening = Opening { limits, credentials, scratch: temporary.path(), progress };
        let mut opened = source::open(reference, &opening)?;
        if !argv_given {
            opened.config.argv(&[])?;
        }
        if let Some(present) = self.get(&opened.digest) {
            return Ok(present);
        }
        let rootfs_bytes = write_rootfs(&mut opened, &opening)?;
        let record = Record { digest: opened.digest.clone(), config: opened.config, rootfs_bytes };
        self.publish(temporary, &record)
    }

    /// Makes the temporary directory durable and gives it its name.
    fn publish(&self, temporary: tempfile::TempDir, record: &Record) -> Result<StoredImage, Problem> {
        let dir = self.dir.join(record.digest.file_name());
        let publish = || {
            let mut file = File::create(temporary.path().join(RECORD))?;
            file.write_all(&serde_json::to_vec_pretty(record)?)?;
            file.sync_all()?;
            File::open(temporary.path())?.sync_all()?;
            if fs::rename(temporary.path(), &dir).is_err() {
                // Another import of the same image was faster, or an old directory is damaged.
                if self.get(&record.digest).is_none() {
                    fs::remove_dir_all(&dir)?;
                    fs::rename(temporary.path(), &dir)?;
                }
            }
            File::open(&self.dir)?.sync_all()
        };
        publish().map_err(|error: io::Error| Problem::io("writing the image", &error))?;
        self.get(&record.digest).ok_or_else(|| {
            let what = format!("the image {} is not whole after it was written", record.digest);
            Problem::new(Kind::Internal, what, "check the disk, then import the image again")
        })
    }
}

/// Takes the kernel and what belongs to it out of the image, if it has one.
fn copy_unikernel(builder: &mut RootfsBuilder<File>, into: &Path) -> Result<(), ImageError> {
    let write_error = |error| ImageError::Write { place: "a file of the image", error };
    for (name, paths) in UNIKERNEL_FILES {
        let path = into.join(name);
        let mut file = File::create(&path).map_err(write_error)?;
        let mut found = false;
        for source in paths {
            found = found || builder.copy_file(source, &mut file)?;
        }
        match found {
            true => file.sync_all().map_err(write_error)?,
            false => fs::remove_file(&path).map_err(write_error)?,
        }
        if name == "kernel" && !found {
            break;
        }
    }
    Ok(())
}

/// Reads all layers and writes the root file system into the temporary directory.
fn write_rootfs(opened: &mut source::Opened, opening: &Opening<'_>) -> Result<u64, Problem> {
    let spool = source::scratch_file(opening.scratch)?;
    let mut builder = RootfsBuilder::new(spool, opening.limits.clone());
    let count = opened.layers.len();
    for index in 0..count {
        let packed = opened.layer(index, opening)?;
        let layer = &opened.layers[index];
        let total_bytes = layer.blob.as_ref().map_or(0, |blob| blob.size);
        let part = format!("layer {} of {count}", index + 1);
        (opening.progress)(Progress { stage: Stage::Unpacking, part, done_bytes: 0, total_bytes });
        builder.add_layer(packed, layer.blob.as_ref(), &layer.diff_id)?;
    }
    copy_unikernel(&mut builder, opening.scratch)?;
    let part = "root file system".to_owned();
    (opening.progress)(Progress { stage: Stage::Writing, part, done_bytes: 0, total_bytes: 0 });
    let path = opening.scratch.join(ROOTFS);
    let write_error = |error| ImageError::Write { place: "the root file system", error };
    let mut file = File::create(path).map_err(write_error)?;
    let rootfs = builder.finish(&mut file)?;
    file.sync_all().map_err(write_error)?;
    if rootfs.left_out != Default::default() {
        tracing::info!(digest = %opened.digest, left_out = ?rootfs.left_out, "parts of the image were left out");
    }
    Ok(rootfs.bytes)
}
