//! Whatever the bytes: an error or an image, never a panic, never more than the limits, never a file outside.
//! The committed corpus holds inputs that were worth keeping; each is run first.

mod image_kit;

use cloudpal_compute::image::{
    Digest, Limits, RootfsBuilder, archive::Members, digest::Digest as Named, manifest,
};
use image_kit::{Tar, blob, extract, gzip};
use proptest::prelude::*;
use std::{io::Cursor, path::Path};
use tar::EntryType;

fn small_limits() -> Limits {
    Limits {
        unpacked_bytes: 4 << 20,
        file_bytes: 1 << 20,
        entries: 500,
        metadata_bytes: 1 << 20,
        ratio_free_bytes: 1 << 20,
        ..Limits::default()
    }
}

/// Every parser that sees bytes from outside, on the same bytes. Answers the image if they were a good layer.
fn feed(bytes: &[u8]) -> Option<Vec<u8>> {
    let limits = small_limits();
    let _ = Members::read(Cursor::new(bytes));
    let _ = manifest::choose_from_layout(bytes, "index.json", None);
    let _ = manifest::choose_from_docker(bytes, Some("x"), &limits);
    let _ = manifest::plan(bytes.to_vec(), Named::sha256_of(bytes), &limits, |_, _| {
        Ok::<_, cloudpal_compute::image::ImageError>(bytes.to_vec())
    });
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<cloudpal_compute::image::Reference>();
    }
    let entry = manifest::DockerEntry { config: "x".into(), repo_tags: None, layers: Vec::new() };
    let _ = manifest::docker_config(&entry, bytes);
    let mut builder = RootfsBuilder::new(Cursor::new(Vec::new()), limits);
    // The digest of the content is rarely known here; its check comes last, so that all else was tried.
    let added = builder.add_layer(bytes, Some(&blob(bytes)), &Digest::sha256_of(bytes));
    let mut image = Vec::new();
    let finished = builder.finish(&mut image);
    (added.is_ok() && finished.is_ok()).then_some(image)
}

#[test]
fn the_corpus_is_digested() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        feed(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 10, "the corpus has only {count} files");
}

fn a_name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "[a-d]",
        1 => Just("..".to_owned()),
        1 => Just(".wh.a".to_owned()),
        1 => Just(".wh..wh..opq".to_owned()),
        1 => Just(String::new()),
        1 => Just(".".to_owned()),
    ];
    proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

/// Layers full of links, white-outs and climbing paths.
fn a_tar() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![
        4 => Just(EntryType::Regular),
        3 => Just(EntryType::Directory),
        3 => Just(EntryType::Symlink),
        2 => Just(EntryType::Link),
        1 => Just(EntryType::Fifo),
        1 => Just(EntryType::XHeader),
        1 => Just(EntryType::GNULongName),
    ];
    let entry = (kind, a_name(), a_name(), proptest::collection::vec(any::<u8>(), 0..5000));
    proptest::collection::vec(entry, 0..12).prop_map(|entries| {
        let tar = entries.into_iter().fold(Tar::new(), |tar, (kind, name, link, content)| {
            tar.entry(kind, &name, &link, 0o644, &content)
        });
        tar.done()
    })
}

fn some_changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        feed(&bytes);
    }

    #[test]
    fn layers_with_hostile_names(bytes in a_tar()) {
        feed(&bytes);
        feed(&gzip(&bytes));
    }

    #[test]
    fn changed_layers(bytes in a_tar(), changes in some_changes()) {
        let mut packed = gzip(&bytes);
        for (index, value) in &changes {
            let at = index.index(packed.len());
            packed[at] ^= value;
        }
        feed(&packed);
        let mut plain = bytes;
        for (index, value) in &changes {
            // Make the header's checksum right again, or nothing behind it would ever be reached.
            let at = index.index(plain.len());
            plain[at] = *value;
            let block = at / 512 * 512;
            let mut header = tar::Header::from_byte_slice(&plain[block..block + 512]).clone();
            header.set_cksum();
            plain[block..block + 512].copy_from_slice(header.as_bytes());
        }
        feed(&plain);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// What we write, erofs-utils reads back with the same contents.
    #[test]
    fn images_are_sound(sizes in proptest::collection::vec(0usize..13000, 1..40), depth in 1usize..20) {
        let mut tar = Tar::new();
        let path = |n: usize| format!("{}f{n}", "d/".repeat(n % depth));
        let content = |n: usize, size: usize| -> Vec<u8> { (0..size).map(|i| (i * 7 + n) as u8).collect() };
        for (n, size) in sizes.iter().enumerate() {
            tar = tar.file(&path(n), &content(n, *size));
        }
        let image = feed(&tar.done()).unwrap();
        let Some(dir) = extract(&image) else { return Ok(()) };
        for (n, size) in sizes.iter().enumerate() {
            let found = std::fs::read(dir.path().join("tree").join(path(n))).unwrap();
            prop_assert_eq!(found, content(n, *size));
        }
    }
}
