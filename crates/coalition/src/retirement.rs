//! Retirement: the last commit of every component, and what a coalition undertakes about republishing.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bytes::{Reader, Truncated, put_str_u8};
use crate::identity::{Preimage, UniqueId, optional_part};
use crate::lattice::LatticeConfig;
use crate::modules::ModuleKind;
use crate::organism::OrganismRef;
use crate::types::AlmanacTick;

const TAG_MARKER: &[u8] = b"coalition/retirement";
/// First bytes of an encoded marker: a magic and the version of the layout.
const MARKER_MAGIC: &[u8; 5] = b"CRTM\x01";

/// When a retirement takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetirementInstant {
    /// After the commit at this position of the component's own log.
    AtSequence(u64),
    /// At this wall-clock time, in milliseconds since 1970.
    AtTimestamp(u64),
    /// At this tick of the coalition's Almanac.
    AtTick(AlmanacTick),
}

/// Why a component retires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetirementReason {
    /// A successor takes over, as planned.
    Rotation,
    /// The service ends.
    Retired,
    /// The operator leaves.
    OperatorExit,
    /// Keys or platform are compromised; see the operator's advisory.
    Emergency,
}

/// A component that can take over from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ComponentRef<'a> {
    /// An organism.
    Organism(OrganismRef<'a>),
    /// A lattice.
    Lattice(LatticeConfig<'a>),
    /// A basic service of a coalition.
    Module(ModuleKind, OrganismRef<'a>),
    /// A whole coalition, by its stable id.
    Coalition(UniqueId),
}

impl<'a> From<OrganismRef<'a>> for ComponentRef<'a> {
    fn from(organism: OrganismRef<'a>) -> Self {
        Self::Organism(organism)
    }
}

impl<'a> From<LatticeConfig<'a>> for ComponentRef<'a> {
    fn from(lattice: LatticeConfig<'a>) -> Self {
        Self::Lattice(lattice)
    }
}

impl ComponentRef<'_> {
    /// Stable id of the component.
    #[must_use]
    pub const fn stable_id(&self) -> UniqueId {
        match self {
            Self::Organism(organism) | Self::Module(_, organism) => organism.stable_id,
            Self::Lattice(lattice) => lattice.stable_id,
            Self::Coalition(id) => *id,
        }
    }
}

/// Why bytes are no retirement marker.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RetirementError {
    /// The bytes do not begin as a marker does.
    #[error("these bytes are no retirement marker of layout version 1")]
    Magic,
    /// A field is cut short or meaningless.
    #[error("the retirement marker is malformed")]
    Field(#[from] Truncated),
    /// The bytes go on after the last field.
    #[error("the retirement marker is followed by {0} bytes that belong to nothing")]
    Trailing(usize),
    /// Reason and replacement contradict each other.
    #[error("a retirement for the reason {reason:?} {} a replacement", if *.found { "has no place for" } else { "needs" })]
    Replacement {
        /// The reason given.
        reason: RetirementReason,
        /// Whether a replacement was given.
        found: bool,
    },
}

/// The last commit of a component before it shuts down, so that its consumers follow instead of timing out.
///
/// ```
/// use coalition::{OrganismRef, RetirementInstant, RetirementMarker, unique_id};
/// # let successor_ref = OrganismRef::by_stable_id("oracle", unique_id!("successor"));
///
/// let rotation = RetirementMarker::rotation(
///     RetirementInstant::AtSequence(100),
///     successor_ref,
/// );
///
/// let retired = RetirementMarker::retired(
///     RetirementInstant::AtTimestamp(1_700_000_000_000),
/// );
///
/// let exit = RetirementMarker::operator_exit(
///     RetirementInstant::AtTimestamp(1_700_000_000_000),
/// );
///
/// assert_eq!(RetirementMarker::from_bytes(&rotation.to_bytes()), Ok(rotation));
/// assert_ne!(retired.fingerprint(), exit.fingerprint());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct RetirementMarker<'a> {
    /// When it takes effect.
    pub effective_at: RetirementInstant,
    /// Who takes over.
    pub replacement: Option<ComponentRef<'a>>,
    /// Why.
    pub reason: RetirementReason,
}

impl<'a> RetirementMarker<'a> {
    /// A planned rotation to a successor.
    pub fn rotation(effective_at: RetirementInstant, successor: impl Into<ComponentRef<'a>>) -> Self {
        Self { effective_at, replacement: Some(successor.into()), reason: RetirementReason::Rotation }
    }

    /// The end of a service, without a successor.
    #[must_use]
    pub const fn retired(effective_at: RetirementInstant) -> Self {
        Self { effective_at, replacement: None, reason: RetirementReason::Retired }
    }

    /// The operator's own exit, without a successor.
    #[must_use]
    pub const fn operator_exit(effective_at: RetirementInstant) -> Self {
        Self { effective_at, replacement: None, reason: RetirementReason::OperatorExit }
    }

    /// A retirement forced by compromise, with or without a successor.
    #[must_use]
    pub const fn emergency(effective_at: RetirementInstant, replacement: Option<ComponentRef<'a>>) -> Self {
        Self { effective_at, replacement, reason: RetirementReason::Emergency }
    }

    /// Digest of the marker.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        Preimage::new(TAG_MARKER).part(&self.to_bytes()).hash()
    }

    /// The marker's canonical bytes, which are the body of a component's last log entry.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MARKER_MAGIC.to_vec();
        out.push(match self.reason {
            RetirementReason::Rotation => 1,
            RetirementReason::Retired => 2,
            RetirementReason::OperatorExit => 3,
            RetirementReason::Emergency => 4,
        });
        let (kind, at) = match self.effective_at {
            RetirementInstant::AtSequence(at) => (1, at),
            RetirementInstant::AtTimestamp(at) => (2, at),
            RetirementInstant::AtTick(at) => (3, at.0),
        };
        out.push(kind);
        out.extend(at.to_be_bytes());
        match &self.replacement {
            None => out.push(0),
            Some(component) => put_component(&mut out, component),
        }
        out
    }

    /// Reads a marker; names stay borrowed from `bytes`.
    ///
    /// # Errors
    /// [`RetirementError`] when the bytes are anything but the encoding of a marker a constructor makes.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<Self, RetirementError> {
        let mut reader = Reader::new(bytes.strip_prefix(MARKER_MAGIC).ok_or(RetirementError::Magic)?);
        let reason = match reader.u8("reason")? {
            1 => RetirementReason::Rotation,
            2 => RetirementReason::Retired,
            3 => RetirementReason::OperatorExit,
            4 => RetirementReason::Emergency,
            found => return Err(Truncated::Value { field: "reason", found }.into()),
        };
        let kind = reader.u8("kind of instant")?;
        let at = u64::from_be_bytes(reader.array("instant")?);
        let effective_at = match kind {
            1 => RetirementInstant::AtSequence(at),
            2 => RetirementInstant::AtTimestamp(at),
            3 => RetirementInstant::AtTick(AlmanacTick(at)),
            found => return Err(Truncated::Value { field: "kind of instant", found }.into()),
        };
        let replacement = read_component(&mut reader)?;
        if reader.remaining() > 0 {
            return Err(RetirementError::Trailing(reader.remaining()));
        }
        let fits = match reason {
            RetirementReason::Rotation => replacement.is_some(),
            RetirementReason::Retired | RetirementReason::OperatorExit => replacement.is_none(),
            RetirementReason::Emergency => true,
        };
        if !fits {
            let found = replacement.is_some();
            return Err(RetirementError::Replacement { reason, found });
        }
        Ok(Self { effective_at, replacement, reason })
    }
}

fn put_component(out: &mut Vec<u8>, component: &ComponentRef<'_>) {
    let mut named = |kind: u8, name: &str, stable_id: UniqueId, content_hash| {
        out.push(kind);
        put_str_u8(out, name);
        out.extend(stable_id.as_bytes());
        out.extend(optional_part(content_hash));
    };
    match component {
        ComponentRef::Organism(o) => named(1, o.role, o.stable_id, o.content_hash),
        ComponentRef::Lattice(l) => named(2, l.instance_name, l.stable_id, l.content_hash),
        ComponentRef::Module(kind, o) => {
            named(3, o.role, o.stable_id, o.content_hash);
            out.push(u8::try_from(kind.slot()).expect("five slots"));
        }
        ComponentRef::Coalition(id) => {
            out.push(4);
            out.extend(id.as_bytes());
        }
    }
}

fn read_component<'a>(reader: &mut Reader<'a>) -> Result<Option<ComponentRef<'a>>, Truncated> {
    let kind = reader.u8("kind of replacement")?;
    match kind {
        0 => return Ok(None),
        4 => {
            let id = UniqueId::from_bytes(reader.array("replacement id")?);
            return Ok(Some(ComponentRef::Coalition(id)));
        }
        _ => {}
    }
    let role = reader.str_u8("replacement name")?;
    let stable_id = UniqueId::from_bytes(reader.array("replacement id")?);
    let content_hash = reader.optional_id("replacement content hash")?;
    let organism = OrganismRef { role, stable_id, content_hash };
    match kind {
        1 => Ok(Some(ComponentRef::Organism(organism))),
        2 => Ok(Some(ComponentRef::Lattice(LatticeConfig { instance_name: role, stable_id, content_hash }))),
        3 => {
            let field = "replacement module";
            let found = reader.u8(field)?;
            let module = ModuleKind::ALL.get(usize::from(found)).ok_or(Truncated::Value { field, found })?;
            Ok(Some(ComponentRef::Module(*module, organism)))
        }
        found => Err(Truncated::Value { field: "kind of replacement", found }),
    }
}

/// When a coalition's operator undertakes to publish a new config.
///
/// ```
/// use coalition::RetirementPolicy;
/// assert_eq!(RetirementPolicy::default(), RetirementPolicy::CONSERVATIVE);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RetirementPolicy {
    /// On every change of content of a member or module.
    Conservative,
    /// Only when a stable id changes; members rotate their content on their own.
    Lenient,
}

impl RetirementPolicy {
    /// Every content change forces republication.
    pub const CONSERVATIVE: Self = Self::Conservative;
    /// Content rotations of members need no republication.
    pub const LENIENT: Self = Self::Lenient;

    /// [`RetirementPolicy::CONSERVATIVE`], usable in a const.
    #[must_use]
    pub const fn default() -> Self {
        Self::CONSERVATIVE
    }

    /// Whether a change of a member from `old` to `new` needs a new coalition config under this policy.
    #[must_use]
    pub fn needs_republication(self, old: &OrganismRef<'_>, new: &OrganismRef<'_>) -> bool {
        old.stable_id != new.stable_id || (self == Self::CONSERVATIVE && old.content_hash != new.content_hash)
    }
}

impl Default for RetirementPolicy {
    fn default() -> Self {
        Self::CONSERVATIVE
    }
}
