//! A machine's life: image -> boot -> awake -> asleep -> awake -> gone.
//!
//! Invariant: nothing here does IO of its own or reads a clock. Image import reads and writes through streams it
//! is given; the VMM is behind the port in [`driver`].

pub mod driver;
pub mod image;
pub mod life;
