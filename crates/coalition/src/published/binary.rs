//! The binary form: `COAL`, version, length, fields, checksum. Every config has exactly one encoding.
//!
//! `docs/protocol/identity.md` gives the layout byte by byte.

use super::builder::check_rules;
use super::draft::{Draft, DraftBody, DraftMember};
use super::{
    MAX_BINARY_BYTES, MAX_CONTENT_BYTES, Member, PublishedConfig, PublishedError, PublishedIssuer, PublishedLattice,
    PublishedOrganism, PublishedRef,
};
use crate::bytes::{Reader, Truncated, put_bytes_u32, put_str_u8};
use crate::identity::{COALITION_ROOT_SEED, SCHEMA_VERSION_U8, UniqueId, optional_part};
use crate::modules::ModuleKind;
use crate::retirement::RetirementPolicy;
use crate::tickets::AclRule;

const MAGIC: &[u8; 4] = b"COAL";
const VERSION: u8 = 1;
/// Magic, version, length of the fields as `u32`.
const HEADER_BYTES: usize = 9;
const CHECKSUM_BYTES: usize = 32;

/// Turns strict lower-case hexadecimal into bytes.
pub(super) fn decode_hex(text: &str) -> Result<Vec<u8>, PublishedError> {
    let text = text.trim_ascii();
    if text.len() > 2 * MAX_BINARY_BYTES {
        return Err(PublishedError::binary_too_large(text.len() / 2));
    }
    let digit = |c: &char| c.is_ascii_digit() || ('a'..='f').contains(c);
    if let Some((position, found)) = text.chars().enumerate().find(|(_, c)| !digit(c)) {
        return Err(PublishedError::HexDigit { position, found });
    }
    hex::decode(text).map_err(|_| PublishedError::HexOdd(text.len()))
}

/// Reads the binary form into claims; nothing is recomputed yet.
pub(super) fn decode(bytes: &[u8]) -> Result<Draft, PublishedError> {
    if bytes.len() > MAX_BINARY_BYTES {
        return Err(PublishedError::binary_too_large(bytes.len()));
    }
    let mut reader = Reader::new(check_frame(bytes)?);
    check_rules(reader.u8("schema version")?, UniqueId::from_bytes(reader.array("root seed")?))?;
    let mut draft = Draft::new(reader.str_u8("coalition name")?);
    draft.retirement_policy = match reader.u8("retirement policy")? {
        1 => RetirementPolicy::CONSERVATIVE,
        2 => RetirementPolicy::LENIENT,
        found => return Err(wrong("retirement policy", found)),
    };
    for _ in 0..reader.u16("number of lattices")? {
        let id = reader.array("lattice id")?;
        draft.lattices.push(UniqueId::from_bytes(id));
    }
    for _ in 0..reader.u16("number of organisms")? {
        let role = reader.string_u8("organism role")?;
        draft.organisms.push(read_member(&mut reader, role, true)?);
    }
    for kind in ModuleKind::ALL {
        if flag(&mut reader, "module presence")? {
            let module = read_member(&mut reader, kind.str_name().to_owned(), false)?;
            draft.modules[kind.slot()] = Some(module);
        }
    }
    if flag(&mut reader, "ticket issuer presence")? {
        draft.ticket_issuer =
            Some(PublishedIssuer { name: reader.string_u8("ticket issuer name")?, acl: read_acl(&mut reader)? });
    }
    match reader.remaining() {
        0 => Ok(draft),
        trailing => Err(PublishedError::Trailing(trailing)),
    }
}

/// Checks magic, version, length and checksum, and returns the fields between them.
fn check_frame(bytes: &[u8]) -> Result<&[u8], PublishedError> {
    let mut reader = Reader::new(bytes);
    let magic = reader.array::<4>("magic").map_err(|_| PublishedError::Magic)?;
    if &magic != MAGIC {
        return Err(PublishedError::Magic);
    }
    let version = reader.u8("version")?;
    if version != VERSION {
        return Err(PublishedError::Version(version));
    }
    let fields = usize::try_from(u32::from_be_bytes(reader.array("length")?)).unwrap_or(usize::MAX);
    let announced = fields.saturating_add(HEADER_BYTES + CHECKSUM_BYTES);
    if announced != bytes.len() {
        return Err(PublishedError::Length { announced, found: bytes.len() });
    }
    let fields = reader.take("fields", fields)?;
    let found = UniqueId::from_bytes(reader.array("checksum")?);
    let computed = UniqueId::hash(&bytes[..bytes.len() - CHECKSUM_BYTES]);
    if found != computed {
        return Err(PublishedError::Checksum { found, computed });
    }
    Ok(fields)
}

fn read_member(reader: &mut Reader<'_>, role: String, spans: bool) -> Result<DraftMember, PublishedError> {
    let stable_id = Some(UniqueId::from_bytes(reader.array("stable id")?));
    let pin = reader.optional_id("content hash")?.into();
    let body = if flag(reader, "content presence")? { Some(read_body(reader, spans)?) } else { None };
    Ok(DraftMember { role, stable_id, pin, body })
}

fn read_body(reader: &mut Reader<'_>, spans: bool) -> Result<DraftBody, PublishedError> {
    let name = reader.string_u8("name")?;
    let (mut lattices, mut organisms) = (Vec::new(), Vec::new());
    if spans {
        for _ in 0..reader.u16("number of spanned lattices")? {
            lattices.push(PublishedLattice {
                instance_name: reader.string_u8("spanned lattice name")?,
                stable_id: UniqueId::from_bytes(reader.array("spanned lattice id")?),
                content_hash: reader.optional_id("spanned lattice content hash")?,
            });
        }
        for _ in 0..reader.u16("number of spanned organisms")? {
            organisms.push(PublishedRef {
                role: reader.string_u8("spanned organism role")?,
                stable_id: UniqueId::from_bytes(reader.array("spanned organism id")?),
                content_hash: reader.optional_id("spanned organism content hash")?,
            });
        }
    }
    Ok(DraftBody {
        name,
        content: reader.bytes_u32("content", MAX_CONTENT_BYTES)?.to_vec(),
        acl: read_acl(reader)?,
        lattices,
        organisms,
    })
}

fn read_acl(reader: &mut Reader<'_>) -> Result<Vec<AclRule>, PublishedError> {
    let count = reader.u8("number of access rules")?;
    let rules = (0..count).map(|_| AclRule::read(reader)).collect::<Result<_, _>>()?;
    Ok(rules)
}

fn flag(reader: &mut Reader<'_>, field: &'static str) -> Result<bool, PublishedError> {
    match reader.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(wrong(field, found)),
    }
}

fn wrong(field: &'static str, found: u8) -> PublishedError {
    Truncated::Value { field, found }.into()
}

/// Writes the one encoding of a config.
pub(super) fn encode(config: &PublishedConfig) -> Vec<u8> {
    let mut fields = vec![SCHEMA_VERSION_U8];
    fields.extend(COALITION_ROOT_SEED.as_bytes());
    put_str_u8(&mut fields, &config.instance_name);
    fields.push(match config.retirement_policy {
        RetirementPolicy::Conservative => 1,
        RetirementPolicy::Lenient => 2,
    });
    put_count(&mut fields, config.lattices.len());
    for lattice in &config.lattices {
        fields.extend(lattice.as_bytes());
    }
    put_count(&mut fields, config.organisms.len());
    for organism in &config.organisms {
        put_str_u8(&mut fields, &organism.reference.role);
        put_member(&mut fields, organism, true);
    }
    for slot in &config.modules {
        fields.push(u8::from(slot.is_some()));
        if let Some(module) = slot {
            put_member(&mut fields, module, false);
        }
    }
    fields.push(u8::from(config.ticket_issuer.is_some()));
    if let Some(issuer) = &config.ticket_issuer {
        put_str_u8(&mut fields, &issuer.name);
        put_acl(&mut fields, &issuer.acl);
    }

    let mut out = MAGIC.to_vec();
    out.push(VERSION);
    put_bytes_u32(&mut out, &fields);
    let checksum = UniqueId::hash(&out);
    out.extend(checksum.as_bytes());
    out
}

fn put_member(out: &mut Vec<u8>, member: &Member, spans: bool) {
    out.extend(member.reference.stable_id.as_bytes());
    out.extend(optional_part(member.reference.content_hash));
    out.push(u8::from(member.published.is_some()));
    if let Some(published) = &member.published {
        put_body(out, published, spans);
    }
}

fn put_body(out: &mut Vec<u8>, published: &PublishedOrganism, spans: bool) {
    put_str_u8(out, &published.name);
    if spans {
        put_count(out, published.lattices.len());
        for lattice in &published.lattices {
            put_str_u8(out, &lattice.instance_name);
            out.extend(lattice.stable_id.as_bytes());
            out.extend(optional_part(lattice.content_hash));
        }
        put_count(out, published.organisms.len());
        for organism in &published.organisms {
            put_str_u8(out, &organism.role);
            out.extend(organism.stable_id.as_bytes());
            out.extend(optional_part(organism.content_hash));
        }
    }
    put_bytes_u32(out, &published.content);
    put_acl(out, &published.acl);
}

fn put_acl(out: &mut Vec<u8>, acl: &[AclRule]) {
    out.push(u8::try_from(acl.len()).expect("a verified config has at most 64 rules in one place"));
    for rule in acl {
        out.extend(rule.to_bytes());
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u16::try_from(count).expect("a verified config has at most 1024 members in one place");
    out.extend(count.to_be_bytes());
}
