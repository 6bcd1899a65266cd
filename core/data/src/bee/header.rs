//! The first block of a bee: that it is one, and what its maker says of it.
//!
//! `Header { protocol = 1, metadata = 2 }` with `Metadata { contentFeed = 1, userData = 2 }`, as in
//! `hyperbee/lib/messages.js` 2.27.3.

use crate::error::DataError;
use crate::protobuf::{Field, Fields, put_bytes};

const PROTOCOL: &str = "hyperbee";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The key of the core with the contents, in drives that predate manifests.
    pub content_feed: Option<Vec<u8>>,
    pub user_data: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub protocol: String,
    pub metadata: Option<Metadata>,
}

impl Header {
    pub fn new(metadata: Option<Metadata>) -> Header {
        Header { protocol: PROTOCOL.into(), metadata }
    }

    pub fn is_bee(&self) -> bool {
        self.protocol == PROTOCOL
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_bytes(&mut bytes, 1, self.protocol.as_bytes());
        if let Some(metadata) = &self.metadata {
            let mut inner = Vec::new();
            for (number, part) in [(1, &metadata.content_feed), (2, &metadata.user_data)] {
                if let Some(part) = part {
                    put_bytes(&mut inner, number, part);
                }
            }
            put_bytes(&mut bytes, 2, &inner);
        }
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Header, DataError> {
        let (mut protocol, mut metadata) = (None, None);
        let mut fields = Fields::new(bytes);
        while let Some(field) = fields.next()? {
            match field {
                Field::Bytes(1, part) => protocol = Some(String::from_utf8_lossy(part).into_owned()),
                Field::Bytes(2, part) => metadata = Some(Metadata::decode(part)?),
                _ => (),
            }
        }
        let protocol = protocol.ok_or(DataError::Malformed("a header without a protocol"))?;
        Ok(Header { protocol, metadata })
    }
}

impl Metadata {
    fn decode(bytes: &[u8]) -> Result<Metadata, DataError> {
        let mut metadata = Metadata::default();
        let mut fields = Fields::new(bytes);
        while let Some(field) = fields.next()? {
            match field {
                Field::Bytes(1, part) => metadata.content_feed = Some(part.to_vec()),
                Field::Bytes(2, part) => metadata.user_data = Some(part.to_vec()),
                _ => (),
            }
        }
        Ok(metadata)
    }
}
