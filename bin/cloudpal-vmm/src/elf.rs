//! Loads a kernel: a 64-bit x86 ELF, each segment at its physical address. Whatever is odd is refused before a byte
//! of it is in the guest's memory.

use crate::{layout::HIGH_MEMORY, memory::Memory};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is cut short: {what} ends at byte {end}, the file at {len}")]
    Short { what: &'static str, end: u64, len: u64 },
    #[error("it is no ELF file")]
    NoElf,
    #[error("it is an ELF file, but {0}")]
    Wrong(&'static str),
    #[error("it loads nothing")]
    Empty,
    #[error("a segment goes to {start:#x}, below 1 MiB, where the boot tables are")]
    Low { start: u64 },
    #[error("a segment goes to {start:#x}..{end:#x}, outside the guest's memory")]
    Outside { start: u64, end: u64 },
    #[error("two segments go to {0:#x}")]
    Overlap(u64),
    #[error("it starts at {0:#x}, where it loads nothing")]
    Entry(u64),
}

const HEADER: usize = 64;
const SEGMENT_HEADER: usize = 56;
const LOAD: u32 = 1;
const X86_64: u16 = 62;
const EXECUTABLE: u16 = 2;

#[derive(Debug)]
struct Segment<'a> {
    bytes: &'a [u8],
    start: u64,
    end: u64,
}

/// Loads it, and returns where it starts.
pub fn load(memory: &Memory, file: &[u8]) -> Result<u64, crate::Error> {
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
    segments.iter().try_for_each(|segment| memory.write(segment.start, segment.bytes))?;
    Ok(entry)
}

fn read(file: &[u8]) -> Result<(u64, Vec<Segment<'_>>), Refusal> {
    if !file.starts_with(b"\x7fELF") {
        return Err(Refusal::NoElf);
    }
    let header = part(file, "its header", 0, HEADER as u64)?;
    if header[4] != 2 || header[5] != 1 {
        return Err(Refusal::Wrong("not a 64-bit little-endian one"));
    }
    if u16_at(header, 18) != X86_64 {
        return Err(Refusal::Wrong("not for x86-64"));
    }
    if u16_at(header, 16) != EXECUTABLE {
        return Err(Refusal::Wrong("not an executable with fixed addresses"));
    }
    if usize::from(u16_at(header, 54)) != SEGMENT_HEADER {
        return Err(Refusal::Wrong("its program headers have another size"));
    }
    let (table, count) = (u64_at(header, 32), u16_at(header, 56));
    let table = part(file, "its program header table", table, u64::from(count) * SEGMENT_HEADER as u64)?;
    let loads = table.chunks_exact(SEGMENT_HEADER).filter(|header| u32_at(header, 0) == LOAD);
    let mut segments = loads.map(|header| segment(file, header)).collect::<Result<Vec<_>, _>>()?;
    segments.retain(|segment| segment.start < segment.end);
    if segments.is_empty() {
        return Err(Refusal::Empty);
    }
    segments.sort_by_key(|segment| segment.start);
    if let Some(pair) = segments.windows(2).find(|pair| pair[1].start < pair[0].end) {
        return Err(Refusal::Overlap(pair[1].start));
    }
    let entry = u64_at(header, 24);
    if !segments.iter().any(|segment| (segment.start..segment.end).contains(&entry)) {
        return Err(Refusal::Entry(entry));
    }
    Ok((entry, segments))
}

fn segment<'a>(file: &'a [u8], header: &[u8]) -> Result<Segment<'a>, Refusal> {
    let (offset, start) = (u64_at(header, 8), u64_at(header, 24));
    let (in_file, in_memory) = (u64_at(header, 32), u64_at(header, 40));
    if in_file > in_memory {
        return Err(Refusal::Wrong("a segment has more bytes in the file than in memory"));
    }
    let bytes = part(file, "a segment", offset, in_file)?;
    if in_memory > 0 && start < HIGH_MEMORY {
        return Err(Refusal::Low { start });
    }
    let end = start.checked_add(in_memory).ok_or(Refusal::Outside { start, end: u64::MAX })?;
    Ok(Segment { bytes, start, end })
}

fn part<'a>(file: &'a [u8], what: &'static str, start: u64, bytes: u64) -> Result<&'a [u8], Refusal> {
    let end = start.saturating_add(bytes);
    file.get(start as usize..end as usize).ok_or(Refusal::Short { what, end, len: file.len() as u64 })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, tiny_guest};
    use proptest::prelude::*;

    fn refusal(file: &[u8]) -> Refusal {
        let memory = Memory::reserve(8).expect("memory");
        match load(&memory, file) {
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
        assert_eq!(load(&memory, tiny_guest::ELF).expect("loads"), HIGH_MEMORY);
    }

    #[test]
    fn what_is_odd_is_refused_with_its_reason() {
        assert_eq!(refusal(b""), Refusal::NoElf);
        assert_eq!(refusal(b"bzImage, say"), Refusal::NoElf);
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

    proptest! {
        #[test]
        fn no_file_makes_the_loader_panic(at in 0_usize..176, bytes in proptest::collection::vec(any::<u8>(), 1..16),
            len in 0_usize..5000) {
            let mut file = with(&[(at, &bytes)]);
            file.truncate(len);
            let memory = Memory::reserve(8).expect("memory");
            if let Err(error) = load(&memory, &file) {
                prop_assert!(matches!(error, Error::Kernel(_)), "{error}");
            }
        }
    }
}
