//! The places that an image can come from, brought to one shape: a plan, and a stream for each layer.

use super::{
    Credentials,
    registry::Registry,
    store::{Progress, Stage},
};
use cloudpal_compute::image::{
    Blob, Digest, ImageConfig, ImageError, Limits, Reference,
    archive::{Member, Members},
    decompress::Unpacked,
    manifest::{self, DocumentKind},
};
use cloudpal_model::Problem;
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// An image whose documents are read and checked, and whose layers are not read yet.
pub(super) struct Opened {
    pub digest: Digest,
    pub config: ImageConfig,
    pub layers: Vec<Layer>,
    origin: Origin,
}

pub(super) struct Layer {
    /// A docker-archive says nothing of its packed layers.
    pub blob: Option<Blob>,
    pub diff_id: Digest,
    /// In a docker-archive: where it lies.
    member: Option<Member>,
}

enum Origin {
    Layout(PathBuf),
    Archive { file: File, members: Members },
    Registry(Box<Registry>),
}

/// What opening needs besides the reference.
pub(super) struct Opening<'a> {
    pub limits: &'a Limits,
    pub credentials: Option<Credentials>,
    /// For temporary files; on the disk of the store.
    pub scratch: &'a Path,
    pub progress: &'a dyn Fn(Progress),
}

pub(super) fn open(reference: Reference, opening: &Opening<'_>) -> Result<Opened, Problem> {
    match reference {
        Reference::OciLayout { dir, tag } => open_oci(Origin::Layout(dir), tag.as_deref(), opening.limits),
        Reference::OciArchive { file, tag } => {
            open_oci(open_archive(&file, opening)?, tag.as_deref(), opening.limits)
        }
        Reference::DockerArchive { file, name } => {
            open_docker(open_archive(&file, opening)?, name.as_deref(), opening.limits)
        }
        Reference::Registry(remote) => {
            let mut registry = Registry::new(remote, opening.credentials.clone());
            let (bytes, digest) = registry.top(opening.limits)?;
            let plan = manifest::plan(bytes, digest, opening.limits, |blob, kind| match kind {
                DocumentKind::Manifest => registry.manifest(blob),
                DocumentKind::Config => registry.small_blob(blob),
            })?;
            Ok(Opened::new(plan, Origin::Registry(Box::new(registry))))
        }
    }
}

fn open_oci(origin: Origin, tag: Option<&str>, limits: &Limits) -> Result<Opened, Problem> {
    let index = origin.document("index.json", limits.manifest_bytes)?;
    let top = manifest::choose_from_layout(&index, "index.json", tag)?;
    let what = format!("the manifest {}", top.digest);
    let bytes = origin.document(&blob_path(&top.digest), limits.manifest_bytes)?;
    top.verify(&what, &bytes)?;
    let fetch = |blob: &Blob, kind| {
        let limit = match kind {
            DocumentKind::Manifest => limits.manifest_bytes,
            DocumentKind::Config => limits.config_bytes,
        };
        origin.document(&blob_path(&blob.digest), limit)
    };
    let plan = manifest::plan(bytes, top.digest, limits, fetch)?;
    Ok(Opened::new(plan, origin))
}

fn open_docker(origin: Origin, name: Option<&str>, limits: &Limits) -> Result<Opened, Problem> {
    let table = origin.document("manifest.json", limits.manifest_bytes)?;
    let entry = manifest::choose_from_docker(&table, name, limits)?;
    let bytes = origin.document(&entry.config, limits.config_bytes)?;
    let (digest, config, diff_ids) = manifest::docker_config(&entry, &bytes)?;
    let Origin::Archive { members, .. } = &origin else {
        return Err(ImageError::Missing { what: "archive".to_owned() }.into());
    };
    let layer = |(path, diff_id): (&String, Digest)| {
        Ok(Layer { blob: None, diff_id, member: Some(members.find(path)?) })
    };
    let layers = entry.layers.iter().zip(diff_ids).map(layer).collect::<Result<_, ImageError>>()?;
    Ok(Opened { digest, config, layers, origin })
}

/// Opens an archive; a compressed one is unpacked next to the store first, so that its parts can be found.
fn open_archive(path: &Path, opening: &Opening<'_>) -> Result<Origin, Problem> {
    let place = path.display();
    let open = || File::open(path).map_err(|error| ImageError::Read { place: place.to_string(), error });
    let mut unpacked = Unpacked::new(open()?, opening.limits, 0)
        .map_err(|error| ImageError::Read { place: place.to_string(), error })?;
    let mut file = open()?;
    if unpacked.is_packed() {
        file = scratch_file(opening.scratch)?;
        copy_to_disk(&mut unpacked, &mut file, &place.to_string())?;
        file.rewind().map_err(|error| Problem::io(&place, &error))?;
    }
    let members = Members::read(&mut file)?;
    Ok(Origin::Archive { file, members })
}

/// Copies, keeping a fault of the source apart from a full disk.
fn copy_to_disk(source: &mut impl Read, file: &mut File, place: &str) -> Result<(), Problem> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let read = source.read(&mut buffer);
        let count = read.map_err(|error| ImageError::BadDocument {
            document: place.to_owned(),
            why: error.to_string(),
        })?;
        if count == 0 {
            return Ok(());
        }
        let written = io::Write::write_all(file, &buffer[..count]);
        written.map_err(|error| Problem::io("writing the unpacked archive", &error))?;
    }
}

impl Opened {
    fn new(plan: manifest::Plan, origin: Origin) -> Self {
        let layer = |layer: manifest::LayerPlan| Layer {
            blob: Some(layer.blob),
            diff_id: layer.diff_id,
            member: None,
        };
        let layers = plan.layers.into_iter().map(layer).collect();
        Opened { digest: plan.digest, config: plan.config, layers, origin }
    }

    /// The packed bytes of a layer, not yet checked.
    pub fn layer(&mut self, index: usize, opening: &Opening<'_>) -> Result<Box<dyn Read>, Problem> {
        let layer = &self.layers[index];
        match (&mut self.origin, &layer.blob, layer.member) {
            (Origin::Registry(registry), Some(blob), _) => {
                let mut file = scratch_file(opening.scratch)?;
                let part = format!("layer {} of {}", index + 1, self.layers.len());
                let progress = |done| {
                    let (part, total) = (part.clone(), blob.size);
                    (opening.progress)(Progress {
                        stage: Stage::Fetching,
                        part,
                        done_bytes: done,
                        total_bytes: total,
                    });
                };
                registry.download(blob, &mut file, &progress)?;
                file.rewind().map_err(|error| Problem::io("the downloaded image", &error))?;
                Ok(Box::new(file))
            }
            (Origin::Archive { file, .. }, _, Some(member)) => Ok(Box::new(part(file, member)?)),
            (origin, Some(blob), _) => Ok(Box::new(origin.open_part(&blob_path(&blob.digest))?)),
            _ => Err(ImageError::Missing { what: format!("layer {index}") }.into()),
        }
    }
}

impl Origin {
    /// A small part, whole; one byte too many is enough to be refused.
    fn document(&self, path: &str, limit: u64) -> Result<Vec<u8>, Problem> {
        let read_error = |error| ImageError::Read { place: format!("`{path}`"), error };
        let mut bytes = Vec::new();
        self.open_part(path)?.take(limit + 1).read_to_end(&mut bytes).map_err(read_error)?;
        if bytes.len() as u64 > limit {
            return Err(ImageError::OverLimit {
                place: format!("`{path}`"),
                what: "its size in bytes",
                limit,
            }
            .into());
        }
        Ok(bytes)
    }

    /// `path` has no part that an image could choose freely, or is only looked up in an archive's table.
    fn open_part(&self, path: &str) -> Result<io::Take<File>, Problem> {
        match self {
            Origin::Layout(dir) => {
                let file = dir.join(path);
                let open = File::open(&file);
                let open =
                    open.map_err(|error| ImageError::Read { place: file.display().to_string(), error })?;
                Ok(open.take(u64::MAX))
            }
            Origin::Archive { file, members } => part(file, members.find(path)?),
            Origin::Registry(_) => Err(ImageError::Missing { what: format!("file `{path}`") }.into()),
        }
    }
}

/// A reader of one part. All readers of one archive share its position: one is read at a time.
fn part(file: &File, member: Member) -> Result<io::Take<File>, Problem> {
    let open = || {
        let mut file = file.try_clone()?;
        file.seek(SeekFrom::Start(member.offset))?;
        Ok(file.take(member.size))
    };
    open().map_err(|error| Problem::io("the archive", &error))
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// A file without a name: it is gone when it is closed, however that comes about.
pub(super) fn scratch_file(dir: &Path) -> Result<File, Problem> {
    let make = || {
        fs::create_dir_all(dir)?;
        tempfile::tempfile_in(dir)
    };
    make().map_err(|error| Problem::io(dir.display(), &error))
}
