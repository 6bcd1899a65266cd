//! Signing what is on the disk: by the one signer of a core, or by several who agree.

use super::{Core, frozen};
use crate::error::DataError;
use crate::store::Inner;
use crate::store::record::{self, At, Change};
use crate::store::state::SignedHead;
use crate::tree::Head;
use std::sync::MutexGuard;

impl Core {
    /// Puts on the disk, and signs, all that was done.
    pub fn sync(&self) -> Result<(), DataError> {
        let mut inner = self.store.lock();
        self.writable(&mut inner)?;
        self.finish(inner)
    }

    pub(super) fn finish(&self, inner: MutexGuard<'_, Inner>) -> Result<(), DataError> {
        let end = inner.floor.log.end;
        self.finish_to(inner, end)
    }

    /// Signs what is on the disk of a core that was just opened; other cores' records are not waited for.
    pub(super) fn recover(&self) -> Result<(), DataError> {
        let inner = self.store.lock();
        let target = inner.touched.get(&self.id).copied().unwrap_or_default();
        self.finish_to(inner, target)
    }

    fn finish_to(&self, inner: MutexGuard<'_, Inner>, target: At) -> Result<(), DataError> {
        let mut inner = self.store.sync_to(inner, target)?;
        let Some(head) = self.safe_head(&mut inner)? else { return Ok(()) };
        let Some(pair) = &self.pair else { return Ok(()) };
        let (state, _) = inner.parts(self.id)?;
        if !state.is_sole_writer(pair) || frozen::frozen(state).is_some() {
            return Ok(());
        }
        let Some(verifier) = &state.verifier else { return Ok(()) };
        let signature = verifier.sign(&head, pair)?;
        self.signed_by_us(&mut inner, head, signature)
    }

    /// The newest head that is on the disk, if it is not signed yet.
    fn safe_head(&self, inner: &mut Inner) -> Result<Option<Head>, DataError> {
        let synced = inner.floor.log.synced;
        let pending = inner.touched.get(&self.id).is_some_and(|at| *at > synced);
        if !pending {
            inner.touched.remove(&self.id);
        }
        let safe = inner.safe.remove(&self.id);
        let (state, _) = inner.parts(self.id)?;
        let head = if pending { safe } else { Some(state.head.clone()) };
        let is_news = |head: &Head| match &state.signed {
            Some(signed) => {
                signed.head != *head && (signed.head.fork, signed.head.length) <= (head.fork, head.length)
            }
            None => *head != Head::default(),
        };
        Ok(head.filter(is_news))
    }

    fn keep_signature(&self, inner: &mut Inner, head: Head, signature: Vec<u8>) -> Result<(), DataError> {
        inner.parts(self.id)?.0.signed = Some(SignedHead { head, signature });
        inner.dirty.insert(self.id);
        Ok(())
    }

    /// The signature's own record waits for what is written next: it can be made again, the same.
    fn signed_by_us(&self, inner: &mut Inner, head: Head, signature: Vec<u8>) -> Result<(), DataError> {
        let (fork, length) = (head.fork, head.length);
        let change = Change::Signed { fork, length, signature: signature.clone() };
        self.keep_signature(inner, head, signature)?;
        match inner.write_later(record::small(self.id, &change)) {
            // The blocks are safe; a full disk will be told of at the next append.
            Ok(_) | Err(DataError::Storage(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The tree that peers may see.
    pub fn signed(&self) -> Result<Option<SignedHead>, DataError> {
        Ok(self.store.lock().parts(self.id)?.0.signed.clone())
    }

    /// One signer's part of a signature over all that was appended, which is on the disk when this answers. For
    /// cores of several signers.
    pub fn sign_part(&self) -> Result<(Head, Vec<u8>), DataError> {
        let mut inner = self.store.lock();
        self.writable(&mut inner)?;
        let end = inner.floor.log.end;
        let mut inner = self.store.sync_to(inner, end)?;
        let (state, _) = inner.parts(self.id)?;
        let verifier = state.verifier.as_ref().ok_or(DataError::NotWritable)?;
        let pair = self.pair.as_ref().ok_or(DataError::NotWritable)?;
        Ok((state.head.clone(), verifier.sign(&state.head, pair)?))
    }

    /// Shows the core to peers as far as this signature goes, by which enough of its signers agree; or, with
    /// none, as far as the prologue goes.
    pub fn commit(&self, length: u64, signature: Vec<u8>) -> Result<(), DataError> {
        let inner = self.store.lock();
        let end = inner.floor.log.end;
        let mut inner = self.store.sync_to(inner, end)?;
        let (state, floor) = inner.parts(self.id)?;
        let head = state.with_nodes(floor, |nodes| state.head.truncated(length, state.head.fork, nodes))?;
        let verifier = state.verifier.as_ref().ok_or(DataError::NotWritable)?;
        if !verifier.verify(&head, &signature) {
            return Err(DataError::BadSignature);
        }
        let change = Change::Signed { fork: head.fork, length, signature: signature.clone() };
        inner.write(record::small(self.id, &change))?;
        self.keep_signature(&mut inner, head, signature)
    }
}
