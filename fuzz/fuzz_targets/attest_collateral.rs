#![no_main]
//! Collateral beside a quote or from a service, which is parsed before any signature is checked.

use std::sync::LazyLock;

use coalition::UniqueId;
use coalition_attest::{
    BindingRule, Collateral, CollateralKey, DevelopmentRoot, Expect, Measurements, Mrtd, Nonce, Origin, Policy, Quote,
    QuoteSource, Verifier,
};
use coalition_fuzz::damaged;
use libfuzzer_sys::fuzz_target;

const NOW: u64 = 1_800_000_000;

static SETTING: LazyLock<(Quote, Vec<u8>, Verifier)> = LazyLock::new(|| {
    let root = DevelopmentRoot::generate().expect("software keys");
    let guest = root.guest(Measurements::of_mrtd(Mrtd([7; 48]))).expect("a guest");
    let quote = Quote::parse(&guest.quote(&[0; 64]).expect("a quote")).expect("a sound quote");
    let policy = Policy::strict(root.trust_root().expect("a root")).binding(BindingRule::Unbound).expect("allowed");
    (quote, root.collateral(NOW).expect("collateral").to_json().into_bytes(), Verifier::new(policy))
});

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    let json = if how % 2 == 0 { damaged(&SETTING.1, rest) } else { rest.to_vec() };
    if let Ok(text) = std::str::from_utf8(&json) {
        let _ = text.parse::<CollateralKey>();
    }
    let Ok(collateral) = Collateral::from_json(&json, Origin::Inline) else { return };
    let again =
        Collateral::from_json(collateral.to_json().as_bytes(), Origin::Inline).expect("what is written is read");
    assert_eq!(again.digest(), collateral.digest());
    let nonce = Nonce { value: UniqueId::from_bytes([3; 32]), issued_s: NOW };
    let expect = Expect::bound("fuzz", nonce.value, b"key", nonce.value, nonce);
    let _ = SETTING.2.judge(&SETTING.0, &collateral, &expect, NOW);
});
