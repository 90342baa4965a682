//! Every folded field changes the id, and nothing else does: no two different configs share one.

use coalition::{
    AclComposition, CoalitionConfig, LatticeConfig, ModuleKind, OrganismConfig, OrganismRef, RetirementPolicy,
    TicketIssuerConfig, UniqueId, ZERO_ID, hash_many,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::model::{CoalitionModel, OrganismModel, RefModel, id, small};

/// Changes exactly one folded field of the root, chosen by `which`.
fn change_root_field(model: &mut CoalitionModel, which: usize) -> &'static str {
    let fresh = UniqueId::hash(b"fresh");
    let changes: [(&str, fn(&mut CoalitionModel, UniqueId)); 8] = [
        ("schema version", |m, _| m.schema_version ^= 0x80),
        ("seed", |m, fresh| m.seed = fresh),
        ("name", |m, _| m.name.push('!')),
        ("new lattice", |m, fresh| m.lattices.push(fresh)),
        ("new organism", |m, fresh| {
            m.organisms.push(RefModel { role: String::new(), stable_id: fresh, content_hash: None });
        }),
        ("first organism's pin", |m, fresh| match m.organisms.first_mut() {
            Some(first) => first.content_hash = Some(fresh),
            None => m.name.push('?'),
        }),
        ("first organism's role", |m, _| match m.organisms.first_mut() {
            Some(first) => first.role.push('!'),
            None => m.name.push('?'),
        }),
        ("issuer", |m, _| match &mut m.issuer {
            Some((name, _)) => name.push('!'),
            None => m.issuer = Some((String::new(), Vec::new())),
        }),
    ];
    let (what, change) = changes[which % changes.len()];
    change(model, fresh);
    what
}

proptest! {
    #[test]
    fn a_change_of_any_root_field_changes_root_and_fingerprint(
        model in small::coalitions(),
        which in 0usize..8,
    ) {
        let mut changed = model.clone();
        let what = change_root_field(&mut changed, which);
        prop_assert_ne!(model.root(), changed.root(), "{}", what);
        prop_assert_ne!(model.stable_id(), changed.stable_id(), "{}", what);
    }

    #[test]
    fn a_change_of_any_module_slot_changes_the_fingerprint_and_not_the_root(
        model in small::coalitions(),
        slot in 0usize..5,
        replacement in proptest::option::of(small::refs()),
    ) {
        let mut changed = model.clone();
        changed.slots[slot] = replacement;
        prop_assert_eq!(model.root(), changed.root());
        prop_assert_eq!(model == changed, model.stable_id() == changed.stable_id());
    }

    /// Small alphabets make almost-equal pairs common: shifted lists, swapped slots, absent against zero.
    #[test]
    fn coalitions_share_an_id_only_when_equal(a in small::coalitions(), b in small::coalitions()) {
        prop_assert_eq!(a == b, a.stable_id() == b.stable_id());
        let modules_aside = CoalitionModel { slots: b.slots.clone(), ..a.clone() } == b;
        prop_assert_eq!(modules_aside, a.root() == b.root());
    }

    #[test]
    fn organisms_share_an_id_only_when_equal(a in small::organisms(), b in small::organisms()) {
        let ids = |m: &OrganismModel| m.with(|c| (c.organism_id(), c.content_hash()));
        let ((id_a, content_a), (id_b, content_b)) = (ids(&a), ids(&b));
        prop_assert_eq!(a == b, id_a == id_b);
        prop_assert_eq!((&a.content, &a.acl) == (&b.content, &b.acl), content_a == content_b);
    }

    #[test]
    fn modules_share_an_id_only_when_equal(
        a in small::organisms(), b in small::organisms(),
        kinds in (0usize..5, 0usize..5), roots in (small::ids(), small::ids()),
    ) {
        let kind = |i: usize| ModuleKind::ALL[i];
        let of = |m: &OrganismModel, k, root| m.as_module().module_id(kind(k), root);
        let same = (&a.name, &a.content, &a.acl, kinds.0, roots.0) == (&b.name, &b.content, &b.acl, kinds.1, roots.1);
        prop_assert_eq!(same, of(&a, kinds.0, roots.0) == of(&b, kinds.1, roots.1));
    }

    #[test]
    fn references_and_issuers_share_an_id_only_when_equal(
        a in small::refs(), b in small::refs(),
        x in (small::names(), small::acls()), y in (small::names(), small::acls()),
    ) {
        prop_assert_eq!(a == b, a.lend().fingerprint() == b.lend().fingerprint());
        let lattice = |r: &RefModel| LatticeConfig {
            instance_name: &r.role, stable_id: r.stable_id, content_hash: r.content_hash,
        }.fingerprint();
        prop_assert_eq!(a == b, lattice(&a) == lattice(&b));
        prop_assert_ne!(lattice(&a), a.lend().fingerprint(), "a lattice is no organism");
        let issuer = |(name, acl): &(String, Vec<_>)| TicketIssuerConfig {
            name, acl: AclComposition::new(acl),
        }.fingerprint();
        prop_assert_eq!(x == y, issuer(&x) == issuer(&y));
    }

    #[test]
    fn hash_many_is_injective_on_lists(a in vec(vec(0u8..2, 0..3), 0..4), b in vec(vec(0u8..2, 0..3), 0..4)) {
        let hash = |parts: &[Vec<u8>]| hash_many(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
        prop_assert_eq!(a == b, hash(&a) == hash(&b));
    }
}

/// One reference in every subset of the five slots: 32 coalitions, 32 fingerprints, one root.
#[test]
fn slot_presence_never_collides() {
    let module = OrganismRef::by_stable_id("module", id(1));
    let mut fingerprints = std::collections::BTreeSet::new();
    for subset in 0u8..32 {
        let config = ModuleKind::ALL
            .into_iter()
            .filter(|kind| subset >> kind.slot() & 1 == 1)
            .fold(CoalitionConfig::empty("c"), |config, kind| config.with_module(kind, module));
        assert_eq!(config.root(), CoalitionConfig::empty("c").root());
        assert!(fingerprints.insert(config.stable_id()), "subset {subset:05b}");
    }
}

#[test]
fn order_matters_everywhere() {
    let (a, b) = (OrganismRef::by_stable_id("a", id(1)), OrganismRef::by_stable_id("b", id(2)));
    let base = CoalitionConfig::empty("c");
    let lattices = |lattices| CoalitionConfig { lattices, ..base }.stable_id();
    assert_ne!(lattices(&[id(1), id(2)]), lattices(&[id(2), id(1)]));
    let organisms = |organisms| CoalitionConfig { organisms, ..base }.stable_id();
    assert_ne!(organisms(&[a, b]), organisms(&[b, a]));

    let organism = OrganismConfig {
        name: "o",
        lattices: &[],
        organisms: &[a, b],
        content: coalition::ContentParams::EMPTY,
        acl: AclComposition::OPEN,
    };
    let swapped = OrganismConfig { organisms: &[b, a], ..organism };
    assert_ne!(organism.organism_id(), swapped.organism_id());
}

#[test]
fn an_absent_pin_is_not_a_pin_to_zero() {
    let unpinned = OrganismRef::by_stable_id("o", id(1));
    assert_ne!(unpinned.fingerprint(), unpinned.pinned(ZERO_ID).fingerprint());
}

#[test]
fn the_retirement_policy_is_the_one_field_no_fingerprint_covers() {
    let conservative = CoalitionConfig::empty("c");
    let lenient = CoalitionConfig { retirement_policy: RetirementPolicy::LENIENT, ..conservative };
    assert_eq!(conservative.stable_id(), lenient.stable_id());
}
