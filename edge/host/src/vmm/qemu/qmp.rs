//! A small client of QEMU's monitor protocol: one JSON object per line.
//!
//! Invariants:
//! - One command at a time. An answer is matched by its id, so the late answer to a command whose caller gave up is not
//!   taken for the next one's.
//! - QEMU is not trusted: its lines and the answers that nobody waits for are bounded.

use crate::vmm::{
    logs::cleaned,
    running::{LastWord, LastWords},
};
use cloudpal_model::{Kind, Problem};
use serde_json::{Value, json};
use std::{
    io::IoSlice, mem::MaybeUninit, os::fd::BorrowedFd, path::PathBuf, sync::PoisonError, time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc::{Receiver, Sender, channel},
    task::AbortHandle,
};

const PATIENCE: Duration = Duration::from_secs(60);
/// Its longest answer to what we ask has a few KiB.
const MAX_LINE_BYTES: u64 = 1 << 20;
const MAX_ANSWERS: usize = 64;

pub struct Qmp {
    line: tokio::sync::Mutex<Line>,
    last_words: LastWords,
    reading: AbortHandle,
}

impl Drop for Qmp {
    /// Closes the connection, so that another can be made.
    fn drop(&mut self) {
        self.reading.abort();
    }
}

struct Line {
    writer: OwnedWriteHalf,
    answers: Receiver<Value>,
    next_id: u64,
}

impl Qmp {
    /// Connects and negotiates. `Err` while QEMU does not listen yet.
    pub async fn connect(socket: PathBuf) -> Result<Qmp, Problem> {
        let stream = UnixStream::connect(&socket).await;
        let stream =
            stream.map_err(|error| Problem::io(format!("QEMU's monitor {}", socket.display()), &error))?;
        let (reader, writer) = stream.into_split();
        let (sender, answers) = channel(MAX_ANSWERS);
        let last_words = LastWords::default();
        let reading = tokio::spawn(read_lines(reader, sender, last_words.clone())).abort_handle();
        let line = tokio::sync::Mutex::new(Line { writer, answers, next_id: 1 });
        let qmp = Qmp { line, last_words, reading };
        qmp.ask("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Where the reason will be once QEMU says that it shuts down.
    pub fn last_words(&self) -> LastWords {
        self.last_words.clone()
    }

    pub async fn ask(&self, command: &str, arguments: Value) -> Result<Value, Problem> {
        self.send(command, arguments, None).await
    }

    /// `getfd`: hands QEMU a descriptor under a name.
    pub async fn give(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Problem> {
        self.send("getfd", json!({ "fdname": name }), Some(fd)).await.map(drop)
    }

    async fn send(
        &self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, Problem> {
        let work = async {
            let mut line = self.line.lock().await;
            line.next_id += 1;
            let id = line.next_id;
            let mut text = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
            text.push('\n');
            write(&line.writer, text.as_bytes(), fd)
                .await
                .map_err(|error| lost(command, &error.to_string()))?;
            loop {
                let answer =
                    line.answers.recv().await.ok_or_else(|| lost(command, "the connection ended"))?;
                if answer["id"] == id {
                    return match answer.get("error") {
                        Some(error) => Err(lost(
                            command,
                            &cleaned(error["desc"].as_str().unwrap_or("no reason given"), 400),
                        )),
                        None => Ok(answer["return"].clone()),
                    };
                }
            }
        };
        tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(lost(command, "no answer")))
    }
}

async fn read_lines(reader: OwnedReadHalf, answers: Sender<Value>, last_words: LastWords) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await;
        if read.is_err() || !line.ends_with(b"\n") {
            return;
        }
        let Ok(message) = serde_json::from_slice::<Value>(&line) else { continue };
        if message["event"] == "SHUTDOWN" {
            let word = match message["data"]["reason"].as_str() {
                Some("guest-shutdown") => LastWord::PoweredOff,
                Some("guest-reset" | "guest-panic") => LastWord::Reset,
                _ => continue,
            };
            *last_words.lock().unwrap_or_else(PoisonError::into_inner) = Some(word);
        } else if message.get("id").is_some() && answers.try_send(message).is_err() {
            // Nobody asked for that many, or nobody is there any more.
            return;
        }
    }
}

/// The descriptor, if there is one, travels with the first byte.
async fn write(writer: &OwnedWriteHalf, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
    let stream: &UnixStream = writer.as_ref();
    let (mut rest, mut fd) = (bytes, fd);
    while !rest.is_empty() {
        stream.writable().await?;
        let sent = match fd {
            Some(passed) => stream.try_io(tokio::io::Interest::WRITABLE, || send_with(stream, rest, passed)),
            None => stream.try_write(rest),
        };
        match sent {
            Ok(count) => {
                rest = &rest[count..];
                fd = None;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn send_with(stream: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) -> std::io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    Ok(sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

fn lost(command: &str, why: &str) -> Problem {
    Problem::new(Kind::Internal, format!("QEMU's monitor, {command}: {why}"), "see the machine's vmm.log")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{io::AsyncWriteExt, net::UnixListener};

    /// A QEMU that answers each command with `answer`, until it has said everything.
    async fn qemu(listener: UnixListener, answers: Vec<Vec<u8>>) {
        let (stream, _) = listener.accept().await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        writer.write_all(b"{\"QMP\": {}}\n").await.unwrap();
        for answer in answers {
            let asked: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
            let text = String::from_utf8(answer).unwrap().replace("ID", &asked["id"].to_string());
            // It may be cut off in the middle.
            drop(writer.write_all(text.as_bytes()).await);
        }
        // It goes on listening.
        drop(lines.next_line().await);
    }

    #[tokio::test]
    async fn nothing_that_qemu_says_harms() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let good = b"{\"return\": {}, \"id\": ID}\n".to_vec();
        let late = [b"no json\n{\"return\": 1, \"id\": 1}\n".to_vec(), good.clone()].concat();
        let error = b"{\"error\": {\"desc\": \"no \\u001b[31mway\"}, \"id\": ID}\n".to_vec();
        let shutdown = b"{\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\n".to_vec();
        let endless = vec![b'x'; 3 << 20];
        let answers = vec![good.clone(), late, error, [shutdown, good].concat(), endless];
        let vmm = tokio::spawn(qemu(listener, answers));
        let qmp = Qmp::connect(path).await.unwrap();
        assert_eq!(qmp.ask("late", json!({})).await.unwrap(), json!({}));
        let refused = qmp.ask("wrong", json!({})).await.unwrap_err();
        assert_eq!(refused.what, "QEMU's monitor, wrong: no [31mway");
        qmp.ask("system_reset", json!({})).await.unwrap();
        assert_eq!(*qmp.last_words().lock().unwrap(), Some(LastWord::Reset));
        let endless = qmp.ask("endless", json!({})).await.unwrap_err();
        assert!(endless.what.contains("the connection ended"), "{endless}");
        drop(qmp);
        vmm.await.unwrap();
    }
}
