//! Finding what has rotted on the disk, and giving it up so that peers can bring it again.

use super::Core;
use crate::error::DataError;
use crate::store::pages::{BITS, BITS_IN_PAGE, NODES, NODES_IN_PAGE, PLACES, PLACES_IN_PAGE};
use crate::store::record::{self, Change};
use std::ops::Range;

/// What has rotted of a core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Blocks that cannot be read as they were written.
    pub blocks: Vec<Range<u64>>,
    /// Pages of the index, by kind and number, which are damaged themselves.
    pub(crate) pages: Vec<(u8, u64)>,
}

impl Damage {
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.pages.is_empty()
    }

    fn add(&mut self, range: Range<u64>) {
        match self.blocks.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => self.blocks.push(range),
        }
    }
}

impl Core {
    /// Reads every block that is here and checks it against the tree, the pages of the index, and the tree
    /// against its signature. Fails only where the core as a whole is not to be trusted.
    pub fn verify(&self) -> Result<Damage, DataError> {
        let (length, mut damage) = (self.head()?.length, self.damaged_pages()?);
        let pages = damage.pages.clone();
        for (kind, number) in &pages {
            damage.add(covered(*kind, *number, length));
        }
        let mut blocks = Vec::new();
        for index in 0..length {
            match self.get_raw(index) {
                Ok(_) | Err(DataError::NotHere { .. }) => {}
                Err(DataError::Damaged { .. }) => blocks.push(index..index + 1),
                Err(error) => return Err(error),
            }
        }
        let mut all: Vec<Range<u64>> = damage.blocks.drain(..).chain(blocks).collect();
        all.sort_unstable_by_key(|range| (range.start, range.end));
        all.into_iter().filter(|range| !range.is_empty()).for_each(|range| damage.add(range));
        let mut inner = self.store.lock();
        let (state, _) = inner.parts(self.id)?;
        match (&state.signed, &state.verifier) {
            (Some(signed), Some(verifier)) if !verifier.verify(&signed.head, &signed.signature) => {
                Err(DataError::BadSignature)
            }
            _ => Ok(damage),
        }
    }

    fn damaged_pages(&self) -> Result<Damage, DataError> {
        let mut inner = self.store.lock();
        let (state, floor) = inner.parts(self.id)?;
        let mut damage = Damage::default();
        for (kind, number) in state.table.keys() {
            match state.page(floor, *kind, *number) {
                Ok(_) => {}
                Err(DataError::Damaged { .. }) => damage.pages.push((*kind, *number)),
                Err(error) => return Err(error),
            }
        }
        Ok(damage)
    }

    /// Gives up what [`Self::verify`] has found: those blocks are not here any more, and can be downloaded.
    pub fn clear_damaged(&self, damage: &Damage) -> Result<(), DataError> {
        for (kind, number) in &damage.pages {
            let mut inner = self.store.lock();
            inner.load(self.id)?;
            inner.write(record::small(self.id, &Change::Drop { kind: *kind, number: *number }))?;
            let (state, floor) = inner.parts(self.id)?;
            state.drop_page(floor, *kind, *number);
            inner.dirty.insert(self.id);
        }
        damage.blocks.iter().try_for_each(|range| self.clear(range.start, range.end))
    }
}

/// The blocks about which a page says something.
fn covered(kind: u8, number: u64, length: u64) -> Range<u64> {
    let each = match kind {
        NODES => NODES_IN_PAGE / 2,
        PLACES => PLACES_IN_PAGE,
        BITS => BITS_IN_PAGE,
        _ => 0,
    };
    (number * each).min(length)..((number + 1) * each).min(length)
}
