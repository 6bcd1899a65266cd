//! The devices' thread: waits for doorbells and for what the devices wait for, and has them work, each in its turn.
//!
//! ```text
//!  Paused ◄──pause──► Running ──epoll──► due queues ──one call each──► still due? ── again, without waiting
//!     └──────────── stop ────────────► gone
//! ```
//! Invariants:
//! - When `pause` returns, no device is at work, and none is until `resume`: no frame is taken from a TAP. Doorbells
//!   and edges meanwhile are not lost; the thread finds them when it goes on.
//! - Each due queue gets one bounded call per turn: no device keeps the others waiting for longer than that.
//! - Nothing that a guest does makes this thread allocate.
#![allow(unsafe_code)]

use crate::{Error, bus::Bus, crew::Worker};
use rustix::event::epoll;
use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// More queues than any device has.
const QUEUES_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Pause,
    Run,
    Stop,
}

struct State {
    wanted: Wanted,
    at_work: bool,
}

struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    wake_up: EventFd,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, wanted: Wanted) {
        self.state().wanted = wanted;
        self.changed.notify_all();
        // It can only fail when it was written 2^64 times.
        let _ = self.wake_up.write(1);
    }

    /// Waits while nothing may be done; false when it is over.
    fn enter(&self) -> bool {
        let mut state = self.state();
        state.at_work = false;
        self.changed.notify_all();
        while state.wanted == Wanted::Pause {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.at_work = state.wanted == Wanted::Run;
        state.at_work
    }
}

/// A device's queue, or all of them.
#[derive(Clone, Copy)]
struct Token {
    slot: usize,
    queue: usize,
}

const ALL_QUEUES: usize = QUEUES_MAX;
const WAKE_UP: u64 = u64::MAX;

impl Token {
    fn number(self) -> u64 {
        (self.slot as u64) << 32 | self.queue as u64
    }

    fn from_number(number: u64) -> Token {
        Token { slot: (number >> 32) as usize, queue: number as u32 as usize }
    }
}

pub(crate) struct Events {
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

impl Events {
    /// Makes that thread the devices', paused. The devices are in their slots already.
    pub(crate) fn start(bus: Arc<Bus>, worker: Worker) -> Result<Events, Error> {
        let failed = |e: io::Error| Error::Host(format!("the devices' events: {e}"));
        let wake_up = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(failed)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        watch(&epoll, &bus, &wake_up).map_err(failed)?;
        let state = Mutex::new(State { wanted: Wanted::Pause, at_work: false });
        let gate = Arc::new(Gate { state, changed: Condvar::new(), wake_up });
        let for_thread = gate.clone();
        let thread = worker.give(move || run(&for_thread, &bus, &epoll));
        Ok(Events { gate, thread: Some(thread) })
    }

    pub(crate) fn resume(&self) {
        self.gate.want(Wanted::Run);
    }

    pub(crate) fn pause(&self) {
        self.gate.want(Wanted::Pause);
        let mut state = self.gate.state();
        while state.at_work {
            state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.gate.want(Wanted::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of it was told where it happened.
            let _ = thread.join();
        }
    }
}

fn watch(epoll: &OwnedFd, bus: &Bus, wake_up: &EventFd) -> io::Result<()> {
    let add = |fd: RawFd, number: u64| {
        // SAFETY: an event of ours, which outlives the epoll, or a device's source, which lives as long as the device.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(epoll, fd, epoll::EventData::new_u64(number), flags)
    };
    add(wake_up.as_raw_fd(), WAKE_UP)?;
    for (slot, place) in bus.slots.iter().enumerate() {
        let device = place.device();
        let Some(device) = device.as_ref() else { continue };
        add(place.doorbell.as_raw_fd(), Token { slot, queue: ALL_QUEUES }.number())?;
        for source in device.device.sources() {
            add(source.fd, Token { slot, queue: source.queue.min(QUEUES_MAX - 1) }.number())?;
        }
    }
    Ok(())
}

/// Which queues of which device are due: a bit each.
type Due = Vec<u64>;

fn run(gate: &Gate, bus: &Bus, epoll: &OwnedFd) {
    let mut due: Due = vec![0; bus.slots.len()];
    let mut found = Vec::with_capacity(64);
    while gate.enter() {
        // Only an epoll that is none could fail; then there is nothing left to do.
        if wait(epoll, &mut found, due.iter().any(|queues| *queues != 0)).is_err() {
            return;
        }
        for event in found.drain(..) {
            note(event.data.u64(), gate, bus, &mut due);
        }
        take_turns(bus, &mut due);
    }
}

fn wait(epoll: &OwnedFd, found: &mut Vec<epoll::Event>, busy: bool) -> io::Result<()> {
    let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    let timeout = busy.then_some(&at_once);
    match epoll::wait(epoll, rustix::buffer::spare_capacity(found), timeout) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn note(number: u64, gate: &Gate, bus: &Bus, due: &mut Due) {
    // Reading only makes the event quiet again; that it was there is enough.
    if number == WAKE_UP {
        let _ = gate.wake_up.read();
        return;
    }
    let token = Token::from_number(number);
    let (Some(slot), Some(queues)) = (bus.slots.get(token.slot), due.get_mut(token.slot)) else { return };
    if token.queue == ALL_QUEUES {
        let _ = slot.doorbell.read();
        let count = slot.device().as_ref().map_or(0, |device| device.queue_count().min(QUEUES_MAX));
        *queues |= u64::MAX.checked_shr((QUEUES_MAX - count) as u32).unwrap_or(0);
    } else {
        *queues |= 1 << token.queue;
    }
}

fn take_turns(bus: &Bus, due: &mut Due) {
    for (slot, queues) in bus.slots.iter().zip(due) {
        let now = *queues;
        for queue in (0..QUEUES_MAX).filter(|queue| now & 1 << queue != 0) {
            if !slot.work(queue, &bus.memory).more {
                *queues &= !(1 << queue);
            }
        }
    }
}
