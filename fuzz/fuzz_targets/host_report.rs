#![no_main]
//! What a virtual machine's guest says: anything, if it wants to.

use coalition_host::machine::report::{line, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(report) = parse(data) {
        let line = line(&report);
        assert_eq!(parse(line.strip_suffix(b"\n").expect("a line has an end")), Ok(report));
    }
});
