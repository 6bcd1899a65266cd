//! One end of a measured replication over TCP: `serve COUNT SIZE` writes a core and serves it,
//! `fetch PORT KEY COUNT` reads one whole and says how long that took. `cargo xtask bench replication` runs it against
//! itself and the JavaScript stack.

use cloudpal_data::core::{Durability, Open};
use cloudpal_data::crypto::KeyPair;
use cloudpal_data::replication::{Event, Options, StoredCores};
use cloudpal_data::store::{self, RootKey, Store};
use cloudpal_host::data::disk::DirectoryDisk;
use cloudpal_host::data::transport::Hub;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", count, size] => serve(count.parse()?, size.parse()?).await,
        ["fetch", port, key, count] => fetch(port.parse()?, key, count.parse()?).await,
        _ => Err("usage: data_peer serve COUNT SIZE | fetch PORT KEY COUNT".into()),
    }
}

/// As in `core/data/golden/peer.js`.
fn block(index: u64, size: usize) -> Vec<u8> {
    (0..size).map(|at| (index * 7 + at as u64) as u8).collect()
}

fn store(directory: &std::path::Path) -> Result<Store, Box<dyn Error>> {
    let disk = DirectoryDisk::open(directory, 32).map_err(|problem| problem.to_string())?;
    Ok(Store::open(Arc::new(disk), RootKey([4; 32]), [5; 32], store::Options::default())?)
}

async fn serve(count: u64, size: usize) -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let mut cores = StoredCores::new(store(directory.path())?);
    let number = cores.open(&Open::pair(KeyPair::from_seed(&[1; 32])))?;
    let core = cores.core(number).ok_or("the core is open")?.clone();
    for start in (0..count).step_by(1000) {
        let blocks: Vec<Vec<u8>> = (start..count.min(start + 1000)).map(|index| block(index, size)).collect();
        core.append(&blocks.iter().map(Vec::as_slice).collect::<Vec<_>>(), Durability::Buffered)?;
    }
    core.sync()?;
    let key: String = core.key().iter().map(|byte| format!("{byte:02x}")).collect();
    let hub = Hub::new(KeyPair::from_seed(&[2; 32]), Options::default(), cores, 16);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{{\"port\":{},\"key\":\"{key}\"}}", listener.local_addr()?.port());
    hub.listen(listener).await;
    Ok(())
}

async fn fetch(port: u16, key: &str, count: u64) -> Result<(), Box<dyn Error>> {
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(key.get(2 * at..2 * at + 2).ok_or("a key has 64 digits")?, 16)?;
    }
    let directory = tempfile::tempdir()?;
    let mut cores = StoredCores::new(store(directory.path())?);
    let number = cores.open(&Open::key(bytes))?;
    let core = cores.core(number).ok_or("the core is open")?.clone();
    let hub = Hub::new(KeyPair::from_seed(&[3; 32]), Options::default(), cores, 16);
    let started = Instant::now();
    hub.with(|replication, _| {
        replication.share(number, &core);
        replication.download(number, 0, Some(count));
    });
    let dialler = hub.clone();
    let dialling = tokio::spawn(async move { dialler.dial(([127, 0, 0, 1], port).into()).await });
    loop {
        let events = hub.events().await;
        if events.iter().any(|event| matches!(event, Event::Downloaded { .. })) {
            break;
        }
        if let Some(Event::Disconnected { reason, .. }) =
            events.iter().find(|event| matches!(event, Event::Disconnected { .. }))
        {
            return Err(format!("the peer is gone: {reason:?}").into());
        }
    }
    println!("{{\"ms\":{}}}", started.elapsed().as_secs_f64() * 1000.0);
    dialling.abort();
    Ok(())
}
