//! A tenant's data out of an export: all of it, or nothing.
//!
//! ```text
//!   journal: these cores are coming ─► each block, checked ─► journal: these names are to be ─► the names
//! ```
//! Invariants: nothing is stored that its signed tree does not prove; until all is here and on the disk no name leads
//! to any of it; after a crash the cores of an unfinished import are removed, and a finished one is brought to its end.

use super::{
    TenantData,
    audit::{AUDIT, name_of},
    catalog::{self, Record},
    keys,
};
use axum::body::Bytes;
use cloudpal_api::{
    DataImported, DataKind, EXPORT_FORMAT, EXPORT_INDEX, EXPORT_SUM, EXPORT_VERSION, ExportFrame,
    ExportFrames, ExportIndex, ExportedCore, ExportedData,
};
use cloudpal_data::{
    DataError,
    core::{Core, MAX_BLOCK, Open},
    crypto::{self, KeyPair},
    drive,
    manifest::Manifest,
    proof::Data,
    store::Store,
};
use cloudpal_model::{Kind, Name, Problem};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
};
use tokio::sync::mpsc;

const JOURNAL: &[u8] = b"importing";
const MAX_INDEX_BYTES: usize = 64 << 20;
/// A block and what proves it.
const MAX_MESSAGE_BYTES: usize = MAX_BLOCK + (64 << 10);
/// How much comes between two looks at the quota.
const QUOTA_BYTES: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Journal {
    /// The keys of all cores that are coming.
    cores: Vec<String>,
    /// Once all of them are here.
    names: Option<Vec<(Name, Record)>>,
}

impl Journal {
    fn write(&self, store: &Store) -> Result<(), Problem> {
        let text = serde_json::to_vec(self);
        let text = text.map_err(|_| DataError::BadRequest("a journal that cannot be written"))?;
        Ok(store.set_meta(JOURNAL, Some(&text))?)
    }

    fn finish(&self, store: &Store) -> Result<(), Problem> {
        for (name, record) in self.names.iter().flatten() {
            catalog::put(store, name, Some(record))?;
        }
        Ok(store.set_meta(JOURNAL, None)?)
    }

    fn undo(&self, store: &Store) -> Result<(), Problem> {
        for key in &self.cores {
            match store.remove(&keys::parse(key)?) {
                Ok(()) | Err(DataError::NoSuchCore) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(store.set_meta(JOURNAL, None)?)
    }
}

/// After a crash: an import is brought to its end, or undone. Before the names are read.
pub fn recover(store: &Store) -> Result<(), Problem> {
    let Some(text) = store.meta(JOURNAL) else { return Ok(()) };
    let journal: Journal = serde_json::from_slice(&text).map_err(|error| {
        let mend = "restore the tenant's data from a backup";
        Problem::new(Kind::Internal, format!("the journal of an import is damaged: {error}"), mend)
    })?;
    match journal.names {
        Some(_) => journal.finish(store),
        None => journal.undo(store),
    }
}

fn refused(what: impl Into<String>) -> Problem {
    let mend = "take another copy of the export; nothing of this one was imported";
    Problem::new(Kind::Refused, what, mend)
}

/// The stream, frame by frame.
struct Stream {
    pieces: mpsc::Receiver<Result<Bytes, Problem>>,
    frames: ExportFrames,
}

impl Stream {
    fn frame(&mut self) -> Result<ExportFrame, Problem> {
        loop {
            if let Some(frame) = self.frames.next_frame()? {
                return Ok(frame);
            }
            let piece = self.pieces.blocking_recv();
            self.frames.push(&piece.ok_or_else(|| refused("the export is cut short"))??);
        }
    }

    fn expect(&mut self, wanted: &ExportFrame) -> Result<(), Problem> {
        let found = self.frame()?;
        if found == *wanted {
            return Ok(());
        }
        let word = |frame: &ExportFrame| match frame {
            ExportFrame::File(name) => format!("the file {name}"),
            ExportFrame::Piece(_) => "more of the file before".to_owned(),
            ExportFrame::End => "the end".to_owned(),
            ExportFrame::Failed(_) => "a failure".to_owned(),
        };
        Err(refused(format!("the export has {} where {} should be", word(&found), word(wanted))))
    }

    /// The frame that follows the file.
    fn pass_by(&mut self) -> Result<ExportFrame, Problem> {
        loop {
            match self.frame()? {
                ExportFrame::Piece(_) => {}
                next => return Ok(next),
            }
        }
    }

    /// A small file, up to the frame that begins the next one.
    fn small(&mut self, name: &str, next: &ExportFrame) -> Result<Vec<u8>, Problem> {
        let mut bytes = Vec::new();
        loop {
            match self.frame()? {
                ExportFrame::Piece(piece) if bytes.len() + piece.len() <= MAX_INDEX_BYTES => {
                    bytes.extend(piece)
                }
                frame if frame == *next => return Ok(bytes),
                _ => return Err(refused(format!("{name} is too long, or what follows it is missing"))),
            }
        }
    }
}

/// Whatever ends the import, another may begin.
struct Alone<'a>(&'a AtomicBool);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl TenantData {
    /// Waits for the disk and for the stream.
    pub fn import(&self, pieces: mpsc::Receiver<Result<Bytes, Problem>>) -> Result<DataImported, Problem> {
        if self.importing.swap(true, Ordering::SeqCst) {
            let mend = "wait until it is done, then try again";
            return Err(Problem::new(Kind::Refused, "an import into this tenant is under way", mend));
        }
        let _alone = Alone(&self.importing);
        let mut stream = Stream { pieces, frames: ExportFrames::default() };
        let (index, first) = self.read_index(&mut stream)?;
        let records = self.records(&index)?;
        let coming = index.data.iter().filter(|data| !self.logged_here(data));
        let cores = coming.flat_map(|data| &data.cores).map(|core| core.key.clone()).collect();
        let mut journal = Journal { cores, names: None };
        journal.write(&self.store)?;
        let outcome = self.take_in(&mut stream, &index, first).and_then(|imported| {
            self.check_writers(&records)?;
            Ok(imported)
        });
        let imported = match outcome {
            Ok(imported) => imported,
            Err(problem) => {
                journal.undo(&self.store)?;
                self.store.compact()?;
                return Err(problem);
            }
        };
        journal.names = Some(records);
        journal.write(&self.store)?;
        journal.finish(&self.store)?;
        for (name, record) in journal.names.into_iter().flatten() {
            self.enter(name, record)?;
        }
        self.settle_drives();
        Ok(imported)
    }

    /// Answers also the frame that follows it.
    fn read_index(&self, stream: &mut Stream) -> Result<(ExportIndex, ExportFrame), Problem> {
        let sum_file = ExportFrame::File(EXPORT_SUM.to_owned());
        stream.expect(&ExportFrame::File(EXPORT_INDEX.to_owned()))?;
        let text = stream.small(EXPORT_INDEX, &sum_file)?;
        // Read before it is trusted: it says which file comes after the sum.
        let parsed = serde_json::from_slice::<ExportIndex>(&text);
        let next = match &parsed {
            Ok(index) => index.data.first().and_then(|data| data.cores.first()).map(|core| core.file.clone()),
            Err(_) => None,
        };
        let next = next.map_or(ExportFrame::End, ExportFrame::File);
        let damaged = || refused(format!("{EXPORT_INDEX} is damaged: it is not as {EXPORT_SUM} says"));
        let sum = match &parsed {
            Ok(_) => stream.small(EXPORT_SUM, &next)?,
            Err(_) => return Err(damaged()),
        };
        if String::from_utf8_lossy(&sum).trim_end() != keys::hex(&crypto::hash(&[&text])) {
            return Err(damaged());
        }
        let index = parsed.map_err(|_| damaged())?;
        if index.format != EXPORT_FORMAT || index.version != EXPORT_VERSION {
            let what = format!("{} of version {}, and not of {EXPORT_VERSION}", index.format, index.version);
            return Err(Problem::new(
                Kind::Refused,
                what,
                "import it with the CloudPal that made it, or a newer one",
            ));
        }
        Ok((index, next))
    }

    /// The names that are to be. Whatever speaks against them is found before anything is written.
    fn records(&self, index: &ExportIndex) -> Result<Vec<(Name, Record)>, Problem> {
        self.within_quota(index.byte_length())?;
        let known: BTreeSet<String> = self.store.keys().iter().map(|key| keys::hex(key)).collect();
        let (mut seen, mut records) = (BTreeSet::new(), Vec::new());
        for data in index.data.iter().filter(|data| !self.logged_here(data)) {
            let (name, kind) = (&self.name_here(data)?, &data.kind);
            let taken =
                |what: String| Problem::new(Kind::Taken, what, "remove it first, if the export's is meant");
            if self.item(name).is_ok() {
                return Err(taken(format!("the tenant has something named {name} already")));
            }
            for key in data.cores.iter().map(|core| &core.key) {
                if known.contains(key) {
                    return Err(taken(format!(
                        "the tenant has a core of {name} already, under another name"
                    )));
                }
                if !seen.insert(key.clone()) {
                    return Err(refused(format!("the index names the core {key} twice")));
                }
            }
            if !seen.insert(name.to_string()) || data.cores.first().is_none_or(|core| core.key != data.key) {
                return Err(refused(format!("what the index says of {name} makes no sense")));
            }
            let record = Record {
                kind: *kind,
                key: data.key.clone(),
                seed: None,
                pair: data.writer.clone(),
                encryption_key: data.encryption_key.as_ref().map(|key| key.reveal().to_owned()),
                peers: data.peers.clone(),
            };
            if let Some(pair) = self.pair(&record)? {
                check_keys(data, &pair)?;
            }
            record.encryption_key()?;
            records.push((name.clone(), record));
        }
        Ok(records)
    }

    /// The log of the other host keeps beside our own, under a name from its key.
    fn name_here(&self, data: &ExportedData) -> Result<Name, Problem> {
        if data.name.as_str() != AUDIT {
            return Ok(data.name.clone());
        }
        let key = keys::hex(&keys::parse(&data.key)?);
        name_of(&format!("audit-{}", &key[..12]))
    }

    /// The log of this very tenant, or one that an earlier import has brought: what is here is at least as long.
    fn logged_here(&self, data: &ExportedData) -> bool {
        let here = |name: Name| self.item(&name).is_ok_and(|item| item.record().key == data.key);
        data.name.as_str() == AUDIT && [name_of(AUDIT), self.name_here(data)].into_iter().flatten().any(here)
    }

    fn take_in(
        &self,
        stream: &mut Stream,
        index: &ExportIndex,
        mut next: ExportFrame,
    ) -> Result<DataImported, Problem> {
        let mut imported = DataImported { data: 0, blocks: 0, bytes: 0 };
        for data in &index.data {
            let here = self.logged_here(data);
            imported.data += u64::from(!here);
            for core in &data.cores {
                if next != ExportFrame::File(core.file.clone()) {
                    return Err(refused(format!("{} is missing", core.file)));
                }
                next = if here { stream.pass_by()? } else { self.take_in_core(stream, core, &mut imported)? };
            }
        }
        if next != ExportFrame::End {
            return Err(refused("the export goes on where it should end"));
        }
        self.store.sync()?;
        Ok(imported)
    }

    /// Answers the frame that follows the file.
    fn take_in_core(
        &self,
        stream: &mut Stream,
        wanted: &ExportedCore,
        imported: &mut DataImported,
    ) -> Result<ExportFrame, Problem> {
        let core = self.store.core(&opening(wanted)?)?;
        let mut file = CoreFile { bytes: Vec::new(), at: 0, complete: false };
        let mut unlooked_bytes = 0;
        let next = loop {
            let piece = match stream.frame()? {
                ExportFrame::Piece(piece) => piece,
                next => break next,
            };
            unlooked_bytes += piece.len() as u64;
            imported.bytes += piece.len() as u64;
            if unlooked_bytes >= QUOTA_BYTES {
                self.within_quota(0)?;
                unlooked_bytes = 0;
            }
            imported.blocks += file.take(&core, &piece, &wanted.file)?;
        };
        let info = core.info()?;
        if !file.complete || (info.fork, info.length) != (wanted.fork, wanted.length) {
            let what = format!("{} ends after {} of {} blocks", wanted.file, info.length, wanted.length);
            return Err(refused(what));
        }
        Ok(next)
    }

    /// Whether the keys of what is to be written here are those of its writers.
    fn check_writers(&self, records: &[(Name, Record)]) -> Result<(), Problem> {
        for (name, record) in records {
            if let Some(pair) = self.pair(record)? {
                let opened = self.store.core(&Open::pair(pair).existing());
                opened.map_err(|error| refused(format!("{name} cannot be written with its key: {error}")))?;
            }
        }
        Ok(())
    }
}

/// The core of a key pair has its key from it, and so have the contents of a drive.
fn check_keys(data: &ExportedData, pair: &KeyPair) -> Result<(), Problem> {
    let manifest = Manifest::single(pair.public_key());
    let main = manifest.key();
    let mut keys = vec![main];
    if data.kind == DataKind::Drive {
        keys.extend(drive::contents_manifest(&manifest, &main).map(|manifest| manifest.key()));
    }
    if keys.iter().map(|key| keys::hex(key)).eq(data.cores.iter().map(|core| core.key.clone())) {
        return Ok(());
    }
    Err(refused(format!("the writer's key of {} is that of something else", data.name)))
}

fn opening(wanted: &ExportedCore) -> Result<Open, Problem> {
    let key = keys::parse(&wanted.key)?;
    let Some(manifest) = &wanted.manifest else { return Ok(Open::key(key)) };
    let manifest = keys::unhex(manifest).and_then(|bytes| Manifest::decode(&bytes).ok());
    let manifest = manifest.filter(|manifest| manifest.key() == key);
    manifest
        .map(Open::manifest)
        .ok_or_else(|| refused(format!("the manifest of {} is another's", wanted.file)))
}

/// A core's file: messages, each with its length before it, and a length of 0 at the end.
struct CoreFile {
    bytes: Vec<u8>,
    /// Where in the file `bytes` begins.
    at: u64,
    complete: bool,
}

impl CoreFile {
    /// Answers how many blocks came.
    fn take(&mut self, core: &Core, piece: &[u8], name: &str) -> Result<u64, Problem> {
        self.bytes.extend_from_slice(piece);
        let (mut from, mut blocks) = (0, 0);
        while let Some((head, rest)) = self.bytes[from..].split_first_chunk::<4>() {
            let (length, at) = (u32::from_le_bytes(*head) as usize, self.at + from as u64);
            if self.complete || length > MAX_MESSAGE_BYTES {
                return Err(refused(format!("{name} is damaged at byte {at}: no message can be there")));
            }
            if length == 0 {
                (self.complete, from) = (true, from + 4);
                continue;
            }
            let Some(message) = rest.get(..length) else { break };
            let block = core.unpack(message).map_err(|error| match error {
                DataError::Storage(_) | DataError::Poisoned => Problem::from(error),
                error => {
                    let block = Data::decode(message).ok().and_then(|data| data.proof.block);
                    let block = block.map(|block| format!(", block {}", block.index)).unwrap_or_default();
                    refused(format!("{name} is damaged at byte {at}{block}: {error}"))
                }
            })?;
            blocks += u64::from(block.is_some());
            from += 4 + length;
        }
        self.bytes.drain(..from);
        self.at += from as u64;
        if self.complete && !self.bytes.is_empty() {
            return Err(refused(format!("{name} goes on after its end")));
        }
        Ok(blocks)
    }
}
