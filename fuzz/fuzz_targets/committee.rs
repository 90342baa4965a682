#![no_main]
//! The content a committee publishes, with its roster: one encoding.

use coalition::CommitteeContent;
use coalition_fuzz::organism;
use coalition_log::checkpoint::RosterVerifier;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(content) = CommitteeContent::from_bytes(data) {
        assert_eq!(content.to_bytes(), data);
        assert!(content.roster.quorum() > 2 * content.roster.faults_tolerated());
        let _ = RosterVerifier::new(organism(), &content.roster);
    }
});
