//! One tenant's data: the store, what is in it, and its peers.
//!
//! Invariants: what is written here is told to the peers; what is somebody else's is downloaded whole; whoever waits
//! for a block looks again at every event, and gives up after a while.

use super::{
    blocking,
    catalog::{self, Record},
    cursors,
    feeds::{Missing, Tracked},
    import,
    item::{self, Item, Opened, Shared},
    keys::{self, Keys},
    peers::{self, Cores},
};
use crate::brain::Brain;
use cloudpal_api::{DataAdd, DataKind};
use cloudpal_control::view::TenantView;
use cloudpal_data::{
    DataError,
    core::{Durability, Open},
    crypto::{Hash, KeyPair},
    drive,
    manifest::Manifest,
    replication::Options as ReplicationOptions,
    store::{Options, RootKey, Store},
};
use cloudpal_host::{
    data::{
        disk::{DirectoryDisk, MAX_OPEN},
        transport::Hub,
    },
    net::NetHost,
};
use cloudpal_model::{Kind, Name, Problem, TenantId};
use cloudpal_net::plan::Subnets;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};

/// How long a read waits for a block that no peer has brought yet.
const BLOCK_PATIENCE: Duration = Duration::from_secs(10);
const MAX_CONNECTIONS: usize = 64;
/// Many more than a person makes.
const MAX_ITEMS: usize = 10_000;

pub struct TenantData {
    pub id: TenantId,
    pub domain: String,
    pub subnets: Subnets,
    pub net: Arc<NetHost>,
    pub brain: Brain,
    pub store: Store,
    pub hub: Hub<Cores>,
    pub server_key: Hash,
    keys: Keys,
    items: Mutex<BTreeMap<Name, Shared>>,
    /// Nothing else gets a name meanwhile.
    pub importing: AtomicBool,
    /// Counts the events of replication and our own writes.
    pub news: watch::Sender<u64>,
    /// The listeners, the callers, the clock.
    pub tasks: Mutex<JoinSet<()>>,
}

impl TenantData {
    pub async fn open(
        tenant: &TenantView,
        dir: PathBuf,
        key: PathBuf,
        net: Arc<NetHost>,
        brain: Brain,
    ) -> Result<Arc<TenantData>, Problem> {
        let (store, keys) = blocking(move || {
            let keys = Keys::open(&key)?;
            let disk = Arc::new(DirectoryDisk::open(&dir, MAX_OPEN)?);
            let store = Store::open(disk, RootKey(keys.store()), keys::random()?, Options::default())?;
            Ok((store, keys))
        })
        .await?;
        let server = keys.server();
        let server_key = server.public_key();
        let cores = Cores::new(store.clone());
        let data = Arc::new(TenantData {
            id: tenant.id,
            domain: tenant.domain.clone(),
            subnets: Subnets { v4: tenant.subnet_v4, v6: tenant.prefix_v6 },
            net,
            brain,
            hub: Hub::new(server, ReplicationOptions::default(), cores, MAX_CONNECTIONS),
            store,
            server_key,
            keys,
            items: Mutex::default(),
            importing: AtomicBool::new(false),
            news: watch::Sender::new(0),
            tasks: Mutex::default(),
        });
        let opening = data.clone();
        blocking(move || {
            import::recover(&opening.store)?;
            for (name, record) in catalog::all(&opening.store) {
                opening.enter(name, record)?;
            }
            Ok(())
        })
        .await?;
        peers::start(&data);
        Ok(data)
    }

    pub async fn close(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        let store = self.store.clone();
        if let Err(problem) = blocking(move || Ok(store.checkpoint()?)).await {
            tracing::warn!(tenant = %self.id, %problem, "the index was not written; the next start takes longer");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Name, Shared>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn items(&self) -> Vec<Shared> {
        self.lock().values().cloned().collect()
    }

    pub fn item(&self, name: &Name) -> Result<Shared, Problem> {
        self.lock().get(name).cloned().ok_or_else(|| {
            let mend = "`cloudpal data list` shows what there is";
            Problem::new(Kind::NotFound, format!("there is no core, bee, drive or trie named {name}"), mend)
        })
    }

    /// The item, if it is one of these kinds.
    pub fn item_of(&self, name: &Name, kinds: &[DataKind]) -> Result<Shared, Problem> {
        let item = self.item(name)?;
        if kinds.contains(&item.kind) {
            return Ok(item);
        }
        let what = format!("{name} is a {}", word(item.kind));
        Err(Problem::new(Kind::Invalid, what, format!("use `cloudpal {} …`", word(item.kind))))
    }

    /// Opens a core, and tells replication of it.
    fn core(&self, open: Open, missing: &Missing, ours: bool) -> Result<Tracked, DataError> {
        let core = self.store.core(&open)?.with_durability(Durability::Synced);
        let number = self.hub.with(|replication, cores| {
            let number = cores.enter(core.clone());
            replication.share(number, &core);
            if !ours {
                replication.download(number, 0, None);
            }
            number
        });
        Ok(Tracked::new(core, number, missing.clone()))
    }

    /// The key pair of a core that is made here.
    pub fn core_pair(&self, seed: &str) -> KeyPair {
        self.keys.core(seed)
    }

    /// The writer's key pair, where it is here.
    pub fn pair(&self, record: &Record) -> Result<Option<KeyPair>, Problem> {
        let imported = record.pair.as_ref().map(|pair| keys::parse(pair.reveal())).transpose()?;
        let made_here = record.seed.as_ref().map(|seed| self.keys.core(seed));
        Ok(imported.map(|seed| KeyPair::from_seed(&seed)).or(made_here))
    }

    pub fn enter(&self, name: Name, record: Record) -> Result<Shared, Problem> {
        let missing = Missing::default();
        let encryption = record.encryption_key()?;
        let sealed = |open: Open| encryption.map_or(open.clone(), |key| open.encrypted(key));
        let (main, contents) = match self.pair(&record)? {
            None => (self.core(sealed(Open::key(keys::parse(&record.key)?)), &missing, false)?, None),
            Some(pair) => {
                let main = self.core(sealed(Open::pair(pair.clone())), &missing, true)?;
                let contents = (record.kind == DataKind::Drive).then(|| {
                    let manifest = Manifest::single(pair.public_key());
                    let manifest = drive::contents_manifest(&manifest, main.core.key());
                    let manifest = manifest.ok_or(DataError::WrongManifest)?;
                    self.core(sealed(Open::manifest(manifest).with_pair(pair)), &missing, true)
                });
                (main, contents.transpose()?)
            }
        };
        let contents = contents.as_ref().map(|contents| (&contents.core, contents.number));
        let opened = item::opened(record.kind, &main, contents, &missing);
        let item = Arc::new(Item::new(name.clone(), record, main, missing, opened));
        self.lock().insert(name, item.clone());
        Ok(item)
    }

    /// Makes something new, or begins to seed.
    pub fn add(&self, add: DataAdd) -> Result<Shared, Problem> {
        if self.importing.load(Ordering::SeqCst) {
            let mend = "wait until it is done, then try again";
            return Err(Problem::new(Kind::Refused, "an import into this tenant is under way", mend));
        }
        if self.lock().contains_key(&add.name) {
            let what = format!("there is a {} named {} already", word(self.item(&add.name)?.kind), add.name);
            return Err(Problem::new(Kind::Taken, what, "choose another name"));
        }
        if self.lock().len() >= MAX_ITEMS {
            let what = format!("the tenant has {MAX_ITEMS} cores, bees, drives and tries");
            return Err(Problem::new(Kind::Refused, what, "remove what is no longer used"));
        }
        self.within_quota(0)?;
        let encryption_key = match (&add.encryption_key, add.encrypted) {
            (Some(key), _) => Some(keys::hex(&keys::parse(key.reveal())?)),
            (None, true) => Some(keys::hex(&keys::random::<32>()?)),
            (None, false) => None,
        };
        let (key, seed) = match &add.key {
            Some(key) => (keys::parse(key)?, None),
            None => {
                let seed = format!("{}/{}", add.name, keys::hex(&keys::random::<16>()?));
                (Manifest::single(self.keys.core(&seed).public_key()).key(), Some(seed))
            }
        };
        let (kind, key, peers) = (add.kind, keys::hex(&key), Vec::new());
        let record = Record { kind, key, seed, pair: None, encryption_key, peers };
        catalog::put(&self.store, &add.name, Some(&record))?;
        self.enter(add.name, record)
    }

    pub fn remove(&self, name: &Name) -> Result<(), Problem> {
        let item = self.item(name)?;
        catalog::put(&self.store, name, None)?;
        cursors::forget(&self.store, name)?;
        self.lock().remove(name);
        for core in item.cores() {
            self.hub.with(|replication, cores| {
                replication.unshare(core.number);
                cores.forget(core.number);
            });
            self.store.remove(core.core.key())?;
        }
        self.store.compact()?;
        Ok(())
    }

    pub fn within_quota(&self, more_bytes: u64) -> Result<(), Problem> {
        let Some(quota_bytes) = catalog::quota_bytes(&self.store) else { return Ok(()) };
        let disk_bytes = self.store.usage()?.disk_bytes;
        if disk_bytes.saturating_add(more_bytes) <= quota_bytes {
            return Ok(());
        }
        let what = format!("the tenant's data takes {disk_bytes} bytes, of {quota_bytes} that it may take");
        let mend = "remove or purge something, then `cloudpal data compact`; or ask for a larger quota";
        Err(Problem::new(Kind::DiskFull, what, mend))
    }

    /// Peers, and whoever waits here, look at these cores again.
    pub fn wrote(&self, cores: &[Tracked]) {
        self.hub.with(|replication, _| cores.iter().for_each(|core| replication.changed(core.number)));
        self.news.send_modify(|count| *count += 1);
    }

    /// Does something with an item. What lacks a block is done again once a peer has brought it.
    pub async fn with<T: Send + 'static>(
        &self,
        item: &Shared,
        act: impl Fn(&mut Opened) -> Result<T, DataError> + Clone + Send + 'static,
    ) -> Result<T, Problem> {
        let started = Instant::now();
        loop {
            let mut news = self.news.subscribe();
            let (subject, act) = (item.clone(), act.clone());
            let done = blocking(move || {
                let outcome = act(&mut subject.lock());
                let missing = subject.missing.lock().unwrap_or_else(PoisonError::into_inner).take();
                Ok((outcome, missing))
            });
            let wanted = match done.await? {
                // Without a block: it is not known yet in which core the contents are. The list of files says so.
                (Err(DataError::NotHere { .. }), missing) => missing.unwrap_or((item.main.number, 0)),
                (outcome, _) => return Ok(outcome?),
            };
            self.hub.with(|replication, _| replication.want(wanted.0, wanted.1));
            let left = BLOCK_PATIENCE.saturating_sub(started.elapsed());
            if left.is_zero() || tokio::time::timeout(left, news.changed()).await.is_err() {
                self.hub.with(|replication, _| replication.unwant(wanted.0, wanted.1));
                let what =
                    format!("a part of {} is not here, and no peer that is connected has it", item.name);
                let mend =
                    "connect a device that has it; `cloudpal data list` shows how many peers there are";
                return Err(Problem::new(Kind::Unavailable, what, mend));
            }
        }
    }

    /// Finds the contents of somebody else's drives as soon as it is known where they are.
    pub fn settle_drives(&self) {
        for item in self.items().into_iter().filter(|item| item.kind == DataKind::Drive) {
            match self.settle_drive(&item) {
                Ok(()) | Err(DataError::NotHere { .. }) => {}
                Err(error) => {
                    tracing::warn!(tenant = %self.id, name = %item.name, %error, "the drive's contents are not found");
                }
            }
        }
    }

    fn settle_drive(&self, item: &Item) -> Result<(), DataError> {
        let Some(key) = item.contents_key()? else { return Ok(()) };
        let encryption = item.record().encryption_key().map_err(|_| DataError::BadRequest("its key"))?;
        let open = encryption.map_or(Open::key(key), |encryption| Open::key(key).encrypted(encryption));
        let contents = self.core(open, &item.missing, false)?;
        let contents = Some((&contents.core, contents.number));
        *item.lock() = item::opened(DataKind::Drive, &item.main, contents, &item.missing);
        Ok(())
    }

    pub fn peers_of(&self, core: &Tracked) -> u32 {
        self.hub.with(|replication, _| replication.peers(core.number).len() as u32)
    }
}

pub fn word(kind: DataKind) -> &'static str {
    match kind {
        DataKind::Core => "core",
        DataKind::Bee => "bee",
        DataKind::Drive => "drive",
        DataKind::Trie => "trie",
    }
}
