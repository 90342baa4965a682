#![no_main]
//! The text form of a peer's address, which travels in images' pointers and tickets.

use coalition_universe::PeerAddress;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(address) = text.parse::<PeerAddress>() {
        assert_eq!(address.to_string().parse::<PeerAddress>().as_ref(), Ok(&address));
    }
});
