//! Links, addresses, routes and neighbours of one network namespace, over a netlink socket that was opened inside.
//!
//! Invariant: every call says what must be and may be repeated.

use crate::net::namespace::Namespace;
use cloudpal_model::{Kind, Problem};
use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkWireguard, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags},
        link::{InfoData, InfoVeth, LinkAttribute},
        route::RouteMessage,
    },
};
use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use tokio::task::JoinHandle;

/// A netlink socket of one namespace.
pub struct Links {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// Of the namespace, or of the calling thread's own.
    pub fn open(namespace: Option<&Namespace>) -> Result<Self, Problem> {
        let runtime = tokio::runtime::Handle::current();
        let connect = || {
            let _inside = runtime.enter();
            rtnetlink::new_connection()
        };
        let opened = match namespace {
            Some(namespace) => namespace.run(connect).and_then(|opened| opened),
            None => connect(),
        };
        let (connection, handle, _) = opened.map_err(|e| Problem::io("opening a netlink socket", &e))?;
        Ok(Links { handle, connection: tokio::spawn(connection) })
    }

    /// All links by name.
    pub async fn all(&self) -> Result<HashMap<String, u32>, Problem> {
        let mut links = HashMap::new();
        let mut answers = std::pin::pin!(self.handle.link().get().execute());
        while let Some(link) = answers.try_next().await.map_err(|e| failed("listing the links", e))? {
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            links.extend(name.map(|name| (name, link.header.index)));
        }
        Ok(links)
    }

    /// The link's index; `None`: there is no such link.
    pub async fn index(&self, name: &str) -> Result<Option<u32>, Problem> {
        let mut answers = std::pin::pin!(self.handle.link().get().match_name(name).execute());
        match answers.try_next().await {
            Ok(link) => Ok(link.map(|link| link.header.index)),
            Err(error) if is(&error, nix::Error::ENODEV) => Ok(None),
            Err(error) => Err(failed(format_args!("looking for {name}"), error)),
        }
    }

    /// The index of a link that must exist.
    pub async fn need(&self, name: &str) -> Result<u32, Problem> {
        self.index(name).await?.ok_or_else(|| {
            Problem::new(
                Kind::Internal,
                format!("the interface {name} is missing"),
                "apply the network again",
            )
        })
    }

    pub async fn up(&self, index: u32) -> Result<(), Problem> {
        self.change(LinkUnspec::new_with_index(index).up(), "setting a link up").await
    }

    /// A link that carries packets of `mtu` bytes and queues so many of them.
    pub async fn shape(&self, index: u32, mtu: u16, queue_packets: u32) -> Result<(), Problem> {
        let link = LinkUnspec::new_with_index(index).mtu(mtu.into()).txqueuelen(queue_packets);
        self.change(link, "shaping a link").await
    }

    pub async fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<(), Problem> {
        self.change(LinkUnspec::new_with_index(index).address(mac.to_vec()), "setting a link-layer address")
            .await
    }

    /// A veth pair: `name` here, `peer` in the other namespace.
    pub async fn add_veth(&self, name: &str, peer: &str, peer_in: &Namespace) -> Result<(), Problem> {
        let peer = LinkUnspec::new_with_name(peer).setns_by_fd(peer_in.raw_fd()).build();
        let pair = LinkVeth::new(name, name).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
        let added = self.handle.link().add(pair).execute().await;
        added.map_err(|e| failed(format_args!("making the veth pair {name}"), e))
    }

    /// A kernel WireGuard link, here or in the other namespace; its encrypted socket is in this namespace either way.
    /// `Ok(false)`: this kernel has no WireGuard.
    pub async fn add_wireguard(&self, name: &str, inside: Option<&Namespace>) -> Result<bool, Problem> {
        let link = LinkWireguard::new(name);
        let link = match inside {
            Some(namespace) => link.setns_by_fd(namespace.raw_fd()),
            None => link,
        };
        match self.handle.link().add(link.build()).execute().await {
            Ok(()) => Ok(true),
            Err(error) if is(&error, nix::Error::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(failed(format_args!("making the WireGuard link {name}"), error)),
        }
    }

    pub async fn delete(&self, index: u32) -> Result<(), Problem> {
        match self.handle.link().del(index).execute().await {
            Err(error) if !is(&error, nix::Error::ENODEV) => Err(failed("removing a link", error)),
            _ => Ok(()),
        }
    }

    /// Gives the link an address. IPv6 addresses are used at once, without asking the link whether they are taken.
    pub async fn address(&self, index: u32, address: IpAddr, prefix_len: u8) -> Result<(), Problem> {
        let mut request = self.handle.address().add(index, address, prefix_len).replace();
        if address.is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.map_err(|e| failed(format_args!("adding the address {address}"), e))
    }

    pub async fn route(&self, route: Route) -> Result<(), Problem> {
        let message = route.message();
        let added = self.handle.route().add(message).replace().execute().await;
        added.map_err(|e| failed(format_args!("adding the route to {route}"), e))
    }

    /// Takes a route away; nothing happens when there is none.
    pub async fn remove_route(&self, route: Route) -> Result<(), Problem> {
        let message = route.message();
        match self.handle.route().del(message).execute().await {
            Err(error) if !is(&error, nix::Error::ESRCH) => {
                Err(failed(format_args!("removing {route}"), error))
            }
            _ => Ok(()),
        }
    }

    /// A neighbour that is never asked for and never forgotten.
    pub async fn neighbour(&self, index: u32, address: IpAddr, mac: [u8; 6]) -> Result<(), Problem> {
        let request = self.handle.neighbours().add(index, address).link_layer_address(&mac).replace();
        request.execute().await.map_err(|e| failed(format_args!("adding the neighbour {address}"), e))
    }

    async fn change(&self, link: LinkMessageBuilder<LinkUnspec>, what: &str) -> Result<(), Problem> {
        self.handle.link().set(link.build()).execute().await.map_err(|e| failed(what, e))
    }
}

/// Where packets to a network go.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub to: IpAddr,
    pub prefix_len: u8,
    pub via: Via,
}

#[derive(Clone, Copy, Debug)]
pub enum Via {
    Link(u32),
    Gateway(IpAddr),
}

impl Route {
    /// To one address, over a link.
    pub fn host(to: IpAddr, link: u32) -> Self {
        Route { to, prefix_len: if to.is_ipv4() { 32 } else { 128 }, via: Via::Link(link) }
    }

    fn message(&self) -> RouteMessage {
        // A gateway of the other family would be a bug of the caller; the kernel refuses the route then.
        match self.to {
            IpAddr::V4(to) => {
                let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, self.prefix_len);
                match self.via {
                    Via::Gateway(IpAddr::V4(gateway)) => route.gateway(gateway).build(),
                    Via::Gateway(IpAddr::V6(gateway)) => route.via(gateway).build(),
                    Via::Link(index) => route.output_interface(index).build(),
                }
            }
            IpAddr::V6(to) => {
                let route = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, self.prefix_len);
                match self.via {
                    Via::Gateway(IpAddr::V6(gateway)) => route.gateway(gateway).build(),
                    Via::Gateway(IpAddr::V4(_)) => route.build(),
                    Via::Link(index) => route.output_interface(index).build(),
                }
            }
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} via {:?}", self.to, self.prefix_len, self.via)
    }
}

fn is(error: &rtnetlink::Error, wanted: nix::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -(wanted as i32))
}

fn failed(place: impl fmt::Display, error: rtnetlink::Error) -> Problem {
    match error {
        rtnetlink::Error::NetlinkError(message) => Problem::io(place, &message.to_io()),
        other => Problem::new(Kind::Internal, format!("{place}: {other}"), "see the daemon's log"),
    }
}
