//! The slim form of a quote: half the bytes, the same quote.

use std::sync::Arc;

use coalition_attest::{
    Collateral, DevelopmentRoot, Expect, Origin, Policy, Quote, QuoteSource, SlimError, TrustRoot, Verifier,
};
use coalition_tickets::{Presentation, Tdx, TdxTicket, TicketValidator};
use proptest::prelude::*;

use crate::common::{MRTD, NOW, bearer, challenges, code, collateral, guest, policy, resources, trust_root};

fn shown() -> Presentation {
    let ticket = TdxTicket::quote_slim(guest(), &bearer(), challenges().draw(&bearer(), NOW)).unwrap();
    Presentation::empty().with_tdx(&ticket).unwrap()
}

#[test]
fn a_slim_ticket_is_judged_like_the_whole_one() {
    let validator = TicketValidator::new().require_ticket(Tdx::under(policy()));
    let knowing = validator.enforce(&resources().with_collateral(Arc::new(collateral()))).unwrap();
    assert_eq!(knowing.judge(&bearer(), &shown(), NOW), Ok(NOW + 61));
    let thief = coalition_tickets::Bearer { peer: [4; 32], ..bearer() };
    assert_eq!(code(knowing.judge(&thief, &shown(), NOW)), "nonce");
    // Without the collateral there is no quote, and with another root's there is none either.
    let unknowing = validator.enforce(&resources()).unwrap();
    assert_eq!(code(unknowing.judge(&bearer(), &shown(), NOW)), "malformed");
    let other = DevelopmentRoot::generate().unwrap().collateral(NOW).unwrap();
    let wrong = validator.enforce(&resources().with_collateral(Arc::new(other))).unwrap();
    assert!(wrong.judge(&bearer(), &shown(), NOW).is_err());
}

#[test]
fn a_slim_development_quote_is_refused_under_intels_root() {
    let intel = TicketValidator::new().require_ticket(Tdx::new().require_mrtd(MRTD));
    let knowing = intel.enforce(&resources().with_collateral(Arc::new(collateral()))).unwrap();
    assert_eq!(code(knowing.judge(&bearer(), &shown(), NOW)), "wrong_root");
    let quote = Quote::parse(&guest().quote(&[5; 64]).unwrap()).unwrap();
    let (restored, collateral) = Quote::from_slim(&quote.to_slim().unwrap(), &collateral()).unwrap();
    let expect = Expect::Exact { report_data: [5; 64], issued_s: None };
    let verdict = Verifier::new(Policy::servers(TrustRoot::Intel)).judge(&restored, &collateral, &expect, NOW);
    assert_eq!(verdict.outcome.code(), Some("wrong_root"));
}

#[test]
fn a_slim_quote_is_restored_byte_for_byte() {
    let quote = Quote::parse(&guest().quote(&[5; 64]).unwrap()).unwrap();
    let slim = quote.to_slim().unwrap();
    let (restored, _) = Quote::from_slim(&slim, &collateral()).unwrap();
    assert_eq!((&restored, restored.digest()), (&quote, quote.digest()));
    assert!(slim.len() * 3 < quote.bytes().len() * 2, "{} of {}", slim.len(), quote.bytes().len());
}

/// The directory of vectors of others, or none after saying so. One that is named has to be there.
#[allow(clippy::print_stderr)]
fn vectors() -> Option<std::path::PathBuf> {
    if let Some(named) = std::env::var_os("COALITION_VECTORS") {
        let path = std::path::PathBuf::from(named).join("dcap");
        assert!(path.is_dir(), "COALITION_VECTORS names no directory of vectors: {} is missing", path.display());
        return Some(path);
    }
    let beside = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/dcap");
    if !beside.is_dir() {
        eprintln!("SKIPPED: no vectors in {}; set COALITION_VECTORS to their directory", beside.display());
        return None;
    }
    Some(beside)
}

#[test]
fn intels_quotes_have_a_slim_form_that_fits_a_discovery_entry() {
    let Some(vectors) = vectors() else { return };
    for name in ["tdx_quote", "tdx_quote_outdated"] {
        let bytes = std::fs::read(vectors.join(name)).unwrap();
        let json = std::fs::read(vectors.join(format!("{name}_collateral.json"))).unwrap();
        let collateral = Collateral::from_json(&json, Origin::Inline).unwrap();
        let quote = Quote::parse(&bytes).unwrap();
        let slim = quote.to_slim().unwrap();
        assert!(slim.len() < 2_700, "{name}: {}", slim.len());
        assert_eq!(Quote::from_slim(&slim, &collateral).unwrap().0, quote);
    }
}

#[test]
fn what_is_no_slim_quote_is_named() {
    let read = |bytes: &[u8]| Quote::from_slim(bytes, &collateral()).unwrap_err();
    assert!(matches!(read(&[0; 3]), SlimError::Malformed("length")));
    assert!(matches!(read(&[4, 0, 0, 0]), SlimError::Malformed("flags")));
    assert!(matches!(read(&[0, 0, 0, 9]), SlimError::Malformed("head")));
    assert!(matches!(read(&[0, 0, 0, 0, 1]), SlimError::Certificate(_)));
    assert!(matches!(read(&vec![0; 4_097]), SlimError::TooLong { found: 4_097 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn an_edited_slim_quote_is_the_same_one_or_not_valid(at in 0usize..5_000, to in any::<u8>()) {
        let report_data = [5; 64];
        let quote = Quote::parse(&guest().quote(&report_data).unwrap()).unwrap();
        let mut slim = quote.to_slim().unwrap();
        let at = at % slim.len();
        let is_same = slim[at] == to;
        slim[at] = to;
        let verifier = Verifier::new(Policy::servers(trust_root()).require_mrtd(MRTD));
        let expect = Expect::Exact { report_data, issued_s: None };
        match Quote::from_slim(&slim, &collateral()) {
            Ok((restored, collateral)) => {
                let verdict = verifier.judge(&restored, &collateral, &expect, NOW);
                prop_assert_eq!(restored == quote, is_same, "other bytes are another quote");
                prop_assert_eq!(verdict.is_valid(), is_same, "byte {}: {}", at, verdict);
                let claims = |quote: &Quote| (quote.measurements(), quote.report_data());
                prop_assert!(!verdict.is_valid() || claims(&restored) == claims(&quote));
            }
            Err(error) => prop_assert!(!is_same, "byte {}: {}", at, error),
        }
    }
}
