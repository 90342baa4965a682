//! What the test files share: where vectors of others lie, and a development root with a guest.
#![allow(dead_code, unreachable_pub, clippy::print_stderr)]

use std::path::PathBuf;
use std::sync::LazyLock;

use coalition::UniqueId;
use coalition_attest::dev::{CollateralOptions, GuestOptions};
use coalition_attest::{
    BindingRule, Collateral, DevelopmentRoot, Expect, Measurements, Mrtd, Nonce, Origin, Policy, Quote, QuoteSource,
    Verdict, Verifier,
};

/// A moment inside the development collateral's validity.
pub const NOW: u64 = 1_800_000_000;

/// The directory of vectors of others, or none after saying so. One that is named has to be there.
pub fn vectors() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("COALITION_VECTORS") {
        let path = PathBuf::from(named).join("dcap");
        assert!(path.is_dir(), "COALITION_VECTORS names no directory of vectors: {} is missing", path.display());
        return Some(path);
    }
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/dcap");
    if beside.is_dir() {
        return Some(beside);
    }
    eprintln!("SKIPPED: no vectors in {}; set COALITION_VECTORS to their directory", beside.display());
    None
}

/// A quote and its collateral from the vectors.
pub fn vector(name: &str) -> Option<(Vec<u8>, Collateral)> {
    let path = vectors()?;
    let quote = std::fs::read(path.join(name)).unwrap();
    let json = std::fs::read(path.join(format!("{name}_collateral.json"))).unwrap();
    Some((quote, Collateral::from_json(&json, Origin::Inline).unwrap()))
}

pub fn root() -> &'static DevelopmentRoot {
    static ROOT: LazyLock<DevelopmentRoot> = LazyLock::new(|| DevelopmentRoot::generate().unwrap());
    &ROOT
}

pub fn collateral() -> Collateral {
    root().collateral_with(&options()).unwrap()
}

pub fn options() -> CollateralOptions {
    CollateralOptions::issued(NOW - 3600)
}

pub fn mrtd() -> Mrtd {
    Mrtd([0x4d; 48])
}

pub fn id(n: u8) -> UniqueId {
    UniqueId::from_bytes([n; 32])
}

pub fn nonce() -> Nonce {
    Nonce { value: id(3), issued_s: NOW - 10 }
}

/// What the tests' quotes are bound to.
pub fn expect() -> Expect {
    Expect::bound("test", id(1), b"the key", id(2), nonce())
}

pub fn report_data() -> [u8; 64] {
    coalition_attest::Binding { purpose: "test", network: id(1), key: b"the key", config: id(2), nonce: id(3) }
        .report_data()
}

pub fn policy() -> Policy {
    Policy::strict(root().trust_root().unwrap()).require_mrtd(mrtd()).max_quote_age_s(60).unwrap()
}

/// A quote of the development root, of this form, over the tests' report data.
pub fn quote(options: GuestOptions) -> Vec<u8> {
    root().guest_with(Measurements::of_mrtd(mrtd()), options).unwrap().quote(&report_data()).unwrap()
}

pub fn judge(policy: Policy, quote: &[u8], collateral: &Collateral) -> Verdict {
    Verifier::new(policy).verify(quote, collateral, &expect(), NOW)
}

/// Intel's policy for a bare quote of a current server.
pub fn intel() -> Policy {
    Policy::servers(coalition_attest::TrustRoot::Intel).binding(BindingRule::Unbound).unwrap()
}

#[track_caller]
pub fn assert_code(verdict: &Verdict, outcome: &str, code: &str) {
    assert_eq!((verdict.outcome.name(), verdict.outcome.code()), (outcome, Some(code)), "{verdict}");
}

pub fn parse(bytes: &[u8]) -> Quote {
    Quote::parse(bytes).unwrap()
}
