//! The part of protocol buffers in which bees and tries write their blocks.
//!
//! Invariants: reading costs work in proportion to the bytes; unknown fields are passed over, as the
//! JavaScript decoders (`protocol-buffers-encodings` 1.2.0) do; what ends within a field is refused.

use crate::error::DataError;

const CUT: DataError = DataError::Malformed("a protobuf message that is cut short");

/// The fields of a message, one after the other.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// A field: its number and what it holds.
pub(crate) enum Field<'a> {
    Varint(u64, u64),
    Bytes(u64, &'a [u8]),
    /// Four or eight bytes, which no message here has.
    Fixed,
}

impl<'a> Fields<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Fields { rest: bytes }
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], DataError> {
        let count = usize::try_from(count).map_err(|_| CUT)?;
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(CUT)?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn next(&mut self) -> Result<Option<Field<'a>>, DataError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = take_varint(&mut self.rest)?;
        let number = tag >> 3;
        let field = match tag & 7 {
            0 => Field::Varint(number, take_varint(&mut self.rest)?),
            1 => self.take(8).map(|_| Field::Fixed)?,
            2 => {
                let count = take_varint(&mut self.rest)?;
                Field::Bytes(number, self.take(count)?)
            }
            5 => self.take(4).map(|_| Field::Fixed)?,
            _ => return Err(DataError::Malformed("a protobuf field of an unknown type")),
        };
        Ok(Some(field))
    }
}

/// Takes an integer off the front.
pub(crate) fn take_varint(rest: &mut &[u8]) -> Result<u64, DataError> {
    let mut value = 0u64;
    for (at, byte) in rest.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if at == 9 && bits > 1 {
            break;
        }
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            *rest = &rest[at + 1..];
            return Ok(value);
        }
    }
    Err(DataError::Malformed("a varint that does not end"))
}

pub(crate) fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

pub(crate) fn varint_size(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// A field of bytes, of a number below 16.
pub(crate) fn put_bytes(to: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    to.push(number << 3 | 2);
    put_varint(to, bytes.len() as u64);
    to.extend_from_slice(bytes);
}

/// An integer field, of a number below 16.
pub(crate) fn put_uint(to: &mut Vec<u8>, number: u8, value: u64) {
    to.push(number << 3);
    put_varint(to, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_come_back(value: u64, after: Vec<u8>) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            prop_assert_eq!(bytes.len(), varint_size(value));
            bytes.extend_from_slice(&after);
            let mut rest = &bytes[..];
            prop_assert_eq!(take_varint(&mut rest), Ok(value));
            prop_assert_eq!(rest, &after[..]);
        }

        #[test]
        fn foreign_bytes_end(bytes: Vec<u8>) {
            let mut fields = Fields::new(&bytes);
            let mut count = 0;
            while let Ok(Some(_)) = fields.next() {
                count += 1;
            }
            prop_assert!(count <= bytes.len());
        }
    }
}
