//! The files that a guest fills: its log and its serial console. A guest may write without end; the host's disk and
//! memory have one.
//!
//! Invariants:
//! - The VMM appends (`O_APPEND`), so a file may be cut to nothing under its hands. Only what it writes between the
//!   copy and the cut is lost.
//! - What is shown of them is short, is read without reading the rest, and holds nothing that a terminal would obey.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

/// The log and the one before it take at most about twice this.
const LOG_BYTES: u64 = 16 << 20;
/// The console is in memory (`/run`); it is read only to explain a crash.
const CONSOLE_BYTES: u64 = 1 << 20;

/// Of a file, in an error message.
const TAIL_CHARS: usize = 600;

/// Cuts what has grown too long: the log moves to `log.1`, the console and the VMM's own words are emptied.
pub fn keep_bounded(dir: &Path, run_dir: &Path) -> io::Result<()> {
    for name in ["console.log", "vmm.log"] {
        let path = run_dir.join(name);
        if longer(&path, CONSOLE_BYTES)? {
            empty(&path)?;
        }
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

/// The end of a text file, for an error message.
pub(super) fn tail(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        let start = file.metadata()?.len().saturating_sub(8 * TAIL_CHARS as u64);
        file.seek(SeekFrom::Start(start))?;
        // It may grow while it is read.
        file.take(8 * TAIL_CHARS as u64).read_to_end(&mut bytes)
    });
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    // QEMU says that it waits for its monitor; that is no news.
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains(": info: ")).collect();
    cleaned(&lines.join("\n"), TAIL_CHARS)
}

/// The end of a foreign text, without what a terminal would obey.
pub(super) fn cleaned(text: &str, max_chars: usize) -> String {
    let clean: Vec<char> = text.chars().filter(|&char| char == '\n' || !char.is_control()).collect();
    clean[clean.len().saturating_sub(max_chars)..].iter().collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_tail_is_short_and_tame() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert_eq!(tail(&path), "");
        fs::write(&path, "x".repeat(1 << 20) + "\n\x1b[2Jqemu: info: waiting\nthe \x1b[31mend\r\n").unwrap();
        let said = tail(&path);
        assert!(said.ends_with("the [31mend") && !said.contains("waiting"), "{said}");
        assert_eq!(said.chars().count(), TAIL_CHARS);
        assert!(!said.contains('\x1b'));
    }

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
