//! Spares of the sizes that were used lately, made in the background: what a wake does not have to wait for.
//!
//! Invariants: never more than [`MAX_SPARES`] wait, of at most [`MAX_CLASSES`] sizes; whoever takes one never waits for
//! another's, nor shares the CPU with the making of the next while the start lasts; all end with the pool.

use super::spare::{Class, Launcher, Spare};
use cloudpal_model::Problem;
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

pub const MAX_SPARES: usize = 12;
pub const MAX_CLASSES: usize = 4;
/// Beyond the start's end: what woke the machine is answered before the next spare is made.
const REFILL_DELAY: Duration = Duration::from_millis(30);

pub struct Pool(Arc<Inner>);

struct Inner {
    launcher: Launcher,
    spares_per_class: usize,
    classes: Mutex<Classes>,
    refilling: tokio::sync::Mutex<()>,
}

/// The sizes in use, the latest first.
#[derive(Default)]
struct Classes(VecDeque<(Class, Vec<Spare>)>);

impl Classes {
    /// Notes that this size is used; the one used longest ago may go for it, with its spares.
    fn note(&mut self, class: Class) -> &mut Vec<Spare> {
        let entry = match self.0.iter().position(|(known, _)| *known == class) {
            Some(at) => self.0.remove(at),
            None => None,
        };
        self.0.truncate(MAX_CLASSES - 1);
        self.0.push_front(entry.unwrap_or((class, Vec::new())));
        &mut self.0[0].1
    }

    fn count(&self) -> usize {
        self.0.iter().map(|(_, spares)| spares.len()).sum()
    }

    /// The size that lacks a spare, the latest used first.
    fn wanting(&mut self, per_class: usize) -> Option<Class> {
        for (_, spares) in &mut self.0 {
            spares.retain(Spare::is_good);
        }
        if self.count() >= MAX_SPARES {
            return None;
        }
        self.0.iter().find(|(_, spares)| spares.len() < per_class).map(|(class, _)| *class)
    }

    fn put(&mut self, class: Class, spare: Spare) {
        // Its size may have gone out of use while it was made; then it ends here.
        if let Some((_, spares)) = self.0.iter_mut().find(|(known, _)| *known == class) {
            spares.push(spare);
        }
    }
}

impl Pool {
    pub fn new(launcher: Launcher, spares_per_class: usize) -> Pool {
        let (classes, refilling) = (Mutex::default(), tokio::sync::Mutex::default());
        Pool(Arc::new(Inner { launcher, spares_per_class, classes, refilling }))
    }

    pub fn launcher(&self) -> &Launcher {
        &self.0.launcher
    }

    /// One that waits, or, when there is none, one made now. Whoever takes one says with [`Pool::refill_after`] for how
    /// long its start lasts.
    pub async fn take(&self, class: Class) -> Result<Spare, Problem> {
        let ready = {
            let mut classes = self.0.classes();
            let spares = classes.note(class);
            spares.retain(Spare::is_good);
            spares.pop()
        };
        match ready {
            Some(spare) => Ok(spare),
            None => self.0.launcher.launch(class).await,
        }
    }

    /// Makes what is wanting once the start is over, however it ends: when what is returned is dropped.
    pub fn refill_after(&self) -> RefillAfter<'_> {
        RefillAfter(self)
    }

    /// This size will be used: a machine of it sleeps.
    pub fn expect(&self, class: Class) {
        let known = self.0.classes().0.iter().any(|(known, _)| *known == class);
        if !known && self.0.classes().0.len() < MAX_CLASSES {
            self.0.classes().note(class);
            self.refill();
        }
    }

    /// How many wait, of how many sizes.
    pub fn ready(&self) -> (usize, usize) {
        let classes = self.0.classes();
        (classes.count(), classes.0.len())
    }

    fn refill(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let inner = Arc::downgrade(&self.0);
        runtime.spawn(async move {
            tokio::time::sleep(REFILL_DELAY).await;
            refill(inner).await;
        });
    }
}

pub struct RefillAfter<'a>(&'a Pool);

impl Drop for RefillAfter<'_> {
    fn drop(&mut self) {
        self.0.refill();
    }
}

impl Inner {
    fn classes(&self) -> MutexGuard<'_, Classes> {
        self.classes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One at a time, until nothing is wanting or one fails; the next use tries again.
async fn refill(inner: Weak<Inner>) {
    let Some(inner) = inner.upgrade() else { return };
    let Ok(_turn) = inner.refilling.try_lock() else { return };
    loop {
        let wanting = inner.classes().wanting(inner.spares_per_class);
        let Some(class) = wanting else { return };
        match inner.launcher.launch(class).await {
            Ok(spare) => inner.classes().put(class, spare),
            Err(problem) => {
                tracing::warn!(%problem, ?class, "no spare VMM could be made");
                return;
            }
        }
    }
}
