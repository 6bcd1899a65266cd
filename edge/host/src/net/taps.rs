//! The book of all machines' TAPs: which are open, which a VMM of an earlier daemon still holds.
//!
//! Invariant: a machine has at most one `Tap` here; it stays the same from the first `apply` that names the machine
//! until the machine leaves the plan.

use crate::net::{
    namespace::Namespace,
    tap::{Counters, Tap},
};
use cloudpal_model::MachineId;
use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Default)]
pub struct Taps(Mutex<HashMap<MachineId, Entry>>);

#[derive(Default)]
struct Entry {
    /// Where the TAP lies; unknown until the tenant's network was applied.
    home: Option<(Arc<Namespace>, Counters)>,
    tap: Option<Arc<Tap>>,
    /// From a VMM, before its home was known.
    adopted: Option<OwnedFd>,
}

impl Taps {
    pub fn get(&self, machine: MachineId) -> Option<Arc<Tap>> {
        let mut book = self.lock();
        let entry = book.get_mut(&machine)?;
        if entry.tap.is_none() {
            // Its VMM may have ended since.
            entry.open(machine);
        }
        entry.tap.clone()
    }

    /// The TAP of a machine of the plan: opened, adopted, or left to the VMM that holds it.
    pub fn settle(
        &self,
        machine: MachineId,
        namespace: &Arc<Namespace>,
        counters: &Counters,
    ) -> io::Result<()> {
        let mut book = self.lock();
        let entry = book.entry(machine).or_default();
        entry.home = Some((namespace.clone(), counters.clone()));
        match entry.try_open(machine) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                tracing::info!(%machine, "a VMM of an earlier daemon holds the TAP");
                Ok(())
            }
            other => other,
        }
    }

    pub fn adopt(&self, machine: MachineId, fd: OwnedFd) {
        let mut book = self.lock();
        let entry = book.entry(machine).or_default();
        entry.tap = None;
        entry.adopted = Some(fd);
        entry.open(machine);
    }

    /// The TAP's link is not there; a descriptor of it is worth nothing.
    pub fn lost(&self, machine: MachineId) {
        if let Some(entry) = self.lock().get_mut(&machine) {
            entry.tap = None;
            entry.adopted = None;
        }
    }

    pub fn forget(&self, machine: MachineId) {
        self.lock().remove(&machine);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MachineId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn open(&mut self, machine: MachineId) {
        match self.try_open(machine) {
            Err(error) if error.kind() != io::ErrorKind::ResourceBusy => {
                tracing::warn!(%machine, %error, "the TAP cannot be opened");
            }
            _ => {}
        }
    }

    fn try_open(&mut self, machine: MachineId) -> io::Result<()> {
        if self.tap.is_some() {
            return Ok(());
        }
        let Some((namespace, counters)) = &self.home else { return Ok(()) };
        let tap = match self.adopted.take() {
            Some(fd) => Tap::adopt(machine, fd, counters.clone())?,
            None => Tap::open(namespace, machine, counters.clone())?,
        };
        self.tap = Some(Arc::new(tap));
        Ok(())
    }
}
