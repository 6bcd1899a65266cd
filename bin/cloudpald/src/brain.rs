//! The task that owns the control engine. Requests and events queue here; effects leave from here.
//!
//! Invariant: nobody else touches the engine, so what it decides is decided in one order, and nothing here waits
//! for the host: an effect is handed to the task that carries it out.

use cloudpal_control::{
    effect::Effect,
    engine::{Engine, MachineFacts},
    event::Event,
    request::{Accepted, Request},
    view::{OperationView, View},
};
use cloudpal_model::{MachineId, Name, Now, OperationId, Problem};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};

/// An effect with what the engine knows about the machine that it concerns.
pub type Dispatch = Box<dyn FnMut(Effect, Option<MachineFacts>) + Send>;

enum Message {
    Request {
        actor: String,
        request: Request,
        reply: oneshot::Sender<Result<Accepted, Problem>>,
    },
    Begin {
        actor: String,
        tenant: Name,
        words: (String, String),
        reply: oneshot::Sender<Result<OperationId, Problem>>,
    },
    Event(Event),
    View(oneshot::Sender<View>),
    Operation(OperationId, oneshot::Sender<Option<OperationView>>),
    Operations(usize, oneshot::Sender<Vec<OperationView>>),
    OperationsFrom(OperationId, usize, oneshot::Sender<Vec<OperationView>>),
}

/// The way to the engine. Cheap to clone; calls fail with `Unavailable` once the daemon is going down.
#[derive(Clone)]
pub struct Brain {
    messages: mpsc::UnboundedSender<Message>,
    /// Grows with the operation log.
    operation_changes: watch::Receiver<u64>,
}

/// The messages that wait for [`run`].
pub struct Inbox {
    messages: mpsc::UnboundedReceiver<Message>,
    operation_changes: watch::Sender<u64>,
}

pub fn channel() -> (Brain, Inbox) {
    let (messages, inbox) = mpsc::unbounded_channel();
    let (sender, operation_changes) = watch::channel(0);
    (Brain { messages, operation_changes }, Inbox { messages: inbox, operation_changes: sender })
}

impl Brain {
    pub async fn request(&self, actor: &str, request: Request) -> Result<Accepted, Problem> {
        let actor = actor.to_owned();
        self.ask(|reply| Message::Request { actor, request, reply }).await?
    }

    /// Notes an operation of `tenant` that the daemon carries out itself: what, and what would undo it.
    pub async fn begin(
        &self,
        actor: &str,
        tenant: &Name,
        words: (String, String),
    ) -> Result<OperationId, Problem> {
        let (actor, tenant) = (actor.to_owned(), tenant.clone());
        self.ask(|reply| Message::Begin { actor, tenant, words, reply }).await?
    }

    /// Tells the engine; silently dropped when the daemon is going down.
    pub fn event(&self, event: Event) {
        let _ = self.messages.send(Message::Event(event));
    }

    pub async fn view(&self) -> Result<View, Problem> {
        self.ask(Message::View).await
    }

    pub async fn operation(&self, id: OperationId) -> Result<Option<OperationView>, Problem> {
        self.ask(|reply| Message::Operation(id, reply)).await
    }

    pub async fn operations(&self, limit: usize) -> Result<Vec<OperationView>, Problem> {
        self.ask(|reply| Message::Operations(limit, reply)).await
    }

    /// The oldest first.
    pub async fn operations_from(
        &self,
        first: OperationId,
        limit: usize,
    ) -> Result<Vec<OperationView>, Problem> {
        self.ask(|reply| Message::OperationsFrom(first, limit, reply)).await
    }

    /// Changes whenever the operation log does.
    pub fn operation_changes(&self) -> watch::Receiver<u64> {
        self.operation_changes.clone()
    }

    async fn ask<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        let gone = |_| {
            let mend = "start it again, then repeat the request";
            Problem::new(cloudpal_model::Kind::Unavailable, "the daemon is shutting down", mend)
        };
        self.messages.send(message(reply)).map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))
    }
}

/// Both clocks, read together.
pub struct Clock {
    origin: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Clock { origin: Instant::now() }
    }

    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { mono_us: self.origin.elapsed().as_micros() as u64, wall_ms: wall.as_millis() as u64 }
    }
}

/// Runs the engine until every [`Brain`] is dropped.
pub async fn run<S: cloudpal_model::store::Store>(
    mut engine: Engine<S>,
    clock: Clock,
    mut inbox: Inbox,
    mut dispatch: Dispatch,
) {
    loop {
        hand_over(&mut engine, &mut dispatch);
        let changes = engine.operation_changes();
        inbox.operation_changes.send_if_modified(|known| std::mem::replace(known, changes) != changes);
        let wait = match engine.next_deadline() {
            Some(deadline_us) => Duration::from_micros(deadline_us.saturating_sub(clock.now().mono_us)),
            None => Duration::from_secs(3600),
        };
        match tokio::time::timeout(wait, inbox.messages.recv()).await {
            Ok(Some(message)) => {
                let reply = handle(&mut engine, clock.now(), message);
                // Who is answered may count on it that what follows from the request is under way.
                hand_over(&mut engine, &mut dispatch);
                reply();
            }
            Ok(None) => return,
            Err(_elapsed) => engine.tick(clock.now()),
        }
    }
}

fn hand_over<S: cloudpal_model::store::Store>(engine: &mut Engine<S>, dispatch: &mut Dispatch) {
    for effect in engine.take_effects() {
        let facts = machine_of(&effect).and_then(|machine| engine.facts(machine));
        dispatch(effect, facts);
    }
}

fn machine_of(effect: &Effect) -> Option<MachineId> {
    match effect {
        Effect::Machine { machine, .. } | Effect::WatchTap { machine } => Some(*machine),
        _ => None,
    }
}

type Reply = Box<dyn FnOnce() + Send>;

fn handle<S: cloudpal_model::store::Store>(engine: &mut Engine<S>, now: Now, message: Message) -> Reply {
    match message {
        Message::Request { actor, request, reply } => {
            answer(reply, engine.request(now, &actor, request, &mut fill_random))
        }
        Message::Begin { actor, tenant, words, reply } => {
            answer(reply, engine.begin_operation(now, &actor, &tenant, words))
        }
        Message::Event(event) => {
            engine.event(now, event);
            Box::new(|| ())
        }
        Message::View(reply) => answer(reply, engine.view()),
        Message::Operation(id, reply) => answer(reply, engine.operation(id)),
        Message::Operations(limit, reply) => answer(reply, engine.operations(limit)),
        Message::OperationsFrom(first, limit, reply) => answer(reply, engine.operations_from(first, limit)),
    }
}

/// An answer that nobody waits for any more is no error: the asker went away.
fn answer<T: Send + 'static>(reply: oneshot::Sender<T>, value: T) -> Reply {
    Box::new(move || drop(reply.send(value)))
}

/// Randomness for keys. Without it no key may be made, so a failure ends the daemon.
#[expect(clippy::expect_used, reason = "a host without getrandom(2) must not make keys")]
fn fill_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("getrandom(2) works on every supported kernel");
}
