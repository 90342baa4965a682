//! Owned models and proptest strategies shared by the tests.

use coalition::published::PublishedConfigBuilder;
use coalition::{
    AclComposition, AclRule, CoalitionConfig, CommitteeContent, ContentParams, LatticeConfig, ModuleConfig, ModuleKind,
    Mrtd, OrganismConfig, OrganismRef, PublishedConfig, RetirementPolicy, Roster, RosterMember, TicketIssuerConfig,
    UniqueId,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

/// An id that is easy to tell apart in a failure.
pub(crate) fn id(n: u8) -> UniqueId {
    UniqueId::from_bytes([n; 32])
}

/// A roster member whose keys derive from its name.
pub(crate) fn member(name: &str) -> RosterMember {
    let key = |purpose: &str| *UniqueId::hash(format!("{purpose}/{name}").as_bytes()).as_bytes();
    RosterMember {
        name: name.to_owned(),
        checkpoint_key: key("checkpoint"),
        consensus_key: key("consensus"),
        peer_id: key("peer"),
    }
}

/// A committee of `n` members named `m0`, `m1`, …
pub(crate) fn committee(service: &str, n: usize) -> CommitteeContent {
    let members = (0..n).map(|i| member(&format!("m{i}"))).collect();
    CommitteeContent {
        service: service.to_owned(),
        roster: Roster::new(members).unwrap(),
        params: b"cadence_ms=1000".to_vec(),
        predecessor: None,
    }
}

/// A development-like config: clock and market modules, an unseal organism, an issuer.
pub(crate) fn dev_config() -> PublishedConfig {
    PublishedConfig::builder("dev-α")
        .lattice(id(0x11))
        .organism("unseal", "unseal.dev", &committee("unseal.v1", 3))
        .organism_ref(OrganismRef::by_stable_id("oracle", id(0x22)))
        .module(ModuleKind::Almanac, "default", &committee("almanac.v1", 4))
        .module(ModuleKind::Compute, "default", &committee("compute.v1", 4))
        .ticket_issuer("issuer", vec![AclRule::Issuer(id(0x33))])
        .build()
        .unwrap()
}

/// An owned [`OrganismRef`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RefModel {
    pub(crate) role: String,
    pub(crate) stable_id: UniqueId,
    pub(crate) content_hash: Option<UniqueId>,
}

impl RefModel {
    pub(crate) fn lend(&self) -> OrganismRef<'_> {
        OrganismRef { role: &self.role, stable_id: self.stable_id, content_hash: self.content_hash }
    }
}

/// An owned [`CoalitionConfig`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CoalitionModel {
    pub(crate) schema_version: u8,
    pub(crate) seed: UniqueId,
    pub(crate) name: String,
    pub(crate) lattices: Vec<UniqueId>,
    pub(crate) organisms: Vec<RefModel>,
    pub(crate) slots: [Option<RefModel>; 5],
    pub(crate) issuer: Option<(String, Vec<AclRule>)>,
}

impl CoalitionModel {
    /// Runs `f` on the borrowed config.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&CoalitionConfig<'_>) -> T) -> T {
        let organisms: Vec<_> = self.organisms.iter().map(RefModel::lend).collect();
        let slot = |kind: ModuleKind| self.slots[kind.slot()].as_ref().map(RefModel::lend);
        f(&CoalitionConfig {
            schema_version: self.schema_version,
            coalition_seed: self.seed,
            instance_name: &self.name,
            lattices: &self.lattices,
            organisms: &organisms,
            atlas: slot(ModuleKind::Atlas),
            almanac: slot(ModuleKind::Almanac),
            chronicle: slot(ModuleKind::Chronicle),
            compute: slot(ModuleKind::Compute),
            randomness: slot(ModuleKind::Randomness),
            ticket_issuer: self
                .issuer
                .as_ref()
                .map(|(name, acl)| TicketIssuerConfig { name, acl: AclComposition::new(acl) }),
            retirement_policy: RetirementPolicy::CONSERVATIVE,
        })
    }

    pub(crate) fn stable_id(&self) -> UniqueId {
        self.with(|c| c.stable_id())
    }

    pub(crate) fn root(&self) -> UniqueId {
        self.with(|c| c.root())
    }
}

/// An owned [`OrganismConfig`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OrganismModel {
    pub(crate) name: String,
    pub(crate) lattices: Vec<RefModel>,
    pub(crate) organisms: Vec<RefModel>,
    pub(crate) content: Vec<u8>,
    pub(crate) acl: Vec<AclRule>,
}

impl OrganismModel {
    pub(crate) fn with<T>(&self, f: impl FnOnce(&OrganismConfig<'_>) -> T) -> T {
        let lattices: Vec<_> = self
            .lattices
            .iter()
            .map(|l| LatticeConfig { instance_name: &l.role, stable_id: l.stable_id, content_hash: l.content_hash })
            .collect();
        let organisms: Vec<_> = self.organisms.iter().map(RefModel::lend).collect();
        f(&OrganismConfig {
            name: &self.name,
            lattices: &lattices,
            organisms: &organisms,
            content: ContentParams::new(&self.content),
            acl: AclComposition::new(&self.acl),
        })
    }

    pub(crate) fn as_module(&self) -> ModuleConfig<'_> {
        ModuleConfig::new(&self.name, ContentParams::new(&self.content), AclComposition::new(&self.acl))
    }
}

/// Values drawn from a small alphabet, so that near-collisions are common.
pub(crate) mod small {
    use super::*;

    pub(crate) fn ids() -> impl Strategy<Value = UniqueId> {
        (0u8..3).prop_map(id)
    }

    pub(crate) fn names() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["", "a", "b", "ab", "atlas"]).prop_map(str::to_owned)
    }

    pub(crate) fn refs() -> impl Strategy<Value = RefModel> {
        (names(), ids(), option::of(ids())).prop_map(|(role, stable_id, content_hash)| RefModel {
            role,
            stable_id,
            content_hash,
        })
    }

    pub(crate) fn acls() -> impl Strategy<Value = Vec<AclRule>> {
        let rule = prop_oneof![
            ids().prop_map(AclRule::Issuer),
            ids().prop_map(AclRule::Policy),
            (ids(), 0u32..2).prop_map(|(organism, floor_ppm)| AclRule::Reputation { organism, floor_ppm }),
            ids().prop_map(|organism| AclRule::Settlement { organism }),
            (ids(), 0u8..2).prop_map(|(root, m)| AclRule::Tdx { root, mrtd: Mrtd([m; 48]) }),
        ];
        vec(rule, 0..3)
    }

    pub(crate) fn coalitions() -> impl Strategy<Value = CoalitionModel> {
        (
            1u8..3,
            ids(),
            names(),
            vec(ids(), 0..3),
            vec(refs(), 0..3),
            prop::array::uniform5(option::of(refs())),
            option::of((names(), acls())),
        )
            .prop_map(|(schema_version, seed, name, lattices, organisms, slots, issuer)| CoalitionModel {
                schema_version,
                seed,
                name,
                lattices,
                organisms,
                slots,
                issuer,
            })
    }

    pub(crate) fn organisms() -> impl Strategy<Value = OrganismModel> {
        (names(), vec(refs(), 0..3), vec(refs(), 0..3), vec(0u8..2, 0..3), acls()).prop_map(
            |(name, lattices, organisms, content, acl)| OrganismModel { name, lattices, organisms, content, acl },
        )
    }
}

/// Any id.
pub(crate) fn any_id() -> impl Strategy<Value = UniqueId> {
    any::<[u8; 32]>().prop_map(UniqueId::from_bytes)
}

fn any_name() -> impl Strategy<Value = String> {
    "[^\\p{Cc}]{1,20}"
}

fn any_acl() -> impl Strategy<Value = Vec<AclRule>> {
    let rule = prop_oneof![
        any_id().prop_map(AclRule::Issuer),
        any_id().prop_map(AclRule::Policy),
        any_id().prop_map(|organism| AclRule::Settlement { organism }),
        (any_id(), 0..=1_000_000u32).prop_map(|(organism, floor_ppm)| AclRule::Reputation { organism, floor_ppm }),
        (any_id(), any::<[u8; 32]>()).prop_map(|(root, half)| {
            let mut mrtd = [7; 48];
            mrtd[..32].copy_from_slice(&half);
            AclRule::Tdx { root, mrtd: Mrtd(mrtd) }
        }),
    ];
    vec(rule, 0..4)
}

/// References with distinct ids.
fn any_refs(max: usize) -> impl Strategy<Value = Vec<RefModel>> {
    btree_map(any::<[u8; 32]>(), (any_name(), option::of(any_id())), 0..max).prop_map(|map| {
        map.into_iter()
            .map(|(stable_id, (role, content_hash))| RefModel {
                role,
                stable_id: UniqueId::from_bytes(stable_id),
                content_hash,
            })
            .collect()
    })
}

fn any_content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..40), (1usize..5).prop_map(|n| committee("service.v1", n).to_bytes()),]
}

fn any_organism() -> impl Strategy<Value = OrganismModel> {
    (any_name(), any_refs(3), any_refs(3), any_content(), any_acl())
        .prop_map(|(name, lattices, organisms, content, acl)| OrganismModel { name, lattices, organisms, content, acl })
}

/// A module slot: absent, by id only, or with its content.
fn any_slot() -> impl Strategy<Value = Option<Result<OrganismModel, RefModel>>> {
    option::of(prop_oneof![
        3 => any_organism().prop_map(Ok),
        1 => (any_id(), option::of(any_id())).prop_map(|(stable_id, content_hash)| Err(RefModel {
            role: String::new(),
            stable_id,
            content_hash,
        })),
    ])
}

/// Any valid published config.
pub(crate) fn any_published() -> impl Strategy<Value = PublishedConfig> {
    let members = (any_refs(4), any_refs(3), vec((any_name(), any_organism()), 0..3));
    let issuer = option::of((any_name(), any_acl()));
    let slots = prop::array::uniform5(any_slot());
    (any_name(), members, slots, issuer, any::<bool>()).prop_map(
        |(name, (lattices, references, organisms), slots, issuer, lenient)| {
            let mut builder = PublishedConfig::builder(&name);
            builder = lattices.iter().fold(builder, |b, l| b.lattice(l.stable_id));
            builder = references.iter().fold(builder, |b, r| b.organism_ref(r.lend()));
            // Equal organisms would be listed twice: the index keeps them apart.
            for (i, (role, mut organism)) in organisms.into_iter().enumerate() {
                organism.name.insert_str(0, &i.to_string());
                builder = organism.with(|config| builder.organism_config(&role, config));
            }
            builder = set_slots(builder, &slots);
            if let Some((name, acl)) = issuer {
                builder = builder.ticket_issuer(&name, acl);
            }
            if lenient {
                builder = builder.retirement_policy(RetirementPolicy::LENIENT);
            }
            builder.build().unwrap()
        },
    )
}

fn set_slots(
    mut builder: PublishedConfigBuilder,
    slots: &[Option<Result<OrganismModel, RefModel>>; 5],
) -> PublishedConfigBuilder {
    for (kind, slot) in ModuleKind::ALL.into_iter().zip(slots) {
        builder = match slot {
            Some(Ok(module)) => builder.module_config(kind, &module.as_module()),
            Some(Err(r)) => builder.module_ref(kind, r.stable_id, r.content_hash),
            None => builder,
        };
    }
    builder
}
