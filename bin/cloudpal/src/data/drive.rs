//! `cloudpal drive`: files and folders with their history.

use super::{
    Common, Place,
    bee::{At, History},
    checked, common, mirror,
};
use crate::{screen::Screen, table::Table, units::show_bytes};
use clap::{Args, Subcommand};
use cloudpal_api::{Client, DataKind, FileKind, FileList, FileListQuery, FilePurge, FileQuery};
use cloudpal_model::{Kind, Problem};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Subcommand)]
pub enum Verb {
    #[command(flatten)]
    Common(Common),
    /// Put a file into the drive; `-` is stdin
    #[command(after_help = "\
Examples:
  cloudpal drive put ada photos cat.jpg /2026/cat.jpg
  tar c notes | cloudpal drive put ada photos - /notes.tar

Exit codes: 0 done, 3 not there, 5 somebody else writes it, 8 the disk or the quota is full.")]
    Put {
        #[command(flatten)]
        place: Place,
        /// The file, or `-`
        file: PathBuf,
        /// Its path in the drive [default: / and the file's own name]
        path: Option<String>,
    },
    /// Get a file out of the drive; to stdout where no file is named
    #[command(after_help = "\
Examples:
  cloudpal drive get ada photos /2026/cat.jpg cat.jpg
  cloudpal drive get ada photos /2026/cat.jpg --at 12 > old.jpg

Exit codes: 0 done, 3 no such file, 4 the local file exists.")]
    Get {
        #[command(flatten)]
        place: Place,
        /// Its path in the drive
        path: String,
        /// Where to write it; it must not exist
        file: Option<PathBuf>,
        #[command(flatten)]
        at: At,
    },
    /// What is in a folder
    #[command(after_help = "\
Examples:
  cloudpal drive ls ada photos
  cloudpal drive ls ada photos /2026 --recursive --at 12

Exit codes: 0 done, 3 not there.")]
    Ls {
        #[command(flatten)]
        place: Place,
        /// The folder
        #[arg(default_value = "/")]
        folder: String,
        /// With all that is in folders below
        #[arg(short, long)]
        recursive: bool,
        #[command(flatten)]
        at: At,
    },
    /// Remove a file; earlier versions still have it
    #[command(after_help = "Example:\n  cloudpal drive rm ada photos /2026/cat.jpg\n\n\
                            Exit codes: 0 done, 3 not there, 5 somebody else writes it.")]
    Rm {
        #[command(flatten)]
        place: Place,
        /// Its path in the drive
        path: String,
    },
    /// Copy a file within the drive, also out of an earlier version: that brings a removed one back
    #[command(after_help = "\
Examples:
  cloudpal drive cp ada photos /cat.jpg /best/cat.jpg
  cloudpal drive cp ada photos /cat.jpg /cat.jpg --at 12

Exit codes: 0 done, 3 no such file, 5 somebody else writes it.")]
    Cp {
        #[command(flatten)]
        place: Place,
        /// From this path
        from: String,
        /// To this path
        to: String,
        #[command(flatten)]
        at: At,
    },
    /// Make a folder and the drive the same
    #[command(after_help = "\
What is different is copied, and what is not there is removed. Nothing is followed out of the folder:
symbolic links are copied as links.

Examples:
  cloudpal drive mirror ada photos to ./backup
  cloudpal drive mirror ada photos from ~/Pictures --dry-run

Exit codes: 0 done, 3 not there, 5 somebody else writes the drive.")]
    Mirror(Mirror),
    /// What was written, newest first; or what changed between two versions
    #[command(after_help = "\
Examples:
  cloudpal drive history ada photos
  cloudpal drive history ada photos --since 12

Exit codes: 0 done, 3 not there.")]
    History(History),
    /// Give the space of old contents back
    #[command(after_help = "\
Contents that only versions before the named one show are forgotten on this host.

Example:
  cloudpal drive purge ada photos --keep-from 100

Exit codes: 0 done, 3 not there, 5 somebody else writes it.")]
    Purge {
        #[command(flatten)]
        place: Place,
        /// Versions from this one on stay whole
        #[arg(long, value_name = "VERSION")]
        keep_from: u64,
    },
}

#[derive(Args)]
pub struct Mirror {
    #[command(flatten)]
    pub place: Place,
    /// `to`: the folder becomes as the drive is; `from`: the drive becomes as the folder is
    pub direction: mirror::Direction,
    /// The folder
    pub folder: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

pub fn run(verb: Verb, client: &Client, screen: &Screen) -> Result<ExitCode, Problem> {
    let kind = DataKind::Drive;
    match verb {
        Verb::Common(verb) => return common(verb, kind, client, screen),
        Verb::Put { place, file, path } => put(client, screen, &place, &file, path)?,
        Verb::Get { place, path, file, at } => {
            checked(client, &place, kind)?;
            get(client, screen, &place, (&absolute(&path)?, at.version), file.as_deref())?;
        }
        Verb::Ls { place, folder, recursive, at } => {
            checked(client, &place, kind)?;
            let query = FileListQuery { version: at.version, folder: Some(absolute(&folder)?), recursive };
            screen.answer(&client.files(&place.tenant, &place.name, &query)?, table)?;
        }
        Verb::Rm { place, path } => {
            checked(client, &place, kind)?;
            let path = absolute(&path)?;
            let removed = client.file_delete(&place.tenant, &place.name, &path)?;
            screen.answer(&removed, |removed| {
                format!("{path} is removed; {} has version {}", place.name, removed.version)
            })?;
        }
        Verb::Cp { place, from, to, at } => {
            checked(client, &place, kind)?;
            copy(client, screen, &place, (&absolute(&from)?, &absolute(&to)?), at.version)?;
        }
        Verb::Mirror(mirror) => {
            checked(client, &mirror.place, kind)?;
            mirror::run(&mirror, client, screen)?;
        }
        Verb::History(history) => {
            checked(client, &history.place, kind)?;
            let place = &history.place;
            screen.answer(&client.file_history(&place.tenant, &place.name, &history.query())?, table)?;
        }
        Verb::Purge { place, keep_from } => {
            checked(client, &place, kind)?;
            let purged = client.file_purge(&place.tenant, &place.name, &FilePurge { keep_from })?;
            screen.answer(&purged, |purged| format!("{} given back", show_bytes(purged.freed_bytes)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// In a drive every path is from its root.
fn absolute(path: &str) -> Result<String, Problem> {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    if path.split('/').any(|part| part == "..") {
        return Err(Problem::new(Kind::Invalid, format!("{path} climbs"), "write it without `..`"));
    }
    Ok(path)
}

fn put(
    client: &Client,
    screen: &Screen,
    place: &Place,
    file: &Path,
    path: Option<String>,
) -> Result<(), Problem> {
    checked(client, place, DataKind::Drive)?;
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
    let stdin = file == Path::new("-");
    let path = match (path, name) {
        (Some(path), _) => path,
        (None, Some(name)) if !stdin => name,
        _ => {
            let mend = "name it after `-`, for example /notes.txt";
            return Err(Problem::new(Kind::Invalid, "stdin has no name in the drive", mend));
        }
    };
    let path = absolute(&path)?;
    let (mut content, bytes, executable): (Box<dyn Read + Send>, Option<u64>, bool) = match stdin {
        true => (Box::new(io::stdin()), None, false),
        false => {
            let open = |error: io::Error| Problem::io(file.display(), &error);
            let opened = File::open(file).map_err(open)?;
            let metadata = opened.metadata().map_err(open)?;
            if !metadata.is_file() {
                let mend = "a folder is put with `cloudpal drive mirror … from`";
                return Err(Problem::new(Kind::Invalid, format!("{} is no file", file.display()), mend));
            }
            let executable = metadata.permissions().mode() & 0o100 != 0;
            (Box::new(opened), Some(metadata.len()), executable)
        }
    };
    let bar = bar(screen, bytes);
    let query = FileQuery { executable, ..FileQuery::default() };
    let mut progress = |sent| bar.iter().for_each(|bar| bar.set_position(sent));
    let put = client.file_put(&place.tenant, &place.name, &path, &query, (&mut *content, &mut progress));
    bar.iter().for_each(ProgressBar::finish_and_clear);
    screen.answer(&put?, |put| format!("{path} is there; {} has version {}", place.name, put.version))
}

/// Only on a terminal.
pub fn bar(screen: &Screen, bytes: Option<u64>) -> Option<ProgressBar> {
    if !screen.shows_motion() {
        return None;
    }
    let bar = bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
    // The template is a constant: were it wrong, the default style would serve.
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {binary_bytes}/{binary_total_bytes} {eta}") {
        bar.set_style(style);
    }
    Some(bar)
}

/// To a file that is new and whole, or not there; else to stdout.
pub fn get(
    client: &Client,
    screen: &Screen,
    place: &Place,
    (path, version): (&str, Option<u64>),
    file: Option<&Path>,
) -> Result<(), Problem> {
    let Some(file) = file else {
        return client.file(&place.tenant, &place.name, path, version, &mut |piece| {
            io::stdout().lock().write_all(piece)
        });
    };
    let mut new = File::create_new(file).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            let mend = "choose another name, or move it away; nothing was changed";
            Problem::new(Kind::Taken, format!("{} exists", file.display()), mend)
        }
        _ => Problem::io(file.display(), &error),
    })?;
    let bar = bar(screen, None);
    let mut size = |bytes| bar.iter().for_each(|bar| bar.set_length(bytes));
    let mut write = |piece: &[u8]| {
        bar.iter().for_each(|bar| bar.inc(piece.len() as u64));
        new.write_all(piece)
    };
    let got = client.file_sized(&place.tenant, &place.name, path, version, (&mut size, &mut write));
    bar.iter().for_each(ProgressBar::finish_and_clear);
    if got.is_err() {
        // Half a file is worse than none.
        drop(fs::remove_file(file));
    }
    got
}

/// Through a temporary file, so that a copy of any size needs little memory and begins only when all of it was read.
fn copy(
    client: &Client,
    screen: &Screen,
    place: &Place,
    (from, to): (&str, &str),
    version: Option<u64>,
) -> Result<(), Problem> {
    let trouble = |error: io::Error| Problem::io("a temporary file for the copy", &error);
    let mut temporary = tempfile::tempfile().map_err(trouble)?;
    client.file(&place.tenant, &place.name, from, version, &mut |piece| temporary.write_all(piece))?;
    io::Seek::rewind(&mut temporary).map_err(trouble)?;
    let content: (&mut (dyn Read + Send), &mut (dyn FnMut(u64) + Send)) = (&mut temporary, &mut |_| ());
    let put = client.file_put(&place.tenant, &place.name, to, &FileQuery::default(), content)?;
    screen.answer(&put, |put| format!("{to} is there; {} has version {}", place.name, put.version))
}

fn table(list: &FileList) -> Table {
    let mut table = Table::new(["VERSION", "KIND", "SIZE", "PATH"]);
    for file in &list.files {
        let kind = match file.kind {
            FileKind::File if file.executable => "program",
            FileKind::File => "file",
            FileKind::Folder => "folder",
            FileKind::Link => "link",
            FileKind::Removed => "removed",
        };
        let path = match &file.target {
            Some(target) => format!("{} -> {target}", file.path),
            None => file.path.clone(),
        };
        let version = if file.version == 0 { "-".to_owned() } else { file.version.to_string() };
        let size = if file.kind == FileKind::File { show_bytes(file.bytes) } else { "-".to_owned() };
        table.row([version, kind.to_owned(), size, path]);
    }
    table
}
