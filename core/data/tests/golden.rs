//! Byte for byte what the JavaScript stack answers: `golden/golden.json`, made by `golden/make.js` from the
//! pinned packages.

mod golden_kit;

use cloudpal_data::crypto::{self, KeyPair};
use cloudpal_data::encoding::{Reader, Writer};
use cloudpal_data::encryption::BlockCipher;
use cloudpal_data::manifest::{Manifest, Prologue, Signer};
use cloudpal_data::proof::{self, Data, Request, SeekWanted, UpgradeWanted, Wanted};
use cloudpal_data::signature::Verifier;
use cloudpal_data::tree::{Head, Node, NodeTable, full_roots};
use golden_kit::{block, bytes, golden, grown, hash, list, number, pair};
use serde_json::Value;

#[test]
fn integers() {
    for row in list(&golden()["uints"]) {
        let (value, encoded) = (number(&row[0]), bytes(&row[1]));
        let mut to = Writer::default();
        to.uint(value);
        assert_eq!(to.bytes, encoded);
        assert_eq!(Reader::new(&encoded).uint(), Ok(value));
    }
}

#[test]
fn keys_and_hashes() {
    let golden = golden();
    for (id, namespace) in list(&golden["namespaces"]).iter().enumerate() {
        assert_eq!(crypto::namespace(b"hypercore", id as u8), hash(namespace));
    }
    for row in list(&golden["key_pairs"]) {
        assert_eq!(KeyPair::from_seed(&hash(&row["seed"])).public_key(), hash(&row["public_key"]));
    }
    for row in list(&golden["leaves"]) {
        assert_eq!(crypto::leaf_hash(&block(5, number(&row["size"]))), hash(&row["hash"]));
    }
    for row in list(&golden["full_roots"]) {
        let roots: Vec<u64> = list(&row[1]).iter().map(number).collect();
        assert_eq!(full_roots(number(&row[0])), roots);
    }
}

#[test]
fn named_cores() {
    let named = &golden()["named"];
    let primary = hash(&named["primary_key"]);
    for row in list(&named["cores"]) {
        let path = list(&row["path"]).into_iter();
        let namespace = path.fold([0; 32], |within, name| {
            crypto::named_namespace(&within, name.as_str().unwrap().as_bytes())
        });
        assert_eq!(namespace, hash(&row["namespace"]));
        let pair = crypto::named_key_pair(&primary, &namespace, row["name"].as_str().unwrap().as_bytes());
        assert_eq!(pair.public_key(), hash(&row["public_key"]));
        let key = Manifest::single(pair.public_key()).key();
        assert_eq!(key, hash(&row["key"]));
        assert_eq!(crypto::discovery_key(&key), hash(&row["discovery_key"]));
    }
}

#[test]
fn manifests_of_every_version() {
    let golden = golden();
    let rows = list(&golden["manifests"]);
    assert_eq!(rows.len(), 14);
    for row in rows {
        let signer =
            |row: &Value| Signer { namespace: hash(&row["namespace"]), public_key: hash(&row["public_key"]) };
        let prologue = |row: &Value| Prologue { hash: hash(&row["hash"]), length: number(&row["length"]) };
        let given = |value: &Value| (!value.is_null()).then(|| value.clone());
        let manifest = Manifest {
            version: number(&row["version"]) as u8,
            allow_patch: row["allow_patch"].as_bool().unwrap(),
            quorum: number(&row["quorum"]),
            signers: list(&row["signers"]).iter().map(signer).collect(),
            prologue: given(&row["prologue"]).as_ref().map(prologue),
            linked: given(&row["linked"]).map(|linked| list(&linked).iter().map(hash).collect()),
            user_data: given(&row["user_data"]).as_ref().map(bytes),
        };
        let encoded = bytes(&row["encoded"]);
        assert_eq!(manifest.encode(), encoded, "{}", row["name"]);
        assert_eq!(Manifest::decode(&encoded).unwrap(), manifest, "{}", row["name"]);
        assert_eq!(manifest.key(), hash(&row["key"]), "{}", row["name"]);
        assert!(Verifier::new(manifest.key(), manifest.clone()).is_ok());
        assert!(Verifier::new([7; 32], manifest).is_err());
    }
}

fn verifier_of(tree: &Value) -> Verifier {
    let public_key = pair(1).public_key();
    let mut manifest = Manifest::single(public_key);
    match tree["name"].as_str().unwrap() {
        "compat" => return Verifier::compat(hash(&tree["key"])),
        "v0" => manifest.version = 0,
        "v2 user data" => {
            manifest.version = 2;
            manifest.user_data = Some(b"hello".to_vec());
        }
        "default" => {}
        other => panic!("an unknown tree {other}"),
    }
    Verifier::new(hash(&tree["key"]), manifest).unwrap()
}

#[test]
fn trees_and_their_signatures() {
    let golden = golden();
    let mut signed = 0;
    for tree in list(&golden["trees"]) {
        let verifier = verifier_of(&tree);
        assert_eq!(crypto::discovery_key(verifier.key()), hash(&tree["discovery_key"]));
        for step in list(&tree["steps"]) {
            let (head, _) = grown(number(&step["length"]));
            assert_eq!(head.byte_length, number(&step["byte_length"]));
            let roots: Vec<Node> = list(&step["roots"]).iter().map(golden_kit::node).collect();
            assert_eq!(head.roots, roots);
            assert_eq!(head.hash(), hash(&step["tree_hash"]));
            if step["signature"].is_null() {
                continue;
            }
            let signature = bytes(&step["signature"]);
            assert_eq!(verifier.sign(&head, &pair(1)).unwrap(), signature);
            assert!(verifier.verify(&head, &signature));
            assert!(!verifier.verify(&Head { fork: 1, ..head.clone() }, &signature));
            let mut other = signature;
            other[20] ^= 1;
            assert!(!verifier.verify(&head, &other));
            signed += 1;
        }
    }
    assert!(signed >= 25, "only {signed} signatures");
}

#[test]
fn two_of_three_sign() {
    for row in list(&golden()["multi"]) {
        let manifest = Manifest::decode(&bytes(&row["encoded"])).unwrap();
        let verifier = Verifier::new(hash(&row["key"]), manifest).unwrap();
        let (head, _) = grown(number(&row["length"]));
        let signature = bytes(&row["signature"]);
        assert!(verifier.verify(&head, &signature), "{row}");
        for length in [8, 10, 11, 13] {
            assert!(!verifier.verify(&grown(length).0, &signature));
        }
        for at in 0..signature.len() {
            let mut other = signature.clone();
            other[at] ^= 1;
            // The count of the patch's nodes may say less or more without a signature being less true; not so
            // its own.
            let patched = row["patched"].as_bool().unwrap() || number(&row["version"]) == 0;
            assert!(patched || !verifier.verify(&head, &other), "byte {at}");
        }
    }
}

fn request(value: &Value) -> Request {
    let field = |name: &str, part: &str| value[name].get(part).map(number);
    let wanted = |name: &str| Some(Wanted { index: field(name, "index")?, nodes: field(name, "nodes")? });
    Request {
        block: wanted("block"),
        hash: wanted("hash"),
        seek: field("seek", "bytes").map(|bytes| SeekWanted { bytes, padding: 0 }),
        upgrade: field("upgrade", "start")
            .map(|start| UpgradeWanted { start, length: field("upgrade", "length").unwrap() }),
    }
}

/// The proofs that JavaScript makes, made the same here, and accepted here.
#[test]
fn proofs() {
    let golden = golden();
    let given = &golden["proofs"];
    let (head, nodes) = grown(number(&given["length"]));
    let verifier = Verifier::new(hash(&given["key"]), Manifest::single(pair(1).public_key())).unwrap();
    let signature = verifier.sign(&head, &pair(1)).unwrap();
    let rows = list(&given["proofs"]);
    assert!(rows.len() > 100);
    for row in rows {
        let request = request(&row["request"]);
        let wire = bytes(&row["wire"]);
        let theirs = Data::decode(&wire).unwrap();
        assert_eq!(theirs.encode(), wire);
        let mut ours = proof::make(&head, &nodes, None, &signature, &request)
            .unwrap_or_else(|error| panic!("{}: {error}", row["request"]));
        if let Some(proved) = &mut ours.block {
            proved.value = block(proved.index, (proved.index * 37) % 101);
        }
        assert_eq!(ours, theirs.proof, "{}", row["request"]);
        let known = match request.upgrade {
            Some(upgrade) => grown(upgrade.start),
            None => (head.clone(), nodes.clone()),
        };
        let checked = proof::check(&known.0, &known.1, &verifier, &ours).unwrap();
        assert_eq!(checked.head, head, "{}", row["request"]);
        for made in &checked.nodes {
            assert_eq!(head.node(made.index, &nodes).as_ref(), Some(made));
        }
    }
}

#[test]
fn seeks() {
    let golden = golden();
    let given = &golden["proofs"];
    let (head, nodes) = grown(number(&given["length"]));
    for row in list(&given["seeks"]) {
        let found = head.seek(number(&row[0]), &nodes).unwrap();
        assert_eq!(found, (number(&row[1]), number(&row[2])), "byte {}", row[0]);
    }
    assert!(head.seek(head.byte_length + 1, &nodes).is_err());
    let (mut head, mut made, mut nodes) = (Head::default(), Vec::new(), NodeTable::default());
    for size in list(&given["empty"]["sizes"]) {
        head.append(&vec![0; number(&size) as usize], &mut made).unwrap();
    }
    made.iter().for_each(|node| nodes.put(node));
    for row in list(&given["empty"]["seeks"]) {
        let found = head.seek(number(&row[0]), &nodes).unwrap();
        assert_eq!(found, (number(&row[1]), number(&row[2])), "byte {} among empty blocks", row[0]);
    }
}

/// Truncation and what is appended after it, signed as JavaScript signs it.
#[test]
fn forks() {
    let golden = golden();
    let verifier =
        Verifier::new(Manifest::single(pair(1).public_key()).key(), Manifest::single(pair(1).public_key()))
            .unwrap();
    let (mut head, mut nodes) = (Head::default(), NodeTable::default());
    for step in list(&golden["forked"]) {
        let append = |head: &mut Head, nodes: &mut NodeTable, blocks: &[&[u8]]| {
            let mut made = Vec::new();
            for block in blocks {
                head.append(block, &mut made).unwrap();
            }
            made.iter().for_each(|node| nodes.put(node));
        };
        match step["does"].as_str().unwrap() {
            "append 21" => (head, nodes) = grown(21),
            "truncate 13" => head = head.truncated(13, 1, &nodes).unwrap(),
            "append other, history" => append(&mut head, &mut nodes, &[b"other", b"history"]),
            "truncate 4 to fork 9" => head = head.truncated(4, 9, &nodes).unwrap(),
            "append third" => append(&mut head, &mut nodes, &[b"third"]),
            other => panic!("an unknown step {other}"),
        }
        nodes.truncate(head.length);
        assert_eq!((head.length, head.fork), (number(&step["length"]), number(&step["fork"])));
        assert_eq!(head.byte_length, number(&step["byte_length"]));
        assert_eq!(head.hash(), hash(&step["tree_hash"]));
        assert_eq!(verifier.sign(&head, &pair(1)).unwrap(), bytes(&step["signature"]));
    }
}

#[test]
fn encrypted_blocks() {
    let golden = golden();
    let given = &golden["encryption"];
    let plain: [(u64, u64, Vec<u8>); 4] = [
        (0, 0, b"first".to_vec()),
        (1, 0, b"second".to_vec()),
        (2, 0, block(77, (77 * 37) % 101)),
        (2, 1, b"on fork 1".to_vec()),
    ];
    for core in list(&given["cores"]) {
        let compat = core["compat"].as_bool().unwrap();
        let cipher = BlockCipher::new(&hash(&given["encryption_key"]), &hash(&core["key"]), compat);
        for ((index, fork, text), raw) in plain.iter().zip(list(&core["raw"])) {
            let raw = bytes(&raw);
            assert_eq!(cipher.encrypt(*index, *fork, text), raw);
            assert_eq!(&cipher.decrypt(*index, &raw).unwrap(), text);
        }
        assert!(cipher.decrypt(0, &[0; 7]).is_err());
    }
}
