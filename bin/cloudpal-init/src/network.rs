//! The guest's side of the routed link: /32 and /128 addresses, an on-link gateway, and nothing discovered.
//!
//! Invariant: the neighbour entry of the gateway is permanent and IPv6 neither solicits, autoconfigures nor probes, so
//! the guest sends no packet of its own accord, and none of its packets waits for an answer about where to go.

use crate::Fault;
use cloudpal_model::guest::GuestNetwork;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::{fs, net::IpAddr, thread::sleep, time::Duration};

const LOOPBACK: &str = "lo";
const DEVICE: &str = "eth0";

pub fn configure(network: &GuestNetwork) -> Result<(), Fault> {
    settings();
    let mut netlink = Netlink::open()?;
    netlink.link_up(index(LOOPBACK)?, None)?;
    let device = wait_for_device()?;
    for (address, prefix) in [(IpAddr::V4(network.ipv4), 32), (IpAddr::V6(network.ipv6), 128)] {
        netlink.address(device, address, prefix)?;
    }
    netlink.link_up(device, Some(network.mtu))?;
    for gateway in [IpAddr::V4(network.gateway_ipv4), IpAddr::V6(network.gateway_ipv6)] {
        netlink.neighbour(device, gateway, network.gateway_mac)?;
        netlink.default_route(device, gateway)?;
    }
    Ok(())
}

/// Set before the link is up. A kernel without one of them behaves as if it were set.
fn settings() {
    for (name, value) in [
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/autoconf", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv6/conf/eth0/accept_ra", "0"),
        ("ipv6/conf/eth0/autoconf", "0"),
        ("ipv6/conf/eth0/accept_dad", "0"),
        ("ipv6/conf/eth0/router_solicitations", "0"),
        // As container runtimes do: the app need not be root to serve port 80, nor to ping.
        ("ipv4/ip_unprivileged_port_start", "0"),
        ("ipv4/ping_group_range", "0 2147483647"),
    ] {
        drop(fs::write(format!("/proc/sys/net/{name}"), value));
    }
}

fn wait_for_device() -> Result<u32, Fault> {
    for _ in 0..5000 {
        if let Ok(index) = index(DEVICE) {
            settings();
            return Ok(index);
        }
        sleep(Duration::from_millis(2));
    }
    Err("the VMM offers no network card".into())
}

fn index(device: &str) -> Result<u32, Fault> {
    Ok(fs::read_to_string(format!("/sys/class/net/{device}/ifindex"))?.trim().parse()?)
}

struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    fn open() -> Result<Self, Fault> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    fn ask(&mut self, what: &str, message: RouteNetlinkMessage) -> Result<(), Fault> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)?.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => {
                Err(format!("{what}: {}", error.to_io()).into())
            }
            _ => Ok(()),
        }
    }

    fn link_up(&mut self, index: u32, mtu: Option<u16>) -> Result<(), Fault> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes.extend(mtu.map(|mtu| LinkAttribute::Mtu(mtu.into())));
        self.ask("bringing the link up", RouteNetlinkMessage::SetLink(link))
    }

    fn address(&mut self, index: u32, address: IpAddr, prefix: u8) -> Result<(), Fault> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.header.scope = AddressScope::Universe;
        if address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        self.ask(&format!("the address {address}"), RouteNetlinkMessage::NewAddress(message))
    }

    fn neighbour(&mut self, index: u32, address: IpAddr, mac: [u8; 6]) -> Result<(), Fault> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        let destination = match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(destination),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        self.ask(&format!("the neighbour {address}"), RouteNetlinkMessage::NewNeighbour(message))
    }

    fn default_route(&mut self, index: u32, gateway: IpAddr) -> Result<(), Fault> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = 254; // main
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.header.flags = RouteFlags::Onlink;
        let address = match gateway {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        };
        message.attributes = vec![RouteAttribute::Gateway(address), RouteAttribute::Oif(index)];
        self.ask(&format!("the route by {gateway}"), RouteNetlinkMessage::NewRoute(message))
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
