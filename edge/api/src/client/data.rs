//! The client's calls about a tenant's data.
//!
//! Invariant: contents pass through in pieces, in both directions; a transfer may take as long as it goes on.

use super::{CALL_TIMEOUT, Client, broken, collect, limited, not_understood, refusal};
use crate::{
    BlockCut, BlockQuery, Data, DataAdd, DataCompacted, DataCursor, DataCursorMove, DataImported, DataList,
    DataPeerAdd, DataPeerList, DataQuota, DataShare, DataVerified, DataVersion, EntryList, EntryQuery,
    FileList, FileListQuery, FilePurge, FileQuery, HistoryQuery, KeyQuery, MAX_BLOCK_BYTES, VersionQuery,
};
use cloudpal_model::{Kind, Name, Problem};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    Method,
    body::{Bytes, Frame},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read},
    time::Duration,
};

/// Reading every block of much data takes its time.
const LONG_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// What is sent of a file at once.
const PIECE_BYTES: usize = 256 << 10;

/// Where the pieces of a download go.
pub type Sink<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

impl Client {
    pub fn data_list(&self, tenant: &Name) -> Result<DataList, Problem> {
        self.get(&format!("/v1/tenants/{tenant}/data"))
    }

    pub fn data_add(&self, tenant: &Name, add: &DataAdd) -> Result<Data, Problem> {
        self.post(&format!("/v1/tenants/{tenant}/data"), Some(add), CALL_TIMEOUT)
    }

    pub fn data(&self, tenant: &Name, name: &Name) -> Result<Data, Problem> {
        self.get(&at(tenant, name, ""))
    }

    pub fn data_remove(&self, tenant: &Name, name: &Name) -> Result<Data, Problem> {
        self.delete(&at(tenant, name, ""))
    }

    pub fn data_share(&self, tenant: &Name, name: &Name) -> Result<DataShare, Problem> {
        self.get(&at(tenant, name, "/share"))
    }

    /// Takes over what its key has signed elsewhere, so that it can be written again.
    pub fn data_catch_up(&self, tenant: &Name, name: &Name) -> Result<Data, Problem> {
        self.post::<(), _>(&at(tenant, name, "/catch-up"), None, LONG_TIMEOUT)
    }

    pub fn data_verify(&self, tenant: &Name, name: &Name) -> Result<DataVerified, Problem> {
        self.post::<(), _>(&at(tenant, name, "/verify"), None, LONG_TIMEOUT)
    }

    pub fn data_peers(&self, tenant: &Name, name: &Name) -> Result<DataPeerList, Problem> {
        self.get(&at(tenant, name, "/peers"))
    }

    pub fn data_peer_add(
        &self,
        tenant: &Name,
        name: &Name,
        peer: &DataPeerAdd,
    ) -> Result<DataPeerList, Problem> {
        self.post(&at(tenant, name, "/peers"), Some(peer), CALL_TIMEOUT)
    }

    pub fn data_quota(&self, tenant: &Name, quota: &DataQuota) -> Result<DataList, Problem> {
        let path = format!("/v1/tenants/{tenant}/data-quota");
        let body = serde_json::to_vec(quota).map_err(|error| not_understood(&path, &error))?;
        self.call(Method::PUT, &path, body.into(), CALL_TIMEOUT)
    }

    pub fn data_compact(&self, tenant: &Name) -> Result<DataCompacted, Problem> {
        self.post::<(), _>(&format!("/v1/tenants/{tenant}/data-compact"), None, LONG_TIMEOUT)
    }

    /// Hands the stream of an export to `sink`, as it comes.
    pub fn data_export(&self, tenant: &Name, sink: &mut Sink<'_>) -> Result<(), Problem> {
        self.download(&format!("/v1/tenants/{tenant}/data-export"), Some(LONG_TIMEOUT), sink)
    }

    /// `content` is the stream of an export, `progress` as in [`Client::file_put`].
    pub fn data_import(
        &self,
        tenant: &Name,
        (content, progress): (&mut (dyn Read + Send), &mut (dyn FnMut(u64) + Send)),
    ) -> Result<DataImported, Problem> {
        self.upload(Method::POST, &format!("/v1/tenants/{tenant}/data-import"), content, progress)
    }

    pub fn core_append(&self, tenant: &Name, name: &Name, block: Vec<u8>) -> Result<DataVersion, Problem> {
        self.upload(Method::POST, &at(tenant, name, "/blocks"), &mut block.as_slice(), &mut |_| ())
    }

    pub fn core_block(&self, tenant: &Name, name: &Name, index: u64) -> Result<Vec<u8>, Problem> {
        self.collected(&at(tenant, name, &format!("/blocks/{index}")))
    }

    /// Hands each block to `sink`; with `follow` until that fails.
    pub fn core_blocks(
        &self,
        tenant: &Name,
        name: &Name,
        query: &BlockQuery,
        sink: &mut Sink<'_>,
    ) -> Result<(), Problem> {
        let path = with_query(at(tenant, name, "/blocks"), query)?;
        let mut unfinished = Vec::new();
        self.download(&path, None, &mut |piece| {
            unfinished.extend_from_slice(piece);
            while let Some((head, rest)) = unfinished.split_first_chunk::<4>() {
                let length = u32::from_le_bytes(*head) as usize;
                if length > MAX_BLOCK_BYTES {
                    return Err(io::Error::other("the daemon sent a block of more than 15 MiB"));
                }
                let Some(block) = rest.get(..length) else { break };
                sink(block)?;
                unfinished.drain(..4 + length);
            }
            Ok(())
        })
    }

    pub fn core_cut(&self, tenant: &Name, name: &Name, cut: &BlockCut) -> Result<DataVersion, Problem> {
        self.post(&at(tenant, name, "/cut"), Some(cut), CALL_TIMEOUT)
    }

    /// Where a consumer is; one that is not known yet is at the first block.
    pub fn cursor(&self, tenant: &Name, name: &Name, consumer: &Name) -> Result<DataCursor, Problem> {
        self.get(&at(tenant, name, &format!("/cursors/{consumer}")))
    }

    pub fn cursor_move(
        &self,
        tenant: &Name,
        name: &Name,
        consumer: &Name,
        to: &DataCursorMove,
    ) -> Result<DataCursor, Problem> {
        let path = at(tenant, name, &format!("/cursors/{consumer}"));
        let body = serde_json::to_vec(to).map_err(|error| not_understood(&path, &error))?;
        self.call(Method::PUT, &path, body.into(), CALL_TIMEOUT)
    }

    pub fn entries(&self, tenant: &Name, name: &Name, query: &EntryQuery) -> Result<EntryList, Problem> {
        self.get(&with_query(at(tenant, name, "/entries"), query)?)
    }

    pub fn entry(
        &self,
        tenant: &Name,
        name: &Name,
        key: impl AsRef<[u8]>,
        version: Option<u64>,
    ) -> Result<Vec<u8>, Problem> {
        let (path, hex) = entry_path(tenant, name, key.as_ref());
        self.collected(&with_query(path, &VersionQuery { version, hex })?)
    }

    pub fn entry_put(
        &self,
        tenant: &Name,
        name: &Name,
        key: impl AsRef<[u8]>,
        value: Vec<u8>,
    ) -> Result<DataVersion, Problem> {
        let (path, hex) = entry_path(tenant, name, key.as_ref());
        let path = with_query(path, &KeyQuery { hex })?;
        self.upload(Method::PUT, &path, &mut value.as_slice(), &mut |_| ())
    }

    pub fn entry_delete(
        &self,
        tenant: &Name,
        name: &Name,
        key: impl AsRef<[u8]>,
    ) -> Result<DataVersion, Problem> {
        let (path, hex) = entry_path(tenant, name, key.as_ref());
        self.delete(&with_query(path, &KeyQuery { hex })?)
    }

    pub fn entry_history(
        &self,
        tenant: &Name,
        name: &Name,
        query: &HistoryQuery,
    ) -> Result<EntryList, Problem> {
        self.get(&with_query(at(tenant, name, "/entry-history"), query)?)
    }

    pub fn files(&self, tenant: &Name, name: &Name, query: &FileListQuery) -> Result<FileList, Problem> {
        self.get(&with_query(at(tenant, name, "/files"), query)?)
    }

    /// `path` begins with `/`.
    pub fn file(
        &self,
        tenant: &Name,
        name: &Name,
        path: &str,
        version: Option<u64>,
        sink: &mut Sink<'_>,
    ) -> Result<(), Problem> {
        self.file_sized(tenant, name, path, version, (&mut |_| (), sink))
    }

    /// The same; `size` hears first how many bytes will come, if that is known.
    pub fn file_sized(
        &self,
        tenant: &Name,
        name: &Name,
        path: &str,
        version: Option<u64>,
        (size, sink): (&mut dyn FnMut(u64), &mut Sink<'_>),
    ) -> Result<(), Problem> {
        let path = versioned(at(tenant, name, &format!("/files{}", escaped(path, true))), version);
        self.download_sized(&path, Some(CALL_TIMEOUT), size, sink)
    }

    /// `progress` hears how many bytes have been sent so far.
    pub fn file_put(
        &self,
        tenant: &Name,
        name: &Name,
        path: &str,
        query: &FileQuery,
        (content, progress): (&mut (dyn Read + Send), &mut (dyn FnMut(u64) + Send)),
    ) -> Result<DataVersion, Problem> {
        let path = with_query(at(tenant, name, &format!("/files{}", escaped(path, true))), query)?;
        self.upload(Method::PUT, &path, content, progress)
    }

    pub fn file_delete(&self, tenant: &Name, name: &Name, path: &str) -> Result<DataVersion, Problem> {
        self.delete(&at(tenant, name, &format!("/files{}", escaped(path, true))))
    }

    pub fn file_history(
        &self,
        tenant: &Name,
        name: &Name,
        query: &HistoryQuery,
    ) -> Result<FileList, Problem> {
        self.get(&with_query(at(tenant, name, "/file-history"), query)?)
    }

    pub fn file_purge(
        &self,
        tenant: &Name,
        name: &Name,
        purge: &FilePurge,
    ) -> Result<DataCompacted, Problem> {
        self.post(&at(tenant, name, "/file-purge"), Some(purge), LONG_TIMEOUT)
    }

    fn collected(&self, path: &str) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::new();
        self.download(path, Some(CALL_TIMEOUT), &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// `patience`: the longest wait for the next piece; `None`: for ever.
    fn download(&self, path: &str, patience: Option<Duration>, sink: &mut Sink<'_>) -> Result<(), Problem> {
        self.download_sized(path, patience, &mut |_| (), sink)
    }

    fn download_sized(
        &self,
        path: &str,
        patience: Option<Duration>,
        size: &mut dyn FnMut(u64),
        sink: &mut Sink<'_>,
    ) -> Result<(), Problem> {
        self.runtime.block_on(async {
            let response =
                limited(CALL_TIMEOUT, path, self.send(Method::GET, path, super::whole(Bytes::new()))).await?;
            if !response.status().is_success() {
                return Err(limited(CALL_TIMEOUT, path, refusal(response)).await?);
            }
            let mut body = response.into_body();
            if let Some(bytes) = hyper::body::Body::size_hint(&body).exact() {
                size(bytes);
            }
            loop {
                let frame = match patience {
                    None => body.frame().await,
                    Some(patience) => limited(patience, path, async { Ok(body.frame().await) }).await?,
                };
                let Some(frame) = frame else { return Ok(()) };
                let frame = frame.map_err(|error| broken(path, &error))?;
                let Some(bytes) = frame.data_ref() else { continue };
                match sink(bytes) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                    Err(error) => return Err(Problem::io("writing what was received", &error)),
                }
            }
        })
    }

    /// Reads on this thread while the other end takes it.
    fn upload<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content: &mut (dyn Read + Send),
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<T, Problem> {
        let (pieces, receiver) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(4);
        let stream = futures_util::stream::unfold(receiver, async |mut receiver| {
            let piece = receiver.recv().await?;
            Some((piece.map(Frame::data), receiver))
        });
        let body = BoxBody::new(StreamBody::new(stream));
        self.runtime.block_on(async {
            let answer = async {
                let response = self.send(method, path, body).await?;
                if !response.status().is_success() {
                    return Err(refusal(response).await?);
                }
                let bytes = collect(response, path).await?;
                serde_json::from_slice(&bytes).map_err(|error| not_understood(path, &error))
            };
            // Ends, and with it the body, at the content's end.
            let feed = async move {
                let mut sent = 0;
                loop {
                    let mut piece = vec![0; PIECE_BYTES];
                    let (read, failed) = match content.read(&mut piece) {
                        Ok(0) => return None,
                        Ok(length) => {
                            piece.truncate(length);
                            sent += length as u64;
                            (Ok(piece.into()), None)
                        }
                        Err(error) => {
                            let problem = Problem::io("reading the content", &error);
                            (Err(error), Some(problem))
                        }
                    };
                    // If nobody takes it, the daemon has answered, or gone: its answer says why.
                    if pieces.send(read).await.is_err() || failed.is_some() {
                        return failed;
                    }
                    progress(sent);
                }
            };
            let (answer, unread) = tokio::join!(answer, feed);
            match unread {
                Some(problem) => Err(problem),
                None => answer,
            }
        })
    }
}

fn at(tenant: &Name, name: &Name, rest: &str) -> String {
    format!("/v1/tenants/{tenant}/data/{name}{rest}")
}

/// A key that is no text is written as hexadecimal digits; the second says that it is.
fn entry_path(tenant: &Name, name: &Name, key: &[u8]) -> (String, bool) {
    let (key, hex) = match std::str::from_utf8(key) {
        Ok(key) => (escaped(key, false), false),
        Err(_) => (key.iter().map(|byte| format!("{byte:02x}")).collect(), true),
    };
    (at(tenant, name, &format!("/entries/{key}")), hex)
}

fn versioned(path: String, version: Option<u64>) -> String {
    version.map_or(path.clone(), |version| format!("{path}?version={version}"))
}

fn with_query(path: String, query: &impl Serialize) -> Result<String, Problem> {
    let value = serde_json::to_value(query).map_err(|error| not_understood(&path, &error))?;
    let fields = value.as_object().into_iter().flatten().filter_map(|(name, value)| match value {
        serde_json::Value::Null | serde_json::Value::Bool(false) => None,
        serde_json::Value::String(text) => Some(format!("{name}={}", escaped(text, false))),
        other => Some(format!("{name}={other}")),
    });
    let fields: Vec<String> = fields.collect();
    Ok(if fields.is_empty() { path } else { format!("{path}?{}", fields.join("&")) })
}

/// Percent-encoded (RFC 3986); in a path slashes stay.
fn escaped(text: &str, slashes: bool) -> String {
    let mut out = String::new();
    for &byte in text.as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            b'/' if slashes => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// A key as it is typed: 64 hexadecimal digits, or z-base-32 as other tools of this family print it.
pub fn check_key(text: &str) -> Result<(), Problem> {
    let hexadecimal = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let z_base_32 =
        text.len() == 52 && text.bytes().all(|byte| b"ybndrfg8ejkmcpqxot1uwisza345h769".contains(&byte));
    if hexadecimal || z_base_32 {
        return Ok(());
    }
    let mend = "give 64 hexadecimal digits, or 52 characters of z-base-32";
    Err(Problem::new(Kind::Invalid, format!("{text:?} is no key"), mend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_and_keys_are_escaped() {
        let query = EntryQuery { gte: Some("a b/c".into()), reverse: true, ..EntryQuery::default() };
        assert_eq!(with_query("/x".into(), &query).unwrap(), "/x?gte=a%20b%2Fc&reverse=true");
        assert_eq!(with_query("/x".into(), &EntryQuery::default()).unwrap(), "/x");
        assert_eq!(escaped("/photos/ä?.jpg", true), "/photos/%C3%A4%3F.jpg");
    }

    #[test]
    fn keys_are_hexadecimal_or_z_base_32() {
        assert!(check_key(&"a".repeat(64)).is_ok() && check_key(&"y".repeat(52)).is_ok());
        assert!(check_key(&"g".repeat(64)).is_err() && check_key(&"l".repeat(52)).is_err());
        assert!(check_key("").is_err());
    }
}
