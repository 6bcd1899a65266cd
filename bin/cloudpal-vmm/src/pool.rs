//! Spares of one shape, made before they are needed: what a wake does not have to wait for.

use crate::{Error, Host, Shape, Spare};
use std::{collections::VecDeque, sync::Arc};

pub struct Pool {
    host: Arc<Host>,
    shape: Shape,
    spares: VecDeque<Spare>,
}

impl Pool {
    pub fn new(host: Arc<Host>, shape: Shape) -> Pool {
        Pool { host, shape, spares: VecDeque::new() }
    }

    pub fn fill(&mut self, count: usize) -> Result<(), Error> {
        while self.spares.len() < count {
            self.spares.push_back(Spare::make(&self.host, self.shape)?);
        }
        Ok(())
    }

    pub fn ready(&self) -> usize {
        self.spares.len()
    }

    /// One that waits, or, when there is none, one made now.
    pub fn take(&mut self) -> Result<Spare, Error> {
        self.spares.pop_front().map_or_else(|| Spare::make(&self.host, self.shape), Ok)
    }
}
