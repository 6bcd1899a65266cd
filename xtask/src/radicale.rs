//! The example app: Radicale, a calendar and contacts server, from Debian's package, as an OCI image.
//!
//! It is made by Debian's own tools (debootstrap, umoci) and goes through the very path of anyone's image.
//! Invariants: the layout appears under its name only when it is complete; the same packages give the same image:
//! what a build leaves behind that differs from run to run (caches, logs, times) is taken out.

use crate::{paths, shell};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

const SUITE: &str = "bookworm";

/// Raised when this file would make another image from the same packages.
const RECIPE: &str = "5";

/// Times that the build itself would set become this one: the suite's first release, 2023-06-10.
const EPOCH: &str = "2023-06-10T00:00:00Z";

/// Everything in the image that the app does not need, or that differs from build to build.
const REMOVE: &str = "rm -rf dev/* proc/* sys/* run/* tmp/* var/cache/apt/* var/cache/debconf/*-old var/cache/ldconfig \
    var/lib/apt/lists/* var/lib/dpkg/*-old var/log/* usr/share/doc usr/share/man usr/share/info usr/share/locale \
    usr/share/i18n usr/share/lintian boot/* etc/machine-id etc/resolv.conf etc/hostname etc/passwd- etc/group- \
    etc/shadow- etc/gshadow-";

/// The image's path, `target/images/radicale`: an OCI layout directory with the tag `latest`.
pub fn build() -> Result<PathBuf> {
    let image = paths::images().join("radicale");
    let stamp = image.join(".recipe");
    if fs::read_to_string(&stamp).is_ok_and(|text| text == RECIPE) {
        return Ok(image);
    }
    println!("image: building Radicale's OCI image from Debian {SUITE} (debootstrap, umoci; about a minute)");
    fs::create_dir_all(paths::images()).context("cannot make the directory for images")?;
    let work = paths::images().join(format!(".radicale.{}", std::process::id()));
    let built = make(&work).and_then(|()| {
        fs::write(work.join("oci/.recipe"), RECIPE)?;
        if image.exists() {
            fs::remove_dir_all(&image)?;
        }
        fs::rename(work.join("oci"), &image).context("cannot put the image in its place")
    });
    let removed = if work.exists() { fs::remove_dir_all(&work) } else { Ok(()) };
    built.context("cannot build Radicale's image")?;
    removed.with_context(|| format!("cannot remove {}", work.display()))?;
    Ok(image)
}

fn make(work: &Path) -> Result<()> {
    let rootfs = work.join("rootfs");
    fs::create_dir_all(work)?;
    let path = rootfs.to_string_lossy().into_owned();
    shell::output(&mut shell::command(
        "debootstrap",
        &["--variant=minbase", "--include=radicale", SUITE, &path],
    ))
    .context("debootstrap needs root and Debian's archive")?;
    let mut trim = shell::command("sh", &["-euc", &trim_script()]);
    shell::output(trim.current_dir(&rootfs).env("SOURCE_DATE_EPOCH", "1686355200"))?;
    pack(work, &rootfs)
}

/// Byte-compiled Python stays, since a start without it takes seconds longer under emulation; but it is made anew in
/// the form that carries a hash of its source rather than a time. Debian's package leaves it to its service unit
/// to give
/// the storage to Radicale's user; an image has no unit.
fn trim_script() -> String {
    format!(
        "{REMOVE}
         find . -xdev -newermt '{EPOCH}' -exec touch --no-dereference --date='{EPOCH}' {{}} +
         chroot . python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.11
         chroot . chown -R radicale:radicale /var/lib/radicale
         rm -rf tmp/* var/log/*
         find . -xdev -newermt '{EPOCH}' -exec touch --no-dereference --date='{EPOCH}' {{}} +"
    )
}

fn pack(work: &Path, rootfs: &Path) -> Result<()> {
    let layout = work.join("oci");
    let tag = format!("{}:latest", layout.display());
    umoci(&["init", "--layout", &layout.to_string_lossy()])?;
    umoci(&["new", "--image", &tag])?;
    // By way of a bundle: `umoci insert` would name the root directory by an absolute path.
    let bundle = work.join("bundle");
    umoci(&["unpack", "--image", &tag, &bundle.to_string_lossy()])?;
    fs::remove_dir(bundle.join("rootfs"))?;
    fs::rename(rootfs, bundle.join("rootfs"))?;
    umoci(&["repack", "--image", &tag, "--history.created", EPOCH, &bundle.to_string_lossy()])?;
    let mut config = vec!["config", "--image", &tag, "--created", EPOCH, "--no-history"];
    for word in ENTRYPOINT {
        config.extend(["--config.entrypoint", word]);
    }
    config.extend(["--config.user", "radicale", "--config.workingdir", "/var/lib/radicale"]);
    config.extend(["--config.exposedports", "5232/tcp", "--config.env", "LANG=C.UTF-8"]);
    config.extend(["--config.env", "PATH=/usr/local/bin:/usr/bin:/bin"]);
    umoci(&config)?;
    umoci(&["gc", "--layout", &layout.to_string_lossy()])
}

/// The overlay lets only the owner's devices in, so no password is asked for: clients may send any name and password.
const ENTRYPOINT: &[&str] = &[
    "/usr/bin/radicale",
    "--server-hosts",
    "0.0.0.0:5232,[::]:5232",
    "--auth-type",
    "none",
    "--rights-type",
    "owner_only",
    "--storage-filesystem-folder",
    "/var/lib/radicale/collections",
];

fn umoci(arguments: &[&str]) -> Result<()> {
    shell::output(&mut shell::command("umoci", arguments)).map(drop)
}
