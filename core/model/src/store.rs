//! The port to the state store: records as keys and values, written in atomic, durable batches.
//!
//! It is declared here since those who use it (`control`) and those who implement it (`host`, `sim`) do not know each
//! other. Invariant every store keeps: after a crash, each batch is there as a whole or not at all, and a batch whose
//! `commit` returned `Ok` is there.

use crate::Problem;

/// One write of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put { key: String, value: Vec<u8> },
    Delete { key: String },
}

/// Where the state lives. One process owns it at a time.
pub trait Store: Send {
    /// Every record, by key order.
    fn load(&self) -> Result<Vec<(String, Vec<u8>)>, Problem>;

    /// Writes all of `batch`, durably, or nothing of it.
    fn commit(&mut self, batch: &[Change]) -> Result<(), Problem>;
}
