//! Ranges of keys, the keys of a bee within a bee, and what keys and values mean.

use crate::error::DataError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::ops::Bound;

/// Which keys, in which order, and how many of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Bound<Vec<u8>>,
    pub end: Bound<Vec<u8>>,
    pub reverse: bool,
    pub limit: Option<u64>,
}

impl Default for KeyRange {
    fn default() -> Self {
        KeyRange::all()
    }
}

impl KeyRange {
    pub fn all() -> Self {
        KeyRange { start: Bound::Unbounded, end: Bound::Unbounded, reverse: false, limit: None }
    }

    /// The keys that begin with these bytes.
    pub fn prefix(prefix: &[u8]) -> Self {
        let end = successor(prefix).map_or(Bound::Unbounded, Bound::Excluded);
        KeyRange { end, ..KeyRange::all().gte(prefix) }
    }

    pub fn gt(self, key: &[u8]) -> Self {
        KeyRange { start: Bound::Excluded(key.to_vec()), ..self }
    }

    pub fn gte(self, key: &[u8]) -> Self {
        KeyRange { start: Bound::Included(key.to_vec()), ..self }
    }

    pub fn lt(self, key: &[u8]) -> Self {
        KeyRange { end: Bound::Excluded(key.to_vec()), ..self }
    }

    pub fn lte(self, key: &[u8]) -> Self {
        KeyRange { end: Bound::Included(key.to_vec()), ..self }
    }

    pub fn reverse(self) -> Self {
        KeyRange { reverse: !self.reverse, ..self }
    }

    pub fn limit(self, limit: u64) -> Self {
        KeyRange { limit: Some(limit), ..self }
    }
}

/// The first key that is above all that begin with the prefix; `None` if there is none.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut next = prefix[..=last].to_vec();
    next[last] += 1;
    Some(next)
}

/// A bee within a bee: its keys are those that begin with its prefix, as `sub` of `hyperbee` makes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sub {
    prefix: Vec<u8>,
    separator: Vec<u8>,
}

impl Sub {
    pub fn new(name: &[u8]) -> Sub {
        Sub::separated(name, &[0])
    }

    /// With another separator than the byte zero; the subs within get it too.
    pub fn separated(name: &[u8], separator: &[u8]) -> Sub {
        Sub { prefix: [name, separator].concat(), separator: separator.to_vec() }
    }

    pub fn sub(&self, name: &[u8]) -> Sub {
        let prefix = [&self.prefix, name, &self.separator].concat();
        Sub { prefix, separator: self.separator.clone() }
    }

    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// The key in the whole bee.
    pub fn key(&self, key: &[u8]) -> Vec<u8> {
        [&self.prefix, key].concat()
    }

    /// The key within the sub, where the key in the whole bee is of the sub.
    pub fn strip<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        key.strip_prefix(&self.prefix[..])
    }

    pub fn range(&self, range: KeyRange) -> KeyRange {
        let whole = KeyRange::prefix(&self.prefix);
        let within = |bound: Bound<Vec<u8>>, or: Bound<Vec<u8>>| match bound {
            Bound::Unbounded => or,
            Bound::Included(key) => Bound::Included(self.key(&key)),
            Bound::Excluded(key) => Bound::Excluded(self.key(&key)),
        };
        KeyRange { start: within(range.start, whole.start), end: within(range.end, whole.end), ..range }
    }
}

/// What keys or values mean.
pub trait Encoding {
    type Item;
    fn encode(item: &Self::Item) -> Result<Vec<u8>, DataError>;
    fn decode(bytes: &[u8]) -> Result<Self::Item, DataError>;
}

pub struct Binary;
pub struct Utf8;
/// JSON, as `JSON.stringify` writes it: no space, no line end.
pub struct Json<T>(PhantomData<T>);

impl Encoding for Binary {
    type Item = Vec<u8>;

    fn encode(item: &Vec<u8>) -> Result<Vec<u8>, DataError> {
        Ok(item.clone())
    }

    fn decode(bytes: &[u8]) -> Result<Vec<u8>, DataError> {
        Ok(bytes.to_vec())
    }
}

impl Encoding for Utf8 {
    type Item = String;

    fn encode(item: &String) -> Result<Vec<u8>, DataError> {
        Ok(item.as_bytes().to_vec())
    }

    /// Where it is no UTF-8, that is replaced, as JavaScript does.
    fn decode(bytes: &[u8]) -> Result<String, DataError> {
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

impl<T: Serialize + DeserializeOwned> Encoding for Json<T> {
    type Item = T;

    fn encode(item: &T) -> Result<Vec<u8>, DataError> {
        serde_json::to_vec(item).map_err(|_| DataError::Malformed("a value that JSON cannot hold"))
    }

    fn decode(bytes: &[u8]) -> Result<T, DataError> {
        serde_json::from_slice(bytes)
            .map_err(|_| DataError::Malformed("a value that is not the JSON it should be"))
    }
}
