//! The daemon's end of the control channel to a `cloudpal-vmm`.
//!
//! Invariant: the VMM is not trusted, for its guest may have taken it over. A line longer than the channel's bound, or
//! one that is no message, ends the channel; an answer that nobody asked for is dropped; every wait has an end; and
//! descriptors that it sends are never taken.

use super::super::running::{LastWord, LastWords};
use cloudpal_model::{
    Kind, Problem,
    vmm::{Ask, End, File, FromVmm, MAX_LINE_BYTES, Reply, ToVmm},
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::{
    collections::HashMap,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{fd::BorrowedFd, unix::net::UnixStream as StdStream},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{oneshot, watch},
};

/// What the VMM has told of its own accord.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its version, once it waits for a machine.
    pub ready: Option<String>,
    pub lost: bool,
}

type Awaited = Mutex<HashMap<u64, oneshot::Sender<Reply>>>;

pub struct Channel {
    stream: Arc<UnixStream>,
    /// Lines do not mix.
    writing: tokio::sync::Mutex<()>,
    next_id: AtomicU64,
    awaited: Arc<Awaited>,
    told: watch::Receiver<Told>,
    listener: tokio::task::AbortHandle,
}

/// Why an ask was not answered with what it asked for.
#[derive(Debug)]
pub enum Denied {
    /// The kernel or the snapshot is at fault.
    Refused(String),
    Failed(Problem),
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Problem {
        match denied {
            Denied::Refused(why) => Problem::new(Kind::Refused, why, "boot from the disk"),
            Denied::Failed(problem) => problem,
        }
    }
}

impl Channel {
    /// To a VMM that was started with the other end.
    pub fn new(stream: StdStream, last_words: LastWords) -> io::Result<Channel> {
        stream.set_nonblocking(true)?;
        let stream = Arc::new(UnixStream::from_std(stream)?);
        let (sender, told) = watch::channel(Told::default());
        let awaited = Arc::new(Awaited::default());
        let listener =
            tokio::spawn(listen(stream.clone(), sender, awaited.clone(), last_words)).abort_handle();
        // Ids of an earlier daemon may still be answered: start where it cannot have been.
        let next_id = AtomicU64::new(u64::from(std::process::id()) << 32);
        Ok(Channel { stream, writing: tokio::sync::Mutex::default(), next_id, awaited, told, listener })
    }

    /// To a VMM that an earlier daemon started; ends whatever half line that one left.
    pub async fn connect(socket: &Path, last_words: LastWords) -> io::Result<Channel> {
        let stream = UnixStream::connect(socket).await?.into_std()?;
        let channel = Channel::new(stream, last_words)?;
        channel.send(b"\n", &[]).await?;
        Ok(channel)
    }

    /// Whether the VMM still holds its end.
    pub fn is_open(&self) -> bool {
        !self.told.borrow().lost
    }

    pub async fn wait_for(&self, patience: Duration, condition: impl Fn(&Told) -> bool) -> Option<Told> {
        let mut told = self.told.clone();
        let wait = told.wait_for(|told| told.lost || condition(told));
        let told = tokio::time::timeout(patience, wait).await.ok()?.ok()?;
        Some(told.clone())
    }

    pub async fn ask(
        &self,
        ask: Ask,
        files: &[(File, BorrowedFd<'_>)],
        patience: Duration,
    ) -> Result<Reply, Denied> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        lock(&self.awaited).insert(id, sender);
        let (names, descriptors): (Vec<File>, Vec<BorrowedFd<'_>>) = files.iter().copied().unzip();
        let work = async {
            let message = ToVmm { id, files: names, ask };
            let mut line = serde_json::to_vec(&message).map_err(|error| fault(&error.to_string()))?;
            line.push(b'\n');
            if line.len() > MAX_LINE_BYTES {
                return Err(fault("a message to it would be longer than the channel's bound"));
            }
            self.send(&line, &descriptors).await.map_err(|error| fault(&error.to_string()))?;
            receiver.await.map_err(|_| fault("it ended"))
        };
        let answer = tokio::time::timeout(patience, work).await;
        lock(&self.awaited).remove(&id);
        match answer.unwrap_or_else(|_| Err(fault("it does not answer"))).map_err(Denied::Failed)? {
            Reply::Refused { why } => Err(Denied::Refused(why)),
            Reply::Failed { why } => Err(Denied::Failed(fault(&why))),
            Reply::DiskFull => {
                let full = io::Error::from(io::ErrorKind::StorageFull);
                Err(Denied::Failed(Problem::io("the snapshot", &full)))
            }
            reply => Ok(reply),
        }
    }

    async fn send(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        let _turn = self.writing.lock().await;
        let (mut sent, mut files) = (0, files);
        while sent < bytes.len() {
            let write = || send_some(&self.stream, &bytes[sent..], files);
            sent += match self.stream.try_io(Interest::WRITABLE, write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.writable().await?;
                    continue;
                }
                result => result?,
            };
            files = &[];
        }
        Ok(())
    }
}

impl Drop for Channel {
    /// The VMM sees the end at once: nobody else holds the stream.
    fn drop(&mut self) {
        self.listener.abort();
    }
}

fn send_some(stream: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(cloudpal_model::vmm::MAX_FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}

async fn listen(
    stream: Arc<UnixStream>,
    told: watch::Sender<Told>,
    awaited: Arc<Awaited>,
    last_words: LastWords,
) {
    let mut pending = Vec::new();
    let mut chunk = [0; 4096];
    'open: while stream.readable().await.is_ok() {
        match stream.try_read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => pending.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        }
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            if line.len() > 1 && !hear(&line, &told, &awaited, &last_words) {
                break 'open;
            }
        }
        if pending.len() > MAX_LINE_BYTES {
            break;
        }
    }
    lock(&awaited).clear();
    told.send_modify(|told| told.lost = true);
}

/// Whether the line was a message.
fn hear(line: &[u8], told: &watch::Sender<Told>, awaited: &Awaited, last_words: &LastWords) -> bool {
    match serde_json::from_slice(line) {
        Ok(FromVmm::Ready { version }) => told.send_modify(|told| told.ready = Some(version)),
        Ok(FromVmm::Ended { end }) => {
            *last_words.lock().unwrap_or_else(PoisonError::into_inner) = Some(last_word(end));
        }
        Ok(FromVmm::Reply { id, reply }) => {
            if let Some(sender) = lock(awaited).remove(&id) {
                // Whoever asked has given up.
                drop(sender.send(reply));
            }
        }
        Err(error) => {
            tracing::warn!(%error, "a VMM sent a line that is no message; its channel is closed");
            return false;
        }
    }
    true
}

fn last_word(end: End) -> LastWord {
    match end {
        End::PowerOff => LastWord::PoweredOff,
        End::Reset | End::Crash => LastWord::Reset,
        End::Failed { what } => {
            // Foreign text, without what a terminal would obey.
            let what: String = what.chars().filter(|char| !char.is_control()).take(600).collect();
            LastWord::Failed(format!("the VMM cannot go on: {what}"))
        }
    }
}

fn lock(awaited: &Awaited) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Reply>>> {
    awaited.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fault(why: &str) -> Problem {
    Problem::new(Kind::Internal, format!("the VMM: {why}"), "see the machine's vmm.log")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{BufRead, BufReader, Write},
        os::fd::AsFd,
    };

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn an_ask_is_answered_by_its_own_answer() {
        let (ours, theirs) = StdStream::pair().unwrap();
        let channel = Channel::new(ours, LastWords::default()).unwrap();
        let vmm = std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(&theirs).read_line(&mut line).unwrap();
            let asked: ToVmm = serde_json::from_str(&line).unwrap();
            let answer = |id, reply| serde_json::to_string(&FromVmm::Reply { id, reply }).unwrap() + "\n";
            let said = answer(asked.id + 7, Reply::Failed { why: "not yours".into() })
                + "\n"
                + &answer(asked.id, Reply::Done);
            (&theirs).write_all(said.as_bytes()).unwrap();
            (asked, theirs)
        });
        let null = std::fs::File::open("/dev/null").unwrap();
        let reply = channel.ask(Ask::Pause, &[(File::Lock, null.as_fd())], PATIENCE).await.unwrap();
        assert_eq!(reply, Reply::Done);
        let (asked, theirs) = vmm.join().unwrap();
        assert_eq!(asked.files, [File::Lock]);
        drop(theirs);
        assert!(channel.wait_for(PATIENCE, |_| false).await.unwrap().lost);
        assert!(matches!(channel.ask(Ask::Resume, &[], PATIENCE).await, Err(Denied::Failed(_))));
    }

    #[tokio::test]
    async fn a_vmm_that_babbles_or_never_ends_its_line_is_cut_off() {
        for said in [b"{\"tell\":\"fly\"}\n".to_vec(), vec![b'x'; 2 * MAX_LINE_BYTES]] {
            let (ours, mut theirs) = StdStream::pair().unwrap();
            let channel = Channel::new(ours, LastWords::default()).unwrap();
            let writer = std::thread::spawn(move || drop(theirs.write_all(&said)));
            assert!(channel.wait_for(PATIENCE, |_| false).await.unwrap().lost);
            drop(channel);
            writer.join().unwrap();
        }
    }
}
