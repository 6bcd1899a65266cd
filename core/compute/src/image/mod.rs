//! OCI images become one deterministic read-only root file system and a configuration.
//!
//! The way of an image: a [`Reference`] says where it is; [`manifest`] picks the manifest for this host and reads it;
//! [`RootfsBuilder`] takes its layers one after the other and writes the root file system ([`erofs`]). All input is
//! taken for hostile: every document, digest, length and path is checked, and [`Limits`] bound memory and disk.

pub mod archive;
mod config;
pub mod decompress;
pub mod digest;
pub mod erofs;
mod error;
mod layer;
mod limits;
pub mod manifest;
mod pax;
mod reference;
mod rootfs;
pub mod tree;

pub use config::ImageConfig;
pub use digest::{Blob, Digest};
pub use error::{EntryFault, ImageError};
pub use layer::LeftOut;
pub use limits::Limits;
pub use reference::{Reference, Remote, Select};
pub use rootfs::{Rootfs, RootfsBuilder};
