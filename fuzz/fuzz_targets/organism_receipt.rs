#![no_main]
//! A member's answer to a write: nothing is taken for committed that three of four did not sign.
#![allow(dead_code)]

#[path = "../../crates/coalition-organism/src/receipt.rs"]
mod receipt;
#[path = "../../crates/coalition-organism/src/wire.rs"]
mod wire;

use std::sync::LazyLock;

use coalition_fuzz::{chain, key, organism};
use coalition_log::{
    Draft, Entry,
    checkpoint::{Checkpoint, Cosigner, SignedCheckpoint},
    entry::{WriteId, leaf_hash},
    handover::RosterChain,
};
use libfuzzer_sys::fuzz_target;
use wire::{Payload, ProvenEntry, Write, WriteAnswer, WriteReply};

const ID: WriteId = WriteId([3; 16]);

static CHAIN: LazyLock<RosterChain> = LazyLock::new(chain);

/// A true acknowledgement of one entry.
static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let entry = Entry { write_id: ID, ..Draft::new("note", b"text".to_vec()).into_entry(0, None, 1) };
    let bytes = entry.encode().expect("a small entry");
    let checkpoint = Checkpoint { organism: organism(), size: 1, root: leaf_hash(&bytes) };
    let sign = |i: u8| Cosigner::new(organism(), &format!("m{i}"), key(i)).sign(&checkpoint, 1).expect("same organism");
    let head = SignedCheckpoint { checkpoint, signatures: (0..3).map(sign).collect() }.to_string();
    let entries = vec![entry.pointer(organism()).expect("a small entry")];
    let reply = WriteReply {
        answers: vec![WriteAnswer::Committed { entries }],
        head: Some(head),
        proofs: vec![ProvenEntry { bytes, path: vec![] }],
        handovers: vec![],
    };
    wire::encode(&reply)
});

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    let bytes = if how % 2 == 0 { coalition_fuzz::damaged(&SOUND, rest) } else { rest.to_vec() };
    let Ok(reply) = wire::decode::<WriteReply>(&bytes) else { return };
    let writes = [Write { write_id: ID, payload: Payload::Command(vec![1]) }];
    let Ok(answers) = receipt::verify(&CHAIN, &writes, reply) else { return };
    let sound = wire::decode::<WriteReply>(&SOUND).expect("it was encoded").answers;
    let nothing = |answer: &WriteAnswer| match answer {
        WriteAnswer::Committed { entries } => entries.is_empty(),
        WriteAnswer::Refused(_) | WriteAnswer::Pending => true,
    };
    // Every entry named is proven, so nothing can be named but the one there is, as often as it likes.
    assert!(answers.iter().all(|answer| nothing(answer) || names_only(answer, &sound[0])));
});

fn names_only(answer: &WriteAnswer, sound: &WriteAnswer) -> bool {
    let (WriteAnswer::Committed { entries }, WriteAnswer::Committed { entries: true_ones }) = (answer, sound) else {
        return false;
    };
    entries.iter().all(|entry| true_ones.contains(entry))
}
