//! The files that a guest fills: its log and its serial console. A guest may write without end; the host's disk and
//! memory have one.
//!
//! Invariant: the VMM appends (`O_APPEND`), so a file may be cut to nothing under its hands. Only what it writes
//! between the copy and the cut is lost.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// The log and the one before it take at most about twice this.
const LOG_BYTES: u64 = 16 << 20;
/// The console is in memory (`/run`); it is read only to explain a crash.
const CONSOLE_BYTES: u64 = 1 << 20;

/// Cuts what has grown too long: the log moves to `log.1`, the console is emptied.
pub fn keep_bounded(dir: &Path, run_dir: &Path) -> io::Result<()> {
    let console = run_dir.join("console.log");
    if longer(&console, CONSOLE_BYTES)? {
        empty(&console)?;
    }
    let log = dir.join("log");
    if !longer(&log, LOG_BYTES)? {
        return Ok(());
    }
    let copy = dir.join("log.1.new");
    let kept = fs::copy(&log, &copy).and_then(|_| fs::rename(&copy, dir.join("log.1")));
    if kept.is_err() {
        drop(fs::remove_file(&copy));
    }
    // On a full disk, too: above all on a full disk.
    empty(&log)?;
    kept
}

fn longer(path: &Path, bytes: u64) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(file) => Ok(file.len() > bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn empty(path: &Path) -> io::Result<()> {
    File::options().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_guest_that_writes_without_end_fills_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let open = |name: &str| File::options().append(true).create(true).open(path(name)).unwrap();
        let (mut log, mut console) = (open("log"), open("console.log"));
        let block = vec![b'x'; 1 << 20];
        for _ in 0..50 {
            log.write_all(&block).unwrap();
            console.write_all(&block).unwrap();
            keep_bounded(dir.path(), dir.path()).unwrap();
        }
        let length = |name: &str| fs::metadata(path(name)).unwrap().len();
        assert!(length("log") <= LOG_BYTES && length("log.1") <= LOG_BYTES + (1 << 20));
        assert!(length("console.log") <= CONSOLE_BYTES);
        // What comes after the cut is at the file's beginning, not behind a hole.
        fs::write(path("log"), "").unwrap();
        log.write_all(b"hello").unwrap();
        assert_eq!(fs::read(path("log")).unwrap(), b"hello");
    }
}
