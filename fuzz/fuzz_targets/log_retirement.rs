#![no_main]
//! Retirement markers and their approvals: one encoding each, and no retirement without a quorum.

use std::sync::LazyLock;

use coalition::RetirementMarker;
use coalition_fuzz::verifier;
use coalition_log::{checkpoint::RosterVerifier, retirement::ApprovedRetirement};
use libfuzzer_sys::fuzz_target;

static VERIFIER: LazyLock<RosterVerifier> = LazyLock::new(verifier);

fuzz_target!(|data: &[u8]| {
    if let Ok(marker) = RetirementMarker::from_bytes(data) {
        assert_eq!(marker.to_bytes(), data);
    }
    if let Ok(approved) = ApprovedRetirement::from_bytes(data) {
        assert_eq!(approved.to_bytes(), data);
        let _ = approved.verify(&VERIFIER);
    }
});
