//! libFuzzer's way in. One program with all targets, because each would have the same libraries in it: the
//! environment says which one runs.
#![no_main]
#![allow(unsafe_code)] // the macro exports the symbol that libFuzzer calls

use cloudpal_fuzz::{Digest, digest, list::CHOICE};
use std::sync::OnceLock;

static CHOSEN: OnceLock<Digest> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let target = CHOSEN.get_or_init(|| {
        let name = std::env::var(CHOICE).unwrap_or_default();
        digest(&name).unwrap_or_else(|| panic!("{CHOICE} names no target: `{name}`"))
    });
    target(bytes);
});
