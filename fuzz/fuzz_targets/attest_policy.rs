#![no_main]
//! Policies as operators write them: what is accepted comes back from its own text with the same fingerprint.

use coalition_attest::Policy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(policy) = toml::from_str::<Policy>(text) {
        let written = toml::to_string(&policy).expect("a policy has a text form");
        let again = toml::from_str::<Policy>(&written).expect("what is written is read");
        assert_eq!(again, policy);
        assert_eq!(again.fingerprint(), policy.fingerprint());
    }
});
