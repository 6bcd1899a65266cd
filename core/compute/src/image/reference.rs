//! Where an image comes from, as people write it (the field's own transport names).

use super::{digest::Digest, error::ImageError};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A parsed source of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// An OCI image layout: `oci:DIR[:TAG]`.
    OciLayout { dir: PathBuf, tag: Option<String> },
    /// The same in a tar: `oci-archive:FILE[:TAG]`.
    OciArchive { file: PathBuf, tag: Option<String> },
    /// What `docker save` writes: `docker-archive:FILE[:NAME:TAG]`.
    DockerArchive { file: PathBuf, name: Option<String> },
    /// `docker://HOST[:PORT]/NAME[:TAG|@DIGEST]`.
    Registry(Remote),
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// As written: `registry.example:5000`, `[::1]:5000`.
    pub host: String,
    pub name: String,
    pub select: Select,
    /// Unencrypted HTTP: only for this very host, or when the source was written `docker+http://`.
    pub plain_http: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    Tag(String),
    Digest(Digest),
}

impl fmt::Display for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Select::Tag(tag) => f.write_str(tag),
            Select::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

impl Reference {
    /// Where it is on the host; `None`: in a registry.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Reference::OciLayout { dir: path, .. }
            | Reference::OciArchive { file: path, .. }
            | Reference::DockerArchive { file: path, .. } => Some(path),
            Reference::Registry(_) => None,
        }
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let bad = |why| ImageError::BadReference { text: text.chars().take(300).collect(), why };
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(bad("it is empty or has control characters"));
        }
        if let Some(rest) = text.strip_prefix("docker+http://") {
            return remote(rest, true, true).map(Reference::Registry).map_err(bad);
        }
        if let Some(rest) = text.strip_prefix("docker://") {
            return remote(rest, true, false).map(Reference::Registry).map_err(bad);
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (dir, tag) = path_and_tag(rest).map_err(bad)?;
            return Ok(Reference::OciLayout { dir, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (file, tag) = path_and_tag(rest).map_err(bad)?;
            return Ok(Reference::OciArchive { file, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, name) = path_and_tag(rest).map_err(bad)?;
            return Ok(Reference::DockerArchive { file, name });
        }
        if text.starts_with(['/', '.']) {
            return Err(bad("it is a path without `oci:`, `oci-archive:` or `docker-archive:` before it"));
        }
        remote(text, false, false).map(Reference::Registry).map_err(bad)
    }
}

/// The path goes up to the first colon behind the last slash of the part that can be a path; what follows is the tag.
fn path_and_tag(text: &str) -> Result<(PathBuf, Option<String>), &'static str> {
    let (path, tag) = match text.split_once(':') {
        Some((_, "")) => return Err("nothing follows the `:`"),
        Some((path, tag)) => (path, Some(tag.to_owned())),
        None => (text, None),
    };
    if path.is_empty() {
        return Err("it has no path");
    }
    Ok((PathBuf::from(path), tag))
}

fn remote(text: &str, host_may_miss: bool, plain_asked: bool) -> Result<Remote, &'static str> {
    let first = text.split('/').next().unwrap_or_default();
    let has_host = text.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let (host, path) = match text.split_once('/') {
        Some((host, path)) if has_host => (host.to_owned(), path.to_owned()),
        _ if !host_may_miss => return Err("it names no registry host"),
        Some(_) => ("docker.io".to_owned(), text.to_owned()),
        None => ("docker.io".to_owned(), format!("library/{text}")),
    };
    check_host(&host)?;
    let (path, digest) = match path.split_once('@') {
        Some((path, digest)) => {
            (path.to_owned(), Some(digest.parse().map_err(|_| "its digest is not valid")?))
        }
        None => (path, None),
    };
    let (name, tag) = match path.rsplit_once(':') {
        Some((name, tag)) => (name.to_owned(), Some(tag.to_owned())),
        None => (path, None),
    };
    check_name(&name)?;
    if let Some(tag) = &tag {
        check_tag(tag)?;
    }
    // A digest names the content; a tag beside it is only a comment.
    let select = match digest {
        Some(digest) => Select::Digest(digest),
        None => Select::Tag(tag.unwrap_or_else(|| "latest".to_owned())),
    };
    Ok(Remote { plain_http: plain_asked || is_loopback(&host), host, name, select })
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = split_port(host);
    if let Some(port) = port
        && port.parse::<u16>().is_err()
    {
        return Err("its port is not a number up to 65535");
    }
    let bracketed = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let fine = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-'),
    };
    if fine { Ok(()) } else { Err("its registry host is not a host name or address") }
}

/// Splits `host:port`; the colons of an IPv6 address in brackets are not meant.
fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    }
}

fn is_loopback(host: &str) -> bool {
    let (name, _) = split_port(host);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// distribution-spec, "Pulling manifests": the grammar of `<name>`.
fn check_name(name: &str) -> Result<(), &'static str> {
    let part_is_fine = |part: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = part.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes
                .iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
    };
    if name.len() <= 255 && name.split('/').all(part_is_fine) {
        return Ok(());
    }
    Err("its name is not made of a-z, 0-9, `.`, `_`, `-` between slashes")
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=128).contains(&tag.len()) && !tag.starts_with(['.', '-']) && tag.bytes().all(fine) {
        return Ok(());
    }
    Err("its tag is not made of up to 128 letters, digits, `.`, `_`, `-`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(text: &str) -> Remote {
        match text.parse::<Reference>() {
            Ok(Reference::Registry(remote)) => remote,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn local_sources() {
        let layout = "oci:/a/b:v1".parse::<Reference>().unwrap();
        assert_eq!(layout, Reference::OciLayout { dir: "/a/b".into(), tag: Some("v1".into()) });
        let archive = "docker-archive:x.tar:radicale:3".parse::<Reference>().unwrap();
        assert_eq!(
            archive,
            Reference::DockerArchive { file: "x.tar".into(), name: Some("radicale:3".into()) }
        );
        let archive = "oci-archive:x.tar".parse::<Reference>().unwrap();
        assert_eq!(archive, Reference::OciArchive { file: "x.tar".into(), tag: None });
    }

    #[test]
    fn registries() {
        let remote = registry("docker://registry.example/team/app:1.2");
        assert_eq!((remote.host.as_str(), remote.name.as_str()), ("registry.example", "team/app"));
        assert_eq!(remote.select, Select::Tag("1.2".into()));
        assert!(!remote.plain_http);
        assert!(registry("127.0.0.1:5000/app").plain_http);
        assert!(registry("[::1]:5000/app:x").plain_http);
        assert!(registry("docker+http://registry.lan/app").plain_http);
        assert!(!registry("localhost.example/app").plain_http);
        assert_eq!(registry("docker://debian").name, "library/debian");
        assert_eq!(registry("docker://team/app").host, "docker.io");
        let digest = Digest::sha256_of(b"x");
        assert_eq!(registry(&format!("a.example/b:tag@{digest}")).select, Select::Digest(digest));
    }

    #[test]
    fn bad_references_say_why() {
        let long = format!("docker://a.example/{}", "x".repeat(300));
        for bad in [
            "",
            "debian",
            "/some/dir",
            "oci:",
            "oci::tag",
            "oci:/x:",
            "docker://",
            "docker://a.example/",
            "a.b/UPPER",
            "docker://a.example:99999/x",
            "docker://a b.example/x",
            "a.example/x:",
            "a.example/x@sha256:12",
            "a.b/../c",
            "a.example/x:-t",
            "a.example/x\ny",
            "[::g]:1/x",
            &long,
        ] {
            assert!(matches!(bad.parse::<Reference>(), Err(ImageError::BadReference { .. })), "{bad:?}");
        }
    }
}
