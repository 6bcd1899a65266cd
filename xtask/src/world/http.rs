//! As much of HTTP as a test needs: one connection, one request, one answer, each with its time.

use anyhow::{Context, Result, bail};
use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Longer than any wake or boot under emulation.
const PATIENCE: Duration = Duration::from_secs(180);

/// As a calendar client sends it, for the name `ada` and any password.
const LOGIN: &str = "Authorization: Basic YWRhOmFueQ==";

pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub content_type: &'a str,
    pub body: &'a str,
}

impl<'a> Request<'a> {
    pub fn get(path: &'a str) -> Self {
        Request { method: "GET", path, content_type: "", body: "" }
    }
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
    /// From the first packet to the established connection.
    pub connected: Duration,
    /// From the first packet to the first byte of the answer.
    pub first_byte: Duration,
}

/// How one attempt to connect ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Attempt {
    Connected,
    /// Somebody answered, with a refusal.
    Refused,
    Unanswered,
}

pub fn request(to: SocketAddr, request: &Request) -> Result<Reply> {
    let started = Instant::now();
    let mut stream =
        TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connecting to {to}"))?;
    let connected = started.elapsed();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let Request { method, path, content_type, body } = request;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n{LOGIN}\r\n");
    if !content_type.is_empty() {
        head += &format!("Content-Type: {content_type}\r\n");
    }
    if *method != "GET" {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes())?;
    let mut first = [0];
    stream.read_exact(&mut first).with_context(|| format!("waiting for {to} to answer"))?;
    let first_byte = started.elapsed();
    let mut answer = first.to_vec();
    stream.read_to_end(&mut answer).with_context(|| format!("reading the answer of {to}"))?;
    let (status, body) = parse(&String::from_utf8_lossy(&answer))?;
    Ok(Reply { status, body, connected, first_byte })
}

fn parse(answer: &str) -> Result<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is cut short")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    match status {
        Some(status) if head.starts_with("HTTP/1.") => Ok((status, body.to_owned())),
        _ => bail!("not an HTTP answer: {}", head.lines().next().unwrap_or_default()),
    }
}

pub fn attempt(to: SocketAddr, patience: Duration) -> Attempt {
    match TcpStream::connect_timeout(&to, patience) {
        Ok(_) => Attempt::Connected,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Attempt::Refused,
        Err(_) => Attempt::Unanswered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_garbage_is_not() {
        assert_eq!(parse("HTTP/1.0 200 OK\r\nA: b\r\n\r\nhello").unwrap(), (200, "hello".into()));
        assert!(parse("HTTP/1.0 200 OK\r\n").is_err());
        assert!(parse("SSH-2.0\r\n\r\n").is_err());
    }
}
