//! A manifest says who may sign a core; its hash is the core's key.
//!
//! Versions 0 to 3 as in `hypercore/lib/messages.js` 11.37.1. What was decoded encodes to the bytes that
//! JavaScript would encode, which are what is hashed: a manifest in a roundabout form gets no key of its own.

use crate::crypto::{self, Hash, PublicKey};
use crate::encoding::{Reader, Writer};
use crate::error::DataError;

/// More signers than this are refused: each costs a verification. The JavaScript stack has no limit.
pub const MAX_SIGNERS: usize = 1024;
const MAX_LINKED: usize = 1024;

const PATCH: u64 = 1;
const PROLOGUE: u64 = 2;
const LINKED: u64 = 4;
const USER_DATA: u64 = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    pub namespace: Hash,
    pub public_key: PublicKey,
}

/// The tree with which the core begins, and for which no signature is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prologue {
    pub hash: Hash,
    pub length: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub version: u8,
    pub allow_patch: bool,
    /// How many of the signers must agree.
    pub quorum: u64,
    pub signers: Vec<Signer>,
    pub prologue: Option<Prologue>,
    pub linked: Option<Vec<Hash>>,
    pub user_data: Option<Vec<u8>>,
}

impl Manifest {
    /// The manifest of a default core: version 1, one signer.
    pub fn single(public_key: PublicKey) -> Self {
        Manifest {
            version: 1,
            allow_patch: false,
            quorum: 1,
            signers: vec![Signer { namespace: *crypto::default_namespace(), public_key }],
            prologue: None,
            linked: None,
            user_data: None,
        }
    }

    /// The key of the core that has this manifest (compat cores apart, whose key is that of the signer).
    pub fn key(&self) -> Hash {
        crypto::hash(&[crypto::manifest_namespace(), &self.encode()])
    }

    /// The key is that of the only signer: a core as before manifests.
    pub fn is_compat(&self, key: &Hash) -> bool {
        matches!(&self.signers[..], [signer] if signer.public_key == *key)
    }

    /// What `createManifest` of the JavaScript stack would refuse to make.
    pub fn check(&self) -> Result<(), DataError> {
        if self.version > 3 {
            return Err(DataError::Malformed("a manifest of an unknown version"));
        }
        if self.quorum > self.signers.len() as u64 {
            return Err(DataError::Malformed("a quorum above the number of signers"));
        }
        if self.version < 2 && (self.linked.is_some() || self.user_data.is_some()) {
            return Err(DataError::Malformed("a manifest with fields that its version does not have"));
        }
        Ok(())
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        self.write(&mut to);
        to.bytes
    }

    pub fn write(&self, to: &mut Writer) {
        to.uint(u64::from(self.version));
        if self.version == 0 {
            return self.write_version_0(to);
        }
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        to.uint(
            flag(self.allow_patch, PATCH)
                | flag(self.prologue.is_some(), PROLOGUE)
                | flag(self.linked.is_some(), LINKED)
                | flag(self.user_data.is_some(), USER_DATA),
        );
        to.uint(0); // BLAKE2b
        to.uint(self.quorum);
        to.array(&self.signers, write_signer);
        if let Some(prologue) = &self.prologue {
            to.raw(&prologue.hash);
            to.uint(prologue.length);
        }
        if let Some(linked) = &self.linked {
            to.array(linked, |to, key| to.raw(key));
        }
        if let Some(data) = &self.user_data {
            to.buffer(data);
        }
    }

    fn write_version_0(&self, to: &mut Writer) {
        to.uint(0); // BLAKE2b
        match (&self.prologue, &self.signers[..]) {
            (Some(prologue), []) => {
                to.uint(0);
                to.raw(&prologue.hash);
            }
            (_, [signer]) if self.quorum == 1 && !self.allow_patch => {
                to.uint(1);
                write_signer(to, signer);
            }
            (_, signers) => {
                to.uint(2);
                to.uint(u64::from(self.allow_patch));
                to.uint(self.quorum);
                to.array(signers, write_signer);
            }
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DataError> {
        let mut from = Reader::new(bytes);
        let manifest = Manifest::read(&mut from)?;
        from.end()?;
        Ok(manifest)
    }

    pub fn read(from: &mut Reader<'_>) -> Result<Self, DataError> {
        let manifest = match from.uint()? {
            0 => Manifest::read_version_0(from)?,
            version @ 1..=3 => {
                let flags = from.uint()?;
                read_hash_kind(from)?;
                let quorum = from.uint()?;
                let signers = from.array(MAX_SIGNERS, read_signer)?;
                let has = |flag: u64| flags & flag != 0;
                let prologue = has(PROLOGUE).then(|| read_prologue(from)).transpose()?;
                let linked = has(LINKED).then(|| from.array(MAX_LINKED, Reader::fixed)).transpose()?;
                let user_data = has(USER_DATA).then(|| from.buffer()).transpose()?.map(<[u8]>::to_vec);
                let allow_patch = has(PATCH);
                Manifest { version: version as u8, allow_patch, quorum, signers, prologue, linked, user_data }
            }
            _ => return Err(DataError::Malformed("a manifest of an unknown version")),
        };
        manifest.check()?;
        Ok(manifest)
    }

    fn read_version_0(from: &mut Reader<'_>) -> Result<Self, DataError> {
        read_hash_kind(from)?;
        let mut manifest = Manifest {
            version: 0,
            allow_patch: false,
            quorum: 0,
            signers: Vec::new(),
            prologue: None,
            linked: None,
            user_data: None,
        };
        match from.uint()? {
            0 => manifest.prologue = Some(Prologue { hash: from.fixed()?, length: 0 }),
            1 => {
                manifest.quorum = 1;
                manifest.signers.push(read_signer(from)?);
            }
            2 => {
                manifest.allow_patch = from.uint()? & PATCH != 0;
                manifest.quorum = from.uint()?;
                manifest.signers = from.array(MAX_SIGNERS, read_signer)?;
            }
            _ => return Err(DataError::Malformed("a manifest of an unknown type")),
        }
        Ok(manifest)
    }
}

fn write_signer(to: &mut Writer, signer: &Signer) {
    to.uint(0); // Ed25519
    to.raw(&signer.namespace);
    to.raw(&signer.public_key);
}

fn read_signer(from: &mut Reader<'_>) -> Result<Signer, DataError> {
    if from.uint()? != 0 {
        return Err(DataError::Malformed("a signature of an unknown kind"));
    }
    Ok(Signer { namespace: from.fixed()?, public_key: from.fixed()? })
}

fn read_hash_kind(from: &mut Reader<'_>) -> Result<(), DataError> {
    if from.uint()? == 0 { Ok(()) } else { Err(DataError::Malformed("a hash of an unknown kind")) }
}

fn read_prologue(from: &mut Reader<'_>) -> Result<Prologue, DataError> {
    Ok(Prologue { hash: from.fixed()?, length: from.uint()? })
}
