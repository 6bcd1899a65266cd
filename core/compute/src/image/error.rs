//! What can be wrong with an image, in types; each turns into a [`Problem`] that names the cause and the mend.

use super::digest::Digest;
use cloudpal_model::{Kind, Problem};
use std::io;

/// Why an image was not imported. Nothing is kept of such an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("`{text}` is not an image reference: {why}")]
    BadReference { text: String, why: &'static str },
    #[error("`{text}` is not a digest: {why}")]
    BadDigest { text: String, why: &'static str },
    #[error("{what} has the wrong digest: expected {expected}, its content has {found}")]
    WrongDigest { what: String, expected: Digest, found: Digest },
    #[error("{what} has the wrong size: expected {expected} bytes, found {found}")]
    WrongSize { what: String, expected: u64, found: u64 },
    #[error("the image has no {what}")]
    Missing { what: String },
    #[error("{document} cannot be understood: {why}")]
    BadDocument { document: String, why: String },
    #[error("the image is for {found}, but this host runs linux/amd64")]
    WrongPlatform { found: String },
    #[error("the image says neither what to run (Entrypoint) nor with what (Cmd)")]
    NoEntrypoint,
    #[error("`{what}` holds several images ({found}), and none was named")]
    Ambiguous { what: String, found: String },
    #[error("{what} is not supported: {found}")]
    Unsupported { what: String, found: String },
    #[error("layer {layer}, entry `{path}`: {fault}")]
    BadEntry { layer: String, path: String, fault: EntryFault },
    #[error("layer {layer} is damaged: {why}")]
    BadLayer { layer: String, why: String },
    #[error("{place} is over the limit: {what} is more than {limit}")]
    OverLimit { place: String, what: &'static str, limit: u64 },
    #[error("reading {place}: {error}")]
    Read { place: String, error: io::Error },
    #[error("writing {place}: {error}")]
    Write { place: &'static str, error: io::Error },
}

/// What is wrong with one entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    #[error("its path is absolute")]
    AbsolutePath,
    #[error("its path climbs with `..`")]
    ParentPath,
    #[error("its path is empty, or has a name that no file can have")]
    BadName,
    #[error("its path crosses a symbolic link (`{link}`) that leaves the root")]
    LinkLeavesRoot { link: String },
    #[error("its path crosses too many symbolic links")]
    LinkLoop,
    #[error("its path goes through `{parent}`, which is not a directory")]
    ParentNotDirectory { parent: String },
    #[error("it is a device node ({class} {major}:{minor})")]
    DeviceNode { class: &'static str, major: u32, minor: u32 },
    #[error("it is a hard link to `{target}`, which the image does not contain as a file")]
    HardLink { target: String },
    #[error("it replaces the root directory")]
    ReplacesRoot,
    #[error("it is a sparse file")]
    Sparse,
    #[error("it has the unknown type {0:#04x}")]
    UnknownType(u8),
    #[error("its extended header cannot be understood")]
    BadExtendedHeader,
}

const REBUILD: &str = "build the image again, or fetch it again from where it came; nothing was kept of it";
const DISTRUST: &str = "do not trust this image; ask its maker for a repaired one; nothing was kept of it";

impl ImageError {
    fn kind_and_mend(&self) -> (Kind, &'static str) {
        let bad = Kind::BadImage;
        match self {
            ImageError::BadReference { .. } => (
                Kind::Invalid,
                "write oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF] or \
                 docker://HOST/NAME[:TAG|@DIGEST]",
            ),
            ImageError::BadDigest { .. } => {
                (Kind::Invalid, "a digest is `sha256:` and 64 hexadecimal digits")
            }
            ImageError::WrongDigest { .. } | ImageError::WrongSize { .. } => {
                (bad, "fetch the image again: it was changed or cut short on its way; nothing was kept of it")
            }
            ImageError::WrongPlatform { .. } => (bad, "build or choose the image for linux/amd64"),
            ImageError::NoEntrypoint => {
                (bad, "say what to run after `--`, or set an Entrypoint in the image")
            }
            ImageError::Ambiguous { .. } => {
                (Kind::Invalid, "add the name of one of them, as in `oci:DIR:TAG`")
            }
            ImageError::BadEntry { fault, .. } => match fault {
                EntryFault::DeviceNode { .. } => {
                    (bad, "build the image without device nodes; the machine has its own /dev")
                }
                EntryFault::Sparse => {
                    (bad, "build the image with a tool that writes plain tar (no --sparse)")
                }
                _ => (bad, DISTRUST),
            },
            ImageError::OverLimit { .. } => (
                bad,
                "do not trust this image unless you know why it is so large; the operator can raise the limit",
            ),
            ImageError::Missing { .. }
            | ImageError::BadDocument { .. }
            | ImageError::Unsupported { .. }
            | ImageError::BadLayer { .. } => (bad, REBUILD),
            ImageError::Read { .. } | ImageError::Write { .. } => (Kind::Internal, "see the daemon's log"),
        }
    }
}

impl From<ImageError> for Problem {
    fn from(error: ImageError) -> Problem {
        match &error {
            ImageError::Read { place, error } => match error.kind() {
                io::ErrorKind::NotFound => Problem::new(
                    Kind::NotFound,
                    format!("{place}: {error}"),
                    "check the path and the name of the image",
                ),
                _ => Problem::io(place, error),
            },
            ImageError::Write { place, error } => Problem::io(place, error),
            _ => {
                let (kind, mend) = error.kind_and_mend();
                Problem::new(kind, error.to_string(), mend)
            }
        }
    }
}
