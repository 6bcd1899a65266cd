//! Devices: Debian's own WireGuard client against our server, from another namespace over a small internet.

mod net_world;

use cloudpal_host::net::NetHost;
use cloudpal_model::{Kind, TenantId};
use cloudpal_net::{
    link::TenantLink,
    plan::NetPlan,
    ruleset::{DATA_PORT, EXIT_PORTS, TENANT_CONNECTIONS},
};
use net_world::{HOST, HOST_V6, PATIENCE_S, Phone, SERVER, SERVER_V6, World, household, in_kernel, inside};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

struct Home {
    runtime: tokio::runtime::Runtime,
    net: NetHost,
    plan: NetPlan,
}

/// A tenant that a connected phone reaches.
fn home(world: &mut World, devices: u8, machines: u8) -> (Home, Phone) {
    let runtime = world.runtime();
    let net = world.daemon(&runtime);
    let plan = household(1, devices, machines);
    runtime.block_on(net.apply(&plan)).unwrap();
    let mut phone = world.phone(1);
    phone.connect(world, &plan, 0);
    assert!(phone.pings_within(plan.subnets.server_v4(), PATIENCE_S).is_some());
    (Home { runtime, net, plan }, phone)
}

#[test]
fn a_phone_shakes_hands_and_resolves_names() {
    let Some(mut world) = World::make() else { return };
    let (Home { runtime, net, plan }, phone) = home(&mut world, 1, 1);
    let (server, app) = (plan.subnets.server_v4(), &plan.machines[0]);
    assert!(phone.pings(plan.subnets.server_v6(), 2));
    let dig = |what: &str| phone.sh(&format!("dig +short +time=2 +tries=1 @{server} {what}"));
    assert_eq!(dig("app0.home1.pal A"), app.v4.to_string());
    assert_eq!(dig("+tcp app0.home1.pal AAAA"), app.v6.to_string());
    assert_eq!(dig(&format!("-x {}", plan.devices[0].v4)), "phone0.home1.pal.");
    let v6 = plan.subnets.server_v6();
    assert_eq!(
        phone.sh(&format!("dig +short +time=2 @{v6} phone0.home1.pal A")),
        plan.devices[0].v4.to_string()
    );

    // Devices, and nobody else, reach what the tenant's server offers them.
    let connects = |phone: &Phone, at: &str| {
        phone.succeeds(&format!("timeout 5 bash -c 'echo > /dev/tcp/{at}/{DATA_PORT}'"))
    };
    assert!(!connects(&phone, &server.to_string()), "nobody listens yet");
    let listening = runtime.block_on(net.listen(plan.tenant, &plan.subnets, DATA_PORT)).unwrap();
    assert!(listening.is_some());
    assert!(connects(&phone, &server.to_string()) && connects(&phone, &v6.to_string()));
    let nobody = runtime.block_on(net.listen(TenantId(99), &plan.subnets, DATA_PORT)).unwrap();
    assert!(nobody.is_none());

    let peers = runtime.block_on(net.peers(plan.tenant));
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0].public_key, plan.devices[0].public_key);
    assert_eq!(peers[0].endpoint.map(|at| at.ip()), Some(phone.address.into()));
    assert!(
        peers[0].last_handshake_wall_ms.is_some() && peers[0].received_bytes > 0 && peers[0].sent_bytes > 0
    );

    // Others' names go to the resolver on the internet: without one, that is said within the time limit.
    let asked = phone.sh(&format!("dig +time=5 +tries=1 @{server} example.org A | grep -o 'status: [A-Z]*'"));
    assert_eq!(asked, "status: SERVFAIL");
    let resolver = world.internet.run(|| UdpSocket::bind((SERVER, 53))).unwrap().unwrap();
    let answering = std::thread::spawn(move || answer_once(&resolver));
    assert_eq!(dig("example.org A"), "198.51.100.77");
    let source_port = answering.join().unwrap();
    assert!(source_port >= 1024, "{source_port}");
    runtime.block_on(net.remove(plan.tenant)).unwrap();
}

/// A resolver that first tells a lie under another id, then the truth.
fn answer_once(resolver: &UdpSocket) -> u16 {
    let mut query = [0; 512];
    let (length, from) = resolver.recv_from(&mut query).unwrap();
    // Without the asker's EDNS record.
    let end = 12 + query[12..length].iter().position(|&b| b == 0).unwrap() + 5;
    let mut reply = query[..end].to_vec();
    reply[2] |= 0x80;
    reply[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 6, 6, 6, 6]);
    reply[1] ^= 1;
    resolver.send_to(&reply, from).unwrap();
    reply[1] ^= 1;
    let data = reply.len() - 4;
    reply[data..].copy_from_slice(&[198, 51, 100, 77]);
    resolver.send_to(&reply, from).unwrap();
    from.port()
}

#[test]
fn two_tenants_with_the_same_addresses_do_not_see_each_other() {
    let Some(mut world) = World::make() else { return };
    let (Home { runtime, net, plan }, phone) = home(&mut world, 1, 1);
    let other = household(2, 1, 1);
    assert_eq!((other.subnets, other.machines[0].v4), (plan.subnets, plan.machines[0].v4));
    runtime.block_on(net.apply(&other)).unwrap();
    let mut second = world.phone(2);
    second.connect(&world, &other, 0);
    assert!(second.pings_within(other.subnets.server_v4(), PATIENCE_S).is_some());

    let (ours, theirs) = (net.tap(plan.machines[0].id).unwrap(), net.tap(other.machines[0].id).unwrap());
    second.sh(&format!("ping -n -c 2 -i 0.05 -W 1 {} > /dev/null; true", plan.machines[0].v4));
    assert!(theirs.has_waiting() && !ours.has_waiting(), "the packet went to the sender's own tenant");
    let dig = |phone: &Phone, name: &str| {
        phone.sh(&format!(
            "dig +time=4 +tries=1 @{} {name} A | grep -o 'status: [A-Z]*'",
            plan.subnets.server_v4()
        ))
    };
    assert_eq!(dig(&second, "app0.home2.pal"), "status: NOERROR");
    assert_eq!(dig(&second, "app0.home1.pal"), "status: SERVFAIL", "the other's names are the internet's");
    // The links between the namespaces lead outwards, not to each other.
    let link = TenantLink::new(&world.id.parse().unwrap(), plan.tenant).unwrap();
    assert!(!second.pings(link.tenant_v4, 1) && !second.pings(link.tenant_v6, 1));
    // One tenant's end does not touch the other.
    runtime.block_on(net.remove(other.tenant)).unwrap();
    assert!(phone.pings(plan.subnets.server_v4(), 20));
    assert!(!second.pings(plan.subnets.server_v4(), 1));
    let taken = household(1, 0, 0);
    let held = NetPlan { tenant: cloudpal_model::TenantId(3), ..taken };
    let problem = runtime.block_on(net.apply(&held)).unwrap_err();
    assert_eq!(problem.kind, Kind::Taken);
    assert!(problem.what.contains("51821") && !problem.mend.is_empty(), "{problem}");
    runtime.block_on(net.remove(held.tenant)).unwrap();
    runtime.block_on(net.remove(plan.tenant)).unwrap();
}

#[test]
fn a_revoked_device_is_silent_and_the_others_do_not_notice() {
    let Some(mut world) = World::make() else { return };
    let (Home { runtime, net, mut plan }, phone) = home(&mut world, 2, 1);
    let server = plan.subnets.server_v4();
    let mut laptop = world.phone(2);
    laptop.connect(&world, &plan, 1);
    assert!(laptop.pings_within(server, PATIENCE_S).is_some());
    let handshake = |key| {
        let peers = runtime.block_on(net.peers(plan.tenant));
        peers.iter().find(|peer| peer.public_key == key).and_then(|peer| peer.last_handshake_wall_ms)
    };
    let (revoked, kept) = (plan.devices[0].public_key, plan.devices[1].public_key);
    let before = handshake(kept).unwrap();
    plan.devices.remove(0);
    runtime.block_on(net.apply(&plan)).unwrap();
    assert!(!phone.pings(server, 1), "its next packet gets no answer");
    assert!(laptop.pings(server, 2));
    assert!(handshake(revoked).is_none());
    // The clock's own rounding aside, it is the same handshake.
    assert!(handshake(kept).unwrap().abs_diff(before) < 100);
    assert!(phone.pings_within(server, 6.0).is_none(), "nor do its new handshakes");
    runtime.block_on(net.remove(plan.tenant)).unwrap();
}

#[test]
fn after_the_daemon_died_the_phone_is_answered_without_touching_it() {
    let Some(mut world) = World::make() else { return };
    let (Home { runtime, net, mut plan }, phone) = home(&mut world, 1, 1);
    plan.devices[0].last_endpoint = runtime.block_on(net.peers(plan.tenant))[0].endpoint;
    // Nothing is shut down: the process' tasks, sockets and interface simply end.
    drop(net);
    drop(runtime);
    let server = plan.subnets.server_v4();
    // The kernel's WireGuard outlives the daemon.
    assert_eq!(phone.pings(server, 1), in_kernel());

    let runtime = world.runtime();
    let net = world.daemon(&runtime);
    let started = std::time::Instant::now();
    runtime.block_on(net.apply(&plan)).unwrap();
    let applied = started.elapsed();
    let took = phone.pings_within(server, PATIENCE_S).expect("an answer");
    eprintln!("network applied again in {applied:?}; the phone was answered {took:.2} s later");
    // Not called back, the phone would find out by itself after 15 s (WireGuard, section 6.4).
    assert!(took < 12.0, "{took}");
    assert!(phone.sh(&format!("dig +short +time=2 @{server} app0.home1.pal A")).contains('.'));
    runtime.block_on(net.shutdown());
    assert!(!phone.pings(server, 1));
    runtime.block_on(net.apply(&plan)).unwrap();
    assert!(phone.pings_within(server, PATIENCE_S).is_some(), "and once more after a clean end");
    runtime.block_on(net.remove(plan.tenant)).unwrap();
}

#[test]
fn garbage_and_replays_do_no_harm() {
    let Some(mut world) = World::make() else { return };
    let (Home { runtime, net, plan }, phone) = home(&mut world, 1, 1);
    let server = plan.subnets.server_v4();
    let target = (HOST, plan.listen_port);
    let attacker = world.internet.run(|| UdpSocket::bind((SERVER, 0))).unwrap().unwrap();
    let mut random = vec![0; 65_507];
    let mut state = 0x9e37_79b9_u32;
    random.iter_mut().for_each(|byte| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        *byte = state as u8;
    });
    for length in [0, 1, 4, 31, 32, 92, 147, 148, 149, 1500, 65_507] {
        for kind in 0..=5 {
            random[..4].copy_from_slice(&[kind, 0, 0, 0]);
            attacker.send_to(&random[..length], target).unwrap();
        }
    }
    for start in 0..2000 {
        attacker.send_to(&random[start..start + start % 300], target).unwrap();
    }
    assert!(phone.pings(server, 3), "the phone is still served");

    // Replays: what the phone sends is recorded on its way and sent again, thrice, from elsewhere.
    let recorded = record(&world, &phone, server);
    assert!(recorded.len() > 4, "{} datagrams recorded", recorded.len());
    let endpoint = |net: &NetHost| runtime.block_on(net.peers(plan.tenant))[0].endpoint;
    let before = (endpoint(&net), runtime.block_on(net.peers(plan.tenant))[0].received_bytes);
    for _ in 0..3 {
        for datagram in &recorded {
            attacker.send_to(datagram, target).unwrap();
        }
    }
    std::thread::sleep(Duration::from_millis(300));
    let after = (endpoint(&net), runtime.block_on(net.peers(plan.tenant))[0].received_bytes);
    assert_eq!(before.0, after.0, "a replay moves nobody's endpoint");
    assert!(phone.pings(server, 3));
    runtime.block_on(net.remove(plan.tenant)).unwrap();
}

/// The UDP payloads that the phone sent to the host while it pinged.
fn record(world: &World, phone: &Phone, server: Ipv4Addr) -> Vec<Vec<u8>> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    let all_packets = i32::from(libc::ETH_P_ALL as u16).to_be() >> 16;
    // SAFETY: plain socket(2); the descriptor is checked and owned at once.
    #[allow(unsafe_code)]
    let socket = world.internet.run(|| unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, all_packets);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    });
    let socket = socket.unwrap();
    phone.sh(&format!("ping -n -c 5 -i 0.05 {server} >/dev/null"));
    let mut found = Vec::new();
    let mut packet = [0_u8; 2048];
    loop {
        // SAFETY: the buffer is as long as said and outlives the call.
        #[allow(unsafe_code)]
        let read = unsafe { libc::recv(socket.as_raw_fd(), packet.as_mut_ptr().cast(), packet.len(), 0) };
        let Ok(read) = usize::try_from(read) else { return found };
        let from_phone = packet[12..16] == phone.address.octets() && packet[16..20] == HOST.octets();
        if read > 28 && packet[0] == 0x45 && packet[9] == 17 && from_phone {
            found.push(packet[28..read].to_vec());
        }
    }
}

#[test]
fn spoofed_inner_sources_are_dropped() {
    let Some(mut world) = World::make() else { return };
    let (Home { runtime, net, plan }, phone) = home(&mut world, 2, 1);
    let (app, other) = (&plan.machines[0], &plan.devices[1]);
    let tap = net.tap(app.id).unwrap();
    let tunnel = phone.sh("ip -o link show type tun | sed 's/^[0-9]*: \\([^:]*\\):.*/\\1/'");
    for foreign in
        [other.v4.to_string(), "10.99.0.1".into(), plan.subnets.server_v4().to_string(), SERVER.to_string()]
    {
        phone.sh(&format!(
            "ip addr add {foreign}/32 dev {tunnel}; ping -n -c 2 -i 0.05 -W 1 -I {foreign} {} >/dev/null; \
             ip addr del {foreign}/32 dev {tunnel}",
            app.v4
        ));
        assert!(!tap.has_waiting(), "{foreign} is not the phone's");
    }
    phone.sh(&format!("ping -n -c 1 -W 1 {} >/dev/null; true", app.v4));
    assert!(tap.has_waiting(), "its own is");
    runtime.block_on(net.remove(plan.tenant)).unwrap();
}

#[test]
fn the_exit_uses_only_reserved_ports_and_only_who_may() {
    let Some(mut world) = World::make() else { return };
    let (Home { runtime, net, mut plan }, phone) = home(&mut world, 1, 1);
    let (v4, v6) = (plan.devices[0].v4, plan.devices[0].v6);
    for (device, server, host) in [
        (IpAddr::V4(v4), IpAddr::V4(SERVER), IpAddr::V4(HOST)),
        (v6.into(), SERVER_V6.into(), HOST_V6.into()),
    ] {
        let at = SocketAddr::new(server, 4000);
        let there = world.internet.run(|| UdpSocket::bind(at)).unwrap().unwrap();
        // The source port that would shadow the host's own WireGuard port, if it were kept.
        let client = phone.namespace.run(|| UdpSocket::bind((device, plan.listen_port))).unwrap().unwrap();
        let mut buffer = [0; 64];
        for socket in [&there, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        }
        client.send_to(b"out", at).unwrap();
        let (_, from) = there.recv_from(&mut buffer).unwrap();
        assert_eq!(from.ip(), host);
        assert!(EXIT_PORTS.contains(&from.port()), "{from}");
        there.send_to(b"back", from).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap(), (4, at));
    }
    assert!(phone.pings(SERVER, 20) && phone.pings(SERVER_V6, 20));

    // One tenant cannot fill the host's table of connections.
    let flood = phone.namespace.run(|| UdpSocket::bind((v4, 0))).unwrap().unwrap();
    for port in 10_000..10_000 + TENANT_CONNECTIONS as u16 + 1000 {
        flood.send_to(b"x", (SERVER, port)).unwrap();
        if port % 64 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    let count = inside(&world.host, "cat /proc/sys/net/netfilter/nf_conntrack_count");
    let count: u32 = count.trim().parse().unwrap();
    assert!((1000..=TENANT_CONNECTIONS + 50).contains(&count), "{count} connections");

    // What the host itself offers stays closed, also on the tenant's own link to it.
    let listener = world.host.run(|| std::net::TcpListener::bind(("0.0.0.0", 7777))).unwrap().unwrap();
    let link = TenantLink::new(&world.id.parse().unwrap(), plan.tenant).unwrap();
    assert!(!phone.succeeds(&format!("timeout 1 bash -c 'echo > /dev/tcp/{}/7777'", link.host_v4)));
    inside(&world.internet, &format!("timeout 1 bash -c 'echo > /dev/tcp/{HOST}/7777'"));
    drop(listener);
    plan.devices[0].exit = false;
    runtime.block_on(net.apply(&plan)).unwrap();
    assert!(!phone.pings(SERVER, 1) && !phone.pings(SERVER_V6, 1), "the exit is not for everybody");
    assert!(phone.pings(plan.subnets.server_v4(), 20));
    runtime.block_on(net.remove(plan.tenant)).unwrap();
}
