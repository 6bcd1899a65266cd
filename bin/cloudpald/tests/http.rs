//! The HTTP API over a fake backend: what it describes, what it refuses and in which words, and the real client against
//! it.

mod http_kit;

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    extract::connect_info::MockConnectInfo,
    http::{Request as HttpRequest, StatusCode, header},
};
use cloudpal_api::{
    AppInstall, Client, DeviceAdd, Exec, LogQuery, Manifest, OperationQuery, Secret, TenantAdd,
};
use cloudpal_compute::driver::{ExecOutput, Usage};
use cloudpal_control::{
    request::{Accepted, AppManifest, DeviceProfile, Request},
    view::{AppView, DeviceView, OperationState, OperationView, TenantView, View},
};
use cloudpal_model::{
    DeviceId, Kind, MachineId, Name, OperationId, PrivateKey, Problem, PublicKey, TenantId,
};
use cloudpal_net::plan::PeerStatus;
use cloudpald::http::{Backend, Caller, Check, Credentials, router, serve};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tower::ServiceExt;

/// Knows one tenant `ada` with the device `phone` and the app `web`, and remembers what was asked.
#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<(String, Request)>>,
    credentials: Mutex<Option<Credentials>>,
    log: PathBuf,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn missing() -> Problem {
    Problem::new(Kind::NotFound, "there is no such app", "list them")
}

#[async_trait]
impl Backend for Fake {
    async fn request(&self, actor: &str, request: Request) -> Result<Accepted, Problem> {
        let operation = OperationId(7);
        let answer = match &request {
            Request::TenantAdd { name, .. } if name.as_str() == "ada" => {
                Err(Problem::new(Kind::Taken, "the tenant ada exists", "choose another name"))
            }
            Request::DeviceAdd { .. } => Ok(Accepted::DeviceAdded {
                operation,
                profile: DeviceProfile { private_key: PrivateKey([1; 32]), conf: "[Interface]\n".into() },
            }),
            Request::MachineStart { .. } => Ok(Accepted::Started { operation, machine: MachineId(3) }),
            _ => Ok(Accepted::Done { operation }),
        };
        self.asked.lock().unwrap().push((actor.to_owned(), request));
        answer
    }

    async fn app_install(
        &self,
        actor: &str,
        tenant: Name,
        name: Name,
        app: AppManifest,
        credentials: Option<Credentials>,
    ) -> Result<Accepted, Problem> {
        *self.credentials.lock().unwrap() = credentials;
        self.asked.lock().unwrap().push((actor.to_owned(), Request::AppInstall { tenant, name, app }));
        Ok(Accepted::Started { operation: OperationId(8), machine: MachineId(3) })
    }

    async fn view(&self) -> Result<View, Problem> {
        let device = DeviceView {
            id: DeviceId(1),
            name: name("phone"),
            v4: "10.77.1.1".parse().unwrap(),
            v6: "fd00::1:1".parse().unwrap(),
            public_key: PublicKey([2; 32]),
            exit: true,
            last_endpoint: Some("203.0.113.7:9".parse().unwrap()),
            added_wall_ms: 1,
        };
        let app = AppView {
            name: name("web"),
            machine: MachineId(3),
            image: "oci:/x".into(),
            digest: String::new(),
            v4: "10.77.2.1".parse().unwrap(),
            v6: "fd00::2:1".parse().unwrap(),
            ports: vec![80],
            memory_mib: 256,
            idle_timeout_ms: 30_000,
            state: "asleep".into(),
            note: String::new(),
            state_since_wall_ms: 1,
            boots: 1,
            wakes: 2,
            sleeps: 3,
            last_wake_us: Some(300_000),
        };
        let tenant = TenantView {
            id: TenantId(1),
            name: name("ada"),
            domain: "ada.pal".into(),
            subnet_v4: "10.77.0.0".parse().unwrap(),
            prefix_v6: "fd00::".parse().unwrap(),
            dns_v4: "10.77.0.1".parse().unwrap(),
            public_key: PublicKey([3; 32]),
            listen_port: 51820,
            network_trouble: String::new(),
            network_pending: false,
            devices: vec![device],
            apps: vec![app],
        };
        Ok(View { tenants: vec![tenant] })
    }

    async fn operation(&self, id: OperationId) -> Result<Option<OperationView>, Problem> {
        Ok(self.operations(1).await?.pop().filter(|operation| operation.id == id))
    }

    async fn operations(&self, limit: usize) -> Result<Vec<OperationView>, Problem> {
        let problem = Problem::new(Kind::BadImage, "the digest is wrong", "get the image again");
        let failed = OperationView {
            id: OperationId(7),
            actor: "cli:uid=0".into(),
            what: "app install ada/web".into(),
            undo: String::new(),
            at_wall_ms: 1,
            tenant: None,
            state: OperationState::Failed { problem },
        };
        Ok(vec![failed; limit.min(1)])
    }

    async fn peers(&self, _tenant: TenantId) -> Vec<PeerStatus> {
        vec![PeerStatus {
            public_key: PublicKey([2; 32]),
            endpoint: Some("203.0.113.8:10".parse().unwrap()),
            last_handshake_wall_ms: Some(5),
            received_bytes: 6,
            sent_bytes: 7,
        }]
    }

    async fn exec(&self, _tenant: &Name, app: &Name, argv: Vec<String>) -> Result<ExecOutput, Problem> {
        if app.as_str() != "web" {
            return Err(missing());
        }
        Ok(ExecOutput { code: 3, output: argv.join(" ").into_bytes(), truncated: false })
    }

    async fn usage(&self, _tenant: &Name, _app: &Name) -> Result<Option<(u32, Usage)>, Problem> {
        Ok(Some((42, Usage { cpu_us: 8, resident_kib: 9 })))
    }

    async fn log_file(&self, _tenant: &Name, app: &Name) -> Result<PathBuf, Problem> {
        if app.as_str() == "web" { Ok(self.log.clone()) } else { Err(missing()) }
    }

    async fn doctor(&self) -> Vec<Check> {
        vec![Check {
            name: "tun".into(),
            ok: false,
            found: "no /dev/net/tun".into(),
            mend: "modprobe tun".into(),
        }]
    }
}

/// A router whose caller is uid 1000, without a socket.
fn local(fake: &Arc<Fake>) -> Router {
    router(fake.clone()).layer(MockConnectInfo(Caller { uid: Some(1000) }))
}

async fn call(
    router: &Router,
    method: &str,
    path: &str,
    body: impl Into<Body>,
) -> (StatusCode, String, Value) {
    let request = HttpRequest::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap().to_owned());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (status, kind.unwrap_or_default(), serde_json::from_slice(&bytes).unwrap_or(Value::Null))
}

/// A problem in every word that RFC 9457 and we promise.
fn assert_problem(answer: &(StatusCode, String, Value), status: u16, kind: &str, detail: &str) {
    let (got, content_type, body) = answer;
    assert_eq!(got.as_u16(), status, "{body}");
    assert_eq!(content_type, "application/problem+json");
    assert_eq!(body["status"], status);
    assert_eq!(body["kind"], kind);
    assert_eq!(body["type"], format!("urn:cloudpal:problem:{kind}"));
    assert!(body["detail"].as_str().unwrap().contains(detail), "{body}");
    assert!(!body["mend"].as_str().unwrap().is_empty(), "{body}");
    assert!(!body["title"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn wrong_requests_are_refused_with_the_cause_and_the_mend() {
    let fake = Arc::new(Fake::default());
    let router = local(&fake);
    let post = async |path: &str, body: String| call(&router, "POST", path, body).await;

    assert_problem(&post("/v1/tenants", "{\"name\":".into()).await, 400, "invalid", "EOF");
    assert_problem(
        &post("/v1/tenants", r#"{"nmae":"x"}"#.into()).await,
        400,
        "invalid",
        "unknown field `nmae`",
    );
    assert_problem(&post("/v1/tenants", r#"{"name":"Ada"}"#.into()).await, 400, "invalid", "'A'");
    assert_problem(&post("/v1/tenants", r#"{"name":""}"#.into()).await, 400, "invalid", "empty");
    let nested = r#"{"name":"x","manifest":{"image":"x","memory":1}}"#;
    assert_problem(
        &post("/v1/tenants/ada/apps", nested.into()).await,
        400,
        "invalid",
        "unknown field `memory`",
    );
    let half = r#"{"name":"x","manifest":{"image":"x"},"registry_username":"u"}"#;
    assert_problem(&post("/v1/tenants/ada/apps", half.into()).await, 400, "invalid", "belong together");
    let exec = "/v1/tenants/ada/apps/web/machine/exec";
    assert_problem(&post(exec, r#"{"argv":[]}"#.into()).await, 400, "invalid", "no command");
    let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(1 << 20));
    assert_problem(&post("/v1/tenants", large).await, 413, "invalid", "1048576 bytes");
    assert_problem(&post("/v1/tenants", r#"{"name":"ada"}"#.into()).await, 409, "taken", "exists");

    let get = async |path: &str| call(&router, "GET", path, "").await;
    assert_problem(&get("/v1/tenants/Ada").await, 400, "invalid", "'A'");
    assert_problem(&get("/v1/tenants/..%2Fetc").await, 400, "invalid", "'.'");
    assert_problem(&get("/v1/tenants/bob").await, 404, "not_found", "bob");
    assert_problem(&get("/v1/tenants/ada/devices/x").await, 404, "not_found", "device x");
    assert_problem(&get("/v1/operations/99").await, 404, "not_found", "99");
    assert_problem(&get("/v1/operations/x").await, 400, "invalid", "x");
    assert_problem(&get("/v1/operations?limits=1").await, 400, "invalid", "limits");
    assert_problem(&get("/nowhere").await, 404, "not_found", "/nowhere");
    assert_problem(&call(&router, "PUT", "/v1/tenants", "").await, 405, "invalid", "PUT");

    let asked = fake.asked.lock().unwrap();
    assert_eq!(asked.len(), 1, "of all these only the taken name reached the control loop: {asked:?}");
}

#[tokio::test]
async fn a_change_without_a_caller_is_refused_and_with_one_is_signed() {
    let fake = Arc::new(Fake::default());
    let anonymous = router(fake.clone());
    let answer = call(&anonymous, "POST", "/v1/tenants", r#"{"name":"bob"}"#).await;
    assert_problem(&answer, 500, "internal", "who asks");
    assert!(fake.asked.lock().unwrap().is_empty());

    let (status, _, body) = call(&local(&fake), "DELETE", "/v1/tenants/ada", "").await;
    assert_eq!((status, body), (StatusCode::OK, json!({"operation": 7, "done": true})));
    let request = Request::TenantRemove { name: name("ada") };
    assert_eq!(*fake.asked.lock().unwrap(), [("cli:uid=1000".to_owned(), request)]);
}

#[tokio::test]
async fn json_must_say_that_it_is_json() {
    let request = HttpRequest::post("/v1/tenants").body(Body::from(r#"{"name":"bob"}"#)).unwrap();
    let response = local(&Arc::new(Fake::default())).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
}

/// Every source below `folder`, so that a handler in a new file is counted as well.
fn read_sources(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, found);
        } else {
            found.push(std::fs::read_to_string(&path).unwrap());
        }
    }
}

const METHODS: [&str; 5] = ["get", "post", "put", "delete", "patch"];

#[tokio::test]
async fn what_is_described_is_routed_and_nothing_else() {
    let router = local(&Arc::new(Fake::default()));
    let (status, _, document) = call(&router, "GET", "/v1/openapi.json", "").await;
    assert_eq!(status, StatusCode::OK);
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let mut described = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let real = path.replace("{tenant}", "ada").replace("{device}", "phone").replace("{app}", "web");
        let real = real.replace("{id}", "7");
        for method in METHODS {
            let (status, _, body) = call(&router, &method.to_uppercase(), &real, "").await;
            let Some(operation) = item.get(method) else {
                assert_eq!(
                    status,
                    StatusCode::METHOD_NOT_ALLOWED,
                    "{method} {path} is routed, not described"
                );
                continue;
            };
            described += 1;
            assert_ne!(status, StatusCode::NOT_FOUND, "{method} {path} is described, not routed: {body}");
            assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path} is described, not routed");
            assert!(operation["responses"]["default"]["content"]["application/problem+json"].is_object());
            assert!(operation["summary"].is_string(), "{method} {path} has no summary");
        }
    }
    // Handlers that nobody registered would not be in the document either.
    let mut sources = Vec::new();
    read_sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/http")), &mut sources);
    let handlers: usize = sources.iter().map(|source| source.matches("#[utoipa::path(").count()).sum();
    assert_eq!(described, handlers);
    assert!(sources.iter().all(|source| !source.contains(".route(")), "a route without a description");
}

#[tokio::test]
async fn every_reference_in_the_description_leads_somewhere() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let (_, _, document) = call(&local(&Arc::new(Fake::default())), "GET", "/v1/openapi.json", "").await;
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 20);
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
}

/// The real client over a real socket, on a thread of its own, as it is meant to be used.
async fn with_client<T: Send + 'static>(
    fake: Arc<Fake>,
    act: impl FnOnce(Client) -> T + Send + 'static,
) -> T {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let server = tokio::spawn(serve(listener, router(fake)));
    let result = tokio::task::spawn_blocking(move || act(Client::new(socket).unwrap())).await.unwrap();
    server.abort();
    result
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_reads_everything() {
    with_client(Arc::new(Fake::default()), |client| {
        let (ada, phone, web) = (name("ada"), name("phone"), name("web"));
        assert_eq!(client.status().unwrap().tenants.len(), 1);
        assert_eq!(client.tenants().unwrap().tenants[0], client.tenant(&ada).unwrap());
        let device = client.device(&ada, &phone).unwrap();
        assert_eq!(client.devices(&ada).unwrap().devices, std::slice::from_ref(&device));
        assert_eq!(device.endpoint, Some("203.0.113.8:10".parse().unwrap()));
        assert_eq!(
            (device.last_handshake_wall_ms, device.received_bytes, device.sent_bytes),
            (Some(5), 6, 7)
        );
        let app = client.app(&ada, &web).unwrap();
        assert_eq!(client.apps(&ada).unwrap().apps, std::slice::from_ref(&app));
        assert_eq!((app.host_name.as_str(), app.last_wake_us), ("web.ada.pal", Some(300_000)));
        let machine = client.machine_usage(&ada, &web).unwrap();
        assert_eq!(client.machines().unwrap().machines, std::slice::from_ref(&machine));
        assert_eq!((machine.pid, machine.cpu_us, machine.resident_kib), (Some(42), 8, 9));
        let doctor = client.doctor().unwrap();
        assert!(!doctor.ok && doctor.checks[0].mend == "modprobe tun");
        let operations = client.operations(OperationQuery { limit: Some(5) }).unwrap().operations;
        assert_eq!(operations, [client.operation(OperationId(7)).unwrap()]);
        assert_eq!(operations[0].problem.as_ref().unwrap().kind, Kind::BadImage);
        assert!(client.openapi().unwrap()["paths"].is_object());
        let problem = client.tenant(&name("bob")).unwrap_err();
        assert_eq!((problem.kind, problem.what.as_str()), (Kind::NotFound, "there is no tenant bob"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_changes_everything_and_the_kernel_says_who_asked() {
    let fake = Arc::new(Fake::default());
    let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap());
    with_client(fake.clone(), |client| {
        let (ada, phone, web) = (name("ada"), name("phone"), name("web"));
        client.tenant_add(&TenantAdd { name: name("bob"), subnet_v4: None, prefix_v6: None }).unwrap();
        client.tenant_remove(&ada).unwrap();
        let added = client.device_add(&ada, &DeviceAdd { name: phone.clone(), exit: false }).unwrap();
        assert_eq!(added.conf.reveal(), "[Interface]\n");
        client.device_revoke(&ada, &phone).unwrap();
        let install = AppInstall {
            name: web.clone(),
            manifest: Manifest { image: "docker://r/x".into(), memory_mib: Some(64), ..Manifest::default() },
            registry_username: Some("u".into()),
            registry_password: Some(Secret::new("hunter2")),
        };
        assert!(!client.app_install(&ada, &install).unwrap().done);
        client.app_remove(&ada, &web).unwrap();
        let started = client.machine_start(&ada, &web).unwrap();
        assert_eq!((started.done, started.machine), (false, Some(MachineId(3))));
        client.machine_sleep(&ada, &web).unwrap();
        client.machine_stop(&ada, &web).unwrap();
        let output = client.machine_exec(&ada, &web, &Exec { argv: vec!["ls".into(), "-l".into()] }).unwrap();
        assert_eq!((output.code, output.output().unwrap()), (3, b"ls -l".to_vec()));
    })
    .await;
    let credentials = fake.credentials.lock().unwrap().take().unwrap();
    assert_eq!((credentials.username.as_str(), credentials.password.as_str()), ("u", "hunter2"));
    assert!(!format!("{credentials:?}").contains("hunter2"));
    let asked = fake.asked.lock().unwrap();
    assert!(asked.iter().all(|(actor, _)| *actor == format!("cli:uid={uid}")), "{asked:?}");
    let (ada, phone, web) = (name("ada"), name("phone"), name("web"));
    let app = AppManifest { memory_mib: 64, ..AppManifest::new("docker://r/x") };
    let expected = [
        Request::TenantAdd { name: name("bob"), subnet_v4: None, prefix_v6: None },
        Request::TenantRemove { name: ada.clone() },
        Request::DeviceAdd { tenant: ada.clone(), name: phone.clone(), exit: false },
        Request::DeviceRevoke { tenant: ada.clone(), name: phone },
        Request::AppInstall { tenant: ada.clone(), name: web.clone(), app },
        Request::AppRemove { tenant: ada.clone(), name: web.clone() },
        Request::MachineStart { tenant: ada.clone(), name: web.clone() },
        Request::MachineSleep { tenant: ada.clone(), name: web.clone() },
        Request::MachineStop { tenant: ada, name: web },
    ];
    assert_eq!(asked.iter().map(|(_, request)| request.clone()).collect::<Vec<_>>(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_tailed_and_followed_until_the_reader_has_enough() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    std::fs::write(&log, "old\nnew\n").unwrap();
    let fake = Arc::new(Fake { log: log.clone(), ..Fake::default() });
    with_client(fake, move |client| {
        let (ada, web) = (name("ada"), name("web"));
        let mut seen = Vec::new();
        let tail = LogQuery { tail_bytes: Some(4), follow: false };
        client
            .logs(&ada, &web, tail, &mut |piece| {
                seen.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, b"new\n");
        let mut seen = Vec::new();
        client
            .logs(&ada, &web, LogQuery { tail_bytes: Some(4), follow: true }, &mut |piece| {
                seen.extend_from_slice(piece);
                if seen.ends_with(b"newest\n") {
                    return Err(std::io::ErrorKind::BrokenPipe.into());
                }
                std::fs::write(&log, "old\nnew\nnewest\n")
            })
            .unwrap();
        assert_eq!(seen, b"new\nnewest\n");
        let problem = client.logs(&ada, &name("none"), tail, &mut |_| Ok(())).unwrap_err();
        assert_eq!(problem.kind, Kind::NotFound);
    })
    .await;
}
