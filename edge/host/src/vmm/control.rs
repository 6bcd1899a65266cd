//! The host's end of the control channel to `cloudpal-init`.
//!
//! It runs over any unix stream: a port of QEMU's virtio-serial, or the socket behind which Firecracker (and whoever
//! does as it does) has the guest's vsock.
//!
//! Invariants:
//! - The guest is not trusted. A line longer than the channel's bound, or one that is no message, is skipped; an answer
//!   that nobody asked for is dropped; nothing that the guest sends can make memory grow without bound; its words reach
//!   people without what a terminal would obey.
//! - Whoever asks may give up at any moment: no half line is sent, and nothing stays behind.

use super::logs::cleaned;
use cloudpal_model::{
    Kind, Problem,
    guest::{Ask, FromGuest, MAX_LINE_BYTES, Reply, ToGuest},
};
use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
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
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
};

/// The port on which `cloudpal-init` listens, where the channel is a vsock.
#[allow(dead_code, reason = "for drivers with a vsock")]
pub const VSOCK_PORT: u32 = 52;
/// Messages that wait to be written; whoever asks when there are more waits too.
const QUEUED: usize = 8;
/// A guest's reason for a failure, as far as it is shown.
const MAX_REASON_CHARS: usize = 600;

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
    lines: mpsc::Sender<Vec<u8>>,
    next_id: AtomicU64,
    awaited: Arc<Awaited>,
    told: watch::Receiver<Told>,
    tasks: [AbortHandle; 2],
}

impl Drop for Control {
    /// Closes the connection, so that another can be made.
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Control {
    /// Connects to a socket that is the channel itself.
    pub async fn connect(socket: PathBuf) -> Result<Control, Problem> {
        let stream = UnixStream::connect(&socket).await.map_err(|error| unreached(&socket, &error))?;
        Ok(Control::over(stream))
    }

    #[allow(dead_code, reason = "for drivers with a vsock")]
    /// Connects through a VMM's vsock socket, as Firecracker has it (its docs/vsock.md): one line asks for the port,
    /// one line grants it. `Err` also while nobody listens in the guest yet.
    pub async fn connect_vsock(socket: PathBuf) -> Result<Control, Problem> {
        let granted = async {
            let mut stream = UnixStream::connect(&socket).await?;
            stream.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes()).await?;
            // Byte by byte: what follows the line belongs to the channel.
            let mut line = Vec::new();
            while !line.ends_with(b"\n") {
                if line.len() >= 32 {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                line.push(stream.read_u8().await?);
            }
            if line.starts_with(b"OK ") { Ok(stream) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
        };
        granted.await.map(Control::over).map_err(|error: io::Error| unreached(&socket, &error))
    }

    /// Takes over a stream whose other end is `cloudpal-init`.
    pub fn over(stream: UnixStream) -> Control {
        let (reader, writer) = stream.into_split();
        let (sender, told) = watch::channel(Told::default());
        let (lines, queue) = mpsc::channel(QUEUED);
        let awaited = Arc::new(Awaited::default());
        let tasks = [
            tokio::spawn(listen(reader, sender, awaited.clone())).abort_handle(),
            tokio::spawn(write_lines(writer, queue)).abort_handle(),
        ];
        // Ids of an earlier daemon may still be answered: start where it cannot have been.
        let start = u64::from(std::process::id()) << 32;
        Control { lines, next_id: AtomicU64::new(start), awaited, told, tasks }
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
        let mut line = serde_json::to_vec(&ToGuest { id, ask }).map_err(|error| fault(&error.to_string()))?;
        line.push(b'\n');
        if line.len() > MAX_LINE_BYTES {
            let mend = "shorten the command, or the image's environment";
            return Err(Problem::new(Kind::Invalid, "the message to the guest is longer than 1 MiB", mend));
        }
        let (sender, receiver) = oneshot::channel();
        let ended = || fault("the machine ended");
        lock(&self.awaited).insert(id, sender);
        let _forgotten = Forget(&self.awaited, id);
        let work = async {
            self.lines.send(line).await.map_err(|_| ended())?;
            receiver.await.map_err(|_| ended())
        };
        let answer = tokio::time::timeout(patience, work).await;
        match answer.unwrap_or_else(|_| Err(fault("it does not answer")))? {
            Reply::Failed { why } => Err(fault(&cleaned(&why, MAX_REASON_CHARS))),
            reply => Ok(reply),
        }
    }
}

/// Forgets the question when its answer has come or nobody waits for it any more.
struct Forget<'a>(&'a Awaited, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.0).remove(&self.1);
    }
}

/// First ends whatever half line an earlier daemon left.
async fn write_lines(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    let mut line = b"\n".to_vec();
    while writer.write_all(&line).await.is_ok() {
        let Some(next) = queue.recv().await else { return };
        line = next;
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
    told.send_modify(|told| told.lost = true);
    lock(&awaited).clear();
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

fn unreached(socket: &Path, error: &io::Error) -> Problem {
    Problem::io(format!("the control channel {}", socket.display()), error)
}

fn fault(why: &str) -> Problem {
    Problem::new(Kind::Internal, format!("the guest: {why}"), "see the machine's log")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncBufReadExt, BufReader},
        net::UnixListener,
    };

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn next(lines: &mut tokio::io::Lines<BufReader<OwnedReadHalf>>) -> String {
        lines.next_line().await.unwrap().unwrap()
    }

    /// The guest's end, and ours.
    fn pair() -> (Control, tokio::io::Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf) {
        let (ours, guests) = UnixStream::pair().unwrap();
        let (reader, writer) = guests.into_split();
        (Control::over(ours), BufReader::new(reader).lines(), writer)
    }

    fn answer(line: &str, reply: &str) -> String {
        let asked: ToGuest = serde_json::from_str(line).unwrap();
        format!("{{\"tell\":\"reply\",\"id\":{},\"reply\":{reply}}}\n", asked.id)
    }

    #[tokio::test]
    async fn nothing_that_a_guest_says_harms() {
        let (control, mut lines, mut writer) = pair();
        assert_eq!(next(&mut lines).await, "", "half a line of an earlier daemon ends here");
        let guest = async {
            let asked = next(&mut lines).await;
            writer.write_all(&vec![b'x'; 3 * MAX_LINE_BYTES]).await.unwrap();
            writer.write_all(b"\n{}\n\xff\n{\"tell\":\"ready\",\"listening\":true}\n").await.unwrap();
            writer
                .write_all(b"{\"tell\":\"reply\",\"id\":9,\"reply\":{\"reply\":\"done\"}}\n")
                .await
                .unwrap();
            let failed = r#"{"reply":"failed","why":"no \u001b[31mway\u0007"}"#;
            writer.write_all(answer(&asked, failed).as_bytes()).await.unwrap();
        };
        let (asked, ()) = tokio::join!(control.ask(Ask::PrepareSleep, PATIENCE), guest);
        assert_eq!(asked.unwrap_err().what, "the guest: no [31mway");
        assert!(control.told().borrow().ready && lock(&control.awaited).is_empty());
    }

    #[tokio::test]
    async fn whoever_gives_up_leaves_nothing_behind() {
        let (control, mut lines, mut writer) = pair();
        let long = Ask::Exec { argv: vec!["x".repeat(900_000)] };
        let gave_up = tokio::time::timeout(Duration::from_millis(50), control.ask(long, PATIENCE)).await;
        assert!(gave_up.is_err() && lock(&control.awaited).is_empty());
        let guest = async {
            assert_eq!(next(&mut lines).await, "");
            let whole: ToGuest = serde_json::from_str(&next(&mut lines).await).unwrap();
            assert!(matches!(whole.ask, Ask::Exec { .. }));
            let asked = next(&mut lines).await;
            writer.write_all(answer(&asked, r#"{"reply":"done"}"#).as_bytes()).await.unwrap();
        };
        let (asked, ()) = tokio::join!(control.ask(Ask::PrepareSleep, PATIENCE), guest);
        assert_eq!(asked.unwrap(), Reply::Done);
        drop(control);
        assert!(lines.next_line().await.unwrap().is_none(), "dropped, it is closed");
    }

    #[tokio::test]
    async fn a_vsock_is_asked_for_its_port_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let vmm = async {
            for greeting in ["", "NO\n", "OK 1073741824\n{\"tell\":\"hello\",\"version\":1}\n"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = [0; 11];
                stream.read_exact(&mut asked).await.unwrap();
                assert_eq!(&asked, b"CONNECT 52\n");
                stream.write_all(greeting.as_bytes()).await.unwrap();
                if greeting.starts_with("OK") {
                    stream.read_u8().await.unwrap();
                }
            }
        };
        let host = async {
            for _ in 0..2 {
                assert!(Control::connect_vsock(path.clone()).await.is_err());
            }
            let control = Control::connect_vsock(path.clone()).await.unwrap();
            let told = control.wait_for(PATIENCE, |told| told.hello).await;
            assert!(told.unwrap().hello, "nothing of the channel was taken for the greeting");
        };
        tokio::join!(vmm, host);
    }
}
