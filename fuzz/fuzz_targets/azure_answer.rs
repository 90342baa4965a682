#![no_main]
//! What Azure answers: whatever it is, it is read or refused.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| coalition_azure::read_anything(data));
