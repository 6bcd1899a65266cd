//! A sleeping machine on the disk: `snapshot/`, with `snapshot.json` and whichever files the driver needs.
//!
//! Invariants:
//! - Written as `snapshot.tmp`, made durable, then renamed: a snapshot that has its name is whole.
//! - `take` renames it away, durably, before the guest can change its disk: a snapshot and a disk that goes on beyond
//!   it never meet, also not after a power cut.
//! - It names everything that it fits to. What does not fit is refused with the reason and set aside, never tried.
//! - A fault of the host (no descriptors, no memory) is no fault of the snapshot: it is left as it is.
//!
//! All of this waits for the disk: call it where blocking is allowed.

use super::start::blocking_io;
use cloudpal_compute::driver::{MachineSpec, WakeError};
use cloudpal_model::Problem;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

const VERSION: u32 = 2;
const DESCRIPTION: &str = "snapshot.json";
const DRIVER: &str = "driver";
/// No driver's description is longer: 24 bytes for each 256 KiB of a terabyte's memory.
const MAX_DESCRIPTION_BYTES: u64 = 128 << 20;

/// What a snapshot fits to: the driver, its VMM, the machine's shape. Any difference refuses it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity(BTreeMap<String, String>);

impl Identity {
    pub fn new(driver: &str, spec: &MachineSpec) -> Identity {
        let named = Identity::default().with(DRIVER, driver);
        named.with("memory_mib", spec.memory_mib).with("vcpus", spec.vcpus)
    }

    /// Names one more thing that must be the same: a VMM's version, a model of CPU.
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Identity {
        self.0.insert(name.into(), value.to_string());
        self
    }

    pub fn driver(&self) -> &str {
        self.0.get(DRIVER).map_or("unknown", String::as_str)
    }

    /// The first thing in which they differ, for people.
    fn difference(&self, here: &Identity) -> Option<String> {
        let missing = String::from("unknown");
        let names = self.0.keys().chain(here.0.keys());
        let value = |of: &Identity, name: &String| of.0.get(name).unwrap_or(&missing).clone();
        let mut each = names.map(|name| (name, value(self, name), value(here, name)));
        let (name, then, now) = each.find(|(_, then, now)| then != now)?;
        Some(format!("it was made with {name} {then:?}, but here it is {now:?}"))
    }
}

/// A file as it was, without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

/// One of the driver's files: its length, and its checksum where the whole file is read at each wake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    bytes: u64,
    crc32c: Option<u32>,
}

/// How a file is verified before a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// The length only: the driver looks after the content, or maps the file.
    Length,
    Content,
}

#[derive(Debug, Serialize, Deserialize)]
struct Description {
    version: u32,
    identity: Identity,
    disk: Stamp,
    /// Lengths of what the machine starts from: the root, or a unikernel's own files.
    image_bytes: Vec<u64>,
    files: BTreeMap<String, Part>,
    /// The driver's own.
    detail: Value,
}

pub fn path(dir: &Path) -> PathBuf {
    dir.join("snapshot")
}

/// Where a snapshot is from [`take`] to [`remove_consumed`].
pub fn consumed_path(dir: &Path) -> PathBuf {
    dir.join("snapshot.consumed")
}

pub fn exists(dir: &Path) -> bool {
    path(dir).join(DESCRIPTION).is_file()
}

/// A snapshot that is being written.
pub struct Draft {
    dir: PathBuf,
    temporary: PathBuf,
}

impl Draft {
    /// Nothing on the disk yet: see [`Draft::make`].
    pub fn of(dir: &Path) -> Draft {
        Draft { dir: dir.to_path_buf(), temporary: dir.join("snapshot.tmp") }
    }

    pub fn make(&self) -> io::Result<()> {
        remove(&self.temporary)?;
        fs::create_dir(&self.temporary)
    }

    /// A new file of the snapshot, for reading and writing.
    pub fn create(&self, name: &str) -> io::Result<File> {
        File::options().read(true).write(true).create_new(true).open(self.temporary.join(name))
    }

    #[allow(dead_code, reason = "for drivers that save what has changed")]
    /// Takes over a file of an earlier snapshot that is whole and does not change any more.
    pub fn link(&self, name: &str, from: &Path) -> io::Result<()> {
        fs::hard_link(from, self.temporary.join(name))
    }

    /// One of its files as it is now.
    pub fn stamp(&self, name: &str) -> io::Result<Stamp> {
        stamp(&self.temporary.join(name))
    }

    /// One of its files that is not needed after all.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.temporary.join(name))
    }

    /// Describes its files and makes everything durable; it has its name only after [`Draft::publish`].
    pub fn complete(
        &self,
        spec: &MachineSpec,
        identity: &Identity,
        files: &[(&str, Verify)],
        detail: &impl Serialize,
    ) -> io::Result<()> {
        let mut parts = BTreeMap::new();
        let disk = File::open(spec.dir.join("disk.img"))?;
        // Its stamp must be the one that it has after a power cut, too.
        disk.sync_all()?;
        for &(name, verify) in files {
            let file = File::open(self.temporary.join(name))?;
            file.sync_all()?;
            let crc32c = if verify == Verify::Content { Some(checksum(&file)?) } else { None };
            parts.insert(name.to_owned(), Part { bytes: file.metadata()?.len(), crc32c });
        }
        let description = Description {
            version: VERSION,
            identity: identity.clone(),
            disk: stamp(&spec.dir.join("disk.img"))?,
            image_bytes: image_bytes(spec)?,
            files: parts,
            detail: serde_json::to_value(detail)?,
        };
        write_durably(&self.temporary.join(DESCRIPTION), &serde_json::to_vec(&description)?)?;
        sync_dir(&self.temporary)
    }

    /// After an error the snapshot may have its name or not: [`discard`] it.
    pub fn publish(&self) -> io::Result<()> {
        remove(&path(&self.dir))?;
        fs::rename(&self.temporary, path(&self.dir))?;
        sync_dir(&self.dir)
    }

    pub fn discard(&self) {
        // What cannot be removed now is removed by the next draft.
        drop(remove(&self.temporary));
    }
}

/// A draft on which tasks work one after the other. What was begun comes to its end also when nobody waits for it any
/// more; so whoever takes everything back does that afterwards.
#[derive(Clone)]
pub struct SharedDraft(Arc<tokio::sync::Mutex<Draft>>);

impl SharedDraft {
    /// Nothing on the disk yet: see [`Draft::make`].
    pub fn of(dir: &Path) -> SharedDraft {
        SharedDraft(Arc::new(Draft::of(dir).into()))
    }

    /// Works on it where that holds nobody up.
    pub async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Draft) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let draft = self.0.clone().lock_owned().await;
        blocking_io("the snapshot", move || work(&draft)).await
    }

    /// It was not published.
    pub async fn discard(&self) -> Result<(), Problem> {
        let discard = |draft: &Draft| {
            draft.discard();
            Ok(())
        };
        self.with(discard).await
    }

    /// Neither the draft is left nor a snapshot.
    pub async fn take_back(&self) -> Result<(), Problem> {
        self.with(|draft| discard(&draft.dir)).await
    }
}

/// A snapshot that fits and whose files have the right lengths.
#[derive(Debug)]
pub struct Opened {
    dir: PathBuf,
    detail: Value,
}

impl Opened {
    /// What the driver gave to [`Draft::complete`].
    pub fn detail<T: DeserializeOwned>(&self) -> Result<T, WakeError> {
        serde_json::from_value(self.detail.clone())
            .map_err(|error| WakeError::SnapshotRefused { why: format!("{DESCRIPTION}: {error}") })
    }

    /// As it was when it was stamped: nobody has written to it since.
    pub fn is_untouched(&self, name: &str, then: &Stamp) -> bool {
        stamp(&self.dir.join(name)).is_ok_and(|now| now == *then)
    }

    pub fn file(&self, name: &str) -> Result<File, WakeError> {
        File::open(self.dir.join(name)).map_err(|error| unreadable(name, &error))
    }
}

/// Verifies everything that is cheap to read, and of the files what was asked for when they were made.
pub fn open(spec: &MachineSpec, identity: &Identity) -> Result<Opened, WakeError> {
    let refused = |why: String| Err(WakeError::SnapshotRefused { why });
    let dir = path(&spec.dir);
    let io = |name: &str, error: io::Error| unreadable(name, &error);
    let mut text = Vec::new();
    let description = File::open(dir.join(DESCRIPTION)).map_err(|error| io(DESCRIPTION, error))?;
    description.take(MAX_DESCRIPTION_BYTES).read_to_end(&mut text).map_err(|error| io(DESCRIPTION, error))?;
    let found: Description = match serde_json::from_slice(&text) {
        Ok(found) => found,
        Err(error) => return refused(format!("{DESCRIPTION}: {error}")),
    };
    if found.version != VERSION {
        return refused(format!("it has the format {}, this program reads {VERSION}", found.version));
    }
    if let Some(difference) = found.identity.difference(identity) {
        return refused(difference);
    }
    if found.disk != stamp(&spec.dir.join("disk.img")).map_err(|error| io("disk.img", error))? {
        return refused("the disk was changed since".into());
    }
    if found.image_bytes != image_bytes(spec).map_err(|error| io("the image", error))? {
        return refused("the image was changed since".into());
    }
    for (name, part) in &found.files {
        let file = File::open(dir.join(name)).map_err(|error| io(name, error))?;
        let bytes = file.metadata().map_err(|error| io(name, error))?.len();
        if bytes != part.bytes {
            return refused(format!("{name} is {bytes} bytes long, not {}", part.bytes));
        }
        if let Some(crc32c) = part.crc32c
            && checksum(&file).map_err(|error| io(name, error))? != crc32c
        {
            return refused(format!("{name} is damaged"));
        }
    }
    Ok(Opened { dir, detail: found.detail })
}

/// A file that is missing, short or unreadable is the snapshot's fault; all else is the host's.
pub fn unreadable(name: &str, error: &io::Error) -> WakeError {
    let damaged = matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
    );
    if damaged || error.raw_os_error() == Some(libc::EIO) {
        WakeError::SnapshotRefused { why: format!("{name}: {error}") }
    } else {
        WakeError::Failed(Problem::io(format!("the snapshot's {name}"), error))
    }
}

/// From here on it is not good any more: the guest is about to change its disk.
pub fn take(dir: &Path) -> io::Result<()> {
    let consumed = consumed_path(dir);
    remove(&consumed)?;
    fs::rename(path(dir), consumed)?;
    sync_dir(dir)
}

pub fn remove_consumed(dir: &Path) {
    // What cannot be removed now is removed by the next `take`.
    drop(remove(&consumed_path(dir)));
}

/// Keeps a refused snapshot for whoever wants to look at it, out of the way.
pub fn set_aside(dir: &Path) {
    let refused = dir.join("snapshot.refused");
    let moved = remove(&refused).and_then(|()| match fs::rename(path(dir), &refused) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    });
    if let Err(error) = moved {
        tracing::warn!(dir = %dir.display(), %error, "a refused snapshot could not be set aside");
    }
}

/// The machine runs on or starts anew: an older snapshot must not be woken any more.
pub fn discard(dir: &Path) -> io::Result<()> {
    remove(&dir.join("snapshot.tmp"))?;
    match exists(dir) {
        true => take(dir)?,
        false => remove(&path(dir))?,
    }
    remove_consumed(dir);
    Ok(())
}

pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn image_bytes(spec: &MachineSpec) -> io::Result<Vec<u64>> {
    let paths: Vec<&PathBuf> = match &spec.unikernel {
        Some(own) => {
            [Some(&own.kernel), own.initrd.as_ref(), own.disk.as_ref()].into_iter().flatten().collect()
        }
        None => vec![&spec.rootfs],
    };
    paths.into_iter().map(|path| Ok(fs::metadata(path)?.len())).collect()
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let data = fs::metadata(path)?;
    Ok(Stamp { bytes: data.len(), modified_s: data.mtime(), modified_ns: data.mtime_nsec() })
}

fn checksum(mut file: &File) -> io::Result<u32> {
    let mut buffer = vec![0; 256 << 10];
    let mut sum = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(sum),
            count => sum = crc32c::crc32c_append(sum, &buffer[..count]),
        }
    }
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloudpal_model::{MachineId, Rates, guest::GuestConfig};

    fn world() -> (tempfile::TempDir, MachineSpec, Identity) {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let spec = MachineSpec {
            id: MachineId(1),
            dir: root.path().into(),
            run_dir: path("run"),
            rootfs: path("root"),
            memory_mib: 1,
            vcpus: 1,
            disk_mib: 1,
            mac: [0; 6],
            rates: Rates::default(),
            guest: GuestConfig::default(),
            unikernel: None,
        };
        fs::write(path("disk.img"), "disk").unwrap();
        fs::write(path("root"), "root").unwrap();
        let identity = Identity::new("test", &spec).with("cpu", "one");
        (root, spec, identity)
    }

    fn complete(draft: &Draft, spec: &MachineSpec, identity: &Identity) -> io::Result<()> {
        draft.make()?;
        draft.create("memory")?.write_all(b"memory")?;
        draft.create("state")?.write_all(b"state")?;
        draft.complete(spec, identity, &[("memory", Verify::Length), ("state", Verify::Content)], &[7])
    }

    fn publish(spec: &MachineSpec, identity: &Identity) {
        let draft = Draft::of(&spec.dir);
        complete(&draft, spec, identity).unwrap();
        assert!(!exists(&spec.dir));
        draft.publish().unwrap();
        assert!(exists(&spec.dir));
    }

    fn why(opened: Result<Opened, WakeError>) -> String {
        match opened {
            Err(WakeError::SnapshotRefused { why }) => why,
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn what_was_published_opens_once_and_only_where_it_fits() {
        let (_root, spec, identity) = world();
        publish(&spec, &identity);
        let opened = open(&spec, &identity).unwrap();
        assert_eq!(opened.detail::<Vec<u32>>().unwrap(), [7]);
        let mut state = String::new();
        opened.file("state").unwrap().read_to_string(&mut state).unwrap();
        assert_eq!(state, "state");

        let other = identity.clone().with("cpu", "two");
        assert_eq!(why(open(&spec, &other)), "it was made with cpu \"one\", but here it is \"two\"");
        let other = identity.clone().with("microcode", 3);
        assert!(why(open(&spec, &other)).contains("microcode \"unknown\""));
        let file = |name: &str| path(&spec.dir).join(name);
        for (name, content, reason) in [
            ("state", "stat3", "state is damaged"),
            ("memory", "mem", "memory is 3 bytes long, not 6"),
            ("memory", "another memory", "memory is 14 bytes"),
            (DESCRIPTION, "{}", DESCRIPTION),
        ] {
            let good = fs::read(file(name)).unwrap();
            fs::write(file(name), content).unwrap();
            assert!(why(open(&spec, &identity)).contains(reason));
            fs::write(file(name), good).unwrap();
        }
        open(&spec, &identity).unwrap();
        fs::write(&spec.rootfs, "another root").unwrap();
        assert!(why(open(&spec, &identity)).contains("the image was changed"));
        fs::write(&spec.rootfs, "root").unwrap();

        take(&spec.dir).unwrap();
        assert!(!exists(&spec.dir));
        assert!(why(open(&spec, &identity)).contains("No such file"));
        let draft = Draft::of(&spec.dir);
        draft.make().unwrap();
        draft.link("memory", &consumed_path(&spec.dir).join("memory")).unwrap();
        remove_consumed(&spec.dir);
        draft.complete(&spec, &identity, &[("memory", Verify::Length)], &()).unwrap();
        draft.publish().unwrap();
        open(&spec, &identity).unwrap();
        discard(&spec.dir).unwrap();
        assert!(!exists(&spec.dir));
    }

    /// Whoever puts a machine to sleep gives up while the snapshot is just getting its name.
    #[tokio::test]
    async fn what_is_given_up_while_it_is_published_is_taken_back() {
        let (_root, spec, identity) = world();
        let draft = SharedDraft::of(&spec.dir);
        let (own, named) = (spec.clone(), identity.clone());
        draft.with(move |draft| complete(draft, &own, &named)).await.unwrap();
        let (begun, begins) = std::sync::mpsc::channel();
        let publishing = draft.with(move |draft| {
            begun.send(()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(100));
            draft.publish()
        });
        let given_up = tokio::time::timeout(std::time::Duration::from_millis(1), publishing).await;
        assert!(given_up.is_err(), "it was to be given up in the middle");
        begins.recv().unwrap();
        draft.take_back().await.unwrap();
        assert!(!exists(&spec.dir) && !spec.dir.join("snapshot.tmp").exists());
    }

    #[test]
    fn the_hosts_own_faults_refuse_nothing() {
        let full = io::Error::from_raw_os_error(libc::EMFILE);
        assert!(matches!(unreadable("memory", &full), WakeError::Failed(_)));
        let unreadable_disk = io::Error::from_raw_os_error(libc::EIO);
        assert!(matches!(unreadable("memory", &unreadable_disk), WakeError::SnapshotRefused { .. }));
    }
}
