#![no_main]
//! Several commands in one message between members: one encoding.
#![allow(dead_code)]

#[path = "../../crates/coalition-order/src/frames.rs"]
mod frames;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(items) = frames::decode(data, 64) {
        assert!(items.iter().all(|item| item.len() <= 64));
        assert_eq!(frames::encode(&items), data);
    }
});
