#![no_main]
//! Where an engine may start: nothing is taken that three of four did not finalise.
#![allow(dead_code)]

#[path = "../../crates/coalition-order/src/anchor.rs"]
mod anchor;
#[path = "../../crates/coalition-order/src/block.rs"]
mod block;
#[path = "../../crates/coalition-order/src/command.rs"]
mod command;

use std::sync::LazyLock;

use anchor::{Anchor, encode, vote_namespace};
use block::{BatchBlock, BlockLimits};
use commonware_consensus::simplex::scheme::ed25519::Scheme;
use commonware_consensus::simplex::types::{Finalization, Finalize, Proposal};
use commonware_consensus::types::{Epoch, Round, View};
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_cryptography::{Digestible as _, Signer as _};
use commonware_parallel::Sequential;
use commonware_utils::iter::NonEmpty;
use commonware_utils::ordered::Set;
use libfuzzer_sys::fuzz_target;

const LIMITS: BlockLimits = BlockLimits { max_bytes: 2_000, max_commands: 20, max_command_bytes: 500 };
const COMMITTEE: [u8; 32] = [5; 32];

fn keys() -> Set<PublicKey> {
    Set::from_iter_dedup((0..4).map(|seed| PrivateKey::from_seed(seed).public_key()))
}

static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let commands = vec![bytes::Bytes::from_static(b"one")];
    let block = BatchBlock { view: 9, height: 7, time_ms: 1_234, commands, ..BatchBlock::genesis([1; 32], 0) };
    let proposal = Proposal::new(Round::new(Epoch::zero(), View::new(9)), View::new(8), block.digest());
    let namespace = vote_namespace(&COMMITTEE);
    let scheme = |seed| Scheme::signer(&namespace, keys(), PrivateKey::from_seed(seed)).expect("a member's key");
    let mut votes = (0..3).map(|seed| Finalize::sign(&scheme(seed), proposal.clone()).expect("a member signs"));
    let first = votes.next().expect("three of them");
    let finalization = Finalization::from_owned_finalizes(&scheme(0), NonEmpty::new(first, votes), &Sequential);
    encode(&finalization.expect("a quorum"), &block)
});

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    let bytes = if how % 2 == 0 { coalition_fuzz::damaged(&SOUND, rest) } else { rest.to_vec() };
    if let Ok(anchor) = Anchor::check(&bytes, COMMITTEE, keys(), &LIMITS, &[6; 32]) {
        assert_eq!((anchor.height(), anchor.time_ms()), (7, 1_234));
    }
});
