//! A request's body of any length, and an answer that reaches its sender also when it is not read to its end.
//!
//! Invariant: a refusal is sent when the sender has sent all, or for a while nothing of it is waited for any more:
//! whoever still sends would find the connection closed, and never read why.

use super::super::data_backend::Pieces;
use axum::body::Body;
use cloudpal_model::{Kind, Problem};
use futures_util::{StreamExt, stream};
use std::{sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// How long what nobody wants is read.
const PATIENCE: Duration = Duration::from_secs(10);

pub struct Upload {
    body: Arc<Mutex<Pieces>>,
}

impl Upload {
    pub fn new(body: Body) -> Upload {
        let pieces: Pieces = Box::pin(body.into_data_stream().map(|piece| {
            piece.map_err(|error| {
                let what = format!("the content broke off: {error}");
                Problem::new(Kind::Invalid, what, "send it again; nothing was changed")
            })
        }));
        Upload { body: Arc::new(Mutex::new(pieces)) }
    }

    pub fn pieces(&self) -> Pieces {
        Box::pin(stream::unfold(self.body.clone(), async |body| {
            let piece = body.lock().await.next().await?;
            Some((piece, body))
        }))
    }

    /// The outcome, once it can be told.
    pub async fn told<T>(self, outcome: Result<T, Problem>) -> Result<T, Problem> {
        if outcome.is_err() {
            let rest = async { while let Some(Ok(_)) = self.body.lock().await.next().await {} };
            let _late = tokio::time::timeout(PATIENCE, rest).await;
        }
        outcome
    }
}
