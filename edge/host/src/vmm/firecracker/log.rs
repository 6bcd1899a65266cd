//! The app's log: the guest brings it over its vsock, and the daemon writes it to the machine's `log`.
//!
//! Invariant: one connection at a time, so a hostile guest can neither open many nor make memory grow; while nobody
//! reads, the guest waits.

use super::super::start::sockets_dir;
use cloudpal_compute::driver::MachineSpec;
use cloudpal_model::Problem;
use std::{fs, io, os::unix::fs::lchown};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::AbortHandle,
};

/// Firecracker connects a guest's port N to the socket's name, an underscore and N: 53 is `cloudpal-init`'s.
const SOCKET: &str = "v.sock_53";

/// Ends the writing when it is dropped.
pub struct Log(AbortHandle);

impl Drop for Log {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Listens before the guest can connect.
pub fn listen(spec: &MachineSpec, user: Option<u32>) -> Result<Log, Problem> {
    let path = sockets_dir(spec).join(SOCKET);
    let bound = match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(&path),
    };
    let listener = bound.and_then(|listener| lchown(&path, user, None).map(|()| listener));
    let listener = listener.map_err(|error| Problem::io(path.display(), &error))?;
    let log = spec.dir.join("log");
    let task = tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((guest, _)) => {
                    if let Err(error) = copy(guest, &log).await {
                        tracing::debug!(%error, "the app's log was cut off");
                    }
                }
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    });
    Ok(Log(task.abort_handle()))
}

async fn copy(mut guest: UnixStream, log: &std::path::Path) -> io::Result<()> {
    let mut file = File::options().append(true).create(true).open(log).await?;
    let mut chunk = vec![0; 16 << 10];
    loop {
        let count = guest.read(&mut chunk).await?;
        if count == 0 {
            return Ok(());
        }
        // A full disk: the guest must not be stopped by it.
        if let Err(error) = file.write_all(&chunk[..count]).await {
            tracing::debug!(%error, "the app's log cannot be written");
        }
        drop(file.flush().await);
    }
}
