//! Pulls from a registry (OCI distribution-spec): manifests and blobs, with Basic and token authentication.
//!
//! Invariants: a password goes only to the registry and to the token server that it names, never along a redirect, and
//! unencrypted only where the source's reference says so. No answer is read beyond the size that it may have.

use super::Credentials;
use cloudpal_compute::image::{Blob, Digest, ImageError, Limits, Remote, Select, manifest::ACCEPTED_TYPES};
use cloudpal_model::{Kind, Problem};
use serde::Deserialize;
use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    time::Duration,
};
use ureq::{Agent, Body, http::Response};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// No byte for so long is a dead connection.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
const DOWNLOAD_ATTEMPTS: u32 = 4;
const MAX_TOKEN_BYTES: u64 = 1 << 20;

pub(super) struct Registry {
    agent: Agent,
    remote: Remote,
    credentials: Option<Credentials>,
    /// The header that the registry accepted last.
    authorization: Option<String>,
}

/// How a registry wants to be told who we are.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry {
    pub fn new(remote: Remote, credentials: Option<Credentials>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(!remote.plain_http)
            .user_agent("cloudpal")
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .build();
        Registry { agent: config.into(), remote, credentials, authorization: None }
    }

    /// The manifest or index that the reference names, with its digest.
    pub fn top(&mut self, limits: &Limits) -> Result<(Vec<u8>, Digest), Problem> {
        let select = self.remote.select.clone();
        let response = self.get(&format!("manifests/{select}"), None)?;
        let named = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let named: Option<Digest> = named.and_then(|text| text.parse().ok());
        let bytes = self.read_all(response, limits.manifest_bytes)?;
        let what = format!("the manifest of {}", self.place());
        match (select, named) {
            (Select::Digest(digest), _) | (Select::Tag(_), Some(digest)) => {
                digest.verify(&what, &bytes)?;
                Ok((bytes, digest))
            }
            (Select::Tag(_), None) => {
                let digest = Digest::sha256_of(&bytes);
                Ok((bytes, digest))
            }
        }
    }

    pub fn manifest(&mut self, blob: &Blob) -> Result<Vec<u8>, Problem> {
        let response = self.get(&format!("manifests/{}", blob.digest), None)?;
        self.read_all(response, blob.size)
    }

    pub fn small_blob(&mut self, blob: &Blob) -> Result<Vec<u8>, Problem> {
        let response = self.get(&format!("blobs/{}", blob.digest), None)?;
        self.read_all(response, blob.size)
    }

    /// Fetches a blob into an empty file. A connection that breaks is taken up where it broke. The digest is checked by
    /// whoever reads the file.
    pub fn download(&mut self, blob: &Blob, file: &mut File, progress: &dyn Fn(u64)) -> Result<(), Problem> {
        let mut done = 0;
        for attempt in 1.. {
            let response =
                self.get(&format!("blobs/{}", blob.digest), Some(done).filter(|done| *done > 0))?;
            if done > 0 && response.status() != 206 {
                file.set_len(0).and_then(|()| file.rewind()).map_err(write_problem)?;
                done = 0;
            }
            let mut body = response.into_body().into_reader().take(blob.size - done + 1);
            let broken = copy(&mut body, file, &mut done, progress)?;
            let short = done < blob.size;
            match broken {
                Some(error) if attempt == DOWNLOAD_ATTEMPTS => return Err(self.network(&error.to_string())),
                // An answer that ends early without an error, again and again, is what the registry has.
                None if attempt == DOWNLOAD_ATTEMPTS => break,
                _ if short => {
                    tracing::warn!(digest = %blob.digest, done, "a download broke; taking it up again")
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// GET, logging in if the registry asks for it.
    fn get(&mut self, path: &str, from_byte: Option<u64>) -> Result<Response<Body>, Problem> {
        let response = self.send(path, from_byte)?;
        if response.status() != 401 {
            return self.checked(response);
        }
        let challenges = response.headers().get_all("www-authenticate");
        let found: Vec<Challenge> =
            challenges.iter().filter_map(|value| value.to_str().ok()).filter_map(challenge).collect();
        let bearer = found.iter().find(|one| matches!(one, Challenge::Bearer { .. }));
        self.authorization = Some(match (bearer.or(found.first()), &self.credentials) {
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                let token = self.token(realm, service.as_deref(), scope.as_deref())?;
                format!("Bearer {token}")
            }
            (Some(Challenge::Basic), Some(credentials)) => credentials.basic(),
            _ => return Err(self.login_refused()),
        });
        let response = self.send(path, from_byte)?;
        self.checked(response)
    }

    fn send(&self, path: &str, from_byte: Option<u64>) -> Result<Response<Body>, Problem> {
        let scheme = if self.remote.plain_http { "http" } else { "https" };
        let host = match self.remote.host.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let url = format!("{scheme}://{host}/v2/{}/{path}", self.remote.name);
        let mut request = self.agent.get(&url);
        if path.starts_with("manifests/") {
            request = request.header("Accept", ACCEPTED_TYPES.join(", "));
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        if let Some(from_byte) = from_byte {
            request = request.header("Range", format!("bytes={from_byte}-"));
        }
        request.call().map_err(|error| self.network(&error.to_string()))
    }

    fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<String, Problem> {
        let default_scope = format!("repository:{}:pull", self.remote.name);
        let mut request = self.agent.get(realm).query("scope", scope.unwrap_or(&default_scope));
        if let Some(service) = service {
            request = request.query("service", service);
        }
        if let Some(credentials) = &self.credentials {
            request = request.header("Authorization", credentials.basic());
        }
        let response = request.call().map_err(|error| self.network(&error.to_string()))?;
        let response = self.checked(response)?;
        let bytes = self.read_all(response, MAX_TOKEN_BYTES)?;
        let token =
            serde_json::from_slice::<Token>(&bytes).ok().and_then(|token| token.token.or(token.access_token));
        token.ok_or_else(|| self.network("its token server answers without a token"))
    }

    fn checked(&self, response: Response<Body>) -> Result<Response<Body>, Problem> {
        let place = self.place();
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            401 | 403 => Err(self.login_refused()),
            404 => {
                let mend = "check the name, the tag and whether you may see it";
                Err(Problem::new(Kind::NotFound, format!("the registry does not have {place}"), mend))
            }
            429 => {
                let mend = "wait a while, or log in";
                Err(Problem::new(
                    Kind::Unavailable,
                    format!("the registry limits how often {place} is asked for"),
                    mend,
                ))
            }
            status => Err(self.network(&format!("it answers with status {status}"))),
        }
    }

    fn login_refused(&self) -> Problem {
        let host = &self.remote.host;
        match &self.credentials {
            Some(credentials) => Problem::new(
                Kind::Refused,
                format!("the registry {host} does not let `{}` pull {}", credentials.username, self.place()),
                "check the user name, the password and the image's name",
            ),
            None => Problem::new(
                Kind::Refused,
                format!("the registry {host} wants a login for {}", self.place()),
                "give a user name and password, or the file of logins that `skopeo login` writes",
            ),
        }
    }

    fn network(&self, why: &str) -> Problem {
        let what = format!("the registry {} cannot be used: {why}", self.remote.host);
        let mend = match self.remote.plain_http {
            true => "check the host name, the port and the network, then try again",
            false => {
                "check the host name, the port and the network, then try again; \
                 a registry without TLS is written docker+http://HOST/NAME"
            }
        };
        Problem::new(Kind::Unavailable, what, mend)
    }

    fn read_all(&self, response: Response<Body>, limit: u64) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::new();
        let read = response.into_body().into_reader().take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| self.network(&error.to_string()))?;
        if bytes.len() as u64 > limit {
            let place = format!("an answer of the registry {}", self.remote.host);
            return Err(ImageError::OverLimit { place, what: "its size in bytes", limit }.into());
        }
        Ok(bytes)
    }

    fn place(&self) -> String {
        let Remote { host, name, select, .. } = &self.remote;
        match select {
            Select::Tag(tag) => format!("{host}/{name}:{tag}"),
            Select::Digest(digest) => format!("{host}/{name}@{digest}"),
        }
    }
}

/// Copies until the end or until the network breaks, which is answered; a disk that fails is an error.
fn copy(
    body: &mut impl Read,
    file: &mut File,
    done: &mut u64,
    progress: &dyn Fn(u64),
) -> Result<Option<io::Error>, Problem> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => {
                file.write_all(&buffer[..count]).map_err(write_problem)?;
                *done += count as u64;
                progress(*done);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Some(error)),
        }
    }
}

fn write_problem(error: io::Error) -> Problem {
    Problem::io("writing the downloaded image", &error)
}

/// RFC 9110 §11.6.1, as far as registries use it.
fn challenge(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    let mut rest = rest.trim_start();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            "scope" => scope = Some(value.to_owned()),
            _ => {}
        }
        rest = after.trim_start_matches([',', ' ']);
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let text = r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: Some("r.example".into()),
            scope: Some("repository:a/b:pull,push".into()),
        };
        assert_eq!(challenge(text), Some(expected));
        assert_eq!(challenge("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(challenge("Bearer service=\"x\""), None);
        assert_eq!(challenge("Bearer realm=\"open"), None);
        assert_eq!(challenge("Negotiate"), None);
    }
}
