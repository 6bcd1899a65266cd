//! OCI layouts and docker-archives made by hand.

#![allow(dead_code)] // each test file uses its part

use cloudpal_compute::image::{Digest, Limits};
use cloudpal_host::image::{Credentials, ImageStore, StoredImage};
use cloudpal_model::Problem;
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// A tar with one file per pair.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn config(architecture: &str, run: &str, layers: &[Vec<u8>]) -> String {
    let ids: Vec<String> = layers.iter().map(|layer| format!("\"{}\"", Digest::sha256_of(layer))).collect();
    let ids = ids.join(",");
    let rootfs = format!(r#"{{"type":"layers","diff_ids":[{ids}]}}"#);
    format!(r#"{{"architecture":"{architecture}","os":"linux","config":{run},"rootfs":{rootfs}}}"#)
}

/// An OCI image layout in a directory of its own.
pub struct Layout {
    pub dir: tempfile::TempDir,
}

impl Layout {
    pub fn new() -> Layout {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout { dir }
    }

    pub fn source(&self) -> String {
        format!("oci:{}", self.dir.path().display())
    }

    pub fn blob_file(&self, digest: &Digest) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    /// Stores a blob; answers its descriptor, open at the end for more fields.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> String {
        let digest = Digest::sha256_of(bytes);
        fs::write(self.blob_file(&digest), bytes).unwrap();
        format!(r#""mediaType":"{media_type}","digest":"{digest}","size":{}"#, bytes.len())
    }

    /// Stores an image with gzipped layers; answers the manifest's descriptor.
    pub fn image(&self, config: &str, layers: &[Vec<u8>]) -> String {
        let layer = |layer: &Vec<u8>| {
            format!("{{{}}}", self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(layer)))
        };
        let layers: Vec<String> = layers.iter().map(layer).collect();
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.as_bytes());
        let layers = layers.join(",");
        let manifest = format!(r#"{{"schemaVersion":2,"config":{{{config}}},"layers":[{layers}]}}"#);
        self.blob(MANIFEST_TYPE, manifest.as_bytes())
    }

    pub fn index(&self, descriptors: &[String]) {
        let all: Vec<String> = descriptors.iter().map(|descriptor| format!("{{{descriptor}}}")).collect();
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, all.join(","));
        fs::write(self.dir.path().join("index.json"), index).unwrap();
    }

    /// One image that runs `/app`.
    pub fn with_app(architecture: &str, run: &str, layers: &[Vec<u8>]) -> Layout {
        let layout = Layout::new();
        let image = layout.image(&config(architecture, run, layers), layers);
        layout.index(&[image]);
        layout
    }
}

pub const RUN_APP: &str = r#"{"Entrypoint":["/app"]}"#;

pub async fn import(store: &Path, source: &str) -> Result<StoredImage, Problem> {
    import_as(store, source, None).await
}

pub async fn import_as(
    store: &Path,
    source: &str,
    auth: Option<Credentials>,
) -> Result<StoredImage, Problem> {
    ImageStore::open(store)?.import(source, auth, &Limits::default(), false, |_| {}).await
}

/// What a store holds, hidden names too.
pub fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
