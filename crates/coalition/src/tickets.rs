//! Admission: what a component's ticket validator demands, as published data, and the optional coalition-wide issuer.

use serde::{Deserialize, Serialize};

use crate::bytes::{Reader, Truncated};
use crate::identity::{Preimage, UniqueId};
use crate::types::Mrtd;

const TAG_ACL: &[u8] = b"coalition/acl";
const TAG_ISSUER: &[u8] = b"coalition/ticket-issuer";

/// One demand of a ticket validator.
///
/// The numbers in the encoding are fixed: issuer 1, tdx 2, reputation 3, settlement 4, policy 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum AclRule {
    /// Hold a ticket issued under this issuance root.
    Issuer(UniqueId),
    /// Show a TDX quote that verifies to a named trust root and carries this measurement.
    Tdx {
        /// Id of the trust root the quote must verify to. Named always: there is no "any root".
        root: UniqueId,
        /// The measurement demanded.
        mrtd: Mrtd,
    },
    /// Have at least this score on a reputation organism.
    Reputation {
        /// The reputation organism.
        organism: UniqueId,
        /// Lowest score admitted, in parts per million.
        floor_ppm: u32,
    },
    /// Point at a settlement committed by a market organism.
    Settlement {
        /// The market organism.
        organism: UniqueId,
    },
    /// Satisfy a policy published elsewhere, named by its digest.
    Policy(UniqueId),
}

impl AclRule {
    /// The rule's canonical bytes: its number, then its fields, integers big-endian.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(81);
        match self {
            Self::Issuer(root) => push(&mut out, 1, root),
            Self::Tdx { root, mrtd } => {
                push(&mut out, 2, root);
                out.extend(mrtd.as_bytes());
            }
            Self::Reputation { organism, floor_ppm } => {
                push(&mut out, 3, organism);
                out.extend(floor_ppm.to_be_bytes());
            }
            Self::Settlement { organism } => push(&mut out, 4, organism),
            Self::Policy(digest) => push(&mut out, 5, digest),
        }
        out
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, Truncated> {
        let kind = reader.u8("access rule kind")?;
        let id = UniqueId::from_bytes(reader.array("access rule id")?);
        match kind {
            1 => Ok(Self::Issuer(id)),
            2 => Ok(Self::Tdx { root: id, mrtd: Mrtd(reader.array("access rule measurement")?) }),
            3 => {
                Ok(Self::Reputation { organism: id, floor_ppm: u32::from_be_bytes(reader.array("access rule floor")?) })
            }
            4 => Ok(Self::Settlement { organism: id }),
            5 => Ok(Self::Policy(id)),
            found => Err(Truncated::Value { field: "access rule kind", found }),
        }
    }
}

fn push(out: &mut Vec<u8>, kind: u8, id: &UniqueId) {
    out.push(kind);
    out.extend(id.as_bytes());
}

/// What a ticket validator demands: every rule of an ordered list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AclComposition<'a> {
    rules: &'a [AclRule],
}

impl<'a> AclComposition<'a> {
    /// Demands nothing: anyone may bond.
    pub const OPEN: Self = Self { rules: &[] };

    /// Demands every one of these rules.
    #[must_use]
    pub const fn new(rules: &'a [AclRule]) -> Self {
        Self { rules }
    }

    /// The rules, in order.
    #[must_use]
    pub const fn rules(&self) -> &'a [AclRule] {
        self.rules
    }

    /// Whether anyone may bond.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.rules.is_empty()
    }

    /// Digest of the rules and their order.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        let start = Preimage::new(TAG_ACL).part(&(self.rules.len() as u64).to_le_bytes());
        self.rules.iter().fold(start, |preimage, rule| preimage.part(&rule.to_bytes())).hash()
    }
}

/// A coalition's optional ticket issuer. No component has to accept its tickets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TicketIssuerConfig<'a> {
    /// Name or role of the issuer.
    pub name: &'a str,
    /// Who may run issuance.
    pub acl: AclComposition<'a>,
}

impl TicketIssuerConfig<'_> {
    /// Digest of name and access rules; folded into the coalition's root.
    #[must_use]
    pub fn fingerprint(&self) -> UniqueId {
        Preimage::new(TAG_ISSUER).part(self.name.as_bytes()).id(self.acl.fingerprint()).hash()
    }
}

/// The issuance root of a coalition whose root is `coalition_root` (see `CoalitionConfig::root`).
#[must_use]
pub fn coalition_ticket_issuer_root(coalition_root: UniqueId) -> UniqueId {
    coalition_root.derive("tickets")
}
