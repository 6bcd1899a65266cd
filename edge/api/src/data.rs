//! A tenant's data: cores, bees, drives and tries, each under a name of its own.
//!
//! Invariants: a key or value that may be any bytes travels as base64 in JSON and as it is in a body; what a version is
//! differs by kind (see [`DataKind`]), but a larger one is always a later one.

use crate::Secret;
use cloudpal_model::Name;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The core in which CloudPal keeps what was asked of the tenant's cloud: one [`crate::Operation`] a block.
pub const AUDIT_CORE: &str = "cloudpal-audit";

/// The longest block of a core, and the longest value of a bee or trie.
pub const MAX_BLOCK_BYTES: usize = 15 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// An append-only log of blocks (Hypercore). Its versions are its lengths.
    Core,
    /// A sorted key-value store with its history (Hyperbee).
    Bee,
    /// Files and folders with their history (Hyperdrive).
    Drive,
    /// A key-value store by paths (Hypertrie).
    Trie,
}

/// Make something new, or seed what somebody else writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DataAdd {
    #[schema(schema_with = crate::schema::name)]
    pub name: Name,
    pub kind: DataKind,
    /// The key of what another peer writes, hexadecimal or z-base-32: it is downloaded, kept and served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What the other peer's blocks are encrypted with, 64 hexadecimal digits. Without it they are kept and served
    /// blindly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Password)]
    pub encryption_key: Option<Secret>,
    /// Encrypt the blocks of something new, so that only who has the encryption key can read them.
    #[serde(default)]
    pub encrypted: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Data {
    #[schema(schema_with = crate::schema::name)]
    pub name: Name,
    pub kind: DataKind,
    /// The public key, 64 hexadecimal digits: who knows it can ask for the blocks.
    pub key: String,
    pub discovery_key: String,
    /// Written here; false: somebody else's, seeded.
    pub writable: bool,
    pub encrypted: bool,
    /// Blocks; of a drive, those of its list of files.
    pub length: u64,
    pub fork: u64,
    /// Of a drive, with the contents.
    pub byte_length: u64,
    /// Blocks that are here.
    pub blocks_here: u64,
    /// Peers that are connected just now.
    pub peers: u32,
    /// Why nothing is written to it at present, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<DataFrozen>,
}

/// Its key has signed more than there is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum DataFrozen {
    /// So many blocks, as a peer has proved; this is what a writer finds that was restored from an old backup.
    Behind { fork: u64, length: u64 },
    /// Two histories of one fork. It stays as it is.
    Conflict { fork: u64, length: u64 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DataList {
    pub data: Vec<Data>,
    /// What all of the tenant's data takes on the disk.
    pub disk_bytes: u64,
    /// Writes are refused beyond it; `null`: no limit.
    pub quota_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DataQuota {
    /// `null`: no limit.
    pub quota_bytes: Option<u64>,
}

/// What another peer needs to take part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DataShare {
    pub key: String,
    /// Who has it can read; who has not can only keep and serve.
    #[schema(value_type = Option<String>, format = Password)]
    pub encryption_key: Option<Secret>,
    /// Where the tenant's server speaks the replication protocol, on the overlay: `ada.pal:49737` and its addresses.
    pub addresses: Vec<String>,
    /// The server's public key in the Noise handshake, 64 hexadecimal digits.
    pub server_public_key: String,
}

/// A peer to replicate with, besides those that connect by themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DataPeerAdd {
    /// `HOST:PORT`, an address on the tenant's overlay.
    pub address: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DataPeer {
    pub address: String,
    /// 64 hexadecimal digits; empty until the handshake is over.
    pub public_key: String,
    pub length: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DataPeerList {
    pub peers: Vec<DataPeer>,
}

/// What reading every block and comparing it with the signed tree found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DataVerified {
    pub blocks: u64,
    /// Blocks that are damaged, as ranges of index and count. They are asked for again from peers.
    pub damaged: Vec<(u64, u64)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DataCompacted {
    pub freed_bytes: u64,
}

/// The length of the core after a write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DataVersion {
    pub version: u64,
}

/// Which blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BlockQuery {
    /// Keep the answer open and send what is appended from now on.
    #[serde(default)]
    pub follow: bool,
    /// The first block; absent: 0.
    #[serde(default)]
    pub start: Option<u64>,
    /// Before this block; absent: the end.
    #[serde(default)]
    pub end: Option<u64>,
}

/// Where a consumer of a core is. What it has not consumed comes again, also after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DataCursor {
    pub fork: u64,
    /// The first block that is not consumed.
    pub next: u64,
    /// How many blocks wait.
    pub behind: u64,
    /// The core was cut since: what was consumed may have been replaced.
    pub cut: bool,
}

/// All blocks before `next` are consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DataCursorMove {
    /// The fork that was read.
    pub fork: u64,
    pub next: u64,
}

/// Cut a core to its first blocks (a new fork), or forget blocks to give their space back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "cut")]
pub enum BlockCut {
    Truncate { length: u64 },
    Clear { start: u64, end: u64 },
}

/// As it was when it had this version; absent: as it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VersionQuery {
    #[serde(default)]
    pub version: Option<u64>,
    /// A key in the path is given as hexadecimal digits: that is how one is named that is no UTF-8.
    #[serde(default)]
    pub hex: bool,
}

/// How a key is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct KeyQuery {
    /// As hexadecimal digits: that is how one is named that is no UTF-8.
    #[serde(default)]
    pub hex: bool,
}

/// Which entries of a bee or trie, and of which version.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EntryQuery {
    #[serde(default)]
    pub version: Option<u64>,
    /// The keys below are given as hexadecimal digits.
    #[serde(default)]
    pub hex: bool,
    /// Only keys that begin so.
    #[serde(default)]
    pub prefix: Option<String>,
    #[serde(default)]
    pub gt: Option<String>,
    #[serde(default)]
    pub gte: Option<String>,
    #[serde(default)]
    pub lt: Option<String>,
    #[serde(default)]
    pub lte: Option<String>,
    #[serde(default)]
    pub reverse: bool,
    /// At most so many; absent: 1000.
    #[serde(default)]
    pub limit: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// As text; what is no UTF-8 is replaced.
    pub key: String,
    pub key_base64: String,
    /// `null` in a list of changes: the key was deleted.
    pub value_base64: Option<String>,
    /// The version that wrote it.
    pub version: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EntryList {
    pub entries: Vec<Entry>,
    /// The limit ended the list.
    pub more: bool,
}

/// What happened, newest first, or between two versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// What changed between this version and `until` (or now), each key once; absent: every write, newest first.
    #[serde(default)]
    pub since: Option<u64>,
    #[serde(default)]
    pub until: Option<u64>,
    #[serde(default)]
    pub limit: Option<u32>,
}

/// How a file is written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FileQuery {
    /// The file may be executed.
    #[serde(default)]
    pub executable: bool,
    /// A symbolic link to this, and the body is empty.
    #[serde(default)]
    pub link: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FileListQuery {
    #[serde(default)]
    pub version: Option<u64>,
    /// The folder; absent: the root.
    #[serde(default)]
    pub folder: Option<String>,
    /// With all that is in folders below.
    #[serde(default)]
    pub recursive: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    File,
    Folder,
    Link,
    /// In a list of changes: it was removed.
    Removed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct File {
    /// From the root: `/photos/cat.jpg`.
    pub path: String,
    pub kind: FileKind,
    pub bytes: u64,
    pub executable: bool,
    /// Where a link leads.
    pub target: Option<String>,
    /// The version that wrote it; 0 for a folder, which is there because of what it holds.
    pub version: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FileList {
    pub files: Vec<File>,
    /// The version that was looked at.
    pub version: u64,
}

/// Give the space of old contents back: those that no version from `keep_from` on shows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FilePurge {
    pub keep_from: u64,
}
