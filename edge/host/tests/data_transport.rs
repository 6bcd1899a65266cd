//! Replication over TCP on loopback, as the daemon carries it.

use cloudpal_data::crypto::KeyPair;
use cloudpal_data::manifest::Manifest;
use cloudpal_data::replication::{Event, MemoryCore, MemoryCores, Options, Replica};
use cloudpal_data::signature::Verifier;
use cloudpal_host::data::transport::{Ended, Hub};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

fn writer(length: u64, size: usize) -> Hub<MemoryCores> {
    let pair = KeyPair::from_seed(&[1; 32]);
    let manifest = Manifest::single(pair.public_key());
    let verifier = Verifier::new(manifest.key(), manifest).unwrap();
    let mut core = MemoryCore::writer(verifier, pair);
    let blocks: Vec<Vec<u8>> = (0..length).map(|index| vec![index as u8; size]).collect();
    core.append(&blocks.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    hub(1, core)
}

fn hub(seed: u8, core: MemoryCore) -> Hub<MemoryCores> {
    let hub = Hub::new(KeyPair::from_seed(&[seed; 32]), Options::default(), MemoryCores::of(core), 2);
    hub.with(|replication, cores| replication.share(1, &cores.cores[&1]));
    let timed = hub.clone();
    tokio::spawn(async move { timed.keep_time().await });
    hub
}

async fn listen(hub: &Hub<MemoryCores>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hub = hub.clone();
    tokio::spawn(async move { hub.listen(listener).await });
    address
}

async fn until(hub: &Hub<MemoryCores>, what: impl Fn(&Event) -> bool) {
    let waiting = async { while !hub.events().await.iter().any(&what) {} };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it happens within a minute");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_core_comes_over_tcp() {
    let writer = writer(2000, 5000);
    let address = listen(&writer).await;
    let key = writer.with(|_, cores| cores.cores[&1].key());
    let reader = hub(2, MemoryCore::reader(key));
    let dialler = reader.clone();
    let dialling = tokio::spawn(async move { dialler.dial(address).await });
    reader.with(|replication, _| replication.download(1, 0, Some(2000)));
    until(&reader, |event| matches!(event, Event::Downloaded { .. })).await;
    reader.with(|_, cores| {
        assert!((0..2000).all(|index| cores.cores[&1].get(index) == Some(&vec![index as u8; 5000][..])));
    });
    // Live, and then the writer goes.
    reader.with(|replication, _| replication.download(1, 0, None));
    writer.with(|replication, cores| {
        cores.cores.get_mut(&1).unwrap().append(&[b"live"]).unwrap();
        replication.changed(1);
    });
    until(&reader, |event| matches!(event, Event::Grown { length: 2001, .. })).await;
    writer.with(|replication, _| replication.disconnect(1));
    assert!(matches!(dialling.await.unwrap(), Ended::ByPeer));
    until(&reader, |event| matches!(event, Event::Disconnected { .. })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_and_make_room_for_others() {
    let writer = writer(10, 10);
    let address = listen(&writer).await;
    // As many as there may be: one that talks nonsense, and one that says nothing.
    let mut nonsense = TcpStream::connect(address).await.unwrap();
    let silent = TcpStream::connect(address).await.unwrap();
    nonsense.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    until(&writer, |event| matches!(event, Event::Disconnected { reason: Some(_), .. })).await;
    drop(silent);
    until(&writer, |event| matches!(event, Event::Disconnected { reason: None, .. })).await;
    let key = writer.with(|_, cores| cores.cores[&1].key());
    let reader = hub(2, MemoryCore::reader(key));
    let dialler = reader.clone();
    tokio::spawn(async move { dialler.dial(address).await });
    reader.with(|replication, _| replication.want(1, 9));
    until(&reader, |event| matches!(event, Event::Block { index: 9, .. })).await;
}

#[tokio::test]
async fn nobody_listens() {
    let reader = hub(2, MemoryCore::reader([3; 32]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert!(matches!(reader.dial(address).await, Ended::Failed(_)));
}
