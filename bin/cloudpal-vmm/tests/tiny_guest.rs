//! The VMM with a real guest on a real /dev/kvm: boot, run, kick, snapshot, wake, clone. Everything is read by the
//! guest itself, from its own memory and registers.

use cloudpal_vmm::{
    Boot, Ended, Error, Host, Image, Machine, Pool, Save, Shape, Snapshot, Spare,
    layout::RENEWAL_PAGE,
    snapshot::Refusal,
    state::{Damage, State},
    tiny_guest::{self, Operator, ask, protocol},
};
use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

const MIB: u32 = 16;

/// `None`, said aloud, where there is no KVM to test with.
fn host() -> Option<Arc<Host>> {
    match Host::open() {
        Ok(host) => Some(Arc::new(host)),
        Err(error) if !Path::new("/dev/kvm").exists() => {
            eprintln!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("there is a /dev/kvm, but {error}"),
    }
}

fn booted(host: &Host, mib: u32) -> Machine {
    let spare = Spare::make(host, Shape::plain(mib)).expect("a VM");
    let mut machine = spare.boot(host, Boot::plain(Image::Bytes(tiny_guest::ELF), "a=b")).expect("boots");
    let mut operator = Operator::default();
    assert_eq!(machine.run(&mut operator).expect("runs"), Ended::Break);
    assert_eq!(operator.events, [protocol::READY]);
    machine
}

fn count(machine: &mut Machine) -> u32 {
    ask(machine, protocol::COUNT, 0).expect("counts")
}

/// What the guest reads from its renewal page.
fn renewal(machine: &mut Machine) -> Vec<u32> {
    (0..12).map(|word| ask(machine, protocol::RENEWAL, word).expect("reads")).collect()
}

struct Saved {
    _files: tempfile::TempDir,
    dir: PathBuf,
}

/// A snapshot of a guest that counted to 3, touched 4 pages and keeps 77 in a vector register.
fn saved(host: &Host) -> Saved {
    let files = tempfile::tempdir().expect("a directory");
    let dir = files.path().join("asleep");
    let mut machine = booted(host, MIB);
    (1..=3).for_each(|n| assert_eq!(count(&mut machine), n));
    assert_eq!(ask(&mut machine, protocol::TOUCH, 4).expect("touches"), 4);
    assert_eq!(ask(&mut machine, protocol::VECTORS, 77).expect("keeps"), 0);
    Snapshot::take(&mut machine, &dir).expect("a snapshot");
    Saved { _files: files, dir }
}

fn wake(host: &Host, snapshot: &Snapshot) -> Machine {
    snapshot.wake(host, Spare::make(host, Shape::plain(MIB)).expect("a VM")).expect("wakes")
}

fn refusal(opened: Result<Snapshot, Error>) -> Refusal {
    match opened {
        Err(Error::Snapshot(refusal)) => refusal,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was taken"),
    }
}

#[test]
fn a_guest_whose_save_was_given_up_counts_on() {
    let Some(host) = host() else { return };
    let mut machine = booted(&host, MIB);
    let file = tempfile::tempfile().expect("a file");
    for pieces in 0..8_u32 {
        let left = std::cell::Cell::new(pieces);
        let given_up = || left.replace(left.get().saturating_sub(1)) == 0;
        let saved = machine.save(Save {
            state: &file,
            memory: &file,
            diff: None,
            working_set: None,
            given_up: &given_up,
        });
        // The guest has a few pieces of memory in use: sooner or later they are all written.
        assert!(matches!(saved, Err(Error::GivenUp)) || pieces > 1 && saved.is_ok(), "{pieces}: {saved:?}");
        assert_eq!(count(&mut machine), pieces + 1);
    }
}

#[test]
fn the_guest_boots_counts_touches_and_tells_the_time() {
    let Some(host) = host() else { return };
    let mut machine = booted(&host, MIB);
    assert_eq!((count(&mut machine), count(&mut machine)), (1, 2));
    assert_eq!(machine.memory.read_u32(protocol::TALLY).expect("memory"), 2);
    assert_eq!(ask(&mut machine, protocol::TOUCH, 100).expect("touches"), 100);
    assert_eq!(ask(&mut machine, protocol::PEEK, 99).expect("peeks"), 100);
    assert_ne!(ask(&mut machine, protocol::TIME, 0).expect("time"), 0);
    assert_eq!(protocol::RENEWAL_PAGE, RENEWAL_PAGE);
    assert!(renewal(&mut machine).iter().any(|word| *word != 0));
}

#[test]
fn a_guest_above_the_device_gap_boots() {
    let Some(host) = host() else { return };
    assert_eq!(count(&mut booted(&host, 4096)), 1);
}

#[test]
fn a_reset_and_a_triple_fault_end_the_run() {
    let Some(host) = host() else { return };
    for (command, ended) in [(protocol::RESET, Ended::Reset), (protocol::FAULT, Ended::Shutdown)] {
        let mut machine = booted(&host, MIB);
        let mut operator = Operator::with(command, 0);
        assert_eq!(machine.run(&mut operator).expect("runs"), ended);
    }
}

/// The guest never comes out by itself: not while it spins, and not while it halts.
#[test]
fn a_kick_ends_a_run_whenever_it_comes() {
    let Some(host) = host() else { return };
    for command in [protocol::SPIN, protocol::HALT] {
        let mut machine = booted(&host, MIB);
        let kick = machine.kick();
        kick.kick();
        let mut operator = Operator::with(command, 0);
        assert_eq!(machine.run(&mut operator).expect("runs"), Ended::Kicked, "a kick before the run");
        assert_eq!(operator.exits, 0);
        for delay_us in [0, 50, 1000, 20_000] {
            let kick = machine.kick();
            let kicker = thread::spawn(move || {
                thread::sleep(Duration::from_micros(delay_us));
                kick.kick();
            });
            assert_eq!(machine.run(&mut operator).expect("runs"), Ended::Kicked);
            kicker.join().expect("kicks");
        }
    }
}

#[test]
fn a_woken_guest_goes_on_where_it_was() {
    let Some(host) = host() else { return };
    let saved = saved(&host);
    let snapshot = Snapshot::open(&host, &saved.dir).expect("opens");
    snapshot.verify_memory().expect("whole");
    let mut machine = wake(&host, &snapshot);
    let mut operator = Operator::default();
    assert_eq!(machine.run(&mut operator).expect("runs"), Ended::Break);
    assert_eq!(
        (operator.events.as_slice(), operator.answers.as_slice()),
        (&[][..], &[][..]),
        "it does not boot"
    );
    assert_eq!(count(&mut machine), 4);
    assert_eq!(ask(&mut machine, protocol::PEEK, 3).expect("peeks"), 4);
    assert_eq!(
        ask(&mut machine, protocol::VECTORS, 5).expect("keeps"),
        77,
        "the vector registers came along"
    );
}

/// A pause at any instruction, not only at an exit.
#[test]
fn a_guest_saved_in_the_middle_of_a_loop_goes_on_in_it() {
    let Some(host) = host() else { return };
    let files = tempfile::tempdir().expect("a directory");
    let dir = files.path().join("asleep");
    let mut machine = booted(&host, MIB);
    let spin = |machine: &mut Machine, operator: &mut Operator| {
        let kick = machine.kick();
        let kicker = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            kick.kick();
        });
        assert_eq!(machine.run(operator).expect("runs"), Ended::Kicked);
        kicker.join().expect("kicks");
        machine.memory.read_u32(protocol::SPINS).expect("memory")
    };
    let mut operator = Operator::with(protocol::SPIN, 0);
    let before = spin(&mut machine, &mut operator);
    Snapshot::take(&mut machine, &dir).expect("a snapshot");
    let mut woken = wake(&host, &Snapshot::open(&host, &dir).expect("opens"));
    assert_eq!(woken.memory.read_u32(protocol::SPINS).expect("memory"), before);
    assert!(spin(&mut woken, &mut Operator::default()) > before, "it did not go on");
}

#[test]
fn clones_go_their_own_ways_and_the_snapshot_never_changes() {
    let Some(host) = host() else { return };
    let saved = saved(&host);
    let bytes =
        || [fs::read(saved.dir.join("memory")), fs::read(saved.dir.join("state"))].map(|b| b.expect("reads"));
    let before = bytes();
    let snapshot = Snapshot::open(&host, &saved.dir).expect("opens");
    let mut pool = Pool::new(host.clone(), Shape::plain(MIB));
    pool.fill(1).expect("a spare");
    // The second comes without a spare that waits.
    let mut clones = [(); 2].map(|()| snapshot.wake(&host, pool.take().expect("a VM")).expect("wakes"));
    assert_eq!(pool.ready(), 0);
    let [one, two] = &mut clones;
    assert_eq!((count(one), count(one), count(one), count(two)), (4, 5, 6, 4));
    assert_eq!(ask(one, protocol::TOUCH, 500).expect("touches"), 500);
    assert_eq!(ask(two, protocol::PEEK, 499).expect("peeks"), 0);
    let (first, second) = (renewal(one), renewal(two));
    let alike = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    assert!(alike < 2, "two clones were given the same random bytes: {first:x?} {second:x?}");
    assert!(bytes() == before, "a clone wrote to the snapshot");
    snapshot.verify_memory().expect("whole");
}

#[test]
fn a_woken_guest_can_be_saved_and_woken_again_under_the_same_name() {
    let Some(host) = host() else { return };
    let saved = saved(&host);
    for n in 4..8 {
        let mut machine = wake(&host, &Snapshot::open(&host, &saved.dir).expect("opens"));
        assert_eq!(count(&mut machine), n);
        Snapshot::take(&mut machine, &saved.dir).expect("replaces the one it was woken from");
        assert_eq!(count(&mut machine), n + 1, "the saved machine itself runs on");
    }
    let names: Vec<_> = fs::read_dir(saved.dir.parent().expect("a parent")).expect("lists").collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn a_sparse_guest_is_a_sparse_file() {
    use std::os::unix::fs::MetadataExt;
    let Some(host) = host() else { return };
    let saved = saved(&host);
    let memory = fs::metadata(saved.dir.join("memory")).expect("there");
    assert_eq!(memory.mode() & 0o077, 0, "others can read the guest's memory");
    let on_disk = memory.blocks() * 512;
    assert!(on_disk < 1 << 20, "{on_disk} bytes for a guest that used a few pages");
}

#[test]
fn what_is_damaged_is_refused_with_its_reason() {
    let Some(host) = host() else { return };
    let saved = saved(&host);
    let open = || Snapshot::open(&host, &saved.dir);
    let (state, memory) = (saved.dir.join("state"), saved.dir.join("memory"));
    let good = fs::read(&state).expect("reads");

    fs::write(&state, &good[..good.len() - 1]).expect("writes");
    assert!(matches!(refusal(open()), Refusal::Damage(Damage::Length { .. })));
    fs::write(&state, b"").expect("writes");
    assert!(matches!(refusal(open()), Refusal::Damage(Damage::Length { .. })));
    let mut bent = good.clone();
    bent[1000] ^= 1;
    fs::write(&state, &bent).expect("writes");
    assert!(matches!(refusal(open()), Refusal::Damage(Damage::Checksum { .. })));
    let mut newer = good.clone();
    newer[8] += 1;
    fs::write(&state, &newer).expect("writes");
    assert_eq!(refusal(open()), Refusal::Damage(Damage::Version(3)));
    let mut elsewhere = State::decode(&good).expect("reads");
    for entry in elsewhere.vcpus[0].cpuid.iter_mut().filter(|entry| entry.function == 1) {
        entry.eax ^= 0x10;
    }
    fs::write(&state, elsewhere.encode()).expect("writes");
    assert!(matches!(refusal(open()), Refusal::Cpu(_)));
    fs::write(&state, &good).expect("writes");

    let file = fs::OpenOptions::new().write(true).open(&memory).expect("opens");
    let len = file.metadata().expect("there").len();
    file.set_len(len - 4096).expect("cuts");
    assert!(matches!(refusal(open()), Refusal::MemoryFile { .. }));
    file.set_len(len).expect("lengthens");
    assert_eq!(refusal(open()), Refusal::Pairing, "its last page is gone");
    fs::remove_file(&memory).expect("removes");
    assert!(matches!(open(), Err(Error::File { path, .. }) if path == memory));
}

#[test]
fn damaged_or_swapped_memory_is_refused() {
    let Some(host) = host() else { return };
    let (one, two) = (saved(&host), saved(&host));
    let file = fs::OpenOptions::new().write(true).open(one.dir.join("memory")).expect("opens");
    file.write_all_at(&[9], protocol::TALLY).expect("bends");
    let opened = Snapshot::open(&host, &one.dir).expect("the contents are not read at a wake");
    assert!(matches!(opened.verify_memory(), Err(Error::Snapshot(Refusal::MemoryChecksum { .. }))));
    fs::copy(two.dir.join("memory"), one.dir.join("memory")).expect("swaps");
    assert_eq!(refusal(Snapshot::open(&host, &one.dir)), Refusal::Pairing);
    let spare = Spare::make(&host, Shape::plain(2 * MIB)).expect("a VM");
    let woken = Snapshot::open(&host, &two.dir).expect("opens").wake(&host, spare);
    assert!(matches!(woken, Err(Error::Snapshot(Refusal::MemorySize { .. }))));
}

/// A snapshot that cannot be written leaves the older one as it was, and nothing beside it.
#[test]
fn a_failed_snapshot_leaves_the_older_one() {
    let Some(host) = host() else { return };
    let saved = saved(&host);
    let mut machine = booted(&host, MIB);
    let missing = saved.dir.join("no/such/place");
    assert!(matches!(Snapshot::take(&mut machine, &missing), Err(Error::File { .. })));
    assert_eq!(count(&mut machine), 1, "the machine runs on");
    let mut woken = wake(&host, &Snapshot::open(&host, &saved.dir).expect("opens"));
    assert_eq!(count(&mut woken), 4);
}

#[test]
fn many_clones_live_beside_each_other() {
    let Some(host) = host() else { return };
    let saved = saved(&host);
    let snapshot = Snapshot::open(&host, &saved.dir).expect("opens");
    let started = Instant::now();
    let mut clones: Vec<_> = (0..20).map(|_| wake(&host, &snapshot)).collect();
    for (n, clone) in clones.iter_mut().enumerate() {
        for _ in 0..n {
            count(clone);
        }
    }
    eprintln!("20 clones, made and counting: {:?}", started.elapsed());
    for (n, clone) in clones.iter_mut().enumerate() {
        assert_eq!(count(clone) as usize, 4 + n);
    }
}
