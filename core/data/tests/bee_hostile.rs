//! Whatever the blocks of a bee hold, going through it ends, takes bounded work, and never panics.

mod feed_kit;
mod foreign_kit;

use cloudpal_data::bee::{Bee, KeyRange};
use feed_kit::{MemoryFeed, Random};
use foreign_kit::exercise_bee as exercise;
use proptest::prelude::*;
use proptest::sample::Index;

fn bee_of(ops: u64, batch: u64) -> Vec<Vec<u8>> {
    let (mut bee, mut next) = (Bee::new(MemoryFeed::default()), Random(7));
    let mut done = 0;
    while done < ops {
        let mut all = bee.batch();
        for _ in 0..batch {
            let key = format!("{}", next.below(60)).into_bytes();
            match next.below(3) {
                0 => drop(all.del(&key).unwrap()),
                _ => drop(all.put(&key, b"value").unwrap()),
            }
        }
        all.flush().unwrap();
        done += batch;
    }
    bee.into_feed().blocks
}

/// A block with these levels of keys and children.
fn block(key: &str, levels: &[(&[u8], &[u8])]) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8][..], bytes].concat();
    let levels =
        levels.iter().map(|(keys, children)| field(1, &[field(1, keys), field(2, children)].concat()));
    let index: Vec<u8> = levels.flatten().collect();
    [field(1, &index), field(2, key.as_bytes()), field(3, b"v")].concat()
}

#[test]
fn a_tree_that_leads_back_into_itself_ends() {
    let header = Bee::new(MemoryFeed::of(bee_of(1, 1))).feed().blocks[0].clone();
    // One node is its own child; two are each other's; one is both children of the one above, in many floors.
    let itself = block("b", &[(&[1], &[1, 0, 1, 0])]);
    let mutual = block("b", &[(&[1], &[1, 1, 1, 1]), (&[1], &[1, 0, 1, 0])]);
    let below: Vec<[u8; 4]> = (0..18).map(|floor| [1, floor + 1, 1, floor + 1]).collect();
    let mut floors: Vec<(&[u8], &[u8])> = below.iter().map(|children| (&[1][..], &children[..])).collect();
    floors.truncate(9);
    floors.push((&[1], &[]));
    let doubled = block("b", &floors);
    for hostile in [itself, mutual, doubled] {
        let bee = Bee::new(MemoryFeed::of(vec![header.clone(), hostile.clone()]));
        assert!(bee.range(KeyRange::all()).any(|entry| entry.is_err()));
        let another = block("b", &[(&[2], &[1, 0, 1, 0])]);
        exercise(vec![header.clone(), hostile, another]);
    }
}

#[test]
fn a_node_that_leads_to_a_later_block_is_refused() {
    let mut blocks = bee_of(30, 1);
    blocks[1] = block("0", &[(&[25], &[])]);
    blocks.truncate(2);
    assert!(Bee::new(MemoryFeed::of(blocks)).get(b"0").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_blocks(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..12)) {
        exercise(blocks);
    }

    #[test]
    fn changed_blocks(
        batch in 1..6u64,
        changes in prop::collection::vec((any::<Index>(), any::<Index>(), any::<u8>()), 1..30),
        swaps in prop::collection::vec((any::<Index>(), any::<Index>()), 0..4),
    ) {
        let mut blocks = bee_of(120, batch);
        for (block, byte, value) in changes {
            let at = 1 + block.index(blocks.len() - 1);
            let byte = byte.index(blocks[at].len());
            blocks[at][byte] = value;
        }
        for (one, other) in swaps {
            let (one, other) = (one.index(blocks.len()), other.index(blocks.len()));
            blocks.swap(one, other);
        }
        exercise(blocks);
    }

    #[test]
    fn nodes_of_any_shape(
        nodes in prop::collection::vec(
            prop::collection::vec((prop::collection::vec(0..9u8, 0..4), prop::collection::vec(0..9u8, 0..9)), 1..4),
            1..8,
        ),
    ) {
        let mut blocks = bee_of(1, 1);
        blocks.truncate(1);
        for (at, levels) in nodes.iter().enumerate() {
            let levels: Vec<(&[u8], &[u8])> =
                levels.iter().map(|(keys, children)| (&keys[..], &children[..])).collect();
            blocks.push(block(&format!("{}", (at * 5) % 8), &levels));
        }
        exercise(blocks);
    }
}
