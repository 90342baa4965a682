//! Compositions: the specification's snippets, their fingerprints, and the laws of *and* and *or*.

use std::sync::Arc;

use coalition::tickets::{AclComposition, AclRule};
use coalition::{Mrtd, UniqueId};
use coalition_attest::{BindingRule, Measurements, Policy, Register, TrustRoot};
use coalition_tickets::sources::{Card, Ledger};
use coalition_tickets::{
    AdmitsMeasurements, And, ComputeModule, Demand, Or, Presentation, ReputationFloor, Resources, Tdx, TicketValidator,
    Unresolved,
};
use proptest::prelude::*;

use crate::common::{MRTD, NOW, attested, bearer, charter, coalition, code, id, issuer, policy, resources, trust_root};

/// Chapters 23 and 28.
fn bridge_ticket_validator(compute: UniqueId) -> TicketValidator {
    TicketValidator::new()
        .require_ticket(Tdx::new().require_mrtd(MRTD))
        .require_ticket(ComputeModule::pin(compute))
        .require_ticket(ReputationFloor::from(id(6), 0.60))
        .verify_peer(ComputeModule::requester_acl(compute))
}

#[test]
fn the_snippets_are_access_rules_of_a_config() {
    let rules = bridge_ticket_validator(id(5)).acl_rules();
    assert_eq!(rules[0], AclRule::Tdx { root: TrustRoot::Intel.id(), mrtd: MRTD });
    assert_eq!(rules[2], AclRule::Reputation { organism: id(6), floor_ppm: 600_000 });
    assert!(matches!((rules[1], rules[3]), (AclRule::Policy(a), AclRule::Policy(b)) if a != b));
    assert_eq!(bridge_ticket_validator(id(5)).fingerprint(), AclComposition::new(&rules).fingerprint());
    assert_ne!(bridge_ticket_validator(id(5)).fingerprint(), bridge_ticket_validator(id(7)).fingerprint());
    assert_eq!(TicketValidator::new().fingerprint(), AclComposition::OPEN.fingerprint());
    // Chapter 31.
    let (old, new) = (Measurements::of_mrtd(Mrtd([1; 48])), Measurements::of_mrtd(Mrtd([2; 48])));
    let rotation = TicketValidator::compose(AclComposition::new(&rules[2..3]), AdmitsMeasurements::in_set(&[old, new]));
    assert_eq!(rotation.acl_rules()[0], rules[2]);
    assert_eq!(AdmitsMeasurements::equal(old).policy().registers().len(), Register::ALL.len());
    // Chapter 58.
    let ours = coalition("ours", &charter(&[1]));
    let validator = TicketValidator::new()
        .recognise_issuer(ours.ticket_issuer_root().unwrap())
        .require_ticket(Tdx::new().require_mrtd(MRTD));
    assert_eq!(validator.acl_rules()[0], AclRule::Issuer(ours.ticket_issuer_root().unwrap()));
}

#[test]
fn what_a_config_publishes_and_what_is_declared_enforce_the_same() {
    let either = Or::of([Tdx::under(policy())]).or(AclRule::Issuer(id(9)));
    let declared = TicketValidator::new().require_ticket(either);
    let ours = coalition("ours", &charter(&[1]));
    let either = Or::of([Tdx::under(policy())]).or(AclRule::Issuer(ours.ticket_issuer_root().unwrap()));
    assert_ne!(declared.fingerprint(), TicketValidator::new().require_ticket(either.clone()).fingerprint());
    let rules = TicketValidator::new().require_ticket(either.clone()).acl_rules();
    let published = TicketValidator::from(AclComposition::new(&rules));
    let known = resources().with_issuer(&ours, charter(&[1])).unwrap();
    let AclRule::Policy(digest) = rules[0] else { panic!("{rules:?}") };
    assert_eq!(published.enforce(&known).unwrap_err(), Unresolved::Policy(digest), "the digest alone says nothing");
    let admission = published.enforce(&known.declare(either)).unwrap();
    assert_eq!(admission.fingerprint(), AclComposition::new(&rules).fingerprint());
    assert_eq!(admission.judge(&bearer(), &attested(&bearer()), NOW), Ok(NOW + 61));
    let ticket = issuer("ours", &[1]).issue(&bearer(), NOW, 600).unwrap();
    let both = attested(&bearer()).with_issued(ticket.clone());
    assert_eq!(admission.judge(&bearer(), &both, NOW), Ok(NOW + 600), "the way in that lasts longest");
    assert_eq!(admission.judge(&bearer(), &Presentation::empty().with_issued(ticket), NOW), Ok(NOW + 600));
    let none = admission.judge(&bearer(), &Presentation::empty(), NOW).unwrap_err();
    assert_eq!(none.code(), "none_of");
    assert!(none.to_string().contains("no attestation was shown; no ticket of the issuer was shown"), "{none}");
}

#[test]
fn what_cannot_be_judged_is_not_enforced() {
    let enforce =
        |demand: Demand| TicketValidator::new().require_ticket(demand).enforce(&Resources::new()).unwrap_err();
    assert_eq!(enforce(AclRule::Policy(id(1)).into()), Unresolved::Policy(id(1)));
    assert_eq!(enforce(AclRule::Issuer(id(1)).into()), Unresolved::Issuer(id(1)));
    let development = AclRule::Tdx { root: trust_root().id(), mrtd: MRTD };
    assert_eq!(enforce(development.into()), Unresolved::Root(trust_root().id()));
    assert_eq!(enforce(ReputationFloor::ppm(id(1), 1)), Unresolved::Reputation(id(1)));
    assert_eq!(enforce(coalition_tickets::MarketSettlement::from(id(1))), Unresolved::Settlement(id(1)));
    assert_eq!(enforce(ComputeModule::pin(id(1))), Unresolved::Committee(id(1)));
    assert_eq!(enforce(ComputeModule::requester_acl(id(1))), Unresolved::Organism(id(1)));
    assert_eq!(enforce(Or::default().into()), Unresolved::NoAlternative);
    assert_eq!(enforce(AdmitsMeasurements::in_set(&[]).into()), Unresolved::NoAlternative);
    let unbound = Policy::servers(TrustRoot::Intel).binding(BindingRule::Unbound).unwrap();
    assert_eq!(enforce(Tdx::under(unbound.clone()).into()), Unresolved::Unbound(unbound.fingerprint()));
    let deep = (0..20).fold(Demand::from(Tdx::new()), |inner, _| Demand::Any(vec![inner]));
    assert_eq!(enforce(deep), Unresolved::TooDeep);
    // A policy with an age, where nobody draws challenges: enforceable, and it admits nobody.
    let lonely = TicketValidator::new().require_ticket(Tdx::under(policy()));
    let admission = lonely.enforce(&Resources::new()).unwrap();
    assert_eq!(code(admission.judge(&bearer(), &attested(&bearer()), NOW)), "nonce");
}

#[test]
fn a_rule_of_root_and_measurement_is_the_servers_policy() {
    let tdx = Tdx::under(Policy::servers(trust_root())).require_mrtd(MRTD);
    let rule = AclRule::Tdx { root: trust_root().id(), mrtd: MRTD };
    assert_eq!(tdx.rule(), rule);
    assert_eq!(tdx.clone().max_age_s(60).unwrap().rule(), policy().acl_rule());
    let set = [Mrtd([1; 48]).into(), Mrtd([2; 48]).into()];
    assert!(matches!(tdx.in_set(Register::Mrtd, &set).unwrap().rule(), AclRule::Policy(_)));
    let admission = TicketValidator::new().require_ticket(rule).enforce(&resources()).unwrap();
    assert!(admission.judge(&bearer(), &attested(&bearer()), NOW).is_ok());
}

#[test]
fn lists_inside_lists_are_one_list_and_alternatives_are_not() {
    let (a, b, c) = (AclRule::Issuer(id(1)), AclRule::Issuer(id(2)), AclRule::Issuer(id(3)));
    let flat = TicketValidator::from(AclComposition::new(&[a, b, c]));
    let nested = TicketValidator::new().require_ticket(And::of([a]).and(b)).require_ticket(c);
    assert_eq!(nested.fingerprint(), flat.fingerprint());
    let either = TicketValidator::new().require_ticket(Or::of([a, b]));
    assert_ne!(either.fingerprint(), TicketValidator::new().require_ticket(Or::of([b, a])).fingerprint());
    assert_ne!(either.fingerprint(), TicketValidator::new().require_ticket(a).require_ticket(b).fingerprint());
    assert_ne!(Demand::All(vec![a.into(), b.into()]).rule(), Demand::Any(vec![a.into(), b.into()]).rule());
}

/// A tree over four reputation organisms.
fn trees() -> impl Strategy<Value = Demand> {
    let leaf = (0u8..4, 0u32..=10).prop_map(|(n, floor)| ReputationFloor::ppm(id(n), floor * 100_000));
    leaf.prop_recursive(4, 24, 4, |inner| {
        let some = prop::collection::vec(inner, 1..4);
        prop_oneof![some.clone().prop_map(Demand::All), some.prop_map(Demand::Any)]
    })
}

/// The same judgement, written down naively.
fn naive(demand: &Demand, cards: &[Option<Card>; 4], now: u64) -> Option<u64> {
    match demand {
        Demand::All(all) => {
            all.iter().map(|demand| naive(demand, cards, now)).try_fold(u64::MAX, |m, u| u.map(|u| m.min(u)))
        }
        Demand::Any(any) => any.iter().filter_map(|demand| naive(demand, cards, now)).max(),
        Demand::Rule(AclRule::Reputation { organism, floor_ppm }) => {
            let card = cards[usize::from(organism.as_bytes()[0])]?;
            (card.until_s > now && card.score_ppm >= *floor_ppm).then_some(card.until_s)
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #[test]
    fn compositions_judge_as_their_words_say(
        tree in trees(),
        cards in prop::array::uniform4(prop::option::of((0u32..=10, 0u64..20))),
        now in 0u64..20,
    ) {
        let ledger = Arc::new(Ledger::default());
        let cards = cards.map(|card| card.map(|(score, until_s)| Card { score_ppm: score * 100_000, until_s }));
        for (n, card) in (0u8..).zip(&cards) {
            if let Some(card) = card {
                ledger.set_card(id(n), bearer().peer, *card);
            }
        }
        let validator = TicketValidator::new().require_ticket(tree.clone());
        let admission = validator.enforce(&Resources::new().with_reputation(ledger)).unwrap();
        let judged = admission.judge(&bearer(), &Presentation::empty(), now);
        prop_assert_eq!(judged.ok(), naive(&tree, &cards, now));
    }
}
