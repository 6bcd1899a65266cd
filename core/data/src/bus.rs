//! A log as a message bus: consumers that read a feed from where they were, whenever they ask.
//!
//! ```text
//!   poll ──► messages from the cursor on ──► the consumer works ──► commit ──► the cursor is kept
//! ```
//!
//! Invariants: a message counts as consumed only once it was committed, so after a crash it comes again (at
//! least once); a consumer never passes over a message; where the feed was cut, it is told before
//! anything else comes.

use crate::error::DataError;
use crate::feed::Feed;

/// Where a consumer is: the fork that it read, and the first block that it has not consumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub fork: u64,
    pub next: u64,
}

/// Keeps the cursors of consumers, by their names.
pub trait Cursors {
    fn load(&mut self, consumer: &str) -> Result<Option<Cursor>, DataError>;

    /// On the disk when this answers.
    fn store(&mut self, consumer: &str, cursor: Cursor) -> Result<(), DataError>;
}

/// Where a consumer begins that has no cursor yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    First,
    /// With what comes from now on.
    New,
    At(u64),
}

/// A block of the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub index: u64,
    pub block: Vec<u8>,
}

/// What there is to consume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Polled {
    /// In their order; none, if nothing came.
    Messages(Vec<Message>),
    /// The feed was cut since, and blocks that were consumed may have been replaced by others. The consumer goes
    /// on at this block, which is at most the end; one that knows how far the cut went goes back there with
    /// [`Consumer::seek`].
    Cut { next: u64 },
}

/// One that reads a feed.
#[derive(Clone, Debug)]
pub struct Consumer {
    name: String,
    /// What is kept.
    committed: Cursor,
    /// The end of what was handed out.
    handed: u64,
}

impl Consumer {
    pub fn open<F: Feed>(
        name: &str,
        feed: &F,
        start: Start,
        cursors: &mut dyn Cursors,
    ) -> Result<Consumer, DataError> {
        let committed = match (cursors.load(name)?, start) {
            (Some(cursor), _) => cursor,
            (None, Start::First) => Cursor { fork: feed.fork(), next: 0 },
            (None, Start::New) => Cursor { fork: feed.fork(), next: feed.length() },
            (None, Start::At(next)) => Cursor { fork: feed.fork(), next },
        };
        Ok(Consumer { name: name.to_owned(), committed, handed: committed.next })
    }

    pub fn cursor(&self) -> Cursor {
        self.committed
    }

    /// Messages that were not consumed yet.
    pub fn lag<F: Feed>(&self, feed: &F) -> u64 {
        feed.length().saturating_sub(self.committed.next)
    }

    /// The messages that come next, at most `most` and about `bytes` of them. Where the first of them is not
    /// here, it fails with that block; get it and ask again.
    pub fn poll<F: Feed>(&mut self, feed: &F, most: usize, bytes: usize) -> Result<Polled, DataError> {
        let (fork, length) = (feed.fork(), feed.length());
        if fork != self.committed.fork {
            // How far the forks are the same a feed does not say: only what is beyond the end is surely gone.
            self.committed = Cursor { fork, next: self.committed.next.min(length) };
            self.handed = self.committed.next;
            return Ok(Polled::Cut { next: self.handed });
        }
        let (mut messages, mut size) = (Vec::new(), 0);
        while self.handed < length && messages.len() < most && (size < bytes || messages.is_empty()) {
            let index = self.handed;
            let block = match feed.get(index) {
                Ok(block) => block,
                Err(_) if !messages.is_empty() => break,
                Err(error) => return Err(error),
            };
            size += block.len();
            messages.push(Message { index, block });
            self.handed += 1;
        }
        Ok(Polled::Messages(messages))
    }

    /// All messages up to this one are consumed.
    pub fn commit(&mut self, index: u64, cursors: &mut dyn Cursors) -> Result<(), DataError> {
        let next = index.saturating_add(1);
        if next > self.handed {
            return Err(DataError::BadRequest("a message that was not handed out"));
        }
        if next <= self.committed.next {
            return Ok(());
        }
        let cursor = Cursor { next, ..self.committed };
        cursors.store(&self.name, cursor)?;
        self.committed = cursor;
        Ok(())
    }

    /// Goes on at another block, back or ahead. That is kept with the next commit.
    pub fn seek(&mut self, next: u64) {
        (self.committed.next, self.handed) = (next, next);
    }

    /// Hands out again what was not committed.
    pub fn again(&mut self) {
        self.handed = self.committed.next;
    }
}
