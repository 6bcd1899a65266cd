//! The control channel between the host and `cloudpal-init`: one JSON object per line, both ways.
//!
//! The host asks (`ToGuest`, numbered), the guest answers (`FromGuest::Reply` with that number) and
//! tells (`FromGuest::Hello`, `Ready`, `AppExited`). The host starts each attachment with an empty line, so that half a
//! line left by an earlier host process cannot swallow the first message; both sides skip empty lines.
//! The guest is not trusted: a host that reads this channel bounds every line by [`MAX_LINE_BYTES`].

use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// No line of the channel is longer, in either direction.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// A message from the host to the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToGuest {
    pub id: u64,
    pub ask: Ask,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Ask {
    /// The answer to `Hello`: what to run. Sent once per boot.
    Boot {
        config: Box<GuestConfig>,
    },
    /// Write everything to the disk; the machine is about to be saved.
    PrepareSleep,
    /// The machine was restored: set the clock, make the random generator fresh.
    Resumed {
        wall_us: u64,
        entropy_base64: String,
    },
    /// End the app (SIGTERM, then SIGKILL after the grace), write everything, power off.
    Stop {
        grace_ms: u64,
    },
    /// Run a command inside the app's root, with the app's environment and user.
    Exec {
        argv: Vec<String>,
    },
    Stats,
}

/// A message from the guest to the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "snake_case")]
pub enum FromGuest {
    /// The first message of a boot.
    Hello {
        version: u32,
    },
    /// The app listens on one of its ports (or has none, or the wait ended): `listening` says which.
    Ready {
        listening: bool,
    },
    /// The app's main process ended.
    AppExited {
        code: Option<i32>,
        signal: Option<i32>,
    },
    Reply {
        id: u64,
        reply: Reply,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Done,
    Failed { why: String },
    Exec { code: i32, output_base64: String, truncated: bool },
    Stats { memory_total_kib: u64, memory_available_kib: u64, load_1min: f32, uptime_ms: u64 },
}

/// Everything `cloudpal-init` needs to become the app.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestConfig {
    pub hostname: String,
    pub process: Process,
    pub network: GuestNetwork,
    /// TCP ports of which one must listen before packets are let in; empty: packets come in at once.
    pub ready_tcp_ports: Vec<u16>,
    /// How long packets wait for the app to listen before they are let in all the same.
    pub ready_timeout_ms: u64,
    /// Host time at boot, microseconds since the Unix epoch.
    pub wall_us: u64,
    /// Entropy for the guest's generator, base64.
    pub entropy_base64: String,
}

/// The OCI image's process (OCI image-spec, `config`), with the user already resolved or still by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Entrypoint followed by Cmd. Never empty.
    pub argv: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    pub cwd: String,
    /// As in the image: `""`, `uid`, `uid:gid`, `name` or `name:group`; resolved by the guest in the image's own
    /// /etc/passwd and /etc/group.
    pub user: String,
    /// The signal that ends the app gently (a number; 15 when the image names none).
    pub stop_signal: i32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestNetwork {
    pub ipv4: Ipv4Addr,
    pub ipv6: Ipv6Addr,
    /// The default routes' next hops, on the link, answered by the host's end of the TAP.
    pub gateway_ipv4: Ipv4Addr,
    pub gateway_ipv6: Ipv6Addr,
    /// The gateway's link-layer address; a permanent neighbour in the guest too.
    pub gateway_mac: [u8; 6],
    pub dns: Ipv4Addr,
    pub search_domain: String,
    pub mtu: u16,
}

impl Default for GuestNetwork {
    fn default() -> Self {
        GuestNetwork {
            ipv4: Ipv4Addr::UNSPECIFIED,
            ipv6: Ipv6Addr::UNSPECIFIED,
            gateway_ipv4: Ipv4Addr::UNSPECIFIED,
            gateway_ipv6: Ipv6Addr::UNSPECIFIED,
            gateway_mac: [0; 6],
            dns: Ipv4Addr::UNSPECIFIED,
            search_domain: String::new(),
            mtu: 1420,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_is_one_line_of_json_and_comes_back() {
        let ask = ToGuest { id: 1, ask: Ask::Exec { argv: vec!["echo".into(), "a\nb".into()] } };
        let line = serde_json::to_string(&ask).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<ToGuest>(&line).unwrap(), ask);
        let tell = FromGuest::Reply { id: 1, reply: Reply::Done };
        let line = serde_json::to_string(&tell).unwrap();
        assert_eq!(serde_json::from_str::<FromGuest>(&line).unwrap(), tell);
    }
}
