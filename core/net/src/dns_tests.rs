//! Tests of [`crate::dns`], from the outside: bytes in, answer out.

use super::*;
use crate::plan::examples::household;
use proptest::prelude::*;
use std::fs;
use std::path::Path;

fn zone() -> Zone {
    Zone::from_plan(&household(1)).unwrap()
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 0x1234;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(DnsName::from_ascii(name).unwrap(), kind));
    message
}

fn ask(message: &Message) -> Message {
    match zone().answer(&message.to_vec().unwrap(), Transport::Udp) {
        Answer::Reply(bytes) => Message::from_vec(&bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Code, then the answers' data as text.
fn asked(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let reply = ask(&query(name, kind));
    assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
    assert_eq!(reply.metadata.id, 0x1234);
    assert_eq!(reply.authorities.len(), usize::from(reply.answers.is_empty()));
    (reply.metadata.response_code, reply.answers.iter().map(|record| record.data.to_string()).collect())
}

fn good(data: &str) -> (ResponseCode, Vec<String>) {
    (ResponseCode::NoError, vec![data.to_owned()])
}

const NO_DATA: (ResponseCode, Vec<String>) = (ResponseCode::NoError, Vec::new());
const NO_NAME: (ResponseCode, Vec<String>) = (ResponseCode::NXDomain, Vec::new());
const APP_REVERSE_V6: &str = "1.0.0.4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.1.0.1.0.1.0.1.0.d.f.ip6.arpa.";

#[test]
fn names_of_apps_devices_and_the_server() {
    assert_eq!(asked("calendar.t1.pal.", RecordType::A), good("10.86.64.1"));
    assert_eq!(asked("calendar.t1.pal.", RecordType::AAAA), good("fd01:101:101::4001"));
    assert_eq!(asked("laptop.t1.pal.", RecordType::A), good("10.86.1.2"));
    assert_eq!(asked("t1.pal.", RecordType::AAAA), good("fd01:101:101::1"));
    assert_eq!(asked("calendar.t1.pal.", RecordType::ANY).1.len(), 2);
}

#[test]
fn addresses_lead_back_to_names() {
    assert_eq!(asked("1.64.86.10.in-addr.arpa.", RecordType::PTR), good("calendar.t1.pal."));
    assert_eq!(asked("1.0.86.10.in-addr.arpa.", RecordType::PTR), good("t1.pal."));
    assert_eq!(asked(APP_REVERSE_V6, RecordType::PTR), good("calendar.t1.pal."));
    assert_eq!(asked("9.64.86.10.in-addr.arpa.", RecordType::PTR), NO_NAME);
    assert_eq!(asked("64.86.10.in-addr.arpa.", RecordType::PTR), NO_DATA);
    assert_eq!(asked("63.86.10.in-addr.arpa.", RecordType::PTR), NO_NAME);
}

#[test]
fn what_is_not_there_is_told_apart_from_what_has_other_data() {
    assert_eq!(asked("calendar.t1.pal.", RecordType::MX), NO_DATA);
    assert_eq!(asked("calendar.t1.pal.", RecordType::HTTPS), NO_DATA);
    assert_eq!(asked("nobody.t1.pal.", RecordType::A), NO_NAME);
    assert_eq!(asked("www.calendar.t1.pal.", RecordType::A), NO_NAME);
    assert!(asked("t1.pal.", RecordType::SOA).1[0].starts_with("t1.pal. hostmaster.t1.pal. "));
    assert_eq!(asked("t1.pal.", RecordType::NS), good("t1.pal."));
    let denied = ask(&query("nobody.t1.pal.", RecordType::A));
    assert_eq!(denied.authorities[0].name.to_string(), "t1.pal.");
    assert_eq!(denied.authorities[0].ttl, NEGATIVE_TTL_S);
}

#[test]
fn other_peoples_names_are_forwarded() {
    let others =
        ["example.org.", "pal.", ".", "t2.pal.", "at1.pal.", "1.64.87.10.in-addr.arpa.", "10.in-addr.arpa."];
    for name in others {
        let bytes = query(name, RecordType::A).to_vec().unwrap();
        assert_eq!(zone().answer(&bytes, Transport::Udp), Answer::Forward, "{name}");
    }
}

#[test]
fn the_case_of_the_question_comes_back_as_it_was() {
    let bytes = query("cAlEnDaR.T1.pAl.", RecordType::A).to_vec().unwrap();
    let Answer::Reply(reply) = zone().answer(&bytes, Transport::Udp) else { panic!("no reply") };
    assert_eq!(reply[12..bytes.len()], bytes[12..]);
    assert_eq!(Message::from_vec(&reply).unwrap().answers[0].data.to_string(), "10.86.64.1");
}

#[test]
fn edns_is_answered_in_kind() {
    let plain = ask(&query("t1.pal.", RecordType::A));
    assert!(plain.edns.is_none());
    let mut message = query("t1.pal.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_version(0).set_dnssec_ok(true);
    message.set_edns(edns.clone());
    let reply = ask(&message).edns.unwrap();
    assert_eq!((reply.max_payload(), reply.version(), reply.flags().dnssec_ok), (MAX_UDP_BYTES, 0, true));
    edns.set_version(1);
    message.set_edns(edns);
    let reply = ask(&message);
    // Code 16 is BADVERS here; it is BADSIG in TSIG's own field only.
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert!(reply.answers.is_empty());
}

#[test]
fn what_we_do_not_do_is_refused_as_the_rfcs_say() {
    let code = |bytes: &[u8]| match zone().answer(bytes, Transport::Udp) {
        Answer::Reply(reply) => Some(u16::from(reply[3] & 0x0f)),
        Answer::Forward => panic!("forwarded"),
        Answer::Ignore => None,
    };
    let good = query("t1.pal.", RecordType::A).to_vec().unwrap();
    assert_eq!(code(&good), Some(0));
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        code(&bytes)
    };
    let (form_err, not_imp, refused) = (Some(1), Some(4), Some(5));
    assert_eq!(changed(2, 0x81), None, "a response");
    assert_eq!(changed(2, 0x29), not_imp, "an update");
    assert_eq!(changed(5, 0), form_err, "no question");
    assert_eq!(changed(5, 2), form_err, "two questions");
    assert_eq!(changed(11, 1), form_err, "a record that is not there");
    assert_eq!(changed(good.len() - 1, 3), refused, "class CHAOS");
    assert_eq!(code(&query("t1.pal.", RecordType::AXFR).to_vec().unwrap()), refused);
    assert_eq!(code(&good[..good.len() - 1]), form_err);
    assert_eq!(code(&good[..11]), None);
    assert_eq!(code(&[]), None);
}

#[test]
fn what_does_not_fit_is_cut_short_and_says_so() {
    let mut reply = Message::response(1, OpCode::Query);
    let name = DnsName::from_ascii("t1.pal.").unwrap();
    reply.add_query(Query::query(name.clone(), RecordType::A));
    for last in 0..40 {
        reply.add_answer(Record::from_rdata(name.clone(), TTL_S, RData::A(A::new(10, 86, 64, last))));
    }
    let whole = encode(&reply, usize::from(u16::MAX)).unwrap();
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 40);
    let cut = encode(&reply, usize::from(MIN_UDP_BYTES)).unwrap();
    let cut = Message::from_vec(&cut).unwrap();
    assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.queries.len() == 1);
    let mut asking = query("t1.pal.", RecordType::A);
    assert_eq!(size_limit(&asking, Transport::Udp), 512);
    assert_eq!(size_limit(&asking, Transport::Tcp), 65_535);
    for (offered, limit) in [(0, 512), (900, 900), (65_535, 1232)] {
        let mut edns = Edns::new();
        edns.set_max_payload(offered);
        asking.set_edns(edns);
        assert_eq!(size_limit(&asking, Transport::Udp), limit);
    }
}

#[test]
fn the_longest_names_still_get_an_answer() {
    let mut plan = household(1);
    plan.domain = vec!["x".repeat(60); 3].join(".");
    plan.machines[0].name = "y".repeat(63).parse().unwrap();
    let zone = Zone::from_plan(&plan).unwrap();
    let name = format!("{}.{}.", plan.machines[0].name, plan.domain);
    for (name, kind) in [(name.as_str(), RecordType::TXT), (APP_REVERSE_V6, RecordType::PTR)] {
        let bytes = query(name, kind).to_vec().unwrap();
        let Answer::Reply(reply) = zone.answer(&bytes, Transport::Udp) else { panic!("no reply") };
        assert!(!Message::from_vec(&reply).unwrap().metadata.truncation);
    }
}

/// Whatever came in: a reply is well-formed, bears the asker's id, and fits.
fn check(bytes: &[u8]) -> Answer {
    let zone = zone();
    for transport in [Transport::Udp, Transport::Tcp] {
        if let Answer::Reply(reply) = zone.answer(bytes, transport) {
            let parsed = Message::from_vec(&reply).expect("a reply that parses");
            assert_eq!(reply[..2], bytes[..2]);
            assert_eq!(parsed.metadata.message_type, hickory_proto::op::MessageType::Response);
            assert!(transport == Transport::Tcp || reply.len() <= usize::from(MAX_UDP_BYTES));
            assert_eq!(zone.answer(&reply, transport), Answer::Ignore);
        }
    }
    zone.answer(bytes, Transport::Udp)
}

/// The corpus: one message a file; its name's first word says what must come of it.
#[test]
fn the_corpus_gets_the_answers_that_its_names_say() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/dns");
    let mut seen = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let outcome = match check(&fs::read(&path).unwrap()) {
            Answer::Ignore => "ignore",
            Answer::Forward => "forward",
            Answer::Reply(reply) => match reply[3] & 0x0f {
                0 if reply.len() > HEADER_BYTES => "answer",
                1 => "formerr",
                3 => "nxdomain",
                4 => "notimp",
                5 => "refused",
                _ => "other",
            },
        };
        assert_eq!(name.split('-').next(), Some(outcome), "{name}");
        seen += 1;
    }
    assert!(seen >= 20, "only {seen} files");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2_000) })]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        check(&bytes);
    }

    /// A sound header in front: the parser gets further.
    #[test]
    fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..300), records in any::<[u8; 6]>()) {
        let mut bytes = vec![0xab, 0xcd, 1, 0, 0, 1];
        bytes.extend(records.map(|count| count % 3));
        bytes.extend(body);
        check(&bytes);
    }

    #[test]
    fn no_mutation_of_a_good_query_makes_it_panic(
        edns in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        length in any::<prop::sample::Index>(),
    ) {
        let mut message = query("calendar.t1.pal.", RecordType::AAAA);
        if edns {
            message.set_edns(Edns::new());
        }
        let mut bytes = message.to_vec().unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(length.index(2 * bytes.len()).max(12));
        check(&bytes);
    }
}
