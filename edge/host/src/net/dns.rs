//! A tenant's DNS server: listens inside the tenant's namespace, asks the host's resolvers from the daemon's own.
//!
//! Invariants: what is asked, and by whom, is judged by the zone alone; every forwarded question has a random id and a
//! source port of its own, and only an answer to that very question goes back; questions in flight, connections and
//! message sizes are bounded.

use crate::net::namespace::Namespace;
use cloudpal_model::{Kind, Problem};
use cloudpal_net::dns::{Answer, Transport, Zone};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

const PORT: u16 = 53;
/// For all of the host's resolvers together.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(3);
const TCP_IDLE: Duration = Duration::from_secs(10);
const MAX_IN_FLIGHT: usize = 256;
const MAX_CONNECTIONS: usize = 64;
/// No sane question is longer, and no answer over UDP that anybody asks for.
const MAX_UDP_BYTES: usize = 4096;
const HEADER_BYTES: usize = 12;

/// The server of one tenant; ends when dropped.
pub struct Dns {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    zone: RwLock<Arc<Zone>>,
    upstream: Vec<SocketAddr>,
    in_flight: Semaphore,
}

impl Drop for Dns {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Dns {
    /// Listens on both addresses, which the namespace must have already.
    pub fn start(
        namespace: &Namespace,
        addresses: [IpAddr; 2],
        zone: Zone,
        upstream: Vec<SocketAddr>,
    ) -> Result<Self, Problem> {
        let shared = Arc::new(Shared {
            zone: RwLock::new(Arc::new(zone)),
            upstream,
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
        });
        let mut tasks = Vec::new();
        for address in addresses {
            let at = SocketAddr::new(address, PORT);
            let place = |e: io::Error| Problem::io(format_args!("opening the DNS server's {at}"), &e);
            let (udp, tcp) = namespace.run(|| listen(at)).and_then(|opened| opened).map_err(place)?;
            let udp = UdpSocket::from_std(udp).map_err(place)?;
            let tcp = TcpListener::from_std(tcp).map_err(place)?;
            tasks.push(tokio::spawn(serve_udp(Arc::new(udp), shared.clone())));
            tasks.push(tokio::spawn(serve_tcp(tcp, shared.clone())));
        }
        Ok(Dns { shared, tasks })
    }

    /// From now on these names.
    pub fn replace_zone(&self, zone: Zone) {
        *self.shared.zone.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(zone);
    }
}

fn listen(at: SocketAddr) -> io::Result<(std::net::UdpSocket, std::net::TcpListener)> {
    let udp = std::net::UdpSocket::bind(at)?;
    let tcp = std::net::TcpListener::bind(at)?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((udp, tcp))
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; MAX_UDP_BYTES];
    let mut forwards = JoinSet::new();
    loop {
        while forwards.try_join_next().is_some() {}
        let (message, from) = match socket.recv_from(&mut buffer).await {
            Ok((read, from)) => (&buffer[..read], from),
            Err(error) => {
                tracing::debug!(%error, "the DNS socket");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let zone = shared.zone();
        match zone.answer(message, Transport::Udp) {
            // A lost answer is asked for again.
            Answer::Reply(reply) => drop(socket.send_to(&reply, from).await),
            Answer::Forward => {
                let (query, socket, shared) = (message.to_vec(), socket.clone(), shared.clone());
                forwards.spawn(async move {
                    // Beyond the limit the question is dropped, as a full queue would drop it.
                    let Ok(_permit) = shared.in_flight.try_acquire() else { return };
                    let reply = shared.forward(&query, Transport::Udp).await;
                    drop(socket.send_to(&reply, from).await);
                });
            }
            Answer::Ignore => {}
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                connections.spawn(converse(stream, shared.clone()));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "the DNS listener");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Answers the questions of one TCP connection, one after the other, until it is closed or idle.
async fn converse(mut stream: TcpStream, shared: Arc<Shared>) {
    loop {
        let Ok(Ok(message)) = timeout(TCP_IDLE, read_framed(&mut stream, MAX_UDP_BYTES)).await else {
            return;
        };
        let zone = shared.zone();
        let reply = match zone.answer(&message, Transport::Tcp) {
            Answer::Reply(reply) => reply,
            Answer::Forward => match shared.in_flight.try_acquire() {
                Ok(_permit) => shared.forward(&message, Transport::Tcp).await,
                Err(_) => server_failure(&message),
            },
            Answer::Ignore => return,
        };
        match timeout(TCP_IDLE, write_framed(&mut stream, &reply)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
    }
}

impl Shared {
    fn zone(&self) -> Arc<Zone> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The answer of the first of the host's resolvers that gives one.
    async fn forward(&self, query: &[u8], transport: Transport) -> Vec<u8> {
        let each = FORWARD_TIMEOUT / self.upstream.len().max(1) as u32;
        for server in &self.upstream {
            match timeout(each, ask(*server, query, transport)).await {
                Ok(Ok(reply)) => return reply,
                Ok(Err(error)) => tracing::debug!(%server, %error, "a resolver of the host gave no answer"),
                Err(_) => tracing::debug!(%server, "a resolver of the host gave no answer in time"),
            }
        }
        server_failure(query)
    }
}

/// Asks one resolver; over UDP first, as most answers fit.
async fn ask(server: SocketAddr, query: &[u8], transport: Transport) -> io::Result<Vec<u8>> {
    let question = question_of(query).ok_or(io::ErrorKind::InvalidInput)?;
    let mut asked = query.to_vec();
    getrandom::fill(&mut asked[..2]).map_err(io::Error::other)?;
    // Port 0: the kernel draws one at random, and a connected socket hears this server alone.
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&asked).await?;
    let mut buffer = vec![0; MAX_UDP_BYTES];
    let mut reply = loop {
        let read = socket.recv(&mut buffer).await?;
        if answers(&buffer[..read], &asked[..2], question) {
            break buffer[..read].to_vec();
        }
    };
    const CUT_SHORT: u8 = 0x02;
    if reply[2] & CUT_SHORT != 0 && transport == Transport::Tcp {
        let mut stream = TcpStream::connect(server).await?;
        write_framed(&mut stream, &asked).await?;
        reply = read_framed(&mut stream, usize::from(u16::MAX)).await?;
        if !answers(&reply, &asked[..2], question) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another question"));
        }
    }
    reply[..2].copy_from_slice(&query[..2]);
    Ok(reply)
}

/// The message is a response with this id to this question.
fn answers(message: &[u8], id: &[u8], question: &[u8]) -> bool {
    message.len() >= HEADER_BYTES
        && message[2] & 0x80 != 0
        && message[..2] == *id
        && question_of(message).is_some_and(|theirs| theirs.eq_ignore_ascii_case(question))
}

/// The bytes of the only question: name, type, class. `None`: there is not exactly one, or it is malformed.
fn question_of(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER_BYTES;
    loop {
        match usize::from(*message.get(at)?) {
            0 => break,
            // A pointer or an extended label has no place in the first name of a message.
            label if label > 63 => return None,
            label => at += 1 + label,
        }
    }
    message.get(HEADER_BYTES..at + 5)
}

/// "I could not find out", with the question.
fn server_failure(query: &[u8]) -> Vec<u8> {
    const SERVER_FAILURE: u8 = 2;
    let Some(question) = question_of(query) else { return Vec::new() };
    let recursion_desired = query[2] & 1;
    let mut reply =
        vec![query[0], query[1], 0x80 | recursion_desired, 0x80 | SERVER_FAILURE, 0, 1, 0, 0, 0, 0, 0, 0];
    reply.extend_from_slice(question);
    reply
}

async fn read_framed(stream: &mut TcpStream, limit: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is too long"));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// The resolvers that the host itself uses.
pub fn host_resolvers() -> Result<Vec<SocketAddr>, Problem> {
    const FILE: &str = "/etc/resolv.conf";
    let text = std::fs::read_to_string(FILE).map_err(|e| {
        Problem::new(
            Kind::HostLacks,
            format!("{FILE} cannot be read: {e}"),
            "name resolvers with --upstream-dns",
        )
    })?;
    Ok(resolvers_of(&text))
}

fn resolvers_of(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok();
    text.lines().filter_map(address).map(|address| SocketAddr::new(address, PORT)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `id`, flags, one question `a.b A IN`.
    fn message(id: [u8; 2], flags: u8, name: &[u8]) -> Vec<u8> {
        let mut message = vec![id[0], id[1], flags, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(name);
        message.extend_from_slice(&[0, 0, 1, 0, 1]);
        message
    }

    #[test]
    fn only_an_answer_to_the_very_question_counts() {
        let query = message([7, 9], 1, b"\x01a\x01b");
        let question = question_of(&query).unwrap();
        assert_eq!(question, b"\x01a\x01b\0\0\x01\0\x01");
        assert!(answers(&message([7, 9], 0x80, b"\x01A\x01b"), &[7, 9], question));
        assert!(!answers(&message([7, 8], 0x80, b"\x01a\x01b"), &[7, 9], question), "another id");
        assert!(!answers(&message([7, 9], 0, b"\x01a\x01b"), &[7, 9], question), "no response");
        assert!(!answers(&message([7, 9], 0x80, b"\x01a\x01c"), &[7, 9], question), "another name");
        assert!(!answers(&[7, 9, 0x80], &[7, 9], question), "too short");
    }

    #[test]
    fn a_malformed_question_is_none_and_a_failure_names_the_question() {
        for bad in
            [&b""[..], b"\0\0\0\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01", b"\0\0\0\0\0\x01\0\0\0\0\0\0\x3fa"]
        {
            assert_eq!(question_of(bad), None);
            assert!(server_failure(bad).is_empty());
        }
        let query = message([7, 9], 1, b"\x01a\x01b");
        let failure = server_failure(&query);
        assert!(answers(&failure, &[7, 9], question_of(&query).unwrap()));
        assert_eq!(failure[3] & 0x0f, 2);
    }

    #[test]
    fn resolvers_are_read_and_the_rest_is_skipped() {
        let text = "# nameserver 9.9.9.9\nsearch lan\nnameserver 192.0.2.1\n nameserver  2001:db8::1\nnameserver x\n";
        let expected: [SocketAddr; 2] =
            ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
        assert_eq!(resolvers_of(text), expected);
    }
}
