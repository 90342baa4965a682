#![no_main]
//! One log entry: what is accepted is the one encoding of what it decodes to.

use coalition_log::Entry;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(entry) = Entry::decode(data) {
        assert_eq!(entry.encode().expect("a decoded entry is within its limits"), data);
    }
});
