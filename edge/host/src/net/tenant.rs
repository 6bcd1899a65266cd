//! One tenant's network on this host: brings reality to the plan, step by step.
//!
//! Invariants: the rules are in force before the first link carries a packet; whatever the plan does not name is taken
//! away; every step may be repeated.

use crate::net::{
    dns::Dns,
    firewall,
    links::{Links, Route, Via},
    namespace::Namespace,
    sysctl,
    tap::Counters,
    taps::Taps,
    wireguard::{WireGuard, kernel::Kernel, userspace::Userspace},
};
use cloudpal_model::{MachineId, Problem};
use cloudpal_net::{
    address::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, MTU},
    dns::Zone,
    link::TenantLink,
    names,
    plan::{MachinePlan, NetPlan, PeerStatus},
    ruleset,
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};
use tokio::net::TcpListener;

/// How many packets wait for a machine that is asleep.
const TAP_QUEUE_PACKETS: u32 = 1000;

/// What all tenants of the daemon share.
pub struct Shared {
    /// Netlink in the daemon's own namespace.
    pub host: Links,
    pub taps: Taps,
    pub upstream_dns: Vec<SocketAddr>,
    pub kernel_wireguard: bool,
}

pub struct Tenant {
    namespace: Arc<Namespace>,
    links: Arc<Links>,
    counters: Counters,
    wireguard: Option<Box<dyn WireGuard>>,
    dns: Option<Dns>,
    applied: Option<NetPlan>,
}

impl Tenant {
    pub async fn enter(namespace: Arc<Namespace>) -> Result<Self, Problem> {
        let place = format!("setting {} up", namespace.path().display());
        let counters = Counters::open(&namespace).map_err(|e| Problem::io(&place, &e))?;
        namespace.run(sysctl::set_up_tenant).and_then(|set| set).map_err(|e| Problem::io(&place, &e))?;
        let links = Arc::new(Links::open(Some(&namespace))?);
        Ok(Tenant { namespace, links, counters, wireguard: None, dns: None, applied: None })
    }

    pub async fn apply(&mut self, plan: &NetPlan, link: &TenantLink, shared: &Shared) -> Result<(), Problem> {
        let zone = Zone::from_plan(plan)?;
        firewall::apply(Some(self.namespace.clone()), ruleset::tenant_rules(plan)).await?;
        self.make_server(plan).await?;
        self.make_exit(link, &shared.host).await?;
        self.make_machines(plan, &shared.taps).await?;
        self.make_wireguard(plan, shared).await?;
        match &self.dns {
            Some(dns) => dns.replace_zone(zone),
            None => {
                let (v4, v6) = plan.subnets.server();
                let upstream = shared.upstream_dns.clone();
                self.dns = Some(Dns::start(&self.namespace, [v4.into(), v6.into()], zone, upstream)?);
            }
        }
        self.applied = Some(plan.clone());
        Ok(())
    }

    /// The server's addresses lie on the loopback, so that they are there without any device or machine.
    async fn make_server(&self, plan: &NetPlan) -> Result<(), Problem> {
        let loopback = self.links.need("lo").await?;
        self.links.up(loopback).await?;
        let (v4, v6) = plan.subnets.server();
        self.links.address(loopback, v4.into(), 32).await?;
        self.links.address(loopback, v6.into(), 128).await
    }

    /// The way out to the host's namespace.
    async fn make_exit(&self, link: &TenantLink, host: &Links) -> Result<(), Problem> {
        if self.links.index(names::EXIT).await?.is_none() {
            if let Some(left_over) = host.index(&link.host_interface).await? {
                host.delete(left_over).await?;
            }
            host.add_veth(&link.host_interface, names::EXIT, &self.namespace).await?;
        }
        let outer = host.need(&link.host_interface).await?;
        let place = format_args!("setting {} up", link.host_interface).to_string();
        sysctl::quiet_host_link(&link.host_interface).map_err(|e| Problem::io(place, &e))?;
        let inner = self.links.need(names::EXIT).await?;
        for (links, index, v4, v6) in
            [(host, outer, link.host_v4, link.host_v6), (&self.links, inner, link.tenant_v4, link.tenant_v6)]
        {
            links.address(index, v4.into(), TenantLink::V4_PREFIX_LEN).await?;
            links.address(index, v6.into(), TenantLink::V6_PREFIX_LEN).await?;
            links.up(index).await?;
        }
        for (any, gateway) in [
            (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(link.host_v4)),
            (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(link.host_v6)),
        ] {
            self.links.route(Route { to: any, prefix_len: 0, via: Via::Gateway(gateway) }).await?;
        }
        Ok(())
    }

    async fn make_machines(&self, plan: &NetPlan, taps: &Taps) -> Result<(), Problem> {
        let links = self.links.all().await?;
        for (name, &index) in &links {
            let Some(machine) = names::machine_of_tap(name) else { continue };
            if !plan.machines.iter().any(|wanted| wanted.id == machine) {
                taps.forget(machine);
                self.links.delete(index).await?;
            }
        }
        for machine in &plan.machines {
            if !links.contains_key(&names::tap(machine.id)) {
                // New; or somebody removed the link, and our descriptor leads nowhere.
                taps.lost(machine.id);
            }
            let settled = taps.settle(machine.id, &self.namespace, &self.counters);
            settled
                .map_err(|e| Problem::io(format_args!("opening the TAP of machine {}", machine.id), &e))?;
            self.make_tap(machine).await?;
        }
        Ok(())
    }

    /// The machine's link: routed, with nothing to find out, so that nothing but packets for the machine is sent to it.
    async fn make_tap(&self, machine: &MachinePlan) -> Result<(), Problem> {
        let name = names::tap(machine.id);
        let index = self.links.need(&name).await?;
        let place = format!("setting {name} up");
        let answers = self.namespace.run(move || sysctl::answer_for_others(&name)).and_then(|set| set);
        answers.map_err(|e| Problem::io(place, &e))?;
        self.links.set_mac(index, GATEWAY_MAC).await?;
        self.links.shape(index, MTU, TAP_QUEUE_PACKETS).await?;
        self.links.up(index).await?;
        self.links.address(index, GATEWAY_V4.into(), 32).await?;
        self.links.address(index, GATEWAY_V6.into(), 64).await?;
        for address in [IpAddr::V4(machine.v4), IpAddr::V6(machine.v6)] {
            self.links.neighbour(index, address, machine.mac).await?;
            self.links.route(Route::host(address, index)).await?;
        }
        Ok(())
    }

    async fn make_wireguard(&mut self, plan: &NetPlan, shared: &Shared) -> Result<(), Problem> {
        let there = self.links.index(names::WIREGUARD).await?.is_some();
        let same_port = self.applied.as_ref().is_none_or(|applied| applied.listen_port == plan.listen_port);
        if let Some(wireguard) =
            self.wireguard.take_if(|wireguard| !there || !same_port || !wireguard.is_alive())
        {
            wireguard.stop().await;
        }
        let wireguard = match &mut self.wireguard {
            Some(wireguard) => wireguard,
            none => {
                let started: Box<dyn WireGuard> = if shared.kernel_wireguard {
                    Box::new(Kernel::start(&shared.host, self.namespace.clone(), self.links.clone()).await?)
                } else {
                    Box::new(Userspace::start(&self.namespace, plan).await?)
                };
                none.insert(started)
            }
        };
        let index = self.links.need(names::WIREGUARD).await?;
        self.links.shape(index, MTU, TAP_QUEUE_PACKETS).await?;
        self.links.up(index).await?;
        let addresses = |plan: &NetPlan| -> Vec<IpAddr> {
            plan.devices.iter().flat_map(|device| [IpAddr::V4(device.v4), IpAddr::V6(device.v6)]).collect()
        };
        let wanted = addresses(plan);
        for gone in self.applied.iter().flat_map(addresses).filter(|address| !wanted.contains(address)) {
            self.links.remove_route(Route::host(gone, index)).await?;
        }
        for &address in &wanted {
            self.links.route(Route::host(address, index)).await?;
        }
        wireguard.apply(plan).await
    }

    pub fn namespace(&self) -> Arc<Namespace> {
        self.namespace.clone()
    }

    /// Listens inside the namespace. Whoever holds the listeners keeps them across plans.
    pub fn listen(&self, addresses: [SocketAddr; 2]) -> Result<[TcpListener; 2], Problem> {
        let listen = |address: SocketAddr| {
            let place = |e: std::io::Error| Problem::io(format_args!("listening on {address}"), &e);
            let bound = self.namespace.run(|| std::net::TcpListener::bind(address)).and_then(|bound| bound);
            let bound = bound.map_err(place)?;
            bound.set_nonblocking(true).map_err(place)?;
            TcpListener::from_std(bound).map_err(place)
        };
        Ok([listen(addresses[0])?, listen(addresses[1])?])
    }

    pub async fn peers(&self) -> Result<Vec<PeerStatus>, Problem> {
        match &self.wireguard {
            Some(wireguard) => wireguard.peers().await,
            None => Ok(Vec::new()),
        }
    }

    /// Ends what lives in this process and frees the port. The namespace and the TAPs stay.
    pub async fn stop(&mut self) {
        self.dns = None;
        if let Some(wireguard) = self.wireguard.take() {
            wireguard.stop().await;
        }
    }

    /// The namespace is gone, and its TAPs with it.
    pub fn forget_taps(&self, taps: &Taps) {
        let machines = self.applied.iter().flat_map(|plan| &plan.machines);
        machines.for_each(|machine| taps.forget(machine.id));
    }

    /// Takes everything away but the namespace itself.
    pub async fn clear(mut self, taps: &Taps) -> Result<(), Problem> {
        self.stop().await;
        for (name, index) in self.links.all().await? {
            let machine: Option<MachineId> = names::machine_of_tap(&name);
            machine.into_iter().for_each(|machine| taps.forget(machine));
            if machine.is_some() || name == names::EXIT || name == names::WIREGUARD {
                self.links.delete(index).await?;
            }
        }
        Ok(())
    }
}
