#![no_main]
//! An evidence file: what is accepted prints back byte for byte, and verifies only as what it claims.

use coalition_fuzz::{organism, roster};
use coalition_log::evidence::Evidence;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(evidence) = Evidence::parse(data) else { return };
    assert_eq!(evidence.to_text().as_bytes(), data);
    if let Ok(verified) = evidence.verify(organism(), &roster()) {
        assert_eq!(verified.pointer(), evidence.claimed_pointer());
        assert_eq!(verified.entry(), evidence.claimed_entry());
    }
});
