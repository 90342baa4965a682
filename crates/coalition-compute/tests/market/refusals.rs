//! Every refusal code, each by the smallest command that causes it. No refusal changes anything.

use std::collections::BTreeSet;

use coalition::{AlmanacTick, RequestId, UniqueId};
use coalition_compute::*;
use coalition_log::{Entry, Machine};

use crate::common::*;

fn market() -> (Sim, RequestId) {
    let mut sim = Sim::new();
    sim.ok(post(1, 10, card(1, 100, vec![offer("local", "home-01", 1, "0.04")])));
    let asked = request(9, 1, 160);
    let id = asked.request_id;
    sim.ok(submit(asked, 9));
    (sim, id)
}

fn plain_card(tick: u64) -> ProviderCard {
    card(1, tick, vec![offer("local", "home-01", 1, "0.04")])
}

fn changed(change: impl FnOnce(&mut ComputeRequest)) -> Command {
    let mut asked = request(9, 77, 160);
    change(&mut asked);
    // Signed without the check that `Signed::sign` does first: the machine must not rely on polite clients.
    let mut signed = sign(request(9, 77, 160), 9);
    signed.statement = asked;
    let bytes = Signed::signed_bytes(&signed.statement, &organism());
    let signature = ed25519_dalek::Signer::sign(&key(9), &bytes);
    signed.signature = SignatureBytes::new(&signature.to_bytes());
    Command::SubmitRequest(signed)
}

#[test]
fn every_code_is_reached() {
    let (mut sim, id) = market();
    let mut seen = BTreeSet::new();
    let mut expect = |sim: &mut Sim, code: RefusalCode, command: Command| {
        assert_eq!(sim.refused(&command), code.as_str());
        seen.insert(code);
    };

    use RefusalCode as C;
    expect(&mut sim, C::Invalid, changed(|r| r.cpu_millicores = 9));
    expect(&mut sim, C::Invalid, changed(|r| r.ram_mib = 7));
    expect(&mut sim, C::Invalid, changed(|r| r.duration_sec = 0));
    expect(&mut sim, C::Invalid, changed(|r| r.pin = Some(UniqueId::hash(b"another image"))));
    expect(&mut sim, C::Invalid, changed(|r| r.pinned_mrtd = Some(coalition::Mrtd([1; 48]))));
    expect(&mut sim, C::Invalid, changed(|r| r.max_rate = coalition::RateQ64::MAX));
    expect(&mut sim, C::RequestIdMismatch, changed(|r| r.request_id = id));
    expect(&mut sim, C::DeadlinePassed, changed(|r| r.deadline = AlmanacTick(100)));
    expect(&mut sim, C::DeadlineTooFar, changed(|r| r.deadline = AlmanacTick(1_101)));
    expect(&mut sim, C::DurationTooLong, changed(|r| r.duration_sec = 3_601));
    expect(&mut sim, C::DuplicateRequest, submit(request(9, 1, 160), 9));
    let mut other = request(9, 1, 160);
    other.ram_mib = 512;
    expect(&mut sim, C::RequestConflict, submit(other, 9));

    let mut forged = sign(request(9, 3, 160), 9);
    forged.statement.ram_mib = 8;
    expect(&mut sim, C::BadSignature, Command::SubmitRequest(forged));
    let elsewhere = Signed::sign(request(9, 3, 160), &key(9), &UniqueId::hash(b"another market")).unwrap();
    expect(&mut sim, C::BadSignature, Command::SubmitRequest(elsewhere));

    expect(&mut sim, C::WrongKey, Command::RegisterCard(sign(PostCard { sequence: 11, card: plain_card(100) }, 2)));
    expect(&mut sim, C::StaleSequence, post(1, 10, plain_card(100)));
    expect(&mut sim, C::CardFromFuture, post(1, 11, plain_card(111)));
    expect(&mut sim, C::CardStale, post(1, 11, plain_card(39)));
    expect(&mut sim, C::OfferInUse, post(1, 11, card(1, 100, vec![offer("renamed", "home-01", 1, "0.04")])));
    let refresh =
        Command::RefreshCard(sign(PostCard { sequence: 1, card: card(2, 100, vec![offer("a", "b", 1, "1")]) }, 2));
    expect(&mut sim, C::UnknownProvider, refresh);
    let leave = Command::DeregisterCard(sign(Deregister { sequence: 1, provider: provider_id(2) }, 2));
    expect(&mut sim, C::UnknownProvider, leave);
    let leave = Command::DeregisterCard(sign(Deregister { sequence: 10, provider: provider_id(1) }, 1));
    expect(&mut sim, C::StaleSequence, leave);

    let unknown = RequestId(UniqueId::hash(b"no such request"));
    expect(&mut sim, C::UnknownRequest, withdraw(unknown, 9));
    expect(&mut sim, C::WrongKey, withdraw(id, 8));
    expect(&mut sim, C::RequestNotOpen, withdraw(id, 9));
    expect(&mut sim, C::UnknownGrant, end(unknown, 9));
    expect(&mut sim, C::WrongKey, end(id, 1));
    expect(&mut sim, C::UnknownGrant, serve(unknown, 1));
    expect(&mut sim, C::UnknownGrant, log(unknown, 1, 1, (100, 100), None));
    expect(&mut sim, C::WrongKey, serve(id, 2));
    expect(&mut sim, C::WrongKey, refuse(id, 2));
    expect(&mut sim, C::WrongKey, log(id, 2, 1, (100, 100), None));
    expect(&mut sim, C::LogOutOfOrder, log(id, 1, 2, (100, 100), None));
    expect(&mut sim, C::LogWindow, log(id, 1, 1, (99, 100), None));
    expect(&mut sim, C::LogWindow, log(id, 1, 1, (101, 100), None));
    expect(&mut sim, C::LogWindow, log(id, 1, 1, (100, 111), None));

    expect(&mut sim, C::NotServing, extend(id, 9, 1, 60));
    expect(&mut sim, C::NotServing, report(id, 9, 1, 1));
    sim.ok(serve(id, 1));
    expect(&mut sim, C::ExtensionOutOfOrder, extend(id, 9, 2, 60));
    expect(&mut sim, C::ReportOutOfOrder, report(id, 9, 2, 1));
    let unasked = decline(id, 1, 1);
    expect(&mut sim, C::ExtensionUnknown, unasked);
    sim.ok(extend(id, 9, 1, 60));
    expect(&mut sim, C::ExtensionWaiting, extend(id, 9, 2, 60));
    let wrong = accept(&sim, id, 1, 1, 59);
    expect(&mut sim, C::ExtensionMismatch, wrong);
    let backwards = StateInventory {
        provider: provider_id(1),
        as_of: 99,
        window: coalition::AlmanacRange { from: AlmanacTick(101), to: AlmanacTick(100) },
        open: 0,
        grants: open_grants_digest([]),
        owned: 0,
        adopted: 0,
        orphaned: 0,
        blind: 0,
    };
    let early = StateInventory { as_of: 0, ..backwards };
    expect(&mut sim, C::InventoryWindow, Command::StateInventory(sign(backwards, 1)));
    expect(&mut sim, C::InventoryOvertaken, Command::StateInventory(sign(early, 1)));
    expect(&mut sim, C::AlreadyServing, serve(id, 1));
    expect(&mut sim, C::AlreadyServing, refuse(id, 1));
    sim.ok(end(id, 9));
    expect(&mut sim, C::AlreadyEnding, end(id, 9));
    sim.ok(log(id, 1, 1, (100, 100), Some(LogEnd::EndedByRequester)));
    expect(&mut sim, C::GrantEnded, end(id, 9));
    expect(&mut sim, C::GrantEnded, refuse(id, 1));
    expect(&mut sim, C::GrantEnded, log(id, 1, 2, (100, 100), None));

    // The rest needs markets of its own; see the tests below.
    let mut elsewhere = vec![C::Malformed, C::TooManyProviders, C::MarketFull, C::TooManyOpen, C::TooManyLogs];
    elsewhere.extend([C::StateFault, C::AttestationNotAsked, C::AttestationMissing, C::AttestationUnknown]);
    elsewhere.extend([C::AttestationStale, C::AttestationRefused, C::ChallengeUnknown]);
    elsewhere.extend([C::TooManyExtensions, C::TooManyReports]);
    for code in RefusalCode::ALL {
        assert!(seen.contains(&code) != elsewhere.contains(&code), "{code:?}");
    }
    sim.audit();
}

#[test]
fn bytes_that_are_no_command() {
    let (sim, _) = market();
    let good = submit(request(9, 3, 160), 9).to_bytes();
    let mut trailing = good.clone();
    trailing.push(0);
    let mut version = good.clone();
    version[0] = 2;
    let cut = good[..good.len() - 1].to_vec();
    for bad in [vec![], vec![1], vec![1, 200], trailing, version, cut, vec![1; 20_000]] {
        assert_eq!(sim.machine.decide(&sim.cx, &bad).unwrap_err().code, "malformed");
    }
}

#[test]
fn a_second_encoding_of_the_same_command_is_refused() {
    let (sim, _) = market();
    let good = withdraw(RequestId(UniqueId::hash(b"x")), 9).to_bytes();
    assert_eq!(good[1], 4, "the variant, as a one-byte number");
    let mut padded = vec![good[0], 0x84, 0x00];
    padded.extend(&good[2..]);
    let refusal = sim.machine.decide(&sim.cx, &padded).unwrap_err();
    assert_eq!(refusal.code, "malformed");
    assert!(refusal.message.contains("canonical"), "{}", refusal.message);
}

#[test]
fn limits_of_the_market() {
    let mut small = params();
    small.max_providers = 1;
    small.max_open_requests = 3;
    small.max_open_per_requester = 2;
    let mut sim = Sim::with(small);
    sim.ok(post(1, 1, plain_card(40)));
    assert_eq!(sim.refused(&post(2, 1, card(2, 100, vec![offer("a", "b", 1, "1")]))), "too_many_providers");
    sim.ok(Command::DeregisterCard(sign(Deregister { sequence: 2, provider: provider_id(1) }, 1)));
    assert_eq!(sim.refused(&post(2, 1, card(2, 100, vec![offer("a", "b", 1, "1")]))), "too_many_providers");
    sim.pass(1_000);
    sim.ok(post(2, 1, card(2, 100, vec![offer("a", "b", 1, "9")])));
    assert!(!sim.machine.state().providers().contains_key(&provider_id(1)), "its card can no longer be played again");

    for (nonce, seed) in [(1, 8), (2, 9), (3, 9)] {
        assert_eq!(sim.machine.state().open_count_of(&key(9).verifying_key().to_bytes()), usize::from(nonce > 2));
        sim.ok(submit(request(seed, nonce, 160), seed));
    }
    assert_eq!(sim.refused(&submit(request(7, 4, 160), 7)), "market_full");
    sim.ok(withdraw(request(8, 1, 160).request_id, 8));
    assert_eq!(sim.refused(&submit(request(9, 4, 160), 9)), "too_many_open");
    sim.ok(submit(request(7, 4, 160), 7));
    for n in 10..30 {
        let oldest = sim.machine.state().open_requests().next().unwrap().request().clone();
        let seed = (7..10).find(|seed| anonymous_requester(&key(*seed).verifying_key().to_bytes()) == oldest.requester);
        sim.ok(withdraw(oldest.request_id, seed.unwrap()));
        sim.ok(submit(request(7 + n % 2, n, 160), 7 + n % 2));
    }
    assert_eq!(sim.machine.state().requests().len(), 24, "three open at most, twenty-four remembered at most");
    sim.ok(withdraw(request(8, 29, 160).request_id, 8));
    assert_eq!(sim.refused(&submit(request(9, 99, 160), 9)), "market_full");
    sim.audit();
}

#[test]
fn a_grant_takes_a_bounded_number_of_logs() {
    let (mut sim, id) = market();
    for number in 1..=machine::MAX_LOGS_PER_GRANT {
        let bytes = log(id, 1, number, (100, 100), None).to_bytes();
        let drafts = sim.machine.decide(&sim.cx, &bytes).unwrap();
        for draft in drafts {
            let entry = draft.into_entry(sim.entries.len() as u64, Some(100), sim.cx.time_ms);
            sim.machine.evolve(&entry);
            sim.entries.push(entry);
        }
    }
    assert_eq!(sim.refused(&log(id, 1, machine::MAX_LOGS_PER_GRANT + 1, (100, 100), None)), "too_many_logs");
    assert_eq!(
        sim.refused(&log(id, 1, machine::MAX_LOGS_PER_GRANT + 1, (100, 100), Some(LogEnd::Exited))),
        "too_many_logs"
    );
}

#[test]
fn a_member_that_could_not_fold_its_log_decides_nothing() {
    let (mut sim, _) = market();
    let mut broken: Entry = sim.entries[3].clone();
    broken.index = 4;
    sim.machine.evolve(&broken);
    assert!(sim.machine.fault().is_some());
    assert_eq!(sim.refused(&submit(request(9, 3, 160), 9)), "state_fault");
    assert_eq!(sim.machine.round(&sim.cx), None);
    assert_eq!(sim.machine.wake_at_ms(&sim.cx), None);
}

#[test]
fn codes_are_distinct() {
    let codes: BTreeSet<_> = RefusalCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(codes.len(), RefusalCode::ALL.len());
}

#[test]
fn cards_outside_their_limits() {
    type Change = fn(&mut ProviderCard);
    let changes: [(&str, Change); 9] = [
        ("no offer", |c| c.offers.clear()),
        ("17 offers", |c| c.offers = (0..17).map(|n| offer(&format!("o{n}"), "r", 1, "1")).collect()),
        ("two of a name", |c| c.offers.push(c.offers[0].clone())),
        ("no region", |c| c.offers[0].capabilities.regions.clear()),
        ("33 regions", |c| {
            c.offers[0].capabilities.regions = (0..33).map(|n| format!("r{n}").parse().unwrap()).collect();
        }),
        ("a region twice", |c| c.offers[0].capabilities.regions = vec!["a".parse().unwrap(); 2]),
        ("measurements without TDX", |c| c.offers[0].capabilities.mrtds = vec![coalition::Mrtd([1; 48])]),
        ("a rate beyond reason", |c| c.offers[0].declared_rates.gib_hour = rate("1000000.01")),
        ("over 8 KiB", |c| {
            let region = |n: usize, o: usize| format!("a-rather-long-region-name-{o:02}-{n:02}").parse().unwrap();
            c.offers = (0..16).map(|o| offer(&format!("o{o}"), "r", 1, "1")).collect();
            for (o, offer) in c.offers.iter_mut().enumerate() {
                offer.capabilities.regions = (0..32).map(|n| region(n, o)).collect();
            }
        }),
    ];
    for (what, change) in changes {
        let mut bad = plain_card(100);
        change(&mut bad);
        assert!(bad.check().is_err(), "{what}");
        assert!(Signed::sign(PostCard { sequence: 1, card: bad }, &key(1), &organism()).is_err(), "{what}");
    }
}
