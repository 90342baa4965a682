#![no_main]
//! Frames of remote calls: requests and answers.
#![allow(dead_code)]

mod node {
    pub(crate) use coalition_universe::MAX_BODY_BYTES;
}
#[path = "../../crates/coalition-universe/src/wire.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;
use wire::{HEADER_BYTES, Header, decode_answer, encode_answer, method_name, request_head};

fuzz_target!(|data: &[u8]| {
    if let Some((head, rest)) = data.split_first_chunk::<HEADER_BYTES>()
        && let Ok(header) = Header::parse(*head)
        && let Some(method) = rest.get(..header.method_bytes)
        && let Ok(method) = method_name(method.to_vec())
    {
        let written = request_head(&method, header.body_bytes).expect("what was read can be written");
        assert_eq!(written, data[..written.len()]);
    }
    if let Ok(answer) = decode_answer(data.to_vec()) {
        let (status, body) = encode_answer(answer);
        let written = [vec![status], body].concat();
        assert!(written.len() <= data.len() && written[0] == data[0]);
        decode_answer(written).expect("what is written is read");
    }
});
