//! All of a tenant's data as a stream: an index with the keys, and of each core what proves it and its blocks.
//!
//! Invariant: an export is the data as it was when the export began, of a drive no file without its content.

use super::{TenantData, audit::AUDIT, item::Shared, keys};
use crate::http::Pieces;
use axum::body::Bytes;
use cloudpal_api::{
    EXPORT_FORMAT, EXPORT_INDEX, EXPORT_SUM, EXPORT_VERSION, ExportFrame, ExportIndex, ExportedCore,
    ExportedData, ProblemBody, Secret,
};
use cloudpal_data::{
    DataError,
    core::{Core, Pack},
    crypto,
    replication::Replica,
};
use cloudpal_model::{Kind, Name, Problem};
use futures_util::stream;
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::mpsc;

/// What is sent at once.
const PIECE_BYTES: usize = 256 << 10;

/// Hears how an export has ended.
pub type Ended = Box<dyn FnOnce(Option<&Problem>) + Send>;

struct Sender(mpsc::Sender<Result<Bytes, Problem>>);

impl Sender {
    fn send(&self, frame: &ExportFrame) -> Result<(), Problem> {
        self.0.blocking_send(Ok(frame.encode().into())).map_err(|_| {
            Problem::new(Kind::Unavailable, "whoever asked for the export has gone away", "ask for it again")
        })
    }
}

impl TenantData {
    pub fn export(self: &Arc<Self>, tenant: &Name, ended: Ended) -> Pieces {
        let (sender, receiver) = mpsc::channel(4);
        let (data, tenant) = (self.clone(), tenant.clone());
        tokio::task::spawn_blocking(move || {
            let sender = Sender(sender);
            let outcome = data.send_all(&tenant, &sender);
            let problem = outcome.err();
            ended(problem.as_ref());
            if let Some(problem) = problem {
                // Nobody may be there any more to hear it.
                let told = serde_json::to_vec(&ProblemBody::new(problem)).unwrap_or_default();
                let _gone = sender.send(&ExportFrame::Failed(told));
            }
        });
        Box::pin(stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver))))
    }

    fn send_all(&self, tenant: &Name, to: &Sender) -> Result<(), Problem> {
        let made = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut index = ExportIndex {
            format: EXPORT_FORMAT.to_owned(),
            version: EXPORT_VERSION,
            tenant: tenant.clone(),
            made_wall_ms: made.as_millis() as u64,
            data: Vec::new(),
        };
        let mut packs = Vec::new();
        for item in self.items() {
            index.data.push(self.begin(&item, &mut packs)?);
        }
        let mut text = serde_json::to_vec_pretty(&index).map_err(|error| {
            Problem::new(Kind::Internal, format!("the export's index: {error}"), "report it as a bug")
        })?;
        text.push(b'\n');
        let sum = keys::hex(&crypto::hash(&[&text])) + "\n";
        for (name, bytes) in [(EXPORT_INDEX, text), (EXPORT_SUM, sum.into_bytes())] {
            to.send(&ExportFrame::File(name.to_owned()))?;
            for piece in bytes.chunks(PIECE_BYTES) {
                to.send(&ExportFrame::Piece(piece.to_vec()))?;
            }
        }
        for (file, pack) in packs {
            to.send(&ExportFrame::File(file.clone()))?;
            send_core(to, pack)
                .map_err(|problem| Problem { what: format!("{file}: {}", problem.what), ..problem })?;
        }
        to.send(&ExportFrame::End)
    }

    /// First the list of a drive's files, then the contents: what the list names is there.
    fn begin(&self, item: &Shared, packs: &mut Vec<(String, Pack)>) -> Result<ExportedData, Problem> {
        let record = item.record();
        let mut cores = Vec::new();
        for (core, ending) in item.cores().into_iter().zip(["core", "contents"]) {
            let pack = core.core.pack()?;
            let file = format!("{}.{ending}", item.name);
            cores.push(described(&core.core, &pack, file.clone()));
            packs.push((file, pack));
        }
        Ok(ExportedData {
            name: item.name.clone(),
            kind: item.kind,
            key: record.key.clone(),
            // A copy of CloudPal's own log is nobody's to write.
            writer: self
                .pair(&record)?
                .filter(|_| item.name.as_str() != AUDIT)
                .map(|pair| Secret::new(keys::hex(&pair.seed()))),
            encryption_key: record.encryption_key.map(Secret::new),
            peers: record.peers,
            cores,
        })
    }
}

fn described(core: &Core, pack: &Pack, file: String) -> ExportedCore {
    let head = pack.head();
    ExportedCore {
        file,
        key: keys::hex(core.key()),
        manifest: Replica::manifest(core).map(|manifest| keys::hex(&manifest.encode())),
        fork: head.fork,
        length: head.length,
        byte_length: head.byte_length,
    }
}

/// Each message with its length before it, and a length of 0 at the end.
fn send_core(to: &Sender, mut pack: Pack) -> Result<(), Problem> {
    let mut piece = Vec::new();
    loop {
        let message = pack.message().map_err(|error| match error {
            DataError::SnapshotLost { .. } => {
                Problem::new(Kind::Unavailable, "it was cut while it was exported", "export again")
            }
            error => error.into(),
        })?;
        let bytes = message.as_deref().unwrap_or_default();
        piece.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        piece.extend_from_slice(bytes);
        if piece.len() >= PIECE_BYTES || message.is_none() {
            for part in piece.chunks(PIECE_BYTES) {
                to.send(&ExportFrame::Piece(part.to_vec()))?;
            }
            piece.clear();
        }
        if message.is_none() {
            return Ok(());
        }
    }
}
