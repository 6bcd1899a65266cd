//! Replication over the host's connections: TCP, or whatever else carries bytes both ways.
//!
//! A [`Hub`] holds the cores of one tenant and their replication behind one lock. Each connection has a reader and a
//! writer. Invariants: the lock is never held while waiting for a peer; bytes are made only when the last are
//! written, so a peer that does not read costs at most one buffer; what waits for the disk holds up no other task;
//! nothing is read while too many events wait to be looked at; a refused peer's connection is closed, and its reason
//! told.

use cloudpal_data::crypto::KeyPair;
use cloudpal_data::replication::{Event, Options, Refusal, Replicas, Replication};
use cloudpal_data::stream::Entropy;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Notify, Semaphore};

const READ_BYTES: usize = 256 << 10;
/// How often time is let pass for keep-alives and requests that take too long.
const TICK: Duration = Duration::from_millis(500);
/// No more is read while events of so many bytes wait.
const MAX_EVENT_BYTES: usize = 4 << 20;
/// After a failed accept, as when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why a connection has ended.
#[derive(Debug, Error)]
pub enum Ended {
    #[error("the peer has closed the connection")]
    ByPeer,
    #[error("the connection was closed from our side")]
    ByUs,
    #[error("the peer was refused: {0}")]
    Refused(#[from] Refusal),
    #[error("the connection failed: {0}")]
    Failed(#[from] io::Error),
}

/// Anything that carries bytes both ways.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for T {}

struct Inner<C> {
    replication: Replication,
    cores: C,
    events: VecDeque<Event>,
    event_bytes: usize,
    /// What wakes the writer of a connection.
    writers: HashMap<u64, Arc<Notify>>,
}

impl<C> Inner<C> {
    /// After anything was done: who has to write is woken, and what has happened is put where it is looked for.
    fn settle(&mut self, news: &Notify) {
        for connection in self.replication.take_ready() {
            if let Some(writer) = self.writers.get(&connection) {
                writer.notify_one();
            }
        }
        let events = self.replication.take_events();
        if events.is_empty() {
            return;
        }
        for event in &events {
            // Its tasks learn that it is gone when they next ask for it.
            if let Event::Disconnected { connection, .. } = event
                && let Some(writer) = self.writers.remove(connection)
            {
                writer.notify_one();
            }
        }
        self.event_bytes += events.iter().map(event_bytes).sum::<usize>();
        self.events.extend(events);
        news.notify_waiters();
    }
}

fn event_bytes(event: &Event) -> usize {
    let text = match event {
        Event::Extension { name, message, .. } => name.len() + message.len(),
        _ => 0,
    };
    size_of::<Event>() + text
}

struct Shared<C> {
    inner: Mutex<Inner<C>>,
    started: Instant,
    /// There are events.
    news: Notify,
    /// Events were taken.
    room: Notify,
    connections: Arc<Semaphore>,
}

/// One tenant's cores and their peers.
pub struct Hub<C> {
    shared: Arc<Shared<C>>,
}

impl<C> Clone for Hub<C> {
    fn clone(&self) -> Self {
        Hub { shared: self.shared.clone() }
    }
}

impl<C: Replicas + Send + 'static> Hub<C> {
    /// `own` is the key pair by which peers know this host's side of a connection.
    pub fn new(own: KeyPair, options: Options, cores: C, max_connections: usize) -> Self {
        let inner = Inner {
            replication: Replication::new(own, options),
            cores,
            events: VecDeque::new(),
            event_bytes: 0,
            writers: HashMap::new(),
        };
        Hub {
            shared: Arc::new(Shared {
                inner: Mutex::new(inner),
                started: Instant::now(),
                news: Notify::new(),
                room: Notify::new(),
                connections: Arc::new(Semaphore::new(max_connections)),
            }),
        }
    }

    fn now_ms(&self) -> u64 {
        self.shared.started.elapsed().as_millis() as u64
    }

    /// What a panic under the lock has left is still proved block by block.
    fn lock(&self) -> MutexGuard<'_, Inner<C>> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the cores and their replication, which nobody else does meanwhile.
    pub fn with<T>(&self, act: impl FnOnce(&mut Replication, &mut C) -> T) -> T {
        let mut inner = self.lock();
        let Inner { replication, cores, .. } = &mut *inner;
        let answer = act(replication, cores);
        replication.settle(cores);
        inner.settle(&self.shared.news);
        answer
    }

    /// What has happened since this was last asked; waits until something has. For one caller at a time.
    pub async fn events(&self) -> VecDeque<Event> {
        loop {
            let news = self.shared.news.notified();
            let mut news = std::pin::pin!(news);
            news.as_mut().enable();
            let events = {
                let mut inner = self.lock();
                inner.event_bytes = 0;
                std::mem::take(&mut inner.events)
            };
            if !events.is_empty() {
                self.shared.room.notify_waiters();
                return events;
            }
            news.await;
        }
    }

    /// Lets time pass. Runs until it is dropped; without it nothing times out.
    pub async fn keep_time(&self) {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            ticks.tick().await;
            let now_ms = self.now_ms();
            may_wait(|| self.with(|replication, _| replication.tick(now_ms)));
        }
    }

    /// Takes connections, at most as many as the hub may have, until it is dropped.
    pub async fn listen(&self, listener: TcpListener) {
        loop {
            let Ok(permit) = self.shared.connections.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, from)) => {
                    let hub = self.clone();
                    tokio::spawn(async move {
                        let ended = hub.carry_tcp(socket, false).await;
                        tracing::debug!(%from, %ended, "a peer of the data is gone");
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection for the data");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Connects to a peer, and carries until the connection ends.
    pub async fn dial(&self, to: SocketAddr) -> Ended {
        match TcpStream::connect(to).await {
            Ok(socket) => self.carry_tcp(socket, true).await,
            Err(error) => Ended::Failed(error),
        }
    }

    async fn carry_tcp(&self, socket: TcpStream, initiator: bool) -> Ended {
        match socket.set_nodelay(true) {
            Ok(()) => self.carry(socket, initiator).await,
            Err(error) => Ended::Failed(error),
        }
    }

    /// Carries a connection until it ends, and says why it did. When dropped, the connection ends.
    pub async fn carry(&self, transport: impl Transport, initiator: bool) -> Ended {
        let mut random = [0; 56];
        if getrandom::fill(&mut random).is_err() {
            return Ended::Failed(io::Error::other("the system gives no random bytes"));
        }
        let entropy = Entropy::from_bytes(&random);
        let writer = Arc::new(Notify::new());
        let connection = {
            let mut inner = self.lock();
            let connection = inner.replication.connect(initiator, entropy, self.now_ms());
            inner.writers.insert(connection, writer.clone());
            inner.settle(&self.shared.news);
            connection
        };
        let _ending = Ending { hub: self, connection };
        let (reading, writing) = tokio::io::split(transport);
        tokio::select! {
            ended = self.read(connection, reading) => ended,
            ended = self.write(connection, writing, &writer) => ended,
        }
    }

    async fn read(&self, connection: u64, mut from: impl AsyncRead + Unpin) -> Ended {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = match from.read(&mut buffer).await {
                Ok(0) => return Ended::ByPeer,
                Ok(count) => count,
                Err(error) => return Ended::Failed(error),
            };
            let room = may_wait(|| {
                let mut inner = self.lock();
                let now_ms = self.now_ms();
                let Inner { replication, cores, .. } = &mut *inner;
                let outcome = replication.receive(connection, &buffer[..count], now_ms, cores);
                inner.settle(&self.shared.news);
                outcome.map(|()| inner.event_bytes < MAX_EVENT_BYTES)
            });
            match room {
                Ok(true) => {}
                Ok(false) => self.wait_for_room().await,
                Err(Refusal::NoConnection) => return Ended::ByUs,
                Err(refusal) => return refusal.into(),
            }
        }
    }

    async fn wait_for_room(&self) {
        loop {
            let room = self.shared.room.notified();
            let mut room = std::pin::pin!(room);
            room.as_mut().enable();
            if self.lock().event_bytes < MAX_EVENT_BYTES {
                return;
            }
            room.await;
        }
    }

    async fn write(&self, connection: u64, mut to: impl AsyncWrite + Unpin, wake: &Notify) -> Ended {
        let mut spare = Vec::new();
        loop {
            let made = may_wait(|| {
                let mut inner = self.lock();
                let now_ms = self.now_ms();
                let Inner { replication, cores, .. } = &mut *inner;
                let outcome = replication.outgoing(connection, std::mem::take(&mut spare), now_ms, cores);
                inner.settle(&self.shared.news);
                outcome
            });
            let bytes = match made {
                Ok(bytes) => bytes,
                Err(Refusal::NoConnection) => return Ended::ByUs,
                Err(refusal) => return refusal.into(),
            };
            if bytes.is_empty() {
                spare = bytes;
                wake.notified().await;
                continue;
            }
            if let Err(error) = to.write_all(&bytes).await {
                return Ended::Failed(error);
            }
            spare = bytes;
        }
    }
}

/// What may wait for a disk, or for whoever holds the cores meanwhile. The other tasks of this worker go on elsewhere;
/// a runtime of one thread has nowhere else.
fn may_wait<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Forgets a connection however its task ends.
struct Ending<'a, C: Replicas + Send + 'static> {
    hub: &'a Hub<C>,
    connection: u64,
}

impl<C: Replicas + Send + 'static> Drop for Ending<'_, C> {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        inner.replication.disconnect(self.connection);
        inner.writers.remove(&self.connection);
        inner.settle(&self.hub.shared.news);
    }
}
