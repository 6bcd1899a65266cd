//! The ordinary WireGuard `.conf` of a device, as wg-quick and WireGuard's own apps read it.
//!
//! Invariant: no text that a person typed is written unchecked, and no hook (`PostUp` and its like) is ever written:
//! the file can be run as root without trusting whoever named the tenant.

use crate::address::MTU;
use crate::domain::{Domain, DomainError};
use crate::keys::public_key;
use crate::plan::{DevicePlan, NetPlan, Subnets};
use cloudpal_model::{Kind, PrivateKey, Problem};
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Keeps the way through NATs open, so that the overlay can reach a phone that sends nothing.
const KEEPALIVE_S: u16 = 25;

/// Where devices find this host: an address or a DNS name, without the port, which is the tenant's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointHost {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    Name(String),
}

/// Why a text is not where devices could find this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    #[error("the endpoint is empty")]
    Empty,
    #[error("the endpoint `{text}` names a port; each tenant has a port of its own")]
    WithPort { text: String },
    #[error("the endpoint {address} is not one host's address that a device could call")]
    NotCallable { address: IpAddr },
    #[error("the endpoint `{text}` is neither an IP address nor a DNS name")]
    NotAName { text: String },
}

impl From<EndpointError> for Problem {
    fn from(error: EndpointError) -> Problem {
        let mend = "give the host's public address or name alone, for example 192.0.2.1 or pal.example.org";
        Problem::new(Kind::Invalid, error.to_string(), mend)
    }
}

impl FromStr for EndpointHost {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if text.is_empty() {
            return Err(EndpointError::Empty);
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return EndpointHost::from_address(address);
        }
        let with_port = text
            .rsplit_once(':')
            .is_some_and(|(host, port)| port.parse::<u16>().is_ok() && host.parse::<EndpointHost>().is_ok());
        if with_port {
            return Err(EndpointError::WithPort { text: text.to_owned() });
        }
        if is_host_name(text) {
            return Ok(EndpointHost::Name(text.to_owned()));
        }
        Err(EndpointError::NotAName { text: text.to_owned() })
    }
}

impl EndpointHost {
    pub fn from_address(address: IpAddr) -> Result<Self, EndpointError> {
        let not_callable = Err(EndpointError::NotCallable { address });
        match address {
            IpAddr::V4(v4) if v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast() => not_callable,
            IpAddr::V6(v6) if v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local() => {
                not_callable
            }
            IpAddr::V4(v4) => Ok(EndpointHost::V4(v4)),
            IpAddr::V6(v6) => Ok(EndpointHost::V6(v6)),
        }
    }
}

/// Without brackets: as the person would type it.
impl fmt::Display for EndpointHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointHost::V4(address) => address.fmt(f),
            EndpointHost::V6(address) => address.fmt(f),
            EndpointHost::Name(name) => name.fmt(f),
        }
    }
}

/// RFC 1123 §2.1, in either case, with an optional final dot. All-numeric last labels would be read as addresses.
fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_a_number =
        name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !last_is_a_number
}

/// Why no profile can be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    #[error(transparent)]
    Domain(#[from] DomainError),
    #[error("the private key is not that of the device `{device}`")]
    WrongKey { device: cloudpal_model::Name },
}

impl From<ProfileError> for Problem {
    fn from(error: ProfileError) -> Problem {
        match error {
            ProfileError::Domain(error) => error.into(),
            ProfileError::WrongKey { .. } => {
                Problem::new(Kind::Internal, error.to_string(), "revoke the device and add it again")
            }
        }
    }
}

/// The whole text of the device's `.conf`. It holds the private key: keep it out of logs and other people's eyes.
pub fn conf(
    plan: &NetPlan,
    device: &DevicePlan,
    private_key: &PrivateKey,
    endpoint: &EndpointHost,
) -> Result<String, ProfileError> {
    let domain: Domain = plan.domain.parse()?;
    if public_key(private_key) != device.public_key {
        return Err(ProfileError::WrongKey { device: device.name.clone() });
    }
    let host = match endpoint {
        EndpointHost::V6(address) => format!("[{address}]"),
        other => other.to_string(),
    };
    let mut text = String::new();
    let mut line = |line: fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    };
    line(format_args!("[Interface]"));
    line(format_args!("PrivateKey = {}", private_key.to_base64()));
    line(format_args!("Address = {}/32, {}/128", device.v4, device.v6));
    line(format_args!("DNS = {}, {domain}", plan.subnets.server_v4()));
    line(format_args!("MTU = {MTU}"));
    line(format_args!(""));
    line(format_args!("[Peer]"));
    line(format_args!("PublicKey = {}", public_key(&plan.private_key)));
    line(format_args!("PresharedKey = {}", device.preshared_key.to_base64()));
    line(format_args!("AllowedIPs = {}", allowed_ips(&plan.subnets, device.exit)));
    line(format_args!("Endpoint = {host}:{}", plan.listen_port));
    line(format_args!("PersistentKeepalive = {KEEPALIVE_S}"));
    Ok(text)
}

fn allowed_ips(subnets: &Subnets, exit: bool) -> String {
    if exit {
        return "0.0.0.0/0, ::/0".to_owned();
    }
    format!("{}/{}, {}/{}", subnets.v4, Subnets::V4_PREFIX_LEN, subnets.v6, Subnets::V6_PREFIX_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::examples::{household, keys_of_device};

    #[test]
    fn the_text_is_what_wg_quick_reads() {
        let plan = household(1);
        let text =
            conf(&plan, &plan.devices[0], &keys_of_device(0).private, &"192.0.2.1".parse().unwrap()).unwrap();
        let expected = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.86.1.1/32, fd01:101:101::101/128\n\
             DNS = 10.86.0.1, t1.pal\nMTU = 1420\n\n\
             [Peer]\nPublicKey = {}\nPresharedKey = {}\nAllowedIPs = 0.0.0.0/0, ::/0\n\
             Endpoint = 192.0.2.1:51821\nPersistentKeepalive = 25\n",
            keys_of_device(0).private.to_base64(),
            public_key(&plan.private_key),
            plan.devices[0].preshared_key.to_base64(),
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn without_exit_only_the_overlay_is_routed() {
        let plan = household(1);
        let endpoint = "2001:db8::1".parse().unwrap();
        let text = conf(&plan, &plan.devices[1], &keys_of_device(1).private, &endpoint).unwrap();
        assert!(text.contains("\nAllowedIPs = 10.86.0.0/16, fd01:101:101::/64\n"), "{text}");
        assert!(text.contains("\nEndpoint = [2001:db8::1]:51821\n"), "{text}");
    }

    #[test]
    fn neither_a_foreign_key_nor_a_domain_with_a_hook_gets_into_a_profile() {
        let mut plan = household(1);
        let endpoint = "pal.example.org".parse().unwrap();
        let wrong = conf(&plan, &plan.devices[0], &keys_of_device(1).private, &endpoint);
        assert!(matches!(wrong, Err(ProfileError::WrongKey { .. })));
        plan.domain = "ada.pal\nPostUp = reboot".into();
        let hook = conf(&plan, &plan.devices[0], &keys_of_device(0).private, &endpoint);
        assert!(matches!(hook, Err(ProfileError::Domain(_))));
    }

    #[test]
    fn endpoints() {
        let parse = |text: &str| text.parse::<EndpointHost>();
        assert_eq!(parse("192.0.2.1"), Ok(EndpointHost::V4(Ipv4Addr::new(192, 0, 2, 1))));
        assert_eq!(parse("[2001:db8::1]"), parse("2001:db8::1"));
        assert_eq!(parse("Pal.Example.org"), Ok(EndpointHost::Name("Pal.Example.org".into())));
        assert_eq!(parse(""), Err(EndpointError::Empty));
        for with_port in ["192.0.2.1:51820", "[2001:db8::1]:51820", "pal.example.org:1"] {
            assert!(matches!(parse(with_port), Err(EndpointError::WithPort { .. })), "{with_port}");
        }
        for not_callable in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "fe80::1", "255.255.255.255"] {
            assert!(matches!(parse(not_callable), Err(EndpointError::NotCallable { .. })), "{not_callable}");
        }
        for bad in [
            "a b",
            "1.2.3",
            "1.2.3.400",
            "a..b",
            "-a.b",
            "pal.org\nPostUp = x",
            "fe80::1%eth0",
            "[::1",
            "ä.b",
        ] {
            assert!(matches!(parse(bad), Err(EndpointError::NotAName { .. })), "{bad:?}");
        }
    }
}
