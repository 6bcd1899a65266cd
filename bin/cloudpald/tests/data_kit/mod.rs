//! The real daemon in a network of its own, and a tenant with some data.

#![allow(dead_code)] // each test file uses its own part

use cloudpal_api::{Client, DataAdd, DataKind, FileQuery, TenantAdd};
use cloudpal_model::{Kind, Name};
use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const DAEMON: &str = env!("CARGO_BIN_EXE_cloudpald");
pub const SECRET: &[u8] = b"the cat sat on the mat, which nobody else may know";

pub struct Host {
    dir: tempfile::TempDir,
    pub daemon: Option<Child>,
}

impl Host {
    /// `None`: said why it is skipped.
    pub fn make() -> Option<Host> {
        let unshared = Command::new("unshare").args(["--net", "true"]).status();
        if !unshared.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: making network namespaces needs root and unshare(1)");
            return None;
        }
        let mut host = Host { dir: tempfile::tempdir().unwrap(), daemon: None };
        let guest = host.path("guest");
        fs::create_dir(&guest).unwrap();
        for file in ["vmlinuz", "initramfs.img"] {
            fs::write(guest.join(file), "no machine is started by these tests").unwrap();
        }
        fs::write(guest.join("kernel-version"), "0\n").unwrap();
        host.start();
        Some(host)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn instance(&self) -> String {
        let name = self.dir.path().file_name().unwrap().to_string_lossy().to_lowercase();
        format!("data{}", name.replace(|c: char| !c.is_ascii_alphanumeric(), ""))
    }

    pub fn start(&mut self) {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "sh", "-c", "ip link set lo up; exec \"$@\"", "sh", DAEMON]);
        for (flag, name) in [("--state-dir", "state"), ("--run-dir", "run"), ("--guest-dir", "guest")] {
            command.arg(flag).arg(self.path(name));
        }
        command.args(["--endpoint", "192.0.2.1", "--accel", "tcg", "--upstream-dns", "192.0.2.53:53"]);
        command.args(["--instance", &self.instance()]).stdin(Stdio::null());
        self.daemon = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.client().status().is_err() {
            assert!(Instant::now() < deadline, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn end(&mut self, signal: &str) {
        let mut daemon = self.daemon.take().unwrap();
        let pid = daemon.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        daemon.wait().unwrap();
    }

    pub fn client(&self) -> Client {
        Client::new(self.path("run/api.sock")).unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            self.end("-TERM");
        }
        // The namespaces were mounted where only the daemon saw it; their empty files are seen by all.
        let prefix = format!("{}-t", self.instance());
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _gone = fs::remove_file(entry.path());
            }
        }
    }
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn add(text: &str, kind: DataKind) -> DataAdd {
    DataAdd { name: name(text), kind, key: None, encryption_key: None, encrypted: false }
}

pub fn put(client: &Client, path: &str, mut content: &[u8]) -> u64 {
    let (ada, photos) = (name("ada"), name("photos"));
    let put = client.file_put(&ada, &photos, path, &FileQuery::default(), (&mut content, &mut |_| ()));
    put.unwrap().version
}

pub fn get(client: &Client, path: &str, version: Option<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sink = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    client.file(&name("ada"), &name("photos"), path, version, &mut sink).unwrap();
    bytes
}

/// Longer than a piece, a block and a buffer, and the same nowhere twice.
pub fn photo() -> Vec<u8> {
    (0..1_000_003_u32).flat_map(|at| (at.wrapping_mul(2_654_435_761)).to_le_bytes()).take(1_000_003).collect()
}

pub fn fill(client: &Client) {
    let ada = name("ada");
    client.tenant_add(&TenantAdd { name: ada.clone(), subnet_v4: None, prefix_v6: None }).unwrap();
    for (text, kind) in [
        ("journal", DataKind::Core),
        ("contacts", DataKind::Bee),
        ("photos", DataKind::Drive),
        ("paths", DataKind::Trie),
    ] {
        client.data_add(&ada, &add(text, kind)).unwrap();
    }
    assert_eq!(client.data_add(&ada, &add("photos", DataKind::Bee)).unwrap_err().kind, Kind::Taken);
    for at in 0..3 {
        let appended = client.core_append(&ada, &name("journal"), format!("day {at}").into_bytes()).unwrap();
        assert_eq!(appended.version, at + 1);
    }
    for (key, value) in [("grace", "hopper"), ("ada", "lovelace"), ("a/b c%", "odd")] {
        client.entry_put(&ada, &name("contacts"), key, value.as_bytes().to_vec()).unwrap();
        client.entry_put(&ada, &name("paths"), key, value.as_bytes().to_vec()).unwrap();
    }
    client.entry_put(&ada, &name("contacts"), "secret", SECRET.to_vec()).unwrap();
    put(client, "/cat.jpg", &photo());
    put(client, "/notes/today.txt", SECRET);
}
