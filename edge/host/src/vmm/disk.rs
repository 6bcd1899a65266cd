//! The machine's writable disk: a sparse file with an ext4 file system.
//!
//! Invariant: `disk.img` is whole or not there: it is made under another name, made durable, and renamed. Making it
//! blocks.

use cloudpal_model::{Kind, Problem};
use std::{fs, path::Path, process::Command};

pub fn ensure(dir: &Path, disk_mib: u32) -> Result<(), Problem> {
    let path = dir.join("disk.img");
    if path.exists() {
        return Ok(());
    }
    let fresh = dir.join("disk.img.new");
    let made = make(&fresh, disk_mib).and_then(|()| {
        fs::rename(&fresh, &path).map_err(|error| Problem::io(path.display(), &error))?;
        super::snapshot::sync_dir(dir).map_err(|error| Problem::io(dir.display(), &error))
    });
    if made.is_err() {
        drop(fs::remove_file(&fresh));
    }
    made
}

fn make(path: &Path, disk_mib: u32) -> Result<(), Problem> {
    let io = |error: &std::io::Error| Problem::io(format!("the disk {}", path.display()), error);
    let file = fs::File::create(path).map_err(|error| io(&error))?;
    file.set_len(u64::from(disk_mib) << 20).map_err(|error| io(&error))?;
    let mut mkfs = Command::new("mkfs.ext4");
    // No reserve for root: there is one app on it. The tables are zero already, in a sparse file.
    mkfs.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]).arg(path);
    let made = mkfs.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Problem::new(Kind::HostLacks, "mkfs.ext4 is not installed", "apt-get install e2fsprogs")
        }
        _ => io(&error),
    })?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        if said.contains("No space left") || said.contains("File too large") {
            return Err(io(&std::io::ErrorKind::StorageFull.into()));
        }
        let mend = "see that the disk's size is at least 2 MiB and its directory is writable";
        return Err(Problem::new(Kind::Internal, format!("mkfs.ext4 {}: {said}", path.display()), mend));
    }
    file.sync_all().map_err(|error| io(&error))
}
