//! The log: segments, one file each, of sealed records.
//!
//! Invariants: a segment is written only by the opening of the store that made it; nothing is ever written twice
//! to the same place of it; the one after it says where it ends. What the first file names as the newest
//! segment was made whole before.

use super::first::{self, First};
use super::record::{At, MAX_BODY};
use super::seal::{RootKey, SALT, SealKey, TAG};
use crate::crypto;
use crate::error::{DataError, StorageError};
use crate::storage::Disk;
use std::collections::HashMap;
use std::sync::Arc;

const MAGIC: [u8; 8] = *b"CPSEG\0\0\x01";
/// Magic, number, salt, the number and the end of the segment before, a keyed hash over these.
pub(crate) const SEGMENT_HEAD: usize = 64;
/// Length of the body with the flag, CRC.
pub(crate) const RECORD_HEAD: usize = 8;
/// All that a record is longer than its body.
pub(crate) const OVERHEAD: usize = RECORD_HEAD + TAG;
/// How far a file is filled with zeros ahead.
const MIN_AHEAD: u32 = 16 << 10;
const MAX_AHEAD: u32 = 1 << 20;
/// Everything before this record was on the disk when it was written.
const ALL_SYNCED: u32 = 1 << 31;

#[derive(Debug)]
pub(crate) struct Log {
    pub disk: Arc<dyn Disk>,
    root: RootKey,
    entropy: [u8; 32],
    drawn: u64,
    pub first: First,
    keys: HashMap<u32, Arc<SealKey>>,
    /// Where the next record goes.
    pub end: At,
    /// All before it is on the disk.
    pub synced: At,
    staged: Vec<u8>,
    /// Up to there the file is filled with zeros, or that was tried. A write into what the file has already is
    /// synced several times as fast as one that makes it longer, for the file system has nothing of its own to write.
    ahead: u32,
    /// A write has failed, so the rest of the segment is not to be used.
    torn: bool,
    limit: u32,
}

/// A segment's header.
pub(crate) struct SegmentHead {
    pub before: At,
    pub key: Arc<SealKey>,
}

/// A record as it was found.
pub(crate) struct Found {
    pub at: At,
    pub body: Vec<u8>,
    pub all_synced: bool,
}

impl Log {
    pub fn new(disk: Arc<dyn Disk>, root: RootKey, entropy: [u8; 32], first: First, limit: u32) -> Self {
        let (keys, end) = (HashMap::new(), At::default());
        let (drawn, ahead, staged) = (0, 0, Vec::new());
        Log { disk, root, entropy, drawn, first, keys, end, synced: end, staged, ahead, torn: false, limit }
    }

    fn draw<const N: usize>(&mut self) -> [u8; N] {
        self.drawn += 1;
        let drawn = crypto::keyed_hash(&self.entropy, &[b"salt", &self.drawn.to_le_bytes()]);
        std::array::from_fn(|at| drawn[at % 32])
    }

    /// Begins a new segment. All that was written is on the disk when this answers.
    pub fn roll(&mut self) -> Result<(), DataError> {
        self.flush()?;
        if self.end.segment != 0 {
            let file = u64::from(self.end.segment);
            if u64::from(self.end.offset) < self.disk.len(file)? {
                self.disk.cut(file, u64::from(self.end.offset))?;
            }
            self.disk.sync(file)?;
        }
        let number = self.first.newest.checked_add(1).ok_or(DataError::TooLarge("2^32 segments"))?;
        let salt: [u8; SALT] = self.draw();
        let key = self.segment_key(number, &salt);
        let mut head = Vec::with_capacity(SEGMENT_HEAD);
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&u64::from(number).to_le_bytes());
        head.extend_from_slice(&salt);
        head.extend_from_slice(&u64::from(self.end.segment).to_le_bytes());
        head.extend_from_slice(&u64::from(self.end.offset).to_le_bytes());
        let proof = self.head_proof(&head);
        head.extend_from_slice(&proof);
        let file = u64::from(number);
        self.disk.create(file)?;
        self.disk.write(file, 0, &head)?;
        self.disk.sync(file)?;
        self.disk.sync_names()?;
        self.write_first(First { newest: number, ..self.first })?;
        self.keys.insert(number, Arc::new(key));
        self.end = At { segment: number, offset: SEGMENT_HEAD as u32 };
        self.synced = self.end;
        self.ahead = self.end.offset;
        self.torn = false;
        Ok(())
    }

    pub fn write_first(&mut self, first: First) -> Result<(), DataError> {
        let salt = self.draw();
        let first = First { sequence: self.first.sequence + 1, ..first };
        first::write(&*self.disk, &self.root, &first, &salt)?;
        self.first = first;
        Ok(())
    }

    fn segment_key(&self, number: u32, salt: &[u8; SALT]) -> SealKey {
        let purpose = [&b"segment "[..], &number.to_le_bytes()].concat();
        SealKey::new(self.root.derive(&purpose, salt))
    }

    fn head_proof(&self, head: &[u8]) -> [u8; 16] {
        let proof = self.root.derive(b"segment head", head);
        std::array::from_fn(|at| proof[at])
    }

    /// `None` if the file does not begin as a segment of this store.
    pub fn read_head(&mut self, number: u32) -> Result<Option<SegmentHead>, DataError> {
        let mut head = [0; SEGMENT_HEAD];
        match self.disk.read(u64::from(number), 0, &mut head) {
            Ok(()) => {}
            Err(StorageError::Short | StorageError::Missing) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| head[at + n]));
        if head[..8] != MAGIC || word(8) != u64::from(number) || head[48..] != self.head_proof(&head[..48]) {
            return Ok(None);
        }
        let salt: [u8; SALT] = std::array::from_fn(|at| head[16 + at]);
        let key = Arc::new(self.segment_key(number, &salt));
        self.keys.insert(number, key.clone());
        let before = At { segment: word(32) as u32, offset: word(40) as u32 };
        Ok(Some(SegmentHead { before, key }))
    }

    pub fn key(&mut self, segment: u32) -> Result<Arc<SealKey>, DataError> {
        if let Some(key) = self.keys.get(&segment) {
            return Ok(key.clone());
        }
        let head = self.read_head(segment)?;
        head.map(|head| head.key).ok_or(damaged(segment, 0, "it does not begin as a segment"))
    }

    pub fn forget(&mut self, segment: u32) {
        self.keys.remove(&segment);
    }

    /// A record of `size` bytes goes into the present segment.
    pub fn fits(&self, size: usize) -> bool {
        let begun = self.end.offset as usize > SEGMENT_HEAD;
        !self.torn && (!begun || self.end.offset as usize + OVERHEAD + size <= self.limit as usize)
    }

    /// Makes room for a record of `size` bytes. Answers where it will be.
    pub fn prepare(&mut self, size: usize) -> Result<At, DataError> {
        if size > MAX_BODY {
            return Err(DataError::TooLarge("a batch of more than 64 MiB"));
        }
        if !self.fits(size) {
            self.flush()?;
            self.roll()?;
        }
        Ok(self.end)
    }

    /// Seals a record, to be written by the next [`Self::flush`].
    pub fn stage(&mut self, mut body: Vec<u8>) -> Result<At, DataError> {
        let at = self.prepare(body.len())?;
        let key = self.key(at.segment)?;
        let clean = self.staged.is_empty() && self.synced == self.end;
        let length = body.len() as u32 | if clean { ALL_SYNCED } else { 0 };
        let head = record_head(at, length);
        let tag = key.seal(u64::from(at.offset), &head, &mut body);
        let tag = tag.ok_or(DataError::TooLarge("a record that cannot be sealed"))?;
        self.staged.extend_from_slice(&head);
        self.staged.extend_from_slice(&body);
        self.staged.extend_from_slice(&tag);
        self.end.offset += (OVERHEAD + body.len()) as u32;
        Ok(at)
    }

    pub fn staged_bytes(&self) -> usize {
        self.staged.len()
    }

    /// Writes what is staged. After a failure none of it is there, and the store goes on in another segment.
    pub fn flush(&mut self) -> Result<(), DataError> {
        if self.staged.is_empty() {
            return Ok(());
        }
        let start = self.end.offset - self.staged.len() as u32;
        let written = self.disk.write(u64::from(self.end.segment), u64::from(start), &self.staged);
        self.staged.clear();
        self.staged.shrink_to(1 << 20);
        if let Err(error) = written {
            self.end.offset = start;
            self.torn = true;
            return Err(error.into());
        }
        Ok(())
    }

    /// Before a sync: writes what is staged, and fills the file with zeros ahead, so that the next syncs are cheap.
    /// Not where much is written between syncs: that is limited by the bytes, and zeros would double them.
    pub fn ready_to_sync(&mut self) -> Result<(), DataError> {
        self.flush()?;
        let step = (self.end.offset / 2).clamp(MIN_AHEAD, MAX_AHEAD);
        let same = self.synced.segment == self.end.segment;
        let since = if same { self.end.offset.saturating_sub(self.synced.offset) } else { step };
        let beyond = self.end.offset >= self.limit;
        if self.end.offset <= self.ahead || since > step / 8 || self.torn || beyond {
            return Ok(());
        }
        self.ahead = self.end.offset.saturating_add(step).min(self.limit);
        let zeros = vec![0; (self.ahead - self.end.offset) as usize];
        // Without them it is slower, no more: a full disk will be told of by what has to be written.
        let _ = self.disk.write(u64::from(self.end.segment), u64::from(self.end.offset), &zeros);
        Ok(())
    }

    /// One record, written at once.
    pub fn append(&mut self, body: Vec<u8>) -> Result<At, DataError> {
        let at = self.stage(body)?;
        self.flush()?;
        Ok(at)
    }

    pub fn sync(&mut self) -> Result<(), DataError> {
        self.flush()?;
        self.disk.sync(u64::from(self.end.segment))?;
        self.synced = self.end;
        Ok(())
    }

    /// The body of a record of which place and size are known.
    pub fn read(&mut self, at: At, size: u32) -> Result<Vec<u8>, DataError> {
        let key = self.key(at.segment)?;
        let mut bytes = vec![0; size as usize + OVERHEAD];
        let read = self.disk.read(u64::from(at.segment), u64::from(at.offset), &mut bytes);
        read.map_err(|error| match error {
            StorageError::Short => damaged(at.segment, at.offset, "a record is cut short"),
            other => other.into(),
        })?;
        let body = unseal(&key, at, &mut bytes).map(<[u8]>::len);
        if body != Some(size as usize) {
            return Err(damaged(at.segment, at.offset, "a record is not what was written"));
        }
        bytes.truncate(RECORD_HEAD + size as usize);
        bytes.drain(..RECORD_HEAD);
        Ok(bytes)
    }
}

pub(crate) fn damaged(segment: u32, offset: u32, what: &'static str) -> DataError {
    DataError::Damaged { file: u64::from(segment), offset: u64::from(offset), what }
}

fn record_head(at: At, length: u32) -> [u8; RECORD_HEAD] {
    let crc = head_crc(at, length);
    let mut head = [0; RECORD_HEAD];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..].copy_from_slice(&crc.to_le_bytes());
    head
}

fn head_crc(at: At, length: u32) -> u32 {
    let words = [at.segment, at.offset, length];
    words.iter().fold(0, |crc, word| crc32c::crc32c_append(crc, &word.to_le_bytes()))
}

/// The length with its flag, if these bytes can begin a record at `at`.
fn length_at(at: At, bytes: &[u8]) -> Option<u32> {
    let head: [u8; RECORD_HEAD] = bytes.get(..RECORD_HEAD)?.try_into().ok()?;
    let word = |from: usize| u32::from_le_bytes([head[from], head[from + 1], head[from + 2], head[from + 3]]);
    let length = word(0);
    let fits = (length & !ALL_SYNCED) as usize <= MAX_BODY && word(4) == head_crc(at, length);
    fits.then_some(length)
}

/// Decrypts the record that these bytes begin with, in place; its body, if it is genuine.
fn unseal<'a>(key: &SealKey, at: At, bytes: &'a mut [u8]) -> Option<&'a [u8]> {
    let length = length_at(at, bytes)?;
    let size = (length & !ALL_SYNCED) as usize;
    let (head, rest) = bytes.split_at_mut(RECORD_HEAD);
    let (body, rest) = rest.split_at_mut_checked(size)?;
    let tag: [u8; TAG] = rest.get(..TAG)?.try_into().ok()?;
    key.unseal(u64::from(at.offset), head, body, &tag).then_some(&*body)
}

/// Reads the records of one segment, one after the other.
pub(crate) struct Scan {
    disk: Arc<dyn Disk>,
    key: Arc<SealKey>,
    pub at: At,
    /// The end of the file, or where the next segment says that this one ends.
    end: u64,
    chunk: Vec<u8>,
    chunk_at: u64,
}

const CHUNK: usize = 1 << 20;

impl Scan {
    pub fn new(log: &mut Log, from: At, end: Option<u32>) -> Result<Self, DataError> {
        let key = log.key(from.segment)?;
        let length = log.disk.len(u64::from(from.segment))?;
        let end = end.map_or(length, u64::from);
        if end > length {
            return Err(damaged(from.segment, length as u32, "the file is cut short"));
        }
        Ok(Scan { disk: log.disk.clone(), key, at: from, end, chunk: Vec::new(), chunk_at: 0 })
    }

    /// Some bytes from `at` on, at least `least` if there are as many.
    fn bytes(&mut self, at: u64, least: usize) -> Result<&[u8], DataError> {
        let have = self.chunk_at + self.chunk.len() as u64;
        if at < self.chunk_at || at + least as u64 > have {
            let size = (self.end.saturating_sub(at)).min(least.max(CHUNK) as u64) as usize;
            self.chunk.resize(size, 0);
            self.chunk_at = at;
            self.disk.read(u64::from(self.at.segment), at, &mut self.chunk)?;
        }
        Ok(&self.chunk[(at - self.chunk_at) as usize..])
    }

    fn read_at(&mut self, at: At) -> Result<Option<Found>, DataError> {
        let offset = u64::from(at.offset);
        let Some(length) = length_at(at, self.bytes(offset, RECORD_HEAD)?) else { return Ok(None) };
        let size = (length & !ALL_SYNCED) as usize;
        if offset + (size + OVERHEAD) as u64 > self.end {
            return Ok(None);
        }
        let mut bytes = self.bytes(offset, size + OVERHEAD)?[..size + OVERHEAD].to_vec();
        if unseal(&self.key, at, &mut bytes).is_none() {
            return Ok(None);
        }
        bytes.truncate(RECORD_HEAD + size);
        bytes.drain(..RECORD_HEAD);
        Ok(Some(Found { at, body: bytes, all_synced: length & ALL_SYNCED != 0 }))
    }

    /// The next record; `None` where what follows is none.
    pub fn next(&mut self) -> Result<Option<Found>, DataError> {
        let found = self.read_at(self.at)?;
        if let Some(found) = &found {
            self.at.offset += (found.body.len() + OVERHEAD) as u32;
        }
        Ok(found)
    }

    pub fn is_at_end(&self) -> bool {
        u64::from(self.at.offset) == self.end
    }

    /// Beyond what is no record, is there one that says that all before it was safe?
    pub fn was_safe(&mut self) -> Result<bool, DataError> {
        let mut offset = self.at.offset;
        while u64::from(offset) + OVERHEAD as u64 <= self.end {
            offset += 1;
            // No record begins with zeros, of which there may be many: the file is filled with them ahead.
            let zeros =
                self.bytes(u64::from(offset), RECORD_HEAD)?.iter().take_while(|byte| **byte == 0).count();
            if zeros >= RECORD_HEAD {
                offset += (zeros - RECORD_HEAD) as u32;
                continue;
            }
            let at = At { offset, ..self.at };
            if length_at(at, self.bytes(u64::from(offset), RECORD_HEAD)?).is_some()
                && self.read_at(at)?.is_some_and(|found| found.all_synced)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
