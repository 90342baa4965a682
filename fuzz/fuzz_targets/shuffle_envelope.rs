#![no_main]
//! What a provider finds in a cell: one encoding.

use coalition_shuffle::Envelope;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(envelope) = Envelope::decode(data) {
        let written = envelope.encode(usize::MAX).expect("a decoded envelope is within its limits");
        assert_eq!(written.as_slice(), data);
    }
});
