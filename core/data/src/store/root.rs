//! A core's root and a store's checkpoint, as bytes: where the pages are, and what is not in pages.

use super::pages::Table;
use super::record::{Place, read_head, read_place, write_head, write_place};
use super::state::{CoreState, SignedHead};
use crate::crypto::Hash;
use crate::encoding::{Reader, Writer};
use crate::error::DataError;
use crate::manifest::Manifest;
use crate::signature::Verifier;
use std::collections::BTreeMap;

const MOST: usize = 1 << 24;

pub(crate) fn encode(state: &CoreState) -> Vec<u8> {
    let mut to = Writer::default();
    to.raw(&state.key);
    match &state.verifier {
        None => to.uint(0),
        Some(verifier) if verifier.is_compat() => to.uint(1),
        Some(verifier) => {
            to.uint(2);
            to.buffer(&verifier.manifest().encode());
        }
    }
    write_head(&mut to, &state.head);
    to.uint(u64::from(state.signed.is_some()));
    if let Some(signed) = &state.signed {
        write_head(&mut to, &signed.head);
        to.buffer(&signed.signature);
    }
    [state.contiguous, state.stored_blocks, state.stored_bytes].iter().for_each(|number| to.uint(*number));
    to.uint(state.user_data.len() as u64);
    for (key, value) in &state.user_data {
        to.buffer(key);
        to.buffer(value);
    }
    to.uint(state.table.len() as u64);
    for ((kind, number), place) in &state.table {
        to.uint(u64::from(*kind));
        to.uint(*number);
        write_place(&mut to, place);
    }
    to.bytes
}

pub(crate) fn decode(id: u32, bytes: &[u8]) -> Result<CoreState, DataError> {
    let mut from = Reader::new(bytes);
    let key: Hash = from.fixed()?;
    let verifier = match from.uint()? {
        0 => None,
        1 => Some(Verifier::compat(key)),
        _ => Some(Verifier::new(key, Manifest::read(&mut Reader::new(from.buffer()?))?)?),
    };
    let mut state = CoreState::new(id, key, verifier);
    state.head = read_head(&mut from)?;
    if from.uint()? != 0 {
        let head = read_head(&mut from)?;
        state.signed = Some(SignedHead { head, signature: from.buffer()?.to_vec() });
    }
    state.contiguous = from.uint()?;
    state.stored_blocks = from.uint()?;
    state.stored_bytes = from.uint()?;
    let user_data = from.array(MOST, |from| Ok((from.buffer()?.to_vec(), from.buffer()?.to_vec())))?;
    state.user_data = user_data.into_iter().collect();
    let table = from.array(MOST, |from| {
        let (kind, number) = (from.uint()? as u8, from.uint()?);
        Ok(((kind, number), read_place(from)?))
    })?;
    state.table = table.into_iter().collect::<Table>();
    from.end()?;
    Ok(state)
}

/// All of a store that is not in its cores' roots.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    pub next_core: u32,
    pub cores: Vec<(u32, Hash, Place)>,
    pub live: BTreeMap<u32, u64>,
    pub meta: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Checkpoint {
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.uint(u64::from(self.next_core));
        to.array(&self.cores, |to, (id, key, place)| {
            to.uint(u64::from(*id));
            to.raw(key);
            write_place(to, place);
        });
        to.uint(self.live.len() as u64);
        for (segment, live) in &self.live {
            to.uint(u64::from(*segment));
            to.uint(*live);
        }
        to.uint(self.meta.len() as u64);
        for (key, value) in &self.meta {
            to.buffer(key);
            to.buffer(value);
        }
        to.bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DataError> {
        let mut from = Reader::new(bytes);
        let next_core = from.uint()? as u32;
        let cores = from.array(MOST, |from| Ok((from.uint()? as u32, from.fixed()?, read_place(from)?)))?;
        let live = from.array(MOST, |from| Ok((from.uint()? as u32, from.uint()?)))?;
        let meta = from.array(MOST, |from| Ok((from.buffer()?.to_vec(), from.buffer()?.to_vec())))?;
        from.end()?;
        let (live, meta) = (live.into_iter().collect(), meta.into_iter().collect());
        Ok(Checkpoint { next_core, cores, live, meta })
    }
}
