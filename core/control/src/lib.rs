//! Wanted against actual, reconciled; every change is an operation in an append-only log; the wake arm that joins
//! network and compute.
//!
//! Invariant: the engine does no IO and reads no clock. Requests and events go in, effects come out, records go to the
//! store.

mod app;
mod device;
pub mod effect;
pub mod engine;
pub mod event;
mod household;
mod operations;
mod picture;
mod reconcile;
mod records;
pub mod request;
pub mod settings;
mod tenant;
pub mod view;
