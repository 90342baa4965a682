#![no_main]
//! What a machine prints of its own counters, over SSH: it may print anything.

use coalition_host::counters::Counters;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if Counters::parse(text).is_ok() {
        assert!(text.ends_with("@end") || text.ends_with("@end\n") || text.ends_with("@end\r\n"));
    }
});
