//! Golden vectors: one example at least of every rule in `docs/protocol/identity.md`.
//!
//! The file is compared, never rewritten, unless `COALITION_REWRITE_VECTORS=1` is set: a difference is a change of every
//! fingerprint ever published. `tools/check_identity.py` recomputes the file without this crate.

use std::path::PathBuf;

use coalition::political_theory::{
    CompositionForm, ConsentEvidence, ConsentModel, DecisionRule, Delegation, DelegationScope, FranchiseScope,
    Legitimacy, PoliticalStance, Revocability, SovereigntyClaim,
};
use coalition::{
    AclComposition, AclRule, AlmanacTick, COALITION_ROOT_SEED, CoalitionConfig, CommitteeContent, ComponentRef,
    ContentParams, EvidencePointer, LatticeConfig, MemberId, ModuleConfig, ModuleKind, Mrtd, OrganismConfig,
    OrganismRef, ProviderId, PublishedConfig, RetirementInstant, RetirementMarker, TicketIssuerConfig, UNIVERSE,
    UniqueId, ZERO_ID, coalition_ticket_issuer_root, derive_stable_id, hash_many,
};
use serde_json::{Value, json};

use crate::model::{committee, dev_config, id};

const REWRITE: &str = "COALITION_REWRITE_VECTORS";

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/identity.json")
}

#[test]
fn golden_vectors_have_not_moved() {
    let computed = json!({
        "about": "Golden vectors of docs/protocol/identity.md; see tools/check_identity.py.",
        "vectors": all(),
    });
    let text = serde_json::to_string_pretty(&computed).unwrap() + "\n";
    if std::env::var_os(REWRITE).is_some_and(|v| v == "1") {
        std::fs::write(path(), &text).unwrap();
    }
    let committed: Value = serde_json::from_str(&std::fs::read_to_string(path()).unwrap()).unwrap();
    let (committed, computed) = (&committed["vectors"], &computed["vectors"]);
    for (old, new) in committed.as_array().unwrap().iter().zip(computed.as_array().unwrap()) {
        assert_eq!(old, new, "this derivation changed, and with it every published fingerprint");
    }
    assert_eq!(committed, computed, "vectors were added or removed: set {REWRITE}=1 to rewrite the file");
}

/// A few digests pinned in the source as well, so that a rewritten file cannot carry a change through unseen.
#[test]
fn anchors_have_not_moved() {
    let anchor = |id: UniqueId, hex: &str| assert_eq!(id.to_string(), hex);
    anchor(COALITION_ROOT_SEED, "bb8eb9bda9e543d8587c1d10516bef9c6b74c27c4631b46f7876a74171fc9746");
    anchor(CoalitionConfig::empty("dev").root(), "af017792f420c53ea1f513f949c85b7ba6c1a1e913a86c25cd76d400a56c9122");
    anchor(
        CoalitionConfig::empty("dev").stable_id(),
        "652b509254f565641eba2fca33f85e5ca22bd4a772c13490b35ac30b2008a0ae",
    );
    anchor(dev_config().fingerprint(), "4ac512bc4ef07ab0a25c34f68d2a43ee13b771dbd5665c53783c6c27ccdc62a2");
}

fn vector(rule: &str, name: &str, input: Value, output: Value) -> Value {
    json!({ "rule": rule, "name": name, "in": input, "out": output })
}

fn all() -> Vec<Value> {
    [basics(), members(), organisms(), coalitions(), committees(), retirements(), stances(), published()].concat()
}

fn basics() -> Vec<Value> {
    let many = |name, parts: &[&[u8]]| {
        let input: Vec<_> = parts.iter().map(hex::encode).collect();
        vector("hash_many", name, json!({ "parts": input }), json!({ "id": hash_many(parts) }))
    };
    vec![
        vector(
            "constants",
            "all",
            json!({}),
            json!({ "coalition_root_seed": COALITION_ROOT_SEED, "universe": UNIVERSE, "zero_id": ZERO_ID }),
        ),
        many("no parts", &[]),
        many("one empty part", &[b""]),
        many("two parts", &[b"ab", b"c"]),
        many("the same bytes split elsewhere", &[b"a", b"bc"]),
    ]
}

fn members() -> Vec<Value> {
    let stable = |name: &str, network| {
        vector(
            "stable_id",
            name,
            json!({ "instance_name": name, "network": network }),
            json!({ "id": derive_stable_id(name, network) }),
        )
    };
    let organism =
        |name, r: OrganismRef<'_>| vector("organism_ref", name, ref_json(&r), json!({ "id": r.fingerprint() }));
    let lattice =
        |name, l: LatticeConfig<'_>| vector("lattice_ref", name, lattice_json(&l), json!({ "id": l.fingerprint() }));
    let plain = OrganismRef::by_stable_id("oracle", id(1));
    vec![
        stable("testnet-1a", UNIVERSE),
        stable("oracle-γ.oracle", id(9)),
        vector(
            "provider_id",
            "a key",
            json!({ "public_key": id(5) }),
            json!({ "id": ProviderId::from_public_key(id(5).as_bytes()) }),
        ),
        organism("not pinned", plain),
        organism("pinned", plain.pinned(id(2))),
        organism("pinned to zero", plain.pinned(ZERO_ID)),
        lattice("not pinned", lattices()[0]),
        lattice("pinned", lattices()[1]),
    ]
}

fn lattices() -> [LatticeConfig<'static>; 2] {
    let lattice = |instance_name, stable_id, content_hash| LatticeConfig { instance_name, stable_id, content_hash };
    [lattice("ethereum.mainnet", id(0x41), None), lattice("base.mainnet", id(0x42), Some(id(0x43)))]
}

const RULES: [AclRule; 5] = [
    AclRule::Issuer(UNIVERSE),
    AclRule::Tdx { root: COALITION_ROOT_SEED, mrtd: Mrtd([0xab; 48]) },
    AclRule::Reputation { organism: UNIVERSE, floor_ppm: 900_000 },
    AclRule::Settlement { organism: UNIVERSE },
    AclRule::Policy(COALITION_ROOT_SEED),
];

fn organisms() -> Vec<Value> {
    let refs = [OrganismRef::by_stable_id("oracle", id(1)), OrganismRef::by_stable_id("signer", id(2)).pinned(id(3))];
    let standalone = OrganismConfig {
        name: "oracle",
        lattices: &[],
        organisms: &[],
        content: ContentParams::EMPTY,
        acl: AclComposition::OPEN,
    };
    let composite = OrganismConfig {
        name: "intents-γ",
        lattices: &lattices(),
        organisms: &refs,
        content: ContentParams::new(b"window=30"),
        acl: AclComposition::new(&RULES),
    };
    let mut vectors = vec![content("empty", b""), content("some bytes", b"cadence_ms=1000")];
    for (i, name) in ["issuer", "tdx", "reputation", "settlement", "policy"].into_iter().enumerate() {
        vectors.push(acl(name, &RULES[i..=i]));
    }
    vectors.extend([
        acl("open", &[]),
        acl("all rules", &RULES),
        organism_vector("standalone", &standalone),
        organism_vector("composite", &composite),
    ]);
    vectors
}

fn content(name: &str, preimage: &[u8]) -> Value {
    let input = json!({ "preimage": hex::encode(preimage) });
    vector("content", name, input, json!({ "id": ContentParams::new(preimage).fingerprint() }))
}

fn acl(name: &str, rules: &[AclRule]) -> Value {
    let output = json!({ "id": AclComposition::new(rules).fingerprint() });
    vector("acl", name, json!({ "rules": rules }), output)
}

fn organism_vector(name: &str, config: &OrganismConfig<'_>) -> Value {
    let input = json!({
        "name": config.name,
        "lattices": config.lattices.iter().map(lattice_json).collect::<Vec<_>>(),
        "organisms": config.organisms.iter().map(ref_json).collect::<Vec<_>>(),
        "content": hex::encode(config.content.preimage()),
        "acl": config.acl.rules(),
    });
    let output = json!({
        "organism_id": config.organism_id(),
        "content_hash": config.content_hash(),
        "committee_id": config.committee_id(),
        "member_id": MemberId::from_stable_id(config.organism_id()),
    });
    vector("organism", name, input, output)
}

fn coalitions() -> Vec<Value> {
    let issuer = TicketIssuerConfig { name: "issuer-α", acl: AclComposition::new(&RULES[..2]) };
    let lattices = [id(0x41), id(0x42)];
    let organisms =
        [OrganismRef::by_stable_id("oracle", id(1)), OrganismRef::by_stable_id("signer", id(2)).pinned(id(3))];
    let empty = CoalitionConfig::empty("ethereum.superchain");
    let full = CoalitionConfig {
        lattices: &lattices,
        organisms: &organisms,
        ticket_issuer: Some(issuer),
        ..CoalitionConfig::empty("searcher-α")
    };
    let full = ModuleKind::ALL.into_iter().fold(full, |config, kind| {
        let module = ModuleConfig::new("default", ContentParams::new(kind.str_name().as_bytes()), AclComposition::OPEN);
        config.with_module(kind, module.reference(kind, config.root()))
    });
    let other_schema = CoalitionConfig { schema_version: 2, ..empty };
    let mut vectors = vec![
        coalition("empty", &empty),
        coalition("full", &full),
        coalition("another schema version", &other_schema),
        vector(
            "ticket_issuer",
            "two rules",
            json!({ "name": issuer.name, "acl": issuer.acl.rules() }),
            json!({ "id": issuer.fingerprint() }),
        ),
    ];
    for kind in ModuleKind::ALL {
        let only = empty.with_module(kind, OrganismRef::by_stable_id("module", id(7)));
        vectors.push(coalition(&format!("only {kind}"), &only));
        let body = ModuleConfig::new("default", ContentParams::new(b"params"), AclComposition::new(&RULES[..1]));
        vectors.push(module(kind, empty.root(), &body));
    }
    vectors
}

fn coalition(name: &str, config: &CoalitionConfig<'_>) -> Value {
    let mut input = json!({
        "schema_version": config.schema_version,
        "coalition_seed": config.coalition_seed,
        "instance_name": config.instance_name,
        "lattices": config.lattices,
        "organisms": config.organisms.iter().map(ref_json).collect::<Vec<_>>(),
        "ticket_issuer": config.ticket_issuer.map(|i| json!({ "name": i.name, "acl": i.acl.rules() })),
    });
    for kind in ModuleKind::ALL {
        input[kind.str_name()] = config.module(kind).map_or(Value::Null, ref_json);
    }
    let output = json!({
        "root": config.root(),
        "stable_id": config.stable_id(),
        "tickets_root": coalition_ticket_issuer_root(config.root()),
    });
    vector("coalition", name, input, output)
}

fn module(kind: ModuleKind, root: UniqueId, body: &ModuleConfig<'_>) -> Value {
    let input = json!({
        "kind": kind,
        "root": root,
        "name": body.name,
        "content": hex::encode(body.content.preimage()),
        "acl": body.acl.rules(),
    });
    let output = json!({
        "module_id": body.module_id(kind, root),
        "content_hash": body.content_hash(),
        "committee_id": body.committee_id(kind, root),
    });
    vector("module", kind.str_name(), input, output)
}

fn committees() -> Vec<Value> {
    [(1, None), (4, None), (1, Some(id(7)))]
        .into_iter()
        .flat_map(|(n, predecessor)| {
            let content = CommitteeContent { predecessor, ..committee("compute.v1", n) };
            let name = format!("{n} members{}", if predecessor.is_some() { ", a successor" } else { "" });
            let members = serde_json::to_value(&content.roster).unwrap();
            let mut input = json!({
                "service": content.service,
                "roster": members,
                "params": hex::encode(&content.params),
            });
            if let Some(predecessor) = content.predecessor {
                input["predecessor"] = json!(predecessor);
            }
            [
                vector("roster", &name, json!({ "members": members }), json!({ "id": content.roster.fingerprint() })),
                vector("committee_content", &name, input, json!({ "bytes": hex::encode(content.to_bytes()) })),
            ]
        })
        .collect()
}

fn retirements() -> Vec<Value> {
    let oracle = OrganismRef::by_stable_id("oracle", id(1));
    let sequence = RetirementInstant::AtSequence(100);
    let replaced = |component| RetirementMarker::rotation(sequence, component);
    [
        ("to an organism", replaced(ComponentRef::Organism(oracle.pinned(id(2))))),
        ("to a lattice", replaced(ComponentRef::Lattice(lattices()[0]))),
        (
            "to a module",
            replaced(ComponentRef::Module(ModuleKind::Compute, OrganismRef::by_stable_id("compute", id(4)))),
        ),
        ("to a coalition", replaced(ComponentRef::Coalition(id(3)))),
        ("retired", RetirementMarker::retired(RetirementInstant::AtTimestamp(1_700_000_000_000))),
        ("operator exit", RetirementMarker::operator_exit(RetirementInstant::AtTick(AlmanacTick(77)))),
        ("emergency", RetirementMarker::emergency(sequence, None)),
    ]
    .into_iter()
    .map(|(name, marker)| {
        let replacement = marker.replacement.map(|component| match component {
            ComponentRef::Organism(r) => json!({ "organism": ref_json(&r) }),
            ComponentRef::Lattice(l) => json!({ "lattice": lattice_json(&l) }),
            ComponentRef::Module(_, r) => json!({ "module": ref_json(&r) }),
            ComponentRef::Coalition(id) => json!({ "coalition": id }),
        });
        vector(
            "retirement",
            name,
            json!({ "reason": marker.reason, "effective_at": marker.effective_at, "replacement": replacement }),
            json!({ "bytes": hex::encode(marker.to_bytes()), "fingerprint": marker.fingerprint() }),
        )
    })
    .collect()
}

fn stances() -> Vec<Value> {
    let default = PoliticalStance::DEFAULT;
    let attested = PoliticalStance {
        consent: ConsentModel::Delegated,
        decision_rule: DecisionRule::Supermajority { threshold_bps: 6_667 },
        legitimacy: Legitimacy::composed(Legitimacy::CONSENT_BIT | Legitimacy::ATTESTATION_BIT),
        franchise: FranchiseScope::Attested { measurements: Mrtd([0xab; 48]) },
        composition: CompositionForm::MultiOperator,
        sovereignty: SovereigntyClaim::Shared,
    };
    let compelled = PoliticalStance {
        consent: ConsentModel::Compulsory,
        decision_rule: DecisionRule::Sortition { seats: 12 },
        legitimacy: Legitimacy::composed(Legitimacy::EXTERNAL_BIT),
        franchise: FranchiseScope::Reputed { organism: id(1), floor_ppm: 500_000 },
        composition: CompositionForm::Nested,
        sovereignty: SovereigntyClaim::Absolute,
    };
    let stance = |name, stance: PoliticalStance, input: Value| {
        vector("stance", name, input, json!({ "id": stance.fingerprint() }))
    };
    let mut vectors = vec![
        stance(
            "default",
            default,
            json!({
                "consent": "voluntary", "decision_rule": ["majority", null], "legitimacy": 1,
                "franchise": ["open", null], "composition": "direct", "sovereignty": "none",
            }),
        ),
        stance(
            "attested",
            attested,
            json!({
                "consent": "delegated", "decision_rule": ["supermajority", 6667], "legitimacy": 3,
                "franchise": ["attested", "ab".repeat(48)], "composition": "multi_operator", "sovereignty": "shared",
            }),
        ),
        stance(
            "compelled",
            compelled,
            json!({
                "consent": "compulsory", "decision_rule": ["sortition", 12], "legitimacy": 16,
                "franchise": ["reputed", [id(1), 500_000]], "composition": "nested", "sovereignty": "absolute",
            }),
        ),
    ];
    vectors.extend(delegations());
    vectors
}

fn delegations() -> Vec<Value> {
    let delegation = |name, scope, scope_text: &str, revocability, revocability_json: Value| {
        let delegation = Delegation {
            delegator: MemberId::from_stable_id(id(1)),
            delegate: MemberId::from_stable_id(id(2)),
            scope,
            revocability,
        };
        let input = json!({
            "delegator": delegation.delegator, "delegate": delegation.delegate,
            "scope": scope_text, "revocability": revocability_json,
        });
        vector("delegation", name, input, json!({ "id": delegation.fingerprint() }))
    };
    let evidence = |name, evidence: ConsentEvidence, input: Value| {
        let output = json!({ "id": evidence.fingerprint() });
        vector("consent_evidence", name, json!({ "evidence": input }), output)
    };
    let pointer = EvidencePointer { organism: id(1), index: 42, digest: id(2) };
    vec![
        delegation(
            "tickets at will",
            DelegationScope::TicketIssuance,
            "ticket_issuance",
            Revocability::AtWill,
            json!(["at_will", null]),
        ),
        delegation(
            "compute until a tick",
            DelegationScope::Compute,
            "compute",
            Revocability::AtTick(AlmanacTick(99)),
            json!(["at_tick", 99]),
        ),
        evidence("a quote", ConsentEvidence::SelfQuote(id(1)), json!(["self_quote", id(1)])),
        evidence("a ticket", ConsentEvidence::Ticket(id(1)), json!(["ticket", id(1)])),
        evidence(
            "a commit",
            ConsentEvidence::Commit(pointer),
            json!(["commit", { "organism": id(1), "index": 42, "digest": id(2) }]),
        ),
    ]
}

fn published() -> Vec<Value> {
    let composite = OrganismConfig {
        name: "intents",
        lattices: &lattices(),
        organisms: &[OrganismRef::by_stable_id("oracle", id(1))],
        content: ContentParams::new(b"window=30"),
        acl: AclComposition::new(&RULES),
    };
    let module = ModuleConfig::new("default", ContentParams::new(b"members=3"), AclComposition::new(&RULES));
    let rich = PublishedConfig::builder("rich")
        .organism_config("intents", &composite)
        .module_config(ModuleKind::Atlas, &module)
        .module_ref(ModuleKind::Randomness, id(8), None)
        .build()
        .unwrap();
    [("empty", PublishedConfig::builder("nothing").build().unwrap()), ("development", dev_config()), ("rich", rich)]
        .into_iter()
        .map(|(name, config)| {
            let mut output = json!({ "root": config.root(), "fingerprint": config.fingerprint() });
            for kind in ModuleKind::ALL {
                if let Some(module) = config.module_ref(kind) {
                    output[kind.str_name()] = json!(module.stable_id);
                }
            }
            vector("published", name, json!({ "hex": config.to_hex() }), output)
        })
        .collect()
}

fn ref_json(r: &OrganismRef<'_>) -> Value {
    json!({ "role": r.role, "stable_id": r.stable_id, "content_hash": r.content_hash })
}

fn lattice_json(l: &LatticeConfig<'_>) -> Value {
    json!({ "instance_name": l.instance_name, "stable_id": l.stable_id, "content_hash": l.content_hash })
}
