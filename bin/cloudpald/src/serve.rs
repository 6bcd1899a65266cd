//! The API's socket.
//!
//! Invariant: the socket is root's alone (mode 0600), and a socket file left by a killed daemon
//! is in nobody's way: the store's lock has shown by now that no other daemon runs.

use crate::{daemon::Daemon, http};
use cloudpal_model::Problem;
use std::{os::unix::fs::PermissionsExt, sync::Arc};
use tokio::{net::UnixListener, task::JoinHandle};

pub fn start(daemon: &Arc<Daemon>) -> Result<JoinHandle<()>, Problem> {
    let path = daemon.places.socket();
    let place = |e: &std::io::Error| Problem::io(format_args!("listening on {}", path.display()), e);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(place(&e)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(|e| place(&e))?;
    let private = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600));
    private.map_err(|e| place(&e))?;
    let router = http::router(daemon.clone());
    Ok(tokio::spawn(async move {
        if let Err(e) = http::serve(listener, router).await {
            tracing::error!(error = %e, "the API ended");
        }
    }))
}
