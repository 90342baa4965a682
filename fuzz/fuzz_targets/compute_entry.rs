#![no_main]
//! Entries of a market's log, as every reader decodes them: one encoding each. The first byte says which kind.

use coalition_compute::{MarketEntry, entries};
use coalition_log::{Draft, Entry};
use libfuzzer_sys::fuzz_target;

const KINDS: [&str; 14] = [
    entries::CARD_KIND,
    entries::CARD_REMOVED_KIND,
    entries::REQUEST_KIND,
    entries::REQUEST_ENDED_KIND,
    entries::CLEARING_KIND,
    entries::GRANT_KIND,
    entries::GRANT_SERVING_KIND,
    entries::GRANT_ENDING_KIND,
    entries::GRANT_ENDED_KIND,
    entries::LOG_KIND,
    entries::EXTENSION_ASKED_KIND,
    entries::EXTENSION_ANSWERED_KIND,
    entries::INVENTORY_KIND,
    entries::USAGE_REPORT_KIND,
];

fuzz_target!(|data: &[u8]| {
    let Some((&which, body)) = data.split_first() else { return };
    let kind = KINDS[usize::from(which) % KINDS.len()];
    let entry: Entry = Draft::new(kind, body.to_vec()).into_entry(0, Some(1), 1);
    if let Ok(Some(decoded)) = MarketEntry::decode(&entry) {
        assert_eq!(decoded.kind(), kind);
        assert_eq!(decoded.to_body(), body);
    }
});
