//! CloudPal's own log of what was asked of a tenant's cloud, as a core of the tenant: to be followed, shared and kept
//! elsewhere like any other.
//!
//! Invariants: each operation is written once when it is noted, and once more when it ends, if that is later; also over
//! a crash, since what the core has beyond the cursor is read before anything is appended. Nobody else writes it.

use super::{DataHost, TenantData, blocking, catalog::Record, item::Shared, keys};
use crate::{brain::Brain, http};
use cloudpal_api::{DataKind, Operation, OperationState};
use cloudpal_control::view::{self, OperationView};
use cloudpal_data::core::Durability;
use cloudpal_data::manifest::Manifest;
use cloudpal_model::{Kind, Name, OperationId, Problem, TenantId};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

pub use cloudpal_api::AUDIT_CORE as AUDIT;

const CURSOR: &[u8] = b"audit";
const BATCH: usize = 500;
/// After a failure, as of a full disk.
const PAUSE: Duration = Duration::from_secs(60);

/// What the core has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Cursor {
    /// The operation that comes next.
    next: u32,
    /// Those that were running when they were written.
    running: BTreeSet<u32>,
    /// The core's length with all that.
    length: u64,
}

impl Cursor {
    /// Takes an operation in. Answers whether there is something to write about it.
    fn take(&mut self, id: u32, running: bool) -> bool {
        let new = id >= self.next;
        let ended = !running && self.running.remove(&id);
        if new {
            self.next = id + 1;
            if running {
                self.running.insert(id);
            }
        }
        new || ended
    }

    fn first(&self) -> u32 {
        self.running.first().copied().unwrap_or(self.next)
    }
}

impl TenantData {
    /// The first operation of which something may have to be written.
    fn audited(&self) -> u32 {
        self.audit_cursor().map_or(0, |cursor| cursor.first())
    }

    fn audit_cursor(&self) -> Option<Cursor> {
        serde_json::from_slice(&self.store.meta(CURSOR)?).ok()
    }

    /// Writes of these operations what is not written yet.
    fn audit(&self, operations: &[OperationView]) -> Result<(), Problem> {
        let item = self.audit_core()?;
        let core = &item.main.core;
        let mut cursor = self.audit_cursor().unwrap_or_default();
        for index in cursor.length..core.info()?.length {
            if let Ok(operation) = serde_json::from_slice::<Operation>(&core.get(index)?) {
                cursor.take(operation.id.0, operation.state == OperationState::Running);
            }
        }
        let mut blocks = Vec::new();
        for operation in operations {
            let running = matches!(operation.state, view::OperationState::Running { .. });
            if cursor.take(operation.id.0, running) {
                let text = serde_json::to_vec(&http::shown_operation(operation.clone()));
                blocks.push(text.map_err(|error| {
                    Problem::new(
                        Kind::Internal,
                        format!("an operation as JSON: {error}"),
                        "report it as a bug",
                    )
                })?);
            }
        }
        if blocks.is_empty() {
            return Ok(());
        }
        let texts: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        cursor.length = core.append(&texts, Durability::Synced)?;
        self.wrote(std::slice::from_ref(&item.main));
        let text = serde_json::to_vec(&cursor).unwrap_or_default();
        Ok(self.store.set_meta(CURSOR, Some(&text))?)
    }

    fn audit_core(&self) -> Result<Shared, Problem> {
        let name = name_of(AUDIT)?;
        if let Ok(item) = self.item(&name) {
            return Ok(item);
        }
        let seed = format!("{name}/{}", keys::hex(&keys::random::<16>()?));
        let key = Manifest::single(self.core_pair(&seed).public_key()).key();
        let record = Record {
            kind: DataKind::Core,
            key: keys::hex(&key),
            seed: Some(seed),
            pair: None,
            encryption_key: None,
            peers: Vec::new(),
        };
        super::catalog::put(&self.store, &name, Some(&record))?;
        self.enter(name, record)
    }
}

/// Of what CloudPal itself names.
pub fn name_of(text: &str) -> Result<Name, Problem> {
    text.parse()
        .map_err(|error| Problem::new(Kind::Internal, format!("{text}: {error}"), "report it as a bug"))
}

/// Refuses what only CloudPal itself may do.
pub fn not_audit(name: &Name) -> Result<(), Problem> {
    if name.as_str() != AUDIT {
        return Ok(());
    }
    let mend = "read it with `cloudpal data audit`; keep what is your own under another name";
    Err(Problem::new(
        Kind::Refused,
        format!("{AUDIT} is written by CloudPal itself, and by nobody else"),
        mend,
    ))
}

/// Writes all tenants' logs, until the daemon ends.
pub async fn run(brain: Brain, data: Arc<DataHost>) {
    let mut changes = brain.operation_changes();
    let mut writer = Writer { brain, data, next: None, running: BTreeSet::new() };
    loop {
        changes.borrow_and_update();
        let gone = match writer.catch_up().await {
            Ok(true) => changes.changed().await.is_err(),
            Ok(false) | Err(_) => {
                // All are looked at anew, soon or when something is asked.
                (writer.next, writer.running) = (None, BTreeSet::new());
                matches!(tokio::time::timeout(PAUSE, changes.changed()).await, Ok(Err(_)))
            }
        };
        if gone {
            return;
        }
    }
}

struct Writer {
    brain: Brain,
    data: Arc<DataHost>,
    /// The operation that comes next; `None`: what each core has must be looked at first.
    next: Option<OperationId>,
    running: BTreeSet<OperationId>,
}

impl Writer {
    /// Answers whether all logs are whole. One that cannot be written, as of a damaged store, holds up no other.
    async fn catch_up(&mut self) -> Result<bool, Problem> {
        let mut whole = true;
        if self.next.is_none() {
            let view = self.brain.view().await?;
            let mut first = u32::MAX;
            for tenant in &view.tenants {
                match self.data.open(tenant).await {
                    Ok(data) => first = first.min(data.audited()),
                    Err(_) => whole = false,
                }
            }
            self.next = Some(OperationId(if first == u32::MAX { 0 } else { first }));
        }
        let mut found = Vec::new();
        for id in std::mem::take(&mut self.running) {
            found.extend(self.brain.operation(id).await?);
        }
        loop {
            let next = self.next.unwrap_or(OperationId(0));
            let more = self.brain.operations_from(next, BATCH).await?;
            let last = more.len() < BATCH;
            if let Some(last) = more.last() {
                self.next = Some(OperationId(last.id.0 + 1));
            }
            found.extend(more);
            whole &= self.write(std::mem::take(&mut found)).await?;
            if last {
                return Ok(whole);
            }
        }
    }

    async fn write(&mut self, operations: Vec<OperationView>) -> Result<bool, Problem> {
        let mut whole = true;
        let mut by_tenant = BTreeMap::<TenantId, Vec<OperationView>>::new();
        for operation in operations {
            if matches!(operation.state, view::OperationState::Running { .. }) {
                self.running.insert(operation.id);
            }
            if let Some(tenant) = operation.tenant {
                by_tenant.entry(tenant).or_default().push(operation);
            }
        }
        if by_tenant.is_empty() {
            return Ok(true);
        }
        let view = self.brain.view().await?;
        for (tenant, operations) in by_tenant {
            // One that is gone has taken its log along.
            let Some(tenant) = view.tenants.iter().find(|known| known.id == tenant) else { continue };
            let written = match self.data.open(tenant).await {
                Ok(data) => blocking(move || data.audit(&operations)).await,
                Err(problem) => Err(problem),
            };
            if let Err(problem) = written {
                tracing::warn!(tenant = %tenant.name, %problem, "the audit log is behind; it is tried again");
                whole = false;
            }
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_written_when_it_is_noted_and_when_it_ends() {
        let mut cursor = Cursor::default();
        let seen: Vec<bool> =
            [(3, false), (3, false), (4, true), (4, true), (5, false), (4, false), (4, false)]
                .into_iter()
                .map(|(id, running)| cursor.take(id, running))
                .collect();
        assert_eq!(seen, [true, false, true, false, true, true, false]);
        assert_eq!((cursor.next, cursor.first()), (6, 6));
        assert!(cursor.take(6, true));
        assert_eq!(cursor.first(), 6);
    }
}
