//! Quotes, evidence and collateral of any bytes: refused with a reason, never with a panic, never as valid.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, clippy::expect_used)]

mod common;

use std::sync::LazyLock;

use coalition_attest::dev::GuestOptions;
use coalition_attest::quote::{MAX_QUOTE_BYTES, ReportKind};
use coalition_attest::{Collateral, Evidence, EvidenceError, Expect, Origin, Quote, QuoteError, Verifier};
use common::{NOW, collateral, expect, policy, quote};
use proptest::prelude::*;

static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| quote(GuestOptions::default()));
static SOUND_V5: LazyLock<Vec<u8>> =
    LazyLock::new(|| quote(GuestOptions { version: 5, kind: ReportKind::Td15, ..GuestOptions::default() }));
static COLLATERAL: LazyLock<Collateral> = LazyLock::new(collateral);
static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| Verifier::new(policy()));

/// Where a quote of version 4 states lengths, and how wide they are.
const LENGTHS: [(usize, usize); 4] = [(632, 4), (766, 4), (1218, 2), (1254, 4)];

fn verdict(bytes: &[u8]) -> coalition_attest::Verdict {
    VERIFIER.verify(bytes, &*COLLATERAL, &expect(), NOW)
}

#[test]
fn the_sound_ones_are_sound() {
    assert!(verdict(&SOUND).is_valid() && verdict(&SOUND_V5).is_valid());
    let mut padded = SOUND.clone();
    padded.resize(MAX_QUOTE_BYTES, 0);
    assert!(verdict(&padded).is_valid());
    padded.push(0);
    assert_eq!(Quote::parse(&padded), Err(QuoteError::TooLong { found: MAX_QUOTE_BYTES + 1 }));
    assert!(Quote::parse(&[]).is_err() && Quote::from_file_bytes(b"").is_err());
}

#[test]
fn the_hexadecimal_form_is_read() {
    let plain = Quote::parse(&SOUND).unwrap();
    let text = hex::encode(&*SOUND);
    for form in [text.clone(), format!("0x{text}"), format!("  {text}\n"), text.to_uppercase()] {
        assert_eq!(Quote::from_file_bytes(form.as_bytes()).unwrap(), plain);
    }
    assert!(matches!(Quote::from_file_bytes(b"hello"), Err(QuoteError::Text(_))));
    assert!(matches!(Quote::from_file_bytes(&vec![b'0'; 100_000]), Err(QuoteError::TooLong { .. })));
}

#[test]
fn every_stated_length_must_be_true() {
    for (at, width) in LENGTHS {
        let true_value = u64::from_le_bytes({
            let mut wide = [0; 8];
            wide[..width].copy_from_slice(&SOUND[at..at + width]);
            wide
        });
        let largest = u64::MAX >> (64 - 8 * width);
        for lie in [0, 1, true_value - 1, true_value + 1, true_value * 2, largest, largest / 2] {
            let mut lying = SOUND.clone();
            lying[at..at + width].copy_from_slice(&lie.to_le_bytes()[..width]);
            lying.resize(lying.len() + 512, 0);
            assert!(Quote::parse(&lying).is_err(), "length {lie} at {at}");
        }
    }
}

#[test]
fn lengths_that_agree_with_each_other_do_not_hide_bytes() {
    // Both enclosing lengths grow by the bytes added after the chain, so that only the innermost check can notice.
    for extra in [1, 16] {
        let mut grown = SOUND.clone();
        for at in [632, 766] {
            let mut length = [0; 4];
            length.copy_from_slice(&grown[at..at + 4]);
            let longer = u32::from_le_bytes(length) + extra;
            grown[at..at + 4].copy_from_slice(&longer.to_le_bytes());
        }
        grown.extend(vec![0xaa; extra as usize]);
        assert!(matches!(Quote::parse(&grown), Err(QuoteError::Length { .. })));
    }
}

#[test]
fn the_certificate_chain_has_one_form() {
    let start = SOUND.windows(10).position(|w| w == b"-----BEGIN").unwrap();
    for (from, to) in [(b'\n', b' '), (b'\n', b'\t'), (b'-', b'_')] {
        let mut changed = SOUND.clone();
        if let Some(place) = changed[start..].iter().position(|b| *b == from) {
            changed[start + place] = to;
            assert!(matches!(Quote::parse(&changed), Err(QuoteError::Certificates(_))), "{from} for {to}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..8192)) {
        prop_assert!(Quote::parse(&bytes).is_err());
        let _ = Quote::from_file_bytes(&bytes);
        let _ = Evidence::from_bytes(&bytes);
        let _ = Collateral::from_json(&bytes, Origin::Inline);
    }

    #[test]
    fn a_true_start_with_any_end_is_refused(keep in 0usize..5000, tail in proptest::collection::vec(any::<u8>(), 1..600)) {
        for sound in [&*SOUND, &*SOUND_V5] {
            let mut bytes = sound[..keep.min(sound.len())].to_vec();
            bytes.extend(&tail);
            prop_assume!(bytes != *sound && tail.iter().any(|b| *b != 0));
            prop_assert!(!verdict(&bytes).is_valid());
        }
    }

    #[test]
    fn truncation_is_refused(keep in 0usize..4500) {
        for sound in [&*SOUND, &*SOUND_V5] {
            let kept = &sound[..keep.min(sound.len() - 1)];
            let truncated = matches!(Quote::parse(kept), Err(QuoteError::Truncated { .. }));
            prop_assert!(truncated);
        }
    }

    #[test]
    fn lies_about_lengths_are_refused(which in 0usize..4, lie in any::<u32>(), extra in 0usize..4096) {
        let (at, width) = LENGTHS[which];
        let mut lying = SOUND.clone();
        lying[at..at + width].copy_from_slice(&lie.to_le_bytes()[..width]);
        prop_assume!(lying != *SOUND);
        lying.resize(lying.len() + extra, 0);
        prop_assert!(!verdict(&lying).is_valid());
    }

    #[test]
    fn several_changed_bytes_are_refused(changes in proptest::collection::vec((0usize..4200, 1u8..), 1..8)) {
        let mut changed = SOUND.clone();
        for (place, with) in &changes {
            if let Some(byte) = changed.get_mut(*place) {
                *byte ^= with;
            }
        }
        prop_assume!(changed != *SOUND);
        prop_assert!(!verdict(&changed).is_valid());
    }

    #[test]
    fn changed_collateral_never_panics(place in 0usize..8000, with in 1u8..128) {
        let mut json = COLLATERAL.to_json().into_bytes();
        if let Some(byte) = json.get_mut(place) {
            *byte ^= with;
        }
        if let Ok(changed) = Collateral::from_json(&json, Origin::Inline) {
            let _ = VERIFIER.verify(&SOUND, &changed, &Expect::Unbound, NOW);
        }
    }

    #[test]
    fn evidence_survives_its_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..4096), with in any::<bool>()) {
        let evidence = Evidence { quote: bytes, collateral: with.then(|| COLLATERAL.clone()) };
        let out = evidence.to_bytes().unwrap();
        let back = Evidence::from_bytes(&out).unwrap();
        prop_assert_eq!(&back.quote, &evidence.quote);
        prop_assert_eq!(back.collateral.as_ref().map(Collateral::digest), evidence.collateral.map(|c| c.digest()));
        prop_assert!(Evidence::from_bytes(&out[..out.len() - 1]).is_err());
        prop_assert!(Evidence::from_bytes(&[&out[..], &[0]].concat()).is_err());
    }
}

#[test]
fn oversized_evidence_is_refused_before_it_is_read() {
    let mut bytes = vec![1];
    bytes.extend(u32::MAX.to_be_bytes());
    assert!(matches!(Evidence::from_bytes(&bytes), Err(EvidenceError::TooLong { field: "quote", .. })));
    assert!(matches!(Evidence::from_bytes(&[2]), Err(EvidenceError::Version(2))));
    let long = Evidence { quote: vec![0; MAX_QUOTE_BYTES + 1], collateral: None };
    assert!(long.to_bytes().is_err());
    let huge = vec![b' '; coalition_attest::collateral::MAX_COLLATERAL_BYTES + 1];
    assert!(Collateral::from_json(&huge, Origin::Inline).is_err());
}
