//! Room on the host's disks.

use std::{io, path::Path};

/// What an unprivileged writer may still use on the disk that holds `dir`, MiB.
pub fn free_mib(dir: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    Ok(stat.blocks_available() * stat.fragment_size() / (1 << 20))
}
