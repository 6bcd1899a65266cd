//! The names of a tenant: answers DNS questions about the overlay and says which questions are for somebody else.
//!
//! Authoritative for the tenant's domain (`<app>.ada.pal`, `<device>.ada.pal`, and `ada.pal` itself: the server) and
//! for the overlay's two reverse zones. Sans-IO: bytes in, [`Answer`] out; over TCP without the length before each
//! message.
//! Invariants: no bytes make it panic or grow beyond the largest message; a message that is itself a response is never
//! answered, so two servers cannot talk in circles; a question inside the zones never leaves the host.

use crate::domain::{Domain, DomainError};
use crate::plan::NetPlan;
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name as DnsName, RData, Record, RecordType};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A name's address may change only when an app is removed and installed again.
const TTL_S: u32 = 60;
/// How long clients may remember that a name does not exist: a new app is soon seen.
const NEGATIVE_TTL_S: u32 = 10;
/// The least that every client takes over UDP (RFC 1035 §2.3.4).
const MIN_UDP_BYTES: u16 = 512;
/// The most that we send over UDP: passes every link without fragments (DNS flag day 2020).
const MAX_UDP_BYTES: u16 = 1232;
const HEADER_BYTES: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What to do with a message that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send this back.
    Reply(Vec<u8>),
    /// A sound question about somebody else's names: ask a resolver.
    Forward,
    /// No answer at all.
    Ignore,
}

/// Labels from the root down, in lower case: names of one zone are neighbours in a map.
type Key = Vec<Box<[u8]>>;

/// Everything that this tenant's DNS knows.
#[derive(Clone, Debug)]
pub struct Zone {
    domain: DnsName,
    /// The tops of the three zones that are ours.
    tops: [(Key, DnsName); 3],
    names: BTreeMap<Key, Records>,
}

#[derive(Clone, Debug, Default)]
struct Records {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    pointer: Option<DnsName>,
}

/// The header's first four fields (RFC 1035 §4.1.1).
struct Header {
    id: [u8; 2],
    is_response: bool,
    op_code: u8,
    recursion_desired: bool,
    questions: u16,
}

impl Header {
    fn read(message: &[u8]) -> Option<Header> {
        let header = message.first_chunk::<HEADER_BYTES>()?;
        Some(Header {
            id: [header[0], header[1]],
            is_response: header[2] & 0x80 != 0,
            op_code: header[2] >> 3 & 0x0f,
            recursion_desired: header[2] & 1 != 0,
            questions: u16::from_be_bytes([header[4], header[5]]),
        })
    }

    /// An answer without any section, for messages that cannot be read further.
    fn bare_reply(&self, code: ResponseCode) -> Answer {
        const RECURSION_AVAILABLE: u8 = 0x80;
        let mut reply = vec![0; HEADER_BYTES];
        reply[..2].copy_from_slice(&self.id);
        reply[2] = 0x80 | self.op_code << 3 | u8::from(self.recursion_desired);
        reply[3] = RECURSION_AVAILABLE | code.low();
        Answer::Reply(reply)
    }
}

impl Zone {
    /// An app's name comes before a device's of the same name.
    pub fn from_plan(plan: &NetPlan) -> Result<Zone, DomainError> {
        let domain: Domain = plan.domain.parse()?;
        let dns_name = |first: Option<&str>| {
            let labels = first.into_iter().chain(domain.labels()).map(str::as_bytes);
            // Cannot fail: the domain is checked, and it leaves room for one label more.
            DnsName::from_labels(labels).map_err(|_| DomainError::TooLong { domain: plan.domain.clone() })
        };
        let subnet4 = DnsName::from(plan.subnets.v4).trim_to(4);
        let subnet6 = DnsName::from(plan.subnets.v6).trim_to(18);
        let top = |name: DnsName| (key(&name), name);
        let mut zone = Zone {
            domain: dns_name(None)?,
            tops: [top(dns_name(None)?), top(subnet4), top(subnet6)],
            names: BTreeMap::new(),
        };
        let (v4, v6) = plan.subnets.server();
        zone.add(dns_name(None)?, v4, v6);
        for machine in &plan.machines {
            zone.add(dns_name(Some(machine.name.as_str()))?, machine.v4, machine.v6);
        }
        for device in &plan.devices {
            zone.add(dns_name(Some(device.name.as_str()))?, device.v4, device.v6);
        }
        Ok(zone)
    }

    fn add(&mut self, name: DnsName, v4: Ipv4Addr, v6: Ipv6Addr) {
        let records = self.names.entry(key(&name)).or_default();
        records.v4.get_or_insert(v4);
        records.v6.get_or_insert(v6);
        for address in [DnsName::from(v4), DnsName::from(v6)] {
            self.names.entry(key(&address)).or_default().pointer.get_or_insert(name.clone());
        }
    }

    /// What to do with these bytes, whoever sent them.
    pub fn answer(&self, message: &[u8], transport: Transport) -> Answer {
        let Some(header) = Header::read(message) else { return Answer::Ignore };
        if header.is_response {
            return Answer::Ignore;
        }
        if header.op_code != u8::from(OpCode::Query) {
            return header.bare_reply(ResponseCode::NotImp);
        }
        // One question (RFC 9619); checked before the parser makes room for as many as the header claims.
        if header.questions != 1 {
            return header.bare_reply(ResponseCode::FormErr);
        }
        let Ok(query) = Message::from_vec(message) else {
            return header.bare_reply(ResponseCode::FormErr);
        };
        let Some(question) = query.queries.first() else {
            return header.bare_reply(ResponseCode::FormErr);
        };
        let Some(mut reply) = self.reply(&query, question) else { return Answer::Forward };
        let limit = size_limit(&query, transport);
        reply.metadata.id = query.metadata.id;
        reply.metadata.recursion_desired = query.metadata.recursion_desired;
        reply.metadata.checking_disabled = query.metadata.checking_disabled;
        reply.metadata.recursion_available = true;
        reply.add_query(question.clone());
        if let Some(edns) = &query.edns {
            let mut ours = Edns::new();
            ours.set_max_payload(MAX_UDP_BYTES).set_version(0).set_dnssec_ok(edns.flags().dnssec_ok);
            reply.set_edns(ours);
        }
        match encode(&reply, limit) {
            Some(bytes) => Answer::Reply(bytes),
            None => header.bare_reply(ResponseCode::ServFail),
        }
    }

    /// The answer's code and records; `None`: the question is not ours.
    fn reply(&self, query: &Message, question: &Query) -> Option<Message> {
        let mut reply = Message::response(query.metadata.id, OpCode::Query);
        if query.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            reply.metadata.response_code = ResponseCode::BADVERS;
            return Some(reply);
        }
        // Nobody to forward such questions to: no whole zones, no other networks than the internet.
        let transfer = matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR);
        if transfer || !matches!(question.query_class(), DNSClass::IN | DNSClass::ANY) {
            reply.metadata.response_code = ResponseCode::Refused;
            return Some(reply);
        }
        let asked = key(question.name());
        let (top, top_name) = self.tops.iter().find(|(top, _)| asked.starts_with(top))?;
        reply.metadata.authoritative = true;
        let answers = self.records(question, asked == *top);
        if answers.is_empty() {
            if !self.exists(&asked, top) {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            reply.add_authority(self.start_of_authority(top_name.clone(), NEGATIVE_TTL_S));
        }
        reply.add_answers(answers);
        Some(reply)
    }

    /// The records that a question asks for, under the name as it was asked.
    fn records(&self, question: &Query, is_top: bool) -> Vec<Record> {
        let name = question.name();
        let kind = question.query_type();
        let wants = |one: RecordType| kind == one || kind == RecordType::ANY;
        let record = |data: RData| Record::from_rdata(name.clone(), TTL_S, data);
        let mut answers = Vec::new();
        if let Some(records) = self.names.get(&key(name)) {
            let v4 = records.v4.filter(|_| wants(RecordType::A)).map(|v4| record(RData::A(A(v4))));
            let v6 = records.v6.filter(|_| wants(RecordType::AAAA)).map(|v6| record(RData::AAAA(AAAA(v6))));
            let pointer = records.pointer.clone().filter(|_| wants(RecordType::PTR));
            let pointer = pointer.map(|target| record(RData::PTR(PTR(target))));
            answers.extend(v4.into_iter().chain(v6).chain(pointer));
        }
        if is_top && wants(RecordType::SOA) {
            answers.push(self.start_of_authority(name.clone(), TTL_S));
        }
        if is_top && wants(RecordType::NS) {
            answers.push(record(RData::NS(NS(self.domain.clone()))));
        }
        answers
    }

    /// A name exists when it, or anything below it, has records (RFC 8020).
    fn exists(&self, asked: &Key, top: &Key) -> bool {
        let at_or_below = self.names.range(asked.clone()..).next();
        asked == top || at_or_below.is_some_and(|(name, _)| name.starts_with(asked))
    }

    fn start_of_authority(&self, top: DnsName, ttl_s: u32) -> Record {
        let mailbox = self.domain.prepend_label("hostmaster").unwrap_or_else(|_| self.domain.clone());
        // Nobody transfers the zone, so the serial and the first three times mean nothing to anybody.
        let data = SOA::new(self.domain.clone(), mailbox, 1, 3600, 600, 86_400, NEGATIVE_TTL_S);
        Record::from_rdata(top, ttl_s, RData::SOA(data))
    }
}

fn key(name: &DnsName) -> Key {
    let mut labels: Key = name.iter().map(|label| label.to_ascii_lowercase().into_boxed_slice()).collect();
    labels.reverse();
    labels
}

/// The longest reply that the asker takes.
fn size_limit(query: &Message, transport: Transport) -> usize {
    let payload = query.edns.as_ref().map_or(MIN_UDP_BYTES, Edns::max_payload);
    match transport {
        Transport::Tcp => usize::from(u16::MAX),
        Transport::Udp => usize::from(payload.clamp(MIN_UDP_BYTES, MAX_UDP_BYTES)),
    }
}

/// The bytes; where they would be too many, those of the same reply without records, marked as cut short, so that the
/// asker comes again over TCP.
fn encode(reply: &Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= limit {
        return Some(bytes);
    }
    let cut = reply.truncate().to_vec().ok()?;
    (cut.len() <= limit).then_some(cut)
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
