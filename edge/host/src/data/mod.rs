//! The Linux side of the data: the disk under a store, and connections that carry replication.

pub mod disk;
pub mod transport;
