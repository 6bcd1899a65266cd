//! A machine's threads, started before there is a machine: to start a thread at a wake would cost as much as the rest
//! of the wake.
//!
//! Invariant: a thread has done its hook's work before anybody is given it; what it is given it does once, and ends.

use crate::Error;
use std::{
    io,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread::JoinHandle,
};

/// Runs first on a new thread; its failure is the machine's.
pub type Hook = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

type Work = Box<dyn FnOnce() + Send>;

/// A thread that waits for its one piece of work. Dropped, it ends.
pub struct Worker {
    work: Sender<Work>,
    thread: JoinHandle<()>,
}

impl Worker {
    pub fn start(name: String, hook: Hook) -> Result<Worker, Error> {
        let failed = |what: &str, e: io::Error| Error::Host(format!("the thread {what}: {e}"));
        let (work, given) = channel::<Work>();
        let (told, ready) = channel();
        let body = move || {
            let outcome = hook();
            let go_on = outcome.is_ok();
            // Whoever starts it waits for this word.
            let _ = told.send(outcome);
            drop((told, hook));
            if let (true, Ok(work)) = (go_on, given.recv()) {
                work();
            }
        };
        let started = std::thread::Builder::new().name(name.clone()).spawn(body);
        let thread = started.map_err(|e| failed(&name, e))?;
        ready.recv().unwrap_or(Ok(())).map_err(|e| failed(&name, e))?;
        Ok(Worker { work, thread })
    }

    pub(crate) fn give(self, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        // It waits for nothing else; one that is gone has panicked, which was told.
        let _ = self.work.send(Box::new(work));
        self.thread
    }
}

/// What a machine's threads do first. Threads are named `vcpu0`, `vcpu1`, ... and `devices`.
#[derive(Clone)]
pub struct Threads {
    pub on_vcpu: Hook,
    pub on_devices: Hook,
    /// Called once the end can be read from [`crate::Live::ended`], by the thread that met it.
    pub on_end: Arc<dyn Fn() + Send + Sync>,
}

impl Default for Threads {
    fn default() -> Threads {
        Threads { on_vcpu: Arc::new(|| Ok(())), on_devices: Arc::new(|| Ok(())), on_end: Arc::new(|| ()) }
    }
}

/// All threads of one machine.
pub struct Crew {
    pub(crate) devices: Worker,
    pub(crate) vcpus: Vec<Worker>,
    pub(crate) on_end: Arc<dyn Fn() + Send + Sync>,
}

impl Crew {
    pub fn start(vcpus: u8, threads: &Threads) -> Result<Crew, Error> {
        let devices = Worker::start("devices".into(), threads.on_devices.clone())?;
        let vcpus = (0..vcpus).map(|id| Worker::start(format!("vcpu{id}"), threads.on_vcpu.clone()));
        Ok(Crew { devices, vcpus: vcpus.collect::<Result<_, _>>()?, on_end: threads.on_end.clone() })
    }
}
