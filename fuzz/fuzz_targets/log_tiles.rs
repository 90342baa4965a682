#![no_main]
//! Hash tiles and entry bundles of any width: what is accepted is the one encoding.

use coalition_log::store::{decode_bundle, decode_hashes, encode_bundle, encode_hashes};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&width, bytes)) = data.split_first() else { return };
    let width = u64::from(width) + 1;
    if let Some(hashes) = decode_hashes(bytes, width) {
        assert_eq!(encode_hashes(&hashes), bytes);
    }
    match decode_bundle(bytes, width) {
        Ok(entries) => {
            assert_eq!(entries.len() as u64, width);
            assert_eq!(encode_bundle(&entries), bytes);
        }
        Err(offset) => assert!(offset <= bytes.len() as u64),
    }
});
