//! The life of cards, requests and grants, step by step.

use crate::common::*;
use coalition::RequestId;
use coalition_compute::*;

fn with_card(cores: u32) -> Sim {
    let mut sim = Sim::new();
    sim.ok(post(1, 1, card(1, 100, vec![offer("local", "home-01", cores, "0.04")])));
    sim
}

fn granted(sim: &mut Sim) -> RequestId {
    let asked = request(9, 1, 160);
    let id = asked.request_id;
    sim.ok(submit(asked, 9));
    assert!(sim.grant(id).is_live());
    id
}

#[test]
fn a_request_is_granted_in_the_batch_it_arrives_in_and_ends_with_its_final_log() {
    let mut sim = with_card(4);
    let id = granted(&mut sim);
    assert_eq!(sim.kinds(), ["compute.card", "compute.request", "compute.clearing", "compute.grant"]);
    let grant = sim.grant(id).grant.clone();
    assert_eq!(grant.provider, provider_id(1));
    assert_eq!(grant.region.as_str(), "home-01");
    assert_eq!((grant.valid_from.0, grant.valid_to.0), (100, 160));
    assert_eq!(grant.valid_to_ms, START_MS + 60_000);
    assert_eq!(grant.rate, rate("0.04"));
    assert_eq!(grant.full_cost().unwrap().0, 667, "0.04 USD/h for one core-minute, rounded up");
    let entry = &sim.entries[3];
    assert_eq!(
        entry.evidence,
        [sim.entries[1].pointer(organism()).unwrap(), sim.entries[0].pointer(organism()).unwrap()]
    );

    sim.pass(1_000);
    sim.ok(serve(id, 1));
    sim.pass(10_000);
    sim.ok(log(id, 1, 1, (100, 111), None));
    sim.ok(end(id, 9));
    sim.ok(log(id, 1, 2, (111, 111), Some(LogEnd::EndedByRequester)));
    let record = sim.view.grant(&id).unwrap();
    assert_eq!(record.stage, GrantStage::Ended(GrantEnd::Logged(LogEnd::EndedByRequester)));
    assert_eq!(record.usage.cpu_core_seconds, 14);
    assert_eq!(sim.view.logs(&id).len(), 2);
    assert_eq!(sim.view.bond_count(provider_id(1)).count, 0);
    assert_eq!(
        sim.kinds()[4..],
        ["compute.grant_serving", "compute.log", "compute.grant_ending", "compute.log", "compute.grant_ended"]
    );
    assert_eq!(sim.audit().clearings, 1);
}

#[test]
fn two_requesters_and_twenty_requests_each_end_in_one_outcome_on_disjoint_capacity() {
    let mut sim = with_card(6);
    sim.ok(post(2, 1, card(2, 100, vec![offer("local", "home-02", 5, "0.05")])));
    let commands: Vec<_> = (0..40u8)
        .map(|n| {
            let requester = 10 + n % 2;
            submit(request(requester, n, 130), requester)
        })
        .collect();
    for outcome in sim.batch(&commands) {
        outcome.unwrap();
    }
    let state = sim.machine.state();
    assert_eq!(state.live_grants().count(), 11, "six cores and five");
    assert_eq!(state.held(&provider_id(1), &"local".parse().unwrap()).instances, 6);
    assert_eq!(state.held(&provider_id(2), &"local".parse().unwrap()).instances, 5);
    assert_eq!(state.open_count(), 29);
    let winners: Vec<_> = state.clearings().collect();
    assert!(winners.is_empty(), "a member keeps no clearing history");
    assert_eq!(sim.view.clearings().filter(|c| c.record.winning_provider == provider_id(1)).count(), 6);

    sim.pass(31_000);
    let state = sim.machine.state();
    assert_eq!(state.open_count(), 0);
    let expired = state.requests().values().filter(|r| matches!(r.stage, RequestStage::Ended(RequestEnd::Expired(_))));
    assert_eq!(expired.count(), 29);
    let ended = sim.kinds().iter().filter(|kind| **kind == "compute.request_ended").count();
    assert_eq!(ended, 29, "each exactly once");
    sim.audit();
}

#[test]
fn rounds_keep_their_distance_and_a_later_request_waits_for_the_next() {
    let mut sim = with_card(4);
    granted(&mut sim);
    sim.cx.time_ms += 40;
    let second = request(9, 2, 160);
    let id = second.request_id;
    sim.ok(submit(second, 9));
    assert!(matches!(sim.view.request_status(&id), RequestStatus::Open(_)));
    use coalition_log::Machine;
    assert_eq!(sim.machine.wake_at_ms(&sim.cx), Some(START_MS + 100));
    sim.cx.time_ms = START_MS + 100;
    sim.batch(&[]);
    assert!(matches!(sim.view.request_status(&id), RequestStatus::Granted(_)));
    assert_ne!(sim.machine.wake_at_ms(&sim.cx), Some(START_MS + 200), "nothing left to clear, no wake for it");
    sim.audit();
}

#[test]
fn a_request_nobody_can_serve_waits_and_is_granted_when_a_card_arrives() {
    let mut sim = Sim::new();
    let asked = request(9, 1, 160);
    let id = asked.request_id;
    sim.ok(submit(asked, 9));
    assert_eq!(sim.machine.state().open_count(), 1);
    sim.pass(5_000);
    sim.ok(post(1, 1, card(1, 105, vec![offer("local", "home-01", 1, "0.04")])));
    assert!(sim.grant(id).is_live());
    sim.audit();
}

#[test]
fn an_expired_request_says_which_filter_removed_how_many() {
    let mut sim = Sim::new();
    let mut roomless = offer("full", "home-01", 1, "0.04");
    roomless.capabilities.max_instances = 0;
    let offers = vec![offer("far", "mars-1", 4, "0.04"), offer("dear", "home-01", 4, "9"), roomless];
    sim.ok(post(1, 1, card(1, 100, offers)));
    let mut asked = request(9, 1, 103);
    asked.region = Some("home-01".parse().unwrap());
    let id = asked.request_id;
    sim.ok(submit(asked, 9));
    sim.pass(3_000);
    let RequestStatus::Ended(RequestEnd::Expired(why)) = sim.view.request_status(&id) else { panic!("not expired") };
    assert_eq!(why.considered, 3);
    let removed: Vec<_> = why.removed.iter().map(|r| (r.filter, r.offers)).collect();
    assert_eq!(removed, [(FilterKind::Region, 1), (FilterKind::Capacity, 1), (FilterKind::PriceCap, 1)]);
    sim.audit();
}

#[test]
fn requests_expire_by_wall_time_when_ticks_stand_still() {
    let mut sim = Sim::new();
    let asked = request(9, 1, 130);
    sim.ok(submit(asked, 9));
    sim.cx.time_ms += 29_999;
    sim.batch(&[]);
    assert_eq!(sim.machine.state().open_count(), 1);
    sim.cx.time_ms += 1;
    sim.batch(&[]);
    assert_eq!(sim.machine.state().open_count(), 0);
}

#[test]
fn a_refused_request_goes_to_the_next_provider_and_never_back() {
    let mut sim = with_card(4);
    sim.ok(post(2, 1, card(2, 100, vec![offer("local", "home-02", 4, "0.05")])));
    let id = granted(&mut sim);
    assert_eq!(sim.grant(id).grant.provider, provider_id(1));
    sim.cx.time_ms += 100;
    sim.ok(refuse(id, 1));
    let grant = &sim.grant(id).grant;
    assert_eq!((grant.provider, grant.attempt), (provider_id(2), 2));
    assert_eq!(sim.view.bond_count(provider_id(1)).count, 0);
    sim.cx.time_ms += 100;
    sim.ok(refuse(id, 2));
    assert_eq!(sim.machine.state().open_count(), 1, "nobody is left, the request waits for somebody new");
    sim.pass(60_000);
    let RequestStatus::Ended(RequestEnd::Expired(why)) = sim.view.request_status(&id) else { panic!("not expired") };
    assert_eq!(why.removed, [RemovedBy { filter: FilterKind::Refused, offers: 2 }]);
    sim.audit();
}

#[test]
fn a_request_is_given_up_after_as_many_refusals_as_the_module_tries() {
    let mut sim = Sim::new();
    for seed in 1..=4 {
        sim.ok(post(seed, 1, card(seed, 100, vec![offer("local", "home-01", 4, "0.04")])));
    }
    let id = granted(&mut sim);
    for _ in 0..3 {
        let holder = sim.grant(id).grant.provider;
        let seed = (1..=4).find(|seed| provider_id(*seed) == holder).unwrap();
        sim.cx.time_ms += 100;
        sim.ok(refuse(id, seed));
    }
    assert_eq!(sim.view.request_status(&id), RequestStatus::Ended(&RequestEnd::Exhausted { attempts: 3 }));
    sim.audit();
}

#[test]
fn a_refusal_after_the_requester_ended_the_grant_does_not_reopen_the_request() {
    let mut sim = with_card(4);
    sim.ok(post(2, 1, card(2, 100, vec![offer("local", "home-02", 4, "0.05")])));
    let id = granted(&mut sim);
    sim.ok(end(id, 9));
    sim.cx.time_ms += 100;
    sim.ok(refuse(id, 1));
    assert_eq!(sim.machine.state().open_count(), 0);
    assert!(matches!(sim.grant(id).stage, GrantStage::Ended(GrantEnd::Refused(_))));
    sim.audit();
}

#[test]
fn silence_ends_a_grant_after_its_grace_and_a_late_log_is_recorded_as_late() {
    let mut sim = with_card(1);
    let id = granted(&mut sim);
    sim.pass(60_000 + 9_999);
    assert!(sim.grant(id).is_live(), "the host may still be stopping it");
    sim.pass(1);
    assert_eq!(sim.grant(id).stage, GrantStage::Ended(GrantEnd::NoLog));
    assert_eq!(sim.machine.state().held(&provider_id(1), &"local".parse().unwrap()).instances, 0);
    sim.ok(log(id, 1, 1, (100, 160), Some(LogEnd::Deadline)));
    assert!(sim.view.logs(&id)[0].late);
    assert_eq!(sim.grant(id).stage, GrantStage::Ended(GrantEnd::NoLog), "a late log changes no verdict");
    assert_eq!(sim.refused(&log(id, 1, 2, (160, 160), Some(LogEnd::Deadline))), "grant_ended");
    sim.audit();
}

#[test]
fn interim_logs_without_a_final_one_are_told_apart_from_silence() {
    let mut sim = with_card(1);
    let id = granted(&mut sim);
    sim.pass(10_000);
    sim.ok(log(id, 1, 1, (100, 110), None));
    sim.pass(60_000);
    assert_eq!(sim.grant(id).stage, GrantStage::Ended(GrantEnd::NoFinalLog));
    sim.audit();
}

#[test]
fn stale_cards_win_nothing_and_leave_the_market_later() {
    let mut sim = with_card(4);
    sim.pass(60_000);
    let still = request(9, 1, 300);
    let id = still.request_id;
    sim.ok(submit(still, 9));
    assert!(sim.machine.state().grants().contains_key(&id), "sixty ticks is the last age that counts");
    sim.pass(1_000);
    sim.ok(submit(request(9, 2, 300), 9));
    assert_eq!(sim.machine.state().open_count(), 1);
    assert!(sim.view.card(&provider_id(1), sim.at()).unwrap().stale);
    sim.pass(8 * 60_000);
    assert!(sim.view.card(&provider_id(1), sim.at()).is_none());
    assert!(sim.kinds().contains(&"compute.card_removed"));
    sim.audit();
}

#[test]
fn a_committee_that_stood_still_does_not_find_its_cards_young() {
    let mut sim = with_card(4);
    sim.cx.time_ms += 3_600_000;
    sim.batch(&[]);
    assert!(sim.view.card(&provider_id(1), sim.at()).is_none(), "an hour passed, though no tick did");
}

#[test]
fn deregistration_stops_new_grants_and_keeps_the_live_ones() {
    let mut sim = with_card(4);
    let id = granted(&mut sim);
    let statement = Deregister { sequence: 2, provider: provider_id(1) };
    sim.ok(Command::DeregisterCard(sign(statement, 1)));
    sim.pass(1_000);
    sim.ok(submit(request(9, 2, 160), 9));
    assert_eq!(sim.machine.state().open_count(), 1);
    sim.ok(log(id, 1, 1, (100, 101), Some(LogEnd::Draining)));
    assert!(!sim.grant(id).is_live());
    sim.audit();
}

#[test]
fn capacity_of_a_refreshed_card_counts_live_grants() {
    let mut sim = with_card(2);
    let id = granted(&mut sim);
    sim.pass(1_000);
    sim.ok(Command::RefreshCard(sign(
        PostCard { sequence: 2, card: card(1, 101, vec![offer("local", "home-01", 1, "0.04")]) },
        1,
    )));
    sim.ok(submit(request(9, 2, 160), 9));
    assert_eq!(sim.machine.state().open_count(), 1, "the one core left is taken");
    let view = sim.view.card(&provider_id(1), sim.at()).unwrap();
    assert_eq!((view.free[0].cpu_millicores, view.free[0].instances, view.bonds.count), (0, 0, 1));
    sim.pass(1_000);
    sim.ok(log(id, 1, 1, (100, 102), Some(LogEnd::Exited)));
    assert_eq!(sim.machine.state().open_count(), 0, "freed and granted in one batch");
    sim.audit();
}

#[test]
fn memory_counts_in_the_price_and_the_cheaper_whole_wins() {
    let mut sim = Sim::new();
    let mut lean = offer("lean", "home-01", 4, "0.05");
    lean.declared_rates.gib_hour = rate("0");
    let mut bait = offer("bait", "home-01", 4, "0.001");
    bait.declared_rates.gib_hour = rate("0.5");
    sim.ok(post(1, 1, card(1, 100, vec![bait])));
    sim.ok(post(2, 1, card(2, 100, vec![lean])));
    let id = granted(&mut sim);
    assert_eq!(sim.grant(id).grant.provider, provider_id(2), "0.001 + 0.5/4 is more than 0.05");
}

#[test]
fn where_nobody_attests_nobody_wins_a_request_for_tdx() {
    let mut sim = Sim::new();
    let mut tdx = offer("tdx", "home-01", 4, "0.01");
    tdx.capabilities.tdx_capable = true;
    tdx.capabilities.mrtds = vec![coalition::Mrtd([7; 48])];
    sim.ok(post(1, 1, card(1, 100, vec![tdx])));
    let mut asked = request(9, 1, 102);
    asked.tdx_required = true;
    let id = asked.request_id;
    sim.ok(submit(asked, 9));
    assert_eq!(sim.machine.state().open_count(), 1, "a claim is not enough");
    sim.pass(3_000);
    let RequestStatus::Ended(RequestEnd::Expired(expiry)) = sim.view.request_status(&id) else { panic!("it expires") };
    assert_eq!(expiry.removed, [RemovedBy { filter: FilterKind::Attestation, offers: 1 }]);
    sim.audit();
}

#[test]
fn equal_rates_share_the_market() {
    let mut sim = Sim::new();
    for seed in 1..=2 {
        sim.ok(post(seed, 1, card(seed, 100, vec![offer("local", "home-01", 100, "0.04")])));
    }
    let commands: Vec<_> = (0..60).map(|n| submit(request(9, n, 160), 9)).collect();
    sim.batch(&commands);
    let first = sim.view.bond_count(provider_id(1)).count;
    assert!((10..=50).contains(&first), "{first} of 60 to one of two equals");
}

#[test]
fn ended_requests_are_forgotten_only_after_their_deadline() {
    let mut small = params();
    small.max_open_requests = 65_536;
    small.max_open_per_requester = 65_536;
    let mut sim = Sim::with(small);
    let ask = |n: u32, deadline: u64| {
        let mut asked = request(9, 0, deadline);
        asked.nonce[..4].copy_from_slice(&n.to_be_bytes());
        asked.request_id = request_id(&organism(), &key(9).verifying_key().to_bytes(), &asked.nonce);
        asked
    };
    let asked: Vec<_> = (0..1_100).map(|n| ask(n, 110)).collect();
    let commands: Vec<_> = asked.iter().map(|asked| submit(asked.clone(), 9)).collect();
    sim.batch(&commands);
    let commands: Vec<_> = asked.iter().map(|asked| withdraw(asked.request_id, 9)).collect();
    sim.batch(&commands);
    assert_eq!(sim.machine.state().requests().len(), 1_100, "all could still be played again");
    assert_eq!(sim.refused(&submit(asked[0].clone(), 9)), "duplicate_request");
    sim.pass(11_000);
    sim.ok(submit(ask(5_000, 200), 9));
    assert_eq!(sim.machine.state().requests().len(), 1_025, "what a member keeps, and the new one");
    assert_eq!(sim.refused(&submit(asked[0].clone(), 9)), "deadline_passed");
}
