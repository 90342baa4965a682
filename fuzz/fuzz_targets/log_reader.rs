#![no_main]
//! What a member serves a reader: nothing is released unless certified. The input is a note, a zero byte, and a bundle of
//! 16 entries or fewer with proofs behind it.

use coalition_fuzz::{organism, roster};
use coalition_log::{checkpoint::SignedCheckpoint, follow::Follower, store::decode_bundle, tree::Hash};
use libfuzzer_sys::fuzz_target;

fn proof(bytes: &[u8]) -> Vec<Hash> {
    bytes.as_chunks::<32>().0.iter().map(|chunk| Hash(*chunk)).collect()
}

fuzz_target!(|data: &[u8]| {
    let Some(split) = data.iter().position(|byte| *byte == 0) else { return };
    let (note, rest) = (&data[..split], &data[split + 1..]);
    let [count, proof_bytes, rest @ ..] = rest else { return };
    let Some((hashes, bundle)) = rest.split_at_checked(usize::from(*proof_bytes)) else { return };
    let Ok(note) = SignedCheckpoint::parse(note) else { return };
    let mut reader = Follower::new(organism(), &roster()).expect("a usable roster");
    let accepted = reader.accept_head(&note, &proof(hashes)).is_ok();
    let Ok(entries) = decode_bundle(bundle, u64::from(count % 16)) else { return };
    if let Ok(released) = reader.accept_entries(0, &entries, &proof(hashes)) {
        assert!(released.is_empty() || (accepted && reader.next_index() <= reader.head_size()));
    }
});
