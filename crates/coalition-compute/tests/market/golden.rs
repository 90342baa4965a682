//! Golden bytes: a change here is a change of the protocol, and needs a new version byte or a new organism.

use coalition::{EvidencePointer, UniqueId};
use coalition_compute::*;
use coalition_log::Machine as _;

use crate::common::*;

const VECTORS: &str = include_str!("../vectors/compute.txt");

/// A market with every kind of entry, made of fixed keys, times and content.
fn story() -> Sim {
    let mut sim = Sim::new();
    let mut tdx = offer("tdx", "home-01", 2, "0.09");
    tdx.capabilities.tdx_capable = true;
    tdx.capabilities.mrtds = vec![coalition::Mrtd([7; 48])];
    tdx.declared_rates.gib_hour = rate("0.002");
    sim.ok(post(1, 1, card(1, 100, vec![offer("local", "home-01", 2, "0.04"), tdx])));
    sim.ok(post(2, 1, card(2, 100, vec![offer("local", "home-02", 2, "0.05")])));
    let mut asked = request(9, 1, 160);
    asked.region = Some("home-01".parse().unwrap());
    asked.pin = Some(asked.image_hash);
    let id = asked.request_id;
    sim.ok(submit(asked, 9));
    sim.pass(1_000);
    sim.ok(serve(id, 1));
    sim.ok(end(id, 9));
    let mut last = ComputeLog {
        grant_id: id,
        provider: provider_id(1),
        number: 1,
        window: coalition::AlmanacRange { from: coalition::AlmanacTick(100), to: coalition::AlmanacTick(101) },
        usage: UsageMetrics { cpu_core_seconds: 1, ram_mib_seconds: 256, net_bytes: 4_096 },
        evidence: None,
        ended: Some(LogEnd::EndedByRequester),
    };
    last.evidence = Some(EvidencePointer { organism: organism(), index: 3, digest: UniqueId::hash(b"some commit") });
    sim.ok(Command::AppendLog(sign(last, 1)));
    let second = request(9, 2, 160);
    let second_id = second.request_id;
    sim.ok(submit(second, 9));
    let holder = if sim.grant(second_id).grant.provider == provider_id(1) { 1 } else { 2 };
    sim.ok(refuse(second_id, holder));
    sim.ok(withdraw(second_id, 9));
    let mut nowhere = request(9, 3, 102);
    nowhere.region = Some("mars-1".parse().unwrap());
    sim.ok(submit(nowhere, 9));
    sim.pass(1_000);
    sim.ok(Command::DeregisterCard(sign(Deregister { sequence: 2, provider: provider_id(2) }, 2)));
    sim.pass(600_000);
    sim
}

fn entry_line(entry: &coalition_log::Entry) -> String {
    let leaf = UniqueId::from_bytes(entry.leaf_hash().unwrap().0);
    let (index, kind, tick) = (entry.index, &entry.kind, entry.tick.unwrap());
    format!("entry {index} {kind} tick {tick} time {} leaf {leaf} body {}", entry.time_ms, hex::encode(&entry.body))
}

fn lines() -> Vec<String> {
    let sim = story();
    let mut lines = vec![
        format!("params {}", hex::encode(params().to_bytes())),
        format!("organism {}", organism()),
        format!("request-id {}", request(9, 1, 160).request_id),
        format!("anonymous-requester {}", request(9, 1, 160).requester),
        format!(
            "signed-bytes withdraw {}",
            hex::encode(Signed::signed_bytes(
                &WithdrawRequest { request_id: request(9, 1, 160).request_id },
                &organism()
            ))
        ),
    ];
    let mut inside = request(9, 2, 160);
    (inside.tdx_required, inside.pinned_mrtd) = (true, Some(coalition::Mrtd([7; 48])));
    let commands = [
        ("submit-tdx", submit(inside, 9)),
        ("register", post(1, 1, card(1, 100, vec![offer("local", "home-01", 2, "0.04")]))),
        ("submit", submit(request(9, 1, 160), 9)),
        ("log", log(request(9, 1, 160).request_id, 1, 1, (100, 101), None)),
    ];
    lines.extend(commands.iter().map(|(name, command)| format!("command {name} {}", hex::encode(command.to_bytes()))));
    lines.extend(sim.entries.iter().map(entry_line));
    // States in the middle of the story, with something of everything, and at its end.
    for cut in [5, sim.entries.len()] {
        let mut machine = ComputeMachine::new(organism(), params()).unwrap();
        sim.entries[..cut].iter().for_each(|entry| machine.evolve(entry));
        lines.push(format!("snapshot after {cut} {}", hex::encode(machine.snapshot())));
    }
    lines.extend(attestation_lines());
    lines.extend(later_lines());
    lines
}

/// Bytes of attestation. Quotes are never twice the same, so the evidence here is none.
fn attestation_lines() -> Vec<String> {
    let policy = coalition_attest::Policy::servers(coalition_attest::TrustRoot::Intel).max_quote_age_s(3_600).unwrap();
    let rule = AttestationRule { required: true, policy };
    let asked = AskChallenge { sequence: 5, provider: provider_id(1), asked_at: coalition::AlmanacTick(100) };
    let config = UniqueId::hash(b"boot file");
    let shown = Attest { sequence: 6, provider: provider_id(1), config, evidence: vec![1, 2, 3] };
    let found = Attestation {
        provider: provider_id(1),
        digest: UniqueId::hash(b"quote"),
        shape: EvidenceShape::TdxQuoteV4,
        root: RootKind::Intel,
        root_id: coalition_attest::TrustRoot::Intel.id(),
        policy: rule.policy.fingerprint(),
        mrtd: coalition::Mrtd([7; 48]),
        measurements: UniqueId::hash(b"registers"),
        config,
        challenged_ms: START_MS,
        verified_ms: START_MS + 1_000,
        expires_ms: START_MS + 3_601_000,
    };
    let body = entries::AttestationBody { shown: sign(shown.clone(), 1), found: found.clone() };
    let challenge = Challenge { nonce: UniqueId::hash(b"leaf"), time_ms: START_MS };
    let key = key(1).verifying_key().to_bytes();
    let provider = provider_report_data(organism(), &key, config, challenge);
    let workload = workload_report_data(organism(), &[9; 32], UniqueId::hash(b"image"), UniqueId::hash(b"request"));
    vec![
        format!("params-attested {}", hex::encode(params().with_attestation(rule.clone()).to_bytes())),
        format!("command ask-challenge {}", hex::encode(Command::AskChallenge(sign(asked.clone(), 1)).to_bytes())),
        format!("command attest {}", hex::encode(Command::Attest(sign(shown.clone(), 1)).to_bytes())),
        format!("body attestation {}", hex::encode(MarketEntry::Attestation(Box::new(body)).to_body())),
        format!("report-data provider {}", hex::encode(provider)),
        format!("report-data workload {}", hex::encode(workload)),
        format!("snapshot-attested {}", hex::encode(attested_state(rule, asked, shown, found))),
    ]
}

/// Extensions, inventories and usage reports, in a market of their own: what came before them keeps its bytes.
fn later_story() -> Sim {
    let mut sim = Sim::new();
    sim.ok(post(1, 1, card(1, 100, vec![offer("local", "home-01", 2, "0.04")])));
    let id = request(9, 1, 160).request_id;
    sim.ok(submit(request(9, 1, 160), 9));
    sim.ok(serve(id, 1));
    sim.ok(extend(id, 9, 1, 120));
    sim.pass(1_000);
    sim.ok(accept(&sim, id, 1, 1, 120));
    sim.ok(report(id, 9, 1, 2_500));
    sim.ok(inventory(&sim, 1, &[id]));
    sim.ok(extend(id, 9, 2, 7));
    sim.ok(decline(id, 1, 2));
    sim.ok(extend(id, 9, 3, 8));
    sim
}

fn later_lines() -> Vec<String> {
    let sim = later_story();
    let id = request(9, 1, 160).request_id;
    let hex_of = |command: &Command| hex::encode(command.to_bytes());
    let mut lines = vec![
        format!("open-grants {}", open_grants_digest([id])),
        format!("command extend {}", hex_of(&extend(id, 9, 1, 120))),
        format!("command decline {}", hex_of(&decline(id, 1, 2))),
        format!("command report {}", hex_of(&report(id, 9, 1, 2_500))),
    ];
    lines.extend(sim.entries[4..].iter().map(entry_line));
    lines.push(format!("snapshot-later {}", hex::encode(sim.machine.snapshot())));
    lines
}

#[test]
fn the_later_story_is_a_true_one_and_its_state_is_read_back() {
    let sim = later_story();
    sim.audit();
    let mut restored = ComputeMachine::new(organism(), params()).unwrap();
    restored.restore(&sim.machine.snapshot()).unwrap();
    assert_eq!(restored.state(), sim.machine.state());
}

/// The state of a market that holds an attestation, and a challenge not answered yet. Folding verifies nothing again.
fn attested_state(rule: AttestationRule, asked: AskChallenge, shown: Attest, found: Attestation) -> Vec<u8> {
    let mut machine = ComputeMachine::new(organism(), params().with_attestation(rule)).unwrap();
    let waiting = AskChallenge { provider: provider_id(2), ..asked };
    let entries = [
        MarketEntry::Challenge(Box::new(sign(asked, 1))),
        MarketEntry::Attestation(Box::new(entries::AttestationBody { shown: sign(shown, 1), found })),
        MarketEntry::Challenge(Box::new(sign(waiting, 2))),
    ];
    for (index, entry) in entries.iter().enumerate() {
        machine.evolve(&entry.to_draft(Vec::new()).into_entry(index as u64, Some(100), START_MS));
    }
    assert!(machine.fault().is_none());
    machine.snapshot()
}

#[test]
fn every_kind_of_entry_keeps_its_bytes() {
    let lines = lines();
    for kind in [
        "compute.card",
        "compute.card_removed",
        "compute.request",
        "compute.request_ended",
        "compute.clearing",
        "compute.grant",
        "compute.grant_serving",
        "compute.grant_ending",
        "compute.grant_ended",
        "compute.log",
        "compute.extension_asked",
        "compute.extension_answered",
        "compute.inventory",
        "compute.usage_report",
    ] {
        assert!(lines.iter().any(|line| line.contains(&format!(" {kind} "))), "{kind} is missing from the story");
    }
    let expected: Vec<_> = VECTORS.lines().filter(|line| !line.starts_with('#')).collect();
    for (found, expected) in lines.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(lines.len(), expected.len(), "run the ignored test `print_vectors` and compare:\n{}", lines.join("\n"));
    story().audit();
}

#[test]
#[ignore = "prints the vectors of this build, for a deliberate change of the protocol"]
fn print_vectors() {
    use std::io::Write;
    let text = lines().join("\n");
    writeln!(std::io::stdout(), "{text}").unwrap();
}

#[test]
fn json_is_readable_and_round_trips() {
    let posted = card(1, 100, vec![offer("local", "home-01", 2, "0.04")]);
    let json = serde_json::to_value(&posted).unwrap();
    assert_eq!(json["provider_peer"], serde_json::json!("01".repeat(32)));
    assert_eq!(json["offers"][0]["declared_rates"]["core_hour"], serde_json::json!("0.04"));
    assert_eq!(serde_json::from_value::<ProviderCard>(json).unwrap(), posted);
    let asked = request(9, 1, 160);
    let json = serde_json::to_string(&asked).unwrap();
    assert_eq!(serde_json::from_str::<ComputeRequest>(&json).unwrap(), asked);
}
