//! Changes of the data in the operation log: noted before they are made, and how they ended after.
//!
//! Invariant: what was begun ends in the log, too, also when whoever asked does not wait for it.

use crate::brain::Brain;
use cloudpal_control::event::Event;
use cloudpal_model::{Kind, Name, OperationId, Problem};

/// An operation that is under way.
pub struct Noted {
    brain: Brain,
    operation: OperationId,
    ended: bool,
}

impl Noted {
    pub async fn begin(
        brain: &Brain,
        actor: &str,
        tenant: &Name,
        what: String,
        undo: String,
    ) -> Result<Noted, Problem> {
        let operation = brain.begin(actor, tenant, (what, undo)).await?;
        Ok(Noted { brain: brain.clone(), operation, ended: false })
    }

    pub fn end(mut self, problem: Option<&Problem>) {
        self.ended = true;
        self.tell(problem.map_or(Ok(()), |problem| Err(problem.clone())));
    }

    fn tell(&self, outcome: Result<(), Problem>) {
        self.brain.event(Event::OperationEnded { operation: self.operation, outcome });
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if !self.ended {
            let what = "whoever asked went away before it was done";
            self.tell(Err(Problem::new(
                Kind::Unavailable,
                what,
                "look whether it was done; ask again if not",
            )));
        }
    }
}

/// Does the work, noted.
pub async fn noted<T>(
    (brain, actor, tenant): (&Brain, &str, &Name),
    what: String,
    undo: String,
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    let noted = Noted::begin(brain, actor, tenant, what, undo).await?;
    let outcome = work.await;
    noted.end(outcome.as_ref().err());
    outcome
}
