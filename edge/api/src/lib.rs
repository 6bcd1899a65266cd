//! The words of CloudPal's HTTP API, and a client that speaks them over the daemon's unix socket.
//!
//! Invariants: what goes in refuses unknown fields, so that a typing error is never silently ignored; what comes out
//! only ever gains fields within `/v1`; times end in `_wall_ms` (Unix epoch) and sizes and durations carry their unit
//! in the name.

mod app;
mod client;
mod data;
mod device;
mod export;
mod host;
mod machine;
mod operation;
mod problem;
mod schema;
mod secret;
mod tenant;

pub use app::{App, AppInstall, AppKind, AppList, LogQuery, Manifest};
pub use client::{Client, DEFAULT_SOCKET, SOCKET_ENV, Sink, check_key};
pub use data::{
    AUDIT_CORE, BlockCut, BlockQuery, Data, DataAdd, DataCompacted, DataCursor, DataCursorMove, DataFrozen,
    DataKind, DataList, DataPeer, DataPeerAdd, DataPeerList, DataQuota, DataShare, DataVerified, DataVersion,
    Entry, EntryList, EntryQuery, File, FileKind, FileList, FileListQuery, FilePurge, FileQuery,
    HistoryQuery, KeyQuery, MAX_BLOCK_BYTES, VersionQuery,
};
pub use device::{Device, DeviceAdd, DeviceAdded, DeviceList};
pub use export::{
    DataImported, EXPORT_FORMAT, EXPORT_INDEX, EXPORT_SUM, EXPORT_VERSION, ExportFrame, ExportFrames,
    ExportIndex, ExportedCore, ExportedData,
};
pub use host::{Check, Doctor, Status};
pub use machine::{Exec, ExecOutput, Machine, MachineList};
pub use operation::{Accepted, Operation, OperationList, OperationQuery, OperationState, Progress};
pub use problem::ProblemBody;
pub use secret::Secret;
pub use tenant::{Tenant, TenantAdd, TenantList};
