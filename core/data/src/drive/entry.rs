//! What a drive holds for a name.

use super::files;
use crate::bee;
use crate::blobs::BlobId;
use crate::error::DataError;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Deeper nesting is refused by the JSON parser itself (128).
const NO_ENTRY: DataError = DataError::Malformed("an entry of a drive that is not the JSON it should be");

/// The order of the fields is that in which `hyperdrive` writes them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct File {
    #[serde(default)]
    pub executable: bool,
    /// Where a symbolic link leads.
    #[serde(default)]
    pub linkname: Option<String>,
    #[serde(default)]
    pub blob: Option<BlobId>,
    /// JSON of the user's, byte for byte as it was written.
    #[serde(default)]
    pub metadata: Option<Box<RawValue>>,
}

impl PartialEq for File {
    fn eq(&self, other: &Self) -> bool {
        let text = |file: &File| file.metadata.as_ref().map(|metadata| metadata.get().to_owned());
        (self.executable, &self.linkname, &self.blob, text(self))
            == (other.executable, &other.linkname, &other.blob, text(other))
    }
}

/// Metadata from text, which must be JSON.
pub(super) fn metadata(text: Option<&str>) -> Result<Option<Box<RawValue>>, DataError> {
    let parse = |text: &str| RawValue::from_string(text.to_owned());
    text.map(parse).transpose().map_err(|_| DataError::BadRequest("metadata that is not JSON"))
}

impl File {
    pub fn encode(&self) -> Result<Vec<u8>, DataError> {
        serde_json::to_vec(self).map_err(|_| NO_ENTRY)
    }

    pub fn decode(bytes: &[u8]) -> Result<File, DataError> {
        serde_json::from_slice(bytes).map_err(|_| NO_ENTRY)
    }
}

/// A file or a symbolic link.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The block of the bee that holds it.
    pub seq: u64,
    pub path: String,
    pub file: File,
}

impl Entry {
    pub(super) fn decode(found: &bee::Entry) -> Result<Entry, DataError> {
        let path = files().strip(found.key()).ok_or(NO_ENTRY)?.to_vec();
        let path = String::from_utf8(path).map_err(|_| DataError::Malformed("a name that is not UTF-8"))?;
        let file = File::decode(found.value().ok_or(NO_ENTRY)?)?;
        Ok(Entry { seq: found.seq(), path, file })
    }
}
