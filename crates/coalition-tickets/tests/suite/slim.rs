//! The slim form of a quote: half the bytes, the same quote.

use std::sync::Arc;

use coalition_attest::{Collateral, DevelopmentRoot, Origin, Quote, QuoteSource, SlimError};
use coalition_tickets::{Presentation, Tdx, TdxTicket, TicketValidator};
use proptest::prelude::*;

use crate::common::{NOW, bearer, challenges, code, collateral, guest, policy, resources};

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
fn a_slim_quote_is_restored_byte_for_byte() {
    let quote = Quote::parse(&guest().quote(&[5; 64]).unwrap()).unwrap();
    let slim = quote.to_slim().unwrap();
    let (restored, _) = Quote::from_slim(&slim, &collateral()).unwrap();
    assert_eq!((&restored, restored.digest()), (&quote, quote.digest()));
    assert!(slim.len() * 3 < quote.bytes().len() * 2, "{} of {}", slim.len(), quote.bytes().len());
}

#[test]
fn intels_quotes_have_a_slim_form_that_fits_a_discovery_entry() {
    let vectors = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/dcap");
    for name in ["tdx_quote", "tdx_quote_outdated"] {
        let Ok(bytes) = std::fs::read(vectors.join(name)) else { return };
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
    fn any_edit_of_a_slim_quote_gives_no_other_quote_of_the_same_claims(at in 0usize..2_000, to in any::<u8>()) {
        let quote = Quote::parse(&guest().quote(&[5; 64]).unwrap()).unwrap();
        let mut slim = quote.to_slim().unwrap();
        let at = at % slim.len();
        slim[at] = to;
        if let Ok((restored, _)) = Quote::from_slim(&slim, &collateral()) {
            prop_assert_eq!(restored.to_slim().unwrap(), slim);
        }
    }
}
