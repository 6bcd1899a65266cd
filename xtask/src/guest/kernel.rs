//! What is inside a kernel package: the kernel inside its compressed image, and modules with their dependencies.

use anyhow::{Context, Result, bail};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

const ELF_MAGIC: &[u8] = b"\x7fELF";
/// The "legacy" frame of lz4, which is what the kernel's build writes.
const LZ4_LEGACY_MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const LZ4_LEGACY_BLOCK_BYTES: usize = 8 << 20;

/// The ELF kernel inside a bzImage, or `None` when it is packed in another way: then the VMM boots the bzImage itself.
pub fn uncompressed(image: &[u8]) -> Option<Vec<u8>> {
    // The kernel's boot protocol: sectors of set-up code, and where the payload lies after them.
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = usize::from(image[0x1f1]).max(1);
    let start = (setup_sectors + 1) * 512 + number(image, 0x248)?;
    let payload = image.get(start..start.checked_add(number(image, 0x24c)?)?)?;
    let mut rest = payload.strip_prefix(LZ4_LEGACY_MAGIC)?;
    let mut kernel = Vec::new();
    // After the last block come four bytes: the kernel's size.
    while rest.len() > 4 {
        let size = number(rest, 0)?;
        let block = rest.get(4..4 + size)?;
        kernel.extend(lz4_flex::block::decompress(block, LZ4_LEGACY_BLOCK_BYTES).ok()?);
        rest = &rest[4 + size..];
    }
    (kernel.starts_with(ELF_MAGIC) && number(rest, 0)? == kernel.len()).then_some(kernel)
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(four)).ok()
}

pub struct Module {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// The wanted modules and all that they depend on, each after its dependencies.
pub fn modules(dir: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    find_modules(&dir.join("kernel"), &mut files)?;
    let built_in = fs::read_to_string(dir.join("modules.builtin"))?;
    let built_in =
        built_in.lines().filter_map(|line| Some(plain(Path::new(line).file_stem()?.to_str()?))).collect();
    let mut resolved = Resolved { files, built_in, done: Vec::new() };
    for name in wanted {
        resolved.add(name)?;
    }
    Ok(resolved.done)
}

struct Resolved {
    files: HashMap<String, PathBuf>,
    built_in: Vec<String>,
    done: Vec<Module>,
}

impl Resolved {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = plain(name);
        if self.built_in.contains(&name) || self.done.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let path =
            self.files.get(&name).with_context(|| format!("the kernel package has no module {name}"))?;
        let bytes = fs::read(path)?;
        for needed in
            dependencies(&bytes).with_context(|| format!("{} is no kernel module", path.display()))?
        {
            self.add(&needed)?;
        }
        self.done.push(Module { name, bytes });
        Ok(())
    }
}

/// From the module's own `depends=` line. The package has no modules.dep: that is made when it is installed.
fn dependencies(module: &[u8]) -> Option<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let at = module.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let end = at + module[at..].iter().position(|&byte| byte == 0)?;
    let line = std::str::from_utf8(&module[at..end]).ok()?;
    Some(line.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn find_modules(dir: &Path, found: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() {
            find_modules(&path, found)?;
        } else if let Some(name) = name.strip_suffix(".ko") {
            found.insert(plain(name), path);
        } else if name.contains(".ko.") {
            bail!("{} is compressed, which this set-up does not read yet", path.display());
        }
    }
    Ok(())
}

/// Module names know no difference between `-` and `_`.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module() {
        let module = b"\x7fELF..license=GPL\0depends=virtio,virtio_ring\0name=a\0";
        assert_eq!(dependencies(module).unwrap(), ["virtio", "virtio_ring"]);
        assert!(dependencies(b"..\0depends=\0").unwrap().is_empty());
        assert!(dependencies(b"text").is_none());
    }

    #[test]
    fn what_is_no_kernel_image_is_left_as_it_is() {
        assert!(uncompressed(b"").is_none());
        assert!(uncompressed(&[0; 4096]).is_none());
        let mut image = vec![0; 4096];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(uncompressed(&image).is_none());
    }
}
