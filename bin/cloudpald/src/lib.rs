//! The daemon's parts, as a library so that tests can drive them without a process.

mod backend;
mod brain;
pub mod daemon;
mod doctor;
pub mod http;
mod images;
mod machines;
mod networks;
mod sampling;
pub mod serve;
pub mod settings;
