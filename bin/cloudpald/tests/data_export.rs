//! All of a tenant's data, exported by one real daemon and imported by another: the same data, which can be written on;
//! a damaged export is refused, with the place of the damage, and leaves nothing.

mod data_kit;

use cloudpal_api::{
    Client, DataKind, EntryQuery, ExportFrame, ExportFrames, ExportIndex, HistoryQuery, TenantAdd,
};
use cloudpal_model::{Kind, Problem};
use data_kit::{Host, SECRET, add, fill, get, name, photo, put};
use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read},
    path::Path,
    process::Command,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The files of an export, as a folder has them, in their order.
fn export(client: &Client) -> Vec<(String, Vec<u8>)> {
    let (mut frames, mut files, mut whole) =
        (ExportFrames::default(), Vec::<(String, Vec<u8>)>::new(), false);
    client
        .data_export(&name("ada"), &mut |piece| {
            frames.push(piece);
            while let Some(frame) = frames.next_frame().unwrap() {
                match frame {
                    ExportFrame::File(name) => files.push((name, Vec::new())),
                    ExportFrame::Piece(bytes) => files.last_mut().unwrap().1.extend(bytes),
                    ExportFrame::End => whole = true,
                    ExportFrame::Failed(problem) => panic!("{}", String::from_utf8_lossy(&problem)),
                }
            }
            Ok(())
        })
        .unwrap();
    assert!(whole);
    files
}

fn stream(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (name, bytes) in files {
        stream.extend(ExportFrame::File(name.clone()).encode());
        for piece in bytes.chunks(100_000) {
            stream.extend(ExportFrame::Piece(piece.to_vec()).encode());
        }
    }
    stream.extend(ExportFrame::End.encode());
    stream
}

fn import(client: &Client, files: &[(String, Vec<u8>)]) -> Result<(u64, u64), Problem> {
    let imported = client.data_import(&name("ada"), (&mut &stream(files)[..], &mut |_| ()))?;
    Ok((imported.data, imported.blocks))
}

fn another() -> Option<Host> {
    let host = Host::make()?;
    let ada = TenantAdd { name: name("ada"), subnet_v4: None, prefix_v6: None };
    host.client().tenant_add(&ada).unwrap();
    Some(host)
}

/// What is not sent yet is sent when the other end is let go.
struct Halting<'a> {
    before: &'a [u8],
    reached: Sender<()>,
    on: Receiver<()>,
}

impl Read for Halting<'_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        if self.before.is_empty() {
            let _heard = self.reached.send(());
            let _over = self.on.recv();
            return Err(ErrorKind::BrokenPipe.into());
        }
        // The client sends on only while it is not asked for more than a few pieces.
        let end = to.len().min(4096);
        self.before.read(&mut to[..end])
    }
}

/// As du(1) says.
fn disk_usage(dir: &Path) -> u64 {
    let du = Command::new("du").args(["-s", "-B1", "--apparent-size"]).arg(dir).output().unwrap();
    String::from_utf8(du.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

fn keys(client: &Client) -> BTreeMap<String, (String, u64, u64, bool)> {
    let list = client.data_list(&name("ada")).unwrap().data;
    // What CloudPal itself writes grows with all that is asked.
    let list = list.into_iter().filter(|data| !data.name.as_str().contains("audit"));
    let shown = |data: cloudpal_api::Data| {
        (data.name.to_string(), (data.key, data.length, data.blocks_here, data.writable))
    };
    list.map(shown).collect()
}

#[test]
fn everything_goes_to_another_host_and_is_written_on_there() {
    let Some(host) = Host::make() else { return };
    let client = host.client();
    fill(&client);
    let ada = name("ada");
    let sealed = cloudpal_api::DataAdd { encrypted: true, ..add("diary", DataKind::Core) };
    client.data_add(&ada, &sealed).unwrap();
    client.core_append(&ada, &name("diary"), SECRET.to_vec()).unwrap();
    put(&client, "/cat.jpg", b"a smaller cat");
    let before = keys(&client);
    let files = export(&client);
    let diary = files.iter().find(|(name, _)| name == "diary.core").unwrap();
    assert!(
        !diary.1.windows(SECRET.len()).any(|window| window == SECRET),
        "sealed blocks are exported sealed"
    );

    let Some(mut other) = another() else { return };
    let there = other.client();
    let (data, blocks) = import(&there, &files).unwrap();
    assert_eq!(data as usize, before.len() + 1, "and the audit log");
    assert!(blocks > 16, "{blocks}");
    let taken = import(&there, &files).unwrap_err();
    assert_eq!(taken.kind, Kind::Taken, "{taken}");
    for crash in [false, true] {
        if crash {
            other.end("-KILL");
            other.start();
        }
        assert_eq!(keys(&there), before);
        assert_eq!(get(&there, "/cat.jpg", None), b"a smaller cat");
        assert_eq!(get(&there, "/cat.jpg", Some(2)), photo());
        assert_eq!(there.core_block(&ada, &name("diary"), 0).unwrap(), SECRET);
        let history = there.entry_history(&ada, &name("contacts"), &HistoryQuery::default()).unwrap();
        assert_eq!(history.entries.len(), 4);
        for kind in ["journal", "photos", "paths", "contacts", "diary"] {
            assert!(there.data_verify(&ada, &name(kind)).unwrap().damaged.is_empty());
        }
    }
    // It goes on where it was.
    there.core_append(&ada, &name("diary"), b"a new day".to_vec()).unwrap();
    put(&there, "/dog.jpg", &photo());
    there.entry_put(&ada, &name("contacts"), "alan", b"turing".to_vec()).unwrap();
    assert_eq!(there.core_block(&ada, &name("diary"), 1).unwrap(), b"a new day");
    assert_eq!(get(&there, "/dog.jpg", None), photo());
    // And further, from there.
    let again = export(&there);
    assert_eq!(again.len(), files.len() + 1, "two audit logs now, its own and the one that came along");
    let said: Vec<String> = there
        .operations(cloudpal_api::OperationQuery::default())
        .unwrap()
        .operations
        .into_iter()
        .map(|operation| format!("{} {:?}", operation.what, operation.state))
        .collect();
    assert!(said.contains(&"data import ada Done".to_owned()), "{said:?}");
    assert!(said.contains(&"data import ada Failed".to_owned()), "{said:?}");
    assert!(said.contains(&"data export ada Done".to_owned()), "{said:?}");
}

#[test]
fn a_flipped_bit_a_missing_file_and_a_cut_are_refused_and_leave_nothing() {
    let Some(host) = Host::make() else { return };
    let client = host.client();
    fill(&client);
    let ada = name("ada");
    let files = export(&client);
    let index: ExportIndex = serde_json::from_slice(&files[0].1).unwrap();
    assert_eq!(index.data.len() + 1, files.len() - 2, "a drive has two cores");
    let Some(other) = another() else { return };
    let there = other.client();

    let position = |wanted: &str| files.iter().position(|(name, _)| name == wanted).unwrap();
    let contents = position("photos.contents");
    for (file, at, wanted) in [
        (contents, files[contents].1.len() / 2, "photos.contents is damaged at byte "),
        (contents, 1, "photos.contents is damaged at byte 0"),
        (position("journal.core"), 20, "journal.core is damaged at byte 0"),
        (0, files[0].1.len() / 2, "export.json is damaged"),
        (1, 3, "export.json is damaged"),
    ] {
        let mut spoiled = files.clone();
        spoiled[file].1[at] ^= 4;
        let problem = import(&there, &spoiled).unwrap_err();
        assert_eq!(problem.kind, Kind::Refused, "{problem}");
        assert!(problem.what.contains(wanted), "{problem}");
        assert!(keys(&there).is_empty());
    }
    let middle = files[contents].1.len() / 2;
    let mut spoiled = files.clone();
    spoiled[contents].1[middle] ^= 1;
    assert!(import(&there, &spoiled).unwrap_err().what.contains(", block "), "it says which block");
    let mut cut = files.clone();
    cut[contents].1.truncate(middle);
    assert!(import(&there, &cut).unwrap_err().what.contains("photos.contents ends after"), "it says where");
    let mut missing = files.clone();
    missing.remove(contents);
    assert_eq!(import(&there, &missing).unwrap_err().kind, Kind::Refused);
    assert!(keys(&there).is_empty());
    assert!(there.data_list(&ada).unwrap().disk_bytes < 1_000_000, "what was taken in is given back");
    import(&there, &files).unwrap();
    let all = there.entries(&ada, &name("contacts"), &EntryQuery::default()).unwrap();
    assert_eq!(all.entries.len(), 4);
}

#[test]
fn a_daemon_that_is_killed_in_the_middle_of_an_import_has_nothing_of_it() {
    let Some(host) = Host::make() else { return };
    fill(&host.client());
    for at in 0..10 {
        put(&host.client(), &format!("/{at}.jpg"), &photo());
    }
    let files = export(&host.client());
    let whole = stream(&files);
    let Some(mut other) = another() else { return };
    let disk_bytes = |other: &Host| other.client().data_list(&name("ada")).unwrap().disk_bytes;
    for sent in [whole.len() / 8, whole.len() / 2, whole.len() - 9] {
        let before = disk_usage(&other.path("state"));
        let (reached, halted) = channel();
        let (go_on, on) = channel();
        let mut halting = Halting { before: &whole[..sent], reached, on };
        let client = other.client();
        thread::scope(|threads| {
            let importing =
                threads.spawn(move || client.data_import(&name("ada"), (&mut halting, &mut |_| ())));
            halted.recv().unwrap();
            let taken_in = || disk_usage(&other.path("state")) - before;
            let started = Instant::now();
            while taken_in() < sent as u64 / 2 {
                assert!(started.elapsed() < PATIENCE, "{} bytes of {sent} were taken in", taken_in());
                thread::sleep(Duration::from_millis(20));
            }
            other.end("-KILL");
            drop(go_on);
            assert!(importing.join().unwrap().is_err());
        });
        other.start();
        assert!(keys(&other.client()).is_empty(), "{sent} bytes were sent");
    }
    other.client().data_compact(&name("ada")).unwrap();
    assert!(disk_bytes(&other) < 1_000_000, "what came is still on the disk: {} bytes", disk_bytes(&other));
    import(&other.client(), &files).unwrap();
    assert_eq!(keys(&other.client()), keys(&host.client()));
    assert_eq!(get(&other.client(), "/cat.jpg", None), photo());
}

#[test]
fn what_was_removed_comes_back_from_an_export_of_the_same_tenant() {
    let Some(host) = Host::make() else { return };
    let (client, ada) = (host.client(), name("ada"));
    fill(&client);
    let (before, files) = (keys(&client), export(&client));
    for kept in before.keys() {
        client.data_remove(&ada, &name(kept)).unwrap();
    }
    assert_eq!(import(&client, &files).unwrap().0 as usize, before.len(), "and no second audit log");
    assert_eq!(keys(&client), before);
    assert_eq!(get(&client, "/cat.jpg", None), photo());
    client.core_append(&ada, &name("journal"), b"after it".to_vec()).unwrap();
}
