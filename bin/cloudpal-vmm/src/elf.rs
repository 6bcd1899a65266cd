//! A kernel as a 64-bit x86 ELF, each segment at its physical address. Whatever is odd is refused before a byte of it
//! is in the guest's memory.

use crate::{
    kernel::{Image, Refusal},
    layout::HIGH_MEMORY,
    memory::Memory,
};

const HEADER: usize = 64;
const SEGMENT_HEADER: usize = 56;
const LOAD: u32 = 1;
const NOTE: u32 = 4;
const PVH_NOTE: usize = 18;
/// Far more than any kernel has.
const SEGMENTS_MAX: usize = 256;
const NOTES_MAX: u64 = 64 * 1024;
const X86_64: u16 = 62;
const EXECUTABLE: u16 = 2;

#[derive(Debug)]
struct Segment {
    offset: u64,
    in_file: u64,
    start: u64,
    end: u64,
}

/// Where it starts, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In long mode, as Linux' 64-bit boot protocol has it.
    Long(u64),
    /// In protected mode, as PVH has it.
    Pvh(u64),
}

/// Loads it, and returns where it starts and where its last byte in memory is.
pub(crate) fn load(memory: &Memory, file: &Image<'_>) -> Result<(Entry, u64), crate::Error> {
    let (entry, segments) = read(file)?;
    for segment in &segments {
        let fits = crate::layout::memory_ranges(memory.bytes())
            .iter()
            .any(|(start, len)| segment.start >= *start && segment.end <= start + len);
        if !fits {
            return Err(Refusal::Outside { start: segment.start, end: segment.end }.into());
        }
    }
    // What a segment has beyond its bytes in the file is zero: so is the memory of a machine that has not run.
    for segment in &segments {
        file.place(segment.offset, segment.in_file, memory, segment.start)?;
    }
    Ok((entry, segments.iter().map(|segment| segment.end).max().unwrap_or(HIGH_MEMORY)))
}

fn read(file: &Image<'_>) -> Result<(Entry, Vec<Segment>), crate::Error> {
    let header = file.part("its header", 0, HEADER)?;
    if header[4] != 2 || header[5] != 1 {
        return Err(Refusal::Wrong("not a 64-bit little-endian one").into());
    }
    if u16_at(&header, 18) != X86_64 {
        return Err(Refusal::Wrong("not for x86-64").into());
    }
    if u16_at(&header, 16) != EXECUTABLE {
        return Err(Refusal::Wrong("not an executable with fixed addresses").into());
    }
    if usize::from(u16_at(&header, 54)) != SEGMENT_HEADER {
        return Err(Refusal::Wrong("its program headers have another size").into());
    }
    let (table, count) = (u64_at(&header, 32), usize::from(u16_at(&header, 56)));
    if count > SEGMENTS_MAX {
        return Err(Refusal::Wrong("it has more than 256 program headers").into());
    }
    let table = file.part("its program header table", table, count * SEGMENT_HEADER)?;
    let loads = table.chunks_exact(SEGMENT_HEADER).filter(|header| u32_at(header, 0) == LOAD);
    let mut segments = loads.map(|header| segment(file.len(), header)).collect::<Result<Vec<_>, _>>()?;
    segments.retain(|segment| segment.start < segment.end);
    if segments.is_empty() {
        return Err(Refusal::Empty.into());
    }
    segments.sort_by_key(|segment| segment.start);
    if let Some(pair) = segments.windows(2).find(|pair| pair[1].start < pair[0].end) {
        return Err(Refusal::Overlap(pair[1].start).into());
    }
    let mut notes = table.chunks_exact(SEGMENT_HEADER).filter(|header| u32_at(header, 0) == NOTE);
    let pvh = notes.find_map(|header| pvh_entry(file, header).transpose()).transpose()?;
    let (at, entry) = match pvh {
        Some(at) => (at, Entry::Pvh(at)),
        None => (u64_at(&header, 24), Entry::Long(u64_at(&header, 24))),
    };
    if !segments.iter().any(|segment| (segment.start..segment.end).contains(&at)) {
        return Err(Refusal::Entry(at).into());
    }
    Ok((entry, segments))
}

fn segment(file: u64, header: &[u8]) -> Result<Segment, Refusal> {
    let (offset, start) = (u64_at(header, 8), u64_at(header, 24));
    let (in_file, in_memory) = (u64_at(header, 32), u64_at(header, 40));
    if in_file > in_memory {
        return Err(Refusal::Wrong("a segment has more bytes in the file than in memory"));
    }
    let end = offset.saturating_add(in_file);
    if end > file {
        return Err(Refusal::Short { what: "a segment", end, len: file });
    }
    if in_memory > 0 && start < HIGH_MEMORY {
        return Err(Refusal::Low { start });
    }
    let end = start.checked_add(in_memory).ok_or(Refusal::Outside { start, end: u64::MAX })?;
    Ok(Segment { offset, in_file, start, end })
}

/// The entry that Xen's note 18 names: four bytes, or eight (Linux: arch/x86/platform/pvh/head.S).
fn pvh_entry(file: &Image<'_>, header: &[u8]) -> Result<Option<u64>, crate::Error> {
    let (offset, len) = (u64_at(header, 8), u64_at(header, 32));
    let notes = file.part("its notes", offset, len.min(NOTES_MAX) as usize)?;
    let mut rest = notes.as_slice();
    while let Some((head, behind)) = rest.split_first_chunk::<12>() {
        let word = |at: usize| u32_at(head, at) as usize;
        let (name, description) = (word(0), word(4));
        let padded = |len: usize| len.next_multiple_of(4);
        let Some(content) = behind.get(padded(name)..) else { break };
        let described = content.get(..description).unwrap_or_default();
        if behind.starts_with(b"Xen\0") && name == 4 && word(8) == PVH_NOTE {
            return Ok(match described.len() {
                4 => Some(u64::from(u32_at(described, 0))),
                8 => Some(u64_at(described, 0)),
                _ => None,
            });
        }
        rest = content.get(padded(description)..).unwrap_or_default();
    }
    Ok(None)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, tiny_guest};
    use proptest::prelude::*;

    fn refusal(file: &[u8]) -> Refusal {
        let memory = Memory::reserve(8).expect("memory");
        match load(&memory, &Image::Bytes(file)) {
            Err(Error::Kernel(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    /// The tiny guest with some bytes of it changed.
    fn with(changes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut file = tiny_guest::ELF.to_vec();
        for (at, bytes) in changes {
            file[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        file
    }

    /// A second program header, a copy of the first.
    fn doubled() -> Vec<u8> {
        let mut file = with(&[(56, &2_u16.to_le_bytes())]);
        file.copy_within(64..64 + SEGMENT_HEADER, 64 + SEGMENT_HEADER);
        file
    }

    #[test]
    fn the_tiny_guest_loads() {
        let memory = Memory::reserve(8).expect("memory");
        let (entry, end) = load(&memory, &Image::Bytes(tiny_guest::ELF)).expect("loads");
        assert_eq!(entry, Entry::Long(HIGH_MEMORY));
        assert!((HIGH_MEMORY + 1..HIGH_MEMORY + 0x1_0000).contains(&end), "{end:#x}");
    }

    #[test]
    fn what_is_odd_is_refused_with_its_reason() {
        assert!(matches!(refusal(&tiny_guest::ELF[..40]), Refusal::Short { what: "its header", .. }));
        assert!(matches!(refusal(&tiny_guest::ELF[..4100]), Refusal::Short { what: "a segment", .. }));
        assert!(matches!(refusal(&with(&[(4, &[1])])), Refusal::Wrong("not a 64-bit little-endian one")));
        assert!(matches!(refusal(&with(&[(18, &[183])])), Refusal::Wrong("not for x86-64")));
        assert!(matches!(refusal(&with(&[(16, &[3])])), Refusal::Wrong(_)), "position-independent");
        assert_eq!(refusal(&with(&[(56, &[0])])), Refusal::Empty);
        assert_eq!(refusal(&with(&[(24, &[0; 8])])), Refusal::Entry(0));
        assert_eq!(refusal(&with(&[(64 + 24, &[0; 8])])), Refusal::Low { start: 0 });
        assert_eq!(refusal(&doubled()), Refusal::Overlap(HIGH_MEMORY));
        let far = with(&[(64 + 24, &(8_u64 << 20).to_le_bytes()), (24, &(8_u64 << 20).to_le_bytes())]);
        assert!(matches!(refusal(&far), Refusal::Outside { .. }));
        let around = with(&[(64 + 24, &[0xff; 8])]);
        assert!(matches!(refusal(&around), Refusal::Outside { .. }));
    }

    /// The tiny guest with a note in it, behind its program headers.
    fn with_note(note: &[u8]) -> Vec<u8> {
        let mut file = with(&[(56, &2_u16.to_le_bytes()), (512, note)]);
        let at = 64 + SEGMENT_HEADER;
        file[at..at + SEGMENT_HEADER].fill(0);
        file[at..at + 4].copy_from_slice(&NOTE.to_le_bytes());
        file[at + 8..at + 16].copy_from_slice(&512_u64.to_le_bytes());
        file[at + 32..at + 40].copy_from_slice(&(note.len() as u64).to_le_bytes());
        file
    }

    #[test]
    fn a_pvh_note_names_the_entry() {
        let note = |name: &[u8; 4], kind: u32, entry: u32| {
            let words = [4, 4, kind].map(u32::to_le_bytes).concat();
            [&words[..], name, &entry.to_le_bytes()].concat()
        };
        let inside = (HIGH_MEMORY + 0x10) as u32;
        let entry = |notes: &[u8]| {
            let memory = Memory::reserve(8).expect("memory");
            load(&memory, &Image::Bytes(&with_note(notes))).map(|(entry, _)| entry)
        };
        let behind_others =
            [note(b"GNU\0", 18, 1), note(b"Xen\0", 5, 2), note(b"Xen\0", 18, inside)].concat();
        assert_eq!(entry(&behind_others).expect("loads"), Entry::Pvh(u64::from(inside)));
        assert_eq!(entry(&note(b"GNU\0", 18, 1)).expect("loads"), Entry::Long(HIGH_MEMORY));
        assert!(matches!(entry(&note(b"Xen\0", 18, 7)), Err(Error::Kernel(Refusal::Entry(7)))));
    }

    proptest! {
        #[test]
        fn no_note_makes_the_loader_panic(note in proptest::collection::vec(any::<u8>(), 0..100)) {
            let memory = Memory::reserve(8).expect("memory");
            let _ = load(&memory, &Image::Bytes(&with_note(&note)));
            let _ = load(&memory, &Image::Bytes(&with_note(&[b"\x04\0\0\0", &note[..]].concat())));
        }

        #[test]
        fn no_file_makes_the_loader_panic(at in 0_usize..176, bytes in proptest::collection::vec(any::<u8>(), 1..16),
            len in 0_usize..5000) {
            let mut file = with(&[(at, &bytes)]);
            file.truncate(len);
            let memory = Memory::reserve(8).expect("memory");
            if let Err(error) = load(&memory, &Image::Bytes(&file)) {
                prop_assert!(matches!(error, Error::Kernel(_)), "{error}");
            }
        }
    }
}
