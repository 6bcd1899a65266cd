//! DNS questions, and the short texts that people and devices give: names, keys, domains, endpoints, references.

use cloudpal_compute::image::Reference;
use cloudpal_model::{MachineId, Name, PrivateKey, PublicKey, TenantId};
use cloudpal_net::{
    address::{Range, machine_mac},
    dns::{Answer, Transport, Zone},
    domain::Domain,
    keys::KeyPair,
    names::Instance,
    plan::{FIRST_LISTEN_PORT, MachinePlan, NetPlan, Subnets},
    profile::EndpointHost,
};
use hickory_proto::op::{Message, MessageType};
use std::sync::OnceLock;

/// The most that is sent over UDP.
const UDP_BYTES_MAX: usize = 1232;

/// The zone of `t1.pal`, as in the tests of the DNS.
fn zone() -> Zone {
    let subnets = Subnets::choose(None, None, [1; 5]).expect("subnets");
    let (v4, v6) = subnets.address(Range::Apps, 0).expect("an address");
    let (id, name) = (MachineId(10), "calendar".parse().expect("a name"));
    let plan = NetPlan {
        tenant: TenantId(1),
        domain: "t1.pal".to_owned(),
        subnets,
        private_key: KeyPair::from_random([1; 32]).private,
        listen_port: FIRST_LISTEN_PORT,
        devices: Vec::new(),
        machines: vec![MachinePlan { id, name, v4, v6, mac: machine_mac(id) }],
    };
    Zone::from_plan(&plan).expect("a zone")
}

pub fn dns(bytes: &[u8]) {
    static ZONE: OnceLock<Zone> = OnceLock::new();
    let zone = ZONE.get_or_init(zone);
    for transport in [Transport::Udp, Transport::Tcp] {
        if let Answer::Reply(reply) = zone.answer(bytes, transport) {
            let parsed = Message::from_vec(&reply).expect("a reply that parses");
            assert_eq!(reply[..2], bytes[..2], "the asker's id");
            assert_eq!(parsed.metadata.message_type, MessageType::Response);
            assert!(transport == Transport::Tcp || reply.len() <= UDP_BYTES_MAX);
            assert_eq!(zone.answer(&reply, transport), Answer::Ignore, "two servers talk in circles");
        }
    }
}

pub fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = text.parse::<Name>() {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(key) = text.parse::<PublicKey>() {
        assert_eq!(key.to_base64(), text);
    }
    if let Ok(key) = text.parse::<PrivateKey>() {
        assert_eq!(key.to_base64(), text);
    }
    if let Ok(instance) = text.parse::<Instance>() {
        assert_eq!(instance.to_string(), text);
    }
    if let Ok(domain) = text.parse::<Domain>() {
        assert!(domain.labels().all(|label| (1..64).contains(&label.len())));
    }
    if let Ok(host) = text.parse::<EndpointHost>() {
        assert_eq!(host.to_string().parse::<EndpointHost>().as_ref(), Ok(&host));
        assert!(!host.to_string().contains(char::is_whitespace), "it goes into a file that root runs");
    }
    let _ = text.parse::<Reference>();
}
