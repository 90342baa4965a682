//! The Merkle tree against RFC 6962's definition, the CT test vectors and two independent implementations.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]

mod support;

use coalition_log::entry::leaf_hash;
use coalition_log::tree::{
    Frontier, Hash, ProofError, consistency_proof, inclusion_proof, root_at, verify_consistency, verify_inclusion,
};
use proptest::prelude::*;
use support::{Leaves, naive_root};

/// Leaves and roots of the test data that Certificate Transparency implementations share.
const CT_LEAVES: [&str; 8] =
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
const CT_ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

#[test]
fn certificate_transparency_vectors() {
    assert_eq!(Hash::empty_root().to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    let mut frontier = Frontier::new();
    let mut leaves = Vec::new();
    for (leaf, root) in CT_LEAVES.iter().zip(CT_ROOTS) {
        let leaf = leaf_hash(&hex::decode(leaf).unwrap());
        leaves.push(leaf);
        frontier.push(leaf);
        assert_eq!(frontier.root().to_string(), root);
    }
    let tree = Leaves(leaves);
    let hex = |proof: Vec<Hash>| proof.iter().map(ToString::to_string).collect::<Vec<_>>();
    // Leaf 6 of 8 and the step from 6 to 8, from the same shared data.
    assert_eq!(
        hex(inclusion_proof(&tree, 5, 8).unwrap()),
        [
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
    assert_eq!(
        hex(consistency_proof(&tree, 6, 8).unwrap()),
        [
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ]
    );
}

fn tree(size: usize) -> Leaves {
    Leaves((0..size as u64).map(|i| leaf_hash(&i.to_be_bytes())).collect())
}

#[test]
fn every_proof_of_every_small_tree_verifies_and_no_other_does() {
    let tree = tree(40);
    for size in 1..=40u64 {
        let root = naive_root(&tree.0[..size as usize]);
        assert_eq!(root_at(&tree, size).unwrap(), root);
        assert_eq!(tree.frontier(size as usize).root(), root);
        for index in 0..size {
            let proof = inclusion_proof(&tree, index, size).unwrap();
            let leaf = tree.0[index as usize];
            verify_inclusion(&leaf, index, size, &proof, &root).unwrap();
            for other in (0..size).filter(|other| *other != index) {
                assert!(verify_inclusion(&leaf, other, size, &proof, &root).is_err(), "{index} as {other} of {size}");
            }
        }
        for old in 0..=size {
            let proof = consistency_proof(&tree, old, size).unwrap();
            let old_root = tree.root(old as usize);
            verify_consistency(old, &old_root, size, &root, &proof).unwrap();
            let wrong = leaf_hash(b"another history");
            assert!(verify_consistency(old, &wrong, size, &root, &proof).is_err(), "{old} to {size}");
            if old > 0 && old < size {
                assert!(verify_consistency(old, &old_root, size, &wrong, &proof).is_err(), "{old} to {size}");
            }
        }
    }
    assert_eq!(inclusion_proof(&tree, 3, 3), Err(ProofError::NoSuchLeaf { index: 3, size: 3 }));
    assert_eq!(consistency_proof(&tree, 4, 3), Err(ProofError::NotAPrefix { old: 4, new: 3 }));
}

#[test]
fn ct_merkle_agrees() {
    type Theirs = ct_merkle::mem_backed_tree::MemoryBackedTree<sha2_011::Sha256, Vec<u8>>;
    let size = 70usize;
    let ours = tree(size);
    let mut theirs = Theirs::new();
    let mut roots = vec![Hash::empty_root()];
    for i in 0..size as u64 {
        theirs.push(i.to_be_bytes().to_vec());
        let root = theirs.root();
        assert_eq!(root.as_bytes()[..], ours.root(i as usize + 1).0);
        roots.push(Hash(root.as_bytes()[..].try_into().unwrap()));
        for index in 0..=i {
            let proof = theirs.prove_inclusion(index as usize);
            assert_eq!(hashes(proof.as_bytes()), inclusion_proof(&ours, index, i + 1).unwrap());
        }
        for old in 1..=i {
            let proof = theirs.prove_consistency((i + 1 - old) as usize);
            let proof = hashes(proof.as_bytes());
            assert_eq!(proof, consistency_proof(&ours, old, i + 1).unwrap(), "{old} to {}", i + 1);
            verify_consistency(old, &roots[old as usize], i + 1, &roots[i as usize + 1], &proof).unwrap();
        }
    }
}

#[test]
fn tlog_tiles_agrees() {
    let ours = tree(300);
    let theirs = |hash: &Hash| tlog_tiles::tlog::Hash(hash.0);
    for (index, size) in [(0, 1), (0, 2), (5, 6), (255, 256), (255, 257), (256, 257), (17, 300), (299, 300)] {
        let proof: Vec<_> = inclusion_proof(&ours, index, size).unwrap().iter().map(theirs).collect();
        let (root, leaf) = (theirs(&ours.root(size as usize)), theirs(&ours.0[index as usize]));
        tlog_tiles::tlog::check_record(&proof, size, root, index, leaf).unwrap();
    }
    for (old, new) in [(1, 2), (2, 3), (3, 7), (4, 7), (6, 8), (255, 300), (256, 300), (299, 300)] {
        let proof: Vec<_> = consistency_proof(&ours, old, new).unwrap().iter().map(theirs).collect();
        let (new_root, old_root) = (theirs(&ours.root(new as usize)), theirs(&ours.root(old as usize)));
        tlog_tiles::tlog::check_tree(&proof, new, new_root, old, old_root).unwrap();
    }
}

fn hashes(bytes: &[u8]) -> Vec<Hash> {
    bytes.as_chunks::<32>().0.iter().map(|chunk| Hash(*chunk)).collect()
}

fn any_hash() -> impl Strategy<Value = Hash> {
    any::<[u8; 32]>().prop_map(Hash)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn roots_are_those_of_the_definition(size in 0usize..700) {
        let tree = tree(size);
        prop_assert_eq!(tree.root(size), naive_root(&tree.0));
        let frontier = tree.frontier(size);
        let again = Frontier::from_peaks(size as u64, frontier.peaks().to_vec());
        prop_assert_eq!(again, Some(frontier));
    }

    #[test]
    fn a_changed_inclusion_proof_is_rejected(
        size in 2u64..700, at in any::<u64>(), step in any::<usize>(), change in 0..4, noise in any_hash(),
    ) {
        let tree = tree(size as usize);
        let (index, root) = (at % size, tree.root(size as usize));
        let mut proof = inclusion_proof(&tree, index, size).unwrap();
        verify_inclusion(&tree.0[index as usize], index, size, &proof, &root).unwrap();
        let step = step % proof.len();
        match change {
            0 => proof[step] = noise,
            1 => { proof.remove(step); }
            2 => proof.insert(step, noise),
            _ => proof.push(noise),
        }
        prop_assert!(verify_inclusion(&tree.0[index as usize], index, size, &proof, &root).is_err());
    }

    #[test]
    fn a_changed_consistency_proof_is_rejected(
        new in 2u64..700, at in any::<u64>(), step in any::<usize>(), change in 0..4, noise in any_hash(),
    ) {
        let tree = tree(new as usize);
        let old = 1 + at % (new - 1);
        let (old_root, new_root) = (tree.root(old as usize), tree.root(new as usize));
        let mut proof = consistency_proof(&tree, old, new).unwrap();
        verify_consistency(old, &old_root, new, &new_root, &proof).unwrap();
        let step = step % proof.len();
        match change {
            0 => proof[step] = noise,
            1 => { proof.remove(step); }
            2 => proof.insert(step, noise),
            _ => proof.push(noise),
        }
        prop_assert!(verify_consistency(old, &old_root, new, &new_root, &proof).is_err());
    }

    #[test]
    fn hostile_proofs_neither_panic_nor_pass(
        index in any::<u64>(), size in any::<u64>(), leaf in any_hash(), root in any_hash(),
        proof in proptest::collection::vec(any_hash(), 0..80),
    ) {
        prop_assert!(verify_inclusion(&leaf, index, size, &proof, &root).is_err());
        prop_assert!(verify_consistency(index, &leaf, size, &root, &proof).is_err());
        let all = vec![leaf; 64];
        for (index, size) in [(u64::MAX - 1, u64::MAX), (0, u64::MAX), (u64::MAX, u64::MAX), (1 << 63, u64::MAX)] {
            prop_assert!(verify_inclusion(&leaf, index, size, &all, &root).is_err());
            prop_assert!(verify_consistency(index, &leaf, size, &root, &all).is_err());
        }
    }
}
