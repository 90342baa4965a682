#![no_main]
//! Request and reply cells. The input is laid over a cell of the right size, else hardly any would have it.

use coalition_shuffle::{CELL_BYTES, ReplyCell, RequestCell, tdh2::Ciphertext};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Ciphertext::from_bytes(data);
    let mut bytes = data.to_vec();
    if data.first().is_some_and(|first| first % 16 != 15) {
        bytes.resize(CELL_BYTES, 0);
    }
    if let Ok(cell) = RequestCell::from_bytes(&bytes) {
        assert_eq!(cell.as_bytes(), bytes);
    }
    if let Ok(cell) = ReplyCell::from_bytes(&bytes) {
        assert_eq!(cell.as_bytes(), bytes);
    }
});
