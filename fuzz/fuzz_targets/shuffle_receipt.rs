#![no_main]
//! What a requester finds in a reply: one encoding, and a line for `known_hosts` that is one line.

use coalition_shuffle::SshAccessReceipt;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(receipt) = SshAccessReceipt::decode(data) {
        assert_eq!(receipt.encode().expect("a decoded receipt is within its limits").as_slice(), data);
        assert_eq!(receipt.known_hosts_line().trim_end().lines().count(), 1);
    }
});
