//! Tars made by hand, also such as no archiver would write, and a builder that takes them as layers.

#![allow(dead_code)] // each test file uses its part

use cloudpal_compute::image::{Blob, Digest, ImageError, Limits, RootfsBuilder};
use std::{
    io::{Cursor, Write},
    path::Path,
    process::Command,
};
use tar::{EntryType, Header};

#[derive(Clone, Default)]
pub struct Tar {
    pub bytes: Vec<u8>,
}

impl Tar {
    pub fn new() -> Tar {
        Tar::default()
    }

    /// The name goes into the header as it is.
    pub fn entry(mut self, kind: EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Tar {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        self.put(header, content);
        self
    }

    pub fn put(&mut self, mut header: Header, content: &[u8]) {
        header.set_cksum();
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    pub fn file(self, name: &str, content: &[u8]) -> Tar {
        self.entry(EntryType::Regular, name, "", 0o644, content)
    }

    pub fn dir(self, name: &str) -> Tar {
        self.entry(EntryType::Directory, name, "", 0o755, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Tar {
        self.entry(EntryType::Symlink, name, target, 0o777, b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Tar {
        self.entry(EntryType::Link, name, target, 0o644, b"")
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length += 1;
            }
            data.extend(format!("{length} {key}=").as_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.entry(EntryType::XHeader, "pax", "", 0o644, &data)
    }

    pub fn device(mut self, kind: EntryType, name: &str, major: u32, minor: u32) -> Tar {
        let mut header = Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.put(header, b"");
        self
    }

    pub fn done(&self) -> Vec<u8> {
        [&self.bytes[..], &[0; 1024]].concat()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn blob(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::sha256_of(bytes), size: bytes.len() as u64 }
}

/// Plain layers, right digests.
pub fn build(layers: &[Vec<u8>]) -> Result<Vec<u8>, ImageError> {
    build_with(layers, &Limits::default())
}

pub fn build_with(layers: &[Vec<u8>], limits: &Limits) -> Result<Vec<u8>, ImageError> {
    let mut builder = RootfsBuilder::new(Cursor::new(Vec::new()), limits.clone());
    for layer in layers {
        builder.add_layer(&layer[..], Some(&blob(layer)), &Digest::sha256_of(layer))?;
    }
    let mut image = Vec::new();
    builder.finish(&mut image)?;
    Ok(image)
}

/// Unpacks the image with erofs-utils, which is not ours. `None`, said aloud, when it is not installed.
pub fn extract(image: &[u8]) -> Option<tempfile::TempDir> {
    if Command::new("fsck.erofs").arg("-V").output().is_err() {
        eprintln!("SKIPPED: the comparison with erofs-utils, since fsck.erofs is not installed");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image");
    std::fs::write(&file, image).unwrap();
    let tree = dir.path().join("tree");
    run(Command::new("fsck.erofs")
        .arg(format!("--extract={}", tree.display()))
        .arg("--overwrite")
        .arg(&file));
    Some(dir)
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// Mounts the image with this host's kernel and hands the tree over. Said aloud when that is not possible here.
pub fn with_mounted(image: &[u8], check: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image");
    std::fs::write(&file, image).unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let mounted = Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(&file).arg(&tree).output();
    match mounted {
        Ok(output) if output.status.success() => {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&tree)));
            run(Command::new("umount").arg(&tree));
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        }
        Ok(output) => eprintln!("SKIPPED: mounting: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => eprintln!("SKIPPED: mounting: {error}"),
    }
}
