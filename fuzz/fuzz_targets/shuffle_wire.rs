#![no_main]
//! What clients and members of the unseal committee say to each other. Postcard reads some numbers in more than one form,
//! so what is asserted is that what is written comes back.

use coalition_shuffle::{Answer, Ask};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(ask) = Ask::decode(data) {
        let written = ask.encode().expect("what was read can be written");
        assert_eq!(Ask::decode(&written).as_ref(), Ok(&ask));
        let _ = ask.into_command([7; 32], None);
    }
    if let Ok(answer) = Answer::decode(data) {
        let written = answer.encode().expect("what was read can be written");
        assert_eq!(Answer::decode(&written).as_ref(), Ok(&answer));
        let _ = answer.reply_ids();
    }
});
