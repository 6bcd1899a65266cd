//! File 0: where to begin. Two slots, written in turn, so that a torn one leaves the other.

use super::record::At;
use super::seal::{RootKey, SALT, SealKey, TAG};
use crate::error::{DataError, StorageError};
use crate::storage::Disk;

const MAGIC: [u8; 8] = *b"CPSTORE\x01";
const SLOT: u64 = 512;
const BODY: usize = 40;
const SIZE: usize = 8 + SALT + BODY + TAG;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct First {
    pub sequence: u64,
    /// No segment of a higher number holds anything.
    pub newest: u32,
    /// The last checkpoint, and the size of its body; segment 0 if there is none.
    pub checkpoint: At,
    pub checkpoint_size: u32,
    /// The log counts from here; what is before is in the checkpoint.
    pub replay: At,
}

impl First {
    fn encode(&self) -> [u8; BODY] {
        let numbers = [self.checkpoint.segment, self.checkpoint.offset, self.checkpoint_size];
        let more = [self.replay.segment, self.replay.offset, self.newest, 0, 0];
        let mut body = [0; BODY];
        body[..8].copy_from_slice(&self.sequence.to_le_bytes());
        for (at, number) in numbers.iter().chain(&more).enumerate() {
            body[8 + at * 4..12 + at * 4].copy_from_slice(&number.to_le_bytes());
        }
        body
    }

    fn decode(body: &[u8; BODY]) -> First {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| body[8 + at * 4 + n]));
        First {
            sequence: u64::from_le_bytes(std::array::from_fn(|n| body[n])),
            checkpoint: At { segment: word(0), offset: word(1) },
            checkpoint_size: word(2),
            replay: At { segment: word(3), offset: word(4) },
            newest: word(5),
        }
    }
}

fn key(root: &RootKey, salt: &[u8]) -> SealKey {
    SealKey::new(root.derive(b"first", salt))
}

/// On the disk when it answers.
pub(crate) fn write(
    disk: &dyn Disk,
    root: &RootKey,
    first: &First,
    salt: &[u8; SALT],
) -> Result<(), DataError> {
    let mut body = first.encode();
    let tag = key(root, salt).seal(0, &MAGIC, &mut body);
    let tag = tag.ok_or(DataError::TooLarge("a record that cannot be sealed"))?;
    let slot = [&MAGIC[..], salt, &body, &tag].concat();
    disk.write(0, first.sequence % 2 * SLOT, &slot)?;
    disk.sync(0)?;
    Ok(())
}

/// The newest of the slots that are whole.
pub(crate) fn read(disk: &dyn Disk, root: &RootKey) -> Result<Option<First>, DataError> {
    let mut newest: Option<First> = None;
    for slot in 0..2 {
        let mut bytes = [0; SIZE];
        match disk.read(0, slot * SLOT, &mut bytes) {
            Ok(()) => {}
            Err(StorageError::Short | StorageError::Missing) => continue,
            Err(error) => return Err(error.into()),
        }
        let (magic, rest) = bytes.split_at_mut(8);
        let (salt, rest) = rest.split_at_mut(SALT);
        let (body, tag) = rest.split_at_mut(BODY);
        let (Ok(tag), Ok(body)) = (<&[u8; TAG]>::try_from(&*tag), <&mut [u8; BODY]>::try_from(body)) else {
            continue;
        };
        if magic == MAGIC && key(root, salt).unseal(0, &MAGIC, body, tag) {
            let first = First::decode(body);
            newest = newest.filter(|newest| newest.sequence > first.sequence).or(Some(first));
        }
    }
    Ok(newest)
}
