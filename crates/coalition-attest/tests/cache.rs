//! Remembered verdicts: found again while they hold, and not a second longer.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, clippy::expect_used)]

mod common;

use coalition_attest::dev::{CollateralOptions, GuestOptions};
use coalition_attest::{Expect, Nonce, Quote, VerdictCache, Verifier};
use common::{NOW, collateral, expect, id, options, policy, quote, root};

#[test]
fn a_verdict_is_found_again_until_its_nonce_is_too_old() {
    let cache = VerdictCache::new(8);
    let verifier = Verifier::new(policy());
    let (quote, collateral) = (Quote::parse(&quote(GuestOptions::default())).unwrap(), collateral());
    let at = |now| cache.judge(&verifier, &quote, &collateral, &expect(), now);
    assert!(at(NOW).is_valid());
    assert_eq!(cache.len(), 1);
    for now in [NOW, NOW + 1, NOW + 50] {
        let remembered = at(now);
        assert_eq!(remembered, verifier.judge(&quote, &collateral, &expect(), now), "as if judged anew");
        assert_eq!((remembered.checked_at_s, remembered.quote_age_s), (now, Some(now - NOW + 10)));
    }
    assert_eq!(at(NOW + 51).outcome.code(), Some("too_old"));
    assert_eq!(at(NOW - 11).outcome.code(), Some("nonce_in_future"), "a clock that runs backwards finds nothing");
}

#[test]
fn a_verdict_ends_with_its_collateral() {
    let verifier = Verifier::new(policy().max_quote_age_s(1_000_000).unwrap());
    let quote = Quote::parse(&quote(GuestOptions::default())).unwrap();
    let ending = root().collateral_with(&CollateralOptions { expires_s: NOW + 100, ..options() }).unwrap();
    let cache = VerdictCache::new(8);
    assert!(cache.judge(&verifier, &quote, &ending, &expect(), NOW).is_valid());
    assert!(cache.judge(&verifier, &quote, &ending, &expect(), NOW + 99).is_valid());
    let late = cache.judge(&verifier, &quote, &ending, &expect(), NOW + 100);
    assert_eq!(late.outcome.code(), Some("collateral_expired"));
    for now in [NOW + 99, NOW + 100] {
        let remembered = cache.judge(&verifier, &quote, &ending, &expect(), now);
        assert_eq!(remembered, verifier.judge(&quote, &ending, &expect(), now), "as if judged anew");
    }

    let aging = Verifier::new(policy().max_quote_age_s(1_000_000).unwrap().max_collateral_age_s(3610).unwrap());
    assert!(cache.judge(&aging, &quote, &collateral(), &expect(), NOW).is_valid());
    assert!(cache.judge(&aging, &quote, &collateral(), &expect(), NOW + 10).is_valid());
    let old = cache.judge(&aging, &quote, &collateral(), &expect(), NOW + 11);
    assert_eq!(old.outcome.code(), Some("collateral_old"));
}

#[test]
fn nothing_is_found_under_another_key() {
    let cache = VerdictCache::new(8);
    let verifier = Verifier::new(policy());
    let (quote, collateral) = (Quote::parse(&quote(GuestOptions::default())).unwrap(), collateral());
    assert!(cache.judge(&verifier, &quote, &collateral, &expect(), NOW).is_valid());
    let other = Expect::bound("test", id(1), b"another key", id(2), common::nonce());
    assert_eq!(cache.judge(&verifier, &quote, &collateral, &other, NOW).outcome.code(), Some("report_data"));
    let later = Expect::bound("test", id(1), b"the key", id(2), Nonce { issued_s: NOW + 5, ..common::nonce() });
    assert_eq!(cache.judge(&verifier, &quote, &collateral, &later, NOW).outcome.code(), Some("nonce_in_future"));
    let stricter = Verifier::new(policy().min_tcb_evaluation(9));
    assert!(!cache.judge(&stricter, &quote, &collateral, &expect(), NOW).is_valid());
    let revoking = CollateralOptions { revoked: vec![coalition_attest::dev::Certificate::Platform], ..options() };
    let revoking = root().collateral_with(&revoking).unwrap();
    let verdict = cache.judge(&verifier, &quote, &revoking, &expect(), NOW);
    assert_eq!(verdict.outcome.code(), Some("revoked"), "newer collateral is looked at");
    assert_eq!(cache.len(), 3, "could not check is not kept");
}

#[test]
fn the_memory_is_bounded_and_keeps_what_lasts() {
    let cache = VerdictCache::new(2);
    let verifier = Verifier::new(policy());
    let collateral = collateral();
    let lasting = Quote::parse(&quote(GuestOptions::default())).unwrap();
    for n in 0..5 {
        let other = Quote::parse(&quote(GuestOptions::debug())).unwrap();
        assert!(!cache.judge(&verifier, &other, &collateral, &expect(), NOW + n).is_valid());
        assert!(cache.len() <= 2);
    }
    assert!(cache.judge(&verifier, &lasting, &collateral, &expect(), NOW + 5).is_valid());
    assert_eq!(cache.len(), 2);
    assert!(!cache.is_empty());
}
