//! Who we are to a registry: a user and password, given or from the file that container tools keep.
//!
//! Invariant: `Debug` never shows the password.

use base64::{Engine, engine::general_purpose::STANDARD};
use cloudpal_model::{Kind, Problem};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt, fs, path::Path};

/// A user name and a password or token.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &"redacted")
            .finish()
    }
}

/// `auth.json` of containers-auth.json(5), and Docker's `config.json`.
#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
}

#[derive(Deserialize)]
struct AuthEntry {
    auth: Option<String>,
}

impl Credentials {
    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.username, self.password)))
    }

    /// What such a file has for `HOST/NAME`: its most specific entry.
    pub fn from_auth_file(file: &Path, host: &str, name: &str) -> Result<Option<Credentials>, Problem> {
        let place = file.display();
        let text = fs::read_to_string(file).map_err(|error| Problem::io(place.to_string(), &error))?;
        let bad = |why: &str| {
            let mend = "log in again, for example with `skopeo login`";
            Problem::new(Kind::Invalid, format!("{place} is not a file of registry logins: {why}"), mend)
        };
        // The parser's own message could quote a password.
        let parsed: AuthFile = serde_json::from_str(&text).map_err(|_| bad("it is not such JSON"))?;
        let mut key = format!("{host}/{name}");
        loop {
            if let Some(auth) = parsed.auths.get(&key).and_then(|entry| entry.auth.as_deref()) {
                return decode(auth)
                    .map(Some)
                    .ok_or_else(|| bad("an entry is not base64 of `user:password`"));
            }
            match key.rfind('/') {
                Some(slash) => key.truncate(slash),
                None => break,
            }
        }
        let docker_hub = "https://index.docker.io/v1/";
        let entry = parsed.auths.get(docker_hub).filter(|_| host == "docker.io");
        match entry.and_then(|entry| entry.auth.as_deref()) {
            Some(auth) => {
                decode(auth).map(Some).ok_or_else(|| bad("an entry is not base64 of `user:password`"))
            }
            None => Ok(None),
        }
    }
}

fn decode(auth: &str) -> Option<Credentials> {
    let text = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(Credentials { username: username.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_login_wins_and_none_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        let entry = |text: &str| format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(text));
        let text =
            format!(r#"{{"auths":{{"a.example":{},"a.example/team":{}}}}}"#, entry("x:1"), entry("y:2:3"));
        fs::write(&file, text).unwrap();
        let of = |host, name| Credentials::from_auth_file(&file, host, name).unwrap();
        assert_eq!(of("a.example", "team/app").unwrap().password, "2:3");
        assert_eq!(of("a.example", "other").unwrap().username, "x");
        assert_eq!(of("b.example", "other"), None);
        assert!(!format!("{:?}", of("a.example", "team/app")).contains("2:3"));
    }
}
