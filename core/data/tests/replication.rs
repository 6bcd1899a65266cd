//! Replication between peers of ours, over a wire that the test holds in its hands.

mod golden_kit;
mod replication_kit;

use cloudpal_data::replication::{Event, MemoryCore, Replica};
use replication_kit::{House, block};

#[test]
fn a_core_comes_whole() {
    for compat in [false, true] {
        let mut houses = House::pair(compat, 1000);
        houses[1].replication.download(1, 0, Some(1000));
        House::run(&mut houses);
        assert!(houses[1].events.contains(&Event::Downloaded { core: 1, download: 1 }));
        for index in 0..1000 {
            assert_eq!(houses[1].core().get(index), Some(&block(index)[..]));
        }
    }
}

/// The writer names no core: it is asked, and finds it.
#[test]
fn a_core_is_found_when_it_is_asked_for() {
    let mut houses = House::pair(false, 50);
    houses[0].replication.unshare(1);
    houses[1].replication.download(1, 0, Some(50));
    House::run(&mut houses);
    assert_eq!(houses[1].core().first_missing(0, 50), None);
}

#[test]
fn only_what_is_wanted_comes() {
    let mut houses = House::pair(false, 1000);
    houses[1].replication.want(1, 7);
    houses[1].replication.want(1, 999);
    houses[1].replication.download(1, 100, Some(130));
    House::run(&mut houses);
    assert!(houses[1].events.contains(&Event::Block { core: 1, index: 999 }));
    let core = houses[1].core();
    for index in 0..1000 {
        let wanted = index == 7 || index == 999 || (100..130).contains(&index);
        assert_eq!(core.has(index), wanted, "block {index}");
    }
}

#[test]
fn what_is_here_already_is_told_at_once() {
    let mut houses = House::pair(false, 100);
    houses[1].replication.download(1, 0, Some(100));
    House::run(&mut houses);
    let reader = &mut houses[1];
    reader.replication.want(1, 5);
    reader.replication.want_seek(1, 50, 0);
    let download = reader.replication.download(1, 20, Some(30));
    reader.replication.settle(&mut reader.cores);
    let events = reader.replication.take_events();
    let expected = [
        Event::Block { core: 1, index: 5 },
        Event::Downloaded { core: 1, download },
        Event::Sought { core: 1, bytes: 50 },
    ];
    assert_eq!(events, expected);
}

#[test]
fn it_grows_live_and_a_third_hears_from_the_second() {
    let mut houses = House::pair(false, 10);
    let key = houses[0].core().key();
    houses.push(House::new(3, MemoryCore::reader(key)));
    houses[2].share();
    House::connect(&mut houses, 1, 2);
    houses[1].replication.download(1, 0, None);
    houses[2].replication.download(1, 0, None);
    House::run(&mut houses);
    for length in 11..100 {
        houses[0].append(&[&block(length - 1)]);
        House::run(&mut houses);
        for reader in &mut houses[1..3] {
            assert_eq!(reader.core().get(length - 1), Some(&block(length - 1)[..]));
        }
    }
}

#[test]
fn a_fork_is_followed_and_the_common_beginning_is_kept() {
    for (length, cut, more) in
        [(100, 50, 60), (64, 63, 3), (100, 0, 10), (33, 32, 0), (1, 0, 1), (1000, 17, 2000)]
    {
        let mut houses = House::pair(false, length);
        houses[1].replication.download(1, 0, None);
        House::run(&mut houses);
        assert_eq!(houses[1].core().first_missing(0, length), None);
        houses[0].core_mut().truncate(cut, 1).unwrap();
        for index in 0..more {
            houses[0].append(&[&block(5000 + index)]);
        }
        houses[0].changed();
        House::run(&mut houses);
        let shown = houses[0].core().shown();
        assert_eq!(houses[1].core().shown(), shown, "{length} {cut} {more}");
        let ancestors = houses[1].events.iter().find_map(|event| match event {
            Event::Reorganised { ancestors, .. } => Some(*ancestors),
            _ => None,
        });
        // Cut to nothing there is nothing to prove, until it grows.
        assert_eq!(ancestors, Some(cut), "{length} {cut} {more}");
        for index in 0..cut + more {
            assert_eq!(houses[1].core().get(index), houses[0].core().get(index));
        }
    }
}

#[test]
fn many_peers_share_the_work() {
    let mut houses = House::pair(false, 2000);
    let key = houses[0].core().key();
    houses[1].replication.download(1, 0, None);
    House::run(&mut houses);
    houses.push(House::new(3, MemoryCore::reader(key)));
    houses[2].share();
    House::connect(&mut houses, 0, 2);
    House::connect(&mut houses, 1, 2);
    houses[2].replication.download(1, 0, Some(2000));
    House::run(&mut houses);
    assert_eq!(houses[2].core().first_missing(0, 2000), None);
    let (from_writer, from_reader) = (houses[0].sent, houses[1].sent);
    assert!(from_writer > 20_000 && from_reader > 20_000, "{from_writer} {from_reader}");
}

#[test]
fn nobody_asks_twice_and_a_gap_is_filled_by_who_has_it() {
    let mut houses = House::pair(false, 300);
    let key = houses[0].core().key();
    houses[1].replication.download(1, 0, Some(100));
    House::run(&mut houses);
    // The writer forgets its first blocks; only the reader has them now.
    houses[0].core_mut().clear(0, 100);
    houses[0].replication.dropped(1, 0, 100);
    houses.push(House::new(3, MemoryCore::reader(key)));
    houses[2].share();
    House::connect(&mut houses, 0, 2);
    House::connect(&mut houses, 1, 2);
    houses[2].replication.download(1, 0, Some(300));
    House::run(&mut houses);
    assert_eq!(houses[2].core().first_missing(0, 300), None);
}

#[test]
fn bytes_are_sought() {
    let mut houses = House::pair(false, 1000);
    House::run(&mut houses);
    let end = houses[0].core().shown().byte_length;
    for bytes in [1, 5000, end / 2, end - 1] {
        houses[1].replication.want_seek(1, bytes, 0);
        House::run(&mut houses);
        assert!(houses[1].events.contains(&Event::Sought { core: 1, bytes }));
        assert_eq!(houses[1].core().seek(bytes), houses[0].core().seek(bytes));
    }
    assert!((0..1000).all(|index| !houses[1].core().has(index)));
}

#[test]
fn extensions_arrive() {
    let mut houses = House::pair(false, 1);
    House::run(&mut houses);
    for message in [&b"one"[..], b"two"] {
        houses[0].replication.send_extension(1, 1, "greeting", message, 0).unwrap();
    }
    House::run(&mut houses);
    let heard: Vec<_> = houses[1]
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Extension { name, message, .. } => Some((name.as_str(), message.as_slice())),
            _ => None,
        })
        .collect();
    assert_eq!(heard, [("greeting", &b"one"[..]), ("greeting", b"two")]);
}

#[test]
fn a_silent_peer_is_given_up_for_another() {
    let mut houses = House::pair(false, 100);
    let key = houses[0].core().key();
    houses[1].replication.download(1, 0, None);
    House::run(&mut houses);
    houses.push(House::new(3, MemoryCore::reader(key)));
    houses[2].share();
    let silent = House::connect(&mut houses, 0, 2);
    House::run(&mut houses);
    houses[2].replication.download(1, 0, Some(100));
    House::cut(&mut houses, silent, true);
    House::run(&mut houses);
    House::connect(&mut houses, 1, 2);
    House::run(&mut houses);
    assert!(!houses[2].core().has(0), "all were asked of the silent peer");
    houses[2].pass_time(10_001);
    House::run(&mut houses);
    assert_eq!(houses[2].core().first_missing(0, 100), None);
}

#[test]
fn the_key_must_be_known() {
    let mut houses = House::pair(false, 10);
    let wrong = MemoryCore::reader([9; 32]);
    let discovery_key = houses[0].core().discovery_key();
    houses.push(House::new(3, wrong.disguised(discovery_key)));
    houses[2].share();
    House::connect(&mut houses, 0, 2);
    House::run(&mut houses);
    let refused = houses.iter().flat_map(|house| &house.events);
    let refused = refused.filter(|event| matches!(event, Event::Disconnected { reason: Some(_), .. }));
    assert!(refused.count() > 0);
}
