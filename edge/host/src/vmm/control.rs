//! The host's end of the control channel to `cloudpal-init`.
//!
//! Invariant: the guest is not trusted. A line longer than the channel's bound, or one that is no message, is skipped;
//! an answer that nobody asked for is dropped; nothing that the guest sends can make memory grow without bound.

use cloudpal_model::{
    Kind, Problem,
    guest::{Ask, FromGuest, MAX_LINE_BYTES, Reply, ToGuest},
};
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{oneshot, watch},
};

/// What the guest has told of its own accord.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub hello: bool,
    pub ready: bool,
    pub app_exited: Option<(Option<i32>, Option<i32>)>,
    /// The channel ended: the VMM did.
    pub lost: bool,
}

type Awaited = Mutex<HashMap<u64, oneshot::Sender<Reply>>>;

pub struct Control {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    next_id: AtomicU64,
    awaited: Arc<Awaited>,
    told: watch::Receiver<Told>,
}

impl Control {
    /// Connects, and ends whatever half line an earlier daemon left.
    pub async fn connect(socket: PathBuf) -> Result<Control, Problem> {
        let place = || format!("the control channel {}", socket.display());
        let stream = UnixStream::connect(&socket).await.map_err(|error| Problem::io(place(), &error))?;
        let (reader, mut writer) = stream.into_split();
        writer.write_all(b"\n").await.map_err(|error| Problem::io(place(), &error))?;
        let (sender, told) = watch::channel(Told::default());
        let awaited = Arc::new(Awaited::default());
        tokio::spawn(listen(reader, sender, awaited.clone()));
        // Ids of an earlier daemon may still be answered: start where it cannot have been.
        let start = u64::from(std::process::id()) << 32;
        Ok(Control { writer: tokio::sync::Mutex::new(writer), next_id: AtomicU64::new(start), awaited, told })
    }

    /// What the guest told and will tell; outlives this end of the channel.
    pub fn told(&self) -> watch::Receiver<Told> {
        self.told.clone()
    }

    /// Waits until what the guest told satisfies the condition, or the channel is lost.
    pub async fn wait_for(&self, patience: Duration, condition: impl Fn(&Told) -> bool) -> Option<Told> {
        let mut told = self.told.clone();
        let wait = told.wait_for(|told| told.lost || condition(told));
        let told = tokio::time::timeout(patience, wait).await.ok()?.ok()?;
        Some(*told)
    }

    pub async fn ask(&self, ask: Ask, patience: Duration) -> Result<Reply, Problem> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.awaited).insert(id, sender);
        let work = async {
            let mut line =
                serde_json::to_vec(&ToGuest { id, ask }).map_err(|error| fault(&error.to_string()))?;
            line.push(b'\n');
            if line.len() > MAX_LINE_BYTES {
                let mend = "shorten the command, or the image's environment";
                return Err(Problem::new(
                    Kind::Invalid,
                    "the message to the guest is longer than 1 MiB",
                    mend,
                ));
            }
            self.writer.lock().await.write_all(&line).await.map_err(|error| fault(&error.to_string()))?;
            receiver.await.map_err(|_| fault("the machine ended"))
        };
        let answer = tokio::time::timeout(patience, work).await;
        lock(&self.awaited).remove(&id);
        match answer.unwrap_or_else(|_| Err(fault("it does not answer")))? {
            Reply::Failed { why } => Err(fault(&why)),
            reply => Ok(reply),
        }
    }
}

async fn listen(mut reader: OwnedReadHalf, told: watch::Sender<Told>, awaited: Arc<Awaited>) {
    let mut pending = Vec::new();
    let mut skipping = false;
    let mut chunk = vec![0; 16384];
    while let Ok(count @ 1..) = reader.read(&mut chunk).await {
        for part in chunk[..count].split_inclusive(|&byte| byte == b'\n') {
            if !skipping {
                pending.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                if !std::mem::take(&mut skipping) {
                    hear(&pending, &told, &awaited);
                }
                pending.clear();
            } else if pending.len() > MAX_LINE_BYTES {
                pending.clear();
                skipping = true;
            }
        }
    }
    lock(&awaited).clear();
    told.send_modify(|told| told.lost = true);
}

fn hear(line: &[u8], told: &watch::Sender<Told>, awaited: &Awaited) {
    match serde_json::from_slice(line) {
        Ok(FromGuest::Hello { .. }) => told.send_modify(|told| told.hello = true),
        Ok(FromGuest::Ready { .. }) => told.send_modify(|told| told.ready = true),
        Ok(FromGuest::AppExited { code, signal }) => {
            told.send_modify(|told| told.app_exited = Some((code, signal)))
        }
        Ok(FromGuest::Reply { id, reply }) => {
            if let Some(sender) = lock(awaited).remove(&id) {
                // Whoever asked has given up.
                drop(sender.send(reply));
            }
        }
        Err(error) if line.len() > 1 => tracing::debug!(%error, "the guest sent a line that is no message"),
        Err(_) => {}
    }
}

fn lock(awaited: &Awaited) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Reply>>> {
    awaited.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fault(why: &str) -> Problem {
    Problem::new(Kind::Internal, format!("the guest: {why}"), "see the machine's log")
}
