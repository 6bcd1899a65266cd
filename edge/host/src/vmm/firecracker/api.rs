//! Firecracker's API: a little HTTP/1.1 over its unix socket.
//!
//! Invariant: Firecracker runs a hostile guest and is not trusted: no answer of it is read beyond its bound, and one
//! that is no answer is an error.

use cloudpal_model::{Kind, Problem};
use serde_json::Value;
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

const MAX_ANSWER_BYTES: usize = 64 << 10;

pub struct Api {
    socket: PathBuf,
}

/// What a whole answer says.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Api {
    pub fn at(socket: &Path) -> Api {
        Api { socket: socket.to_path_buf() }
    }

    /// Whether somebody listens.
    pub async fn answers(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
    }

    pub async fn put(&self, path: &str, body: &Value, patience: Duration) -> Result<(), Problem> {
        self.send("PUT", path, body, patience).await
    }

    pub async fn patch(&self, path: &str, body: &Value, patience: Duration) -> Result<(), Problem> {
        self.send("PATCH", path, body, patience).await
    }

    async fn send(&self, method: &str, path: &str, body: &Value, patience: Duration) -> Result<(), Problem> {
        let body = body.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let place = format!("Firecracker's {method} {path}");
        let asked = tokio::time::timeout(patience, ask(&self.socket, request.as_bytes())).await;
        let answer = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let answer = answer.map_err(|error| Problem::io(&place, &error))?;
        if (200..300).contains(&answer.status) {
            return Ok(());
        }
        let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let why = said["fault_message"].as_str().unwrap_or("no reason given");
        let why = crate::vmm::logs::cleaned(why, 600);
        // The only sign of it: Firecracker answers in words.
        if why.contains("(os error 28)") {
            return Err(Problem::io(&place, &io::ErrorKind::StorageFull.into()));
        }
        Err(Problem::new(Kind::Internal, format!("{place}: {why}"), "see the machine's log"))
    }
}

async fn ask(socket: &Path, request: &[u8]) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(request).await?;
    let mut bytes = Vec::new();
    loop {
        if let Some(answer) = parse(&bytes)? {
            return Ok(answer);
        }
        if bytes.len() > MAX_ANSWER_BYTES {
            return Err(malformed("it is too long"));
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// `None`: more is to come.
fn parse(bytes: &[u8]) -> io::Result<Option<Answer>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| malformed("its head is no text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 "));
    let status =
        status.and_then(|rest| rest.get(..3)?.parse().ok()).ok_or_else(|| malformed("it has no status"))?;
    let mut length: usize = 0;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| malformed("its length is no number"))?;
        }
    }
    if length > MAX_ANSWER_BYTES {
        return Err(malformed("it is too long"));
    }
    let body = &bytes[end + 4..];
    Ok((body.len() >= length).then(|| Answer { status, body: body[..length].to_vec() }))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP answer: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole() {
        let text = b"HTTP/1.1 400 \r\nServer: f\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello";
        for cut in 0..text.len() {
            assert_eq!(parse(&text[..cut]).unwrap(), None, "{cut}");
        }
        assert_eq!(parse(text).unwrap(), Some(Answer { status: 400, body: b"hello".into() }));
        assert_eq!(parse(b"HTTP/1.1 204 \r\n\r\n").unwrap().unwrap().status, 204);
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_never_a_panic() {
        for text in
            [&b"SSH-2.0\r\n\r\n"[..], b"HTTP/1.1 x\r\n\r\n", b"HTTP/1.1 200\r\ncontent-length: -1\r\n\r\n"]
        {
            assert!(parse(text).is_err());
        }
        assert!(parse(b"HTTP/1.1 200\r\ncontent-length: 99999999999\r\n\r\n").is_err());
        let mut state = 7_u64;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..40)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    b"HTP/1. 2\r\n\xff:"[usize::try_from(state >> 33).unwrap() % 12]
                })
                .collect();
            drop(parse(&bytes));
        }
    }
}
