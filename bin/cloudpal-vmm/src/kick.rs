//! Brings a vCPU out of the guest from another thread.
//!
//! ```text
//!  kick:  asked := true ── running? ──► immediate_exit := 1, then the signal
//!  run:   asked? return at once ── running := this thread ── KVM_RUN … EINTR ── running := none, asked := false
//! ```
//! Invariant: a kick is never lost. One that comes before KVM_RUN finds `immediate_exit` read by it; one that comes
//! during it interrupts it; one that comes while nothing runs ends the next run before its first instruction.
//! `running` is only ever a live thread inside `run`: both are changed under one lock.
#![allow(unsafe_code)]

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

#[derive(Clone, Default)]
pub struct Kick(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    asked: bool,
    running: Option<Running>,
}

struct Running {
    thread: libc::pthread_t,
    immediate_exit: *mut u8,
}

// SAFETY: the pointer is into the vCPU's mapped `kvm_run`, and is used by other threads only as an atomic byte and only
// while the thread that owns the vCPU is inside `run`, which holds the mapping.
unsafe impl Send for Running {}

impl Running {
    fn set_exit(&self, value: u8) {
        // SAFETY: aligned (it is a byte), mapped as long as `self` stands in a `State`, and only accessed atomically.
        unsafe { AtomicU8::from_ptr(self.immediate_exit) }.store(value, Ordering::SeqCst);
    }
}

impl Kick {
    pub fn kick(&self) {
        let mut state = self.state();
        state.asked = true;
        if let Some(running) = &state.running {
            running.set_exit(1);
            // SAFETY: the thread lives: it takes `running` away under this lock before it leaves `run`.
            unsafe { libc::pthread_kill(running.thread, SIGRTMIN()) };
        }
    }

    /// Registers this thread as the one to interrupt; `None` when it was kicked already.
    pub(crate) fn enter(&self, immediate_exit: *mut u8) -> Result<Option<Inside<'_>>, io::Error> {
        handle_signal()?;
        let mut state = self.state();
        if std::mem::take(&mut state.asked) {
            return Ok(None);
        }
        // SAFETY: asks who this is.
        let running = Running { thread: unsafe { libc::pthread_self() }, immediate_exit };
        running.set_exit(0);
        state.running = Some(running);
        Ok(Some(Inside(self)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, this thread can be kicked.
pub(crate) struct Inside<'a>(&'a Kick);

impl Inside<'_> {
    /// Whether the interruption was a kick. Another signal of the process is none.
    pub(crate) fn kicked(&self) -> bool {
        std::mem::take(&mut self.0.state().asked)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Some(running) = self.0.state().running.take() {
            running.set_exit(0);
        }
    }
}

/// The handler does nothing: that the signal arrives is enough to end KVM_RUN.
fn handle_signal() -> Result<(), io::Error> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static REGISTERED: OnceLock<Result<(), i32>> = OnceLock::new();
    let registered = REGISTERED
        .get_or_init(|| register_signal_handler(SIGRTMIN(), nothing).map_err(|errno| errno.errno()));
    registered.map_err(io::Error::from_raw_os_error)
}
