//! Reaping: PID 1 inherits every orphan, so one thread waits for all children and hands on
//! the ends that somebody awaits.
//!
//! Invariant: nobody else calls wait. A child is registered under the same lock under which it is started, so its end
//! cannot be seen before its start.

use crate::{Fault, control::lock};
use nix::{
    errno::Errno,
    sys::wait::{WaitStatus, waitpid},
};
use std::{
    collections::HashMap,
    process::{Child, Command},
    sync::{
        Arc, Condvar, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
};

/// How a process ended: its exit code or the signal that killed it.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

#[derive(Default)]
pub struct Children {
    awaited: Mutex<HashMap<i32, Sender<End>>>,
    started: Condvar,
}

impl Children {
    pub fn new() -> Arc<Self> {
        let children = Arc::new(Children::default());
        let reaper = children.clone();
        std::thread::spawn(move || reaper.reap());
        children
    }

    pub fn start(&self, command: &mut Command) -> Result<(Child, Receiver<End>), Fault> {
        let mut awaited = lock(&self.awaited);
        let child = command.spawn()?;
        let (sender, receiver) = channel();
        awaited.insert(i32::try_from(child.id())?, sender);
        self.started.notify_all();
        Ok((child, receiver))
    }

    fn reap(&self) {
        loop {
            let (pid, end) = match waitpid(None, None) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, End { code: Some(code), signal: None }),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, End { code: None, signal: Some(signal as i32) })
                }
                Err(Errno::ECHILD) => {
                    let awaited = lock(&self.awaited);
                    if awaited.is_empty() {
                        drop(self.started.wait(awaited));
                    }
                    continue;
                }
                Ok(_) | Err(_) => continue,
            };
            if let Some(sender) = lock(&self.awaited).remove(&pid.as_raw()) {
                // Nobody may be listening any more: a stop did not wait for it.
                let _ = sender.send(end);
            }
        }
    }
}
