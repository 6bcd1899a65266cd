//! `cloudpal drive mirror`: a folder and a drive made the same.
//!
//! Invariants: a link of the folder is never followed, so nothing outside of it is read or written; a file of the
//! folder is replaced as a whole, by a rename.

use super::drive::{Mirror, bar};
use crate::screen::Screen;
use clap::ValueEnum;
use cloudpal_api::{Client, File, FileKind, FileListQuery, FileQuery};
use cloudpal_model::{Kind, Problem};
use indicatif::ProgressBar;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// The folder becomes as the drive is
    To,
    /// The drive becomes as the folder is
    From,
}

/// What is at a path of the folder.
enum Local {
    File { bytes: u64, executable: bool },
    Link { target: String },
}

impl Local {
    fn bytes(&self) -> u64 {
        match self {
            Local::File { bytes, .. } => *bytes,
            Local::Link { .. } => 0,
        }
    }
}

/// The folder and the drive, and who looks on.
struct Sides<'a> {
    mirror: &'a Mirror,
    client: &'a Client,
    /// Only on a terminal.
    bar: Option<&'a ProgressBar>,
}

impl Sides<'_> {
    /// A file is done, however little of it had to be moved.
    fn advance(&self, bytes: u64) {
        self.bar.iter().for_each(|bar| bar.inc(bytes));
    }
}

#[derive(Default, Serialize)]
struct Done {
    copied: Vec<String>,
    removed: Vec<String>,
    unchanged: u64,
}

pub fn run(mirror: &Mirror, client: &Client, screen: &Screen) -> Result<(), Problem> {
    let place = &mirror.place;
    let query = FileListQuery { recursive: true, ..FileListQuery::default() };
    let listed = client.files(&place.tenant, &place.name, &query)?.files;
    let drive: BTreeMap<String, File> = listed
        .into_iter()
        .filter(|file| matches!(file.kind, FileKind::File | FileKind::Link))
        .map(|file| (file.path.clone(), file))
        .collect();
    let mut folder = BTreeMap::new();
    walk(&mirror.folder, "", &mut folder)?;
    // All that may have to be read: what is the same on both sides is read to be compared.
    let bytes = match mirror.direction {
        Direction::To => drive.values().map(|file| file.bytes).sum(),
        Direction::From => folder.values().map(Local::bytes).sum(),
    };
    let bar = bar(screen, Some(bytes));
    let sides = Sides { mirror, client, bar: bar.as_ref() };
    let done = match mirror.direction {
        Direction::To => to_folder(&sides, &drive, &folder),
        Direction::From => from_folder(&sides, &drive, &folder),
    };
    bar.iter().for_each(ProgressBar::finish_and_clear);
    let done = done?;
    screen.answer(&done, |done| {
        let would = if mirror.dry_run { "would be " } else { "" };
        let lines = done.copied.iter().map(|path| format!("{would}copied   {path}"));
        let lines = lines.chain(done.removed.iter().map(|path| format!("{would}removed  {path}")));
        let text = lines.collect::<Vec<_>>().join("\n");
        format!("{text}\n{} unchanged", done.unchanged).trim_start().to_owned()
    })
}

fn walk(root: &Path, below: &str, found: &mut BTreeMap<String, Local>) -> Result<(), Problem> {
    let dir = root.join(below.trim_start_matches('/'));
    let trouble = |error: io::Error| Problem::io(dir.display(), &error);
    let entries = match fs::read_dir(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && below.is_empty() => return Ok(()),
        entries => entries.map_err(trouble)?,
    };
    for entry in entries {
        let entry = entry.map_err(trouble)?;
        let name = entry.file_name().into_string().map_err(|name| {
            let what = format!("{}: the name {name:?} is not UTF-8", dir.display());
            Problem::new(Kind::Invalid, what, "rename it; a drive's paths are text")
        })?;
        let path = format!("{below}/{name}");
        let metadata = entry.metadata().map_err(trouble)?;
        if metadata.is_dir() {
            walk(root, &path, found)?;
        } else if metadata.is_symlink() {
            let target = fs::read_link(entry.path()).map_err(trouble)?.to_string_lossy().into_owned();
            found.insert(path, Local::Link { target });
        } else if metadata.is_file() {
            let executable = metadata.permissions().mode() & 0o100 != 0;
            found.insert(path, Local::File { bytes: metadata.len(), executable });
        }
    }
    Ok(())
}

fn on_disk(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// A drive that is hostile must not lead out of the folder.
fn check(path: &str) -> Result<(), Problem> {
    let fine = path.strip_prefix('/').is_some_and(|rest| {
        rest.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'))
    });
    if fine {
        return Ok(());
    }
    let what = format!("the drive has a path that leads out of a folder: {path:?}");
    Err(Problem::new(Kind::Invalid, what, "do not trust this drive"))
}

/// Whether both sides are the same to the byte.
fn same(mirror: &Mirror, client: &Client, file: &File, local: &Local) -> Result<bool, Problem> {
    match local {
        Local::Link { target } => Ok(file.kind == FileKind::Link && file.target.as_deref() == Some(target)),
        Local::File { bytes, executable } => {
            if file.kind != FileKind::File || file.bytes != *bytes || file.executable != *executable {
                return Ok(false);
            }
            let path = on_disk(&mirror.folder, &file.path);
            let mut disk = fs::File::open(&path).map_err(|error| Problem::io(path.display(), &error))?;
            let (mut same, mut buffer) = (true, Vec::new());
            let place = &mirror.place;
            client.file(&place.tenant, &place.name, &file.path, None, &mut |piece| {
                buffer.resize(piece.len(), 0);
                same = same && disk.read_exact(&mut buffer).is_ok() && buffer == piece;
                // What is already different need not be read to its end.
                if same { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
            })?;
            Ok(same)
        }
    }
}

fn to_folder(
    sides: &Sides<'_>,
    drive: &BTreeMap<String, File>,
    folder: &BTreeMap<String, Local>,
) -> Result<Done, Problem> {
    let (mut done, Sides { mirror, client, .. }) = (Done::default(), sides);
    drive.keys().try_for_each(|path| check(path))?;
    for path in folder.keys().filter(|path| !drive.contains_key(*path)) {
        if !mirror.dry_run {
            let path = on_disk(&mirror.folder, path);
            fs::remove_file(&path).map_err(|error| Problem::io(path.display(), &error))?;
        }
        done.removed.push(path.clone());
    }
    for (path, file) in drive {
        sides.advance(file.bytes);
        if let Some(local) = folder.get(path)
            && same(mirror, client, file, local)?
        {
            done.unchanged += 1;
            continue;
        }
        if !mirror.dry_run {
            write(mirror, client, file)?;
        }
        done.copied.push(path.clone());
    }
    Ok(done)
}

fn write(mirror: &Mirror, client: &Client, file: &File) -> Result<(), Problem> {
    let path = on_disk(&mirror.folder, &file.path);
    let trouble = |error: io::Error| Problem::io(path.display(), &error);
    let parent = path.parent().unwrap_or(Path::new("."));
    make_folders(&mirror.folder, parent)?;
    if let Some(target) = file.target.as_deref().filter(|_| file.kind == FileKind::Link) {
        drop(fs::remove_file(&path));
        return std::os::unix::fs::symlink(target, &path).map_err(trouble);
    }
    let mut new = tempfile::Builder::new().prefix(".cloudpal-").tempfile_in(parent).map_err(trouble)?;
    let place = &mirror.place;
    client.file(&place.tenant, &place.name, &file.path, None, &mut |piece| new.write_all(piece))?;
    let mode = if file.executable { 0o755 } else { 0o644 };
    new.as_file().set_permissions(fs::Permissions::from_mode(mode)).map_err(trouble)?;
    new.persist(&path).map_err(|error| trouble(error.error)).map(drop)
}

/// Makes what is missing below the folder. A link on the way is refused: it could lead anywhere.
fn make_folders(root: &Path, wanted: &Path) -> Result<(), Problem> {
    let trouble = |path: &Path, error: io::Error| Problem::io(path.display(), &error);
    fs::create_dir_all(root).map_err(|error| trouble(root, error))?;
    let mut here = root.to_owned();
    for part in wanted.strip_prefix(root).unwrap_or(Path::new("")).components() {
        here.push(part);
        match fs::symlink_metadata(&here) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                let what = format!("{} is in the way of a folder of the drive", here.display());
                return Err(Problem::new(Kind::Taken, what, "move it away"));
            }
            Err(_) => fs::create_dir(&here).map_err(|error| trouble(&here, error))?,
        }
    }
    Ok(())
}

fn from_folder(
    sides: &Sides<'_>,
    drive: &BTreeMap<String, File>,
    folder: &BTreeMap<String, Local>,
) -> Result<Done, Problem> {
    let (mut done, Sides { mirror, client, .. }) = (Done::default(), sides);
    let place = &mirror.place;
    for path in drive.keys().filter(|path| !folder.contains_key(*path)) {
        if !mirror.dry_run {
            client.file_delete(&place.tenant, &place.name, path)?;
        }
        done.removed.push(path.clone());
    }
    for (path, local) in folder {
        sides.advance(local.bytes());
        if let Some(file) = drive.get(path)
            && same(mirror, client, file, local)?
        {
            done.unchanged += 1;
            continue;
        }
        if !mirror.dry_run {
            send(mirror, client, path, local)?;
        }
        done.copied.push(path.clone());
    }
    Ok(done)
}

fn send(mirror: &Mirror, client: &Client, path: &str, local: &Local) -> Result<(), Problem> {
    let disk = on_disk(&mirror.folder, path);
    let (query, mut content): (_, Box<dyn Read + Send>) = match local {
        Local::Link { target } => {
            (FileQuery { link: Some(target.clone()), ..FileQuery::default() }, Box::new(io::empty()))
        }
        Local::File { executable, .. } => {
            let file = fs::File::open(&disk).map_err(|error| Problem::io(disk.display(), &error))?;
            (FileQuery { executable: *executable, ..FileQuery::default() }, Box::new(file))
        }
    };
    let place = &mirror.place;
    client.file_put(&place.tenant, &place.name, path, &query, (&mut *content, &mut |_| ())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_of_a_drive_leads_out_of_the_folder() {
        for path in ["/a", "/a/b.c", "/..a"] {
            assert!(check(path).is_ok(), "{path}");
        }
        for path in ["", "a", "/", "/../a", "/a/..", "//a", "/a/./b", "/a\0"] {
            assert!(check(path).is_err(), "{path:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/tmp", dir.path().join("out")).unwrap();
        assert!(make_folders(dir.path(), &dir.path().join("out/x")).is_err());
        make_folders(dir.path(), &dir.path().join("in/x")).unwrap();
        assert!(dir.path().join("in/x").is_dir());
    }
}
