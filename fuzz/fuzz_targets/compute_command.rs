#![no_main]
//! Commands written to the market: one encoding each. Parameters of the module likewise.

use coalition_compute::{Command, ComputeParams};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(command) = Command::from_bytes(data) {
        assert_eq!(command.to_bytes(), data);
    }
    if let Ok(params) = ComputeParams::from_bytes(data) {
        assert_eq!(params.to_bytes(), data);
    }
});
