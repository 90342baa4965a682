//! Quotes that Intel signed, at their own time and at others, whole and changed, with their collateral and another's.
//!
//! The vectors are not part of the project: tests skip, saying so, where they are absent.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, clippy::expect_used)]

mod common;

use std::process::Command;

use coalition_attest::{
    Collateral, CollateralError, CollateralKey, CollateralSource, DEVELOPMENT_LABEL, Directory, Expect, Origin, Policy,
    Quote, QuoteError, Register, TcbStatus, TrustRoot, Verifier,
};
use common::{assert_code, intel, vector, vectors};

/// 2025-07-01.
const JULY_2025: u64 = 1_751_328_000;
/// 2026-03-01.
const MARCH_2026: u64 = 1_772_323_200;
const DAY: u64 = 24 * 3600;

fn at(policy: Policy, quote: &[u8], collateral: &Collateral, now: u64) -> coalition_attest::Verdict {
    Verifier::new(policy).verify(quote, collateral, &Expect::Unbound, now)
}

#[test]
fn a_named_directory_of_vectors_has_to_be_there() {
    let missing = tempfile::tempdir().unwrap();
    let test = ["--exact", "an_intel_quote_is_valid_at_its_time"];
    let mut run = Command::new(std::env::current_exe().unwrap());
    let output = run.args(test).env("COALITION_VECTORS", missing.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("COALITION_VECTORS names no directory"), "{said}");
}

#[test]
fn an_intel_quote_is_valid_at_its_time() {
    let Some((quote, collateral)) = vector("tdx_quote") else { return };
    let verdict = at(intel(), &quote, &collateral, JULY_2025);
    assert!(verdict.is_valid(), "{verdict}");
    let guest = verdict.guest.clone().unwrap();
    assert_eq!((guest.tcb, guest.fmspc), (TcbStatus::UpToDate, [0xb0, 0xc0, 0x6f, 0, 0, 0]));
    let text = verdict.to_string();
    assert!(text.starts_with("valid [root: Intel;") && text.contains("offline"), "{text}");
    assert!(text.contains("not bound to its bearer") && text.contains("unknown age"), "{text}");
    assert!(!text.contains(DEVELOPMENT_LABEL));

    let pinned = intel().require_mrtd(guest.measurements.mrtd);
    assert!(at(pinned, &quote, &collateral, JULY_2025).is_valid());
    let rtmr3 = guest.measurements.get(Register::Rtmr3);
    let rotated = intel().in_set(Register::Rtmr3, &[coalition_attest::RegisterValue([1; 48]), rtmr3]).unwrap();
    assert!(at(rotated, &quote, &collateral, JULY_2025).is_valid());
    let other = intel().require_mrtd(coalition_attest::Mrtd([1; 48]));
    assert_code(&at(other, &quote, &collateral, JULY_2025), "invalid", "register");
}

#[test]
fn strict_flags_are_named() {
    let Some((quote, collateral)) = vector("tdx_quote") else { return };
    let strict = Policy::strict(TrustRoot::Intel).binding(coalition_attest::BindingRule::Unbound).unwrap();
    assert_code(&at(strict, &quote, &collateral, JULY_2025), "invalid", "platform_flag");
    let bound = Policy::servers(TrustRoot::Intel);
    assert_code(&at(bound, &quote, &collateral, JULY_2025), "could_not_check", "binding_unknown");
}

#[test]
fn an_intel_quote_of_version_5_is_valid_at_its_time() {
    let Some((quote, collateral)) = library_sample("tdx_quote_td15ex") else { return };
    let parsed = Quote::parse(&quote).unwrap();
    assert_eq!((parsed.version(), parsed.kind()), (5, coalition_attest::quote::ReportKind::Td15Ex));
    let october_2026 = 1_791_504_000;
    let verdict = at(intel(), &quote, &collateral, october_2026);
    assert!(verdict.is_valid(), "{verdict}");
    assert_code(&at(intel(), &quote, &collateral, october_2026 + 60 * DAY), "could_not_check", "collateral_expired");
    every_changed_byte_is_refused(&quote, &collateral, october_2026);
}

#[test]
fn a_platform_below_every_level_is_refused() {
    let Some((quote, collateral)) = vector("tdx_quote_outdated") else { return };
    assert_eq!(Quote::parse(&quote).unwrap().version(), 5);
    assert_code(&at(intel(), &quote, &collateral, MARCH_2026), "invalid", "tcb_unknown");
    assert_code(&at(intel(), &quote, &collateral, MARCH_2026 + 60 * DAY), "could_not_check", "collateral_expired");
    every_changed_byte_is_refused(&quote, &collateral, MARCH_2026);
}

#[test]
fn wrong_times_are_named() {
    let Some((quote, collateral)) = vector("tdx_quote") else { return };
    for (now, code) in [
        (JULY_2025 + 31 * DAY, "collateral_expired"),
        (JULY_2025 + 3650 * DAY, "collateral_expired"),
        (JULY_2025 - 20 * DAY, "collateral_not_yet_valid"),
        (0, "collateral_not_yet_valid"),
    ] {
        assert_code(&at(intel(), &quote, &collateral, now), "could_not_check", code);
    }
}

#[test]
fn every_changed_byte_of_a_quote_is_refused() {
    let Some((quote, collateral)) = vector("tdx_quote") else { return };
    every_changed_byte_is_refused(&quote, &collateral, JULY_2025);
}

/// Every byte, changed in one bit that depends on its place; padding included.
fn every_changed_byte_is_refused(quote: &[u8], collateral: &Collateral, now: u64) {
    let verifier = Verifier::new(intel());
    let mut codes = std::collections::BTreeMap::<_, usize>::new();
    for place in 0..quote.len() {
        let mut changed = quote.to_vec();
        changed[place] ^= 1 << (place % 8);
        let verdict = verifier.verify(&changed, collateral, &Expect::Unbound, now);
        assert!(!verdict.is_valid(), "byte {place} may change");
        *codes.entry(verdict.outcome.code().unwrap()).or_default() += 1;
    }
    eprintln!("{} bytes changed one by one: {codes:?}", quote.len());
    assert!(codes["signature"] > 500 && codes["malformed"] > 10);
    assert!(!codes.contains_key("other"), "every reason is told apart");
}

#[test]
fn changed_parts_of_a_quote_have_the_right_reason() {
    let Some((quote, collateral)) = vector("tdx_quote") else { return };
    let code = |place: usize| {
        let mut changed = quote.clone();
        changed[place] ^= 1;
        at(intel(), &changed, &collateral, JULY_2025).outcome.code().unwrap()
    };
    assert_eq!(code(48 + 136), "signature", "MRTD");
    assert_eq!(code(48 + 520), "signature", "report data");
    assert_eq!(code(48 + 120), "signature", "debug bit: set by a forger, so the signature is the reason");
    assert_eq!(code(636), "signature", "signature");
    assert_eq!(code(700), "attestation_key", "attestation key");
    assert_eq!(code(770 + 64), "enclave_report", "QE report");
    assert_eq!(code(1154), "enclave_report", "signature of the QE report");
    assert_eq!(code(1220), "attestation_key", "QE authentication data");
    assert_eq!(code(764), "malformed", "certification type");
    assert_eq!(code(quote.len() - 1), "malformed", "padding");
}

#[test]
fn every_changed_byte_of_signed_collateral_is_refused() {
    let Some((quote, collateral)) = vector("tdx_quote") else { return };
    let verifier = Verifier::new(intel());
    let parsed = Quote::parse(&quote).unwrap();
    let json: serde_json::Value = serde_json::from_str(&collateral.to_json()).unwrap();
    let fields = ["root_ca_crl", "pck_crl", "tcb_info", "tcb_info_signature", "qe_identity", "qe_identity_signature"];
    let mut tried = 0;
    for field in fields {
        let text = json[field].as_str().unwrap();
        let is_json = text.starts_with('{');
        for place in 0..if is_json { text.len() } else { text.len() / 2 } {
            let mut changed = json.clone();
            let bytes = if is_json { text.as_bytes().to_vec() } else { hex::decode(text).unwrap() };
            let mut bytes = bytes;
            bytes[place] ^= 1;
            let value = if is_json { String::from_utf8(bytes).unwrap() } else { hex::encode(bytes) };
            changed[field] = value.into();
            let collateral = Collateral::from_json(changed.to_string().as_bytes(), Origin::Inline).unwrap();
            let verdict = verifier.judge(&parsed, &collateral, &Expect::Unbound, JULY_2025);
            assert_eq!(verdict.outcome.name(), "could_not_check", "{field} byte {place}: {verdict}");
            tried += 1;
        }
    }
    eprintln!("{tried} bytes of collateral changed one by one");
}

#[test]
fn collateral_of_another_platform_is_named() {
    let (Some((quote, own)), Some((other, others)), Some((_, sgx))) =
        (vector("tdx_quote"), vector("tdx_quote_outdated"), vector("sgx_quote"))
    else {
        return;
    };
    assert!(at(intel(), &quote, &own, JULY_2025).is_valid());
    assert_code(&at(intel(), &quote, &others, MARCH_2026), "could_not_check", "collateral_of_another");
    // The other platform's certificate is younger than this collateral.
    assert_code(&at(intel(), &other, &own, JULY_2025), "invalid", "platform_certificate");
    assert_code(&at(intel(), &quote, &sgx, JULY_2025), "could_not_check", "collateral_of_another");
    let dev = common::root().collateral(JULY_2025).unwrap();
    assert_code(&at(intel(), &quote, &dev, JULY_2025), "could_not_check", "collateral_forged");
}

#[test]
fn an_intel_quote_is_refused_under_a_development_root() {
    let Some((quote, collateral)) = vector("tdx_quote") else { return };
    let development = Policy::servers(common::root().trust_root().unwrap());
    let verdict = at(development, &quote, &collateral, JULY_2025);
    assert_code(&verdict, "invalid", "wrong_root");
    assert!(verdict.to_string().contains("Intel SGX Root CA"), "{verdict}");
}

#[test]
fn sgx_quotes_are_told_apart() {
    let Some((quote, collateral)) = vector("sgx_quote") else { return };
    let verdict = at(intel(), &quote, &collateral, JULY_2025);
    assert_code(&verdict, "invalid", "malformed");
    // The library under it does find it genuine: what is refused here is its kind.
    let json: dcap_qvl::QuoteCollateralV3 = serde_json::from_str(&collateral.to_json()).unwrap();
    let report = dcap_qvl::verify::verify(&quote, &json, JULY_2025).unwrap();
    assert_eq!(report.status, "ConfigurationAndSWHardeningNeeded");
}

#[test]
fn quotes_without_collateral_could_not_be_checked() {
    let Some(path) = vectors() else { return };
    let empty = tempfile::tempdir().unwrap();
    let directory = Directory::new(empty.path());
    for name in ["tdx-quote.hex", "quote-from-tappd.hex"] {
        let quote = Quote::from_file_bytes(&std::fs::read(path.join(name)).unwrap()).unwrap();
        let verdict = Verifier::new(intel()).verify_quote(&quote, &directory, &Expect::Unbound, JULY_2025);
        assert_code(&verdict, "could_not_check", "collateral_missing");
        assert!(verdict.quote.is_some() && verdict.collateral.is_none() && verdict.guest.is_none());
    }
}

#[test]
fn a_directory_serves_what_was_stored() {
    let Some((quote, collateral)) = vector("tdx_quote") else { return };
    let place = tempfile::tempdir().unwrap();
    let directory = Directory::new(place.path().join("cache"));
    let key = Quote::parse(&quote).unwrap().collateral_key().unwrap();
    assert_eq!(key.to_string(), "b0c06f000000-platform");
    assert_eq!(key.to_string().parse::<CollateralKey>().unwrap(), key);
    assert!(matches!(directory.collateral(key), Err(CollateralError::Missing { .. })));
    directory.store(key, &collateral).unwrap();
    let found = directory.collateral(key).unwrap();
    assert_eq!((found.digest(), found.origin()), (collateral.digest(), Origin::Directory));
    let verdict = Verifier::new(intel()).verify(&quote, &directory, &Expect::Unbound, JULY_2025);
    assert!(verdict.is_valid(), "{verdict}");
    std::fs::write(directory.file(key), "{}").unwrap();
    let verdict = Verifier::new(intel()).verify(&quote, &directory, &Expect::Unbound, JULY_2025);
    assert_code(&verdict, "could_not_check", "collateral_malformed");
}

#[test]
fn truncation_anywhere_is_refused() {
    let Some((quote, _)) = vector("tdx_quote") else { return };
    let end = Quote::parse(&quote).unwrap().bytes().len();
    for length in 0..end {
        assert!(matches!(Quote::parse(&quote[..length]), Err(QuoteError::Truncated { .. })), "{length} bytes");
    }
    let digest = Quote::parse(&quote).unwrap().digest();
    assert_eq!(Quote::parse(&quote[..end]).unwrap().digest(), digest, "padding does not name a quote");
}

/// A sample inside the published package of the verification library, found where cargo keeps it.
fn library_sample(name: &str) -> Option<(Vec<u8>, Collateral)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect(&said);
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "dcap-qvl").unwrap();
    let sample = std::path::Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().join("sample");
    let Ok(quote) = std::fs::read(sample.join(name)) else {
        eprintln!("SKIPPED: the package of dcap-qvl has no sample {name}");
        return None;
    };
    let json = std::fs::read(sample.join(format!("{name}_collateral.json"))).unwrap();
    Some((quote, Collateral::from_json(&json, Origin::Inline).unwrap()))
}
