//! Images on this host: fetched, checked, and kept as read-only root file systems that machines share.

mod auth;
mod registry;
mod source;
mod store;

pub use auth::Credentials;
pub use store::{ImageStore, Progress, Stage, StoredImage};
