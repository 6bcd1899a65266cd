//! Where things are in the working tree. Everything that is built lies under `target/`.

use std::path::{Path, PathBuf};

/// The top of the working tree.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

pub fn target() -> PathBuf {
    root().join("target")
}

/// OCI images, each an OCI layout directory.
pub fn images() -> PathBuf {
    target().join("images")
}
