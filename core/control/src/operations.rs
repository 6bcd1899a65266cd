//! The operation log: who asked for what, when, how it ended, and what would undo it.
//!
//! Invariants: an operation is written in the same batch as the change it speaks of, and only its state changes later;
//! the newest [`KEPT_OPERATIONS`] are kept, and whatever still runs, so that a host can be up for ever. Those of a
//! tenant are in its own audit log as well (`cloudpal data audit`).

use crate::{
    engine::Engine,
    records::{self, Meta},
    view::{OperationState, OperationView},
};
use cloudpal_model::{
    Name, Now, OperationId, Problem, TenantId,
    store::{Change, Store},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// An operation in the making: everything that it writes, and nothing done yet.
pub struct Draft {
    pub meta: Meta,
    pub operation: OperationView,
    changes: Vec<Change>,
}

impl Draft {
    /// Draws an id from one of the counters.
    pub fn next(counter: &mut u32) -> u32 {
        let id = *counter;
        *counter += 1;
        id
    }

    pub fn put(&mut self, prefix: &str, id: u32, record: &impl Serialize) -> Result<(), Problem> {
        self.changes.push(records::put(records::key(prefix, id), record)?);
        Ok(())
    }

    pub fn delete(&mut self, prefix: &str, id: u32) {
        self.changes.push(Change::Delete { key: records::key(prefix, id) });
    }
}

/// Writes that may wait a little, and are tried again when they fail: nothing that a person was promised.
#[derive(Default)]
pub struct Later {
    changes: BTreeMap<String, Change>,
    due_us: Option<u64>,
}

/// The pause before a write that failed is tried again.
const RETRY_US: u64 = 5_000_000;

impl Later {
    pub fn due_us(&self) -> Option<u64> {
        self.due_us
    }

    fn add(&mut self, change: Change, due_us: u64) {
        let key = match &change {
            Change::Put { key, .. } | Change::Delete { key } => key.clone(),
        };
        self.changes.insert(key, change);
        self.due_us = Some(self.due_us.map_or(due_us, |due| due.min(due_us)));
    }
}

/// A household that asks for thirty things a day fills it in a year; it is some 3 MiB.
pub const KEPT_OPERATIONS: usize = 10_000;
/// Also of a log that grew while there was no limit, no more than so many go with one change.
const DROPPED_AT_ONCE: usize = 100;

impl<S: Store> Engine<S> {
    /// Those that are too many once another one is added.
    fn surplus_operations(&self) -> Vec<OperationId> {
        let surplus = (self.operations.len() + 1).saturating_sub(KEPT_OPERATIONS).min(DROPPED_AT_ONCE);
        let ended = self.operations.values().filter(|operation| {
            !matches!(operation.state, OperationState::Running { .. })
                && !self.household.installs.contains_key(&operation.id)
        });
        ended.take(surplus).map(|operation| operation.id).collect()
    }

    pub(crate) fn draft(&self, now: Now, actor: &str, what: String, undo: String) -> Draft {
        let mut meta = self.meta.clone();
        let id = OperationId(Draft::next(&mut meta.next_operation));
        let state = OperationState::Done;
        let (actor, at_wall_ms) = (actor.to_owned(), now.wall_ms);
        let operation = OperationView { id, actor, what, undo, at_wall_ms, tenant: None, state };
        Draft { meta, operation, changes: Vec::new() }
    }

    /// Something that the daemon does itself, noted before it does it. It ends with `Event::OperationEnded`.
    pub fn begin_operation(
        &mut self,
        now: Now,
        actor: &str,
        tenant: &Name,
        (what, undo): (String, String),
    ) -> Result<OperationId, Problem> {
        let tenant = self.household.tenant(tenant)?.record.id;
        let mut draft = self.draft(now, actor, what, undo);
        draft.operation.tenant = Some(tenant);
        draft.operation.state =
            OperationState::Running { stage: String::new(), done_bytes: 0, total_bytes: 0 };
        self.commit(draft)
    }

    /// Makes the draft durable. The caller changes memory only after this.
    pub(crate) fn commit(&mut self, mut draft: Draft) -> Result<OperationId, Problem> {
        let id = draft.operation.id;
        draft.put(records::OPERATION, id.0, &draft.operation.clone())?;
        draft.changes.push(records::put(records::META.to_owned(), &draft.meta)?);
        let surplus = self.surplus_operations();
        surplus.iter().for_each(|old| draft.delete(records::OPERATION, old.0));
        self.write(draft.changes)?;
        surplus.iter().for_each(|old| drop(self.operations.remove(old)));
        self.meta = draft.meta;
        self.operations.insert(id, draft.operation);
        self.operation_changes += 1;
        Ok(id)
    }

    /// Writes a batch, together with what waits; all of it or nothing.
    pub(crate) fn write(&mut self, changes: Vec<Change>) -> Result<(), Problem> {
        let mut all = self.later.changes.clone();
        for change in changes {
            match &change {
                Change::Put { key, .. } | Change::Delete { key } => all.insert(key.clone(), change.clone()),
            };
        }
        let batch: Vec<Change> = all.into_values().collect();
        self.store.commit(&batch)?;
        self.later = Later::default();
        Ok(())
    }

    pub(crate) fn write_later(&mut self, change: Result<Change, Problem>, due_us: u64) {
        match change {
            Ok(change) => self.later.add(change, due_us),
            // Records are plain data with string keys, which always can be written as JSON; a failure is told at
            // the next request that writes the same record.
            Err(problem) => self.store_trouble = problem.what,
        }
    }

    /// Writes what is due. A failure leaves it for the next try.
    pub(crate) fn flush_later(&mut self, now: Now) {
        if self.later.due_us.is_none_or(|due_us| due_us > now.mono_us) {
            return;
        }
        match self.write(Vec::new()) {
            Ok(()) => self.store_trouble.clear(),
            Err(problem) => {
                self.store_trouble = problem.what;
                self.later.due_us = Some(now.mono_us.saturating_add(RETRY_US));
            }
        }
    }

    /// How a running operation ended. Its end may reach the store late: then it is carried out again after a restart.
    pub(crate) fn end_operation(&mut self, now: Now, id: OperationId, state: OperationState) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        operation.state = state;
        self.operation_changes += 1;
        let change = records::put(records::key(records::OPERATION, id.0), operation);
        self.write_later(change, now.mono_us);
    }

    /// Something the daemon did by itself that the owner should find in the log.
    pub(crate) fn note_operation(&mut self, now: Now, tenant: TenantId, what: String, undo: String) {
        let mut draft = self.draft(now, "daemon", what, undo);
        draft.operation.tenant = Some(tenant);
        for old in self.surplus_operations() {
            self.operations.remove(&old);
            let key = records::key(records::OPERATION, old.0);
            self.write_later(Ok(Change::Delete { key }), now.mono_us);
        }
        self.meta = draft.meta;
        let id = draft.operation.id;
        self.write_later(records::put(records::key(records::OPERATION, id.0), &draft.operation), now.mono_us);
        self.write_later(records::put(records::META.to_owned(), &self.meta), now.mono_us);
        self.operations.insert(id, draft.operation);
        self.operation_changes += 1;
    }

    /// The newest operations first.
    pub fn operations(&self, limit: usize) -> Vec<OperationView> {
        self.operations.values().rev().take(limit).cloned().collect()
    }

    /// Those before `before`, the newest first.
    pub fn operations_before(&self, limit: usize, before: OperationId) -> Vec<OperationView> {
        self.operations.range(..before).rev().take(limit).map(|(_, operation)| operation.clone()).collect()
    }

    /// Grows whenever an operation is added, or ends.
    pub fn operation_changes(&self) -> u64 {
        self.operation_changes
    }

    /// Those from `first` on, the oldest first.
    pub fn operations_from(&self, first: OperationId, limit: usize) -> Vec<OperationView> {
        self.operations.range(first..).take(limit).map(|(_, operation)| operation.clone()).collect()
    }

    pub fn operation(&self, id: OperationId) -> Option<OperationView> {
        self.operations.get(&id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{event::Event, request::Request, settings::Settings};
    use std::sync::{Arc, Mutex, PoisonError};

    type Records = BTreeMap<String, Vec<u8>>;

    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<Records>>);

    impl Store for Disk {
        fn load(&self) -> Result<Vec<(String, Vec<u8>)>, Problem> {
            Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().into_iter().collect())
        }

        fn commit(&mut self, batch: &[Change]) -> Result<(), Problem> {
            let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            for change in batch.iter().cloned() {
                match change {
                    Change::Put { key, value } => records.insert(key, value),
                    Change::Delete { key } => records.remove(&key),
                };
            }
            Ok(())
        }
    }

    fn open(disk: &Disk) -> Engine<Disk> {
        let settings = Settings {
            domain_suffix: "pal".to_owned(),
            endpoint_host: "192.0.2.1".to_owned(),
            first_port: 51820,
        };
        Engine::open(disk.clone(), settings, NOW).expect("opens")
    }

    const NOW: Now = Now { mono_us: 0, wall_ms: 1_800_000_000_000 };

    #[test]
    fn the_oldest_that_have_ended_make_room_on_the_disk_too() {
        let disk = Disk::default();
        let mut engine = open(&disk);
        let ada: Name = "ada".parse().expect("a name");
        let add = Request::TenantAdd { name: ada.clone(), subnet_v4: None, prefix_v6: None };
        engine.request(NOW, "test", add, &mut |bytes| bytes.fill(7)).expect("adds");
        let begin = |engine: &mut Engine<Disk>, at: usize| {
            let what = (format!("data verify {at}"), String::new());
            engine.begin_operation(NOW, "test", &ada, what).expect("begins")
        };
        let runs_on = begin(&mut engine, 0);
        for at in 1..KEPT_OPERATIONS + 50 {
            let operation = begin(&mut engine, at);
            engine.event(NOW, Event::OperationEnded { operation, outcome: Ok(()) });
        }
        begin(&mut engine, KEPT_OPERATIONS + 50);
        let kept = |engine: &Engine<Disk>| engine.operations(usize::MAX);
        assert_eq!(kept(&engine).len(), KEPT_OPERATIONS);
        assert_eq!(kept(&engine).last().map(|oldest| oldest.id), Some(runs_on), "what still runs is kept");
        let again = open(&disk);
        let ids = |engine: &Engine<Disk>| kept(engine).iter().map(|kept| kept.id).collect::<Vec<_>>();
        assert_eq!(ids(&again), ids(&engine));
    }
}
