//! Attestation tickets: the true one, and every other.

use coalition_attest::dev::{CollateralOptions, GuestOptions};
use coalition_attest::{DevelopmentRoot, Evidence, Measurements, Nonce, Policy, TrustRoot};
use coalition_tickets::{Bearer, Door, Presentation, Refused, Resources, Shown, Tdx, TdxTicket, TicketValidator};

use crate::common::{
    MRTD, NOW, attested, attested_by, bearer, challenges, code, collateral, enforced, guest, id, policy, resources,
    root, trust_root,
};

fn validator() -> TicketValidator {
    TicketValidator::new().require_ticket(Tdx::under(policy()))
}

#[test]
fn a_true_quote_of_this_peer_is_admitted_until_its_nonce_is_too_old() {
    let admission = enforced(&validator());
    let shown = attested(&bearer());
    assert_eq!(admission.judge(&bearer(), &shown, NOW), Ok(NOW + 61));
    assert_eq!(admission.judge(&bearer(), &shown, NOW + 60), Ok(NOW + 61));
    assert_eq!(code(admission.judge(&bearer(), &shown, NOW + 61)), "too_old");
}

#[test]
fn a_true_quote_of_another_peer_is_refused_and_says_what_differs() {
    let admission = enforced(&validator());
    let thief = Bearer { peer: [4; 32], ..bearer() };
    // Shown as it is, the nonce already is not the thief's; a policy without an age looks at the binding itself.
    assert_eq!(code(admission.judge(&thief, &attested(&bearer()), NOW)), "nonce");
    let ageless = TicketValidator::new().require_ticket(Tdx::under(Policy::servers(trust_root())).require_mrtd(MRTD));
    let refused = enforced(&ageless).judge(&thief, &attested(&bearer()), NOW).unwrap_err();
    assert_eq!(refused.code(), "report_data");
    assert!(refused.to_string().contains("public key"), "{refused}");
    // With the thief's own challenge around somebody else's quote, the quote gives it away.
    let nonce = challenges().draw(&thief, NOW);
    let Shown::Tdx(bytes) = attested(&bearer()).tickets()[0].clone() else { panic!("an attestation") };
    let stolen = TdxTicket { nonce, ..TdxTicket::from_bytes(&bytes).unwrap() };
    let shown = Presentation::empty().with_tdx(&stolen).unwrap();
    assert_eq!(code(admission.judge(&thief, &shown, NOW)), "report_data");
}

#[test]
fn a_ticket_of_another_network_or_door_is_refused() {
    let ageless = TicketValidator::new().require_ticket(Tdx::under(Policy::servers(trust_root())));
    let admission = enforced(&ageless);
    let shown = attested(&bearer());
    assert!(admission.judge(&bearer(), &shown, NOW).is_ok());
    for (elsewhere, part) in [
        (Bearer { network: id(8), ..bearer() }, "purpose or network"),
        (Bearer { audience: id(8), ..bearer() }, "config hash"),
    ] {
        let refused = admission.judge(&elsewhere, &shown, NOW).unwrap_err();
        assert_eq!(refused.code(), "report_data");
        assert!(refused.to_string().contains(part), "{refused}");
    }
}

#[test]
fn a_development_quote_under_intels_policy_and_the_reverse_are_refused() {
    let intel = TicketValidator::new().require_ticket(Tdx::new().require_mrtd(MRTD));
    assert_eq!(code(enforced(&intel).judge(&bearer(), &attested(&bearer()), NOW)), "wrong_root");

    let other = DevelopmentRoot::generate().unwrap();
    let shown =
        attested_by(&other.guest(Measurements::of_mrtd(MRTD)).unwrap(), &bearer(), challenges().draw(&bearer(), NOW));
    assert_eq!(code(enforced(&validator()).judge(&bearer(), &shown, NOW)), "wrong_root");

    // A quote that Intel signed, where a development root is named. It is of another's machine, so nothing else would do either.
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/dcap/tdx_quote");
    let Ok(quote) = std::fs::read(path) else { return };
    let evidence = Evidence { quote, collateral: Some(collateral()) }.to_bytes().unwrap();
    let ticket = TdxTicket::of_evidence(challenges().draw(&bearer(), NOW), evidence);
    let shown = Presentation::empty().with_tdx(&ticket).unwrap();
    assert_eq!(code(enforced(&validator()).judge(&bearer(), &shown, NOW)), "wrong_root");
}

#[test]
fn only_a_challenge_of_this_door_has_an_age() {
    let admission = enforced(&validator());
    let invented = Nonce { value: id(7), issued_s: NOW };
    assert_eq!(code(admission.judge(&bearer(), &attested_by(guest(), &bearer(), invented), NOW)), "nonce");
    // An old challenge said to be new.
    let postdated = Nonce { issued_s: NOW + 50, ..challenges().draw(&bearer(), NOW) };
    assert_eq!(code(admission.judge(&bearer(), &attested_by(guest(), &bearer(), postdated), NOW + 50)), "nonce");
    // One drawn ahead of its time, by a door whose clock was set back since.
    let early = challenges().draw(&bearer(), NOW + 9);
    assert_eq!(code(admission.judge(&bearer(), &attested_by(guest(), &bearer(), early), NOW)), "nonce_in_future");
}

#[test]
fn another_measurement_and_another_tcb_are_refused() {
    let other = root().guest(Measurements::of_mrtd(coalition::Mrtd([5; 48]))).unwrap();
    let shown = attested_by(&other, &bearer(), challenges().draw(&bearer(), NOW));
    assert_eq!(code(enforced(&validator()).judge(&bearer(), &shown, NOW)), "register");

    let outdated = CollateralOptions { required_svn: 200, ..CollateralOptions::issued(NOW - 60) };
    let own = root().collateral_with(&outdated).unwrap();
    let admission = validator().enforce(&resources().with_collateral(std::sync::Arc::new(own))).unwrap();
    // What the door knows itself comes first: the bearer's older, kinder collateral does not count.
    assert!(admission.judge(&bearer(), &attested(&bearer()), NOW).is_err());
}

#[test]
fn a_guest_open_to_its_host_and_collateral_of_another_root_are_refused() {
    let admission = enforced(&validator());
    let open = root().guest_with(Measurements::of_mrtd(MRTD), GuestOptions::debug()).unwrap();
    let shown = attested_by(&open, &bearer(), challenges().draw(&bearer(), NOW));
    assert_eq!(code(admission.judge(&bearer(), &shown, NOW)), "debug");

    let theirs = DevelopmentRoot::generate().unwrap().collateral(NOW).unwrap();
    let ticket = TdxTicket::quote(guest(), Some(theirs), &bearer(), challenges().draw(&bearer(), NOW)).unwrap();
    let shown = Presentation::empty().with_tdx(&ticket).unwrap();
    assert_eq!(code(admission.judge(&bearer(), &shown, NOW)), "collateral_forged");
    let bare = TdxTicket::quote(guest(), None, &bearer(), challenges().draw(&bearer(), NOW)).unwrap();
    let shown = Presentation::empty().with_tdx(&bare).unwrap();
    assert_eq!(code(admission.judge(&bearer(), &shown, NOW)), "collateral_missing");
    let knowing = validator().enforce(&resources().with_collateral(std::sync::Arc::new(collateral()))).unwrap();
    assert!(knowing.judge(&bearer(), &shown, NOW).is_ok(), "the door has it itself");
}

#[test]
fn expired_collateral_ends_admission() {
    let lasting = TicketValidator::new().require_ticket(Tdx::under(Policy::servers(trust_root())));
    let admission = enforced(&lasting);
    let until = admission.judge(&bearer(), &attested(&bearer()), NOW).unwrap();
    assert!(until > NOW + 86_400 && until < NOW + 60 * 86_400, "{until}");
    assert_eq!(code(admission.judge(&bearer(), &attested(&bearer()), until)), "collateral_expired");
}

#[test]
fn one_good_ticket_among_bad_ones_is_enough() {
    let admission = enforced(&validator());
    let thief = Bearer { peer: [4; 32], ..bearer() };
    let (bad, good) = (attested(&thief), attested(&bearer()));
    let tickets = [bad.tickets()[0].clone(), good.tickets()[0].clone(), bad.tickets()[0].clone()];
    let both = tickets.iter().fold(Presentation::empty(), |shown, ticket| {
        let Shown::Tdx(bytes) = ticket else { panic!("an attestation") };
        shown.with_tdx(&TdxTicket::from_bytes(bytes).unwrap()).unwrap()
    });
    assert_eq!(admission.judge(&bearer(), &both, NOW), Ok(NOW + 61));
    assert_eq!(code(admission.judge(&bearer(), &Presentation::empty(), NOW)), "no_ticket");
}

#[test]
fn every_changed_byte_of_a_ticket_is_refused() {
    let admission = enforced(&validator());
    let whole = attested(&bearer()).to_bytes().unwrap();
    // The quote and all that precedes it; collateral behind it is public and judged by its own signatures.
    let end = 2 + 5 + 42 + 5 + 2_000;
    for at in (0..end).step_by(7).chain(0..64) {
        let mut changed = whole.clone();
        changed[at] ^= 0x20;
        let admitted =
            Presentation::from_bytes(&changed).is_ok_and(|shown| admission.judge(&bearer(), &shown, NOW).is_ok());
        assert!(!admitted, "byte {at}");
    }
}

#[test]
fn a_door_remembers_until_the_ticket_ends_and_no_longer() {
    let door = Door::new((id(1), id(2)), &validator(), Resources::new().with_policy(policy()), [7; 32]).unwrap();
    let peer = [3; 32];
    assert!(!door.is_admitted(peer, NOW));
    let shown = attested_by(guest(), &bearer(), door.challenge(peer, NOW)).to_bytes().unwrap();
    assert_eq!(door.present([4; 32], &shown, NOW), Err(Refused::Nonce));
    assert_eq!(door.present(peer, &shown, NOW), Ok(NOW + 61));
    assert!(door.is_admitted(peer, NOW + 60) && !door.is_admitted([4; 32], NOW));
    assert!(!door.is_admitted(peer, NOW + 61), "what was shown has ended");
    assert_eq!(code(door.present(peer, &shown, NOW + 61)), "too_old");
    let again = attested_by(guest(), &bearer(), door.challenge(peer, NOW + 61)).to_bytes().unwrap();
    assert_eq!(door.present(peer, &again, NOW + 61), Ok(NOW + 122));
    // A door that starts again knows none of its challenges, nor whom it let in.
    let restarted = Door::new((id(1), id(2)), &validator(), Resources::new().with_policy(policy()), [8; 32]).unwrap();
    assert_eq!(restarted.present(peer, &again, NOW + 61), Err(Refused::Nonce));
    assert!(!restarted.is_admitted(peer, NOW + 61));
}

#[test]
fn a_policy_names_one_root_only() {
    let TrustRoot::Development(_) = trust_root() else { panic!("a development root") };
    assert_ne!(Tdx::new().rule(), Tdx::under(Policy::servers(trust_root())).rule());
}
