//! Wanted against actual, reconciled; every change is an operation in an append-only log; the wake arm that joins network and
//! compute.
//!
//! Invariant: the engine does no IO and reads no clock. Requests and events go in, effects come out, records go to the store.

pub mod effect;
pub mod event;
pub mod request;
pub mod view;
