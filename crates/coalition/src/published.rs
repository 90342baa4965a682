//! The published config: everything an auditor needs to verify a coalition's commits, in one self-contained value.
//!
//! A [`CoalitionConfig`] names modules and organisms by id. [`PublishedConfig`] owns that config and carries the
//! preimages behind the ids as well: the name, content and access rules of each module, and of each organism that
//! publishes them. It exists only verified: every id is recomputed from its preimage when one is built or read.

mod binary;
mod builder;
mod draft;
mod error;
mod toml_form;

use crate::coalition::CoalitionConfig;
use crate::committee::CommitteeContent;
use crate::identity::UniqueId;
use crate::lattice::LatticeConfig;
use crate::modules::ModuleKind;
use crate::organism::OrganismRef;
use crate::retirement::RetirementPolicy;
use crate::tickets::{AclComposition, AclRule, TicketIssuerConfig};
use crate::types::MemberId;

pub use builder::PublishedConfigBuilder;
pub use error::PublishedError;

/// Bytes the binary form may have.
pub const MAX_BINARY_BYTES: usize = 4 << 20;
/// Bytes the TOML form may have.
pub const MAX_TOML_BYTES: usize = 16 << 20;
/// Bytes one content preimage may have.
pub const MAX_CONTENT_BYTES: usize = 128 << 10;
/// Lattices, and organisms, that a coalition or an organism may reference.
pub const MAX_MEMBERS: usize = 1024;
/// Rules one access composition may have.
pub const MAX_ACL_RULES: usize = 64;

/// An owned [`OrganismRef`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedRef {
    /// The part it plays for whoever refers to it.
    pub role: String,
    /// Its id.
    pub stable_id: UniqueId,
    /// Its content hash, if pinned.
    pub content_hash: Option<UniqueId>,
}

impl PublishedRef {
    /// The borrowed form.
    #[must_use]
    pub fn as_ref(&self) -> OrganismRef<'_> {
        OrganismRef { role: &self.role, stable_id: self.stable_id, content_hash: self.content_hash }
    }

    /// The short id of the organism referred to.
    #[must_use]
    pub fn member_id(&self) -> MemberId {
        MemberId::from_stable_id(self.stable_id)
    }
}

impl From<OrganismRef<'_>> for PublishedRef {
    fn from(organism: OrganismRef<'_>) -> Self {
        Self { role: organism.role.to_owned(), stable_id: organism.stable_id, content_hash: organism.content_hash }
    }
}

/// An owned [`LatticeConfig`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedLattice {
    /// The lattice's name.
    pub instance_name: String,
    /// Its id.
    pub stable_id: UniqueId,
    /// Its content hash, if pinned.
    pub content_hash: Option<UniqueId>,
}

impl PublishedLattice {
    /// The borrowed form.
    #[must_use]
    pub fn as_ref(&self) -> LatticeConfig<'_> {
        LatticeConfig { instance_name: &self.instance_name, stable_id: self.stable_id, content_hash: self.content_hash }
    }
}

impl From<LatticeConfig<'_>> for PublishedLattice {
    fn from(lattice: LatticeConfig<'_>) -> Self {
        Self {
            instance_name: lattice.instance_name.to_owned(),
            stable_id: lattice.stable_id,
            content_hash: lattice.content_hash,
        }
    }
}

/// A module or organism with the preimages of its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedOrganism {
    /// Its id: what its log, its tickets and evidence about it carry.
    pub id: UniqueId,
    /// Digest of content and access rules.
    pub content_hash: UniqueId,
    /// The name folded into its id.
    pub name: String,
    /// Canonical preimage of its content; for a committee, [`CommitteeContent::to_bytes`].
    pub content: Vec<u8>,
    /// What whoever bonds with it has to show; for a committee, whoever writes to it. Empty: anyone may.
    pub acl: Vec<AclRule>,
    /// Lattices it spans. Always empty for a module.
    pub lattices: Vec<PublishedLattice>,
    /// Organisms it spans. Always empty for a module.
    pub organisms: Vec<PublishedRef>,
}

impl PublishedOrganism {
    /// Id of its committee.
    #[must_use]
    pub fn committee_id(&self) -> UniqueId {
        self.id.derive("committee")
    }
}

/// A reference, and what its target publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    reference: PublishedRef,
    published: Option<PublishedOrganism>,
}

/// A coalition's ticket issuer, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedIssuer {
    /// Name or role of the issuer.
    pub name: String,
    /// Who may run issuance. Empty: anyone.
    pub acl: Vec<AclRule>,
}

impl PublishedIssuer {
    /// The borrowed form.
    #[must_use]
    pub fn as_ref(&self) -> TicketIssuerConfig<'_> {
        TicketIssuerConfig { name: &self.name, acl: AclComposition::new(&self.acl) }
    }
}

/// A coalition's handshake, owned, self-contained and verified.
///
/// ```
/// use coalition::{CommitteeContent, ModuleKind, PublishedConfig, Roster, RosterMember};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let member = RosterMember {
///     name: "a".to_owned(),
///     checkpoint_key: [1; 32],
///     consensus_key: [2; 32],
///     peer_id: [3; 32],
/// };
/// let committee = CommitteeContent {
///     service: "compute.v1".to_owned(),
///     roster: Roster::new(vec![member])?,
///     params: Vec::new(),
///     predecessor: None,
/// };
/// let config = PublishedConfig::builder("dev")
///     .module(ModuleKind::Compute, "default", &committee)
///     .build()?;
///
/// let handshake = config.to_hex();
/// let read = PublishedConfig::from_hex(&handshake)?;
/// assert_eq!(read.fingerprint(), config.fingerprint());
/// assert_eq!(read.committee(ModuleKind::Compute)?.roster.quorum(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedConfig {
    instance_name: String,
    lattices: Vec<UniqueId>,
    organisms: Vec<Member>,
    modules: [Option<Member>; 5],
    ticket_issuer: Option<PublishedIssuer>,
    retirement_policy: RetirementPolicy,
    root: UniqueId,
    fingerprint: UniqueId,
}

impl PublishedConfig {
    /// Starts a config for a coalition of this name.
    #[must_use]
    pub fn builder(instance_name: &str) -> PublishedConfigBuilder {
        PublishedConfigBuilder::new(instance_name)
    }

    /// Reads the hexadecimal form, ignoring white space around it, and verifies it.
    ///
    /// # Errors
    /// [`PublishedError`] when the text is cut, altered, of another version, or contradicts itself.
    pub fn from_hex(text: &str) -> Result<Self, PublishedError> {
        Self::from_bytes(&binary::decode_hex(text)?)
    }

    /// The hexadecimal form: the handshake as one string of lower-case digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.to_bytes())
    }

    /// Reads the binary form and verifies it.
    ///
    /// # Errors
    /// As [`PublishedConfig::from_hex`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PublishedError> {
        binary::decode(bytes)?.resolve()
    }

    /// The binary form; each config has exactly one.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        binary::encode(self)
    }

    /// Reads the TOML form and verifies it. Ids of anything published with its content may be left out: they are
    /// computed. Ids that are given must be right.
    ///
    /// # Errors
    /// [`PublishedError`] naming the key, or the id and both its values.
    pub fn from_toml(text: &str) -> Result<Self, PublishedError> {
        toml_form::decode(text)
    }

    /// The TOML form, with every id and the fingerprint written out.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml_form::encode(self)
    }

    /// Recomputes every id from its preimage, the coalition's own included.
    ///
    /// Values of this type are verified when made; this repeats the check.
    ///
    /// # Errors
    /// [`PublishedError::StableId`], [`PublishedError::ContentHash`] or [`PublishedError::Fingerprint`], with both values.
    pub fn verify(&self) -> Result<(), PublishedError> {
        draft::Draft::from_published(self).resolve()?.expect_fingerprint(self.fingerprint)
    }

    /// Compares with a fingerprint published elsewhere.
    ///
    /// # Errors
    /// [`PublishedError::Fingerprint`] with both values when they differ.
    pub fn expect_fingerprint(&self, expected: UniqueId) -> Result<(), PublishedError> {
        if self.fingerprint == expected {
            return Ok(());
        }
        Err(PublishedError::Fingerprint { expected, computed: self.fingerprint })
    }

    /// The coalition's fingerprint.
    #[must_use]
    pub const fn fingerprint(&self) -> UniqueId {
        self.fingerprint
    }

    /// The same as [`PublishedConfig::fingerprint`], by the name it has on [`CoalitionConfig`].
    #[must_use]
    pub const fn stable_id(&self) -> UniqueId {
        self.fingerprint
    }

    /// The root under which modules and the ticket issuer derive.
    #[must_use]
    pub const fn root(&self) -> UniqueId {
        self.root
    }

    /// The coalition's name.
    #[must_use]
    pub fn instance_name(&self) -> &str {
        &self.instance_name
    }

    /// Stable ids of the lattices it references.
    #[must_use]
    pub fn lattices(&self) -> &[UniqueId] {
        &self.lattices
    }

    /// References to the organisms it composes, in order.
    pub fn organism_refs(&self) -> impl ExactSizeIterator<Item = &PublishedRef> {
        self.organisms.iter().map(|member| &member.reference)
    }

    /// The reference in the slot of a module.
    #[must_use]
    pub fn module_ref(&self, kind: ModuleKind) -> Option<&PublishedRef> {
        self.modules[kind.slot()].as_ref().map(|member| &member.reference)
    }

    /// The module of this kind, if shipped and published with its content.
    #[must_use]
    pub fn module(&self, kind: ModuleKind) -> Option<&PublishedOrganism> {
        self.modules[kind.slot()].as_ref()?.published.as_ref()
    }

    /// The first organism under this role that is published with its content.
    #[must_use]
    pub fn organism(&self, role: &str) -> Option<&PublishedOrganism> {
        self.organisms
            .iter()
            .filter(|member| member.reference.role == role)
            .find_map(|member| member.published.as_ref())
    }

    /// The module or organism with this id, if published with its content.
    #[must_use]
    pub fn by_id(&self, id: UniqueId) -> Option<&PublishedOrganism> {
        self.modules
            .iter()
            .flatten()
            .chain(&self.organisms)
            .filter_map(|member| member.published.as_ref())
            .find(|published| published.id == id)
    }

    /// The committee that runs a module.
    ///
    /// # Errors
    /// [`PublishedError::NotShipped`], [`PublishedError::NotPublished`], or [`PublishedError::Committee`] when the
    /// module's content is no committee's.
    pub fn committee(&self, kind: ModuleKind) -> Result<CommitteeContent, PublishedError> {
        committee_of(kind.str_name(), self.modules[kind.slot()].as_ref(), self.module(kind))
    }

    /// The committee that runs the organism of this role.
    ///
    /// # Errors
    /// As [`PublishedConfig::committee`].
    pub fn organism_committee(&self, role: &str) -> Result<CommitteeContent, PublishedError> {
        let referenced = self.organisms.iter().find(|member| member.reference.role == role);
        committee_of(role, referenced, self.organism(role))
    }

    /// The ticket issuer, if any.
    #[must_use]
    pub const fn ticket_issuer(&self) -> Option<&PublishedIssuer> {
        self.ticket_issuer.as_ref()
    }

    /// Issuance root of the ticket issuer, if any.
    #[must_use]
    pub fn ticket_issuer_root(&self) -> Option<UniqueId> {
        self.ticket_issuer.as_ref().map(|_| crate::tickets::coalition_ticket_issuer_root(self.root))
    }

    /// When the operator undertakes to republish.
    #[must_use]
    pub const fn retirement_policy(&self) -> RetirementPolicy {
        self.retirement_policy
    }

    /// The config without the preimages, behind a view that owns the list it borrows from.
    #[must_use]
    pub fn view(&self) -> ConfigView<'_> {
        ConfigView { published: self, organisms: self.organism_refs().map(PublishedRef::as_ref).collect() }
    }
}

fn committee_of(
    role: &str,
    referenced: Option<&Member>,
    published: Option<&PublishedOrganism>,
) -> Result<CommitteeContent, PublishedError> {
    let role = role.to_owned();
    match (referenced, published) {
        (None, _) => Err(PublishedError::NotShipped { role }),
        (Some(_), None) => Err(PublishedError::NotPublished { role }),
        (Some(_), Some(published)) => CommitteeContent::from_bytes(&published.content)
            .map_err(|source| PublishedError::Committee { role, source }),
    }
}

/// Lends a [`PublishedConfig`] as a [`CoalitionConfig`].
#[derive(Debug)]
pub struct ConfigView<'a> {
    published: &'a PublishedConfig,
    organisms: Vec<OrganismRef<'a>>,
}

impl ConfigView<'_> {
    /// The borrowed config.
    #[must_use]
    pub fn config(&self) -> CoalitionConfig<'_> {
        let published = self.published;
        let bare = CoalitionConfig {
            lattices: &published.lattices,
            organisms: &self.organisms,
            ticket_issuer: published.ticket_issuer.as_ref().map(PublishedIssuer::as_ref),
            retirement_policy: published.retirement_policy,
            ..CoalitionConfig::empty(&published.instance_name)
        };
        ModuleKind::ALL.into_iter().fold(bare, |config, kind| match published.module_ref(kind) {
            Some(module) => config.with_module(kind, module.as_ref()),
            None => config,
        })
    }
}
