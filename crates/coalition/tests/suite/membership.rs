//! The v0.2 test list: mixed compositions, module helpers, and identities that survive membership.

use coalition::{
    AclComposition, AclRule, AlmanacConfig, AtlasConfig, COALITION_ROOT_SEED, ChronicleConfig, CoalitionConfig,
    ComponentRef, ComputeConfig, ContentParams, LatticeConfig, MemberId, ModuleConfig, ModuleKind, OrganismConfig,
    OrganismRef, PublishedConfig, RandomnessConfig, RetirementInstant, RetirementMarker, RetirementPolicy,
    RetirementReason, SCHEMA_VERSION_U8, TicketIssuerConfig, UNIVERSE, UniqueId, coalition_ticket_issuer_root,
    derive_stable_id, unique_id,
};
use proptest::prelude::*;

use crate::model::{committee, id, small};

const ORACLE: OrganismRef<'static> = OrganismRef::by_stable_id("oracle", unique_id!("oracle"));
const SIGNER: OrganismRef<'static> = OrganismRef::by_stable_id("signer", unique_id!("signer"));
const MAINNET: LatticeConfig<'static> =
    LatticeConfig { instance_name: "ethereum.mainnet", stable_id: unique_id!("ethereum.mainnet"), content_hash: None };
const ROUTER: OrganismConfig<'static> = OrganismConfig {
    name: "intents",
    lattices: &[MAINNET],
    organisms: &[ORACLE],
    content: ContentParams::new(b"policy"),
    acl: AclComposition::new(&[AclRule::Issuer(UNIVERSE)]),
};
const MIXED: CoalitionConfig<'static> = CoalitionConfig {
    schema_version: SCHEMA_VERSION_U8,
    coalition_seed: COALITION_ROOT_SEED,
    instance_name: "ethereum.superchain",
    lattices: &[MAINNET.stable_id()],
    organisms: &[ORACLE, SIGNER],
    atlas: None,
    almanac: Some(OrganismRef::by_stable_id("almanac", unique_id!("almanac"))),
    chronicle: None,
    compute: None,
    randomness: None,
    ticket_issuer: Some(TicketIssuerConfig { name: "issuer", acl: AclComposition::OPEN }),
    retirement_policy: RetirementPolicy::default(),
};

#[test]
fn mixed_compositions_derive() {
    let lattices = [MAINNET.stable_id(), id(1)];
    let organisms = [ORACLE, SIGNER];
    let base = CoalitionConfig::empty("c");
    let no_lattices = CoalitionConfig { organisms: &organisms, ..base };
    let no_organisms = CoalitionConfig { lattices: &lattices, ..base };
    let both = CoalitionConfig { lattices: &lattices, organisms: &organisms, ..base };
    let ids = [base, no_lattices, no_organisms, both].map(|c| c.stable_id());
    for (i, a) in ids.iter().enumerate() {
        assert!(ids[i + 1..].iter().all(|b| a != b), "composition {i}");
    }
}

#[test]
fn module_helpers_return_what_the_slot_holds() {
    assert_eq!(MIXED.almanac(), MIXED.almanac.as_ref());
    assert!(MIXED.almanac().is_some());
    assert_eq!(MIXED.atlas(), None);
    assert_eq!(MIXED.chronicle(), None);
    assert_eq!(MIXED.compute(), None);
    assert_eq!(MIXED.randomness(), None);
    for kind in ModuleKind::ALL {
        let module = OrganismRef::by_stable_id(kind.str_name(), id(9));
        let config = CoalitionConfig::empty("c").with_module(kind, module);
        for other in ModuleKind::ALL {
            assert_eq!(config.module(other).is_some(), other == kind, "{kind} in {other}");
        }
        assert_eq!(kind.str_name().parse(), Ok(kind));
    }
    assert_eq!(MIXED.organisms_by_name("signer"), Some(&SIGNER));
    assert_eq!(MIXED.organisms_by_name("searcher"), None);
    assert!("Atlas".parse::<ModuleKind>().is_err());
}

#[test]
fn the_issuer_derives_under_the_root_and_bumps_it() {
    let root = MIXED.root();
    assert_eq!(MIXED.ticket_issuer_root(), Some(root.derive("tickets")));
    assert_eq!(MIXED.ticket_issuer_root(), Some(coalition_ticket_issuer_root(root)));
    let rotated = CoalitionConfig {
        ticket_issuer: Some(TicketIssuerConfig {
            name: "issuer",
            acl: AclComposition::new(&[AclRule::Policy(UNIVERSE)]),
        }),
        ..MIXED
    };
    assert_ne!(rotated.ticket_issuer_root(), MIXED.ticket_issuer_root());
    assert_eq!(CoalitionConfig::empty("c").ticket_issuer_root(), None);
}

#[test]
fn member_identities_do_not_fold_a_coalition() {
    let reference = ROUTER.reference("intents");
    let organisms = [reference];
    let first = CoalitionConfig { organisms: &organisms, ..CoalitionConfig::empty("first") };
    let second = CoalitionConfig { organisms: &organisms, ..CoalitionConfig::empty("second") };
    assert_ne!(first.stable_id(), second.stable_id());
    for coalition in [first, second] {
        let member = coalition.organisms_by_name("intents").unwrap();
        assert_eq!(member.stable_id(), ROUTER.organism_id());
        assert_eq!(member.content_hash(), Some(ROUTER.content_hash()));
        assert_eq!(member.member_id(), MemberId::from_stable_id(ROUTER.organism_id()));
    }
}

#[test]
fn a_pinned_rotation_reaches_the_coalition_and_an_unpinned_one_does_not() {
    let rotated = OrganismRef { content_hash: Some(id(7)), ..ORACLE };
    let with = |organism: OrganismRef<'static>| {
        CoalitionConfig { organisms: &[organism], ..CoalitionConfig::empty("c") }.stable_id()
    };
    assert_ne!(with(ORACLE.pinned(id(6))), with(rotated));
    assert_eq!(with(ORACLE), with(OrganismRef::by_stable_id("oracle", ORACLE.stable_id)));
    assert!(RetirementPolicy::CONSERVATIVE.needs_republication(&ORACLE, &rotated));
    assert!(!RetirementPolicy::LENIENT.needs_republication(&ORACLE, &rotated));
    assert!(RetirementPolicy::LENIENT.needs_republication(&ORACLE, &SIGNER));
}

#[test]
fn modules_derive_under_the_root_and_are_told_apart_by_kind() {
    let body = ModuleConfig::new("default", ContentParams::EMPTY, AclComposition::OPEN);
    let root = MIXED.root();
    let ids = [
        AtlasConfig::new(body).module_id(root),
        AlmanacConfig::new(body).module_id(root),
        ChronicleConfig::new(body).module_id(root),
        ComputeConfig::new(body).module_id(root),
        RandomnessConfig::new(body).module_id(root),
    ];
    for (kind, module_id) in ModuleKind::ALL.into_iter().zip(ids) {
        assert_eq!(module_id, body.module_id(kind, root));
        assert_eq!(kind.module_root(root), root.derive("module").derive(kind.str_name()));
        assert_eq!(ids.iter().filter(|other| **other == module_id).count(), 1);
        assert_ne!(module_id, body.module_id(kind, id(1)), "another coalition, another module");
    }
    let reference = ComputeConfig::new(body).reference(root);
    assert_eq!(reference, OrganismRef { role: "compute", stable_id: ids[3], content_hash: Some(body.content_hash()) });
}

#[test]
fn stable_ids_depend_on_name_and_network() {
    let here = derive_stable_id("oracle-γ", UNIVERSE);
    assert_ne!(here, derive_stable_id("oracle-γ", id(1)));
    assert_ne!(here, derive_stable_id("oracle-δ", UNIVERSE));
}

proptest! {
    /// Whatever else a coalition is made of, what it says about a member is what the member published.
    #[test]
    fn member_ids_survive_membership(model in small::coalitions(), organism in small::organisms()) {
        let own = organism.with(|c| (c.organism_id(), c.content_hash()));
        let mut joined = model.clone();
        let position = joined.organisms.len();
        let reference = organism.with(|c| {
            let r = c.reference("member");
            crate::model::RefModel { role: r.role.to_owned(), stable_id: r.stable_id, content_hash: r.content_hash }
        });
        joined.organisms.push(reference);
        joined.with(|config| {
            let member = config.organisms[position];
            assert_eq!((member.stable_id(), member.content_hash()), (own.0, Some(own.1)));
        });
        let before = model.with(|c| c.organisms.iter().map(OrganismRef::member_id).collect::<Vec<_>>());
        let after = joined.with(|c| c.organisms[..position].iter().map(OrganismRef::member_id).collect::<Vec<_>>());
        prop_assert_eq!(before, after);
        prop_assert_eq!(organism.with(|c| c.organism_id()), own.0);
    }
}

/// A module's content can name another module: neither id depends on the other's slot.
#[test]
fn a_module_can_name_another_modules_id() {
    let almanac = committee("almanac.v1", 4);
    let builder = PublishedConfig::builder("c").module(ModuleKind::Almanac, "default", &almanac);
    let bytes = almanac.to_bytes();
    let body = ModuleConfig::new("default", ContentParams::new(&bytes), AclComposition::OPEN);
    let almanac_id = body.module_id(ModuleKind::Almanac, builder.root().unwrap());
    let mut compute = committee("compute.v1", 4);
    compute.params = almanac_id.as_bytes().to_vec();
    let config = builder.module(ModuleKind::Compute, "default", &compute).build().unwrap();
    assert_eq!(config.module(ModuleKind::Almanac).unwrap().id, almanac_id);
    assert_eq!(config.committee(ModuleKind::Compute).unwrap().params, almanac_id.as_bytes());
}

#[test]
fn retirement_markers_keep_reason_and_replacement_consistent() {
    let at = RetirementInstant::AtSequence(100);
    let rotation = RetirementMarker::rotation(at, MAINNET);
    assert_eq!(rotation.replacement.map(|c| c.stable_id()), Some(MAINNET.stable_id));
    let markers = [
        rotation,
        RetirementMarker::rotation(at, ORACLE.pinned(id(3))),
        RetirementMarker::rotation(at, ComponentRef::Module(ModuleKind::Chronicle, SIGNER)),
        RetirementMarker::retired(RetirementInstant::AtTimestamp(1_700_000_000_000)),
        RetirementMarker::operator_exit(RetirementInstant::AtTick(coalition::AlmanacTick(5))),
        RetirementMarker::emergency(at, None),
        RetirementMarker::emergency(at, Some(ComponentRef::Coalition(id(4)))),
    ];
    for (i, marker) in markers.iter().enumerate() {
        assert_eq!(RetirementMarker::from_bytes(&marker.to_bytes()), Ok(*marker));
        assert!(markers[i + 1..].iter().all(|m| m.fingerprint() != marker.fingerprint()));
    }
    let mut contradiction = rotation;
    contradiction.reason = RetirementReason::Retired;
    let error = RetirementMarker::from_bytes(&contradiction.to_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "a retirement for the reason Retired has no place for a replacement");
}

#[test]
fn the_empty_coalition_is_valid() {
    let config = PublishedConfig::builder("nothing").build().unwrap();
    assert_eq!(config.fingerprint(), CoalitionConfig::empty("nothing").stable_id());
    assert_ne!(config.fingerprint(), UniqueId::hash(b"nothing"));
}
