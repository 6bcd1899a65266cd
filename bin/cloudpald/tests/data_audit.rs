//! What is asked of a tenant's cloud is in its own log, once, also over a crash; a log is a bus; and bodies and keys
//! may be as long and as odd as the engine takes them.

mod data_kit;

use cloudpal_api::{
    AUDIT_CORE, BlockQuery, Client, DataCursorMove, DataKind, DataQuota, EntryQuery, Operation,
    OperationState,
};
use cloudpal_model::Kind;
use data_kit::{Host, add, fill, name};
use std::time::{Duration, Instant};

fn logged(client: &Client, until: &str) -> Vec<(String, OperationState)> {
    let (ada, audit) = (name("ada"), name(AUDIT_CORE));
    let started = Instant::now();
    loop {
        let mut found = Vec::new();
        let read = client.core_blocks(&ada, &audit, &BlockQuery::default(), &mut |block| {
            let operation: Operation = serde_json::from_slice(block).unwrap();
            found.push((operation.what, operation.state));
            Ok(())
        });
        if read.is_ok()
            && found.iter().any(|(what, state)| what == until && *state != OperationState::Running)
        {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{until:?} is not in the log: {found:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_tenants_log_has_each_operation_once_also_over_crashes() {
    let Some(mut host) = Host::make() else { return };
    let client = host.client();
    fill(&client);
    let ada = name("ada");
    client.data_quota(&ada, &DataQuota { quota_bytes: Some(1 << 30) }).unwrap();
    client.data_share(&ada, &name("photos")).unwrap();
    client.data_remove(&ada, &name("paths")).unwrap();
    let before = logged(&client, "trie remove ada/paths");
    for wanted in [
        "tenant add ada",
        "drive create ada/photos",
        "data quota ada 1073741824 B",
        "drive share ada/photos",
        "trie remove ada/paths",
    ] {
        let ends = before.iter().filter(|(what, state)| what == wanted && *state == OperationState::Done);
        assert_eq!(ends.count(), 1, "{wanted}: {before:?}");
    }
    let taken: Vec<_> = before.iter().filter(|(what, _)| what == "bee create ada/photos").collect();
    assert_eq!(taken.last().unwrap().1, OperationState::Failed);

    for round in 0..2 {
        host.end("-KILL");
        host.start();
        let what = format!("core create ada/log-{round}");
        client.data_add(&ada, &add(&format!("log-{round}"), DataKind::Core)).unwrap();
        let now = logged(&client, &what);
        assert_eq!(now[..before.len()], before[..], "what was written stays as it is");
        let news: Vec<&str> = now[before.len()..].iter().map(|(what, _)| what.as_str()).collect();
        assert!(news.iter().all(|what| what.starts_with("core create ada/log-")), "{news:?}");
    }
    // Nobody else writes it.
    let audit = name(AUDIT_CORE);
    assert_eq!(client.core_append(&ada, &audit, b"x".to_vec()).unwrap_err().kind, Kind::Refused);
    assert_eq!(client.data_remove(&ada, &audit).unwrap_err().kind, Kind::Refused);
    client.tenant_remove(&ada).unwrap();
    let (data, keys) = (host.path("state/data"), host.path("state/keys"));
    let started = Instant::now();
    while [&data, &keys]
        .into_iter()
        .any(|dir| dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()))
    {
        assert!(started.elapsed() < Duration::from_secs(60), "a removed tenant's data is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_consumer_goes_on_where_it_was() {
    let Some(mut host) = Host::make() else { return };
    let client = host.client();
    fill(&client);
    let (ada, journal, mailer) = (name("ada"), name("journal"), name("mailer"));
    let first = client.cursor(&ada, &journal, &mailer).unwrap();
    assert_eq!((first.next, first.behind, first.cut), (0, 3, false));
    client.cursor_move(&ada, &journal, &mailer, &DataCursorMove { fork: 0, next: 2 }).unwrap();
    host.end("-KILL");
    host.start();
    assert_eq!(client.cursor(&ada, &journal, &mailer).unwrap().next, 2);
    assert_eq!(client.cursor(&ada, &journal, &name("other")).unwrap().next, 0);
    let beyond = client.cursor_move(&ada, &journal, &mailer, &DataCursorMove { fork: 0, next: 4 });
    assert_eq!(beyond.unwrap_err().kind, Kind::Invalid);
    client.core_cut(&ada, &journal, &cloudpal_api::BlockCut::Truncate { length: 1 }).unwrap();
    let cut = client.cursor(&ada, &journal, &mailer).unwrap();
    assert_eq!((cut.next, cut.cut, cut.fork), (1, true, 1));
    let stale = client.cursor_move(&ada, &journal, &mailer, &DataCursorMove { fork: 0, next: 1 });
    assert_eq!(stale.unwrap_err().kind, Kind::Refused);
    assert!(!client.cursor_move(&ada, &journal, &mailer, &DataCursorMove { fork: 1, next: 1 }).unwrap().cut);
}

#[test]
fn long_blocks_and_odd_keys() {
    let Some(host) = Host::make() else { return };
    let client = host.client();
    fill(&client);
    let (ada, contacts) = (name("ada"), name("contacts"));
    let long = vec![7; cloudpal_api::MAX_BLOCK_BYTES];
    let version = client.core_append(&ada, &name("journal"), long.clone()).unwrap().version;
    assert!(client.core_block(&ada, &name("journal"), version - 1).unwrap() == long);
    let longer = client.core_append(&ada, &name("journal"), vec![7; long.len() + 1]).unwrap_err();
    assert!(longer.what.contains("longer"), "{longer}");
    client.entry_put(&ada, &contacts, "big", vec![1; 5 << 20]).unwrap();
    assert_eq!(client.entry(&ada, &contacts, "big", None).unwrap().len(), 5 << 20);

    let odd = [0x00, 0xff, 0x80];
    client.entry_put(&ada, &contacts, odd, b"odd".to_vec()).unwrap();
    assert_eq!(client.entry(&ada, &contacts, odd, None).unwrap(), b"odd");
    let query = EntryQuery { hex: true, prefix: Some("00ff".into()), ..EntryQuery::default() };
    assert_eq!(client.entries(&ada, &contacts, &query).unwrap().entries[0].key_base64, "AP+A");
    let query = EntryQuery { hex: true, prefix: Some("0".into()), ..EntryQuery::default() };
    assert_eq!(client.entries(&ada, &contacts, &query).unwrap_err().kind, Kind::Invalid);
    client.entry_delete(&ada, &contacts, odd).unwrap();
    assert_eq!(client.entry(&ada, &contacts, odd, None).unwrap_err().kind, Kind::NotFound);
}
