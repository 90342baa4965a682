#![no_main]
//! What a provider asks of a runner: checked whole before anything is done.

use coalition_host::spec::{check, parse};
use libfuzzer_sys::fuzz_target;

const NOW_MS: u64 = 1_800_000_000_000;

fuzz_target!(|data: &[u8]| {
    if let Ok(checked) = parse(data, NOW_MS) {
        check(checked.spec.clone(), NOW_MS).expect("what is accepted is accepted again");
        let _ = checked.spec;
    }
});
