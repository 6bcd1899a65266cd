//! Who are my devices, how do packets reach them, which packet wakes whom.
//!
//! Invariant: nothing here does IO, reads a clock or draws randomness. It says what a tenant's network must be
//! ([`plan::NetPlan`]), and renders and answers what follows from that; the host makes it so.

pub mod address;
pub mod dns;
pub mod domain;
pub mod keys;
pub mod link;
pub mod names;
pub mod plan;
pub mod profile;
pub mod ruleset;
