//! The five basic services a coalition may ship. Their identity derives under the coalition's root.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::identity::{Preimage, UniqueId};
use crate::organism::{ContentParams, OrganismRef, content_hash};
use crate::tickets::AclComposition;

const TAG_MODULE: &[u8] = b"coalition/module";

/// Which basic service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModuleKind {
    /// Directory of the members.
    Atlas,
    /// Clock.
    Almanac,
    /// Audit log.
    Chronicle,
    /// Compute market.
    Compute,
    /// Randomness beacon.
    Randomness,
}

/// A text names no basic service.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is no basic service: expected atlas, almanac, chronicle, compute or randomness")]
pub struct UnknownModule(String);

impl ModuleKind {
    /// All five, in the order in which their slots are folded.
    pub const ALL: [Self; 5] = [Self::Atlas, Self::Almanac, Self::Chronicle, Self::Compute, Self::Randomness];

    /// The segment under which the service's identity derives, which is its name and role.
    #[must_use]
    pub const fn str_name(self) -> &'static str {
        match self {
            Self::Atlas => "atlas",
            Self::Almanac => "almanac",
            Self::Chronicle => "chronicle",
            Self::Compute => "compute",
            Self::Randomness => "randomness",
        }
    }

    /// Position of its slot in the coalition's fingerprint, 0 to 4.
    #[must_use]
    pub const fn slot(self) -> usize {
        match self {
            Self::Atlas => 0,
            Self::Almanac => 1,
            Self::Chronicle => 2,
            Self::Compute => 3,
            Self::Randomness => 4,
        }
    }

    /// `coalition_root.derive("module").derive(name)`: what identities of this service derive from.
    #[must_use]
    pub fn module_root(self, coalition_root: UniqueId) -> UniqueId {
        coalition_root.derive("module").derive(self.str_name())
    }
}

impl fmt::Display for ModuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.str_name())
    }
}

impl FromStr for ModuleKind {
    type Err = UnknownModule;

    fn from_str(text: &str) -> Result<Self, UnknownModule> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.str_name() == text)
            .ok_or_else(|| UnknownModule(text.chars().take(60).collect()))
    }
}

/// The body every basic service's config shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleConfig<'a> {
    /// Name of this instance of the service, for example `default`.
    pub name: &'a str,
    /// Parameters that affect its state.
    pub content: ContentParams<'a>,
    /// What whoever bonds with it has to show; for a committee, whoever writes to it.
    pub acl: AclComposition<'a>,
}

impl<'a> ModuleConfig<'a> {
    /// A body from its parts.
    #[must_use]
    pub const fn new(name: &'a str, content: ContentParams<'a>, acl: AclComposition<'a>) -> Self {
        Self { name, content, acl }
    }

    /// Digest of content and access rules alone.
    #[must_use]
    pub fn content_hash(&self) -> UniqueId {
        content_hash(&self.content, &self.acl)
    }

    /// The service's id under a coalition's root (`CoalitionConfig::root`, not its `stable_id`).
    #[must_use]
    pub fn module_id(&self, kind: ModuleKind, coalition_root: UniqueId) -> UniqueId {
        Preimage::new(TAG_MODULE)
            .id(kind.module_root(coalition_root))
            .part(self.name.as_bytes())
            .id(self.content_hash())
            .hash()
    }

    /// Id of the service's committee.
    #[must_use]
    pub fn committee_id(&self, kind: ModuleKind, coalition_root: UniqueId) -> UniqueId {
        self.module_id(kind, coalition_root).derive("committee")
    }

    /// What goes into the coalition's slot: role, module id, and the content hash as pin.
    #[must_use]
    pub fn reference(&self, kind: ModuleKind, coalition_root: UniqueId) -> OrganismRef<'static> {
        OrganismRef::by_stable_id(kind.str_name(), self.module_id(kind, coalition_root)).pinned(self.content_hash())
    }
}

macro_rules! module_newtype {
    ($(#[$doc:meta])* $name:ident, $kind:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name<'a>(ModuleConfig<'a>);

        impl<'a> $name<'a> {
            /// Which basic service this is.
            pub const KIND: ModuleKind = ModuleKind::$kind;

            /// Makes a body the config of this service.
            #[must_use]
            pub const fn new(body: ModuleConfig<'a>) -> Self {
                Self(body)
            }

            /// The shared body.
            #[must_use]
            pub const fn body(&self) -> &ModuleConfig<'a> {
                &self.0
            }

            /// Digest of content and access rules alone.
            #[must_use]
            pub fn content_hash(&self) -> UniqueId {
                self.0.content_hash()
            }

            /// The service's id under a coalition's root (`CoalitionConfig::root`, not its `stable_id`).
            #[must_use]
            pub fn module_id(&self, coalition_root: UniqueId) -> UniqueId {
                self.0.module_id(Self::KIND, coalition_root)
            }

            /// Id of the service's committee.
            #[must_use]
            pub fn committee_id(&self, coalition_root: UniqueId) -> UniqueId {
                self.0.committee_id(Self::KIND, coalition_root)
            }

            /// What goes into the coalition's slot: role, module id, and the content hash as pin.
            #[must_use]
            pub fn reference(&self, coalition_root: UniqueId) -> OrganismRef<'static> {
                self.0.reference(Self::KIND, coalition_root)
            }
        }
    };
}

module_newtype!(
    /// Config of an Atlas.
    ///
    /// ```
    /// use coalition::{AclComposition, AtlasConfig, CoalitionConfig, ContentParams, ModuleConfig};
    ///
    /// let searcher_alpha = CoalitionConfig::empty("searcher-α");
    /// let atlas_params = b"members=3".to_vec();
    /// let body = ModuleConfig::new(
    ///     "default",
    ///     ContentParams::new(&atlas_params),
    ///     AclComposition::OPEN,
    /// );
    /// let atlas = AtlasConfig::new(body);
    ///
    /// // Modules derive under the root, which does not fold them; the stable id does.
    /// let coalition_root = searcher_alpha.root();
    /// let atlas_id = atlas.module_id(coalition_root);
    ///
    /// let with_atlas = CoalitionConfig { atlas: Some(atlas.reference(coalition_root)), ..searcher_alpha };
    /// assert_eq!(with_atlas.root(), coalition_root);
    /// assert_eq!(with_atlas.atlas().map(|r| r.stable_id), Some(atlas_id));
    /// ```
    AtlasConfig,
    Atlas
);
module_newtype!(
    /// Config of an Almanac.
    AlmanacConfig,
    Almanac
);
module_newtype!(
    /// Config of a Chronicle.
    ChronicleConfig,
    Chronicle
);
module_newtype!(
    /// Config of a Compute module.
    ///
    /// The type keeps it out of another service's place:
    ///
    /// ```compile_fail
    /// use coalition::{AclComposition, AtlasConfig, ComputeConfig, ContentParams, ModuleConfig};
    ///
    /// let body = ModuleConfig::new("default", ContentParams::EMPTY, AclComposition::OPEN);
    /// let atlas: AtlasConfig<'_> = ComputeConfig::new(body);
    /// ```
    ComputeConfig,
    Compute
);
module_newtype!(
    /// Config of a Randomness module.
    RandomnessConfig,
    Randomness
);
