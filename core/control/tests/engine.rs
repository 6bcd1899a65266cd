//! The engine against a store that can refuse and a host played by hand.

use cloudpal_compute::{
    image::ImageConfig,
    life::{Command, Event as LifeEvent},
};
use cloudpal_control::{
    effect::Effect,
    engine::{Engine, Settings},
    event::{Event, Image},
    request::{Accepted, AppKind, AppManifest, Request},
    view::OperationState,
};
use cloudpal_model::{
    Kind, MachineId, Name, Now, OperationId, Problem, TenantId,
    store::{Change, Store},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// Records that outlive the engine, and whether writing fails.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    records: BTreeMap<String, Vec<u8>>,
    failing: bool,
}

impl Disk {
    fn fail(&self, failing: bool) {
        self.0.lock().unwrap().failing = failing;
    }

    fn records(&self) -> BTreeMap<String, Vec<u8>> {
        self.0.lock().unwrap().records.clone()
    }

    fn put(&self, key: &str, value: &str) {
        self.0.lock().unwrap().records.insert(key.to_owned(), value.as_bytes().to_vec());
    }
}

impl Store for Disk {
    fn load(&self) -> Result<Vec<(String, Vec<u8>)>, Problem> {
        Ok(self.records().into_iter().collect())
    }

    fn commit(&mut self, batch: &[Change]) -> Result<(), Problem> {
        let mut disk = self.0.lock().unwrap();
        if disk.failing {
            return Err(Problem::new(Kind::DiskFull, "the disk is full", "free some space"));
        }
        for change in batch {
            match change {
                Change::Put { key, value } => disk.records.insert(key.clone(), value.clone()),
                Change::Delete { key } => disk.records.remove(key),
            };
        }
        Ok(())
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn at(seconds: u64) -> Now {
    Now { mono_us: seconds * 1_000_000, wall_ms: 1_800_000_000_000 + seconds * 1000 }
}

fn open(disk: &Disk) -> Result<Engine<Disk>, Problem> {
    let settings = Settings {
        domain_suffix: "pal".to_owned(),
        endpoint_host: "192.0.2.1".to_owned(),
        first_port: 51820,
    };
    Engine::open(disk.clone(), settings, at(0))
}

fn ask(engine: &mut Engine<Disk>, request: Request) -> Result<Accepted, Problem> {
    let mut next = engine.operations(1).first().map_or(0, |operation| operation.id.0) as u8;
    engine.request(at(1), "test", request, &mut |bytes| {
        for byte in bytes {
            next = next.wrapping_mul(31).wrapping_add(7);
            *byte = next;
        }
    })
}

fn tenant_add(text: &str) -> Request {
    Request::TenantAdd { name: name(text), subnet_v4: None, prefix_v6: None }
}

fn device_add(device: &str) -> Request {
    Request::DeviceAdd { tenant: name("ada"), name: name(device), exit: true }
}

fn app_install(app: &str) -> Request {
    Request::AppInstall { tenant: name("ada"), name: name(app), app: AppManifest::new("oci:/calendar") }
}

fn image() -> Image {
    let entrypoint = vec!["/bin/radicale".to_owned()];
    let env = vec!["PATH=/bin".to_owned(), "A=image".to_owned()];
    let config = ImageConfig { entrypoint, env, exposed_tcp_ports: vec![5232], ..ImageConfig::default() };
    Image { digest: "sha256:00".to_owned(), config, rootfs_bytes: 7, has_kernel: false }
}

/// A tenant, a device and an app, whose network is applied.
fn lived_in(disk: &Disk) -> Engine<Disk> {
    let mut engine = open(disk).unwrap();
    ask(&mut engine, tenant_add("ada")).unwrap();
    ask(&mut engine, device_add("phone")).unwrap();
    let Accepted::Started { operation, .. } = ask(&mut engine, app_install("cal")).unwrap() else { panic!() };
    engine.event(at(1), Event::ImageReady { operation, image: image() });
    // One for the tenant, and one for what came while that was under way.
    engine.event(at(1), Event::NetApplied { tenant: TenantId(1) });
    engine.event(at(1), Event::NetApplied { tenant: TenantId(1) });
    engine
}

fn machine(engine: &mut Engine<Disk>, second: u64, event: LifeEvent) {
    engine.event(at(second), Event::Machine { machine: MachineId(1), event });
}

fn commands(effects: &[Effect]) -> Vec<Command> {
    let command = |effect: &Effect| match effect {
        Effect::Machine { command, .. } => Some(command.clone()),
        _ => None,
    };
    effects.iter().filter_map(command).collect()
}

fn state(engine: &Engine<Disk>) -> String {
    engine.view().tenants[0].apps[0].state.clone()
}

#[test]
fn a_packet_boots_a_new_app_and_its_facts_are_complete() {
    let mut engine = lived_in(&Disk::default());
    let effects = engine.take_effects();
    assert!(matches!(effects.last(), Some(Effect::WatchTap { machine: MachineId(1) })), "{effects:?}");
    assert_eq!(commands(&effects), []);
    engine.event(at(2), Event::PacketWaiting { machine: MachineId(1) });
    assert_eq!(commands(&engine.take_effects()), [Command::Boot]);
    machine(&mut engine, 3, LifeEvent::Started);
    assert_eq!(state(&engine), "awake");
    let facts = engine.facts(MachineId(1)).unwrap();
    assert_eq!((facts.digest.as_str(), facts.memory_mib, facts.vcpus), ("sha256:00", 256, 1));
    assert_eq!(facts.guest.hostname, "cal");
    assert_eq!(facts.guest.process.argv, ["/bin/radicale"]);
    assert_eq!(facts.guest.ready_tcp_ports, [5232]);
    let app = &engine.view().tenants[0].apps[0];
    assert_eq!((facts.guest.network.ipv4, facts.guest.network.ipv6), (app.v4, app.v6));
    assert_eq!(facts.guest.network.search_domain, "ada.pal");
}

#[test]
fn a_store_that_refuses_leaves_everything_as_it_was() {
    let disk = Disk::default();
    let mut engine = lived_in(&disk);
    engine.take_effects();
    let (tenant, app, phone) = (|| name("ada"), || name("cal"), || name("phone"));
    let requests = [
        tenant_add("bob"),
        device_add("tablet"),
        Request::DeviceRevoke { tenant: tenant(), name: phone() },
        app_install("notes"),
        Request::AppRemove { tenant: tenant(), name: app() },
        Request::MachineStart { tenant: tenant(), name: app() },
        Request::MachineStop { tenant: tenant(), name: app() },
        Request::MachineSleep { tenant: tenant(), name: app() },
    ];
    for request in requests {
        let (view, log, records) = (engine.view(), engine.operations(100), disk.records());
        disk.fail(true);
        assert_eq!(ask(&mut engine, request.clone()).unwrap_err().kind, Kind::DiskFull);
        assert_eq!((engine.view(), engine.operations(100)), (view, log), "{request:?}");
        assert_eq!(engine.take_effects().len(), 0, "{request:?}");
        disk.fail(false);
        assert_eq!(disk.records(), records, "{request:?}");
    }
}

#[test]
fn an_installation_whose_end_cannot_be_written_fails_and_leaves_no_app() {
    let disk = Disk::default();
    let mut engine = open(&disk).unwrap();
    ask(&mut engine, tenant_add("ada")).unwrap();
    let Accepted::Started { operation, .. } = ask(&mut engine, app_install("cal")).unwrap() else { panic!() };
    disk.fail(true);
    engine.event(at(2), Event::ImageReady { operation, image: image() });
    assert_eq!(engine.view().tenants[0].apps, []);
    let ended = engine.operation(operation).unwrap().state;
    assert!(matches!(&ended, OperationState::Failed { problem } if problem.kind == Kind::DiskFull));
    assert!(engine.store_trouble().contains("full"));
    disk.fail(false);
    engine.tick(at(60));
    assert_eq!(
        open(&disk).unwrap().operation(operation).unwrap().state,
        ended,
        "written when it was possible"
    );
}

#[test]
fn an_image_without_anything_to_run_or_that_fails_leaves_no_app() {
    let disk = Disk::default();
    let mut engine = open(&disk).unwrap();
    ask(&mut engine, tenant_add("ada")).unwrap();
    let empty = Image { config: ImageConfig::default(), ..image() };
    let problem = Problem::new(Kind::BadImage, "a digest is wrong", "build it again");
    let ends: [&dyn Fn(OperationId) -> Event; 2] =
        [&|operation| Event::ImageReady { operation, image: empty.clone() }, &|operation| {
            Event::ImageFailed { operation, problem: problem.clone() }
        }];
    for end in ends {
        let Accepted::Started { operation, .. } = ask(&mut engine, app_install("cal")).unwrap() else {
            panic!()
        };
        engine.event(at(2), end(operation));
        assert_eq!(engine.view().tenants[0].apps, []);
        let state = engine.operation(operation).unwrap().state;
        assert!(matches!(state, OperationState::Failed { problem } if problem.kind == Kind::BadImage));
    }
    assert!(!disk.records().keys().any(|key| key.starts_with("app/") || key.starts_with("install/")));
}

#[test]
fn after_a_restart_everything_is_asked_for_and_an_import_begins_again() {
    let disk = Disk::default();
    let mut engine = lived_in(&disk);
    let Accepted::Started { operation, machine: second } = ask(&mut engine, app_install("notes")).unwrap()
    else {
        panic!()
    };
    drop(engine);
    let mut engine = open(&disk).unwrap();
    let effects = engine.take_effects();
    let [
        Effect::ApplyNet { plan },
        Effect::Machine { machine: MachineId(1), command: Command::Adopt },
        Effect::ImportImage { operation: again, .. },
    ] = effects.as_slice()
    else {
        panic!("{effects:?}")
    };
    assert_eq!((plan.devices.len(), plan.machines.len(), *again), (1, 1, operation));
    assert_eq!(state(&engine), "adopting");
    machine(&mut engine, 2, LifeEvent::NothingToAdopt { has_snapshot: true });
    assert_eq!(engine.take_effects().len(), 0, "nothing is watched before the network is there");
    engine.event(at(2), Event::NetApplied { tenant: TenantId(1) });
    assert!(matches!(engine.take_effects().as_slice(), [Effect::WatchTap { .. }]));
    engine.event(at(2), Event::ImageReady { operation, image: image() });
    let apps = &engine.view().tenants[0].apps;
    assert_eq!(apps.iter().map(|app| app.machine).collect::<Vec<_>>(), [MachineId(1), second]);
}

#[test]
fn a_device_is_called_where_it_was_seen_last_also_after_a_restart() {
    let disk = Disk::default();
    let mut engine = lived_in(&disk);
    let public_key = engine.view().tenants[0].devices[0].public_key;
    let endpoint = "198.51.100.7:4242".parse().unwrap();
    let log = engine.operations(100).len();
    let before = disk.records();
    for second in 2..5 {
        engine.event(at(second), Event::DeviceSeen { tenant: TenantId(1), public_key, endpoint });
    }
    assert_eq!(disk.records(), before, "not at once");
    engine.tick(at(20));
    assert_eq!(engine.operations(100).len(), log, "nobody asked for it");
    let mut engine = open(&disk).unwrap();
    let effects = engine.take_effects();
    let Some(Effect::ApplyNet { plan }) = effects.first() else { panic!("{effects:?}") };
    assert_eq!(plan.devices[0].last_endpoint, Some(endpoint));
}

#[test]
fn no_private_key_of_a_device_is_stored_and_no_id_is_given_out_twice() {
    let disk = Disk::default();
    let mut engine = lived_in(&disk);
    let Accepted::DeviceAdded { profile, .. } = ask(&mut engine, device_add("tablet")).unwrap() else {
        panic!()
    };
    let key = profile.private_key.to_base64();
    assert!(profile.conf.contains(&key));
    for (record, value) in disk.records() {
        assert!(!String::from_utf8_lossy(&value).contains(&key), "{record}");
    }
    let first =
        engine.view().tenants[0].devices.iter().find(|device| device.name == name("tablet")).unwrap().id;
    ask(&mut engine, Request::DeviceRevoke { tenant: name("ada"), name: name("tablet") }).unwrap();
    let mut engine = open(&disk).unwrap();
    ask(&mut engine, device_add("tablet")).unwrap();
    let second =
        engine.view().tenants[0].devices.iter().find(|device| device.name == name("tablet")).unwrap().id;
    assert!(second > first);
}

#[test]
fn a_revoked_device_is_no_part_of_the_next_plan() {
    let mut engine = lived_in(&Disk::default());
    engine.take_effects();
    ask(&mut engine, Request::DeviceRevoke { tenant: name("ada"), name: name("phone") }).unwrap();
    let effects = engine.take_effects();
    let [Effect::ApplyNet { plan }] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(plan.devices, []);
}

/// The app `cal` runs, and was just removed.
fn removing(disk: &Disk) -> Engine<Disk> {
    let mut engine = lived_in(disk);
    engine.event(at(2), Event::PacketWaiting { machine: MachineId(1) });
    machine(&mut engine, 2, LifeEvent::Started);
    engine.take_effects();
    ask(&mut engine, Request::AppRemove { tenant: name("ada"), name: name("cal") }).unwrap();
    assert_eq!(commands(&engine.take_effects()), [Command::Kill]);
    engine
}

#[test]
fn a_removed_tenant_waits_for_its_last_machine_and_nobody_else_does() {
    let disk = Disk::default();
    let mut engine = removing(&disk);
    ask(&mut engine, Request::TenantRemove { name: name("ada") }).unwrap();
    assert_eq!(engine.view().tenants, []);
    let effects = engine.take_effects();
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::RemoveNet { .. })), "{effects:?}");
    let again = ask(&mut engine, Request::TenantRemove { name: name("ada") }).unwrap_err();
    assert_eq!(again.kind, Kind::NotFound);
    drop(engine);

    let mut engine = open(&disk).unwrap();
    assert_eq!(engine.view().tenants, []);
    assert_eq!(engine.tenants(), [TenantId(1)], "its namespace holds a machine yet");
    assert_eq!(commands(&engine.take_effects()), [Command::Adopt]);
    machine(&mut engine, 3, LifeEvent::Adopted);
    assert_eq!(commands(&engine.take_effects()), [Command::Kill]);
    machine(&mut engine, 3, LifeEvent::Exited { clean: true, why: "killed".to_owned() });
    let effects = engine.take_effects();
    let [Effect::RemoveMachine { machine: MachineId(1) }, Effect::RemoveNet { tenant: TenantId(1) }] =
        effects.as_slice()
    else {
        panic!("{effects:?}");
    };
    engine.event(at(4), Event::MachineRemoved { machine: MachineId(1) });
    engine.event(at(5), Event::NetRemoved { tenant: TenantId(1) });
    assert_eq!(open(&disk).unwrap().take_effects().len(), 0);
    ask(&mut engine, Request::TenantAdd { name: name("ada"), subnet_v4: None, prefix_v6: None }).unwrap();
}

#[test]
fn removing_an_app_ends_its_vmm_first_and_is_finished_after_a_restart() {
    let disk = Disk::default();
    let engine = removing(&disk);
    assert_eq!(engine.view().tenants[0].apps, []);
    drop(engine);

    let mut engine = open(&disk).unwrap();
    assert_eq!(commands(&engine.take_effects()), [Command::Adopt]);
    machine(&mut engine, 3, LifeEvent::Adopted);
    assert_eq!(commands(&engine.take_effects()), [Command::Kill]);
    machine(&mut engine, 3, LifeEvent::Exited { clean: false, why: "killed".to_owned() });
    assert!(matches!(engine.take_effects().as_slice(), [Effect::RemoveMachine { machine: MachineId(1) }]));
    engine.event(at(4), Event::MachineRemoved { machine: MachineId(1) });
    ask(&mut engine, Request::TenantRemove { name: name("ada") }).unwrap();
    assert!(matches!(engine.take_effects().as_slice(), [Effect::RemoveNet { tenant: TenantId(1) }]));
    let again = open(&disk).unwrap().take_effects();
    assert!(
        matches!(again.as_slice(), [Effect::RemoveNet { tenant: TenantId(1) }]),
        "until it was done: {again:?}"
    );
    engine.event(at(5), Event::NetRemoved { tenant: TenantId(1) });
    assert_eq!(open(&disk).unwrap().take_effects().len(), 0);
}

#[test]
fn a_network_that_fails_is_tried_again_with_growing_pauses_and_its_trouble_is_shown() {
    let mut engine = open(&Disk::default()).unwrap();
    ask(&mut engine, tenant_add("ada")).unwrap();
    let mut pauses = Vec::new();
    let mut second = 1;
    for _ in 0..8 {
        assert!(matches!(engine.take_effects().as_slice(), [Effect::ApplyNet { .. }]));
        let problem = Problem::new(Kind::Taken, "UDP port 51820 is taken", "free it");
        engine.event(at(second), Event::NetFailed { tenant: TenantId(1), problem });
        assert!(engine.view().tenants[0].network_trouble.contains("51820"));
        let due = engine.next_deadline().unwrap() / 1_000_000;
        pauses.push(due - second);
        second = due;
        engine.tick(at(second));
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    engine.event(at(second), Event::NetApplied { tenant: TenantId(1) });
    assert_eq!(engine.view().tenants[0].network_trouble, "");
}

#[test]
fn a_unikernel_gets_its_addresses_on_the_command_line_and_must_bring_a_kernel() {
    let mut engine = open(&Disk::default()).unwrap();
    ask(&mut engine, tenant_add("ada")).unwrap();
    for has_kernel in [false, true] {
        let app = AppManifest {
            kind: AppKind::Unikernel,
            argv: vec![
                "netdev.ip={ipv4}/32:{gateway_ipv4}".to_owned(),
                "--".to_owned(),
                "{hostname}".to_owned(),
            ],
            ..AppManifest::new("oci:/web")
        };
        let install = Request::AppInstall { tenant: name("ada"), name: name("web"), app };
        let Accepted::Started { operation, machine } = ask(&mut engine, install).unwrap() else { panic!() };
        engine.event(at(1), Event::ImageReady { operation, image: Image { has_kernel, ..image() } });
        let facts = engine.facts(machine);
        if has_kernel {
            let facts = facts.unwrap();
            let ipv4 = facts.guest.network.ipv4;
            assert_eq!(facts.command_line.unwrap(), format!("netdev.ip={ipv4}/32:169.254.0.1 -- web"));
        } else {
            assert_eq!(facts, None);
            let failed = engine.operation(operation).unwrap().state;
            let OperationState::Failed { problem } = failed else { panic!("{failed:?}") };
            assert!(problem.to_string().contains("/unikraft/bin/kernel"), "{problem}");
        }
    }
}

#[test]
fn a_change_is_pending_until_a_plan_that_holds_it_was_applied() {
    let mut engine = open(&Disk::default()).unwrap();
    ask(&mut engine, tenant_add("ada")).unwrap();
    let pending = |engine: &Engine<Disk>| engine.view().tenants[0].network_pending;
    let applied = |engine: &mut Engine<Disk>, second| {
        engine.event(at(second), Event::NetApplied { tenant: TenantId(1) });
    };
    applied(&mut engine, 1);
    assert!(!pending(&engine));
    ask(&mut engine, Request::DeviceAdd { tenant: name("ada"), name: name("phone"), exit: false }).unwrap();
    // While the plan with the phone is under way, the phone is revoked.
    ask(&mut engine, Request::DeviceRevoke { tenant: name("ada"), name: name("phone") }).unwrap();
    applied(&mut engine, 2);
    assert!(pending(&engine), "the plan that was applied still has the phone");
    applied(&mut engine, 3);
    assert!(!pending(&engine));
}

#[test]
fn a_stopped_and_a_killed_machine_stay_so_after_a_restart_and_the_kill_is_in_the_log() {
    let disk = Disk::default();
    let mut engine = lived_in(&disk);
    for crash in 0..5 {
        let second = 100 + 60 * crash;
        engine.event(at(second), Event::PacketWaiting { machine: MachineId(1) });
        machine(&mut engine, second, LifeEvent::Started);
        machine(&mut engine, second + 30, LifeEvent::Exited { clean: false, why: "bang".to_owned() });
    }
    assert_eq!(state(&engine), "killed");
    let newest = engine.operations(1).remove(0);
    assert_eq!((newest.actor.as_str(), newest.undo.as_str()), ("daemon", "machine start ada/cal"));
    assert!(newest.what.contains("bang"), "{}", newest.what);
    let mut engine = open(&disk).unwrap();
    machine(&mut engine, 2, LifeEvent::NothingToAdopt { has_snapshot: false });
    assert_eq!(state(&engine), "killed");
    ask(&mut engine, Request::MachineStop { tenant: name("ada"), name: name("cal") }).unwrap();
    let mut engine = open(&disk).unwrap();
    machine(&mut engine, 2, LifeEvent::NothingToAdopt { has_snapshot: false });
    assert_eq!(state(&engine), "stopped");
}

#[test]
fn what_cannot_be_is_refused_with_a_mend_and_not_logged() {
    let mut engine = lived_in(&Disk::default());
    let manifest = |change: &dyn Fn(&mut AppManifest)| {
        let mut app = AppManifest::new("oci:/x");
        change(&mut app);
        Request::AppInstall { tenant: name("ada"), name: name("new"), app }
    };
    let subnet =
        |v4: &str| Request::TenantAdd { name: name("bob"), subnet_v4: v4.parse().ok(), prefix_v6: None };
    let cases = [
        (tenant_add("ada"), Kind::Taken),
        (subnet("8.8.0.0"), Kind::Invalid),
        (subnet("10.1.2.0"), Kind::Invalid),
        (Request::TenantRemove { name: name("bob") }, Kind::NotFound),
        (Request::TenantRemove { name: name("ada") }, Kind::Refused),
        (device_add("phone"), Kind::Taken),
        (device_add("cal"), Kind::Taken),
        (app_install("phone"), Kind::Taken),
        (app_install("cal"), Kind::Taken),
        (Request::DeviceRevoke { tenant: name("ada"), name: name("cal") }, Kind::NotFound),
        (Request::AppRemove { tenant: name("ada"), name: name("phone") }, Kind::NotFound),
        (Request::MachineStart { tenant: name("bob"), name: name("cal") }, Kind::NotFound),
        (manifest(&|app| app.image.clear()), Kind::Invalid),
        (manifest(&|app| app.memory_mib = 1), Kind::Invalid),
        (manifest(&|app| app.vcpus = 0), Kind::Invalid),
        (manifest(&|app| app.disk_mib = 0), Kind::Invalid),
        (manifest(&|app| app.idle_timeout_ms = 1), Kind::Invalid),
        (manifest(&|app| app.env = vec!["NOVALUE".to_owned()]), Kind::Invalid),
        (manifest(&|app| app.argv = vec!["a\0b".to_owned()]), Kind::Invalid),
        (manifest(&|app| app.argv = vec!["x".repeat(200_000)]), Kind::Invalid),
        (manifest(&|app| app.ready_tcp_ports = vec![0]), Kind::Invalid),
    ];
    let (view, log) = (engine.view(), engine.operations(100));
    for (request, kind) in cases {
        let problem = ask(&mut engine, request.clone()).unwrap_err();
        assert_eq!(problem.kind, kind, "{request:?}: {problem}");
        assert!(!problem.mend.is_empty(), "{request:?}: {problem}");
    }
    assert_eq!((engine.view(), engine.operations(100)), (view, log));
}

#[test]
fn a_tenant_is_full_at_its_limit_and_says_so() {
    let mut engine = lived_in(&Disk::default());
    for device in 1..250 {
        ask(&mut engine, device_add(&format!("d-{device}"))).unwrap();
    }
    let problem = ask(&mut engine, device_add("one-more")).unwrap_err();
    assert!(problem.what.contains("250 devices"), "{problem}");
}

#[test]
fn a_damaged_or_foreign_record_is_named_and_nothing_is_guessed() {
    for (key, value) in [
        ("meta", "{"),
        ("tenant/0000000001", "{}"),
        ("app/0000000001", "null"),
        ("what-is-this", "1"),
        ("meta", r#"{"format":99,"next_tenant":1,"next_device":1,"next_machine":1,"next_operation":1}"#),
    ] {
        let disk = Disk::default();
        drop(lived_in(&disk));
        disk.put(key, value);
        let before = disk.records();
        let problem = open(&disk).err().unwrap_or_else(|| panic!("{key} = {value} was taken"));
        assert!(!problem.mend.is_empty(), "{problem}");
        assert!(problem.what.contains(key) || problem.what.contains("format 99"), "{problem}");
        assert_eq!(disk.records(), before);
    }
}

#[test]
fn removing_an_app_that_is_being_installed_calls_the_installation_off() {
    let mut engine = lived_in(&Disk::default());
    let Accepted::Started { operation, .. } = ask(&mut engine, app_install("notes")).unwrap() else {
        panic!()
    };
    assert_eq!(engine.view().tenants[0].apps[1].state, "installing");
    ask(&mut engine, Request::AppRemove { tenant: name("ada"), name: name("notes") }).unwrap();
    engine.event(at(2), Event::ImageReady { operation, image: image() });
    assert_eq!(engine.view().tenants[0].apps.len(), 1);
    assert!(matches!(engine.operation(operation).unwrap().state, OperationState::Failed { .. }));
}

/// The records of format 1 as a host wrote them. Never changed: stores in this format exist.
const STORE_V1: &str = include_str!("store-v1.json");

#[test]
fn a_store_of_format_1_is_read_as_it_was_written() {
    let disk = Disk::default();
    let records: BTreeMap<String, serde_json::Value> = serde_json::from_str(STORE_V1).unwrap();
    for (key, value) in &records {
        disk.put(key, &value.to_string());
    }
    let engine = open(&disk).unwrap();
    let tenant = &engine.view().tenants[0];
    assert_eq!((tenant.name.as_str(), tenant.domain.as_str(), tenant.listen_port), ("ada", "ada.pal", 51820));
    assert_eq!(tenant.devices[0].name.as_str(), "phone");
    assert!(tenant.devices[0].exit);
    let app = &tenant.apps[0];
    assert_eq!(
        (app.name.as_str(), app.digest.as_str(), app.ports.as_slice()),
        ("cal", "sha256:00", &[5232][..])
    );
    assert_eq!(engine.operations(10).len(), 3);
    // Today's engine still writes the same, record by record, and since then whose an operation is.
    let fresh = Disk::default();
    drop(lived_in(&fresh));
    let written = fresh.records();
    assert_eq!(written.keys().collect::<Vec<_>>(), records.keys().collect::<Vec<_>>());
    for (key, value) in &written {
        let mut value: serde_json::Value = serde_json::from_slice(value).unwrap();
        if key.starts_with("operation/") {
            assert_eq!(value.as_object_mut().unwrap().remove("tenant"), Some(1.into()), "{key}");
        }
        assert_eq!(value, records[key], "{key}");
    }
}
