//! Who are my devices, how do packets reach them, which packet wakes whom.
//!
//! Invariant: nothing here does IO or reads a clock. It says what a tenant's network must be ([`plan::NetPlan`]); the host makes
//! it so.

pub mod plan;
