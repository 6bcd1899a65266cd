//! Spares of one size, made before they are needed: what a wake does not have to wait for.

use crate::{Error, Host, Spare};
use std::{collections::VecDeque, sync::Arc};

pub struct Pool {
    host: Arc<Host>,
    memory_mib: u32,
    spares: VecDeque<Spare>,
}

impl Pool {
    pub fn new(host: Arc<Host>, memory_mib: u32) -> Pool {
        Pool { host, memory_mib, spares: VecDeque::new() }
    }

    pub fn fill(&mut self, count: usize) -> Result<(), Error> {
        while self.spares.len() < count {
            self.spares.push_back(Spare::make(&self.host, self.memory_mib)?);
        }
        Ok(())
    }

    pub fn ready(&self) -> usize {
        self.spares.len()
    }

    /// One that waits, or, when there is none, one made now.
    pub fn take(&mut self) -> Result<Spare, Error> {
        self.spares.pop_front().map_or_else(|| Spare::make(&self.host, self.memory_mib), Ok)
    }
}
