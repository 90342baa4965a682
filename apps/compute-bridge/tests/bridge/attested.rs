//! A bridge in a market that asks for attestation: attested and labelled, or refused with the reason.

use std::sync::Arc;

use coalition::{Mrtd, UniqueId};
use coalition_attest::{DevelopmentRoot, Evidence, Policy, Quote, TrustRoot, Verifier};
use coalition_compute::{AttestationRule, GrantStage, RootKind, expect_workload};
use coalition_shuffle::Posture;
use compute_bridge::check::attestation;
use compute_bridge::dashboard::prometheus;
use compute_bridge::market::Market;
use compute_bridge::platform::Platform;
use compute_bridge::provider::Attestor;
use compute_bridge::status::Snapshot;

use super::harness::*;
use super::world::*;

const BRIDGE: Mrtd = Mrtd([0xb1; 48]);
const GUEST: Mrtd = Mrtd([0x6e; 48]);

fn policy(root: TrustRoot) -> Policy {
    Policy::servers(root).require_mrtd(BRIDGE).max_quote_age_s(3_600).unwrap()
}

fn attestor(root: &Arc<DevelopmentRoot>) -> Attestor {
    let platform = Platform::development(Arc::clone(root), BRIDGE).unwrap();
    Attestor { platform, config: UniqueId::hash(b"boot file") }
}

/// A market under this policy with a bridge whose one backend runs development guests.
fn world(policy: Policy, required: bool, attestor: Option<Attestor>, root: &Arc<DevelopmentRoot>) -> World {
    let backend = FakeBackend::new("metal");
    *backend.guest.lock().unwrap() = Some(Platform::development(Arc::clone(root), GUEST).unwrap());
    let market = MemoryMarket::with(params().with_attestation(AttestationRule { required, policy }));
    World { market, attestor, ..World::new(vec![backend as _]) }
}

fn root() -> Arc<DevelopmentRoot> {
    Arc::new(DevelopmentRoot::generate().unwrap())
}

fn snapshot(world: &World, bridge: &Bridge) -> Snapshot {
    bridge.status.snapshot(world.market.as_ref(), &bridge.journal, &bridge.fleet)
}

#[tokio::test]
async fn an_attested_bridge_sells_guests_whose_quotes_bind_their_host_keys() {
    let root = root();
    let world = world(policy(root.trust_root().unwrap()), true, Some(attestor(&root)), &root);
    let bridge = world.start();
    world.card().await;
    let card = world.market.card(provider()).unwrap();
    let found = card.attestation.unwrap();
    assert_eq!((found.root, found.mrtd, found.config), (RootKind::Development, BRIDGE, UniqueId::hash(b"boot file")));
    assert!(card.card.offers[0].capabilities.tdx_capable && card.card.offers[0].capabilities.mrtds == [GUEST]);
    let shown = snapshot(&world, &bridge);
    assert!(shown.posture.contains("DEVELOPMENT ROOT") && shown.attestation_problem.is_none(), "{}", shown.posture);
    assert!(shown.backends[0].posture.contains("DEVELOPMENT ROOT"), "{}", shown.backends[0].posture);
    assert!(prometheus(&shown).contains("compute_bridge_posture{label=\"DEVELOPMENT ROOT"));

    let requester = world.ask(1, 60);
    world.stage(&requester, "service", |stage| *stage == GrantStage::Serving).await;
    let receipt = world.receipt(&requester).await;
    let evidence = Evidence::from_bytes(&world.delivered.lock().unwrap()[0]).unwrap();
    let quote = Quote::parse(&evidence.quote).unwrap();
    assert_eq!(receipt.posture, Posture::Attested { quote: quote.digest() });
    let grant = world.market.record(&requester.id()).unwrap().grant;
    let expect = |host_key: &[u8; 32]| {
        expect_workload(organism(), host_key, grant.image_hash, grant.request_id.0, compute_bridge::now_ms() / 1_000)
    };
    let verifier = Verifier::new(policy(root.trust_root().unwrap()).of_workload(Some(GUEST)));
    let judge = |host_key: &[u8; 32]| {
        let now_s = compute_bridge::now_ms() / 1_000 + 1;
        verifier.judge(&quote, evidence.collateral.as_ref().unwrap(), &expect(host_key), now_s)
    };
    assert!(judge(&receipt.ssh_host_key.0).is_valid());
    assert_eq!(judge(&[7; 32]).outcome.code(), Some("report_data"));
    bridge.stop().await;

    // The next boot has a nonce and a quote of its own.
    let bridge = world.start();
    let renewed = eventually("another attestation", || {
        {
            let _ = world.market.execute(None);
            world.market.attestation(provider())
        }
        .filter(|again| again.digest != found.digest)
    });
    assert!(renewed.await.challenged_ms >= found.challenged_ms);
    bridge.stop().await;
}

/// The reason stands where an operator looks: status (dashboard) and log.
async fn refused(world: &World, expected: &[&str]) {
    let log = captured_log();
    let bridge = world.start();
    let shown =
        eventually("the refusal", || Some(snapshot(world, &bridge)).filter(|shown| shown.card_problem.is_some()));
    let shown = shown.await;
    let problem = shown.card_problem.unwrap();
    let log = String::from_utf8_lossy(&log.lock().unwrap()).into_owned();
    for words in expected {
        assert!(problem.contains(words), "{words} in {problem}");
        assert!(log.contains(words), "{words} in the log");
    }
    assert_eq!((shown.posture.as_str(), shown.card_live), ("not attested", false));
    bridge.stop().await;
}

#[tokio::test]
async fn a_bridge_without_attestation_is_refused_where_it_is_required() {
    let root = root();
    let world = world(policy(root.trust_root().unwrap()), true, None, &root);
    refused(&world, &["admits only attested providers", "DEVELOPMENT ROOT"]).await;
}

#[tokio::test]
async fn a_development_bridge_is_refused_under_intels_root() {
    let root = root();
    let world = world(policy(TrustRoot::Intel), true, Some(attestor(&root)), &root);
    refused(&world, &["wrong_root", "Intel", "DEVELOPMENT ROOT"]).await;
}

#[tokio::test]
async fn another_program_than_the_policy_pins_is_refused() {
    let root = root();
    let mut other = attestor(&root);
    other.platform = Platform::development(Arc::clone(&root), Mrtd([9; 48])).unwrap();
    let world = world(policy(root.trust_root().unwrap()), true, Some(other), &root);
    refused(&world, &["(register)", "mrtd"]).await;
}

/// Where attestation is not required, a bridge that has none sells on as a plain host and claims nothing.
#[tokio::test]
async fn without_the_requirement_an_unproven_bridge_claims_no_tdx() {
    let root = root();
    for attestor in [None, Some(attestor(&root))] {
        let tried = attestor.is_some();
        let world = world(policy(TrustRoot::Intel), false, attestor, &root);
        let bridge = world.start();
        world.card().await;
        let card = world.market.card(provider()).unwrap();
        assert!(card.attestation.is_none() && !card.card.offers[0].capabilities.tdx_capable);
        let shown = snapshot(&world, &bridge);
        assert_eq!((shown.posture.as_str(), shown.attestation_problem.is_some()), ("not attested", tried));
        bridge.stop().await;
    }
}

#[test]
fn a_stored_development_root_is_read_back_and_damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (path, root) = (dir.path().join("root.json"), root());
    std::fs::write(&path, root.to_secret().as_bytes()).unwrap();
    assert_eq!(Platform::load_root(&path).unwrap().trust_root().unwrap(), root.trust_root().unwrap());
    std::fs::write(&path, "{}").unwrap();
    assert!(Platform::load_root(&path).is_err() && Platform::load_root(&dir.path().join("none")).is_err());
    let here = Platform::tdx(dir.path().to_owned());
    assert!(here.root().unwrap().is_intel());
    let quoted = here.show(&[0; 64], 0).map(|_| ()).unwrap_err();
    assert!(quoted.to_string().contains("makes no quote"), "this machine is no TDX guest: {quoted}");
    let guest = Platform::development(root, GUEST).unwrap();
    assert!(format!("{guest:?}").contains("DEVELOPMENT ROOT"));
}

/// `check` says before a start what the market would say after it.
#[tokio::test]
async fn check_names_what_is_missing() {
    let (other, root) = (root(), root());
    let rule = |root: TrustRoot, required| AttestationRule { required, policy: policy(root) };
    let own = rule(root.trust_root().unwrap(), true);
    let (ours, theirs, intel) = (attestor(&root), attestor(&other), rule(TrustRoot::Intel, true));
    let cases = [
        (Some(&own), Some(&ours), true, "DEVELOPMENT ROOT"),
        (Some(&own), None, false, "no [attestation]"),
        (Some(&intel), Some(&ours), false, "DEVELOPMENT ROOT"),
        (Some(&own), Some(&theirs), false, "names the root"),
        (None, Some(&ours), true, "plain host"),
    ];
    for (rule, attestor, ok, words) in cases {
        let found = attestation(rule, attestor).await.unwrap();
        assert!(found.ok == ok && found.detail.contains(words), "{found:?}");
    }
    assert!(attestation(Some(&rule(TrustRoot::Intel, false)), None).await.unwrap().ok);
    assert_eq!(attestation(None, None).await, None);
}
