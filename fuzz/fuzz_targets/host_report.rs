#![no_main]
//! What a virtual machine's guest says, anything if it wants to; and what it is told.

use coalition_host::machine::report::{line, order_line, parse, parse_order};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(report) = parse(data) {
        let line = line(&report);
        assert_eq!(parse(line.strip_suffix(b"\n").expect("a line has an end")), Ok(report));
    }
    if let Ok(order) = parse_order(data) {
        let line = order_line(order);
        assert_eq!(parse_order(line.strip_suffix(b"\n").expect("a line has an end")), Ok(order));
    }
});
