//! What went wrong, as a person reads it: the cause, and the mend.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The kind of a problem. Stable: the API's `kind` field and the CLI's exit codes come from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A fault of CloudPal's own.
    Internal,
    /// The request itself is wrong (a bad name, an unknown field).
    Invalid,
    NotFound,
    /// The name, port or path is taken.
    Taken,
    /// The request is well-formed, but not allowed in the present state.
    Refused,
    /// The image cannot be run or trusted.
    BadImage,
    /// The host lacks something (root, /dev/net/tun, qemu, a guest kernel).
    HostLacks,
    DiskFull,
    /// The daemon cannot be reached, or is shutting down.
    Unavailable,
}

/// An error for people: what happened, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub kind: Kind,
    /// What was wrong, and where.
    pub what: String,
    /// What to do about it; empty only when nothing can be done.
    pub mend: String,
}

impl Problem {
    pub fn new(kind: Kind, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Problem { kind, what: what.into(), mend: mend.into() }
    }

    /// An IO error with the place where it happened; a full disk keeps its own kind.
    pub fn io(place: impl fmt::Display, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                let mend = "free some space on that disk, then try again; nothing was changed";
                Problem::new(Kind::DiskFull, format!("{place}: the disk is full"), mend)
            }
            ErrorKind::PermissionDenied => {
                Problem::new(Kind::HostLacks, format!("{place}: {error}"), "run it as root")
            }
            ErrorKind::AlreadyExists => {
                Problem::new(Kind::Taken, format!("{place}: {error}"), "choose another, or remove it")
            }
            _ => Problem::new(Kind::Internal, format!("{place}: {error}"), "see the daemon's log"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.mend.is_empty() {
            write!(f, "\n  mend: {}", self.mend)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}
