//! The program itself against a fake daemon: exit codes, output, and what it leaves on the disk.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use cloudpal_api as api;
use cloudpal_model::{Kind, MachineId, OperationId, Problem};
use serde_json::{Value, json};
use std::{
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const CONF: &str = "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n";

/// What the fake daemon was asked: method, path, body.
type Asked = Arc<Mutex<Vec<(String, String, Value)>>>;

/// A daemon that knows the tenant `ada` with the app `web`; in other names it hides every kind of problem.
struct Fake {
    _runtime: Runtime,
    dir: TempDir,
    asked: Asked,
}

fn problem(kind: Kind) -> Response {
    let body = api::ProblemBody::new(Problem::new(kind, format!("because {kind:?}"), "mend it"));
    (StatusCode::from_u16(body.status).unwrap(), Json(body)).into_response()
}

/// The name `x-not-found` meets the problem of that kind.
fn wanted_problem(name: &str) -> Option<Response> {
    let kind = name.strip_prefix("x-")?.replace('-', "_");
    Some(problem(serde_json::from_value(kind.into()).unwrap()))
}

fn app() -> Value {
    json!({
        "name": "web", "host_name": "web.ada.pal", "machine": 3, "image": "oci:/x", "digest": "sha256:00",
        "v4": "10.77.2.1", "v6": "fd00::2", "ports": [80], "memory_mib": 256, "idle_timeout_ms": 30000,
        "state": "asleep", "note": "crashed \u{1b}[2J once", "state_since_wall_ms": 1, "boots": 1,
        "wakes": 2, "sleeps": 3, "last_wake_us": 300000
    })
}

fn tenant() -> Value {
    json!({
        "id": 1, "name": "ada", "domain": "ada.pal", "subnet_v4": "10.77.0.0", "prefix_v6": "fd00::",
        "dns_v4": "10.77.0.1", "public_key": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", "listen_port": 51820,
        "network_trouble": "", "devices": [], "apps": [app()]
    })
}

fn operation(id: u32) -> Value {
    let mut operation = json!({
        "id": id, "actor": "cli:uid=0", "what": "app install ada/web", "undo": "", "at_wall_ms": 1, "state": "done"
    });
    if id == 66 {
        operation["state"] = "failed".into();
        let problem = Problem::new(Kind::BadImage, "layer 2 has a wrong digest", "get the image again");
        operation["problem"] = serde_json::to_value(api::ProblemBody::new(problem)).unwrap();
    }
    operation
}

fn accepted(operation: u32) -> Response {
    Json(api::Accepted { operation: OperationId(operation), done: false, machine: Some(MachineId(3)) })
        .into_response()
}

fn routes(asked: Asked) -> Router {
    let note = |asked: &Asked, method: &str, path: String, body: &Bytes| {
        let body = serde_json::from_slice(body).unwrap_or(Value::Null);
        asked.lock().unwrap().push((method.into(), path, body));
    };
    let add_device = move |State(asked): State<Asked>, Path(tenant): Path<String>, body: Bytes| async move {
        note(&asked, "POST", format!("{tenant}/devices"), &body);
        wanted_problem(&tenant).unwrap_or_else(|| {
            Json(api::DeviceAdded { operation: OperationId(5), conf: api::Secret::new(CONF) }).into_response()
        })
    };
    let revoke = move |State(asked): State<Asked>, Path((tenant, device)): Path<(String, String)>| async move {
        note(&asked, "DELETE", format!("{tenant}/devices/{device}"), &Bytes::new());
        accepted(5)
    };
    let install = move |State(asked): State<Asked>, Path(tenant): Path<String>, body: Bytes| async move {
        let name = serde_json::from_slice::<Value>(&body).unwrap()["name"].clone();
        note(&asked, "POST", format!("{tenant}/apps"), &body);
        accepted(if name == "broken" { 66 } else { 5 })
    };
    let exec =
        async |body: Json<api::Exec>| Json(api::ExecOutput::new(7, body.argv.join(" ").as_bytes(), false));
    let checks = async || {
        let lacks =
            |name: &str, ok| api::Check { name: name.into(), ok, found: "found".into(), mend: "do".into() };
        Json(api::Doctor { ok: false, checks: vec![lacks("tun", true), lacks("qemu", false)] })
    };
    let show_tenant = async |Path(name): Path<String>| match wanted_problem(&name) {
        Some(problem) => problem,
        None => Json(tenant()).into_response(),
    };
    Router::new()
        .route("/v1/status", get(async || Json(json!({"version": "9.9.9", "tenants": [tenant()]}))))
        .route("/v1/doctor", get(checks))
        .route("/v1/tenants", get(async || Json(json!({"tenants": [tenant()]}))).post(async || accepted(5)))
        .route("/v1/tenants/{tenant}", get(show_tenant))
        .route("/v1/tenants/{tenant}/devices", post(add_device))
        .route("/v1/tenants/{tenant}/devices/{device}", delete(revoke))
        .route("/v1/tenants/{tenant}/apps", post(install))
        .route("/v1/tenants/{tenant}/apps/{app}", get(async || Json(app())))
        .route("/v1/tenants/{tenant}/apps/{app}/machine/start", post(async || accepted(5)))
        .route("/v1/tenants/{tenant}/apps/{app}/machine/sleep", post(async || accepted(5)))
        .route("/v1/tenants/{tenant}/apps/{app}/machine/exec", post(exec))
        .route("/v1/tenants/{tenant}/apps/{app}/logs", get(async || "one\ntwo\n"))
        .route("/v1/operations/{id}", get(async |Path(id): Path<u32>| Json(operation(id))))
        .with_state(asked)
}

impl Fake {
    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let asked = Asked::default();
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::bind(dir.path().join("api.sock")).unwrap()
        };
        let router = routes(asked.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Fake { _runtime: runtime, dir, asked }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        self.run_with(args, "")
    }

    fn run_with(&self, args: &[&str], stdin: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cloudpal"))
            .args(args)
            .env("CLOUDPAL_SOCKET", self.path("api.sock"))
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that does not read its stdin may be gone by now.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn asked(&self) -> Vec<(String, String, Value)> {
        self.asked.lock().unwrap().clone()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn exit_codes_tell_the_kind_and_errors_name_cause_and_mend() {
    let fake = Fake::start();
    for (kind, expected) in [
        ("internal", 1),
        ("not-found", 3),
        ("taken", 4),
        ("refused", 5),
        ("invalid", 5),
        ("bad-image", 6),
        ("host-lacks", 7),
        ("disk-full", 8),
        ("unavailable", 9),
    ] {
        let output = fake.run(&["tenant", "show", &format!("x-{kind}")]);
        assert_eq!(code(&output), expected, "{kind}");
        assert!(stderr(&output).starts_with("error: because "), "{}", stderr(&output));
        assert!(stderr(&output).ends_with("\nmend: mend it\n"));
        assert_eq!(stdout(&output), "");
        let output = fake.run(&["--json", "tenant", "show", &format!("x-{kind}")]);
        let problem: api::ProblemBody = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(code(&output), expected);
        assert_eq!(problem.mend, "mend it");
    }
    assert_eq!(code(&fake.run(&["tenant", "show", "Ada"])), 2);
    assert_eq!(code(&fake.run(&["nonsense"])), 2);
    assert_eq!(code(&fake.run(&["--help"])), 0);
}

#[test]
fn a_missing_daemon_is_its_own_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let output = Command::new(env!("CARGO_BIN_EXE_cloudpal"))
        .arg("status")
        .arg("--socket")
        .arg(&socket)
        .output()
        .unwrap();
    assert_eq!(code(&output), 9);
    assert!(stderr(&output).contains("none.sock does not exist"), "{}", stderr(&output));
    assert!(stderr(&output).contains("mend: start it with `cloudpald`"), "{}", stderr(&output));
    // A socket that a killed daemon left behind.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let output = Command::new(env!("CARGO_BIN_EXE_cloudpal"))
        .arg("status")
        .arg("--socket")
        .arg(&socket)
        .output()
        .unwrap();
    assert_eq!(code(&output), 9);
    assert!(stderr(&output).contains("nobody listens"), "{}", stderr(&output));
}

#[test]
fn json_is_the_wire_type_and_tables_are_for_people() {
    let fake = Fake::start();
    let output = fake.run(&["status", "--json"]);
    let status: api::Status = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((status.version.as_str(), status.tenants.len()), ("9.9.9", 1));
    let output = fake.run(&["status"]);
    let text = stdout(&output);
    for word in ["9.9.9", "ada.pal", "web.ada.pal", "asleep", "300.0 ms", "crashed"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    assert!(!text.contains('\u{1b}'), "an app's note cannot steer the terminal");
    let output = fake.run(&["tenant", "add", "ada", "--json"]);
    assert_eq!(serde_json::from_slice::<api::Operation>(&output.stdout).unwrap().id, OperationId(5));
    let output = fake.run(&["machine", "sleep", "ada", "web"]);
    assert_eq!(stdout(&output), "m3 of ada/web is asleep\n");
    let output = fake.run(&["machine", "start", "ada", "web"]);
    assert_eq!(code(&output), 5, "it did not wake");
    assert!(stderr(&output).contains("m3 of ada/web is asleep, not awake: crashed"), "{}", stderr(&output));
    assert_eq!(code(&fake.run(&["machine", "start", "ada", "web", "--detach"])), 0);
    let output = fake.run(&["doctor"]);
    assert_eq!(
        (code(&output), stdout(&output).as_str()),
        (7, "ok   tun: found\nFAIL qemu: found\n     mend: do\n")
    );
    let output = fake.run(&["machine", "exec", "ada", "web", "--", "ls", "-l"]);
    assert_eq!((code(&output), stdout(&output).as_str()), (7, "ls -l"));
    assert_eq!(stdout(&fake.run(&["logs", "ada", "web"])), "one\ntwo\n");
    let lines = stdout(&fake.run(&["logs", "ada", "web", "--json"]));
    assert_eq!(lines, "{\"line\":\"one\"}\n{\"line\":\"two\"}\n");
}

#[test]
fn a_profile_is_new_private_and_complete() {
    let fake = Fake::start();
    let output = fake.run(&["device", "add", "ada", "phone"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains('▀'), "the code is drawn");
    assert!(!stdout(&output).contains("PrivateKey"), "the key is in the file and the code alone");
    let conf = fake.path("phone.conf");
    assert_eq!(std::fs::read_to_string(&conf).unwrap(), CONF);
    assert_eq!(std::fs::metadata(&conf).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fake.asked(), [("POST".into(), "ada/devices".into(), json!({"name": "phone", "exit": true}))]);

    let output = fake.run(&["device", "add", "ada", "tv", "--conf", "-", "--no-qr", "--overlay-only"]);
    assert_eq!(stdout(&output), CONF);
    assert_eq!(fake.asked()[1].2, json!({"name": "tv", "exit": false}));

    let output = fake.run(&["device", "add", "ada", "tab", "--json"]);
    assert_eq!(serde_json::from_slice::<api::DeviceAdded>(&output.stdout).unwrap().conf.reveal(), CONF);
    assert_eq!(std::fs::read_to_string(fake.path("tab.conf")).unwrap(), CONF);
}

#[test]
fn a_path_that_exists_is_refused_before_anything_happens() {
    let fake = Fake::start();
    std::fs::write(fake.path("phone.conf"), "precious").unwrap();
    std::os::unix::fs::symlink("elsewhere", fake.path("link.conf")).unwrap();
    for args in [["phone", "phone.conf"], ["x", "link.conf"]] {
        let output = fake.run(&["device", "add", "ada", args[0], "--conf", args[1]]);
        assert_eq!(code(&output), 4);
        assert!(stderr(&output).contains("exists"), "{}", stderr(&output));
    }
    let output = fake.run(&["device", "add", "ada", "x", "--conf", "no/such/dir/x.conf"]);
    assert_eq!(code(&output), 5);
    assert_eq!(std::fs::read_to_string(fake.path("phone.conf")).unwrap(), "precious");
    assert!(!fake.path("elsewhere").exists());
    assert!(fake.asked().is_empty(), "the daemon was not asked");
}

#[test]
fn a_refused_device_leaves_no_file() {
    let fake = Fake::start();
    let output = fake.run(&["device", "add", "x-taken", "phone"]);
    assert_eq!(code(&output), 4);
    assert!(!fake.path("phone.conf").exists());
}

#[test]
fn an_app_is_asked_for_as_the_flags_and_the_manifest_say() {
    let fake = Fake::start();
    std::fs::write(fake.path("app.toml"), "image = \"oci:./web\"\nmemory = \"64MiB\"\nports = [80]\n")
        .unwrap();
    let args = [
        "app",
        "install",
        "ada",
        "web",
        "--manifest",
        "app.toml",
        "--idle",
        "5m",
        "--env",
        "A=b",
        "--username",
    ];
    let output =
        fake.run_with(&[&args[..], &["u", "--password-stdin", "--", "serve", "-v"]].concat(), "hunter2\n");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("web.ada.pal"), "{}", stdout(&output));
    assert!(!stdout(&output).contains("hunter2") && !stderr(&output).contains("hunter2"));
    let dir = fake.dir.path().canonicalize().unwrap();
    assert_eq!(
        fake.asked()[0].2,
        json!({
            "name": "web",
            "manifest": {
                "image": format!("oci:{}/web", dir.display()), "memory_mib": 64, "idle_timeout_ms": 300_000,
                "argv": ["serve", "-v"], "env": ["A=b"], "ready_tcp_ports": [80]
            },
            "registry_username": "u", "registry_password": "hunter2"
        })
    );
    let output = fake.run(&["app", "install", "ada", "web", "oci:/x", "--detach", "--json"]);
    assert_eq!(serde_json::from_slice::<api::Operation>(&output.stdout).unwrap().id, OperationId(5));
}

#[test]
fn a_failed_installation_is_its_problem_and_wrong_flags_are_told() {
    let fake = Fake::start();
    let output = fake.run(&["app", "install", "ada", "broken", "oci:/x"]);
    assert_eq!(code(&output), 6);
    assert_eq!(stderr(&output), "error: layer 2 has a wrong digest\nmend: get the image again\n");
    assert_eq!(code(&fake.run(&["operation", "show", "op66"])), 0);
    for (flags, why) in [
        (["--memory", "256"], "no unit"),
        (["--idle", "30"], "no unit"),
        (["--env", "A"], "KEY=VALUE"),
        (["--port", "0"], "0"),
        (["--username", "u"], "--password-stdin"),
    ] {
        let output = fake.run(&[&["app", "install", "ada", "web", "oci:/x"][..], &flags].concat());
        assert_eq!(code(&output), 2, "{flags:?}");
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
    assert_eq!(code(&fake.run(&["app", "install", "ada", "web"])), 2);
    let user = ["app", "install", "ada", "web", "docker://r/x", "--username", "u", "--password-stdin"];
    assert_eq!(code(&fake.run_with(&user, "")), 5, "an empty password");
    std::fs::write(fake.path("bad.toml"), "image = \"x\"\nmemroy = \"1MiB\"\n").unwrap();
    let output = fake.run(&["app", "install", "ada", "web", "--manifest", "bad.toml"]);
    assert_eq!(code(&output), 5);
    assert!(stderr(&output).contains("memroy") && stderr(&output).contains("line 2"), "{}", stderr(&output));
    assert_eq!(fake.asked().len(), 1, "only the first reached the daemon");
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_cloudpal")).args(["completions", shell]).output().unwrap();
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).contains("password-stdin"), "{shell}");
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let fake = Fake::start();
    let script = format!("{} logs ada web | true; echo ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_cloudpal"));
    let output = Command::new("bash")
        .args(["-c", &script])
        .env("CLOUDPAL_SOCKET", fake.path("api.sock"))
        .output()
        .unwrap();
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("0\n", ""));
}

#[test]
fn a_full_disk_revokes_the_device_again() {
    // A file system of one page, which a filler occupies: an empty file can be made, but nothing written to it.
    let fake = Fake::start();
    let mount = fake.path("small");
    std::fs::create_dir(&mount).unwrap();
    std::fs::set_permissions(&mount, std::fs::Permissions::from_mode(0o700)).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=4k,mode=700 none {dir} || exit 42\n\
         head -c 4096 /dev/zero > {dir}/filler\n\
         {program} device add ada phone --conf {dir}/phone.conf\n\
         code=$?\n[ ! -e {dir}/phone.conf ] || exit 43\nexit $code",
        dir = mount.display(),
        program = env!("CARGO_BIN_EXE_cloudpal")
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .env("CLOUDPAL_SOCKET", fake.path("api.sock"))
        .output()
        .unwrap();
    if matches!(output.status.code(), Some(1 | 42)) && stderr(&output).contains("ermi") {
        eprintln!("SKIPPED a_full_disk_revokes_the_device_again: mounting needs root: {}", stderr(&output));
        return;
    }
    assert_eq!(code(&output), 8, "{}", stderr(&output));
    assert!(
        stderr(&output).contains("the disk is full; the device was revoked again"),
        "{}",
        stderr(&output)
    );
    let revoked = ("DELETE".to_owned(), "ada/devices/phone".to_owned(), Value::Null);
    assert_eq!(fake.asked().last(), Some(&revoked));
}

#[test]
fn a_profile_that_nobody_takes_revokes_the_device_again() {
    let revoked = ("DELETE".to_owned(), "ada/devices/phone".to_owned(), Value::Null);
    for (flags, sink) in [("", "> /dev/full"), ("", "| true"), ("--json", "| true")] {
        let fake = Fake::start();
        // The reader of the pipe has gone away before the daemon answers.
        let script = format!(
            "(sleep 0.2; {program} {flags} device add ada phone --conf -; echo $? > {dir}/code) {sink}",
            program = env!("CARGO_BIN_EXE_cloudpal"),
            dir = fake.path("").display()
        );
        let output = Command::new("bash")
            .args(["-c", &script])
            .env("CLOUDPAL_SOCKET", fake.path("api.sock"))
            .output()
            .unwrap();
        assert!(stderr(&output).contains("the device was revoked again"), "{sink}: {}", stderr(&output));
        assert_ne!(std::fs::read_to_string(fake.path("code")).unwrap(), "0\n", "{sink}");
        assert_eq!(fake.asked().last(), Some(&revoked), "{sink}");
    }
}
