//! Image imports: each runs on its own, tells the engine how far it is, and ends in `ImageReady` or `ImageFailed`.

use crate::brain::Brain;
use cloudpal_compute::image::Limits;
use cloudpal_control::{
    effect::AppKey,
    event::{Event, Image},
    view::View,
};
use cloudpal_host::image::{Credentials, ImageStore, Stage, StoredImage};
use cloudpal_model::{Kind, OperationId, Problem};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::sync::RwLock;

pub struct Imports {
    store: Arc<ImageStore>,
    brain: Brain,
    /// By app, from the request until its import starts. Never stored, never logged.
    credentials: Mutex<HashMap<AppKey, Credentials>>,
    /// Imports read it until the engine has heard of what they brought; who takes images away writes it.
    coming_in: Arc<RwLock<()>>,
}

/// Credentials that wait for an import; forgotten with this, should there be none.
pub struct Waiting<'a> {
    imports: &'a Imports,
    app: AppKey,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.imports.lock().remove(&self.app);
    }
}

impl Imports {
    pub fn new(store: Arc<ImageStore>, brain: Brain) -> Self {
        Imports { store, brain, credentials: Mutex::default(), coming_in: Arc::default() }
    }

    /// To be used by the import of this app, if that starts before the answer is dropped.
    pub fn lend_credentials(&self, app: AppKey, credentials: Credentials) -> Result<Waiting<'_>, Problem> {
        let mut waiting = self.lock();
        if waiting.contains_key(&app) {
            let what = format!("{}/{} is being installed at this very moment", app.tenant, app.name);
            return Err(Problem::new(Kind::Refused, what, "wait for that, or choose another name"));
        }
        waiting.insert(app.clone(), credentials);
        Ok(Waiting { imports: self, app })
    }

    /// Removes the images that no app uses. Skipped while something is imported: the next removal comes again.
    pub async fn collect(&self) -> Result<(), Problem> {
        let Ok(_nothing_comes_in) = self.coming_in.try_write() else { return Ok(()) };
        let view = self.brain.view().await?;
        for image in self.store.list()?.into_iter().filter(|image| !uses(&view, &image.digest.to_string())) {
            tracing::info!(digest = %image.digest, "no app uses this image any more: removed");
            self.store.remove(&image.digest)?;
        }
        Ok(())
    }

    /// An image that was imported; `None` if somebody took it away.
    pub fn stored(&self, digest: &str) -> Option<StoredImage> {
        self.store.get(&digest.parse().ok()?)
    }

    pub fn start(&self, operation: OperationId, app: &AppKey, source: String, argv_given: bool) {
        let credentials = self.lock().remove(app);
        let (store, brain, coming_in) = (self.store.clone(), self.brain.clone(), self.coming_in.clone());
        tokio::spawn(async move {
            let _coming_in = coming_in.read().await;
            let told = brain.clone();
            let progress = move |p: cloudpal_host::image::Progress| {
                told.event(Event::ImageProgress {
                    operation,
                    done_bytes: p.done_bytes,
                    total_bytes: p.total_bytes,
                    stage: format!("{} {}", verb(p.stage), p.part),
                });
            };
            let event =
                match store.import(&source, credentials, &Limits::default(), argv_given, progress).await {
                    Ok(stored) => {
                        let image = Image {
                            digest: stored.digest.to_string(),
                            config: stored.config,
                            rootfs_bytes: stored.rootfs_bytes,
                            has_kernel: stored.kernel.is_some(),
                        };
                        Event::ImageReady { operation, image }
                    }
                    Err(problem) => {
                        tracing::warn!(%operation, source, %problem, "image refused");
                        Event::ImageFailed { operation, problem }
                    }
                };
            brain.event(event);
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AppKey, Credentials>> {
        self.credentials.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// An app that is being removed is in no view any more; its VMM has ended before anybody collects.
fn uses(view: &View, digest: &str) -> bool {
    view.tenants.iter().flat_map(|tenant| &tenant.apps).any(|app| app.digest == digest)
}

fn verb(stage: Stage) -> &'static str {
    match stage {
        Stage::Fetching => "fetching",
        Stage::Unpacking => "unpacking",
        Stage::Writing => "writing",
    }
}
