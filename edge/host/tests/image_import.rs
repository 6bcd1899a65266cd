//! Images from local sources: good ones are kept, bad ones are refused with the cause and leave nothing.

mod image_kit;

use cloudpal_compute::image::{Digest, Limits};
use cloudpal_host::image::ImageStore;
use cloudpal_model::Kind;
use image_kit::{Layout, MANIFEST_TYPE, RUN_APP, config, gzip, import, names, tar};
use std::{fs, path::Path, process::Command};

fn app() -> Vec<Vec<u8>> {
    vec![tar(&[("app", b"#!/bin/sh\n")]), tar(&[("etc/app.conf", b"x=1\n")])]
}

/// Imports into a fresh store; the problem must say this, and nothing may be left.
async fn is_refused(source: &str, kind: Kind, says: &str) {
    let store = tempfile::tempdir().unwrap();
    let problem = import(store.path(), source).await.unwrap_err();
    assert_eq!(problem.kind, kind, "{problem}");
    assert!(problem.what.contains(says), "{problem}");
    assert!(!problem.mend.is_empty(), "{problem}");
    assert_eq!(names(store.path()), Vec::<String>::new(), "{problem}");
}

#[tokio::test]
async fn a_layout_is_imported_once_and_found_again() {
    let layout = Layout::with_app("amd64", RUN_APP, &app());
    let store = tempfile::tempdir().unwrap();
    let image = import(store.path(), &layout.source()).await.unwrap();
    assert_eq!(image.config.argv(&[]).unwrap(), ["/app"]);
    assert_eq!(names(store.path()), [format!("sha256-{}", image.digest.hex())]);
    assert_eq!(fs::metadata(&image.rootfs).unwrap().len(), image.rootfs_bytes);
    // The second time, only the documents are read.
    for layer in app() {
        fs::remove_file(layout.blob_file(&Digest::sha256_of(&gzip(&layer)))).unwrap();
    }
    assert_eq!(import(store.path(), &layout.source()).await.unwrap(), image);
    let open = ImageStore::open(store.path()).unwrap();
    assert_eq!(open.list().unwrap(), std::slice::from_ref(&image));
    open.remove(&image.digest).unwrap();
    assert_eq!((open.get(&image.digest), names(store.path())), (None, Vec::new()));
}

#[tokio::test]
async fn a_kernel_that_an_image_brings_is_taken_out_of_it() {
    let store = tempfile::tempdir().unwrap();
    let plain = import(store.path(), &Layout::with_app("amd64", RUN_APP, &app()).source()).await.unwrap();
    assert_eq!((plain.kernel, plain.initrd, plain.disk), (None, None, None));
    let kernel = vec![7; 300_000];
    // The upper layer's kernel is the one that counts.
    let layers = [
        tar(&[("unikraft/bin/kernel", b"old"), ("disk.img", b"disk")]),
        tar(&[("unikraft/bin/kernel", &kernel)]),
    ];
    let image = import(store.path(), &Layout::with_app("amd64", RUN_APP, &layers).source()).await.unwrap();
    assert_eq!(fs::read(image.kernel.as_ref().unwrap()).unwrap(), kernel);
    assert_eq!(fs::read(image.disk.as_ref().unwrap()).unwrap(), b"disk");
    assert_eq!(image.initrd, None);
    assert_eq!(ImageStore::open(store.path()).unwrap().get(&image.digest), Some(image));
}

#[tokio::test]
async fn archives_hold_the_same_root() {
    let layers = app();
    let layout = Layout::with_app("amd64", RUN_APP, &layers);
    let dir = tempfile::tempdir().unwrap();
    let oci_archive = dir.path().join("oci.tar");
    let mut builder = tar::Builder::new(fs::File::create(&oci_archive).unwrap());
    builder.append_dir_all(".", layout.dir.path()).unwrap();
    builder.finish().unwrap();
    let config = config("amd64", RUN_APP, &layers);
    let name = format!("{}.json", Digest::sha256_of(config.as_bytes()).hex());
    let table = format!(r#"[{{"Config":"{name}","RepoTags":["app:1"],"Layers":["a/layer.tar","b.tar"]}}]"#);
    let parts = [
        ("manifest.json", table.as_bytes()),
        (&name, config.as_bytes()),
        ("a/layer.tar", &layers[0]),
        ("b.tar", &layers[1]),
    ];
    let docker_archive = dir.path().join("docker.tar.gz");
    fs::write(&docker_archive, gzip(&tar(&parts))).unwrap();
    let mut roots = Vec::new();
    for source in [
        layout.source(),
        format!("oci-archive:{}", oci_archive.display()),
        format!("docker-archive:{}:app:1", docker_archive.display()),
    ] {
        let store = tempfile::tempdir().unwrap();
        let image = import(store.path(), &source).await.unwrap();
        roots.push(fs::read(&image.rootfs).unwrap());
    }
    assert!(roots[0] == roots[1] && roots[0] == roots[2]);
    is_refused(&format!("docker-archive:{}:other", docker_archive.display()), Kind::BadImage, "app:1").await;
}

#[tokio::test]
async fn tags_and_platforms_are_chosen_from_an_index() {
    let layout = Layout::new();
    let annotated = |descriptor: String, tag: &str| {
        format!(r#"{descriptor},"annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}"#)
    };
    let platform = |descriptor: String, architecture: &str| {
        format!(r#"{descriptor},"platform":{{"os":"linux","architecture":"{architecture}"}}"#)
    };
    let image = |run: &str, architecture: &str| layout.image(&config(architecture, run, &app()), &app());
    let arm = platform(image(RUN_APP, "arm64"), "arm64");
    let amd = platform(image(r#"{"Cmd":["/two"]}"#, "amd64"), "amd64");
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{{{arm}}},{{{amd}}}]}}"#);
    let nested = layout.blob("application/vnd.oci.image.index.v1+json", index.as_bytes());
    layout.index(&[annotated(image(RUN_APP, "amd64"), "one"), annotated(nested, "two")]);
    let store = tempfile::tempdir().unwrap();
    let image = import(store.path(), &format!("{}:two", layout.source())).await.unwrap();
    assert_eq!(image.config.cmd, ["/two"]);
    is_refused(&layout.source(), Kind::Invalid, "one, two").await;
    is_refused(&format!("{}:three", layout.source()), Kind::BadImage, "one, two").await;
}

#[tokio::test]
async fn what_cannot_run_here_is_refused_before_its_layers_are_read() {
    is_refused(&Layout::with_app("arm64", RUN_APP, &app()).source(), Kind::BadImage, "linux/arm64").await;
    let silent = Layout::with_app("amd64", "{}", &app());
    is_refused(&silent.source(), Kind::BadImage, "Entrypoint").await;
    let store = tempfile::tempdir().unwrap();
    let open = ImageStore::open(store.path()).unwrap();
    assert!(open.import(&silent.source(), None, &Limits::default(), true, |_| {}).await.is_ok());
    let chart = Layout::new();
    let config = chart.blob("application/vnd.cncf.helm.config.v1+json", b"{}");
    let manifest = format!(r#"{{"schemaVersion":2,"config":{{{config}}},"layers":[]}}"#);
    chart.index(&[chart.blob(MANIFEST_TYPE, manifest.as_bytes())]);
    is_refused(&chart.source(), Kind::BadImage, "helm").await;
}

#[tokio::test]
async fn changed_and_missing_blobs_are_refused() {
    let damaged = |change: fn(&Path)| {
        let layout = Layout::with_app("amd64", RUN_APP, &app());
        change(&layout.blob_file(&Digest::sha256_of(&gzip(&app()[1]))));
        layout
    };
    let cut = damaged(|file| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    });
    is_refused(&cut.source(), Kind::BadImage, "wrong size").await;
    let changed = damaged(|file| {
        let mut bytes = fs::read(file).unwrap();
        bytes[20] ^= 1;
        fs::write(file, bytes).unwrap();
    });
    is_refused(&changed.source(), Kind::BadImage, "wrong digest").await;
    let missing = damaged(|file| fs::remove_file(file).unwrap());
    is_refused(&missing.source(), Kind::NotFound, "blobs/sha256").await;
    is_refused("oci:/nonexistent", Kind::NotFound, "/nonexistent").await;
    is_refused("docker-archive:/nonexistent", Kind::NotFound, "/nonexistent").await;
    is_refused("nonsense", Kind::Invalid, "nonsense").await;
    // A changed manifest and a changed configuration.
    for pick in [r#""config":"#, "architecture"] {
        let layout = Layout::with_app("amd64", RUN_APP, &app());
        for entry in fs::read_dir(layout.dir.path().join("blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            if bytes.starts_with(b"{") && String::from_utf8_lossy(&bytes).contains(pick) {
                fs::write(
                    &path,
                    String::from_utf8(bytes).unwrap().replace("amd64", "arm64").replace(":2,", ":3,"),
                )
                .unwrap();
            }
        }
        is_refused(&layout.source(), Kind::BadImage, "wrong digest").await;
    }
}

#[tokio::test]
async fn an_interrupted_import_is_cleaned_up() {
    let store = tempfile::tempdir().unwrap();
    fs::create_dir(store.path().join(".import-abc")).unwrap();
    fs::write(store.path().join(".import-abc/rootfs.erofs"), b"half").unwrap();
    // An image whose root was cut short is no image, and is replaced by the next import.
    let layout = Layout::with_app("amd64", RUN_APP, &app());
    let image = import(store.path(), &layout.source()).await.unwrap();
    assert_eq!(names(store.path()).len(), 1);
    fs::write(&image.rootfs, b"short").unwrap();
    assert_eq!(ImageStore::open(store.path()).unwrap().get(&image.digest), None);
    assert_eq!(import(store.path(), &layout.source()).await.unwrap(), image);
    assert_eq!(fs::metadata(&image.rootfs).unwrap().len(), image.rootfs_bytes);
}

/// A small file system of its own, unmounted at the end.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(kib: u64) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={kib}k");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallDisk { dir }),
            other => {
                eprintln!("SKIPPED: a full disk, since no tmpfs can be mounted here: {other:?}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_at_each_stage_leaves_nothing() {
    let content: Vec<u8> = (0..1_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let layers = vec![tar(&[("app", &content)])];
    let layout = Layout::with_app("amd64", RUN_APP, &layers);
    let config = config("amd64", RUN_APP, &layers);
    let table = r#"[{"Config":"config.json","RepoTags":null,"Layers":["layer.tar"]}]"#;
    let parts = [
        ("manifest.json", table.as_bytes()),
        ("config.json", config.as_bytes()),
        ("layer.tar", &layers[0][..]),
    ];
    let archives = tempfile::tempdir().unwrap();
    let packed = archives.path().join("packed.tar.gz");
    fs::write(&packed, gzip(&tar(&parts))).unwrap();
    let archive = format!("docker-archive:{}", packed.display());
    let (mut full, mut fine) = (0, 0);
    // From too small for anything, over each stage, to just enough.
    for kib in (4..4400).step_by(150) {
        let Some(disk) = SmallDisk::mount(kib) else { return };
        for source in [&layout.source(), &archive] {
            match import(disk.dir.path(), source).await {
                Ok(image) => {
                    fine += 1;
                    ImageStore::open(disk.dir.path()).unwrap().remove(&image.digest).unwrap();
                }
                Err(problem) => {
                    full += 1;
                    assert_eq!(problem.kind, Kind::DiskFull, "{kib} KiB: {problem}");
                }
            }
            assert_eq!(names(disk.dir.path()), Vec::<String>::new(), "{kib} KiB");
        }
    }
    assert!(full > 10 && fine > 2, "{full} full, {fine} fine");
}
