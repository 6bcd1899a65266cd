//! Reads the golden data, and makes the same blocks and keys as the script that made it.

#![allow(dead_code)] // each test file uses its own part
use cloudpal_data::crypto::KeyPair;
use cloudpal_data::tree::{Head, Node, NodeTable};
use serde_json::Value;

pub fn golden() -> Value {
    serde_json::from_str(include_str!("../../golden/golden.json")).unwrap()
}

pub fn list(value: &Value) -> Vec<Value> {
    value.as_array().unwrap().clone()
}

pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

pub fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

pub fn hash(value: &Value) -> [u8; 32] {
    bytes(value).try_into().unwrap()
}

pub fn node(value: &Value) -> Node {
    Node { index: number(&value["index"]), size: number(&value["size"]), hash: hash(&value["hash"]) }
}

pub fn pair(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

pub fn block(index: u64, size: u64) -> Vec<u8> {
    (0..size).map(|j| ((index * 7 + j) & 255) as u8).collect()
}

/// The tree over the golden blocks.
pub fn grown(length: u64) -> (Head, NodeTable) {
    let (mut head, mut made, mut nodes) = (Head::default(), Vec::new(), NodeTable::default());
    for index in 0..length {
        head.append(&block(index, (index * 37) % 101), &mut made).unwrap();
    }
    made.iter().for_each(|node| nodes.put(node));
    (head, nodes)
}
