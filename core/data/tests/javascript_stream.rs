//! Secret streams with `@hyperswarm/secret-stream` at the other end of a TCP connection, in both roles.

mod javascript_kit;

use cloudpal_data::crypto::KeyPair;
use cloudpal_data::stream::{Entropy, Options, SecretStream};
use javascript_kit::{Peer, hex};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

const SIZES: [usize; 6] = [1, 100, 65_536, 300_000, 1_000_000, (1 << 24) - 18];

struct Connection {
    stream: SecretStream,
    socket: TcpStream,
    /// What came together with the end of the handshake.
    early: Option<Vec<u8>>,
}

impl Connection {
    fn new(initiator: bool, socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let entropy = Entropy { ephemeral_seed: [3; 32], nonce: [4; 24] };
        let own = KeyPair::from_seed(&[1; 32]);
        Connection {
            stream: SecretStream::new(initiator, own, entropy, Options::default(), 0),
            socket,
            early: None,
        }
    }

    fn flush(&mut self) {
        let bytes = self.stream.take_outgoing(Vec::new());
        self.socket.write_all(&bytes).unwrap();
    }

    fn message(&mut self) -> Vec<u8> {
        if let Some(early) = self.early.take() {
            return early;
        }
        loop {
            if let Some(message) = self.stream.next().unwrap() {
                return message.to_vec();
            }
            self.flush();
            let mut bytes = vec![0; 100_000];
            let count = self.socket.read(&mut bytes).unwrap();
            assert!(count > 0, "the peer has closed");
            self.stream.receive(&bytes[..count], 0);
        }
    }

    fn set_up(&mut self) {
        while self.stream.session().is_none() {
            self.early = self.stream.next().unwrap().map(<[u8]>::to_vec);
            self.flush();
            if self.stream.session().is_none() {
                let mut bytes = vec![0; 1000];
                let count = self.socket.read(&mut bytes).unwrap();
                self.stream.receive(&bytes[..count], 0);
            }
        }
        self.flush();
    }

    fn agrees_with(&self, told: &Value) {
        let session = self.stream.session().unwrap();
        assert_eq!(told["remote"], hex(&KeyPair::from_seed(&[1; 32]).public_key()));
        assert_eq!(told["handshake_hash"], hex(&session.handshake_hash));
        assert_eq!(session.remote, KeyPair::from_seed(&[7; 32]).public_key());
    }

    fn echoes(&mut self) {
        for size in SIZES {
            let message: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            self.stream.send(&message, 0).unwrap();
            self.flush();
            assert!(self.message() == message, "the echo of {size} bytes is another");
        }
    }
}

#[test]
fn we_dial_javascript() {
    let Some(peer) = Peer::start("stream.js", &["listen"]) else { return };
    let port = peer.hear()["port"].as_u64().unwrap() as u16;
    let mut connection = Connection::new(true, TcpStream::connect(("127.0.0.1", port)).unwrap());
    connection.set_up();
    connection.agrees_with(&peer.hear());
    connection.echoes();
}

#[test]
fn javascript_dials_us() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let Some(peer) = Peer::start("stream.js", &["dial", &port]) else { return };
    let mut connection = Connection::new(false, listener.accept().unwrap().0);
    connection.set_up();
    connection.agrees_with(&peer.hear());
    for size in [1, 100, 65_536, 1_000_000] {
        assert!(connection.message() == vec![size as u8; size]);
    }
    connection.echoes();
}
