//! The Linux side of CloudPal: what the pure crates want done on a host is done here.
//!
//! Invariant: `unsafe` stays in the modules that say `#![allow(unsafe_code)]`, one reason per use.

pub mod data;
pub mod disk;
pub mod image;
pub mod net;
pub mod store;
pub mod vmm;
