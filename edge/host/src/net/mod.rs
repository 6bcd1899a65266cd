//! The Linux side of the network: namespaces, TAPs, links, firewall, DNS and WireGuard.
//!
//! A packet's way: the device's datagram reaches the tenant's UDP port in the daemon's own namespace; WireGuard puts
//! the packet into `wg0` in the tenant's namespace; the kernel routes it to the machine's TAP `m<ID>`, where a VMM
//! reads it, or where it waits while the machine sleeps. Outwards it leaves over the veth `x0`, is translated twice,
//! and the host routes it on.
//!
//! Invariants: applying a plan twice is applying it once; one tenant's plans are applied one after the other; after the
//! daemon dies, namespaces, links, rules and TAPs remain and the next daemon takes them over.

mod dns;
mod firewall;
mod links;
pub mod namespace;
mod sysctl;
pub mod tap;
mod taps;
mod tenant;
mod wireguard;

use cloudpal_model::{Kind, MachineId, Problem, TenantId};
use cloudpal_net::{
    link::{self, TenantLink},
    names::Instance,
    plan::{NetPlan, PeerStatus, Subnets},
    ruleset,
};
use links::Links;
use namespace::Namespace;
use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};
use tap::Tap;
use taps::Taps;
use tenant::{Shared, Tenant};
use tokio::{net::TcpListener, sync::Mutex};

/// How the network of this daemon is to be.
#[derive(Clone, Debug)]
pub struct NetSettings {
    /// The prefix of all kernel objects' names, for example `cloudpal`.
    pub instance: String,
    pub wireguard: WireGuardKind,
    /// Who answers what the tenants' own names do not; empty: the resolvers of the host.
    pub upstream_dns: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireGuardKind {
    /// The kernel's where it is usable, else the daemon's own.
    Auto,
    Kernel,
    Userspace,
}

/// All tenants' networks on this host.
pub struct NetHost {
    instance: Instance,
    shared: Shared,
    explanation: String,
    tenants: Mutex<HashMap<TenantId, Arc<Mutex<Option<Tenant>>>>>,
    /// Released when dropped.
    _lock: File,
}

impl NetHost {
    /// Checks what the host has and prepares the daemon's own namespace: the one of the calling thread.
    pub async fn start(settings: NetSettings) -> Result<Self, Problem> {
        let instance: Instance = settings.instance.parse()?;
        check_host()?;
        let lock = lock(&instance)?;
        check_links(&instance)?;
        let host = Links::open(None)?;
        let (kernel_wireguard, why) = choose_wireguard(settings.wireguard, &host).await?;
        let upstream_dns = match settings.upstream_dns.is_empty() {
            true => dns::host_resolvers().unwrap_or_else(|problem| {
                tracing::warn!(%problem, "names of the internet are not resolved");
                Vec::new()
            }),
            false => settings.upstream_dns,
        };
        sysctl::let_host_forward().map_err(|e| Problem::io("letting the host forward packets", &e))?;
        firewall::apply(None, ruleset::host_rules(&instance)).await?;
        let resolvers: Vec<String> = upstream_dns.iter().map(ToString::to_string).collect();
        let explanation = format!(
            "{why}; names of the internet: {}",
            match resolvers.is_empty() {
                true => "nobody to ask".to_owned(),
                false => resolvers.join(", "),
            }
        );
        let shared = Shared { host, taps: Taps::default(), upstream_dns, kernel_wireguard };
        Ok(NetHost { instance, shared, explanation, tenants: Mutex::default(), _lock: lock })
    }

    /// What was chosen, and why.
    pub fn explain(&self) -> String {
        self.explanation.clone()
    }

    /// Puts the host's rules back if somebody flushed them, as Debian's nftables.service does when it is reloaded:
    /// without them apps could reach the host's services. Says whether it had to.
    pub async fn keep_host_rules(&self) -> Result<bool, Problem> {
        if self.has_host_rules().await? {
            return Ok(false);
        }
        firewall::apply(None, ruleset::host_rules(&self.instance)).await?;
        Ok(true)
    }

    /// Whether the host's rules stand just now.
    pub async fn has_host_rules(&self) -> Result<bool, Problem> {
        firewall::has_table(self.instance.host_table()).await
    }

    /// Makes the tenant's network match the plan.
    pub async fn apply(&self, plan: &NetPlan) -> Result<(), Problem> {
        let link = TenantLink::new(&self.instance, plan.tenant)?;
        let name = self.instance.namespace(plan.tenant);
        let slot = self.slot(plan.tenant).await;
        let mut slot = slot.lock().await;
        let (namespace, made) = Namespace::open_or_create(&name)
            .map_err(|e| Problem::io(format_args!("making the network namespace {name}"), &e))?;
        if made && let Some(mut lost) = slot.take() {
            tracing::warn!(tenant = %plan.tenant, "somebody removed the namespace; making it anew");
            lost.stop().await;
            lost.forget_taps(&self.shared.taps);
        }
        let tenant = match &mut *slot {
            Some(tenant) => tenant,
            none => none.insert(Tenant::enter(namespace).await?),
        };
        tenant.apply(plan, &link, &self.shared).await
    }

    /// Takes everything of the tenant's network away, also when an earlier daemon made it.
    pub async fn remove(&self, tenant: TenantId) -> Result<(), Problem> {
        let slot = self.slot(tenant).await;
        let mut slot = slot.lock().await;
        let name = self.instance.namespace(tenant);
        let place = |e: io::Error| Problem::io(format_args!("removing the network namespace {name}"), &e);
        let known = match slot.take() {
            Some(tenant) => Some(tenant),
            None => match Namespace::open(&name).map_err(place)? {
                Some(namespace) => Some(Tenant::enter(namespace).await?),
                None => None,
            },
        };
        if let Some(known) = known {
            known.clear(&self.shared.taps).await?;
        }
        if let Ok(link) = TenantLink::new(&self.instance, tenant)
            && let Some(index) = self.shared.host.index(&link.host_interface).await?
        {
            self.shared.host.delete(index).await?;
        }
        Namespace::remove(&name).map_err(place)
    }

    /// Removes what this instance made for tenants that nobody wants any more (a daemon died while it removed one).
    pub async fn remove_others(&self, wanted: &[TenantId]) -> Result<(), Problem> {
        let names = namespace::all_names().map_err(|e| Problem::io("listing the network namespaces", &e))?;
        for tenant in names.iter().filter_map(|name| self.instance.tenant_of_namespace(name)) {
            if !wanted.contains(&tenant) {
                self.remove(tenant).await?;
            }
        }
        Ok(())
    }

    /// Ends what lives in this process and frees the ports. Namespaces, rules and TAPs stay, for a quick start.
    pub async fn shutdown(&self) {
        let slots: Vec<_> = self.tenants.lock().await.values().cloned().collect();
        for slot in slots {
            if let Some(tenant) = &mut *slot.lock().await {
                tenant.stop().await;
            }
        }
    }

    /// Listens at the tenant's server addresses; `None` when the tenant has no network yet.
    pub async fn listen(
        &self,
        tenant: TenantId,
        subnets: &Subnets,
        port: u16,
    ) -> Result<Option<[TcpListener; 2]>, Problem> {
        let slot = self.slot(tenant).await;
        let slot = slot.lock().await;
        let Some(known) = &*slot else { return Ok(None) };
        let (v4, v6) = subnets.server();
        known.listen([(v4, port).into(), (v6, port).into()]).map(Some)
    }

    /// What WireGuard knows of the tenant's devices; nothing when the tenant has no network.
    pub async fn peers(&self, tenant: TenantId) -> Vec<PeerStatus> {
        let slot = self.tenants.lock().await.get(&tenant).cloned();
        let Some(slot) = slot else { return Vec::new() };
        let slot = slot.lock().await;
        let Some(known) = &*slot else { return Vec::new() };
        known.peers().await.unwrap_or_else(|problem| {
            tracing::warn!(%tenant, %problem, "WireGuard does not say what it knows");
            Vec::new()
        })
    }

    /// The machine's TAP. `None`: no applied plan names the machine, or a VMM of an earlier daemon still holds it.
    pub fn tap(&self, machine: MachineId) -> Option<Arc<Tap>> {
        self.shared.taps.get(machine)
    }

    /// The TAP's descriptor, back from a VMM of an earlier daemon; before or after the tenant's network was applied.
    pub fn adopt_tap(&self, machine: MachineId, fd: OwnedFd) {
        self.shared.taps.adopt(machine, fd);
    }

    async fn slot(&self, tenant: TenantId) -> Arc<Mutex<Option<Tenant>>> {
        self.tenants.lock().await.entry(tenant).or_default().clone()
    }
}

fn check_host() -> Result<(), Problem> {
    if !nix::unistd::geteuid().is_root() {
        let mend = "run it as root; it makes network namespaces, interfaces and firewall rules";
        return Err(Problem::new(Kind::HostLacks, "the network needs root", mend));
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        let what = format!("/dev/net/tun cannot be opened: {error}");
        return Err(Problem::new(
            Kind::HostLacks,
            what,
            "load it with `modprobe tun`; a container needs the device, too",
        ));
    }
    if !Path::new("/proc/sys/net/ipv6").exists() {
        let mend = "start it without the kernel's option `ipv6.disable=1`";
        return Err(Problem::new(Kind::HostLacks, "the host's kernel has no IPv6", mend));
    }
    let nft = Command::new("nft").arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
    nft.map(drop).map_err(|e| firewall::missing(&e))
}

/// All instances number their links alike, so two of them in one namespace would lead each other's tenants astray.
fn check_links(instance: &Instance) -> Result<(), Problem> {
    let addresses =
        nix::ifaddrs::getifaddrs().map_err(|e| Problem::io("listing the host's addresses", &e.into()))?;
    for found in addresses {
        let Some(v4) = found.address.as_ref().and_then(|address| address.as_sockaddr_in()) else { continue };
        let ours = instance.tenant_of_host_veth(&found.interface_name).is_some();
        if !ours && link::is_link(v4.ip()) {
            let what = format!(
                "{} has the address {}, which is of the range for links to tenants",
                found.interface_name,
                v4.ip()
            );
            let mend = "one instance runs in a network namespace: remove the other one's tenants, or start this one \
                        with `ip netns exec`";
            return Err(Problem::new(Kind::Taken, what, mend));
        }
    }
    Ok(())
}

/// The lock lies where the namespaces lie, not in the daemon's own directory: two daemons of one instance
/// would take each other's networks away, wherever they keep their files.
fn lock(instance: &Instance) -> Result<File, Problem> {
    let path = Path::new("/run").join(format!("cloudpal-net-{instance}.lock"));
    let file = File::create(&path).map_err(|e| Problem::io(path.display(), &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let what =
                format!("another daemon runs the network of `{instance}` ({} is locked)", path.display());
            Err(Problem::new(Kind::Taken, what, "end it first, or give this one another `--instance`"))
        }
        Err(TryLockError::Error(error)) => Err(Problem::io(path.display(), &error)),
    }
}

/// Whether to use the kernel's WireGuard, and why: by trying to make such a link.
async fn choose_wireguard(kind: WireGuardKind, host: &Links) -> Result<(bool, String), Problem> {
    if kind == WireGuardKind::Userspace {
        return Ok((false, "in the daemon, as the settings say".to_owned()));
    }
    let usable = try_kernel_wireguard(host).await;
    match (kind, usable) {
        (WireGuardKind::Kernel, Ok(())) => Ok((true, "in the kernel, as the settings say".to_owned())),
        (WireGuardKind::Kernel, Err(problem)) => Err(problem),
        (_, Ok(())) => Ok((true, "in the kernel, which has the module".to_owned())),
        (_, Err(problem)) => Ok((false, format!("in the daemon, since {}", problem.what))),
    }
}

async fn try_kernel_wireguard(host: &Links) -> Result<(), Problem> {
    let probe = format!("wgtry{}", std::process::id());
    if !host.add_wireguard(&probe, None).await? {
        let mend = "load it with `modprobe wireguard`, or let the daemon do it with `--wireguard userspace`";
        return Err(Problem::new(Kind::HostLacks, "this kernel has no WireGuard", mend));
    }
    if let Some(index) = host.index(&probe).await? {
        host.delete(index).await?;
    }
    wireguard::kernel::check_tool()
}
