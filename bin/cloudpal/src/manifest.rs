//! An app's manifest: a small TOML file, or flags, or both; flags win.
//!
//! Invariant: a key that is not known is refused; image paths leave here absolute, since the daemon's directory is
//! another one.

use crate::units;
use cloudpal_api::{AppKind, Manifest};
use cloudpal_model::{Kind, Problem};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The schemes whose rest is a path on this host.
const PATH_SCHEMES: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

/// What `--manifest` reads, and what the flags say.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    pub image: Option<String>,
    pub kind: Option<AppKind>,
    pub memory: Option<Mib>,
    pub vcpus: Option<u32>,
    pub disk: Option<Mib>,
    pub idle: Option<DurationMs>,
    #[serde(default)]
    pub argv: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    #[serde(default)]
    pub ports: Vec<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Mib(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct DurationMs(pub u64);

impl TryFrom<String> for Mib {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        units::mib(&text).map(Mib)
    }
}

impl TryFrom<String> for DurationMs {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        units::duration_ms(&text).map(DurationMs)
    }
}

impl Wish {
    /// Reads a manifest. Its image path counts from its own directory.
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Problem::new(Kind::NotFound, format!("{} does not exist", path.display()), "check --manifest")
            }
            std::io::ErrorKind::InvalidData => {
                let what = format!("{} is not text", path.display());
                Problem::new(Kind::Invalid, what, "a manifest is a TOML file in UTF-8")
            }
            _ => Problem::io(format_args!("reading {}", path.display()), &error),
        })?;
        let mut wish: Wish = toml::from_str(&text).map_err(|error| {
            let mend = "`cloudpal app install --help` shows what a manifest looks like";
            Problem::new(Kind::Invalid, format!("{}: {error}", path.display()).trim_end(), mend)
        })?;
        let dir = path.parent().unwrap_or(Path::new(""));
        wish.image = wish.image.map(|image| absolute_image(&image, dir)).transpose()?;
        Ok(wish)
    }

    /// What the flags say, and where they say nothing, what the manifest says. Environments add up.
    pub fn or(self, manifest: Wish) -> Wish {
        let filled =
            |flags: Vec<String>, manifest: Vec<String>| if flags.is_empty() { manifest } else { flags };
        Wish {
            image: self.image.or(manifest.image),
            kind: self.kind.or(manifest.kind),
            memory: self.memory.or(manifest.memory),
            vcpus: self.vcpus.or(manifest.vcpus),
            disk: self.disk.or(manifest.disk),
            idle: self.idle.or(manifest.idle),
            argv: filled(self.argv, manifest.argv),
            env: manifest.env.into_iter().chain(self.env).collect(),
            ports: if self.ports.is_empty() { manifest.ports } else { self.ports },
        }
    }

    pub fn into_manifest(self) -> Result<Manifest, Problem> {
        let image = self.image.ok_or_else(|| {
            let mend = "name it after the app's name, or as `image = \"…\"` in the manifest";
            Problem::new(Kind::Invalid, "no image is named", mend)
        })?;
        Ok(Manifest {
            image: absolute_image(&image, Path::new(""))?,
            kind: self.kind,
            memory_mib: self.memory.map(|memory| memory.0),
            vcpus: self.vcpus,
            disk_mib: self.disk.map(|disk| disk.0),
            idle_timeout_ms: self.idle.map(|idle| idle.0),
            argv: self.argv,
            env: self.env,
            ready_tcp_ports: self.ports,
        })
    }
}

/// `oci:./dir:tag` becomes `oci:/here/dir:tag`; what is no path stays as it is.
fn absolute_image(image: &str, dir: &Path) -> Result<String, Problem> {
    let Some((scheme, rest)) =
        PATH_SCHEMES.iter().find_map(|scheme| Some((scheme, image.strip_prefix(scheme)?)))
    else {
        return Ok(image.to_owned());
    };
    if rest.is_empty() {
        return Ok(image.to_owned());
    }
    let path: PathBuf = std::path::absolute(dir.join(rest)).map_err(|error| Problem::io(image, &error))?;
    let path = path.to_str().ok_or_else(|| {
        let what = format!("the path of {image} is not UTF-8: {}", path.display());
        Problem::new(Kind::Invalid, what, "give the image's absolute path from a directory whose name is")
    })?;
    Ok(format!("{scheme}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.toml");
        std::fs::write(
            &path,
            "image = \"oci:./web:v1\"\nmemory = \"128MiB\"\nvcpus = 2\ndisk = \"1GiB\"\nidle = \"5m\"\n\
             argv = [\"serve\"]\nenv = [\"A=1\"]\nports = [80]\n",
        )
        .unwrap();
        let flags = Wish { idle: Some(DurationMs(0)), env: vec!["B=2".into()], ..Wish::default() };
        let manifest = flags.or(Wish::read(&path).unwrap()).into_manifest().unwrap();
        assert_eq!(manifest.image, format!("oci:{}/web:v1", dir.path().display()));
        assert_eq!(
            (manifest.memory_mib, manifest.vcpus, manifest.disk_mib),
            (Some(128), Some(2), Some(1024))
        );
        assert_eq!(manifest.idle_timeout_ms, Some(0));
        assert_eq!(manifest.env, ["A=1", "B=2"]);
        assert_eq!((manifest.argv, manifest.ready_tcp_ports), (vec!["serve".to_owned()], vec![80]));
    }

    #[test]
    fn unknown_keys_and_bad_units_are_refused_where_they_stand() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.toml");
        for (text, why) in [
            ("image = \"x\"\nmemroy = \"1MiB\"\n", "memroy"),
            ("image = \"x\"\nmemory = \"1MB\"\n", "MB"),
            ("image = \"x\"\nidle = \"30\"\n", "no unit"),
            ("image = ", "line 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let problem = Wish::read(&path).unwrap_err();
            assert_eq!(problem.kind, Kind::Invalid);
            assert!(problem.what.contains(why), "{text}: {problem}");
        }
        assert_eq!(Wish::read(&dir.path().join("none")).unwrap_err().kind, Kind::NotFound);
        assert_eq!(Wish::default().into_manifest().unwrap_err().kind, Kind::Invalid);
    }

    #[test]
    fn only_paths_are_made_absolute() {
        let here = std::env::current_dir().unwrap();
        let absolute = |image| absolute_image(image, Path::new("")).unwrap();
        assert_eq!(absolute("oci:./a:b"), format!("oci:{}/a:b", here.display()));
        assert_eq!(absolute("oci-archive:/x/y.tar"), "oci-archive:/x/y.tar");
        assert_eq!(absolute("docker://localhost:5000/a:b"), "docker://localhost:5000/a:b");
        assert_eq!(absolute("oci:"), "oci:");
    }
}
