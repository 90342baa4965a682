//! The coalition's own config, and its two-level identity.
//!
//! A module's id derives from the coalition it belongs to, and the coalition's fingerprint covers its modules. So there
//! are two levels: [`CoalitionConfig::root`] folds everything but the modules, modules derive under it, and
//! [`CoalitionConfig::stable_id`] folds the root and the five module slots.

use crate::identity::{COALITION_ROOT_SEED, Preimage, SCHEMA_VERSION_U8, UniqueId};
use crate::modules::ModuleKind;
use crate::organism::OrganismRef;
use crate::retirement::RetirementPolicy;
use crate::tickets::{TicketIssuerConfig, coalition_ticket_issuer_root};

const TAG_ROOT: &[u8] = b"coalition/root";
const TAG_COALITION: &[u8] = b"coalition/coalition";

/// Everything that makes up a coalition, as its operator publishes it and integrators compile it in.
///
/// ```
/// use coalition::{
///     CoalitionConfig, OrganismRef, UniqueId,
///     COALITION_ROOT_SEED, SCHEMA_VERSION_U8,
///     RetirementPolicy, unique_id,
/// };
///
/// const TESTNET_1A_STABLE_ID: UniqueId = unique_id!("testnet-1a");
/// const SEARCHER_STABLE_ID: UniqueId = unique_id!("searcher");
///
/// const SEARCHER_ORG: OrganismRef<'static> =
///     OrganismRef::by_stable_id("searcher", SEARCHER_STABLE_ID);
///
/// pub const SEARCHER_ALPHA: CoalitionConfig<'static> =
///     CoalitionConfig {
///         schema_version:    SCHEMA_VERSION_U8,
///         coalition_seed:    COALITION_ROOT_SEED,
///         instance_name:     "searcher-α",
///         lattices:          &[TESTNET_1A_STABLE_ID],
///         organisms:         &[SEARCHER_ORG],
///         atlas:             None,
///         almanac:           None,
///         chronicle:         None,
///         compute:           None,
///         randomness:        None,
///         ticket_issuer:     None,
///         retirement_policy: RetirementPolicy::CONSERVATIVE,
///     };
///
/// assert_eq!(SEARCHER_ALPHA.coalition_id(), SEARCHER_ALPHA.stable_id());
/// assert!(SEARCHER_ALPHA.compute().is_none());
/// ```
///
/// The `default` of the retirement policy is usable in a const as well, as the topology chapter writes it:
///
/// ```
/// # use coalition::*;
/// # const SUPERCHAIN_ATLAS_ORG: OrganismRef<'static> = OrganismRef::by_stable_id("atlas", unique_id!("a"));
/// # const EUR_PRICE_FEED: OrganismRef<'static> = OrganismRef::by_stable_id("oracle", unique_id!("o"));
/// # const ETH_MAINNET: LatticeConfig<'static> =
/// #     LatticeConfig { instance_name: "eth", stable_id: unique_id!("l"), content_hash: None };
/// const ETH_SUPERCHAIN: CoalitionConfig<'static> =
///     CoalitionConfig {
///         schema_version:    SCHEMA_VERSION_U8,
///         coalition_seed:    COALITION_ROOT_SEED,
///         instance_name:     "ethereum.superchain",
///         lattices:          &[ETH_MAINNET.stable_id()],
///         organisms:         &[EUR_PRICE_FEED],
///         atlas:             Some(SUPERCHAIN_ATLAS_ORG),
///         almanac:           None,
///         chronicle:         None,
///         compute:           None,
///         randomness:        None,
///         ticket_issuer:     None,
///         retirement_policy: RetirementPolicy::default(),
///     };
/// assert_eq!(ETH_SUPERCHAIN.organisms_by_name("oracle"), Some(&EUR_PRICE_FEED));
/// assert_eq!(ETH_SUPERCHAIN.atlas(), Some(&SUPERCHAIN_ATLAS_ORG));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CoalitionConfig<'a> {
    /// Version of the identity preimages; [`SCHEMA_VERSION_U8`].
    pub schema_version: u8,
    /// Domain-separation seed; [`COALITION_ROOT_SEED`].
    pub coalition_seed: UniqueId,
    /// Short, namespaced name chosen by the operator, for example `ethereum.superchain`.
    pub instance_name: &'a str,
    /// Stable ids of the lattices it references. Order matters.
    pub lattices: &'a [UniqueId],
    /// Organisms it references, composite ones included. Order matters.
    pub organisms: &'a [OrganismRef<'a>],
    /// The Atlas it ships.
    pub atlas: Option<OrganismRef<'a>>,
    /// The Almanac it ships.
    pub almanac: Option<OrganismRef<'a>>,
    /// The Chronicle it ships.
    pub chronicle: Option<OrganismRef<'a>>,
    /// The Compute module it ships.
    pub compute: Option<OrganismRef<'a>>,
    /// The Randomness module it ships.
    pub randomness: Option<OrganismRef<'a>>,
    /// Its ticket issuer. Components opt in to its tickets one by one.
    pub ticket_issuer: Option<TicketIssuerConfig<'a>>,
    /// When the operator undertakes to republish. The one field no fingerprint covers.
    pub retirement_policy: RetirementPolicy,
}

impl<'a> CoalitionConfig<'a> {
    /// A coalition of this name without members, modules or issuer.
    #[must_use]
    pub const fn empty(instance_name: &'a str) -> Self {
        Self {
            schema_version: SCHEMA_VERSION_U8,
            coalition_seed: COALITION_ROOT_SEED,
            instance_name,
            lattices: &[],
            organisms: &[],
            atlas: None,
            almanac: None,
            chronicle: None,
            compute: None,
            randomness: None,
            ticket_issuer: None,
            retirement_policy: RetirementPolicy::CONSERVATIVE,
        }
    }

    /// The root under which modules and the ticket issuer derive: seed, name, lattices, organisms, issuer; no modules.
    #[must_use]
    pub fn root(&self) -> UniqueId {
        Preimage::with_version(self.schema_version, TAG_ROOT)
            .id(self.coalition_seed)
            .part(self.instance_name.as_bytes())
            .list(self.lattices.iter().copied())
            .list(self.organisms.iter().map(OrganismRef::fingerprint))
            .optional(self.ticket_issuer.map(|issuer| issuer.fingerprint()))
            .hash()
    }

    /// The coalition's fingerprint: its root and the five module slots.
    #[must_use]
    pub fn stable_id(&self) -> UniqueId {
        let start = Preimage::with_version(self.schema_version, TAG_COALITION).id(self.root());
        ModuleKind::ALL
            .into_iter()
            .fold(start, |preimage, kind| preimage.optional(self.module(kind).map(OrganismRef::fingerprint)))
            .hash()
    }

    /// The same as [`CoalitionConfig::stable_id`]; the name operators and integrators use.
    #[must_use]
    pub fn coalition_id(&self) -> UniqueId {
        self.stable_id()
    }

    /// The Atlas, if shipped.
    #[must_use]
    pub const fn atlas(&self) -> Option<&OrganismRef<'a>> {
        self.atlas.as_ref()
    }

    /// The Almanac, if shipped.
    #[must_use]
    pub const fn almanac(&self) -> Option<&OrganismRef<'a>> {
        self.almanac.as_ref()
    }

    /// The Chronicle, if shipped.
    #[must_use]
    pub const fn chronicle(&self) -> Option<&OrganismRef<'a>> {
        self.chronicle.as_ref()
    }

    /// The Compute module, if shipped.
    #[must_use]
    pub const fn compute(&self) -> Option<&OrganismRef<'a>> {
        self.compute.as_ref()
    }

    /// The Randomness module, if shipped.
    #[must_use]
    pub const fn randomness(&self) -> Option<&OrganismRef<'a>> {
        self.randomness.as_ref()
    }

    /// The module of this kind, if shipped.
    #[must_use]
    pub const fn module(&self, kind: ModuleKind) -> Option<&OrganismRef<'a>> {
        match kind {
            ModuleKind::Atlas => self.atlas(),
            ModuleKind::Almanac => self.almanac(),
            ModuleKind::Chronicle => self.chronicle(),
            ModuleKind::Compute => self.compute(),
            ModuleKind::Randomness => self.randomness(),
        }
    }

    /// Puts a reference into the slot of its kind.
    #[must_use]
    pub const fn with_module(mut self, kind: ModuleKind, module: OrganismRef<'a>) -> Self {
        match kind {
            ModuleKind::Atlas => self.atlas = Some(module),
            ModuleKind::Almanac => self.almanac = Some(module),
            ModuleKind::Chronicle => self.chronicle = Some(module),
            ModuleKind::Compute => self.compute = Some(module),
            ModuleKind::Randomness => self.randomness = Some(module),
        }
        self
    }

    /// The first organism referenced under this role.
    #[must_use]
    pub fn organisms_by_name(&self, role: &str) -> Option<&OrganismRef<'a>> {
        self.organisms.iter().find(|organism| organism.role == role)
    }

    /// Issuance root of the coalition's ticket issuer, if it has one.
    #[must_use]
    pub fn ticket_issuer_root(&self) -> Option<UniqueId> {
        self.ticket_issuer.map(|_| coalition_ticket_issuer_root(self.root()))
    }
}
