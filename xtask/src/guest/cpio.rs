//! The archive format of an initramfs ("newc"), written the same way every time: no times, no owners, no inode of
//! a host.

#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Archive {
    pub fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, (0, 0), &[]);
    }

    pub fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entry(name, REGULAR | mode, (0, 0), data);
    }

    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER_DEVICE, (major, minor), &[]);
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.pad(512);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
        self.inode += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let size = u32::try_from(data.len()).expect("no file of the initramfs is larger than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(data);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_reads_back_what_was_written() {
        let mut archive = Archive::default();
        archive.directory("d");
        archive.file("d/a", 0o644, b"five!");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        let dir = std::env::temp_dir().join(format!("cloudpal-cpio-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("a.cpio"), bytes).unwrap();
        let mut list = std::process::Command::new("sh");
        list.args(["-c", "cpio -itv --quiet < a.cpio"]).current_dir(&dir);
        let Ok(listing) = list.output() else {
            eprintln!("SKIPPED: no sh to run cpio with");
            return;
        };
        std::fs::remove_dir_all(&dir).unwrap();
        if listing.status.code() == Some(127) {
            eprintln!("SKIPPED: no cpio on this machine (apt-get install cpio)");
            return;
        }
        let text = String::from_utf8_lossy(&listing.stdout).into_owned();
        assert!(text.contains("drwxr-xr-x") && text.contains("-rw-r--r--") && text.contains("d/a"), "{text}");
    }
}
