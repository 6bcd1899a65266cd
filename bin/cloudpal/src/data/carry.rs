//! `cloudpal data export` and `cloudpal data import`: all of a tenant's data as a folder.
//!
//! Invariants: a folder that bears its name is whole, and on the disk; it and its files are their owner's alone.

use super::drive::bar;
use crate::{screen::Screen, units::show_bytes};
use cloudpal_api::{Client, EXPORT_INDEX, EXPORT_SUM, ExportFrame, ExportFrames, ExportIndex, ProblemBody};
use cloudpal_model::{Kind, Name, Problem};
use indicatif::ProgressBar;
use serde::Serialize;
use std::{
    collections::VecDeque,
    fs::{self, File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// What is sent of a file at once.
const PIECE_BYTES: usize = 256 << 10;
const MAX_INDEX_BYTES: u64 = 64 << 20;

#[derive(Serialize)]
struct Exported {
    folder: PathBuf,
    data: u64,
    bytes: u64,
}

pub fn export(client: &Client, screen: &Screen, tenant: &Name, folder: &Path) -> Result<(), Problem> {
    let place = |error: &io::Error| Problem::io(folder.display(), error);
    if fs::symlink_metadata(folder).is_ok() {
        let mend = "choose another name, or move it away; nothing was changed";
        return Err(Problem::new(Kind::Taken, format!("{} exists", folder.display()), mend));
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Removed again if the export does not come to its end.
    let begun = tempfile::Builder::new().prefix(".cloudpal-export-").tempdir_in(parent);
    let begun = begun.map_err(|error| place(&error))?;
    fs::set_permissions(begun.path(), Permissions::from_mode(0o700)).map_err(|error| place(&error))?;

    let bar = bar(screen, None);
    let mut folder_of = Unpacking { dir: begun.path().to_owned(), ..Unpacking::default() };
    let mut frames = ExportFrames::default();
    let mut trouble = None;
    client.data_export(tenant, &mut |piece| {
        frames.push(piece);
        loop {
            let done =
                frames.next_frame().and_then(|frame| frame.map(|frame| folder_of.take(frame)).transpose());
            match done {
                Ok(Some(())) => {}
                Ok(None) => break,
                Err(problem) => {
                    trouble = Some(problem);
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
            }
        }
        show(bar.as_ref(), &folder_of);
        Ok(())
    })?;
    bar.iter().for_each(ProgressBar::finish_and_clear);
    if let Some(problem) = trouble {
        return Err(problem);
    }
    let index = folder_of.finish()?;
    fs::rename(begun.keep(), folder).map_err(|error| place(&error))?;
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(|error| place(&error))?;
    let exported =
        Exported { folder: folder.to_owned(), data: index.data.len() as u64, bytes: folder_of.bytes };
    screen.answer(&exported, |exported| {
        format!(
            "{} cores, bees, drives and tries, {}, are in {}\nwho has the folder can read and write all of it",
            exported.data,
            show_bytes(exported.bytes),
            exported.folder.display()
        )
    })
}

/// Proofs and lengths come on top of the blocks, so it ends a little beyond.
fn show(bar: Option<&ProgressBar>, folder: &Unpacking) {
    if let (Some(bar), Some(index)) = (bar, &folder.index) {
        bar.set_length(index.byte_length().max(folder.bytes));
        bar.set_position(folder.bytes);
    }
}

/// The folder as it comes to be.
#[derive(Default)]
struct Unpacking {
    dir: PathBuf,
    open: Option<(String, File)>,
    index: Option<ExportIndex>,
    bytes: u64,
    complete: bool,
}

impl Unpacking {
    fn take(&mut self, frame: ExportFrame) -> Result<(), Problem> {
        match frame {
            ExportFrame::File(name) => {
                self.close()?;
                let path = self.dir.join(&name);
                let mut options = fs::OpenOptions::new();
                let file = options.write(true).create_new(true).mode(0o600).open(&path);
                self.open = Some((name, file.map_err(|error| Problem::io(path.display(), &error))?));
            }
            ExportFrame::Piece(bytes) => {
                let (name, file) = self.open.as_mut().ok_or_else(broken_off)?;
                file.write_all(&bytes).map_err(|error| Problem::io(&*name, &error))?;
                self.bytes += bytes.len() as u64;
            }
            ExportFrame::End => {
                self.close()?;
                self.complete = true;
            }
            ExportFrame::Failed(bytes) => {
                let problem = serde_json::from_slice::<ProblemBody>(&bytes);
                return Err(problem.map_or_else(|_| broken_off(), Problem::from));
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Problem> {
        let Some((name, file)) = self.open.take() else { return Ok(()) };
        file.sync_all().map_err(|error| Problem::io(&name, &error))?;
        if name == EXPORT_INDEX {
            self.index = Some(read_index(&self.dir)?);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<ExportIndex, Problem> {
        let dir = File::open(&self.dir).and_then(|dir| dir.sync_all());
        dir.map_err(|error| Problem::io(self.dir.display(), &error))?;
        self.index.take().filter(|_| self.complete).ok_or_else(broken_off)
    }
}

fn broken_off() -> Problem {
    let mend = "`cloudpal operation list` shows why; then export again";
    Problem::new(Kind::Unavailable, "the export broke off", mend)
}

fn read_index(folder: &Path) -> Result<ExportIndex, Problem> {
    let path = folder.join(EXPORT_INDEX);
    let place = |error: &io::Error| Problem::io(path.display(), error);
    let mut text = Vec::new();
    let file = File::open(&path).map_err(|error| place(&error))?;
    file.take(MAX_INDEX_BYTES).read_to_end(&mut text).map_err(|error| place(&error))?;
    serde_json::from_slice(&text).map_err(|error| {
        let mend = "take another copy of the export; nothing of this one was imported";
        Problem::new(Kind::Refused, format!("{} is damaged: {error}", path.display()), mend)
    })
}

pub fn import(client: &Client, screen: &Screen, tenant: &Name, folder: &Path) -> Result<(), Problem> {
    let index = read_index(folder)?;
    let files = [EXPORT_INDEX, EXPORT_SUM].into_iter().map(str::to_owned);
    let cores = index.data.iter().flat_map(|data| &data.cores).map(|core| core.file.clone());
    let files: VecDeque<String> = files.chain(cores).collect();
    let sizes = files.iter().map(|name| fs::metadata(folder.join(name)).map_or(0, |file| file.len()));
    let bar = bar(screen, Some(sizes.sum()));
    let mut packing =
        Packing { folder: folder.to_owned(), files, open: None, ready: VecDeque::new(), ended: false };
    let mut progress = |sent| bar.iter().for_each(|bar| bar.set_position(sent));
    let imported = client.data_import(tenant, (&mut packing, &mut progress));
    bar.iter().for_each(ProgressBar::finish_and_clear);
    screen.answer(&imported?, |imported| {
        let (blocks, data) = (imported.blocks, imported.data);
        format!(
            "{data} cores, bees, drives and tries are here, {blocks} blocks, all as they were signed\n\
             next: where the export was made, remove them; only one host may write them"
        )
    })
}

/// The folder as a stream.
struct Packing {
    folder: PathBuf,
    files: VecDeque<String>,
    open: Option<File>,
    ready: VecDeque<u8>,
    ended: bool,
}

impl Packing {
    fn next_frame(&mut self) -> io::Result<Option<ExportFrame>> {
        if let Some(file) = &mut self.open {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            file.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
            if !piece.is_empty() {
                return Ok(Some(ExportFrame::Piece(piece)));
            }
            self.open = None;
        }
        let Some(name) = self.files.pop_front() else {
            let end = (!self.ended).then_some(ExportFrame::End);
            self.ended = true;
            return Ok(end);
        };
        // The index may have been changed by anybody: a name must not lead out of the folder.
        if name.contains('/') {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the index names a file elsewhere"));
        }
        let path = self.folder.join(&name);
        let opened = File::open(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        self.open = Some(opened);
        Ok(Some(ExportFrame::File(name)))
    }
}

impl Read for Packing {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.ready.is_empty() {
            match self.next_frame()? {
                Some(frame) => self.ready = frame.encode().into(),
                None => return Ok(0),
            }
        }
        self.ready.read(to)
    }
}
