//! PAX extended headers (POSIX.1-2001): `LENGTH KEY=VALUE\n`, for what a plain tar header cannot say.

/// What one extended header says of the entry that follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link_path: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// `SCHILY.xattr.*`: full names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub is_sparse: bool,
}

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

impl Pax {
    /// `None` when it cannot be understood.
    pub fn parse(mut data: &[u8]) -> Option<Pax> {
        let mut pax = Pax::default();
        while !data.is_empty() {
            let (key, value, rest) = record(data)?;
            pax.set(key, value)?;
            data = rest;
        }
        Some(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link_path = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?.try_into().ok()?),
            b"gid" => self.gid = Some(number(value)?.try_into().ok()?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ if key.starts_with(b"GNU.sparse.") => self.is_sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

/// The first record: its key, its value and what follows it.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(number(&data[..space])?).ok()?;
    if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
        return None;
    }
    let body = &data[space + 1..length - 1];
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &data[length..]))
}

fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `-12.5` is 13 seconds before the epoch and half a second on.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let point = text.iter().position(|b| *b == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(number(&text[..point])?).ok()?;
    let fraction = text.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_every_kind() {
        let data = b"12 path=a/b\n19 mtime=-12.5\n\n29 SCHILY.xattr.user.x=1\n2=3\n";
        assert_eq!(Pax::parse(data), None, "the second record's length is wrong");
        let data = b"12 path=a/b\n15 mtime=-12.5\n31 SCHILY.xattr.user.x=1\n2=3 4\n";
        let pax = Pax::parse(data).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.mtime, Some((-13, 500_000_000)));
        assert_eq!(pax.xattrs, [(b"user.x".to_vec(), b"1\n2=3 4".to_vec())]);
    }

    #[test]
    fn damaged_records_are_refused() {
        for bad in [
            &b"x"[..],
            b"5",
            b"0 a=b\n",
            b"99 a=b\n",
            b"6 a=bc",
            b"5 a=\n\n",
            b"6 uid=\n",
            b"9 size=x\n",
            b"6 abc\n",
        ] {
            assert_eq!(Pax::parse(bad), None, "{:?}", String::from_utf8_lossy(bad));
        }
    }
}
