#![no_main]
//! A proof of equivocation: what is accepted prints back byte for byte, and proves two roots of one size.

use std::sync::LazyLock;

use coalition_fuzz::verifier;
use coalition_log::{checkpoint::RosterVerifier, equivocation::Equivocation};
use libfuzzer_sys::fuzz_target;

static VERIFIER: LazyLock<RosterVerifier> = LazyLock::new(verifier);

fuzz_target!(|data: &[u8]| {
    let Ok(proof) = Equivocation::parse(data) else { return };
    assert_eq!(proof.to_string().as_bytes(), data);
    if let Ok(guilt) = proof.verify(&VERIFIER) {
        assert!(guilt.roots[0] < guilt.roots[1]);
    }
});
