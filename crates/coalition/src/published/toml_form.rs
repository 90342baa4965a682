//! The TOML form: for people to read, review and write. Ids of published contents may be left out.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::builder::check_rules;
use super::draft::{Draft, DraftBody, DraftMember, Pin};
use super::{
    MAX_TOML_BYTES, Member, PublishedConfig, PublishedError, PublishedIssuer, PublishedLattice, PublishedOrganism,
    PublishedRef,
};
use crate::committee::{CommitteeContent, Roster};
use crate::identity::{COALITION_ROOT_SEED, SCHEMA_VERSION_U8, UniqueId};
use crate::modules::ModuleKind;
use crate::retirement::RetirementPolicy;
use crate::serde_hex;
use crate::tickets::AclRule;

/// What a reference without a pinned content hash says in its place.
const UNPINNED: &str = "unpinned";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema_version: u8,
    instance_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<Id>,
    #[serde(default = "conservative")]
    retirement_policy: RetirementPolicy,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lattices: Vec<Id>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ticket_issuer: Option<IssuerTable>,
    #[serde(default, skip_serializing_if = "ModuleTables::is_empty")]
    modules: ModuleTables,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    organisms: Vec<OrganismTable>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IssuerTable {
    name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    acl: Vec<AclRule>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModuleTables {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    atlas: Option<ModuleTable>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    almanac: Option<ModuleTable>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chronicle: Option<ModuleTable>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compute: Option<ModuleTable>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    randomness: Option<ModuleTable>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModuleTable {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stable_id: Option<Id>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_hash: Option<PinText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<HexText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    committee: Option<CommitteeTable>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    acl: Vec<AclRule>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OrganismTable {
    role: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stable_id: Option<Id>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_hash: Option<PinText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<HexText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    committee: Option<CommitteeTable>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    acl: Vec<AclRule>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lattices: Vec<LatticeTable>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    organisms: Vec<RefTable>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommitteeTable {
    service: String,
    #[serde(default, skip_serializing_if = "HexText::is_empty")]
    params: HexText,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    predecessor: Option<Id>,
    roster: Roster,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LatticeTable {
    instance_name: String,
    stable_id: Id,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_hash: Option<Id>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RefTable {
    role: String,
    stable_id: Id,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_hash: Option<Id>,
}

/// An id as 64 digits, parsed strictly.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(transparent)]
struct Id(#[serde(with = "serde_hex")] [u8; 32]);

impl From<UniqueId> for Id {
    fn from(id: UniqueId) -> Self {
        Self(*id.as_bytes())
    }
}

impl From<Id> for UniqueId {
    fn from(id: Id) -> Self {
        Self::from_bytes(id.0)
    }
}

/// A content hash, or the word `unpinned`.
struct PinText(Option<UniqueId>);

impl Serialize for PinText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(hash) => Id::from(hash).serialize(serializer),
            None => serializer.serialize_str(UNPINNED),
        }
    }
}

impl<'de> Deserialize<'de> for PinText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = PinText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 hexadecimal digits or \"unpinned\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PinText, E> {
                if text == UNPINNED {
                    return Ok(PinText(None));
                }
                let hash = crate::identity::parse_id(text).map_err(E::custom)?;
                Ok(PinText(Some(hash)))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Bytes of any length as hexadecimal.
#[derive(Default)]
struct HexText(Vec<u8>);

impl HexText {
    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for HexText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for HexText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = HexText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an even number of hexadecimal digits")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<HexText, E> {
                hex::decode(text).map(HexText).map_err(|_| E::invalid_value(de::Unexpected::Str(&cut(text)), &self))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

fn cut(text: &str) -> String {
    text.chars().take(60).collect()
}

const fn conservative() -> RetirementPolicy {
    RetirementPolicy::CONSERVATIVE
}

/// Reads and resolves the TOML form, and holds it against its own fingerprint if it states one.
pub(super) fn decode(text: &str) -> Result<PublishedConfig, PublishedError> {
    if text.len() > MAX_TOML_BYTES {
        return Err(PublishedError::toml_too_large(text.len()));
    }
    let document: Document = toml::from_str(text)?;
    check_rules(document.schema_version, COALITION_ROOT_SEED)?;
    let fingerprint = document.fingerprint;
    let config = document.into_draft()?.resolve()?;
    if let Some(expected) = fingerprint {
        config.expect_fingerprint(expected.into())?;
    }
    Ok(config)
}

impl Document {
    fn into_draft(self) -> Result<Draft, PublishedError> {
        let mut draft = Draft::new(&self.instance_name);
        draft.retirement_policy = self.retirement_policy;
        draft.lattices = self.lattices.into_iter().map(UniqueId::from).collect();
        draft.ticket_issuer = self.ticket_issuer.map(|issuer| PublishedIssuer { name: issuer.name, acl: issuer.acl });
        for organism in self.organisms {
            draft.organisms.push(organism.into_draft()?);
        }
        for (kind, table) in ModuleKind::ALL.into_iter().zip(self.modules.into_slots()) {
            if let Some(table) = table {
                let what = format!("modules.{kind}");
                draft.modules[kind.slot()] = Some(table.into_draft(kind.str_name().to_owned(), &what)?);
            }
        }
        Ok(draft)
    }
}

impl ModuleTables {
    fn into_slots(self) -> [Option<ModuleTable>; 5] {
        [self.atlas, self.almanac, self.chronicle, self.compute, self.randomness]
    }

    fn from_slots(slots: [Option<ModuleTable>; 5]) -> Self {
        let [atlas, almanac, chronicle, compute, randomness] = slots;
        Self { atlas, almanac, chronicle, compute, randomness }
    }

    const fn is_empty(&self) -> bool {
        matches!(self, Self { atlas: None, almanac: None, chronicle: None, compute: None, randomness: None })
    }
}

impl ModuleTable {
    fn into_draft(self, role: String, what: &str) -> Result<DraftMember, PublishedError> {
        let keys = |problem| Err(PublishedError::Keys { what: what.to_owned(), problem });
        let content = match (self.content, self.committee) {
            (Some(_), Some(_)) => return keys("'content' and 'committee' exclude each other"),
            (Some(HexText(bytes)), None) => Some(bytes),
            (None, Some(committee)) => Some(committee.into_bytes(&role)?),
            (None, None) => None,
        };
        let body = match (self.name, content) {
            (Some(name), Some(content)) => {
                Some(DraftBody { name, content, acl: self.acl, lattices: Vec::new(), organisms: Vec::new() })
            }
            (None, None) if self.acl.is_empty() => None,
            (None, None) => return keys("'acl' needs 'name' and 'content' or 'committee' beside it"),
            (Some(_), None) => return keys("'name' needs 'content' or 'committee' beside it"),
            (None, Some(_)) => return keys("'content' or 'committee' needs 'name' beside it"),
        };
        let pin = match self.content_hash {
            Some(PinText(hash)) => hash.into(),
            None => Pin::Computed,
        };
        Ok(DraftMember { role, stable_id: self.stable_id.map(UniqueId::from), pin, body })
    }

    fn from_member(member: &Member) -> Self {
        let published = member.published.as_ref();
        let (content, committee) = published.map_or((None, None), content_keys);
        Self {
            name: published.map(|p| p.name.clone()),
            stable_id: Some(member.reference.stable_id.into()),
            content_hash: Some(PinText(member.reference.content_hash)),
            content,
            committee,
            acl: published.map(|p| p.acl.clone()).unwrap_or_default(),
        }
    }
}

impl OrganismTable {
    fn into_draft(self) -> Result<DraftMember, PublishedError> {
        let what = format!("organisms, role '{}'", cut(&self.role));
        let shared = ModuleTable {
            name: self.name,
            stable_id: self.stable_id,
            content_hash: self.content_hash,
            content: self.content,
            committee: self.committee,
            acl: self.acl,
        };
        let mut member = shared.into_draft(self.role, &what)?;
        match &mut member.body {
            Some(body) => {
                body.lattices = self.lattices.into_iter().map(PublishedLattice::from).collect();
                body.organisms = self.organisms.into_iter().map(PublishedRef::from).collect();
            }
            None if !self.lattices.is_empty() || !self.organisms.is_empty() => {
                let problem = "'lattices' and 'organisms' need 'name' and 'content' or 'committee' beside them";
                return Err(PublishedError::Keys { what, problem });
            }
            None => {}
        }
        Ok(member)
    }

    fn from_member(member: &Member) -> Self {
        let shared = ModuleTable::from_member(member);
        let published = member.published.as_ref();
        Self {
            role: member.reference.role.clone(),
            name: shared.name,
            stable_id: shared.stable_id,
            content_hash: shared.content_hash,
            content: shared.content,
            committee: shared.committee,
            acl: shared.acl,
            lattices: published.map(|p| p.lattices.iter().map(LatticeTable::from).collect()).unwrap_or_default(),
            organisms: published.map(|p| p.organisms.iter().map(RefTable::from).collect()).unwrap_or_default(),
        }
    }
}

impl CommitteeTable {
    fn into_bytes(self, role: &str) -> Result<Vec<u8>, PublishedError> {
        let content = CommitteeContent {
            service: self.service,
            roster: self.roster,
            params: self.params.0,
            predecessor: self.predecessor.map(UniqueId::from),
        };
        match content.validate() {
            Ok(()) => Ok(content.to_bytes()),
            Err(source) => Err(PublishedError::Committee { role: role.to_owned(), source }),
        }
    }
}

/// A committee's content in its own table, anything else as bytes.
fn content_keys(published: &PublishedOrganism) -> (Option<HexText>, Option<CommitteeTable>) {
    match CommitteeContent::from_bytes(&published.content) {
        Ok(content) => {
            let table = CommitteeTable {
                service: content.service,
                params: HexText(content.params),
                predecessor: content.predecessor.map(Id::from),
                roster: content.roster,
            };
            (None, Some(table))
        }
        Err(_) => (Some(HexText(published.content.clone())), None),
    }
}

impl From<LatticeTable> for PublishedLattice {
    fn from(table: LatticeTable) -> Self {
        Self {
            instance_name: table.instance_name,
            stable_id: table.stable_id.into(),
            content_hash: table.content_hash.map(UniqueId::from),
        }
    }
}

impl From<&PublishedLattice> for LatticeTable {
    fn from(lattice: &PublishedLattice) -> Self {
        Self {
            instance_name: lattice.instance_name.clone(),
            stable_id: lattice.stable_id.into(),
            content_hash: lattice.content_hash.map(Id::from),
        }
    }
}

impl From<RefTable> for PublishedRef {
    fn from(table: RefTable) -> Self {
        Self {
            role: table.role,
            stable_id: table.stable_id.into(),
            content_hash: table.content_hash.map(UniqueId::from),
        }
    }
}

impl From<&PublishedRef> for RefTable {
    fn from(reference: &PublishedRef) -> Self {
        Self {
            role: reference.role.clone(),
            stable_id: reference.stable_id.into(),
            content_hash: reference.content_hash.map(Id::from),
        }
    }
}

/// Writes the TOML form.
pub(super) fn encode(config: &PublishedConfig) -> String {
    let document = Document {
        schema_version: SCHEMA_VERSION_U8,
        instance_name: config.instance_name.clone(),
        fingerprint: Some(config.fingerprint.into()),
        retirement_policy: config.retirement_policy,
        lattices: config.lattices.iter().copied().map(Id::from).collect(),
        ticket_issuer: config
            .ticket_issuer
            .as_ref()
            .map(|issuer| IssuerTable { name: issuer.name.clone(), acl: issuer.acl.clone() }),
        modules: ModuleTables::from_slots(
            config.modules.each_ref().map(|slot| slot.as_ref().map(ModuleTable::from_member)),
        ),
        organisms: config.organisms.iter().map(OrganismTable::from_member).collect(),
    };
    toml::to_string(&document).expect("strings, small integers and tables of them always have a TOML form")
}
