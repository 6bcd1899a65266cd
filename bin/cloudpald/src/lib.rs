//! The daemon's parts, as a library so that tests can drive them without a process.

pub mod http;
