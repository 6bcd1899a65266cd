//! Compact encoding, as the JavaScript stack writes it: little-endian, integers of one, three, five or nine
//! bytes.
//!
//! Ours and not the `compact-encoding` crate, because that one reserves memory for as many elements as the
//! input claims. Here nothing is reserved before the bytes for it are there, and integers that JavaScript
//! cannot hold exactly are refused.

use crate::error::DataError;

/// The largest integer that the JavaScript stack holds exactly; larger ones never come from an honest peer.
pub const MAX_UINT: u64 = (1 << 53) - 1;

/// Takes values off the front of some bytes.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many bytes are left.
    pub fn rest(&self) -> usize {
        self.rest.len()
    }

    pub fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DataError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(DataError::Malformed("cut short"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], DataError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DataError::Malformed("cut short"))?;
        self.rest = rest;
        Ok(*taken)
    }

    pub fn uint(&mut self) -> Result<u64, DataError> {
        let [first] = self.fixed::<1>()?;
        let value = match first {
            0xfd => u64::from(u16::from_le_bytes(self.fixed()?)),
            0xfe => u64::from(u32::from_le_bytes(self.fixed()?)),
            0xff => u64::from_le_bytes(self.fixed()?),
            small => u64::from(small),
        };
        if value > MAX_UINT { Err(DataError::Malformed("an integer above 2^53")) } else { Ok(value) }
    }

    /// Bytes with their count before them.
    pub fn buffer(&mut self) -> Result<&'a [u8], DataError> {
        let count = self.uint()?;
        self.take(usize::try_from(count).map_err(|_| DataError::Malformed("cut short"))?)
    }

    /// A count and as many elements, at most `most`.
    pub fn array<T>(
        &mut self,
        most: usize,
        mut element: impl FnMut(&mut Self) -> Result<T, DataError>,
    ) -> Result<Vec<T>, DataError> {
        let count = self.uint()?;
        if count > most as u64 {
            return Err(DataError::Malformed("a list that is too long"));
        }
        (0..count).map(|_| element(self)).collect()
    }

    /// Everything was read.
    pub fn end(&self) -> Result<(), DataError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DataError::Malformed("bytes after the end")) }
    }
}

/// Collects values into bytes.
#[derive(Default)]
pub struct Writer {
    pub bytes: Vec<u8>,
}

impl Writer {
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn uint(&mut self, value: u64) {
        if value <= 0xfc {
            self.bytes.push(value as u8);
        } else if let Ok(value) = u16::try_from(value) {
            self.bytes.push(0xfd);
            self.raw(&value.to_le_bytes());
        } else if let Ok(value) = u32::try_from(value) {
            self.bytes.push(0xfe);
            self.raw(&value.to_le_bytes());
        } else {
            self.bytes.push(0xff);
            self.raw(&value.to_le_bytes());
        }
    }

    pub fn buffer(&mut self, bytes: &[u8]) {
        self.uint(bytes.len() as u64);
        self.raw(bytes);
    }

    pub fn array<T>(&mut self, elements: &[T], mut element: impl FnMut(&mut Self, &T)) {
        self.uint(elements.len() as u64);
        for each in elements {
            element(self, each);
        }
    }
}
