//! What can go wrong with a core, and what a person reads about it.

use cloudpal_model::{Kind, Problem};
use thiserror::Error;

/// The storage under a core failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StorageError {
    #[error("the disk is full")]
    Full,
    #[error("the storage holds fewer bytes than were asked for")]
    Short,
    #[error("there is no such file")]
    Missing,
    #[error("the storage failed: {0}")]
    Failed(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DataError {
    /// Bytes that are no message of the protocol.
    #[error("malformed bytes: {0}")]
    Malformed(&'static str),
    /// A proof that does not prove what it claims.
    #[error("a proof that proves nothing: {0}")]
    BadProof(&'static str),
    #[error("the signature is not by those who may sign this core")]
    BadSignature,
    #[error("the manifest does not belong to this key")]
    WrongManifest,
    /// A request for something that the tree does not have.
    #[error("an impossible request: {0}")]
    BadRequest(&'static str),
    #[error("this core cannot be written here: the key pair is missing or is not its signer")]
    NotWritable,
    #[error("block {index} is beyond the end, {length}")]
    OutOfBounds { index: u64, length: u64 },
    /// The core has it, but not here: download it, then call again.
    #[error("block {index} is not here")]
    NotHere { index: u64 },
    #[error("{0}: more than this engine takes")]
    TooLarge(&'static str),
    #[error("the store is damaged, file {file:x}, byte {offset}: {what}")]
    Damaged { file: u64, offset: u64, what: &'static str },
    #[error("the store is sealed with another key, or its first file is damaged")]
    WrongKey,
    #[error("this store has no such core")]
    NoSuchCore,
    #[error("the core was cut below block {index} since this snapshot was taken")]
    SnapshotLost { index: u64 },
    /// The store is older than what its key has signed: a backup was restored.
    #[error(
        "the key of this core has signed {length} blocks, which were not all here: the store is an old copy"
    )]
    Behind { length: u64 },
    #[error("two histories of this core are signed: another one of {length} blocks, fork {fork}")]
    Conflict { fork: u64, length: u64 },
    /// An earlier write failed half-way, so that what is on the disk is unknown.
    #[error("an earlier write failed, so the core takes no more until it is opened anew")]
    Poisoned,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<DataError> for Problem {
    fn from(error: DataError) -> Problem {
        let (kind, mend) = match &error {
            DataError::Malformed(_) | DataError::BadProof(_) | DataError::BadSignature => {
                (Kind::Refused, "the peer is faulty or hostile: nothing of it was stored; drop it")
            }
            DataError::WrongManifest => (Kind::Refused, "give the manifest with which the core was made"),
            DataError::BadRequest(_) | DataError::OutOfBounds { .. } => {
                (Kind::Invalid, "ask for what is below the core's length")
            }
            DataError::NotHere { .. } => (Kind::Unavailable, "download it from a peer, then try again"),
            DataError::TooLarge(_) => (Kind::Invalid, "split it into smaller blocks or batches"),
            DataError::NotWritable => (Kind::Refused, "write on the host that has the key pair"),
            DataError::Damaged { .. } => (Kind::Internal, "restore the core from a peer, and check the disk"),
            DataError::WrongKey => (Kind::Refused, "unlock it with the tenant's own key"),
            DataError::NoSuchCore => (Kind::NotFound, "list the cores to see which there are"),
            DataError::SnapshotLost { .. } => (Kind::Invalid, "take a new snapshot"),
            DataError::Behind { .. } => (
                Kind::Refused,
                "stay connected to a peer that has them, and let `cloudpal core catch-up` (or `bee`, `drive`, `trie`) \
                 take them over; then it can be written again",
            ),
            DataError::Conflict { .. } => {
                (Kind::Refused, "keep what can be read, begin a new core, and write on one host only")
            }
            DataError::Poisoned => (Kind::Unavailable, "find out why the write failed, then open it anew"),
            DataError::Storage(StorageError::Full) => {
                (Kind::DiskFull, "free some space on that disk, then try again; reads go on meanwhile")
            }
            DataError::Storage(_) => (Kind::Internal, "see the host's log about that disk"),
        };
        Problem::new(kind, error.to_string(), mend)
    }
}
