//! A small internet for the network's tests: a host, a phone and a server, each a network namespace of the test's own.
//!
//! Invariant: nothing here touches the machine's own namespace; everything is named with the test's process id and is
//! removed at the end.
#![allow(dead_code)] // every test file uses another part

use cloudpal_host::net::{NetHost, NetSettings, WireGuardKind, namespace::Namespace};
use cloudpal_model::{DeviceId, MachineId, PrivateKey, TenantId};
use cloudpal_net::{
    address::{Range, machine_mac},
    keys::{KeyPair, preshared_key},
    plan::{DevicePlan, MachinePlan, NetPlan, Subnets},
    profile,
};
use nix::sched::{CloneFlags, setns};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

/// The host's address on the internet.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// A server on the internet.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9);

/// For what must come; under software emulation on a busy machine a lost handshake alone costs 5 s.
pub const PATIENCE_S: f64 = 60.0;

/// Whether the tests are to run with the kernel's WireGuard, as they do in the host VM.
pub fn in_kernel() -> bool {
    std::env::var("CLOUDPAL_TEST_WIREGUARD").is_ok_and(|kind| kind == "kernel")
}

/// Another one for every world that this process makes.
fn letter() -> char {
    static MADE: AtomicU8 = AtomicU8::new(0);
    char::from(b'a' + MADE.fetch_add(1, Ordering::Relaxed) % 26)
}

pub struct World {
    pub id: String,
    pub host: Arc<Namespace>,
    pub internet: Arc<Namespace>,
    pub dir: PathBuf,
    names: Vec<String>,
}

impl World {
    /// Makes the host and the internet, and enters the host with the calling thread. `None`: said why it is skipped.
    pub fn make() -> Option<World> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: network tests need root");
            return None;
        }
        for tool in ["ip", "nft", "wg", "wireguard-go", "ping", "dig"] {
            if Command::new("which").arg(tool).output().is_ok_and(|found| !found.status.success()) {
                eprintln!("SKIPPED: {tool} is not installed");
                return None;
            }
        }
        let id = format!("w{}{}", std::process::id(), letter());
        let dir = std::env::temp_dir().join(format!("cloudpal-net-{id}"));
        fs::create_dir_all(&dir).unwrap();
        let names = vec![format!("{id}-host"), format!("{id}-inet")];
        let [host, internet] = [&names[0], &names[1]].map(|name| Namespace::open_or_create(name).unwrap().0);
        let world = World { id, host, internet, dir, names };
        world.inside(&world.internet, "ip link set lo up && sysctl -qw net.ipv4.ip_forward=1");
        let (near, far) = (format!("{HOST}/24 {HOST_V6}/64"), "192.0.2.254/24 2001:db8:1::fe/64");
        world.wire([(&world.host, "inet0", &near), (&world.internet, "host0", far)]);
        world.inside(&world.host, "ip link set lo up && ip route add default via 192.0.2.254");
        world.inside(&world.host, "ip route add default via 2001:db8:1::fe");
        world.inside(
            &world.internet,
            &format!("ip addr add {SERVER}/32 dev lo && ip addr add {SERVER_V6}/128 dev lo"),
        );
        setns(&world.host, CloneFlags::CLONE_NEWNET).unwrap();
        Some(world)
    }

    /// A cable between two namespaces; each end is a name and an address with its prefix.
    fn wire(&self, ends: [(&Namespace, &str, &str); 2]) {
        let [(a, name_a, _), (b, name_b, _)] = ends;
        let (netns_a, netns_b) = (netns_name(a), netns_name(b));
        run(&format!("ip -n {netns_a} link add {name_a} type veth peer name {name_b} netns {netns_b}"));
        for (namespace, name, addresses) in ends {
            let netns = netns_name(namespace);
            for address in addresses.split(' ') {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                run(&format!("ip -n {netns} addr add {address} dev {name} {nodad}"));
            }
            run(&format!("ip -n {netns} link set {name} up"));
        }
    }

    /// A client device of the internet, in a namespace of its own, with its own address there.
    pub fn phone(&mut self, number: u8) -> Phone {
        let name = format!("{}-phone{number}", self.id);
        let (namespace, _) = Namespace::open_or_create(&name).unwrap();
        self.names.push(name);
        let (near, far) =
            (Ipv4Addr::new(198, 51, 100, number * 4 + 1), Ipv4Addr::new(198, 51, 100, number * 4 + 2));
        let ends = (format!("{near}/30"), format!("{far}/30"));
        self.wire([(&self.internet, &format!("ph{number}"), &ends.0), (&namespace, "up0", &ends.1)]);
        self.inside(&namespace, &format!("ip link set lo up && ip route add default via {near}"));
        Phone { namespace, address: far, wireguard: None }
    }

    pub fn inside(&self, namespace: &Namespace, script: &str) -> String {
        inside(namespace, script)
    }

    pub fn settings(&self) -> NetSettings {
        NetSettings {
            instance: self.id.clone(),
            wireguard: if in_kernel() { WireGuardKind::Kernel } else { WireGuardKind::Userspace },
            upstream_dns: vec![SocketAddr::from((SERVER, 53))],
        }
    }

    /// A runtime whose threads are inside the host; dropping it is the daemon's sudden death.
    pub fn runtime(&self) -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    pub fn daemon(&self, runtime: &tokio::runtime::Runtime) -> NetHost {
        runtime.block_on(NetHost::start(self.settings())).unwrap()
    }

    pub fn namespace_of(&self, tenant: TenantId) -> Arc<Namespace> {
        Namespace::open(&format!("{}-{tenant}", self.id)).unwrap().expect("the tenant's namespace")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for tenant in 1..4 {
            let _ = Namespace::remove(&format!("{}-t{tenant}", self.id));
        }
        for name in &self.names {
            let _ = Namespace::remove(name);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub struct Phone {
    pub namespace: Arc<Namespace>,
    pub address: Ipv4Addr,
    /// Its WireGuard, and that one's socket.
    wireguard: Option<(std::process::Child, PathBuf)>,
}

impl Phone {
    /// Connects with Debian's client, from the profile that an owner gets; without wg-quick's DNS part, which would
    /// change the whole machine's resolver.
    pub fn connect(&mut self, world: &World, plan: &NetPlan, device: u8) {
        let endpoint = profile::EndpointHost::V4(HOST);
        let key = keys_of(plan, device).private;
        let text = profile::conf(plan, &plan.devices[usize::from(device)], &key, &endpoint).unwrap();
        self.connect_with(world, &text);
    }

    pub fn connect_with(&mut self, world: &World, profile: &str) {
        let field = |name: &str| {
            let line = profile.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")));
            line.unwrap_or_default().to_owned()
        };
        let stripped: Vec<&str> = profile
            .lines()
            .filter(|line| !["Address", "DNS", "MTU"].iter().any(|key| line.starts_with(key)))
            .collect();
        // wireguard-go keeps its socket's file by interface name, whatever the namespace.
        let name = format!("p{}", self.address.octets()[3]) + &world.id[1..];
        let file = world.dir.join(format!("{name}.conf"));
        fs::write(&file, stripped.join("\n")).unwrap();
        let socket = PathBuf::from(format!("/var/run/wireguard/{name}.sock"));
        // Killed, its owner leaves it behind, and a client of wg(8) would wait for nobody.
        drop(fs::remove_file(&socket));
        let child = self.namespace.run(|| {
            let mut command = Command::new("wireguard-go");
            command.args(["-f", &name]).env("LOG_LEVEL", "error").spawn()
        });
        self.wireguard = Some((child.unwrap().unwrap(), socket.clone()));
        let mut script = format!(
            "set -e; for i in $(seq 200); do [ -S {socket} ] && break; sleep 0.05; done\n\
             wg setconf {name} {file}; ip link set {name} mtu 1420 up\n",
            socket = socket.display(),
            file = file.display()
        );
        for address in field("Address").split(", ") {
            script += &format!("ip addr add {address} dev {name}\n");
        }
        for network in field("AllowedIPs").split(", ") {
            // A full tunnel without wg-quick's marks: two halves win over the default, the host's own route over both.
            let halves = match network {
                "0.0.0.0/0" => vec!["0.0.0.0/1", "128.0.0.0/1"],
                other => vec![other],
            };
            for network in halves {
                script += &format!("ip route add {network} dev {name}\n");
            }
        }
        let outside = Ipv4Addr::from_bits(self.address.to_bits() - 1);
        script += &format!("ip route add {HOST}/32 via {outside} || true\n");
        self.sh(&script);
    }

    pub fn sh(&self, script: &str) -> String {
        inside(&self.namespace, script)
    }

    /// One echo request; waits so many seconds for the answer.
    pub fn pings(&self, address: impl Into<IpAddr>, wait_s: u32) -> bool {
        self.succeeds(&format!("ping -n -c 1 -W {wait_s} {}", address.into()))
    }

    /// Pings until it is answered; the seconds that took.
    pub fn pings_within(&self, address: impl Into<IpAddr>, limit_s: f64) -> Option<f64> {
        let address = address.into();
        let started = std::time::Instant::now();
        while started.elapsed().as_secs_f64() < limit_s {
            if self.succeeds(&format!("ping -n -c 1 -W 1 {address}")) {
                return Some(started.elapsed().as_secs_f64());
            }
        }
        None
    }

    pub fn succeeds(&self, script: &str) -> bool {
        sh_inside(&self.namespace, script).status.success()
    }
}

impl Drop for Phone {
    fn drop(&mut self) {
        if let Some((child, socket)) = &mut self.wireguard {
            let _ = child.kill();
            let _ = child.wait();
            let _ = fs::remove_file(socket);
        }
    }
}

pub fn keys_of(plan: &NetPlan, device: u8) -> KeyPair {
    KeyPair::from_random([plan.tenant.0 as u8 * 16 + device + 1; 32])
}

/// A tenant with so many devices, all with exit, and machines; all tenants have the same addresses.
pub fn household(tenant: u32, devices: u8, machines: u8) -> NetPlan {
    let subnets = Subnets::choose(None, None, [7; 5]).unwrap();
    let private_key = KeyPair::from_random([200 + tenant as u8; 32]).private;
    let mut plan = NetPlan {
        tenant: TenantId(tenant),
        domain: format!("home{tenant}.pal"),
        subnets,
        private_key: PrivateKey(private_key.0),
        listen_port: 51_820 + tenant as u16,
        devices: vec![],
        machines: vec![],
    };
    for slot in 0..devices {
        let (v4, v6) = subnets.address(Range::Devices, slot.into()).unwrap();
        plan.devices.push(DevicePlan {
            id: DeviceId(tenant * 10 + u32::from(slot)),
            name: format!("phone{slot}").parse().unwrap(),
            public_key: keys_of(&plan, slot).public,
            preshared_key: preshared_key([100 + slot; 32]),
            v4,
            v6,
            exit: true,
            last_endpoint: None,
        });
    }
    for slot in 0..machines {
        let (v4, v6) = subnets.address(Range::Apps, slot.into()).unwrap();
        let id = MachineId(tenant * 10 + u32::from(slot));
        let name = format!("app{slot}").parse().unwrap();
        plan.machines.push(MachinePlan { id, name, v4, v6, mac: machine_mac(id) });
    }
    plan
}

fn netns_name(namespace: &Namespace) -> String {
    namespace.path().file_name().unwrap().to_string_lossy().into_owned()
}

fn sh_inside(namespace: &Namespace, script: &str) -> Output {
    namespace.run(|| Command::new("bash").args(["-c", script]).output()).unwrap().unwrap()
}

/// Runs a script inside; its output, or a panic with what it said.
pub fn inside(namespace: &Namespace, script: &str) -> String {
    let output = sh_inside(namespace, script);
    assert!(
        output.status.success(),
        "{script}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn run(script: &str) {
    let output = Command::new("bash").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
}
