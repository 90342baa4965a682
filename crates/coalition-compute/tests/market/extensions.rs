//! Extensions, usage reports and inventories.

use coalition::RequestId;
use coalition_compute::types::SUSPICIOUS_PERMILLE;
use coalition_compute::*;

use crate::common::*;

/// A served one-minute grant of provider 1 to requester 9.
fn served() -> (Sim, RequestId) {
    let mut sim = Sim::new();
    sim.ok(post(1, 1, card(1, 100, vec![offer("local", "home-01", 4, "0.04")])));
    let asked = request(9, 1, 160);
    let id = asked.request_id;
    sim.ok(submit(asked, 9));
    sim.ok(serve(id, 1));
    (sim, id)
}

#[test]
fn an_accepted_extension_moves_everything_that_follows_the_end() {
    let (mut sim, id) = served();
    sim.pass(30_000);
    sim.ok(extend(id, 9, 1, 120));
    let before = sim.grant(id).grant.clone();
    assert_eq!((before.valid_to.0, before.valid_to_ms), (160, START_MS + 60_000), "asking changes nothing");
    sim.pass(1_000);
    sim.ok(accept(&sim, id, 1, 1, 120));
    let grant = sim.grant(id).grant.clone();
    assert_eq!((grant.duration_sec, grant.valid_to.0, grant.valid_to_ms), (180, 280, START_MS + 180_000));
    assert_eq!((grant.rate, grant.cpu_millicores), (before.rate, before.cpu_millicores));
    assert_eq!(grant.full_cost().unwrap().0, 2_000);
    let record = sim.view.grant(&id).unwrap();
    assert_eq!((record.grant.clone(), record.extras.extended_sec, record.extras.answered.len()), (grant, 120, 1));
    // Past the first end and its grace it still holds its capacity; past the new one it does not.
    sim.pass(100_000);
    assert!(sim.grant(id).is_live());
    assert_eq!(sim.machine.state().held(&provider_id(1), &"local".parse().unwrap()).instances, 1);
    // Usage of the extra time is logged like any other, and a second extension can be asked for.
    sim.ok(log(id, 1, 1, (100, 220), None));
    sim.ok(extend(id, 9, 2, 3_420));
    sim.ok(accept(&sim, id, 1, 2, 3_420));
    sim.pass(3_600_000 - 131_000 + 10_000);
    assert_eq!(sim.grant(id).stage, GrantStage::Ended(GrantEnd::NoFinalLog));
    sim.audit();
}

#[test]
fn what_is_not_answered_in_time_lapses_and_what_is_declined_changes_nothing() {
    let (mut sim, id) = served();
    sim.ok(extend(id, 9, 1, 60));
    sim.ok(decline(id, 1, 1));
    assert_eq!(sim.grant(id).grant.valid_to_ms, START_MS + 60_000);
    sim.ok(extend(id, 9, 2, 60));
    sim.pass(60_000);
    let late = accept(&sim, id, 1, 2, 60);
    assert_eq!(sim.refused(&late), "deadline_passed");
    assert_eq!(sim.refused(&extend(id, 9, 3, 60)), "deadline_passed");
    sim.pass(10_000);
    assert_eq!(sim.grant(id).stage, GrantStage::Ended(GrantEnd::NoLog));
    assert_eq!(sim.grant(id).extras.waiting, None);
    sim.audit();
}

#[test]
fn nobody_makes_a_grant_longer_alone_or_twice() {
    let (mut sim, id) = served();
    let unasked = AnswerExtension {
        grant_id: id,
        provider: provider_id(1),
        number: 1,
        answer: ExtensionAnswer::Accepted { valid_to: sim.grant(id).grant.valid_to, valid_to_ms: START_MS + 90_000 },
    };
    assert_eq!(sim.refused(&Command::AnswerExtension(sign(unasked, 1))), "extension_unknown");
    assert_eq!(sim.refused(&extend(id, 8, 1, 60)), "wrong_key");
    let asked = extend(id, 9, 1, 60);
    sim.ok(asked.clone());
    assert_eq!(sim.refused(&extend(id, 9, 2, 60)), "extension_waiting");
    let own = accept(&sim, id, 9, 1, 60);
    assert_eq!(sim.refused(&own), "wrong_key");
    let other = accept(&sim, id, 1, 1, 61);
    assert_eq!(sim.refused(&other), "extension_mismatch");
    let answered = accept(&sim, id, 1, 1, 60);
    sim.ok(answered.clone());
    // Played again, neither the question nor the answer counts.
    assert_eq!(sim.refused(&asked), "extension_out_of_order");
    assert_eq!(sim.refused(&answered), "extension_unknown");
    // One that waits when the grant is being ended is not accepted any more.
    sim.ok(extend(id, 9, 2, 60));
    let next = accept(&sim, id, 1, 2, 60);
    sim.ok(end(id, 9));
    assert_eq!(sim.refused(&next), "already_ending");
    assert_eq!(sim.refused(&extend(id, 9, 3, 60)), "already_ending");
    sim.audit();
}

#[test]
fn the_module_sets_the_longest_and_the_most() {
    let (mut sim, id) = served();
    assert_eq!(sim.refused(&extend(id, 9, 1, 3_541)), "duration_too_long");
    assert_eq!(sim.refused(&extend(id, 9, 1, u32::MAX)), "duration_too_long");
    for number in 1..=machine::MAX_EXTENSIONS_PER_GRANT {
        sim.ok(extend(id, 9, number, 1));
        sim.ok(decline(id, 1, number));
    }
    let next = machine::MAX_EXTENSIONS_PER_GRANT + 1;
    assert_eq!(sim.refused(&extend(id, 9, next, 1)), "too_many_extensions");
    for number in 1..=machine::MAX_REPORTS_PER_GRANT {
        sim.ok(report(id, 9, number, 1_000));
    }
    assert_eq!(sim.refused(&report(id, 9, next, 1_000)), "too_many_reports");
}

#[test]
fn reports_stand_beside_logs_and_two_percent_apart_is_seen() {
    let (mut sim, id) = served();
    sim.pass(20_000);
    sim.ok(report(id, 9, 1, 6_000));
    sim.ok(log(id, 1, 1, (100, 120), Some(LogEnd::Exited)));
    // After the end, too: whoever reads the log late may still object.
    sim.ok(report(id, 9, 2, 8_200));
    let record = sim.view.grant(&id).unwrap();
    let last = &record.extras.report.as_ref().unwrap().report;
    let cpu = Compared::cpu(&record.usage, last);
    assert_eq!((cpu.logged, cpu.reported, cpu.suspicious), (7_000, 8_200, true));
    assert!(cpu.permille > SUSPICIOUS_PERMILLE && Compared::net(&record.usage, last).is_none());
    sim.audit();
}

#[test]
fn an_inventory_agrees_exactly_with_what_is_open() {
    let (mut sim, id) = served();
    let ids = |sim: &Sim| sim.machine.state().live_grants_of(provider_id(1)).map(|r| r.grant.request_id).collect();
    let verdict = |sim: &Sim| {
        let last = sim.view.inventory(&provider_id(1)).unwrap();
        (last.open, last.agrees)
    };
    let open: Vec<RequestId> = ids(&sim);
    sim.ok(inventory(&sim, 1, &open));
    assert_eq!(verdict(&sim), (1, true));
    sim.ok(inventory(&sim, 1, &[]));
    assert_eq!(verdict(&sim), (1, false), "one that forgets a grant");
    let unseen = RequestId::from_bytes([7; 32]);
    sim.ok(inventory(&sim, 1, &[id, unseen]));
    assert_eq!(verdict(&sim), (1, false), "one that holds a grant that is none");
    // Made before a grant came or ended, it is neither true nor false: it is not taken.
    let stale = inventory(&sim, 1, &open);
    let second = request(9, 2, 160);
    sim.ok(submit(second.clone(), 9));
    sim.pass(1_000);
    assert_eq!(sim.refused(&stale), "inventory_overtaken");
    let both: Vec<RequestId> = ids(&sim);
    let stale = inventory(&sim, 1, &both);
    sim.ok(log(id, 1, 1, (100, 100), Some(LogEnd::Exited)));
    assert_eq!(sim.refused(&stale), "inventory_overtaken");
    let true_one = inventory(&sim, 1, &[second.request_id]);
    sim.ok(true_one.clone());
    assert_eq!(verdict(&sim), (1, true));
    assert_eq!(sim.refused(&true_one), "inventory_overtaken", "played again");
    sim.audit();
}

#[test]
fn an_inventory_of_long_ago_never_comes_back() {
    let (mut sim, id) = served();
    let old = inventory(&sim, 1, &[id]);
    sim.ok(old.clone());
    sim.ok(log(id, 1, 1, (100, 100), Some(LogEnd::Exited)));
    // Everybody has forgotten the provider, and it comes back.
    sim.pass(600_000);
    sim.ok(post(2, 1, card(2, sim.cx.tick, vec![offer("local", "home-01", 1, "0.04")])));
    assert!(!sim.machine.state().providers().contains_key(&provider_id(1)));
    assert_eq!(sim.refused(&old), "unknown_provider");
    sim.ok(post(1, 2, card(1, sim.cx.tick, vec![offer("local", "home-01", 4, "0.04")])));
    assert_eq!(sim.refused(&old), "card_stale");
    sim.audit();
}

#[test]
fn the_digest_is_of_the_set_whatever_the_order() {
    let ids: Vec<RequestId> = (0..5).map(|n| RequestId::from_bytes([n; 32])).collect();
    let mut turned = ids.clone();
    turned.reverse();
    assert_eq!(open_grants_digest(ids.clone()), open_grants_digest(turned));
    assert_ne!(open_grants_digest(ids[..4].to_vec()), open_grants_digest(ids));
}
