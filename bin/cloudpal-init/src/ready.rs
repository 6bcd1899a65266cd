//! When the host may let packets in: the app listens, or it has nothing to wait for, or the wait is over.

use crate::control::Control;
use cloudpal_model::guest::{FromGuest, GuestConfig};
use std::{
    fs,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

pub fn watch(control: Arc<Control>, config: &GuestConfig) {
    let ports = config.ready_tcp_ports.clone();
    let patience = Duration::from_millis(config.ready_timeout_ms);
    std::thread::spawn(move || {
        let start = Instant::now();
        let mut listening = ports.is_empty() || listens(&ports);
        while !listening && start.elapsed() < patience {
            sleep(Duration::from_millis(4));
            listening = listens(&ports);
        }
        if control.tell(&FromGuest::Ready { listening }).is_err() {
            println!("cloudpal: the control port is gone");
        }
    });
}

fn listens(ports: &[u16]) -> bool {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .any(|table| fs::read_to_string(table).is_ok_and(|text| any_listening(&text, ports)))
}

/// `text` is /proc/net/tcp: `sl local_address rem_address st …`, in hexadecimal; the state 0A is "listening".
fn any_listening(text: &str, ports: &[u16]) -> bool {
    text.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let port = fields.next().and_then(|local| local.rsplit(':').next());
        let port = port.and_then(|port| u16::from_str_radix(port, 16).ok());
        fields.nth(1) == Some("0A") && port.is_some_and(|port| ports.contains(&port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
        0: 00000000:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
        1: 0100007F:0050 0100007F:A3B2 01 00000000:00000000 00:00000000 00000000     0\n";

    #[test]
    fn only_a_listening_socket_on_a_wanted_port_counts() {
        assert!(any_listening(TABLE, &[0x1538]));
        assert!(any_listening(TABLE, &[1, 0x1538]));
        // Port 80 has a connection, but nobody listens there.
        assert!(!any_listening(TABLE, &[80]));
        assert!(!any_listening("", &[80]));
    }
}
