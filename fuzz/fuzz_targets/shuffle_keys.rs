#![no_main]
//! Public parameters, decryption shares and key shares of an unseal committee.

use coalition_shuffle::{KeyShare, PublicParams, tdh2::DecryptionShare};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(params) = PublicParams::from_bytes(data) {
        assert_eq!(params.to_bytes(), data);
        assert_eq!(PublicParams::from_hex(&params.to_hex()).map(|p| p.to_bytes().to_vec()).ok().as_deref(), Some(data));
    }
    if let Ok(share) = DecryptionShare::from_bytes(data) {
        assert_eq!(share.to_bytes(), data);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = KeyShare::from_text(text);
        let _ = PublicParams::from_hex(text);
    }
});
