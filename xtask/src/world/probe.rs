//! Small questions to a network: a name, a closed port, and how often the kernel had to repeat itself.

use anyhow::{Context, Result, bail, ensure};
use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// The first IPv4 and IPv6 address of a name.
pub fn resolve(server: SocketAddr, name: &str) -> Result<(Option<IpAddr>, Option<IpAddr>)> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(server)?;
    let ask = |kind| -> Result<Option<IpAddr>> {
        socket.send(&question(name, kind))?;
        let mut answer = [0; 1500];
        let length =
            socket.recv(&mut answer).with_context(|| format!("{server} does not answer for {name}"))?;
        first_address(&answer[..length], kind).context("the DNS answer is cut short")
    };
    Ok((ask(TYPE_A)?, ask(TYPE_AAAA)?))
}

/// A question with recursion desired (RFC 1035 §4.1). The kind is the id, too: answers cannot be mixed up.
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut message = [kind, 0x0100, 1, 0, 0, 0].map(u16::to_be_bytes).concat();
    for label in name.trim_end_matches('.').split('.') {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend([kind, 1].map(u16::to_be_bytes).concat());
    message
}

/// `None`: the message is cut short. `Some(None)`: it has no such address.
fn first_address(message: &[u8], kind: u16) -> Option<Option<IpAddr>> {
    let word = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
    let mut at = skip_name(message, 12)? + 4;
    for _ in 0..word(6)? {
        at = skip_name(message, at)?;
        let (found, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        if found == kind {
            let v4 = <[u8; 4]>::try_from(data).map(|octets| IpAddr::from(Ipv4Addr::from(octets)));
            let v6 = <[u8; 16]>::try_from(data).map(|octets| IpAddr::from(Ipv6Addr::from(octets)));
            return Some(v4.or(v6).ok());
        }
        at += 10 + length;
    }
    Some(None)
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}

/// A datagram to a port where nobody listens: the machine's own answer is a refusal, which proves that it is awake.
pub fn send_udp_to_closed_port(to: SocketAddr, patience: Duration) -> Result<()> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(to)?;
    socket.send(b"anybody awake?")?;
    let mut answer = [0; 64];
    match socket.recv(&mut answer) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => bail!("no answer to a datagram to {to}: {error}"),
        Ok(_) => bail!("somebody listens on {to}"),
    }
}

/// TCP segments that this thread's network sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retransmits(pub u64);

impl Retransmits {
    pub fn read() -> Result<Retransmits> {
        let text = fs::read_to_string("/proc/thread-self/net/snmp")?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "RetransSegs");
        ensure!(found.is_some(), "the kernel does not count repeated segments");
        Ok(Retransmits(found.and_then(|(_, value)| value.parse().ok()).unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_a_compressed_name_is_read() {
        let mut message = question("a.ada.pal", TYPE_A);
        message[7] = 1;
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 77, 0, 9]);
        assert_eq!(first_address(&message, TYPE_A), Some(Some("10.77.0.9".parse().unwrap())));
        assert_eq!(first_address(&message, TYPE_AAAA), Some(None));
        assert_eq!(first_address(&message[..message.len() - 1], TYPE_A), None);
    }
}
