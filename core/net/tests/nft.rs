//! The rule sets in the kernel: nftables takes them, and packets fare as they say.
//!
//! Each test works in network namespaces of its own and takes them away again. Without root, nft or iproute2 the tests
//! say that they are skipped.

use cloudpal_model::{DeviceId, MachineId, TenantId};
use cloudpal_net::address::{Range, machine_mac};
use cloudpal_net::keys::{KeyPair, preshared_key};
use cloudpal_net::link::TenantLink;
use cloudpal_net::names::{Instance, tap};
use cloudpal_net::plan::{DevicePlan, MachinePlan, NetPlan, Subnets};
use cloudpal_net::ruleset::{EXIT_PORTS, host_rules, remove_host_rules, tenant_rules};
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// A network namespace that goes when the test does.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Namespace {
        let name = format!("nettest-{}-{name}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).status().unwrap();
        assert!(made.success());
        let namespace = Namespace(name);
        namespace.must(
            "ip link set lo up; \
             for f in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 1 > /proc/sys/net/$f; done",
        );
        namespace
    }

    fn run(&self, script: &str, input: &str) -> Output {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.0, "sh", "-ec", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn try_to(&self, script: &str) -> bool {
        self.run(script, "").status.success()
    }

    fn must(&self, script: &str) -> String {
        let output = self.run(script, "");
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn apply(&self, rules: &str) {
        for command in ["nft -c -f -", "nft -f -"] {
            let output = self.run(command, rules);
            assert!(output.status.success(), "{rules}\n{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    fn pings(&self, address: impl std::fmt::Display) -> bool {
        self.try_to(&format!("ping -n -c 1 -W 1 {address}"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// Why the tests cannot run here; `None`: they can.
fn missing() -> Option<&'static str> {
    let works = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|o| o.status.success())
    };
    if !works("nft", &["list", "tables"]) {
        return Some("nft is not installed, or may not be used: run as root");
    }
    if !works("ip", &["netns", "list"]) || !works("ping", &["-V"]) || !works("socat", &["-V"]) {
        return Some("ip, ping or socat is not installed");
    }
    None
}

fn plan(tenant: u8) -> NetPlan {
    let subnets = Subnets::choose(None, None, [tenant; 5]).unwrap();
    let device = |slot: u16| {
        let (v4, v6) = subnets.address(Range::Devices, slot).unwrap();
        DevicePlan {
            id: DeviceId(slot.into()),
            name: format!("device-{slot}").parse().unwrap(),
            public_key: KeyPair::from_random([slot as u8; 32]).public,
            preshared_key: preshared_key([9; 32]),
            v4,
            v6,
            exit: slot == 0,
            last_endpoint: None,
        }
    };
    let machine = |slot: u16| {
        let (v4, v6) = subnets.address(Range::Apps, slot).unwrap();
        let id = MachineId(u32::from(tenant) * 10 + u32::from(slot));
        MachinePlan { id, name: format!("app-{slot}").parse().unwrap(), v4, v6, mac: machine_mac(id) }
    };
    NetPlan {
        tenant: TenantId(tenant.into()),
        domain: format!("t{tenant}.pal"),
        subnets,
        private_key: KeyPair::from_random([tenant; 32]).private,
        listen_port: 51_820 + u16::from(tenant),
        devices: vec![device(0), device(1)],
        machines: vec![machine(0), machine(1)],
    }
}

fn instance() -> Instance {
    "cloudpal".parse().unwrap()
}

#[test]
fn nft_takes_every_rule_set_twice_and_stays_the_same() {
    if let Some(why) = missing() {
        return eprintln!("SKIPPED: {why}");
    }
    let namespace = Namespace::new("syntax");
    namespace.must("nft add table inet operators");
    let nobody = NetPlan { devices: vec![], machines: vec![], ..plan(3) };
    let hyphens: Instance = "ip-table-drop-check-31337".parse().unwrap();
    let rule_sets =
        [tenant_rules(&plan(1)), tenant_rules(&nobody), host_rules(&instance()), host_rules(&hyphens)];
    for rules in rule_sets {
        namespace.apply(&rules);
        let once = namespace.must("nft list ruleset");
        namespace.apply(&rules);
        assert_eq!(namespace.must("nft list ruleset"), once);
    }
    namespace.apply(&remove_host_rules(&instance()));
    namespace.apply(&remove_host_rules(&instance()));
    let left = namespace.must("nft list tables");
    assert_eq!(left.lines().count(), 3, "{left}");
    assert!(left.contains("table inet operators") && !left.contains("table inet cloudpal-host"), "{left}");
    assert!(!namespace.run("nft -c -f -", "table inet x { chain y { nonsense } }").status.success());
}

/// One tenant's namespace with veths in the places of WireGuard and of a TAP.
struct Tenant {
    plan: NetPlan,
    inside: Namespace,
    device: Namespace,
    machine: Namespace,
}

/// Joins two namespaces without ARP: both ends have one link-layer address, so each takes what the other sends.
fn join(inside: &Namespace, name: &str, outside: &Namespace) {
    let (inside, outside) = (&inside.0, &outside.0);
    let add = format!(
        "ip link add {name} netns {inside} address 02:00:00:00:00:05 type veth \
         peer name eth0 netns {outside} address 02:00:00:00:00:05; \
         ip -n {inside} link set {name} arp off up; ip -n {outside} link set eth0 arp off up"
    );
    let output = Command::new("sh").args(["-ec", &add]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Tenant {
    fn new(number: u8, host: &Namespace) -> Tenant {
        let name = |part: &str| Namespace::new(&format!("{part}{number}"));
        let (inside, device, machine) = (name("t"), name("d"), name("m"));
        let plan = plan(number);
        let interface = tap(plan.machines[0].id);
        join(&inside, "wg0", &device);
        join(&inside, &interface, &machine);
        // The device's namespace stands for both devices.
        for one in &plan.devices {
            device.must(&format!("ip a add {}/32 dev eth0; ip a add {}/128 dev eth0 nodad", one.v4, one.v6));
            inside.must(&format!("ip r add {}/32 dev wg0; ip -6 r add {}/128 dev wg0", one.v4, one.v6));
        }
        let (v4, v6) = (plan.machines[0].v4, plan.machines[0].v6);
        machine.must(&format!("ip a add {v4}/32 dev eth0; ip a add {v6}/128 dev eth0 nodad"));
        inside.must(&format!("ip r add {v4}/32 dev {interface}; ip -6 r add {v6}/128 dev {interface}"));
        for outside in [&device, &machine] {
            outside.must("ip r add default dev eth0; ip -6 r add default dev eth0");
        }
        let (v4, v6) = plan.subnets.server();
        inside.must(&format!("ip a add {v4}/32 dev wg0; ip a add {v6}/128 dev wg0 nodad"));
        let link = TenantLink::new(&instance(), plan.tenant).unwrap();
        host.must(&format!(
            "ip link add {veth} type veth peer name x0 netns {ns}; ip link set {veth} up; ip a add {}/31 dev {veth}; \
             ip a add {}/127 dev {veth} nodad",
            link.host_v4,
            link.host_v6,
            veth = link.host_interface,
            ns = inside.0,
        ));
        inside.must(&format!(
            "ip link set x0 up; ip a add {}/31 dev x0; ip a add {}/127 dev x0 nodad; \
             ip r add default via {}; ip -6 r add default via {}",
            link.tenant_v4, link.tenant_v6, link.host_v4, link.host_v6
        ));
        inside.apply(&tenant_rules(&plan));
        Tenant { plan, inside, device, machine }
    }

    /// Echoes from a source address of the device's namespace.
    fn device_pings(&self, from: impl std::fmt::Display, to: impl std::fmt::Display) -> bool {
        self.device.try_to(&format!("ping -n -c 1 -W 1 -I {from} {to}"))
    }
}

/// A host with two tenants of the same IPv4 addresses, and the internet: 192.0.2.2, 2001:db8::2.
fn data_center() -> (Namespace, Namespace, Tenant, Tenant) {
    let (host, internet) = (Namespace::new("host"), Namespace::new("internet"));
    join(&host, "up0", &internet);
    host.must("ip a add 192.0.2.1/24 dev up0; ip a add 2001:db8::1/64 dev up0 nodad");
    internet.must("ip a add 192.0.2.2/24 dev eth0; ip a add 2001:db8::2/64 dev eth0 nodad");
    internet.must("ip a add 169.254.169.254/32 dev eth0");
    host.must("ip r add 169.254.169.254/32 dev up0");
    host.apply(&host_rules(&instance()));
    let (one, other) = (Tenant::new(1, &host), Tenant::new(2, &host));
    (host, internet, one, other)
}

#[test]
fn packets_go_where_they_may_and_nowhere_else() {
    if let Some(why) = missing() {
        return eprintln!("SKIPPED: {why}");
    }
    let (host, internet, one, other) = data_center();
    let (phone, laptop, app) = (&one.plan.devices[0], &one.plan.devices[1], &one.plan.machines[0]);

    // Inside the overlay: both families, both directions, and the server.
    assert!(one.device_pings(phone.v4, app.v4) && one.device_pings(laptop.v6, app.v6));
    assert!(one.machine.pings(phone.v4) && one.machine.pings(laptop.v6));
    assert!(one.device_pings(phone.v4, one.plan.subnets.server_v4()));
    assert!(one.machine.pings(one.plan.subnets.server_v6()));

    // Nobody speaks under another's address. Without the guard they could: the way back is there.
    let stranger = "10.86.1.77";
    let neighbour = one.plan.machines[1].v4;
    one.device.must(&format!("ip a add {stranger}/32 dev eth0"));
    one.machine.must(&format!("ip a add {neighbour}/32 dev eth0"));
    one.inside.must(&format!("ip r add {stranger}/32 dev wg0; ip r add {neighbour}/32 dev {}", tap(app.id)));
    let device_lies = || one.device_pings(stranger, app.v4);
    let machine_lies = || one.machine.try_to(&format!("ping -n -c 1 -W 1 -I {neighbour} {}", phone.v4));
    assert!(!device_lies() && !machine_lies());
    one.inside.must("nft flush chain inet cloudpal guard");
    assert!(device_lies() && machine_lies());
    one.inside.apply(&tenant_rules(&one.plan));
    assert!(!device_lies() && !machine_lies());

    // Out: the phone and the app may, the laptop may not.
    assert!(one.device_pings(phone.v4, "192.0.2.2") && one.device_pings(phone.v6, "2001:db8::2"));
    assert!(one.machine.pings("192.0.2.2") && one.machine.pings("2001:db8::2"));
    assert!(!one.device_pings(laptop.v4, "192.0.2.2") && !one.device_pings(laptop.v6, "2001:db8::2"));
    // An address of the overlay that nobody has does not leave it, even where somebody outside has it.
    internet.must("ip a add 10.86.99.1/32 dev eth0");
    host.must("ip r add 10.86.99.1/32 dev up0");
    assert!(host.pings("10.86.99.1"));
    assert!(!one.device_pings(phone.v4, "10.86.99.1"));

    // In: nothing that was not asked for, even where the outside knows the way.
    let link = TenantLink::new(&instance(), one.plan.tenant).unwrap();
    host.must(&format!("ip r add {}/32 via {}", app.v4, link.tenant_v4));
    assert!(!host.pings(app.v4));
    internet.must(&format!("ip r add {}/32 via 192.0.2.1", link.tenant_v4));
    assert!(!internet.pings(link.tenant_v4));

    // Not to the other tenant, not to the host's services, not to the cloud's metadata.
    let foreign = TenantLink::new(&instance(), other.plan.tenant).unwrap();
    assert!(!one.machine.pings(foreign.tenant_v4) && !one.machine.pings(foreign.tenant_v6));
    assert!(!one.machine.pings(other.plan.machines[0].v6));
    assert!(!one.inside.pings("169.254.169.254"));
    assert!(other.machine.pings("192.0.2.2"), "the other tenant's own way out stays open");
}

#[test]
fn the_host_is_closed_and_source_ports_are_those_reserved() {
    if let Some(why) = missing() {
        return eprintln!("SKIPPED: {why}");
    }
    let (host, internet, one, _other) = data_center();
    let listen = |place: &Namespace, port: u16| {
        Command::new("ip")
            .args(["netns", "exec", &place.0, "socat"])
            .args([
                format!("TCP6-LISTEN:{port},ipv6only=0,reuseaddr,fork"),
                "SYSTEM:echo $SOCAT_PEERPORT".to_owned(),
            ])
            .spawn()
            .unwrap()
    };
    let mut listeners = [listen(&internet, 7001), listen(&host, 7002)];
    let call = |target: &str, from: &str| {
        let script = format!("socat -T 2 - TCP:{target},connect-timeout=2{from} < /dev/null");
        let output = one.machine.run(&script, "");
        String::from_utf8(output.stdout).unwrap().trim().parse::<u16>().ok()
    };
    let wait = |place: &Namespace, port: u16| {
        place.must(&format!(
            "for i in $(seq 100); do ss -Hltn 'sport = :{port}' | grep -q . && exit; sleep 0.05; done; exit 1"
        ))
    };
    wait(&internet, 7001);
    wait(&host, 7002);
    // A tenant that asks for WireGuard's port gets another; so does everybody else.
    let outcome = std::panic::catch_unwind(|| {
        for from in ["", ",sourceport=51821", ",sourceport=51820"] {
            let port = call("192.0.2.2:7001", from).expect("the internet answers");
            assert!(EXIT_PORTS.contains(&port), "{port}");
        }
        let port = call("[2001:db8::2]:7001", ",sourceport=51822").expect("the internet answers over IPv6");
        assert!(EXIT_PORTS.contains(&port), "{port}");
        assert_eq!(call("192.0.2.1:7002", ""), None, "the host's services are closed");
        assert_eq!(call("198.18.0.2:7002", ""), None, "by its end of the link too");
    });
    for listener in &mut listeners {
        listener.kill().unwrap();
        listener.wait().unwrap();
    }
    outcome.unwrap();
}
