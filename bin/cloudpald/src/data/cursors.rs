//! A core as a bus: where each of its consumers is, kept in the tenant's store.

use super::{TenantData, blocking, feeds::Tracked};
use cloudpal_api::{DataCursor, DataCursorMove, DataKind};
use cloudpal_data::{
    DataError,
    bus::{Consumer, Cursor, Cursors, Polled, Start},
    feed::Feed,
    store::Store,
};
use cloudpal_model::{Kind, Name, Problem};

const PREFIX: &str = "cursor/";
/// Many more than read one log.
const MAX_CONSUMERS: usize = 100;

/// Those of one core.
struct Kept<'a> {
    store: &'a Store,
    core: &'a Name,
}

impl Kept<'_> {
    fn key(&self, consumer: &str) -> Vec<u8> {
        format!("{PREFIX}{}/{consumer}", self.core).into_bytes()
    }
}

impl Cursors for Kept<'_> {
    fn load(&mut self, consumer: &str) -> Result<Option<Cursor>, DataError> {
        let Some(bytes) = self.store.meta(&self.key(consumer)) else { return Ok(None) };
        let (numbers, []) = bytes.as_chunks::<8>() else { return Err(DataError::Malformed("a cursor")) };
        match numbers {
            [fork, next] => {
                Ok(Some(Cursor { fork: u64::from_le_bytes(*fork), next: u64::from_le_bytes(*next) }))
            }
            _ => Err(DataError::Malformed("a cursor")),
        }
    }

    fn store(&mut self, consumer: &str, cursor: Cursor) -> Result<(), DataError> {
        let key = self.key(consumer);
        if self.store.meta(&key).is_none() && self.store.metas(&self.key("")).len() >= MAX_CONSUMERS {
            return Err(DataError::TooLarge("100 consumers of one core"));
        }
        let bytes = [cursor.fork.to_le_bytes(), cursor.next.to_le_bytes()].concat();
        self.store.set_meta(&key, Some(&bytes))
    }
}

/// Those of a core that is gone.
pub fn forget(store: &Store, core: &Name) -> Result<(), DataError> {
    let kept = Kept { store, core };
    store.metas(&kept.key("")).into_iter().try_for_each(|(key, _)| store.set_meta(&key, None))
}

fn shown(consumer: &mut Consumer, feed: &Tracked) -> Result<DataCursor, DataError> {
    let cut = matches!(consumer.poll(feed, 0, 0)?, Polled::Cut { .. });
    let Cursor { fork, next } = consumer.cursor();
    Ok(DataCursor { fork, next, behind: consumer.lag(feed), cut })
}

impl TenantData {
    pub async fn cursor(&self, name: &Name, consumer: &Name) -> Result<DataCursor, Problem> {
        let item = self.item_of(name, &[DataKind::Core])?;
        let (store, consumer) = (self.store.clone(), consumer.clone());
        blocking(move || {
            let feed = &item.main;
            let mut kept = Kept { store: &store, core: &item.name };
            let mut consumer = Consumer::open(consumer.as_str(), feed, Start::First, &mut kept)?;
            Ok(shown(&mut consumer, feed)?)
        })
        .await
    }

    /// All before `next` is consumed. On the disk when this answers.
    pub async fn cursor_move(
        &self,
        name: &Name,
        consumer: &Name,
        to: DataCursorMove,
    ) -> Result<DataCursor, Problem> {
        let item = self.item_of(name, &[DataKind::Core])?;
        let (store, consumer) = (self.store.clone(), consumer.clone());
        blocking(move || {
            let feed = &item.main;
            let (fork, length) = (feed.fork(), feed.length());
            if to.next > length {
                let what = format!("{} has {length} blocks, and nobody has consumed {}", item.name, to.next);
                return Err(Problem::new(Kind::Invalid, what, "move it to what was consumed"));
            }
            if fork != to.fork {
                let what = format!("{} was cut since: it has fork {fork}, and not {}", item.name, to.fork);
                return Err(Problem::new(Kind::Refused, what, "ask for the cursor, and go on from there"));
            }
            let mut kept = Kept { store: &store, core: &item.name };
            kept.store(consumer.as_str(), Cursor { fork, next: to.next })?;
            let mut consumer = Consumer::open(consumer.as_str(), feed, Start::First, &mut kept)?;
            Ok(shown(&mut consumer, feed)?)
        })
        .await
    }
}
