//! The operation log: who asked for what, when, how it ended, and what would undo it. Append-only.
//!
//! Invariant: an operation is written in the same batch as the change it speaks of, and only its state changes later.

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

impl<S: Store> Engine<S> {
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
        self.write(draft.changes)?;
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
