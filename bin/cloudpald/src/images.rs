//! Image imports: each runs on its own, tells the engine how far it is, and ends in `ImageReady` or `ImageFailed`.

use crate::brain::Brain;
use cloudpal_compute::image::Limits;
use cloudpal_control::event::{Event, Image};
use cloudpal_host::image::{Credentials, ImageStore, Stage};
use cloudpal_model::OperationId;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

pub struct Imports {
    store: Arc<ImageStore>,
    brain: Brain,
    /// By image source, from the request until its import starts. Never stored, never logged.
    credentials: Mutex<HashMap<String, Credentials>>,
}

impl Imports {
    pub fn new(store: Arc<ImageStore>, brain: Brain) -> Self {
        Imports { store, brain, credentials: Mutex::default() }
    }

    /// To be used by the next import from `source`.
    pub fn set_credentials(&self, source: &str, credentials: Credentials) {
        self.lock().insert(source.to_owned(), credentials);
    }

    /// Forgets credentials whose request was refused.
    pub fn forget_credentials(&self, source: &str) {
        self.lock().remove(source);
    }

    /// The root file system of an image that was imported; `None` if somebody took it away.
    pub fn rootfs(&self, digest: &str) -> Option<PathBuf> {
        Some(self.store.get(&digest.parse().ok()?)?.rootfs)
    }

    pub fn start(&self, operation: OperationId, source: String, argv_given: bool) {
        let credentials = self.lock().remove(&source);
        let (store, brain) = (self.store.clone(), self.brain.clone());
        tokio::spawn(async move {
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

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Credentials>> {
        self.credentials.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn verb(stage: Stage) -> &'static str {
    match stage {
        Stage::Fetching => "fetching",
        Stage::Unpacking => "unpacking",
        Stage::Writing => "writing",
    }
}
