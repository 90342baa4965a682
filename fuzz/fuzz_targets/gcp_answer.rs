#![no_main]
//! What Google answers, in JSON, and a key file: whatever it is, it is read or refused.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| coalition_gcp::read_anything(data));
