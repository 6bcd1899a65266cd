//! Consumers of a log: each message comes, in order, until it was committed; cuts are told.

mod feed_kit;

use cloudpal_data::DataError;
use cloudpal_data::bus::{Consumer, Cursor, Cursors, Message, Polled, Start};
use cloudpal_data::feed::FeedMut;
use feed_kit::MemoryFeed;
use proptest::prelude::*;
use std::collections::HashMap;

#[derive(Default)]
struct Kept(HashMap<String, Cursor>, bool);

impl Cursors for Kept {
    fn load(&mut self, consumer: &str) -> Result<Option<Cursor>, DataError> {
        Ok(self.0.get(consumer).copied())
    }

    fn store(&mut self, consumer: &str, cursor: Cursor) -> Result<(), DataError> {
        if self.1 {
            return Err(DataError::Poisoned);
        }
        self.0.insert(consumer.into(), cursor);
        Ok(())
    }
}

fn indexes(polled: Polled) -> Vec<u64> {
    let Polled::Messages(messages) = polled else { panic!("{polled:?}") };
    messages.iter().map(|message| message.index).collect()
}

fn feed(count: u8) -> MemoryFeed {
    MemoryFeed::of((0..count).map(|at| vec![at; 10]).collect())
}

#[test]
fn consumers_go_on_where_they_committed() {
    let (mut feed, mut kept) = (feed(10), Kept::default());
    let mut one = Consumer::open("one", &feed, Start::First, &mut kept).unwrap();
    let mut new = Consumer::open("new", &feed, Start::New, &mut kept).unwrap();
    assert_eq!(indexes(one.poll(&feed, 4, 1000).unwrap()), [0, 1, 2, 3]);
    assert_eq!(indexes(one.poll(&feed, 100, 25).unwrap()), [4, 5, 6]);
    one.commit(4, &mut kept).unwrap();
    assert!(one.commit(7, &mut kept).is_err(), "7 was not handed out");
    assert_eq!(one.lag(&feed), 5);
    // A crash: what was handed out and not committed comes again.
    let mut one = Consumer::open("one", &feed, Start::First, &mut kept).unwrap();
    assert_eq!(indexes(one.poll(&feed, 100, 1000).unwrap()), [5, 6, 7, 8, 9]);
    one.again();
    assert_eq!(indexes(one.poll(&feed, 1, 1000).unwrap()), [5]);
    kept.1 = true;
    assert_eq!(one.commit(5, &mut kept), Err(DataError::Poisoned));
    assert_eq!(one.cursor().next, 5, "what could not be kept is not committed");
    assert_eq!(indexes(new.poll(&feed, 9, 1000).unwrap()), [0; 0]);
    feed.append(&[b"more"]).unwrap();
    let Polled::Messages(messages) = new.poll(&feed, 9, 1000).unwrap() else { panic!() };
    assert_eq!(messages, [Message { index: 10, block: b"more".to_vec() }]);
}

#[test]
fn what_is_not_here_is_asked_for_and_nothing_is_passed_over() {
    let (feed, mut kept) = (feed(3), Kept::default());
    feed.missing.borrow_mut().insert(1);
    let mut one = Consumer::open("one", &feed, Start::At(0), &mut kept).unwrap();
    assert_eq!(indexes(one.poll(&feed, 9, 1000).unwrap()), [0]);
    assert_eq!(one.poll(&feed, 9, 1000), Err(DataError::NotHere { index: 1 }));
    feed.download(1);
    assert_eq!(indexes(one.poll(&feed, 9, 1000).unwrap()), [1, 2]);
}

#[test]
fn a_cut_is_told() {
    let (mut feed, mut kept) = (feed(8), Kept::default());
    let mut one = Consumer::open("one", &feed, Start::First, &mut kept).unwrap();
    assert_eq!(indexes(one.poll(&feed, 9, 1000).unwrap()).len(), 8);
    one.commit(7, &mut kept).unwrap();
    feed.blocks.truncate(5);
    feed.fork += 1;
    assert_eq!(one.poll(&feed, 9, 1000).unwrap(), Polled::Cut { next: 5 });
    feed.append(&[b"other"]).unwrap();
    assert_eq!(indexes(one.poll(&feed, 9, 1000).unwrap()), [5]);
    one.seek(2);
    assert_eq!(indexes(one.poll(&feed, 9, 1000).unwrap()), [2, 3, 4, 5]);
    one.commit(2, &mut kept).unwrap();
    assert_eq!(kept.0["one"], Cursor { fork: 1, next: 3 });
}

proptest! {
    #[test]
    fn every_message_comes_in_order(steps in prop::collection::vec((0..4u8, 1..5usize), 1..60)) {
        let (mut feed, mut kept) = (MemoryFeed::default(), Kept::default());
        let mut one = Consumer::open("one", &feed, Start::First, &mut kept).unwrap();
        let (mut consumed, mut handed) = (0, 0);
        for (kind, count) in steps {
            match kind {
                0 => _ = feed.append(&vec![&b"x"[..]; count]).unwrap(),
                1 => {
                    one = Consumer::open("one", &feed, Start::First, &mut kept).unwrap();
                    handed = consumed;
                }
                _ => {
                    let got = indexes(one.poll(&feed, count, 1000).unwrap());
                    let end = feed.blocks.len().min(handed as usize + count) as u64;
                    prop_assert_eq!(&got, &(handed..end).collect::<Vec<_>>());
                    handed = end;
                    if kind == 2 && let Some(last) = got.last() {
                        one.commit(*last, &mut kept).unwrap();
                        consumed = handed;
                    }
                }
            }
        }
    }
}
