//! WireGuard in this process: gotatun between a TUN interface in the tenant's namespace and a UDP socket in the
//! daemon's.
//!
//! Invariants: the port is bound as long as the tunnel lives, also without peers; the TUN has no offloads, so each read
//! is one whole packet.

use crate::net::{namespace::Namespace, tap, wireguard};
use async_trait::async_trait;
use cloudpal_model::{Kind, Problem, PublicKey};
use cloudpal_net::{
    address::MTU,
    names,
    plan::{DevicePlan, NetPlan, PeerStatus},
};
use gotatun::{
    device::{Device, DeviceBuilder, Peer, configure::PeerStats},
    packet::{Ip, Packet, PacketBufPool},
    tun::{IpRecv, IpSend, MtuWatcher},
    udp::{
        UdpRecv, UdpTransportFactory, UdpTransportFactoryParams,
        socket::{SockOpt, UdpSocket},
    },
    x25519,
};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Mutex,
};

/// Asked of the kernel, which may give less: a burst of 65,507-byte datagrams must not push out a handshake.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// How long to stay with a handshake's first datagram; gotatun repeats it by itself.
const FIRST_CALL: Duration = Duration::from_millis(50);

/// How long gotatun may take to let go of the interface.
const LETTING_GO: Duration = Duration::from_secs(1);

type Transports = (HeldSocket, Tun, Tun);

pub struct Userspace {
    state: Mutex<State>,
    /// Marked by the TUN's reader when the interface is gone.
    tun: Tun,
}

struct State {
    device: Option<Device<Transports>>,
    peers: HashMap<PublicKey, DevicePlan>,
}

impl Userspace {
    /// Makes the interface and binds the port; peers come with the first `apply`.
    pub async fn start(namespace: &Namespace, plan: &NetPlan) -> Result<Self, Problem> {
        let socket = HeldSocket::bind(plan.listen_port)?;
        let tun = Tun::open(namespace).map_err(|e| Problem::io("making the WireGuard interface", &e))?;
        let device = DeviceBuilder::new()
            .with_udp(socket)
            .with_ip(tun.clone())
            .with_private_key(x25519::StaticSecret::from(plan.private_key.0))
            .build()
            .await
            .map_err(trouble)?;
        // Without peers the builder leaves the device at rest. A change of the port starts it; our socket stays as is.
        device.write(async |device| device.set_listen_port(plan.listen_port)).await.map_err(trouble)?;
        let state = State { device: Some(device), peers: HashMap::new() };
        Ok(Userspace { state: Mutex::new(state), tun })
    }
}

#[async_trait]
impl wireguard::WireGuard for Userspace {
    async fn apply(&self, plan: &NetPlan) -> Result<(), Problem> {
        let mut state = self.state.lock().await;
        let State { device, peers } = &mut *state;
        let device = device.as_ref().ok_or_else(stopped)?;
        let wanted: HashMap<PublicKey, DevicePlan> =
            plan.devices.iter().map(|device| (device.public_key, device.clone())).collect();
        let gone: Vec<PublicKey> = peers.keys().filter(|key| !wanted.contains_key(*key)).copied().collect();
        let mut called = Vec::new();
        device
            .write(async |device| {
                device.set_private_key(x25519::StaticSecret::from(plan.private_key.0)).await;
                for key in &gone {
                    device.remove_peer(&(key.0).into()).await;
                }
                for (key, peer) in &wanted {
                    match peers.get(key) {
                        None => {
                            device.add_peer(new_peer(peer));
                            called.extend(peer.last_endpoint.map(|_| x25519::PublicKey::from(key.0)));
                        }
                        Some(old)
                            if (old.v4, old.v6, &old.preshared_key)
                                != (peer.v4, peer.v6, &peer.preshared_key) =>
                        {
                            let change = |known: &mut gotatun::device::configure::PeerMut| {
                                known.clear_allowed_ips();
                                known.add_allowed_ips(wireguard::allowed(peer));
                                known.set_preshared_key(Some(peer.preshared_key.0));
                            };
                            device.modify_peer(&(key.0).into(), change).await;
                        }
                        Some(_) => {}
                    }
                }
            })
            .await
            .map_err(trouble)?;
        *peers = wanted;
        let calls = called.iter().map(|key| tokio::time::timeout(FIRST_CALL, device.force_handshake(key)));
        for call in futures_util::future::join_all(calls).await {
            // Elapsed is the normal end: the answer comes later, and gotatun itself repeats the call for 90 s.
            if let Ok(Err(error)) = call {
                tracing::debug!(%error, "a device could not be called where it was last seen");
            }
        }
        Ok(())
    }

    async fn peers(&self) -> Result<Vec<PeerStatus>, Problem> {
        let state = self.state.lock().await;
        let device = state.device.as_ref().ok_or_else(stopped)?;
        Ok(device.read(async |device| device.peers().await).await.iter().map(status).collect())
    }

    fn is_alive(&self) -> bool {
        self.tun.is_there()
    }

    async fn stop(&self) {
        let device = self.state.lock().await.device.take();
        if let Some(device) = device {
            device.stop().await;
            // gotatun lets go of the socket and the interface on a task of its own.
            let started = Instant::now();
            while Arc::strong_count(&self.tun.0) > 1 && started.elapsed() < LETTING_GO {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

fn new_peer(device: &DevicePlan) -> Peer {
    let mut peer = Peer::new(device.public_key.0.into()).with_preshared_key(device.preshared_key.0);
    peer.endpoint = device.last_endpoint;
    for address in wireguard::allowed(device) {
        peer.allowed_ips.push(address.into());
    }
    peer
}

fn status(peer: &PeerStats) -> PeerStatus {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = |ago: Duration| wall.saturating_sub(ago).as_millis() as u64;
    PeerStatus {
        public_key: PublicKey(peer.peer.public_key.to_bytes()),
        endpoint: peer.peer.endpoint,
        last_handshake_wall_ms: peer.stats.last_handshake.map(at),
        received_bytes: peer.stats.rx_bytes as u64,
        sent_bytes: peer.stats.tx_bytes as u64,
    }
}

fn trouble(error: gotatun::device::Error) -> Problem {
    Problem::new(Kind::Internal, format!("the userspace WireGuard: {error}"), "see the daemon's log")
}

fn stopped() -> Problem {
    Problem::new(Kind::Unavailable, "the tunnel was stopped", "")
}

/// The tenant's UDP socket. gotatun binds when its first peer comes; we bind before, to know that the port is free.
struct HeldSocket(UdpSocket);

impl HeldSocket {
    fn bind(port: u16) -> Result<Self, Problem> {
        let options = |only_v6| SockOpt {
            recv_buffer_size: Some(SOCKET_BUFFER_BYTES),
            send_buffer_size: Some(SOCKET_BUFFER_BYTES),
            only_v6,
            ..SockOpt::default()
        };
        let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let bound = match UdpSocket::bind(both, options(Some(false))) {
            // A host without IPv6.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), options(None))
            }
            other => other,
        };
        let socket = bound.map_err(|e| wireguard::port_problem(port, &e))?;
        if let Err(error) = socket.enable_udp_gro() {
            tracing::debug!(%error, "no UDP GRO");
        }
        Ok(HeldSocket(socket))
    }
}

impl UdpTransportFactory for HeldSocket {
    type Send = UdpSocket;
    type Recv = UdpSocket;

    async fn bind(&mut self, _: &UdpTransportFactoryParams) -> io::Result<(UdpSocket, UdpSocket)> {
        Ok((self.0.clone(), self.0.clone()))
    }
}

/// The tunnel's inner end: a TUN interface whose packets this process reads and writes.
#[derive(Clone)]
struct Tun(Arc<AsyncFd<File>>);

impl Tun {
    fn open(namespace: &Namespace) -> io::Result<Self> {
        let fd: OwnedFd =
            namespace.run(|| tap::open_tun(names::WIREGUARD, libc::IFF_TUN | libc::IFF_NO_PI))??;
        Ok(Tun(Arc::new(tap::watch(File::from(fd), Interest::READABLE | Interest::WRITABLE)?)))
    }

    /// The interface still belongs to the descriptor.
    fn is_there(&self) -> bool {
        tap::interface_of(self.0.get_ref()).is_ok()
    }
}

impl IpSend for Tun {
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let bytes = packet.into_bytes();
        match self.0.async_io(Interest::WRITABLE, |mut file| file.write(&bytes)).await {
            // The kernel does not want this packet (a bad header, the interface down); the next may be good.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO | libc::ENETDOWN)) => {
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }
}

impl IpRecv for Tun {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        let mut packet = pool.get();
        match self.0.async_io(Interest::READABLE, |mut file| file.read(&mut packet)).await {
            Ok(read) => packet.truncate(read),
            Err(error) if self.is_there() => return Err(error),
            // The one error after which gotatun reads no further.
            Err(_) => return Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
        // What is no IP packet has no peer.
        Ok(packet.try_into_ip().ok().into_iter())
    }

    fn mtu(&self) -> MtuWatcher {
        MtuWatcher::new(MTU)
    }
}
