#![no_main]
//! Published configs in TOML: what is accepted is verified, and has the same hex form after another round.

use coalition::PublishedConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = PublishedConfig::from_toml(text) {
        assert_eq!(config.verify(), Ok(()));
        assert_eq!(PublishedConfig::from_toml(&config.to_toml()).as_ref(), Ok(&config));
        assert_eq!(PublishedConfig::from_hex(&config.to_hex()).as_ref(), Ok(&config));
    }
});
