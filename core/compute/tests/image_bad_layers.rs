//! Layers that no honest tool writes: each is refused with its own reason, and none reaches the host's file system.

mod image_kit;

use cloudpal_compute::image::{Blob, Digest, EntryFault, ImageError, Limits, RootfsBuilder};
use cloudpal_model::{Kind, Problem};
use image_kit::{Tar, blob, build, build_with, gzip};
use std::io::Cursor;
use tar::{EntryType, Header};

fn fault(tar: Tar) -> EntryFault {
    match build(&[tar.done()]) {
        Err(ImageError::BadEntry { fault, .. }) => fault,
        other => panic!("{:?}", other.map(|image| image.len())),
    }
}

fn add(packed: &[u8], blob: &Blob, diff_id: &Digest) -> Result<(), ImageError> {
    RootfsBuilder::new(Cursor::new(Vec::new()), Limits::default()).add_layer(packed, Some(blob), diff_id)
}

#[test]
fn paths_that_escape() {
    assert_eq!(fault(Tar::new().file("../evil", b"x")), EntryFault::ParentPath);
    assert_eq!(fault(Tar::new().file("a/../../evil", b"x")), EntryFault::ParentPath);
    assert_eq!(fault(Tar::new().file("../.wh.passwd", b"")), EntryFault::ParentPath);
    assert_eq!(fault(Tar::new().file("/etc/passwd", b"x")), EntryFault::AbsolutePath);
    assert_eq!(fault(Tar::new().pax(&[("path", b"../evil")]).file("fine", b"x")), EntryFault::ParentPath);
    let long =
        Tar::new().entry(EntryType::GNULongName, "././@LongLink", "", 0, b"/evil\0").file("fine", b"x");
    assert_eq!(fault(long), EntryFault::AbsolutePath);
}

#[test]
fn symbolic_links_that_escape() {
    let climbing = Tar::new().symlink("out", "../../etc").file("out/passwd", b"x");
    assert_eq!(fault(climbing), EntryFault::LinkLeavesRoot { link: "out".into() });
    let looping = Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"x");
    assert_eq!(fault(looping), EntryFault::LinkLoop);
    // In a later layer, too.
    let layers = [Tar::new().symlink("d/out", "../..").done(), Tar::new().file("d/out/x", b"").done()];
    assert!(matches!(
        build(&layers),
        Err(ImageError::BadEntry { fault: EntryFault::LinkLeavesRoot { .. }, .. })
    ));
}

#[test]
fn hard_links_to_what_is_not_in_the_image() {
    for target in ["/etc/passwd", "../../etc/passwd", "nothing", "d", ""] {
        let found = fault(Tar::new().dir("d").hard_link("link", target));
        assert_eq!(found, EntryFault::HardLink { target: target.into() });
    }
}

#[test]
fn entries_of_bad_kinds() {
    let disk = Tar::new().device(EntryType::Block, "dev/sda", 8, 0);
    assert_eq!(fault(disk), EntryFault::DeviceNode { class: "block", major: 8, minor: 0 });
    let memory = Tar::new().device(EntryType::Char, "dev/null", 1, 1);
    assert_eq!(fault(memory), EntryFault::DeviceNode { class: "character", major: 1, minor: 1 });
    let elsewhere = Tar::new().device(EntryType::Char, "home/null", 1, 3);
    assert!(matches!(fault(elsewhere), EntryFault::DeviceNode { .. }));
    assert_eq!(fault(Tar::new().entry(EntryType::GNUSparse, "x", "", 0, b"")), EntryFault::Sparse);
    assert_eq!(fault(Tar::new().entry(EntryType::new(b'V'), "x", "", 0, b"")), EntryFault::UnknownType(b'V'));
    assert_eq!(fault(Tar::new().file(".", b"x")), EntryFault::ReplacesRoot);
    assert_eq!(
        fault(Tar::new().file("a", b"").file("a/b", b"")),
        EntryFault::ParentNotDirectory { parent: "a".into() }
    );
    assert_eq!(fault(Tar::new().file("d/.wh..", b"")), EntryFault::BadName);
    assert_eq!(
        fault(Tar::new().entry(EntryType::XHeader, "p", "", 0, b"7 a=")),
        EntryFault::BadExtendedHeader
    );
}

#[test]
fn a_zip_bomb_ends_early() {
    let limits = Limits { ratio_free_bytes: 1 << 20, ..Limits::default() };
    let unpacked = Tar::new().file("zeros", &vec![0; 16 << 20]).done();
    let packed = gzip(&unpacked);
    let mut builder = RootfsBuilder::new(Cursor::new(Vec::new()), limits);
    let error =
        builder.add_layer(&packed[..], Some(&blob(&packed)), &Digest::sha256_of(&unpacked)).unwrap_err();
    assert!(matches!(error, ImageError::OverLimit { limit: 200, .. }), "{error}");
    let problem = Problem::from(error);
    assert_eq!(problem.kind, Kind::BadImage);
    assert!(problem.what.contains("bytes per packed byte"), "{problem}");
}

#[test]
fn every_limit_holds() {
    let is_over = |tar: Tar, limits: Limits| match build_with(&[tar.done()], &limits) {
        Err(ImageError::OverLimit { .. }) => {}
        other => panic!("{:?}", other.map(|image| image.len())),
    };
    let default = Limits::default;
    is_over(Tar::new().file("x", &[1; 4096]), Limits { unpacked_bytes: 4000, ..default() });
    is_over(Tar::new().file("x", &[1; 4096]), Limits { file_bytes: 4000, ..default() });
    is_over(Tar::new().dir("a/b/c/d/e"), Limits { entries: 4, ..default() });
    is_over(Tar::new().file("a", b"").file("b", b""), Limits { entries: 1, ..default() });
    is_over(Tar::new().file("abcdefghi", b""), Limits { path_bytes: 8, ..default() });
    is_over(Tar::new().symlink("a", "abcdefghi"), Limits { path_bytes: 8, ..default() });
    is_over(Tar::new().file("a", b""), Limits { metadata_bytes: 20, ..default() });
    let attribute = Tar::new().pax(&[("SCHILY.xattr.user.x", &[1; 100])]).file("a", b"");
    is_over(attribute, Limits { xattr_bytes: 99, ..default() });
    // A header that promises far more than there is must not make us reserve it.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(u64::MAX >> 1);
    let mut tar = Tar::new();
    tar.put(header, b"");
    is_over(tar, default());
}

#[test]
fn a_blob_that_is_not_the_promised_one() {
    let layer = Tar::new().file("a", &[7; 5000]).done();
    let diff_id = Digest::sha256_of(&layer);
    let packed = gzip(&layer);
    assert!(add(&packed, &blob(&packed), &diff_id).is_ok());

    let mut changed = packed.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 0xff;
    let error = add(&changed, &blob(&packed), &diff_id).unwrap_err();
    assert!(matches!(&error, ImageError::WrongDigest { .. }), "{error}");
    assert!(error.to_string().contains(&blob(&packed).digest.to_string()), "{error}");

    let error = add(&packed[..packed.len() - 9], &blob(&packed), &diff_id).unwrap_err();
    assert!(matches!(error, ImageError::WrongSize { .. }), "{error}");
    let longer = [&packed[..], b"more"].concat();
    let error = add(&longer, &blob(&packed), &diff_id).unwrap_err();
    assert!(matches!(error, ImageError::WrongSize { .. }), "{error}");
    let error = add(&packed, &blob(&packed), &Digest::sha256_of(b"other")).unwrap_err();
    assert!(error.to_string().contains("content of layer"), "{error}");
}

#[test]
fn a_layer_that_was_packed_cut_short() {
    let layer = Tar::new().file("a", &[7; 5000]).done();
    for length in [100, 511, 600, 5000] {
        let cut = &layer[..length];
        let error = add(cut, &blob(cut), &Digest::sha256_of(cut)).unwrap_err();
        assert!(matches!(error, ImageError::BadLayer { .. }), "{length}: {error}");
    }
    let packed = gzip(&layer);
    let cut = &packed[..packed.len() - 10];
    let error = add(cut, &blob(cut), &Digest::sha256_of(&layer)).unwrap_err();
    assert!(matches!(error, ImageError::BadLayer { .. }), "{error}");
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd][..], &[0x24, 0x20]].concat();
    let error = add(&zstd, &blob(&zstd), &Digest::sha256_of(&layer)).unwrap_err();
    assert!(matches!(error, ImageError::BadLayer { .. }), "{error}");
}
