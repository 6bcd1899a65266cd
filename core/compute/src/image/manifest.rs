//! Indexes and manifests (OCI image-spec, Docker v2 schema 2): which layers and which configuration an image has.
//!
//! Invariant: a document is looked into only after its size and digest were found right.

use super::{
    config::{self, ImageConfig},
    digest::{Blob, Digest},
    error::ImageError,
    limits::Limits,
};
use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, Os};
use serde::{Deserialize, de::IgnoredAny};

/// What a registry is asked for, most wanted first.
pub const ACCEPTED_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// With these and what compression may follow. Encrypted layers and artifacts of other kinds have other names.
const LAYER_TYPES: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];
const LAYER_PACKINGS: [&str; 5] = ["", "+gzip", ".gzip", "+zstd", ".zstd"];
/// An index may name an index (buildx writes such), but not without end.
const MAX_INDEX_DEPTH: u32 = 2;

/// One layer: the packed blob, as far as it is known, and the digest of what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPlan {
    pub blob: Blob,
    pub diff_id: Digest,
}

/// All that must be known before the layers are read.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The manifest's digest: the name of the image.
    pub digest: Digest,
    pub config: ImageConfig,
    /// Lowest first.
    pub layers: Vec<LayerPlan>,
}

enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

/// From an index or manifest that was found right to the plan. `fetch` gets a blob's bytes; they are checked here.
pub fn plan<E: From<ImageError>>(
    bytes: Vec<u8>,
    digest: Digest,
    limits: &Limits,
    mut fetch: impl FnMut(&Blob, DocumentKind) -> Result<Vec<u8>, E>,
) -> Result<Plan, E> {
    let (mut bytes, mut digest) = (bytes, digest);
    for _ in 0..=MAX_INDEX_DEPTH {
        let chosen = match parse(&bytes, &digest.to_string())? {
            Document::Manifest(manifest) => return manifest_plan(&manifest, digest, limits, fetch),
            Document::Index(index) => choose_for_this_host(index.manifests(), &digest.to_string())?,
        };
        let what = format!("the manifest {}", chosen.digest);
        check_size(&what, chosen.size, limits.manifest_bytes)?;
        bytes = fetch(&chosen, DocumentKind::Manifest)?;
        chosen.verify(&what, &bytes)?;
        digest = chosen.digest;
    }
    let why = "an index names an index that names an index".to_owned();
    Err(ImageError::BadDocument { document: digest.to_string(), why }.into())
}

/// What is fetched: registries keep manifests and other blobs in different places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentKind {
    Manifest,
    Config,
}

/// The manifest that `index.json` of an OCI image layout names by the tag, or its only one.
pub fn choose_from_layout(index: &[u8], place: &str, tag: Option<&str>) -> Result<Blob, ImageError> {
    const REF_NAME: &str = "org.opencontainers.image.ref.name";
    let Document::Index(index) = parse(index, place)? else {
        let why = "it is not an index".to_owned();
        return Err(ImageError::BadDocument { document: place.to_owned(), why });
    };
    let name = |descriptor: &Descriptor| descriptor.annotations().as_ref()?.get(REF_NAME).cloned();
    let wanted = |descriptor: &&Descriptor| tag.is_none() || name(descriptor).as_deref() == tag;
    let found: Vec<Descriptor> = index.manifests().iter().filter(wanted).cloned().collect();
    let names = || index.manifests().iter().filter_map(name).collect::<Vec<_>>().join(", ");
    match (found.as_slice(), tag) {
        ([], Some(tag)) => Err(ImageError::Missing { what: format!("tag `{tag}`; it has: {}", names()) }),
        ([], None) => Err(ImageError::Missing { what: format!("manifest in {place}") }),
        ([only], _) => blob(only),
        (several, _) if several.iter().any(|one| one.platform().is_some()) => {
            choose_for_this_host(several, place)
        }
        _ => Err(ImageError::Ambiguous { what: place.to_owned(), found: names() }),
    }
}

fn choose_for_this_host(manifests: &[Descriptor], place: &str) -> Result<Blob, ImageError> {
    let platform = |descriptor: &Descriptor| {
        descriptor.platform().as_ref().map(|p| (p.os().clone(), p.architecture().clone()))
    };
    if let Some(fits) = manifests.iter().find(|one| platform(one) == Some((Os::Linux, Arch::Amd64))) {
        return blob(fits);
    }
    match manifests {
        [] => Err(ImageError::Missing { what: format!("manifest in the index {place}") }),
        // What it is for stands in its configuration then.
        [only] if only.platform().is_none() => blob(only),
        several => {
            let mut found: Vec<String> = several
                .iter()
                .filter_map(platform)
                .map(|(os, architecture)| format!("{os}/{architecture}"))
                .collect();
            found.dedup();
            Err(ImageError::WrongPlatform { found: found.join(", ") })
        }
    }
}

fn manifest_plan<E: From<ImageError>>(
    manifest: &ImageManifest,
    digest: Digest,
    limits: &Limits,
    mut fetch: impl FnMut(&Blob, DocumentKind) -> Result<Vec<u8>, E>,
) -> Result<Plan, E> {
    let config_type = manifest.config().media_type().to_string();
    if !CONFIG_TYPES.contains(&config_type.as_str()) {
        return Err(ImageError::Unsupported {
            what: "what it is (not a container image)".into(),
            found: config_type,
        }
        .into());
    }
    if manifest.layers().len() as u64 > limits.layers {
        let place = format!("the manifest {digest}");
        return Err(
            ImageError::OverLimit { place, what: "the number of layers", limit: limits.layers }.into()
        );
    }
    let mut layers = Vec::new();
    for descriptor in manifest.layers() {
        let found = descriptor.media_type().to_string();
        if !layer_type_is_known(&found) {
            return Err(ImageError::Unsupported { what: "the kind of a layer".into(), found }.into());
        }
        let blob = blob(descriptor)?;
        check_size(&format!("the layer {}", blob.digest), blob.size, limits.unpacked_bytes)?;
        layers.push(blob);
    }
    let config_blob = blob(manifest.config())?;
    let what = format!("the configuration {}", config_blob.digest);
    check_size(&what, config_blob.size, limits.config_bytes)?;
    let bytes = fetch(&config_blob, DocumentKind::Config)?;
    config_blob.verify(&what, &bytes)?;
    let (config, diff_ids) = config::parse(&bytes)?;
    check_count(layers.len(), diff_ids.len())?;
    let layers =
        layers.into_iter().zip(diff_ids).map(|(blob, diff_id)| LayerPlan { blob, diff_id }).collect();
    Ok(Plan { digest, config, layers })
}

fn check_count(layers: usize, diff_ids: usize) -> Result<(), ImageError> {
    if layers == diff_ids {
        return Ok(());
    }
    let why = format!("it speaks of {diff_ids} layers, but the manifest of {layers}");
    Err(ImageError::BadDocument { document: "the image's configuration".to_owned(), why })
}

fn check_size(place: &str, size: u64, limit: u64) -> Result<(), ImageError> {
    if size <= limit {
        return Ok(());
    }
    Err(ImageError::OverLimit { place: place.to_owned(), what: "its size in bytes", limit })
}

fn layer_type_is_known(found: &str) -> bool {
    let packing =
        |known: &&str| found.strip_prefix(*known).is_some_and(|rest| LAYER_PACKINGS.contains(&rest));
    LAYER_TYPES.iter().any(packing)
}

fn blob(descriptor: &Descriptor) -> Result<Blob, ImageError> {
    Ok(Blob { digest: descriptor.digest().to_string().parse()?, size: descriptor.size() })
}

fn parse(bytes: &[u8], place: &str) -> Result<Document, ImageError> {
    /// A document that could be read as both is an attack (CVE-2021-41190).
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        schema_version: u32,
        manifests: Option<IgnoredAny>,
        layers: Option<IgnoredAny>,
        config: Option<IgnoredAny>,
    }
    let bad =
        |why: String| ImageError::BadDocument { document: format!("the manifest or index {place}"), why };
    let json = |error: serde_json::Error| bad(error.to_string());
    let probe: Probe = serde_json::from_slice(bytes).map_err(json)?;
    if probe.schema_version != 2 {
        let found = format!("schema version {}", probe.schema_version);
        return Err(ImageError::Unsupported { what: "the manifest's format".to_owned(), found });
    }
    match (probe.manifests.is_some(), probe.layers.is_some() || probe.config.is_some()) {
        (true, false) => {
            serde_json::from_slice(bytes).map(|index| Document::Index(Box::new(index))).map_err(json)
        }
        (false, true) => {
            serde_json::from_slice(bytes).map(|manifest| Document::Manifest(Box::new(manifest))).map_err(json)
        }
        (true, true) => Err(bad("it is an index and a manifest at once".to_owned())),
        (false, false) => Err(bad("it is neither an index nor a manifest".to_owned())),
    }
}

/// What `manifest.json` of a docker-archive says of one image.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerEntry {
    /// Path of the configuration in the archive.
    pub config: String,
    pub repo_tags: Option<Vec<String>>,
    /// Paths of the layers in the archive, lowest first.
    pub layers: Vec<String>,
}

/// The image of a docker-archive that has the name, or its only one.
pub fn choose_from_docker(
    table: &[u8],
    name: Option<&str>,
    limits: &Limits,
) -> Result<DockerEntry, ImageError> {
    let document = || "manifest.json".to_owned();
    let entries: Vec<DockerEntry> = serde_json::from_slice(table)
        .map_err(|error| ImageError::BadDocument { document: document(), why: error.to_string() })?;
    let tags = |entry: &DockerEntry| entry.repo_tags.clone().unwrap_or_default();
    let has_name = |entry: &&DockerEntry| match name {
        None => true,
        Some(name) => tags(entry).iter().any(|tag| familiar(tag) == familiar(name)),
    };
    let names = || entries.iter().flat_map(tags).collect::<Vec<_>>().join(", ");
    let mut found = entries.iter().filter(has_name);
    let entry = match (found.next(), found.next(), name) {
        (Some(only), None, _) => only.clone(),
        (Some(_), Some(_), _) => return Err(ImageError::Ambiguous { what: document(), found: names() }),
        (None, _, Some(name)) => {
            return Err(ImageError::Missing { what: format!("name `{name}`; it has: {}", names()) });
        }
        (None, _, None) => return Err(ImageError::Missing { what: "entry in manifest.json".to_owned() }),
    };
    if entry.layers.len() as u64 > limits.layers {
        let limit = limits.layers;
        return Err(ImageError::OverLimit { place: document(), what: "the number of layers", limit });
    }
    Ok(entry)
}

/// A docker-archive's configuration: its own digest is the image's name there, since no manifest has one.
/// Answers the digests of the unpacked layers with it.
pub fn docker_config(
    entry: &DockerEntry,
    bytes: &[u8],
) -> Result<(Digest, ImageConfig, Vec<Digest>), ImageError> {
    let digest = Digest::sha256_of(bytes);
    let file = entry.config.rsplit('/').next().unwrap_or_default();
    let stem = file.strip_suffix(".json").unwrap_or(file);
    if let Ok(expected) = format!("sha256:{stem}").parse::<Digest>() {
        expected.verify("the image's configuration", bytes)?;
    }
    let (config, diff_ids) = config::parse(bytes)?;
    check_count(entry.layers.len(), diff_ids.len())?;
    Ok((digest, config, diff_ids))
}

/// `docker.io/library/debian` and `debian:latest` are the same.
fn familiar(name: &str) -> String {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") }
}
