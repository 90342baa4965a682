//! Attested providers: what is admitted, what is refused and why, and that no grant goes to one that does not count.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use coalition::{AlmanacTick, Mrtd, ProviderId, UniqueId};
use coalition_attest::dev::{CollateralOptions, GuestOptions};
use coalition_attest::{DevelopmentRoot, Evidence, Measurements, Policy, QuoteSource, TrustRoot};
use coalition_compute::*;
use coalition_log::{Entry, FromState as _, Machine};
use proptest::prelude::*;

use crate::common::*;

const MRTD: Mrtd = Mrtd([0x4d; 48]);
const MAX_AGE_S: u64 = 600;

fn root() -> &'static DevelopmentRoot {
    static ROOT: LazyLock<DevelopmentRoot> = LazyLock::new(|| DevelopmentRoot::generate().unwrap());
    &ROOT
}

fn rule(required: bool) -> AttestationRule {
    let policy = Policy::strict(root().trust_root().unwrap()).require_mrtd(MRTD).max_quote_age_s(MAX_AGE_S).unwrap();
    AttestationRule { required, policy }
}

fn market(required: bool) -> Sim {
    Sim::with(params().with_attestation(rule(required)))
}

fn config() -> UniqueId {
    UniqueId::hash(b"boot file")
}

fn ask(seed: u8, sequence: u64, tick: u64) -> Command {
    let statement = AskChallenge { sequence, provider: provider_id(seed), asked_at: AlmanacTick(tick) };
    Command::AskChallenge(sign(statement, seed))
}

fn challenge(sim: &Sim, seed: u8) -> Challenge {
    sim.machine.state().providers()[&provider_id(seed)].platform.challenge.expect("a challenge was given")
}

/// Evidence of a development guest over this report data.
fn evidence(report_data: &[u8; 64], mrtd: Mrtd, options: GuestOptions) -> Vec<u8> {
    let guest = root().guest_with(Measurements::of_mrtd(mrtd), options).unwrap();
    let collateral = root().collateral_with(&CollateralOptions::issued(START_MS / 1_000 - 60)).unwrap();
    let quote = guest.quote(report_data).unwrap();
    Evidence { quote, collateral: Some(collateral) }.to_bytes().unwrap()
}

fn good_evidence(sim: &Sim, seed: u8) -> Vec<u8> {
    let key = key(seed).verifying_key().to_bytes();
    let report_data = provider_report_data(organism(), &key, config(), challenge(sim, seed));
    evidence(&report_data, MRTD, GuestOptions::default())
}

fn show(seed: u8, sequence: u64, evidence: Vec<u8>) -> Command {
    Command::Attest(sign(Attest { sequence, provider: provider_id(seed), config: config(), evidence }, seed))
}

/// Asks for a challenge and answers it; the digest to name on a card.
fn attest(sim: &mut Sim, seed: u8, sequence: u64) -> UniqueId {
    sim.ok(ask(seed, sequence, sim.cx.tick));
    sim.ok(show(seed, sequence + 1, good_evidence(sim, seed)));
    held(sim, seed).digest
}

fn held(sim: &Sim, seed: u8) -> Attestation {
    sim.machine.state().providers()[&provider_id(seed)].platform.attestation.clone().expect("an attestation is held")
}

fn attested_card(seed: u8, tick: u64, attestation: Option<UniqueId>, tdx: bool) -> ProviderCard {
    let mut sold = offer("local", "home-01", 4, "0.04");
    sold.capabilities.tdx_capable = tdx;
    if tdx {
        sold.capabilities.mrtds = vec![Mrtd([0x77; 48])];
    }
    ProviderCard { attestation, ..card(seed, tick, vec![sold]) }
}

/// The refusal of a command: code and message.
#[track_caller]
fn refusal(sim: &Sim, command: &Command) -> (String, String) {
    let refusal = sim.machine.decide(&sim.cx, &command.to_bytes()).expect_err("the command should be refused");
    (refusal.code, refusal.message)
}

#[test]
fn an_attested_provider_is_admitted_and_its_card_shows_what_was_found() {
    let mut sim = market(true);
    let digest = attest(&mut sim, 1, 1);
    sim.ok(post(1, 3, attested_card(1, 100, Some(digest), true)));
    let found = sim.view.card(&provider_id(1), sim.at()).unwrap().attestation.unwrap();
    assert_eq!((found.root, found.mrtd, found.config), (RootKind::Development, MRTD, config()));
    assert_eq!((found.policy, found.shape), (rule(true).policy.fingerprint(), EvidenceShape::TdxQuoteV4));
    assert_eq!(found.root_id, root().trust_root().unwrap().id());
    assert_eq!((found.challenged_ms, found.verified_ms), (START_MS, START_MS));
    assert_eq!(found.expires_ms, START_MS + (MAX_AGE_S + 1) * 1_000);
    assert!(found.root.label().contains("DEVELOPMENT ROOT"));

    let mut asked = request(9, 1, 160);
    (asked.tdx_required, asked.pinned_mrtd) = (true, Some(Mrtd([0x77; 48])));
    let id = asked.request_id;
    sim.ok(submit(asked, 9));
    assert_eq!(sim.grant(id).grant.expected_mrtd, Some(Mrtd([0x77; 48])));
    assert_eq!(sim.kinds()[..3], ["compute.challenge", "compute.attestation", "compute.card"]);
    // Anybody verifies it again from the log alone.
    sim.audit();
}

#[test]
fn posture_and_measurement_are_matched_per_offer() {
    let mut sim = market(false);
    let digest = attest(&mut sim, 1, 1);
    let measured = Mrtd([7; 48]);
    let mut tdx = offer("tdx", "home-01", 4, "0.5");
    tdx.capabilities.tdx_capable = true;
    tdx.capabilities.mrtds = vec![measured];
    let offers = vec![offer("plain", "us-east-1", 4, "0.01"), tdx];
    sim.ok(post(1, 3, ProviderCard { attestation: Some(digest), ..card(1, 100, offers) }));
    let mut asked = request(9, 1, 160);
    asked.tdx_required = true;
    let id = asked.request_id;
    sim.ok(submit(asked, 9));
    let grant = &sim.grant(id).grant;
    assert_eq!((grant.offer.as_str(), grant.expected_mrtd), ("tdx", Some(measured)));
    sim.pass(100);
    let mut elsewhere = request(9, 2, 160);
    elsewhere.tdx_required = true;
    elsewhere.region = Some("us-east-1".parse().unwrap());
    sim.ok(submit(elsewhere, 9));
    assert_eq!(sim.machine.state().open_count(), 1, "TDX here and that region there is no TDX in that region");
    sim.pass(100);
    let mut other = request(9, 3, 160);
    other.tdx_required = true;
    other.pinned_mrtd = Some(Mrtd([8; 48]));
    sim.ok(submit(other, 9));
    assert_eq!(sim.machine.state().open_count(), 2);
    // What would say nothing of what runs is no offer of TDX.
    let mut silent = attested_card(1, sim.cx.tick, Some(digest), true);
    silent.offers[0].capabilities.mrtds.clear();
    assert!(silent.check().unwrap_err().to_string().contains("list mrtds"));
    sim.audit();
}

#[test]
fn stale_attestation_leaves_clearing_and_comes_back_with_a_new_one() {
    let mut sim = market(true);
    let digest = attest(&mut sim, 1, 1);
    sim.ok(post(1, 3, attested_card(1, 100, Some(digest), false)));
    sim.pass(590_000);
    sim.ok(post(1, 4, attested_card(1, sim.cx.tick, Some(digest), false)));
    sim.pass(11_000);
    // The card is young, its attestation has just ended.
    let card = sim.view.card(&provider_id(1), sim.at()).unwrap();
    assert_eq!((card.stale, card.attestation), (false, None));
    let asked = request(9, 1, sim.cx.tick + 20);
    let id = asked.request_id;
    sim.ok(submit(asked, 9));
    sim.pass(1_000);
    assert!(sim.machine.state().open_requests().any(|open| open.request().request_id == id), "nobody may win it");
    let again = post(1, 5, attested_card(1, sim.cx.tick, Some(digest), false));
    assert_eq!(refusal(&sim, &again).0, RefusalCode::AttestationStale.as_str());

    let fresh = attest(&mut sim, 1, 6);
    assert_ne!(fresh, digest);
    sim.pass(200);
    assert!(sim.machine.state().grants().is_empty(), "the card still names the old one");
    sim.ok(post(1, 8, attested_card(1, sim.cx.tick, Some(fresh), false)));
    assert_eq!(sim.grant(id).grant.provider, provider_id(1));
    sim.audit();
}

#[test]
fn a_request_that_nobody_attested_serves_says_so_when_it_expires() {
    let mut sim = market(true);
    let digest = attest(&mut sim, 1, 1);
    sim.ok(post(1, 3, attested_card(1, 100, Some(digest), false)));
    sim.pass(590_000);
    sim.ok(post(1, 4, attested_card(1, sim.cx.tick, Some(digest), false)));
    sim.pass(12_000);
    let asked = request(9, 1, sim.cx.tick + 2);
    let id = asked.request_id;
    sim.ok(submit(asked, 9));
    sim.pass(3_000);
    let RequestStatus::Ended(RequestEnd::Expired(expiry)) = sim.view.request_status(&id) else { panic!("it expires") };
    assert_eq!(expiry.removed, [RemovedBy { filter: FilterKind::Attestation, offers: 1 }]);
}

#[test]
fn every_refusal_about_attestation() {
    let (mut sim, mut plain) = (market(true), Sim::new());
    use RefusalCode as C;
    let code = |sim: &Sim, command: &Command| refusal(sim, command).0;
    // A market that asks for none takes none, and what a card names there vouches for nothing.
    assert_eq!(code(&plain, &ask(1, 1, 100)), C::AttestationNotAsked.as_str());
    assert_eq!(code(&plain, &show(1, 1, vec![1])), C::AttestationNotAsked.as_str());
    let named = post(1, 1, attested_card(1, 100, Some(config()), true));
    plain.ok(named.clone());
    assert_eq!(plain.view.card(&provider_id(1), plain.at()).unwrap().attestation, None);
    // One that asks for it takes no card without.
    let (missing, message) = refusal(&sim, &post(1, 1, attested_card(1, 100, None, false)));
    assert_eq!(missing, C::AttestationMissing.as_str());
    assert!(message.contains("DEVELOPMENT ROOT"), "{message}");
    assert_eq!(code(&sim, &named), C::AttestationUnknown.as_str());
    assert_eq!(code(&sim, &show(1, 1, vec![1])), C::ChallengeUnknown.as_str());
    assert_eq!(code(&sim, &ask(1, 1, 39)), C::CardStale.as_str());
    assert_eq!(code(&sim, &ask(1, 1, 111)), C::CardFromFuture.as_str());
    sim.ok(ask(1, 1, 100));
    assert_eq!(code(&sim, &ask(1, 1, 100)), C::StaleSequence.as_str());
    assert_eq!(code(&sim, &show(1, 1, good_evidence(&sim, 1))), C::StaleSequence.as_str());
    let mut stolen = sign(Attest { sequence: 2, provider: provider_id(1), config: config(), evidence: vec![1] }, 2);
    assert_eq!(code(&sim, &Command::Attest(stolen.clone())), C::WrongKey.as_str());
    stolen.key = key(1).verifying_key().to_bytes();
    assert_eq!(code(&sim, &Command::Attest(stolen)), C::BadSignature.as_str());
    // Too late an answer.
    let late = show(1, 2, good_evidence(&sim, 1));
    sim.pass(601_000);
    assert_eq!(code(&sim, &late), C::ChallengeUnknown.as_str());
}

#[test]
fn evidence_is_refused_with_the_reason() {
    let mut sim = market(true);
    sim.ok(ask(1, 1, 100));
    let (key, given) = (key(1).verifying_key().to_bytes(), challenge(&sim, 1));
    let right = provider_report_data(organism(), &key, config(), given);
    let bound = |organism: UniqueId, key: &[u8; 32], config: UniqueId, challenge: Challenge| {
        evidence(&provider_report_data(organism, key, config, challenge), MRTD, GuestOptions::default())
    };
    let another = UniqueId::hash(b"another");
    let without_collateral = {
        let mut shown = Evidence::from_bytes(&bound(organism(), &key, config(), given)).unwrap();
        shown.collateral = None;
        shown.to_bytes().unwrap()
    };
    let other_root = DevelopmentRoot::generate().unwrap();
    let of_other_root = Evidence {
        quote: other_root.guest(Measurements::of_mrtd(MRTD)).unwrap().quote(&right).unwrap(),
        collateral: Some(other_root.collateral(START_MS / 1_000).unwrap()),
    };
    let mut damaged = bound(organism(), &key, config(), given);
    damaged[700] ^= 1;
    let cases = [
        ("another config hash", bound(organism(), &key, another, given)),
        ("another public key", bound(organism(), &[7; 32], config(), given)),
        ("another purpose or network", bound(another, &key, config(), given)),
        ("another nonce", bound(organism(), &key, config(), Challenge { nonce: another, time_ms: START_MS })),
        ("(register)", evidence(&right, Mrtd([1; 48]), GuestOptions::default())),
        ("(debug)", evidence(&right, MRTD, GuestOptions::debug())),
        ("(wrong_root)", of_other_root.to_bytes().unwrap()),
        ("no collateral", without_collateral),
        ("refused", damaged),
        ("version", vec![9; 100]),
    ];
    for (reason, bytes) in cases {
        let (code, message) = refusal(&sim, &show(1, 2, bytes));
        assert_eq!(code, RefusalCode::AttestationRefused.as_str(), "{reason}");
        assert!(message.contains(reason), "{reason}: {message}");
    }
    sim.ok(show(1, 2, good_evidence(&sim, 1)));
    // The same quote answers no second challenge, and none is left.
    assert_eq!(refusal(&sim, &show(1, 3, bound(organism(), &key, config(), given))).0, "challenge_unknown");
    sim.ok(ask(1, 3, 100));
    let (code, message) = refusal(&sim, &show(1, 4, bound(organism(), &key, config(), given)));
    assert!(code == "attestation_refused" && message.contains("another nonce"), "{message}");
}

#[test]
fn a_market_under_intels_root_refuses_development_quotes() {
    let policy = Policy::servers(TrustRoot::Intel).max_quote_age_s(MAX_AGE_S).unwrap();
    let mut sim = Sim::with(params().with_attestation(AttestationRule { required: true, policy }));
    sim.ok(ask(1, 1, 100));
    let (code, message) = refusal(&sim, &show(1, 2, good_evidence(&sim, 1)));
    assert_eq!(code, RefusalCode::AttestationRefused.as_str());
    assert!(message.contains("(wrong_root)") && message.contains("DEVELOPMENT ROOT"), "{message}");
}

#[test]
fn without_the_requirement_only_claims_of_tdx_need_proof() {
    let mut sim = market(false);
    sim.ok(post(1, 1, attested_card(1, 100, None, false)));
    let (code, message) = refusal(&sim, &post(2, 1, attested_card(2, 100, None, true)));
    assert!(code == "attestation_missing" && message.contains("claims TDX"), "{message}");
    let digest = attest(&mut sim, 2, 1);
    let mut dear = attested_card(2, 100, Some(digest), true);
    dear.offers[0].declared_rates.core_hour = rate("0.5");
    sim.ok(post(2, 3, dear));
    // The cheaper one is not attested: it wins what does not ask, and nothing else.
    let plain = request(9, 1, 160);
    let mut private = request(9, 2, 160);
    private.tdx_required = true;
    let ids = (plain.request_id, private.request_id);
    sim.ok(submit(plain, 9));
    sim.pass(1_000);
    sim.ok(submit(private, 9));
    assert_eq!(sim.grant(ids.0).grant.provider, provider_id(1));
    let grant = &sim.grant(ids.1).grant;
    assert_eq!((grant.provider, grant.expected_mrtd), (provider_id(2), Some(Mrtd([0x77; 48]))));
    sim.audit();
}

#[test]
fn parameters_with_a_policy_keep_their_bytes() {
    let policy = Policy::servers(TrustRoot::Intel).require_mrtd(MRTD).max_quote_age_s(3_600).unwrap();
    let attested = params().with_attestation(AttestationRule { required: true, policy });
    let bytes = attested.to_bytes();
    assert_eq!(ComputeParams::from_bytes(&bytes), Ok(attested.clone()));
    let plain = params().to_bytes();
    assert_eq!((bytes[0], &bytes[1..plain.len()], bytes[plain.len()]), (2, &plain[1..], 1));
    let text = serde_json::to_string(&attested).unwrap();
    assert_eq!(serde_json::from_str::<ComputeParams>(&text).unwrap(), attested);
    for length in plain.len()..bytes.len() {
        let mut cut = bytes[..length].to_vec();
        assert!(ComputeParams::from_bytes(&cut).is_err(), "cut to {length}");
        cut[0] = 1;
        assert_eq!(ComputeParams::from_bytes(&cut).is_ok(), length == plain.len());
    }
    let mut bad = bytes;
    bad[plain.len()] = 2;
    assert_eq!(ComputeParams::from_bytes(&bad), Err(ParamsError::Required { given: 2 }));
    let ageless = AttestationRule { required: true, policy: Policy::servers(TrustRoot::Intel) };
    assert!(params().with_attestation(ageless).check().is_err(), "without an age nothing would ever be stale");
}

/// One step of a scenario.
#[derive(Clone, Debug)]
enum Step {
    Ask(u8),
    Show { seed: u8, mrtd: u8, own_key: bool },
    Card { seed: u8, named: u8, tdx: bool },
    Request { nonce: u8, tdx: bool },
    Pass(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let seed = 1..3u8;
    prop_oneof![
        3 => seed.clone().prop_map(Step::Ask),
        4 => (seed.clone(), prop_oneof![4 => Just(0x4d_u8), 1 => any::<u8>()], prop::bool::weighted(0.8))
            .prop_map(|(seed, mrtd, own_key)| Step::Show { seed, mrtd, own_key }),
        5 => (seed, 0..3u8, any::<bool>()).prop_map(|(seed, named, tdx)| Step::Card { seed, named, tdx }),
        5 => (0..40u8, any::<bool>()).prop_map(|(nonce, tdx)| Step::Request { nonce, tdx }),
        4 => prop_oneof![0..5_000u32, 0..700_000u32].prop_map(Step::Pass),
    ]
}

/// What an observer knows who made every quote: which of them were true, and until when they count.
#[derive(Default)]
struct Observer {
    challenged: BTreeMap<ProviderId, u64>,
    counts_until: BTreeMap<ProviderId, (UniqueId, u64)>,
    cards: BTreeMap<ProviderId, ProviderCard>,
    tdx: BTreeMap<coalition::RequestId, bool>,
}

impl Observer {
    fn check(&mut self, entry: &Entry, required: bool) {
        match MarketEntry::decode(entry).unwrap().unwrap() {
            MarketEntry::Challenge(asked) => {
                self.challenged.insert(asked.statement.provider, entry.time_ms);
            }
            MarketEntry::Attestation(body) => {
                let evidence = Evidence::from_bytes(&body.shown.statement.evidence).unwrap();
                let quote = coalition_attest::Quote::parse(&evidence.quote).unwrap();
                assert_eq!(quote.measurements().mrtd, MRTD, "the policy pins it");
                let asked = self.challenged.remove(&body.found.provider).expect("a challenge was open");
                let until = (asked / 1_000 + MAX_AGE_S + 1) * 1_000;
                assert_eq!((body.found.challenged_ms, body.found.expires_ms), (asked, until));
                self.counts_until.insert(body.found.provider, (quote.digest(), until));
            }
            MarketEntry::Card(signed) => {
                let card = signed.statement.card;
                let counts = self.counts(&card, entry.time_ms);
                assert!(counts || (!required && card.attestation.is_none()), "a card that needed proof had none");
                assert!(counts || card.offers.iter().all(|offer| !offer.capabilities.tdx_capable));
                self.cards.insert(card.provider_id, card);
            }
            MarketEntry::Request(signed) => {
                self.tdx.insert(signed.statement.request_id, signed.statement.tdx_required);
            }
            MarketEntry::Grant(grant) => {
                let needed = required || self.tdx[&grant.request_id];
                let counts = self.counts(&self.cards[&grant.provider], entry.time_ms);
                assert!(counts || !needed, "granted without an attestation that counts");
                assert_eq!(grant.expected_mrtd.is_some(), self.tdx[&grant.request_id]);
            }
            _ => {}
        }
    }

    fn counts(&self, card: &ProviderCard, time_ms: u64) -> bool {
        let held = self.counts_until.get(&card.provider_id);
        held.is_some_and(|(digest, until)| card.attestation == Some(*digest) && time_ms < *until)
    }
}

fn command(step: &Step, sim: &Sim, sequence: u64) -> Option<Command> {
    let tick = sim.cx.tick;
    let record = |seed: u8| sim.machine.state().providers().get(&provider_id(seed));
    Some(match step {
        Step::Ask(seed) => ask(*seed, sequence, tick),
        Step::Show { seed, mrtd, own_key } => {
            let given = record(*seed)?.platform.challenge?;
            let signer = key(if *own_key { *seed } else { 7 }).verifying_key().to_bytes();
            let data = provider_report_data(organism(), &signer, config(), given);
            show(*seed, sequence, evidence(&data, Mrtd([*mrtd; 48]), GuestOptions::default()))
        }
        Step::Card { seed, named, tdx } => {
            let held = record(*seed).and_then(|record| record.platform.attestation.as_ref()).map(|held| held.digest);
            let named = [None, held, Some(UniqueId::hash(b"made up"))][usize::from(*named)];
            post(*seed, sequence, attested_card(*seed, tick, named, *tdx))
        }
        Step::Request { nonce, tdx } => {
            let mut asked = request(9, *nonce, tick + 30);
            asked.tdx_required = *tdx;
            submit(asked, 9)
        }
        Step::Pass(_) => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn no_grant_goes_to_an_attestation_that_does_not_count(steps in prop::collection::vec(step(), 1..60), required: bool) {
        let mut sim = market(required);
        let mut observer = Observer::default();
        let mut checked = 0;
        for (number, step) in steps.iter().enumerate() {
            if let Step::Pass(ms) = step {
                sim.pass(u64::from(*ms));
            }
            if let Some(command) = command(step, &sim, number as u64 + 1) {
                let _ = sim.batch(&[command]);
            }
            for entry in &sim.entries[checked..] {
                observer.check(entry, required);
            }
            checked = sim.entries.len();
        }
        restored(&sim, required);
        sim.audit();
    }

    #[test]
    fn changed_states_are_refused_or_mean_themselves(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let mut sim = market(true);
        attest(&mut sim, 1, 1);
        sim.ok(ask(2, 1, 100));
        let mut bytes = sim.machine.snapshot();
        bytes[at.index(sim.machine.snapshot().len())] ^= flip;
        let mut machine = machine(true);
        if machine.restore(&bytes).is_ok() {
            prop_assert_eq!(machine.snapshot(), bytes);
        }
    }
}

fn machine(required: bool) -> ComputeMachine {
    ComputeMachine::new(organism(), params().with_attestation(rule(required))).unwrap()
}

/// A machine restored from the state in the middle of a log, and a reader likewise, are what they would have been.
fn restored(sim: &Sim, required: bool) {
    let (mut before, mut after) = (machine(required), machine(required));
    let cut = sim.entries.len() / 2;
    sim.entries[..cut].iter().for_each(|entry| before.evolve(entry));
    let snapshot = before.snapshot();
    after.restore(&snapshot).unwrap();
    assert_eq!((after.state(), after.snapshot()), (before.state(), snapshot.clone()));
    let mut view = MarketView::new(organism(), params().with_attestation(rule(required)));
    view.start_from(&snapshot).unwrap();
    for entry in &sim.entries[cut..] {
        after.evolve(entry);
        view.apply(entry).unwrap();
    }
    assert_eq!(after.state(), sim.machine.state());
    assert_eq!(view.state().providers(), sim.view.state().providers());
}

/// States of markets that ask and that do not are different bytes, and neither is read as the other.
#[test]
fn a_state_belongs_to_its_parameters() {
    let mut sim = market(true);
    sim.ok(ask(1, 1, 100));
    let mut plain = ComputeMachine::new(organism(), params()).unwrap();
    assert!(plain.restore(&sim.machine.snapshot()).is_err());
    assert!(machine(true).restore(&plain.snapshot()).is_err());
}
