//! Machines' TAPs: what waits in them, what is counted, what the host itself never sends into them.

mod net_world;

use cloudpal_host::net::{NetHost, NetSettings, WireGuardKind, namespace::Namespace};
use cloudpal_model::Kind;
use cloudpal_net::address::{GATEWAY_MAC, GATEWAY_V4};
use net_world::{PATIENCE_S, World, household, inside};
use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

#[test]
fn a_packet_for_a_sleeping_machine_waits_and_is_counted_when_it_is_read() {
    let Some(mut world) = World::make() else { return };
    let runtime = world.runtime();
    let net = world.daemon(&runtime);
    let plan = household(1, 1, 2);
    runtime.block_on(net.apply(&plan)).unwrap();
    let mut phone = world.phone(1);
    phone.connect(&world, &plan, 0);
    assert!(phone.pings_within(plan.subnets.server_v4(), PATIENCE_S).is_some());

    let tap = net.tap(plan.machines[0].id).unwrap();
    let other = net.tap(plan.machines[1].id).unwrap();
    assert!(!tap.has_waiting());
    assert_eq!(tap.delivered_packets(), 0);

    let mut waking = runtime.spawn({
        let tap = tap.clone();
        async move {
            tap.wait_readable().await;
            Instant::now()
        }
    });
    let early = runtime
        .block_on(async { tokio::time::timeout(Duration::from_millis(200), &mut waking).await.is_ok() });
    assert!(!early, "nobody sent anything");
    let (v4, v6) = (plan.machines[0].v4, plan.machines[0].v6);
    let socket = phone.namespace.run(|| UdpSocket::bind((plan.devices[0].v4, 0))).unwrap().unwrap();
    let sent = Instant::now();
    socket.send_to(b"hello", (v4, 9)).unwrap();
    let readable = runtime.block_on(waking).unwrap();
    eprintln!("the TAP was readable {} us after the phone's send()", (readable - sent).as_micros());
    phone.sh(&format!("ping -n -c 3 -i 0.05 -W 1 {v4} >/dev/null; true"));
    phone.sh(&format!("ping -6 -n -c 2 -i 0.05 -W 1 {v6} >/dev/null; true"));

    assert!(tap.has_waiting());
    assert_eq!(tap.delivered_packets(), 0, "what waits is not delivered yet");
    let mut vmm = File::from(tap.dup().unwrap());
    let mut frame = [0; 2048];
    for delivered in 1..=6 {
        let read = vmm.read(&mut frame).unwrap();
        // The virtio-net header of 10 bytes, then Ethernet to the machine.
        assert!(read > 10 + 14 + 20);
        // At most a note that the checksum was verified, which the kernel's WireGuard leaves
        // (VIRTIO_NET_HDR_F_DATA_VALID).
        assert_eq!((frame[0] & !2, &frame[1..10]), (0, &[0; 9][..]), "plain: no offload was promised");
        assert_eq!(frame[10..16], plan.machines[0].mac);
        assert_eq!(tap.delivered_packets(), delivered);
    }
    assert!(!tap.has_waiting());
    assert_eq!((other.delivered_packets(), other.has_waiting()), (0, false));
    // The TAP stays usable with the reactor after others read from it.
    let late = runtime
        .block_on(async { tokio::time::timeout(Duration::from_millis(300), tap.wait_readable()).await });
    assert!(late.is_err(), "an old edge is no packet");
    runtime.block_on(net.remove(plan.tenant)).unwrap();
    assert!(net.tap(plan.machines[0].id).is_none());
}

#[test]
fn the_host_itself_never_wakes_a_machine() {
    let Some(world) = World::make() else { return };
    let runtime = world.runtime();
    let net = world.daemon(&runtime);
    let mut plan = household(1, 1, 1);
    runtime.block_on(net.apply(&plan)).unwrap();
    plan.machines.extend(household(1, 1, 2).machines.pop());
    runtime.block_on(net.apply(&plan)).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    for machine in &plan.machines {
        let tap = net.tap(machine.id).unwrap();
        let mut frame = [0; 2048];
        let read =
            if tap.has_waiting() { File::from(tap.dup().unwrap()).read(&mut frame).unwrap_or(0) } else { 0 };
        assert_eq!(read, 0, "the host sent {:02x?}", &frame[..read]);
    }
    runtime.block_on(net.remove(plan.tenant)).unwrap();
}

#[test]
fn a_guest_that_takes_the_overlay_for_its_link_is_answered_in_the_others_place() {
    let Some(world) = World::make() else { return };
    let runtime = world.runtime();
    let net = world.daemon(&runtime);
    let plan = household(1, 1, 2);
    runtime.block_on(net.apply(&plan)).unwrap();
    let tap = net.tap(plan.machines[0].id).unwrap();
    let mut guest = File::from(tap.dup().unwrap());
    let (own, mac) = (plan.machines[0].v4.octets(), plan.machines[0].mac);
    // RFC 826, behind the TAP's own header of ten bytes.
    let mut ask = |wanted: Ipv4Addr| {
        let ethernet = [&[0xff; 6], &mac[..], &[8, 6]].concat();
        let question = [&[0, 1, 8, 0, 6, 4, 0, 1], &mac[..], &own, &[0; 6], &wanted.octets()].concat();
        guest.write_all(&[&[0; 10], &ethernet[..], &question].concat()).unwrap();
        let answer = async { tokio::time::timeout(Duration::from_millis(300), tap.wait_readable()).await };
        if runtime.block_on(answer).is_err() {
            return None;
        }
        let mut frame = [0; 2048];
        let read = guest.read(&mut frame).unwrap();
        let frame = &frame[10..read];
        assert_eq!((&frame[..6], &frame[12..14]), (&mac[..], &[8, 6][..]), "{frame:02x?}");
        assert_eq!((frame[21], &frame[28..32]), (2, &wanted.octets()[..]), "{frame:02x?}");
        Some(<[u8; 6]>::try_from(&frame[22..28]).unwrap())
    };
    let others = [plan.devices[0].v4, plan.machines[1].v4, plan.subnets.server_v4(), GATEWAY_V4];
    for address in others {
        assert_eq!(ask(address), Some(GATEWAY_MAC), "{address}");
    }
    // Nobody else has its address: it would give it up.
    assert_eq!(ask(plan.machines[0].v4), None);
    let other = net.tap(plan.machines[1].id).unwrap();
    assert!(!other.has_waiting(), "a question woke another machine");
    runtime.block_on(net.remove(plan.tenant)).unwrap();
}

#[test]
fn a_tap_comes_back_from_a_vmm_after_the_daemon_died() {
    let Some(world) = World::make() else { return };
    let plan = household(1, 0, 1);
    let machine = plan.machines[0].id;
    let runtime = world.runtime();
    let net = world.daemon(&runtime);
    runtime.block_on(net.apply(&plan)).unwrap();
    let vmm = net.tap(machine).unwrap().dup().unwrap();
    drop(net);
    drop(runtime);

    let runtime = world.runtime();
    let net = world.daemon(&runtime);
    runtime.block_on(net.apply(&plan)).unwrap();
    assert!(net.tap(machine).is_none(), "the VMM holds it");
    let tenant = world.namespace_of(plan.tenant);
    inside(&tenant, &format!("ping -n -c 1 -W 1 {} >/dev/null; true", plan.machines[0].v4));
    net.adopt_tap(machine, vmm.try_clone().unwrap());
    let tap = net.tap(machine).unwrap();
    assert!(tap.has_waiting(), "what came meanwhile waits");
    assert_ne!(tap.dup().unwrap().as_raw_fd(), vmm.as_raw_fd());
    drop((tap, net));
    drop(runtime);

    // The VMM ends without a daemon: the next one opens the TAP by its name.
    drop(vmm);
    let runtime = world.runtime();
    let net = world.daemon(&runtime);
    runtime.block_on(net.apply(&plan)).unwrap();
    assert!(net.tap(machine).is_some());
    runtime.block_on(net.remove(plan.tenant)).unwrap();
    let left = inside(&world.host, "ip -o link | grep -c _1@ || true");
    assert_eq!(left, "0", "the way out is gone");
}

#[test]
fn a_host_that_lacks_something_is_told_what_and_a_second_daemon_is_refused() {
    let Some(world) = World::make() else { return };
    let runtime = world.runtime();
    let net = world.daemon(&runtime);
    eprintln!("{}", net.explain());
    let problem = runtime.block_on(NetHost::start(world.settings())).err().unwrap();
    assert_eq!(problem.kind, Kind::Taken);
    drop(net);
    let settings = |instance: &str| NetSettings { instance: instance.into(), ..world.settings() };
    let problem = runtime.block_on(NetHost::start(settings("a b"))).err().unwrap();
    assert_eq!(problem.kind, Kind::Invalid);
    let kernel = NetSettings { wireguard: WireGuardKind::Kernel, ..world.settings() };
    match runtime.block_on(NetHost::start(kernel)) {
        Ok(net) => assert!(net.explain().contains("in the kernel")),
        Err(problem) => {
            assert_eq!(problem.kind, Kind::HostLacks);
            assert!(problem.mend.contains("modprobe wireguard"), "{problem}");
        }
    }
}

#[test]
fn what_leaves_the_plan_is_gone_and_what_was_removed_by_hand_comes_back() {
    let Some(world) = World::make() else { return };
    let runtime = world.runtime();
    let net = world.daemon(&runtime);
    let mut plan = household(1, 2, 20);
    let started = Instant::now();
    runtime.block_on(net.apply(&plan)).unwrap();
    let first = started.elapsed();
    let started = Instant::now();
    runtime.block_on(net.apply(&plan)).unwrap();
    eprintln!("20 machines: applied in {first:?}, again in {:?}", started.elapsed());

    let tenant = world.namespace_of(plan.tenant);
    let taps = || inside(&tenant, "ip -o link show type tun | grep -c ' m[0-9]' || true");
    assert_eq!(taps(), "20");
    let gone = plan.machines.pop().unwrap();
    let last = net.tap(gone.id).unwrap();
    let waiting = runtime.spawn(async move { last.wait_readable().await });
    runtime.block_on(net.apply(&plan)).unwrap();
    let before = cpu_ticks();
    std::thread::sleep(Duration::from_millis(500));
    assert!(!waiting.is_finished(), "no packet ever comes");
    assert!(cpu_ticks() - before < 10, "whoever waits for a TAP that is gone must not spin");
    waiting.abort();
    assert_eq!(taps(), "19");
    assert!(net.tap(gone.id).is_none());
    inside(&tenant, &format!("ip link del {} && ip link del wg0 && ip link del x0", plan.machines[0].id));
    runtime.block_on(net.apply(&plan)).unwrap();
    assert_eq!(taps(), "19");
    let v4 = plan.machines[0].v4;
    inside(
        &tenant,
        &format!("ip link show wg0 && ip link show x0 && ip route get {v4} && ping -c 1 -W 1 {v4}; true"),
    );
    assert!(net.tap(plan.machines[0].id).unwrap().has_waiting());
    assert_eq!(runtime.block_on(net.peers(plan.tenant)).len(), 2);

    // A tenant that nobody wants any more, from an earlier daemon.
    drop(net);
    let net = world.daemon(&runtime);
    runtime.block_on(net.remove_others(&[])).unwrap();
    assert!(Namespace::open(&format!("{}-t1", world.id)).unwrap().is_none());
}

/// The processor time of this process, in hundredths of a second.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
    fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
}

#[test]
fn a_second_instance_in_one_namespace_is_refused() {
    let Some(world) = World::make() else { return };
    let runtime = world.runtime();
    inside(
        &world.host,
        "ip link add other_1 type veth peer name other_2 && ip addr add 198.18.0.2/31 dev other_1",
    );
    let refused = runtime.block_on(NetHost::start(world.settings()));
    let problem = refused.err().expect("the links of two instances would be one");
    assert_eq!(problem.kind, Kind::Taken);
    assert!(problem.what.contains("other_1") && problem.what.contains("198.18.0.2"), "{problem}");
}

#[test]
fn a_flushed_firewall_is_put_back() {
    let Some(world) = World::make() else { return };
    let runtime = world.runtime();
    let net = world.daemon(&runtime);
    assert!(!runtime.block_on(net.keep_host_rules()).unwrap(), "it is there from the start");
    let before = inside(&world.host, "nft list ruleset");
    inside(&world.host, "nft flush ruleset");
    assert!(runtime.block_on(net.keep_host_rules()).unwrap());
    assert_eq!(inside(&world.host, "nft list ruleset"), before);
    assert!(!runtime.block_on(net.keep_host_rules()).unwrap());
}
