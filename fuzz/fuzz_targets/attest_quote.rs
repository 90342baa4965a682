#![no_main]
//! TDX quotes and the evidence they travel in: any bytes, or a sound quote with edits. Nothing but the sound one is valid.

use std::sync::LazyLock;

use coalition::UniqueId;
use coalition_attest::{
    Binding, Collateral, DevelopmentRoot, Evidence, Expect, Measurements, Mrtd, Nonce, Policy, Quote, QuoteSource,
    Verifier,
};
use coalition_fuzz::damaged;
use libfuzzer_sys::fuzz_target;

const NOW: u64 = 1_800_000_000;

struct Setting {
    quote: Vec<u8>,
    collateral: Collateral,
    verifier: Verifier,
    expect: Expect,
}

static SETTING: LazyLock<Setting> = LazyLock::new(|| {
    let id = |n| UniqueId::from_bytes([n; 32]);
    let root = DevelopmentRoot::generate().expect("software keys");
    let guest = root.guest(Measurements::of_mrtd(Mrtd([7; 48]))).expect("a guest");
    let nonce = Nonce { value: id(3), issued_s: NOW - 5 };
    let binding = Binding { purpose: "fuzz", network: id(1), key: b"key", config: id(2), nonce: nonce.value };
    let policy = Policy::strict(root.trust_root().expect("a root")).require_mrtd(Mrtd([7; 48]));
    Setting {
        quote: guest.quote(&binding.report_data()).expect("a quote"),
        collateral: root.collateral(NOW).expect("collateral"),
        verifier: Verifier::new(policy),
        expect: Expect::bound("fuzz", id(1), b"key", id(2), nonce),
    }
});

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    let bytes = if how % 2 == 0 { damaged(&SETTING.quote, rest) } else { rest.to_vec() };
    let _ = Quote::from_file_bytes(&bytes);
    if let Ok(evidence) = Evidence::from_bytes(&bytes) {
        let _ = Quote::parse(&evidence.quote);
    }
    let Ok(quote) = Quote::parse(&bytes) else { return };
    assert_eq!(Quote::parse(quote.bytes()).as_ref(), Ok(&quote));
    let verdict = SETTING.verifier.judge(&quote, &SETTING.collateral, &SETTING.expect, NOW);
    if verdict.is_valid() {
        // The signed part is the sound one's; certificates and signatures may be written in other ways.
        assert_eq!(quote.report_data(), Quote::parse(&SETTING.quote).expect("sound").report_data());
        assert_eq!(quote.measurements(), Quote::parse(&SETTING.quote).expect("sound").measurements());
    }
});
