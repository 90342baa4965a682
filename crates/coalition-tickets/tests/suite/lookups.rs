//! Demands that the verifier looks up: seats, reputation, settlements, a module's own rules.

use std::sync::Arc;

use coalition::tickets::AclRule;
use coalition::{
    AclComposition, CommitteeContent, ContentParams, EvidencePointer, ModuleConfig, ModuleKind, PublishedConfig,
    Roster, RosterMember, UniqueId,
};
use coalition_tickets::sources::{Card, Committees, ENDLESS_FOR_S, Ledger, Settlement};
use coalition_tickets::{
    Bearer, ComputeModule, Door, MarketSettlement, Presentation, ReputationFloor, Resources, TicketValidator,
    Unresolved,
};

use crate::common::{NOW, bearer, charter, code, id, issuer_key};

#[test]
fn a_reputation_floor_refuses_who_is_below_and_who_has_no_card() {
    let ledger = Arc::new(Ledger::default());
    let validator = TicketValidator::new().require_ticket(ReputationFloor::from(id(6), 0.60));
    assert_eq!(validator.acl_rules(), [AclRule::Reputation { organism: id(6), floor_ppm: 600_000 }]);
    let admission = validator.enforce(&Resources::new().with_reputation(Arc::clone(&ledger) as _)).unwrap();
    let judge = |now| admission.judge(&bearer(), &Presentation::empty(), now);
    assert_eq!(code(judge(NOW)), "no_card");
    let card = |score_ppm| Card { score_ppm, until_s: NOW + 100 };
    ledger.set_card(id(6), bearer().peer, card(599_999));
    assert_eq!(code(judge(NOW)), "reputation");
    ledger.set_card(id(6), bearer().peer, card(600_000));
    assert_eq!(judge(NOW), Ok(NOW + 100));
    // A dead reputation organism is no reputation.
    assert_eq!(code(judge(NOW + 100)), "no_card");
    ledger.set_card(id(7), [8; 32], card(1_000_000));
    let other = Bearer { peer: [8; 32], ..bearer() };
    assert_eq!(code(admission.judge(&other, &Presentation::empty(), NOW)), "no_card", "a card of another organism");
    let no_floor = TicketValidator::new().require_ticket(ReputationFloor::ppm(id(9), 0));
    let admission = no_floor.enforce(&Resources::new().with_reputation(ledger)).unwrap();
    assert_eq!(code(admission.judge(&bearer(), &Presentation::empty(), NOW)), "no_card", "whatever the floor");
}

#[test]
fn floors_round_and_stay_in_range() {
    let floor = |share| match ReputationFloor::from(id(1), share).rule() {
        AclRule::Reputation { floor_ppm, .. } => floor_ppm,
        other => panic!("{other:?}"),
    };
    assert_eq!([floor(0.55), floor(0.0), floor(1.0)], [550_000, 0, 1_000_000]);
    assert_eq!([floor(-1.0), floor(7.0), floor(f64::NAN), floor(f64::INFINITY)], [0, 1_000_000, 1_000_000, 1_000_000]);
}

#[test]
fn a_settlement_must_be_this_peers_at_this_market_and_current() {
    let ledger = Arc::new(Ledger::default());
    let admission = TicketValidator::new()
        .require_ticket(MarketSettlement::from(id(6)))
        .enforce(&Resources::new().with_settlements(Arc::clone(&ledger) as _))
        .unwrap();
    let pointer = EvidencePointer { organism: id(6), index: 4, digest: id(7) };
    ledger.set_settlement(&pointer, Settlement { peer: bearer().peer, until_s: NOW + 50 });
    let judge = |bearer: &Bearer, pointer: EvidencePointer, now| {
        admission.judge(bearer, &Presentation::empty().with_settlement(pointer), now)
    };
    assert_eq!(judge(&bearer(), pointer, NOW), Ok(NOW + 50));
    assert_eq!(code(judge(&bearer(), pointer, NOW + 50)), "no_settlement");
    assert_eq!(code(judge(&Bearer { peer: [8; 32], ..bearer() }, pointer, NOW)), "no_settlement");
    for wrong in [
        EvidencePointer { index: 5, ..pointer },
        EvidencePointer { digest: id(8), ..pointer },
        EvidencePointer { organism: id(8), ..pointer },
    ] {
        assert_eq!(code(judge(&bearer(), wrong, NOW)), "no_settlement");
    }
    let elsewhere = EvidencePointer { organism: id(8), ..pointer };
    ledger.set_settlement(&elsewhere, Settlement { peer: bearer().peer, until_s: NOW + 50 });
    assert_eq!(code(judge(&bearer(), elsewhere, NOW)), "no_settlement", "another market's settlement");
    assert_eq!(code(admission.judge(&bearer(), &Presentation::empty(), NOW)), "no_ticket");
}

fn roster(members: &[u8]) -> Roster {
    let member = |n: &u8| RosterMember {
        name: format!("m{n}"),
        checkpoint_key: issuer_key(*n).verifying_key().to_bytes(),
        consensus_key: issuer_key(n + 1).verifying_key().to_bytes(),
        peer_id: seat(*n),
    };
    Roster::new(members.iter().map(member).collect()).unwrap()
}

/// The key of a member of [`roster`].
fn seat(n: u8) -> [u8; 32] {
    issuer_key(n + 2).verifying_key().to_bytes()
}

fn market(rules: &[AclRule]) -> (PublishedConfig, UniqueId) {
    let roster = roster(&[10, 20]);
    let committee =
        CommitteeContent { service: "compute.v1".into(), roster, params: Vec::new(), predecessor: None }.to_bytes();
    let content = ContentParams::new(&committee);
    let module = ModuleConfig { name: "compute", content, acl: AclComposition::new(rules) };
    let config = PublishedConfig::builder("market").module_config(ModuleKind::Compute, &module).build().unwrap();
    let module = config.module(ModuleKind::Compute).unwrap().id;
    (config, module)
}

#[test]
fn a_pin_admits_the_members_of_exactly_this_module() {
    let (config, module) = market(&[]);
    let resources = Resources::new().with_config(&config);
    let admission = TicketValidator::new().require_ticket(ComputeModule::pin(module)).enforce(&resources).unwrap();
    let member = Bearer { peer: seat(10), ..bearer() };
    assert_eq!(admission.judge(&member, &Presentation::empty(), NOW), Ok(NOW + ENDLESS_FOR_S), "looked at again");
    assert_eq!(code(admission.judge(&bearer(), &Presentation::empty(), NOW)), "not_seated");
    // A module whose rules changed is another module, and a pin does not follow.
    let (_, rotated) = market(&[AclRule::Issuer(id(3))]);
    let unknown = TicketValidator::new().require_ticket(ComputeModule::pin(rotated)).enforce(&resources).unwrap_err();
    assert_eq!(unknown, Unresolved::Committee(rotated));
}

#[test]
fn a_modules_own_rules_are_the_ones_its_config_publishes() {
    let charter = charter(&[1]);
    let coalition = crate::common::coalition("ours", &charter);
    let root = coalition.ticket_issuer_root().unwrap();
    let (config, module) = market(&[AclRule::Issuer(root)]);
    let validator = TicketValidator::new().verify_peer(ComputeModule::requester_acl(module));
    let known = Resources::new().with_issuer(&coalition, charter).unwrap();
    assert_eq!(validator.enforce(&known).unwrap_err(), Unresolved::Organism(module));
    let admission = validator.enforce(&known.with_config(&config)).unwrap();
    assert_eq!(code(admission.judge(&bearer(), &Presentation::empty(), NOW)), "no_ticket");
    let ticket = crate::common::issuer("ours", &[1]).issue(&bearer(), NOW, 60).unwrap();
    assert_eq!(admission.judge(&bearer(), &Presentation::empty().with_issued(ticket), NOW), Ok(NOW + 60));
    let (open, module) = market(&[]);
    let admission = TicketValidator::new()
        .verify_peer(ComputeModule::requester_acl(module))
        .enforce(&Resources::new().with_config(&open))
        .unwrap();
    assert_eq!(admission.judge(&bearer(), &Presentation::empty(), NOW), Ok(u64::MAX));
}

/// The door of the market's committee, for members with a ticket, and what each of them shows.
fn guarded(committees: &Arc<Committees>, config: &PublishedConfig, module: UniqueId) -> Door {
    let ours = crate::common::coalition("ours", &charter(&[1]));
    let validator = TicketValidator::new()
        .require_ticket(ComputeModule::pin(module))
        .recognise_issuer(ours.ticket_issuer_root().unwrap());
    let resources = Resources::new().with_config(config).with_seats(Arc::clone(committees) as _);
    let resources = resources.with_issuer(&ours, charter(&[1])).unwrap();
    Door::new((id(1), id(2)), &validator, resources, [5; 32]).unwrap()
}

fn ticketed(door: &Door, peer: [u8; 32]) -> Vec<u8> {
    let ticket = crate::common::issuer("ours", &[1]).issue(&door.bearer(peer), NOW, 3_600).unwrap();
    Presentation::empty().with_issued(ticket).to_bytes().unwrap()
}

#[test]
fn a_seat_that_changed_hands_counts_no_more_at_the_next_write() {
    let (config, module) = market(&[]);
    let committees = Arc::new(Committees::of_config(&config));
    let door = guarded(&committees, &config, module);
    let show = |peer| door.present(peer, &ticketed(&door, peer), NOW);
    let (leaving, staying, coming) = (seat(10), seat(20), seat(30));
    assert_eq!((show(leaving), show(staying)), (Ok(NOW + ENDLESS_FOR_S), Ok(NOW + ENDLESS_FOR_S)));
    assert_eq!(code(show(coming)), "not_seated");
    assert_eq!([leaving, staying, coming].map(|peer| door.is_admitted(peer, NOW)), [true, true, false]);

    committees.seat(module, &roster(&[20, 30]));
    assert_eq!([leaving, staying, coming].map(|peer| door.is_admitted(peer, NOW)), [false; 3], "all show again");
    assert_eq!(code(show(leaving)), "not_seated");
    assert_eq!((show(staying), show(coming)), (Ok(NOW + ENDLESS_FOR_S), Ok(NOW + ENDLESS_FOR_S)));
    assert_eq!([leaving, staying, coming].map(|peer| door.is_admitted(peer, NOW)), [false, true, true]);

    committees.dissolve(module);
    assert_eq!(code(show(staying)), "not_seated");
    assert!(!door.is_admitted(staying, NOW));
}

#[test]
fn a_seat_without_an_end_is_not_remembered_for_ever() {
    let (config, module) = market(&[]);
    let door = guarded(&Arc::new(Committees::of_config(&config)), &config, module);
    let peer = seat(10);
    assert!(!door.is_admitted(peer, NOW), "its ticket has to be shown");
    door.present(peer, &ticketed(&door, peer), NOW).unwrap();
    assert!(door.is_admitted(peer, NOW + ENDLESS_FOR_S - 1));
    assert!(!door.is_admitted(peer, NOW + ENDLESS_FOR_S));
    // Where nothing has to be shown, nothing is remembered that could outlast a handover.
    let committees = Arc::new(Committees::of_config(&config));
    let resources = Resources::new().with_config(&config).with_seats(Arc::clone(&committees) as _);
    let pinned = TicketValidator::new().require_ticket(ComputeModule::pin(module));
    let door = Door::new((id(1), id(2)), &pinned, resources, [5; 32]).unwrap();
    door.present(peer, &Presentation::empty().to_bytes().unwrap(), NOW).unwrap();
    assert!(door.is_admitted(peer, NOW) && !door.is_admitted(seat(30), NOW));
    committees.seat(module, &roster(&[30]));
    assert!(!door.is_admitted(peer, NOW) && door.is_admitted(seat(30), NOW));
    // An answer without an end from any other source is bounded likewise.
    let ledger = Arc::new(Ledger::default());
    ledger.set_card(id(6), peer, Card { score_ppm: 1, until_s: u64::MAX });
    let floor = TicketValidator::new().require_ticket(ReputationFloor::ppm(id(6), 1));
    let resources = Resources::new().with_reputation(Arc::clone(&ledger) as _);
    let door = Door::new((id(1), id(2)), &floor, resources, [5; 32]).unwrap();
    let shown = Presentation::empty().to_bytes().unwrap();
    assert_eq!(door.present(peer, &shown, NOW), Ok(NOW + ENDLESS_FOR_S));
    ledger.set_card(id(6), peer, Card { score_ppm: 0, until_s: u64::MAX });
    assert!(!door.is_admitted(peer, NOW + ENDLESS_FOR_S));
}
