//! The Linux side of the data: connections that carry replication.

pub mod transport;
