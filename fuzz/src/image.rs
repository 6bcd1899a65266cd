//! OCI images from registries and archives.

use cloudpal_compute::image::{
    Digest, ImageError, Limits, Reference, RootfsBuilder,
    archive::Members,
    manifest::{self, DockerEntry},
};
use std::io::Cursor;

const BLOCK: usize = 512;
/// Beyond what the files have: tables, and the last block of each.
const IMAGE_BYTES_MAX: usize = 16 << 20;

fn limits() -> Limits {
    Limits {
        unpacked_bytes: 4 << 20,
        file_bytes: 1 << 20,
        entries: 500,
        metadata_bytes: 1 << 20,
        ratio_free_bytes: 1 << 20,
        ..Limits::default()
    }
}

/// The first part of the input is one layer, the rest one above it.
fn merge(bytes: &[u8]) {
    let half = bytes.len() / 2 / BLOCK * BLOCK;
    let mut builder = RootfsBuilder::new(Cursor::new(Vec::new()), limits());
    for layer in [bytes, &bytes[half..]] {
        // One that is refused ends an import; here it must still leave a tree that can be written.
        let _ = builder.add_layer(layer, None, &Digest::sha256_of(layer));
    }
    let mut image = Vec::new();
    if builder.finish(&mut image).is_ok() {
        assert!(image.len() <= IMAGE_BYTES_MAX, "an image of {} bytes", image.len());
    }
}

/// With the checksums of all headers right: without, nothing behind the first would ever be reached.
fn mended(bytes: &[u8]) -> Vec<u8> {
    let (mut bytes, mut at) = (bytes.to_vec(), 0);
    while let Some(block) = bytes.get_mut(at..at + BLOCK) {
        let mut header = tar::Header::from_byte_slice(block).clone();
        header.set_cksum();
        let len = header.entry_size().unwrap_or(0).min(1 << 20) as usize;
        if block.iter().any(|byte| *byte != 0) {
            block.copy_from_slice(header.as_bytes());
        }
        at += BLOCK + len.next_multiple_of(BLOCK);
    }
    bytes
}

pub fn layer(bytes: &[u8]) {
    merge(bytes);
    if !bytes.starts_with(&[0x1f, 0x8b]) && !bytes.starts_with(&[0x28, 0xb5]) {
        merge(&mended(bytes));
    }
}

pub fn documents(bytes: &[u8]) {
    let limits = limits();
    let _ = manifest::choose_from_layout(bytes, "index.json", None);
    let _ = manifest::choose_from_layout(bytes, "index.json", Some("latest"));
    let _ = manifest::choose_from_docker(bytes, Some("x"), &limits);
    let digest = Digest::sha256_of(bytes);
    let _ = manifest::plan(bytes.to_vec(), digest, &limits, |_, _| Ok::<_, ImageError>(bytes.to_vec()));
    let entry = DockerEntry { config: "x".into(), repo_tags: None, layers: Vec::new() };
    let _ = manifest::docker_config(&entry, bytes);
    for archive in [bytes, &mended(bytes)] {
        if let Ok(members) = Members::read(Cursor::new(archive)) {
            let _ = members.find("index.json");
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<Reference>();
    }
}
