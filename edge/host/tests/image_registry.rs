//! Pulls: from Debian's docker-registry with a password, and from a registry of our own making that wants tokens,
//! redirects, and breaks connections.

mod image_kit;

use base64::{Engine, engine::general_purpose::STANDARD};
use cloudpal_compute::image::Digest;
use cloudpal_host::image::Credentials;
use cloudpal_model::Kind;
use image_kit::{Layout, RUN_APP, config, gzip, import, import_as, names, tar};
use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

fn credentials(username: &str, password: &str) -> Option<Credentials> {
    Some(Credentials { username: username.into(), password: password.into() })
}

fn noise() -> Vec<u8> {
    (0..400_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Debian's registry on a free port, ended at the end.
struct DockerRegistry {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl DockerRegistry {
    fn start(user: &str, password: &str) -> Option<DockerRegistry> {
        for program in ["docker-registry", "skopeo"] {
            if Command::new(program).arg("--version").output().is_err() {
                eprintln!("SKIPPED: a pull from a real registry, since {program} is not installed");
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let logins = dir.path().join("htpasswd");
        fs::write(
            &logins,
            format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap().replace("$2b$", "$2y$")),
        )
        .unwrap();
        let settings = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {0}/data}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n\
             auth: {{htpasswd: {{realm: test, path: {0}/htpasswd}}}}\n",
            dir.path().display()
        );
        let file = dir.path().join("config.yml");
        fs::write(&file, settings).unwrap();
        let quiet = Stdio::null;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(quiet())
            .stderr(quiet())
            .spawn()
            .unwrap();
        let registry = DockerRegistry { process, port, _dir: dir };
        let patience = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(Instant::now() < patience, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(registry)
    }

    fn push(&self, layout: &Layout, name: &str, login: &str) {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--dest-tls-verify=false", "--dest-creds", login]);
        skopeo.arg(layout.source()).arg(format!("docker://127.0.0.1:{}/{name}", self.port));
        let output = skopeo.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn debians_registry_with_a_password() {
    let Some(registry) = DockerRegistry::start("me", "s3cret:x") else { return };
    let layout = Layout::with_app("amd64", RUN_APP, &[tar(&[("app", &noise())]), tar(&[("b", b"2")])]);
    registry.push(&layout, "team/app:1", "me:s3cret:x");
    let source = format!("docker://127.0.0.1:{}/team/app:1", registry.port);
    let store = tempfile::tempdir().unwrap();
    let problem = import(store.path(), &source).await.unwrap_err();
    assert!(problem.kind == Kind::Refused && problem.what.contains("wants a login"), "{problem}");
    let problem = import_as(store.path(), &source, credentials("me", "wrong")).await.unwrap_err();
    assert!(problem.kind == Kind::Refused && problem.what.contains("does not let `me` pull"), "{problem}");
    assert!(!problem.to_string().contains("wrong"), "{problem}");
    let missing = source.replace("app:1", "app:2");
    let problem = import_as(store.path(), &missing, credentials("me", "s3cret:x")).await.unwrap_err();
    assert!(problem.kind == Kind::NotFound && problem.what.contains("team/app:2"), "{problem}");
    assert_eq!(names(store.path()), Vec::<String>::new());

    let pulled = import_as(store.path(), &source, credentials("me", "s3cret:x")).await.unwrap();
    let local = tempfile::tempdir().unwrap();
    let imported = import(local.path(), &layout.source()).await.unwrap();
    assert_eq!(pulled.digest, imported.digest);
    assert!(fs::read(&pulled.rootfs).unwrap() == fs::read(&imported.rootfs).unwrap());
    let by_digest = format!("127.0.0.1:{}/team/app@{}", registry.port, pulled.digest);
    assert_eq!(import_as(store.path(), &by_digest, credentials("me", "s3cret:x")).await.unwrap(), pulled);
}

#[tokio::test]
async fn a_registry_that_is_not_there() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let store = tempfile::tempdir().unwrap();
    let problem = import(store.path(), &format!("127.0.0.1:{port}/x")).await.unwrap_err();
    assert!(problem.kind == Kind::Unavailable && problem.what.contains("127.0.0.1"), "{problem}");
    assert_eq!(names(store.path()), Vec::<String>::new());
}

/// Serves a layout, each connection for one answer.
struct Scripted {
    layout: std::path::PathBuf,
    manifest: String,
    /// The layer whose answers break.
    fragile: String,
    port: u16,
    /// So many answers break in the middle.
    breaks: AtomicU32,
    token_was_asked_with_password: AtomicBool,
    redirected_with_password: AtomicBool,
    ranges: AtomicU32,
}

impl Scripted {
    fn start(layout: &Layout, manifest: &Digest, fragile: &Digest, breaks: u32) -> Arc<Scripted> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = Arc::new(Scripted {
            layout: layout.dir.path().to_owned(),
            manifest: manifest.hex().to_owned(),
            fragile: fragile.hex().to_owned(),
            port: listener.local_addr().unwrap().port(),
            breaks: AtomicU32::new(breaks),
            token_was_asked_with_password: AtomicBool::new(false),
            redirected_with_password: AtomicBool::new(false),
            ranges: AtomicU32::new(0),
        });
        let serving = Arc::clone(&server);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serving.answer(stream);
            }
        });
        server
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
            request.push(byte[0]);
        }
        let request = String::from_utf8(request).unwrap();
        let header = |name: &str| {
            let lines = request.lines().filter_map(|line| line.split_once(": "));
            lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
        };
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let authorization = header("authorization");
        let host = format!("127.0.0.1:{}", self.port);
        if path.starts_with("/token?") {
            let right = Some(format!("Basic {}", STANDARD.encode("me:pw")));
            self.token_was_asked_with_password.store(authorization == right, Ordering::SeqCst);
            assert!(path.contains("scope=repository%3Aapp%3Apull"), "{path}");
            return send(&mut stream, "200 OK", "", br#"{"token":"abc"}"#, None);
        }
        if let Some(hex) = path.strip_prefix("/elsewhere/") {
            self.redirected_with_password.fetch_or(authorization.is_some(), Ordering::SeqCst);
            let bytes = fs::read(self.layout.join("blobs/sha256").join(hex)).unwrap();
            let from =
                header("range").map(|range| range["bytes=".len()..range.len() - 1].parse::<usize>().unwrap());
            self.ranges.fetch_add(u32::from(from.is_some()), Ordering::SeqCst);
            let status = if from.is_some() { "206 Partial Content" } else { "200 OK" };
            let rest = &bytes[from.unwrap_or(0)..];
            let again = |left: u32| left.checked_sub(1);
            let breaks = hex == self.fragile
                && self.breaks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, again).is_ok();
            return send(&mut stream, status, "", rest, breaks.then_some(rest.len() / 2));
        }
        if authorization.as_deref() != Some("Bearer abc") {
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"s\",scope=\"repository:app:pull\"\r\n"
            );
            return send(&mut stream, "401 Unauthorized", &challenge, b"", None);
        }
        if path == "/v2/app/manifests/latest" {
            let bytes = fs::read(self.layout.join("blobs/sha256").join(&self.manifest)).unwrap();
            return send(&mut stream, "200 OK", "", &bytes, None);
        }
        let hex = path.strip_prefix("/v2/app/blobs/sha256:").unwrap();
        // Another host name, as registries send one to their storage.
        let location = format!("Location: http://localhost:{}/elsewhere/{hex}\r\n", self.port);
        send(&mut stream, "307 Temporary Redirect", &location, b"", None);
    }
}

fn send(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8], cut_at: Option<usize>) {
    let head =
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body[..cut_at.unwrap_or(body.len())]);
}

async fn pull_scripted(
    store: &Path,
    breaks: u32,
) -> (Arc<Scripted>, Result<Digest, cloudpal_model::Problem>) {
    let layers = [tar(&[("app", &noise())])];
    let layout = Layout::new();
    let image = layout.image(&config("amd64", RUN_APP, &layers), &layers);
    let manifest =
        image.split('"').find(|part| part.starts_with("sha256:")).unwrap().parse::<Digest>().unwrap();
    let server = Scripted::start(&layout, &manifest, &Digest::sha256_of(&gzip(&layers[0])), breaks);
    let source = format!("docker://127.0.0.1:{}/app", server.port);
    let outcome = import_as(store, &source, credentials("me", "pw")).await;
    (server, outcome.map(|image| image.digest))
}

#[tokio::test]
async fn tokens_redirects_and_broken_downloads() {
    let store = tempfile::tempdir().unwrap();
    let (server, outcome) = pull_scripted(store.path(), 2).await;
    assert_eq!(outcome.unwrap().hex(), server.manifest);
    assert!(server.token_was_asked_with_password.load(Ordering::SeqCst));
    assert!(!server.redirected_with_password.load(Ordering::SeqCst));
    assert_eq!(server.ranges.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_download_that_keeps_breaking_is_given_up() {
    let store = tempfile::tempdir().unwrap();
    let (_, outcome) = pull_scripted(store.path(), u32::MAX).await;
    let problem = outcome.unwrap_err();
    assert!(matches!(problem.kind, Kind::Unavailable | Kind::BadImage), "{problem}");
    assert_eq!(names(store.path()), Vec::<String>::new());
}
