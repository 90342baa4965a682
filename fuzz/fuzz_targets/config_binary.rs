#![no_main]
//! Published configs in binary and hex. Odd inputs get a right frame and checksum, so that what is behind them is reached.

use coalition::{PublishedConfig, UniqueId};
use libfuzzer_sys::fuzz_target;

fn framed(fields: &[u8]) -> Vec<u8> {
    let mut bytes = b"COAL\x01".to_vec();
    bytes.extend(u32::try_from(fields.len()).expect("inputs are small").to_be_bytes());
    bytes.extend(fields);
    let checksum = UniqueId::hash(&bytes);
    bytes.extend(checksum.as_bytes());
    bytes
}

fn accepted(bytes: &[u8]) {
    if let Ok(config) = PublishedConfig::from_bytes(bytes) {
        assert_eq!(config.to_bytes(), bytes);
        assert_eq!(config.verify(), Ok(()));
        assert_eq!(PublishedConfig::from_hex(&config.to_hex()).as_ref(), Ok(&config));
        assert_eq!(PublishedConfig::from_toml(&config.to_toml()).as_ref(), Ok(&config));
    }
}

fuzz_target!(|data: &[u8]| {
    accepted(data);
    accepted(&framed(data));
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = PublishedConfig::from_hex(text);
    }
});
