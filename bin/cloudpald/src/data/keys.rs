//! The keys of a tenant's data, all from one root, and keys as people write them.
//!
//! Invariant: the root is in one file, which is its tenant's and root's alone; it is made durable before anything is
//! sealed with it.

use cloudpal_data::crypto::{self, Hash, KeyPair};
use cloudpal_model::{Kind, Problem};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

pub struct Keys {
    root: [u8; 32],
}

impl Keys {
    /// Reads the root, or makes it.
    pub fn open(path: &Path) -> Result<Keys, Problem> {
        let place = |error: &io::Error| Problem::io(format_args!("the data's key {}", path.display()), error);
        match fs::read(path) {
            Ok(bytes) => {
                let root = bytes.try_into().map_err(|_| {
                    let what = format!("the data's key {} has not 32 bytes", path.display());
                    Problem::new(
                        Kind::Internal,
                        what,
                        "restore it from a backup: without it nothing can be read",
                    )
                })?;
                Ok(Keys { root })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let root = random()?;
                write(path, &root).map_err(|error| place(&error))?;
                Ok(Keys { root })
            }
            Err(error) => Err(place(&error)),
        }
    }

    fn derive(&self, purpose: &str) -> [u8; 32] {
        crypto::keyed_hash(&self.root, &[b"cloudpal data 1 ", purpose.as_bytes()])
    }

    /// What seals the store.
    pub fn store(&self) -> [u8; 32] {
        self.derive("store")
    }

    /// By which peers know the tenant's server.
    pub fn server(&self) -> KeyPair {
        KeyPair::from_seed(&self.derive("server"))
    }

    /// The writer's key pair of a core, as corestores derive it from their primary key.
    pub fn core(&self, name: &str) -> KeyPair {
        crypto::named_key_pair(&self.derive("primary"), &[0; 32], name.as_bytes())
    }
}

fn write(path: &Path, root: &[u8; 32]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temporary = path.with_extension("new");
    let mut file =
        fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(root)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    fs::File::open(dir)?.sync_all()
}

pub fn random<const N: usize>() -> Result<[u8; N], Problem> {
    let mut bytes = [0; N];
    let filled = getrandom::fill(&mut bytes);
    let mend = "see the host's log: getrandom(2) failed";
    filled.map_err(|error| Problem::new(Kind::Internal, format!("no random bytes: {error}"), mend))?;
    Ok(bytes)
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 64 hexadecimal digits, or 52 characters of z-base-32.
pub fn parse(text: &str) -> Result<Hash, Problem> {
    let parsed = match text.len() {
        64 => unhex(text).and_then(|bytes| bytes.try_into().ok()),
        52 => unbase32(text),
        _ => None,
    };
    let mend = "give 64 hexadecimal digits, or 52 characters of z-base-32";
    parsed.ok_or_else(|| Problem::new(Kind::Invalid, format!("{text:?} is no key"), mend))
}

/// As many bytes as there are pairs of digits; `None`: something else is among them.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let digit = |digit: u8| char::from(digit).to_digit(16);
    pairs.iter().map(|[high, low]| Some((digit(*high)? * 16 + digit(*low)?) as u8)).collect()
}

/// 52 characters of 5 bits are 260; the last 4 must be zero.
fn unbase32(text: &str) -> Option<Hash> {
    const DIGITS: &[u8] = b"ybndrfg8ejkmcpqxot1uwisza345h769";
    let (mut key, mut at, mut bits, mut held) = ([0; 32], 0, 0, 0_u32);
    for digit in text.bytes() {
        held = held << 5 | DIGITS.iter().position(|known| *known == digit)? as u32;
        bits += 5;
        if bits >= 8 && at < key.len() {
            bits -= 8;
            key[at] = (held >> bits) as u8;
            at += 1;
            held &= (1 << bits) - 1;
        }
    }
    (held == 0).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_people_write_them() {
        let key: Hash = std::array::from_fn(|at| at as u8 * 7);
        assert_eq!(parse(&hex(&key)).unwrap(), key);
        // By z32 1.1.0, the package of npm.
        assert_eq!(parse("yydohfehrcidnqb9e3gies5npfa8q9wft1j3iepei65m5tgm4mco").unwrap(), key);
        assert_eq!(parse(&"y".repeat(52)).unwrap(), [0; 32]);
        for bad in [&"y".repeat(51)[..], &"9".repeat(52), &"l".repeat(52), &"g".repeat(64)] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_root_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/t1");
        let first = Keys::open(&path).unwrap();
        assert_eq!(Keys::open(&path).unwrap().store(), first.store());
        assert_ne!(first.store(), Keys::open(&dir.path().join("keys/t2")).unwrap().store());
        fs::write(&path, "short").unwrap();
        assert!(Keys::open(&path).is_err());
    }
}
