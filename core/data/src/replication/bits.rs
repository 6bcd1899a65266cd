//! Which blocks a peer says it has.
//!
//! Only a hint: what a peer claims costs it a message, so what is kept of it is bounded, whatever it claims. Claims
//! beyond the bound are not kept, and those blocks are then asked of others.

use std::collections::BTreeMap;

const PAGE_BITS: u64 = 1 << 15;
const WORDS: usize = (PAGE_BITS / 64) as usize;
/// 4 MiB of bits.
const MAX_PAGES: usize = 1024;
const MAX_SPANS: usize = 1024;

#[derive(Debug, Default)]
pub struct PeerBits {
    /// It has all below this.
    contiguous: u64,
    /// Long spans, from their start to their end; they do not touch each other.
    spans: BTreeMap<u64, u64>,
    pages: BTreeMap<u64, Box<[u64; WORDS]>>,
}

impl PeerBits {
    pub fn contiguous(&self) -> u64 {
        self.contiguous
    }

    pub fn has(&self, index: u64) -> bool {
        index < self.contiguous
            || self.spans.range(..=index).next_back().is_some_and(|(_, end)| index < *end)
            || self.pages.get(&(index / PAGE_BITS)).is_some_and(|page| bit(page, index))
    }

    /// The first block from `from` on, and before `to`, that the peer has.
    pub fn first(&self, from: u64, to: u64) -> Option<u64> {
        let mut at = from;
        while at < to {
            if self.has(at) {
                return Some(at);
            }
            let page = at / PAGE_BITS;
            let page_end = (page + 1) * PAGE_BITS;
            let in_page = self.pages.get(&page).and_then(|words| first_in(words, at));
            let next_span = self.spans.range(at..).next().map(|(start, _)| *start);
            at = match (in_page, next_span) {
                (Some(index), span) => index.min(span.unwrap_or(index)),
                (None, Some(span)) if span < page_end => span,
                // Empty pages are not walked through one by one.
                (None, span) => match (self.next_page(page), span) {
                    (Some(next), Some(span)) => (next * PAGE_BITS).min(span),
                    (Some(next), None) => next * PAGE_BITS,
                    (None, Some(span)) => span,
                    (None, None) => return None,
                },
            };
        }
        None
    }

    fn next_page(&self, after: u64) -> Option<u64> {
        self.pages.range(after + 1..).next().map(|(page, _)| *page)
    }

    pub fn set_range(&mut self, start: u64, length: u64) {
        let end = start.saturating_add(length);
        if start <= self.contiguous {
            self.contiguous = self.contiguous.max(end);
        } else if length < PAGE_BITS {
            (start..end).for_each(|index| self.set(index));
        } else {
            self.add_span(start, end);
        }
    }

    fn add_span(&mut self, mut start: u64, mut end: u64) {
        while let Some((&first, &last)) =
            self.spans.range(..=end).next_back().filter(|(_, last)| **last >= start)
        {
            self.spans.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        if self.spans.len() < MAX_SPANS {
            self.spans.insert(start, end);
        }
    }

    fn set(&mut self, index: u64) {
        if let Some(words) = self.page(index / PAGE_BITS) {
            words[(index % PAGE_BITS / 64) as usize] |= 1 << (index % 64);
        }
    }

    /// A page to be changed, unless there are too many.
    fn page(&mut self, page: u64) -> Option<&mut [u64; WORDS]> {
        if self.pages.len() >= MAX_PAGES && !self.pages.contains_key(&page) {
            return None;
        }
        Some(self.pages.entry(page).or_insert_with(|| Box::new([0; WORDS])))
    }

    /// It has these no more.
    pub fn drop_range(&mut self, start: u64, length: u64) {
        let end = start.saturating_add(length);
        if start < self.contiguous {
            let rest = self.contiguous;
            self.contiguous = start;
            if end < rest {
                self.set_range(end, rest - end);
            }
        }
        let touched: Vec<(u64, u64)> =
            self.spans.range(..end).filter(|(_, last)| **last > start).map(|(a, b)| (*a, *b)).collect();
        for (first, last) in touched {
            self.spans.remove(&first);
            for (first, last) in [(first, start), (end, last)] {
                if first < last && self.spans.len() < MAX_SPANS {
                    self.spans.insert(first, last);
                }
            }
        }
        self.pages.retain(|page, words| {
            let (first, last) = (page * PAGE_BITS, (page + 1) * PAGE_BITS);
            if start <= first && last <= end {
                return false;
            }
            for index in start.max(first)..end.min(last) {
                words[(index % PAGE_BITS / 64) as usize] &= !(1 << (index % 64));
            }
            true
        });
    }

    /// The truth about the blocks from `start` on, 32 in a word.
    pub fn set_words(&mut self, start: u64, words: &[u32]) {
        let length = words.len() as u64 * 32;
        self.drop_range(start, length);
        for (at, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
            let first = start + at as u64 * 32;
            if *word == u32::MAX && first <= self.contiguous {
                self.set_range(first, 32);
            } else if first.is_multiple_of(32)
                && first > self.contiguous
                && let Some(page) = self.page(first / PAGE_BITS)
            {
                page[(first % PAGE_BITS / 64) as usize] |= u64::from(*word) << (first % 64);
            } else {
                (0..32).filter(|bit| word >> bit & 1 == 1).for_each(|bit| self.set_range(first + bit, 1));
            }
        }
    }
}

fn bit(words: &[u64; WORDS], index: u64) -> bool {
    words[(index % PAGE_BITS / 64) as usize] >> (index % 64) & 1 == 1
}

fn first_in(words: &[u64; WORDS], from: u64) -> Option<u64> {
    let page = from / PAGE_BITS * PAGE_BITS;
    let at = (from - page) as usize;
    let mut word = words[at / 64] & (u64::MAX << (at % 64));
    let mut number = at / 64;
    while word == 0 {
        number += 1;
        word = *words.get(number)?;
    }
    Some(page + number as u64 * 64 + u64::from(word.trailing_zeros()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Told {
        Has(u64, u64),
        Drop(u64, u64),
        Words(u64, Vec<u32>),
    }

    fn told() -> impl Strategy<Value = Told> {
        let span = || (0..200_000u64, prop_oneof![0..70u64, 30_000..80_000u64]);
        prop_oneof![
            span().prop_map(|(start, length)| Told::Has(start, length)),
            span().prop_map(|(start, length)| Told::Drop(start, length)),
            (0..3000u64, proptest::collection::vec(any::<u32>(), 1..5))
                .prop_map(|(at, words)| Told::Words(at * 32, words)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn as_a_set(
            all in proptest::collection::vec(told(), 1..8),
            probes in proptest::collection::vec(0..290_000u64, 40),
        ) {
            let (mut bits, mut set) = (PeerBits::default(), BTreeSet::new());
            for each in all {
                match each {
                    Told::Has(start, length) => {
                        bits.set_range(start, length);
                        set.extend(start..start + length);
                    }
                    Told::Drop(start, length) => {
                        bits.drop_range(start, length);
                        set.retain(|index| *index < start || *index >= start + length);
                    }
                    Told::Words(start, words) => {
                        bits.set_words(start, &words);
                        for index in start..start + words.len() as u64 * 32 {
                            let at = index - start;
                            if words[(at / 32) as usize] >> (at % 32) & 1 == 1 {
                                set.insert(index);
                            } else {
                                set.remove(&index);
                            }
                        }
                    }
                }
            }
            for probe in probes {
                prop_assert_eq!(bits.has(probe), set.contains(&probe), "{}", probe);
                let first = set.range(probe..300_000).next().copied();
                prop_assert_eq!(bits.first(probe, 300_000), first, "from {}", probe);
            }
        }
    }

    #[test]
    fn absurd_claims_cost_nothing() {
        let mut bits = PeerBits::default();
        for claim in 1..10_000u64 {
            bits.set_range(claim << 40, u64::MAX);
            bits.set_range((claim << 30) + 5, 3);
            bits.drop_range(claim << 35, claim << 20);
            bits.set_words(claim << 33, &[u32::MAX; 3]);
        }
        assert!(bits.pages.len() <= MAX_PAGES && bits.spans.len() <= MAX_SPANS);
        bits.set_range(0, u64::MAX);
        assert!(bits.has(u64::MAX - 1));
    }
}
