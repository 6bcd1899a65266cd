//! When the host may let packets in: the app listens, or it has nothing to wait for, or the wait is over. Where the app
//! listens elsewhere, its log says so: whoever waits for it looks there.

use crate::{app::App, control::Control};
use cloudpal_model::guest::{FromGuest, GuestConfig};
use std::{
    fs,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

/// Until then an app that opens a port for its operator first is no riddle.
const HINT_AFTER: Duration = Duration::from_secs(3);

pub fn watch(control: Arc<Control>, app: Arc<App>, config: &GuestConfig) {
    let ports = config.ready_tcp_ports.clone();
    let patience = Duration::from_millis(config.ready_timeout_ms);
    std::thread::spawn(move || {
        let start = Instant::now();
        let mut hinted = false;
        let mut listening = ports.is_empty() || listens(&ports);
        while !listening && start.elapsed() < patience {
            sleep(Duration::from_millis(4));
            listening = listens(&ports);
            if !listening && !hinted && start.elapsed() >= HINT_AFTER {
                let hint = hint(&ports, &listeners());
                hinted = hint.is_some();
                hint.iter().for_each(|hint| app.write_to_log(hint));
            }
        }
        if control.tell(&FromGuest::Ready { listening }).is_err() {
            println!("cloudpal: the control port is gone");
        }
    });
}

/// A TCP port that somebody listens on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Listener {
    port: u16,
    /// Nobody outside of the machine is answered.
    loopback: bool,
}

fn listens(ports: &[u16]) -> bool {
    listeners().iter().any(|listener| ports.contains(&listener.port))
}

fn listeners() -> Vec<Listener> {
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    tables.iter().flat_map(|text| listening(text)).collect()
}

/// `text` is /proc/net/tcp: `sl local_address rem_address st …`, in hexadecimal, an address as 32-bit numbers of this
/// machine's byte order; the state 0A is "listening".
fn listening(text: &str) -> impl Iterator<Item = Listener> + '_ {
    text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (address, port) = fields.next()?.rsplit_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let loopback = match address.len() {
            8 => address.ends_with("7F"),
            _ => address == "00000000000000000000000001000000",
        };
        (fields.nth(1) == Some("0A")).then_some(Listener { port, loopback })
    })
}

/// What to say if nobody listens on the ports that are waited for.
fn hint(ports: &[u16], found: &[Listener]) -> Option<String> {
    let list = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let mut open: Vec<u16> = found.iter().filter(|found| !found.loopback).map(|found| found.port).collect();
    open.sort_unstable();
    open.dedup();
    let (awaited, first) = (list(ports), open.first()?);
    Some(format!(
        "cloudpal: nobody listens on {awaited} yet, but on {}; if the app is to be reached there, install it with \
         --port {first}\n",
        list(&open)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
        0: 00000000:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
        1: 0100007F:0050 0100007F:A3B2 01 00000000:00000000 00:00000000 00000000     0\n\
        2: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n";

    #[test]
    fn only_a_listening_socket_counts() {
        // Port 80 has a connection, but nobody listens there.
        assert_eq!(
            listening(TABLE).collect::<Vec<_>>(),
            [Listener { port: 0x1538, loopback: false }, Listener { port: 0x1f90, loopback: true }]
        );
        assert_eq!(listening("").next(), None);
        let v6 = "sl\n 0: 00000000000000000000000001000000:0050 x 0A\n 1: 00000000000000000000000000000000:0051 x 0A\n";
        let found: Vec<_> = listening(v6).map(|found| (found.port, found.loopback)).collect();
        assert_eq!(found, [(0x50, true), (0x51, false)]);
    }

    #[test]
    fn a_port_that_nobody_waits_for_is_named() {
        let found: Vec<_> = listening(TABLE).collect();
        let hint = hint(&[80, 443], &found).expect("a hint");
        assert!(hint.contains("on 80, 443 yet, but on 5432") && hint.contains("--port 5432"), "{hint}");
        let loopback = Listener { port: 1, loopback: true };
        assert_eq!(super::hint(&[80], &[loopback]), None);
    }
}
