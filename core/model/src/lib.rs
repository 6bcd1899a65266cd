//! Plain data that every crate may know: ids, names, keys, time, problems and the control messages of guest and VMM.
//!
//! Invariant: nothing here does IO, reads a clock or draws randomness.

pub mod guest;
mod id;
mod key;
mod name;
mod problem;
mod rates;
pub mod store;
mod time;
pub mod vmm;

pub use id::{DeviceId, MachineId, OperationId, TenantId};
pub use key::{PresharedKey, PrivateKey, PublicKey};
pub use name::{Name, NameError};
pub use problem::{Kind, Problem};
pub use rates::{BURST_MS, Rates};
pub use time::Now;
