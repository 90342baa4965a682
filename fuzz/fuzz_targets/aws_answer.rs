#![no_main]
//! What AWS answers, in XML and JSON, and a credentials file: whatever it is, it is read or refused.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| coalition_aws::read_anything(data));
