//! Who may sign a tree, and the envelope that holds their signatures.
//!
//! As `hypercore/lib/verifier.js` and `multisig.js` 11.37.1. From version 1 on a single signer uses the
//! envelope as well. A patch lets signers agree who have signed different lengths: it holds the nodes between
//! the shorter tree and the longer.

use crate::crypto::{self, Hash, KeyPair};
use crate::encoding::{Reader, Writer};
use crate::error::DataError;
use crate::manifest::{MAX_SIGNERS, Manifest, Prologue};
use crate::proof::{UpgradeProof, grow_by_patch, read_nodes, write_node};
use crate::tree::{Head, MAX_LENGTH, Node, full_roots};
use flat_tree::Iterator as Walk;

/// One signer's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub signer: u64,
    pub signature: [u8; 64],
    /// By how many blocks this signer's tree is longer.
    pub patch: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultiSignature {
    pub parts: Vec<Part>,
    pub patch: Vec<Node>,
}

impl MultiSignature {
    /// The envelope of versions 1 to 3.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.array(&self.parts, |to, part| {
            to.uint(part.signer);
            to.raw(&part.signature);
            to.uint(part.patch);
        });
        to.array(&self.patch, write_node);
        to.bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DataError> {
        let mut from = Reader::new(bytes);
        let parts = from.array(MAX_SIGNERS, |from| {
            Ok(Part { signer: from.uint()?, signature: from.fixed()?, patch: from.uint()? })
        })?;
        let patch = read_nodes(&mut from)?;
        from.end()?;
        Ok(MultiSignature { parts, patch })
    }

    /// The envelope of version 0, in which a part names the nodes of its patch. No name is needed to check it.
    pub fn decode_version_0(bytes: &[u8]) -> Result<Self, DataError> {
        let mut from = Reader::new(bytes);
        let parts = from.array(MAX_SIGNERS, |from| {
            let patched = from.uint()? & 1 == 1;
            let mut part = Part { signer: from.uint()?, signature: from.fixed()?, patch: 0 };
            if patched {
                let _start = from.uint()?;
                part.patch = from.uint()?;
                from.array(MAX_SIGNERS, Reader::uint)?;
            }
            Ok(part)
        })?;
        let patch = read_nodes(&mut from)?;
        from.end()?;
        Ok(MultiSignature { parts, patch })
    }
}

/// Says whether a tree is signed by those whom a manifest names.
#[derive(Clone, Debug)]
pub struct Verifier {
    key: Hash,
    manifest: Manifest,
    compat: bool,
}

impl Verifier {
    /// Fails if the manifest is not that of the key.
    pub fn new(key: Hash, manifest: Manifest) -> Result<Self, DataError> {
        manifest.check()?;
        let compat = manifest.is_compat(&key);
        if !compat && manifest.key() != key {
            return Err(DataError::WrongManifest);
        }
        Ok(Verifier { key, manifest, compat })
    }

    /// A core without a manifest, whose key is that of its signer.
    pub fn compat(key: Hash) -> Self {
        Verifier { key, manifest: Manifest::single(key), compat: true }
    }

    pub fn key(&self) -> &Hash {
        &self.key
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn is_compat(&self) -> bool {
        self.compat
    }

    pub fn prologue(&self) -> Option<&Prologue> {
        if self.compat { None } else { self.manifest.prologue.as_ref() }
    }

    /// What signer number `signer` signs.
    fn signable(&self, head: &Head, signer: usize) -> Vec<u8> {
        self.signable_hash(&head.hash(), head.length, head.fork, signer)
    }

    fn signable_hash(&self, hash: &Hash, length: u64, fork: u64, signer: usize) -> Vec<u8> {
        if self.compat {
            return crypto::signable_compat(hash, length, fork);
        }
        let context = match self.manifest.version {
            0 => &self.manifest.signers[signer].namespace,
            _ => &self.key,
        };
        crypto::signable(context, hash, length, fork)
    }

    /// The signature of one key pair: complete if the core has one signer, else one signer's part.
    pub fn sign(&self, head: &Head, pair: &KeyPair) -> Result<Vec<u8>, DataError> {
        let public_key = pair.public_key();
        let signers = &self.manifest.signers;
        let signer = signers.iter().position(|signer| signer.public_key == public_key);
        let signature = pair.sign(&self.signable(head, signer.ok_or(DataError::NotWritable)?));
        if signers.len() > 1 || self.compat || self.manifest.version == 0 {
            return Ok(signature.to_vec());
        }
        let parts = vec![Part { signer: 0, signature, patch: 0 }];
        Ok(MultiSignature { parts, patch: Vec::new() }.encode())
    }

    /// One key pair alone makes valid signatures, from the first block on.
    pub fn is_sole_signer(&self, pair: &KeyPair) -> bool {
        let Manifest { version, quorum, allow_patch, prologue, signers, .. } = &self.manifest;
        let alone = *quorum == 1 && prologue.is_none() && !(*version == 0 && *allow_patch);
        alone && matches!(&signers[..], [signer] if signer.public_key == pair.public_key())
    }

    pub fn verify(&self, head: &Head, signature: &[u8]) -> bool {
        let (manifest, version) = (&self.manifest, self.manifest.version);
        if self.compat || (version == 0 && !manifest.allow_patch && manifest.signers.len() == 1) {
            let Ok(signature) = signature.try_into() else { return false };
            return crypto::verify(&self.signable(head, 0), signature, &manifest.signers[0].public_key);
        }
        if let Some(prologue) = manifest.prologue.as_ref().filter(|_| version > 0)
            && head.length <= prologue.length
        {
            return head.length == prologue.length && head.hash() == prologue.hash;
        }
        let envelope = match version {
            0 => MultiSignature::decode_version_0(signature),
            _ => MultiSignature::decode(signature),
        };
        envelope.is_ok_and(|envelope| self.verify_parts(head, &envelope))
    }

    /// Nothing of it could be otherwise: a valid signature may hold what nobody looks at.
    pub(crate) fn is_exact(&self, signature: &[u8]) -> bool {
        let unsigned = signature.is_empty() && self.manifest.prologue.is_some();
        if self.compat || self.manifest.version == 0 || unsigned {
            return true;
        }
        MultiSignature::decode(signature).is_ok_and(|envelope| {
            let patched = !envelope.patch.is_empty() || envelope.parts.iter().any(|part| part.patch != 0);
            envelope.encode() == signature && (self.manifest.allow_patch || !patched)
        })
    }

    fn verify_parts(&self, head: &Head, envelope: &MultiSignature) -> bool {
        let quorum = self.manifest.quorum as usize;
        if quorum == 0 || envelope.parts.len() < quorum {
            return false;
        }
        let mut tried = vec![false; self.manifest.signers.len()];
        envelope.parts[..quorum].iter().all(|part| {
            let signer = usize::try_from(part.signer).unwrap_or(usize::MAX);
            if tried.get(signer) != Some(&false) {
                return false;
            }
            tried[signer] = true;
            let longer = match part.patch {
                0 => None,
                _ if !self.manifest.allow_patch => None,
                patch => match patched(head, patch, &envelope.patch) {
                    Some(longer) => Some(longer),
                    None => return false,
                },
            };
            let signable = self.signable(longer.as_ref().unwrap_or(head), signer);
            crypto::verify(&signable, &part.signature, &self.manifest.signers[signer].public_key)
        })
    }
}

/// The tree that is `by` blocks longer, if the nodes lead there.
fn patched(head: &Head, by: u64, nodes: &[Node]) -> Option<Head> {
    let reached = head.length.checked_add(by).filter(|reached| *reached <= MAX_LENGTH)?;
    let find = |index: u64| nodes.iter().find(|node| node.index == index).cloned();
    let mut needed = Vec::new();
    for root in full_roots(reached) {
        let mut walk = Walk::new(root);
        if walk.index() + walk.factor() / 2 < head.length * 2 {
            continue;
        }
        if head.length > 0 && walk.contains(head.length * 2 - 2) {
            let target = head.length * 2 - 2;
            walk.seek(target);
            while walk.index() != root {
                if walk.sibling() > target {
                    needed.push(find(walk.index())?);
                }
                walk.parent();
            }
        } else {
            needed.push(find(root)?);
        }
    }
    let (start, length) = (head.length, by);
    let upgrade =
        UpgradeProof { start, length, nodes: needed, additional: Vec::new(), signature: Vec::new() };
    grow_by_patch(head, &upgrade).ok()
}
