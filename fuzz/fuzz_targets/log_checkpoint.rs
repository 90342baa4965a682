#![no_main]
//! A signed note: what is accepted prints back byte for byte; nobody certifies it who lacks the keys.

use std::sync::LazyLock;

use coalition_fuzz::verifier;
use coalition_log::checkpoint::{RosterVerifier, SignedCheckpoint};
use libfuzzer_sys::fuzz_target;

static VERIFIER: LazyLock<RosterVerifier> = LazyLock::new(verifier);

fuzz_target!(|data: &[u8]| {
    let Ok(note) = SignedCheckpoint::parse(data) else { return };
    assert_eq!(note.to_string().as_bytes(), data);
    if let Ok(certified) = VERIFIER.certify(&note) {
        assert!(certified.note().signatures.len() >= 3, "a quorum of four is three");
    }
});
