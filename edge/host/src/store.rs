//! The state store on disk: one redb file, `state.redb`, readable by its owner only.
//!
//! Invariants: every batch is one redb transaction with immediate durability, so it is on the disk as a whole when
//! `commit` returns, or not at all; redb locks the file, so one daemon at a time owns it; a damaged file is never
//! repaired by guessing or replaced by an empty one.

use cloudpal_model::{
    Kind, Problem,
    store::{Change, Store},
};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    backends::FileBackend,
};
use std::{
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");

/// redb's own cache would be larger than the state of a whole host.
const CACHE_BYTES: usize = 4 << 20;

/// What every redb file begins with.
const MAGIC: &[u8; 9] = b"redb\x1A\x0A\xA9\x0D\x0A";

pub struct RedbStore {
    path: PathBuf,
    /// `None` after a failed write that could not be mended yet.
    database: Option<Database>,
}

impl RedbStore {
    /// Opens the store, or makes a new one where no file is.
    pub fn open(path: &Path) -> Result<RedbStore, Problem> {
        let mut store = RedbStore { path: path.to_owned(), database: Some(open_database(path)?) };
        // The table exists from the start, so that `load` needs no special case.
        store.commit(&[])?;
        Ok(store)
    }

    /// After a failed write redb takes no more until the file was opened anew, which also mends what was half written.
    fn opened(&mut self) -> Result<&Database, Problem> {
        if self.database.is_none() {
            self.database = Some(open_database(&self.path)?);
        }
        self.database.as_ref().ok_or_else(|| damaged(&self.path, "it is closed"))
    }

    fn try_transact(database: &Database, batch: &[Change]) -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        {
            let mut table = transaction.open_table(RECORDS)?;
            for change in batch {
                match change {
                    Change::Put { key, value } => drop(table.insert(key.as_str(), value.as_slice())?),
                    Change::Delete { key } => drop(table.remove(key.as_str())?),
                }
            }
        }
        Ok(transaction.commit()?)
    }

    fn try_load(database: &Database) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
        let table = database.begin_read()?.open_table(RECORDS)?;
        let mut records = Vec::new();
        for entry in table.iter()? {
            let (key, value) = entry?;
            records.push((key.value().to_owned(), value.value().to_owned()));
        }
        Ok(records)
    }

    fn problem(&self, error: redb::Error) -> Problem {
        match error {
            redb::Error::Io(error) => {
                Problem::io(format_args!("the state store {}", self.path.display()), &error)
            }
            error => damaged(&self.path, &error.to_string()),
        }
    }
}

impl Store for RedbStore {
    fn load(&self) -> Result<Vec<(String, Vec<u8>)>, Problem> {
        let Some(database) = &self.database else {
            let what = format!("the state store {} failed before", self.path.display());
            return Err(Problem::new(Kind::Unavailable, what, "mend its disk, then restart the daemon"));
        };
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Self::try_load(database)));
        match loaded {
            Ok(loaded) => loaded.map_err(|error| self.problem(error)),
            Err(_panic) => Err(damaged(&self.path, "its pages contradict each other")),
        }
    }

    fn commit(&mut self, batch: &[Change]) -> Result<(), Problem> {
        let result = Self::try_transact(self.opened()?, batch);
        result.map_err(|error| {
            self.database = None;
            self.problem(error)
        })
    }
}

fn open_database(path: &Path) -> Result<Database, Problem> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| Problem::io(format_args!("opening the state store {}", path.display()), &error))?;
    let place = |error: &io::Error| Problem::io(format_args!("the state store {}", path.display()), error);
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(|error| place(&error))?;
    if file.metadata().map_err(|error| place(&error))?.len() > 0 {
        check_magic(path, &mut file)?;
    }
    // redb asserts its way through some kinds of damage. A panic there is damage too, not the daemon's end.
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(FileBackend::new(file)?)
    }));
    match opened {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => Err(in_use(path)),
        Ok(Err(DatabaseError::Storage(StorageError::Io(error))))
            if error.kind() != io::ErrorKind::InvalidData =>
        {
            Err(place(&error))
        }
        Ok(Err(error)) => Err(damaged(path, &error.to_string())),
        Err(_panic) => Err(damaged(path, "its pages contradict each other")),
    }
}

fn check_magic(path: &Path, file: &mut std::fs::File) -> Result<(), Problem> {
    let mut start = [0; MAGIC.len()];
    match file.read_exact(&mut start) {
        Ok(()) if start == *MAGIC => Ok(()),
        Ok(()) => Err(damaged(path, "it does not begin like a store")),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(damaged(path, "it is cut short")),
        Err(error) => Err(Problem::io(format_args!("reading the state store {}", path.display()), &error)),
    }
}

fn in_use(path: &Path) -> Problem {
    let what = format!("the state store {} is in use by another daemon", path.display());
    Problem::new(Kind::Taken, what, "end that daemon first, or give this one another --state-dir")
}

fn damaged(path: &Path, why: &str) -> Problem {
    let what = format!("the state store {} is damaged: {why}", path.display());
    let mend =
        "restore it from a backup; or move it away to begin anew, which forgets every tenant, device and app";
    Problem::new(Kind::Internal, what, mend)
}
