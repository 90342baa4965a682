#![no_main]
//! A batch with its certificate, from which an engine starts: one encoding, and none that no quorum finalised. The first byte says
//! which is read; odd ones damage one that holds.
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
use bytes::Bytes;
use coalition_fuzz::damaged;
use commonware_consensus::{
    simplex::{
        scheme::ed25519::Scheme,
        types::{Finalization, Finalize, Proposal},
    },
    types::{Epoch, Round, View},
};
use commonware_cryptography::{
    Digestible as _, Signer as _,
    ed25519::{PrivateKey, PublicKey},
};
use commonware_parallel::Sequential;
use commonware_utils::{iter::NonEmpty, ordered::Set};
use libfuzzer_sys::fuzz_target;

const LIMITS: BlockLimits = BlockLimits { max_bytes: 200, max_commands: 10, max_command_bytes: 60 };
const COMMITTEE: [u8; 32] = [5; 32];

fn keys() -> Set<PublicKey> {
    Set::from_iter_dedup((0..4).map(|seed| PrivateKey::from_seed(seed).public_key()))
}

static FINALISED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let commands = vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")];
    let block = BatchBlock { view: 9, height: 7, time_ms: 1_234, commands, ..BatchBlock::genesis([1; 32], 0) };
    let proposal = Proposal::new(Round::new(Epoch::zero(), View::new(9)), View::new(8), block.digest());
    let scheme =
        |seed| Scheme::signer(&vote_namespace(&COMMITTEE), keys(), PrivateKey::from_seed(seed)).expect("a seat");
    let mut votes = (0..3).map(|seed| Finalize::sign(&scheme(seed), proposal.clone()).expect("a vote"));
    let votes = NonEmpty::new(votes.next().expect("the first"), votes);
    let finalization = Finalization::from_owned_finalizes(&scheme(0), votes, &Sequential).expect("a quorum");
    encode(&finalization, &block)
});

fuzz_target!(|data: &[u8]| {
    let Some((&which, rest)) = data.split_first() else { return };
    let bytes = if which % 2 == 1 { damaged(&FINALISED, rest) } else { rest.to_vec() };
    if let Ok(anchor) = Anchor::check(&bytes, COMMITTEE, keys(), &LIMITS, &[6; 32]) {
        assert_eq!(bytes, *FINALISED, "nobody finalised that");
        assert_eq!((anchor.height(), anchor.time_ms()), (7, 1_234));
    }
});
