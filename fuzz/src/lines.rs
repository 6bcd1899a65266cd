//! The control channels: lines of JSON from a guest, from a VMM that a guest may have taken over, and back.

use cloudpal_model::{guest, vmm};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;

fn line<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_vec(&message).expect("a message can be written");
    assert!(!written.contains(&b'\n'), "a line is one line");
    assert_eq!(serde_json::from_slice::<T>(&written).expect("what was written can be read"), message);
}

pub fn digest(bytes: &[u8]) {
    line::<guest::ToGuest>(bytes);
    line::<guest::FromGuest>(bytes);
    line::<vmm::ToVmm>(bytes);
    line::<vmm::FromVmm>(bytes);
}
