//! A coalition's ticket issuer: its charter, the tickets it issues, and what makes one valid.
//!
//! The issuance root of a config folds the issuer's access rules. For a root whose tickets anybody can check, these rules are
//! one: *policy* with the digest of a [`Charter`], which lists the keys that may sign. Rotating the keys is publishing another
//! charter, hence another root, and tickets of the old root end where the new one is pinned.
//!
//! An issued ticket is the substrate's own: a JWT signed with Ed25519. Here it must be exactly the text that [`Issuer::issue`]
//! writes: one header, the claims `iss` (issuance root), `sub` (peer), `aud` (the door's id), `exp`, `iat` (Unix seconds) and
//! `net` (network id) in this order, ids as 64 lower-case hex digits.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coalition::tickets::AclRule;
use coalition::{PublishedConfig, UniqueId, hash_many};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use mosaik::tickets::{Jwt, Ticket};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::admission::Bearer;
use crate::refused::Refused;

/// Longest issued ticket; one is about 640.
pub const MAX_ISSUED_BYTES: usize = 1_024;

/// Most keys of a charter.
pub const MAX_KEYS: usize = 16;

/// How far an issuer's clock may be ahead of a door's, in seconds.
pub const CLOCK_SKEW_S: u64 = 60;

const VERSION: u8 = 1;
const TAG: &[u8] = b"coalition/tickets/charter";
const KIND: &str = "issued ticket";
/// The header of every ticket: `{"alg":"EdDSA","typ":"JWT"}`.
const HEADER: &str = "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9";

/// Why there is no charter, or it is not the config's.
#[derive(Debug, Error)]
pub enum CharterError {
    /// No keys or too many.
    #[error("a charter has 1 to {MAX_KEYS} keys, this one has {0}")]
    Keys(usize),
    /// Not a usable Ed25519 key.
    #[error("charter key {0} is no usable Ed25519 public key")]
    Key(UniqueId),
    /// Not ascending, or twice.
    #[error("the charter's keys are not ascending and distinct")]
    Order,
    /// A lifetime of zero.
    #[error("the charter allows tickets of zero seconds, which are never valid")]
    Lifetime,
    /// Bytes that are no charter.
    #[error("the charter's bytes are not those of version {VERSION}: 6 bytes and 32 for each key")]
    Bytes,
    /// Not hexadecimal.
    #[error("a charter file holds its hexadecimal digits")]
    Hex(#[from] hex::FromHexError),
    /// The config has no issuer.
    #[error("the coalition {0} publishes no ticket issuer")]
    NoIssuer(UniqueId),
    /// The config's issuer works under another charter, or under rules that are not one charter.
    #[error(
        "the coalition's issuer is published with {published}, this is charter {charter}; get the charter of this config"
    )]
    Other {
        /// What the config says.
        published: String,
        /// Digest of this charter.
        charter: UniqueId,
    },
}

/// Who may sign tickets of an issuer, and how long one may last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charter {
    max_lifetime_s: u32,
    keys: Vec<[u8; 32]>,
}

impl Charter {
    /// A charter of these Ed25519 public keys; `max_lifetime_s` is the longest time from issue to expiry, in seconds.
    ///
    /// # Errors
    /// [`CharterError`].
    pub fn new(max_lifetime_s: u32, mut keys: Vec<[u8; 32]>) -> Result<Self, CharterError> {
        keys.sort_unstable();
        Self { max_lifetime_s, keys }.checked()
    }

    fn checked(self) -> Result<Self, CharterError> {
        if self.keys.is_empty() || self.keys.len() > MAX_KEYS {
            return Err(CharterError::Keys(self.keys.len()));
        }
        if self.max_lifetime_s == 0 {
            return Err(CharterError::Lifetime);
        }
        if !self.keys.is_sorted_by(|a, b| a < b) {
            return Err(CharterError::Order);
        }
        let is_usable = |key: &&[u8; 32]| VerifyingKey::from_bytes(key).is_ok_and(|key| !key.is_weak());
        match self.keys.iter().find(|key| !is_usable(key)) {
            Some(key) => Err(CharterError::Key(UniqueId::from_bytes(*key))),
            None => Ok(self),
        }
    }

    /// The canonical bytes: version `01` ‖ u32 longest lifetime in seconds ‖ u8 count ‖ keys, ascending.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend(self.max_lifetime_s.to_be_bytes());
        out.push(u8::try_from(self.keys.len()).unwrap_or(u8::MAX));
        self.keys.iter().for_each(|key| out.extend(key));
        out
    }

    /// Reads the canonical bytes.
    ///
    /// # Errors
    /// [`CharterError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CharterError> {
        let ([version, a, b, c, d, count], keys) = bytes.split_first_chunk::<6>().ok_or(CharterError::Bytes)?;
        if *version != VERSION || keys.len() != 32 * usize::from(*count) {
            return Err(CharterError::Bytes);
        }
        let keys = keys.as_chunks::<32>().0.to_vec();
        Self { max_lifetime_s: u32::from_be_bytes([*a, *b, *c, *d]), keys }.checked()
    }

    /// Reads the hexadecimal form, as in a file.
    ///
    /// # Errors
    /// [`CharterError`].
    pub fn from_hex(text: &str) -> Result<Self, CharterError> {
        Self::from_bytes(&hex::decode(text.trim())?)
    }

    /// The hexadecimal form.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex::encode(self.to_bytes())
    }

    /// Names these exact bytes.
    #[must_use]
    pub fn digest(&self) -> UniqueId {
        hash_many(&[&[VERSION], TAG, &self.to_bytes()])
    }

    /// The one access rule of an issuer under this charter.
    #[must_use]
    pub fn rule(&self) -> AclRule {
        AclRule::Policy(self.digest())
    }

    /// Longest time from issue to expiry, in seconds.
    #[must_use]
    pub const fn max_lifetime_s(&self) -> u32 {
        self.max_lifetime_s
    }

    /// The issuance root of a coalition whose issuer works under this charter.
    ///
    /// # Errors
    /// [`CharterError::NoIssuer`] and [`CharterError::Other`].
    pub fn root_in(&self, config: &PublishedConfig) -> Result<UniqueId, CharterError> {
        let none = || CharterError::NoIssuer(config.fingerprint());
        let issuer = config.ticket_issuer().ok_or_else(none)?;
        if issuer.acl.as_slice() != [self.rule()] {
            let published = match issuer.acl.as_slice() {
                [AclRule::Policy(other)] => format!("charter {other}"),
                other => format!("{} access rules that are not one charter", other.len()),
            };
            return Err(CharterError::Other { published, charter: self.digest() });
        }
        config.ticket_issuer_root().ok_or_else(none)
    }
}

/// What an issued ticket says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    iss: UniqueIdText,
    sub: UniqueIdText,
    aud: UniqueIdText,
    exp: u64,
    iat: u64,
    net: UniqueIdText,
}

/// An id as 64 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct UniqueIdText(UniqueId);

impl TryFrom<String> for UniqueIdText {
    type Error = coalition::IdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        coalition::parse_id(&text).map(Self)
    }
}

impl From<UniqueIdText> for String {
    fn from(id: UniqueIdText) -> Self {
        hex::encode(id.0.as_bytes())
    }
}

/// A ticket of an issuer: text, not yet judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedTicket(String);

impl IssuedTicket {
    /// Takes ASCII bytes; `None` when they are none, or too long.
    #[must_use]
    pub fn from_ascii(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        (text.is_ascii() && text.len() <= MAX_ISSUED_BYTES).then(|| Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ticket as the substrate's own JWT validator takes it.
    #[must_use]
    pub fn to_ticket(&self) -> Ticket {
        Ticket::new(Jwt::CLASS, self.0.clone().into_bytes().into())
    }

    /// The door and the peer it says it is for, and when it says it ends, Unix seconds. Unverified.
    ///
    /// # Errors
    /// [`Refused::Malformed`].
    pub fn claimed(&self) -> Result<(UniqueId, UniqueId, u64), Refused> {
        let (claims, ..) = self.parse()?;
        Ok((claims.aud.0, claims.sub.0, claims.exp))
    }

    /// Until when the ticket admits this bearer, Unix seconds.
    ///
    /// # Errors
    /// [`Refused`] with the first thing that does not hold: form, issuer, signature, then what it says.
    pub fn verify(&self, root: UniqueId, charter: &Charter, bearer: &Bearer, now_s: u64) -> Result<u64, Refused> {
        let (claims, signed, signature) = self.parse()?;
        if claims.iss.0 != root {
            return Err(Refused::Issuer { expected: root, found: claims.iss.0 });
        }
        let verifies = |key: &[u8; 32]| {
            VerifyingKey::from_bytes(key).is_ok_and(|key| key.verify_strict(signed.as_bytes(), &signature).is_ok())
        };
        if !charter.keys.iter().any(verifies) {
            return Err(Refused::Signature);
        }
        check_claims(&claims, charter, bearer, now_s)?;
        Ok(claims.exp)
    }

    /// The claims, what was signed, and the signature; refuses every text but the canonical one of these claims.
    fn parse(&self) -> Result<(Claims, &str, Signature), Refused> {
        let wrong = |what: &str| Refused::Malformed { kind: KIND, what: what.to_owned() };
        let (signed, signature) = self.0.rsplit_once('.').ok_or_else(|| wrong("it has no three parts"))?;
        let (header, claims) = signed.split_once('.').ok_or_else(|| wrong("it has no three parts"))?;
        if header != HEADER {
            return Err(wrong("its header is not that of Ed25519"));
        }
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| wrong("a part is no base64url"));
        let json = decode(claims)?;
        let claims: Claims = serde_json::from_slice(&json).map_err(|error| wrong(&error.to_string()))?;
        if encode_claims(&claims) != json {
            return Err(wrong("its claims are not in canonical form"));
        }
        let signature = Signature::from_slice(&decode(signature)?).map_err(|_| wrong("its signature is none"))?;
        Ok((claims, signed, signature))
    }
}

fn check_claims(claims: &Claims, charter: &Charter, bearer: &Bearer, now_s: u64) -> Result<(), Refused> {
    if claims.net.0 != bearer.network {
        return Err(Refused::Network { expected: bearer.network, found: claims.net.0 });
    }
    if claims.aud.0 != bearer.audience {
        return Err(Refused::Audience { expected: bearer.audience, found: claims.aud.0 });
    }
    if *claims.sub.0.as_bytes() != bearer.peer {
        return Err(Refused::Subject);
    }
    if claims.iat > now_s.saturating_add(CLOCK_SKEW_S) {
        return Err(Refused::NotYet { at_s: claims.iat, now_s });
    }
    if claims.exp <= now_s {
        return Err(Refused::Expired { at_s: claims.exp, now_s });
    }
    let (found_s, max_s) = (claims.exp.saturating_sub(claims.iat), u64::from(charter.max_lifetime_s));
    if found_s > max_s {
        return Err(Refused::Lifetime { found_s, max_s });
    }
    Ok(())
}

fn encode_claims(claims: &Claims) -> Vec<u8> {
    serde_json::to_vec(claims).expect("strings and integers always serialize")
}

/// Signs tickets under one issuance root.
pub struct Issuer {
    root: UniqueId,
    max_lifetime_s: u32,
    key: SigningKey,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuer({}, secret redacted)", self.root)
    }
}

/// Why no ticket is issued.
#[derive(Debug, Error)]
pub enum IssueError {
    /// The charter.
    #[error("the issuer's charter")]
    Charter(#[from] CharterError),
    /// The key is not in the charter.
    #[error("key {0} is not in the charter, so nobody would believe its tickets")]
    NotInCharter(UniqueId),
    /// A lifetime that is not allowed.
    #[error("a ticket lasts 1 to {max_s} s by the charter, {found_s} s were asked for")]
    Lifetime {
        /// Lifetime asked for, seconds.
        found_s: u64,
        /// Lifetime allowed, seconds.
        max_s: u64,
    },
}

impl Issuer {
    /// The issuer of a coalition, with one of its charter's keys.
    ///
    /// # Errors
    /// [`IssueError`] when the config has no such issuer, or the charter not this key.
    pub fn of(config: &PublishedConfig, charter: &Charter, key: SigningKey) -> Result<Self, IssueError> {
        let root = charter.root_in(config)?;
        let public = key.verifying_key().to_bytes();
        if !charter.keys.contains(&public) {
            return Err(IssueError::NotInCharter(UniqueId::from_bytes(public)));
        }
        Ok(Self { root, max_lifetime_s: charter.max_lifetime_s, key })
    }

    /// A ticket that admits one bearer for `lifetime_s` seconds from `now_s`, Unix seconds.
    ///
    /// # Errors
    /// [`IssueError::Lifetime`].
    pub fn issue(&self, bearer: &Bearer, now_s: u64, lifetime_s: u64) -> Result<IssuedTicket, IssueError> {
        let max_s = u64::from(self.max_lifetime_s);
        if lifetime_s == 0 || lifetime_s > max_s {
            return Err(IssueError::Lifetime { found_s: lifetime_s, max_s });
        }
        let claims = Claims {
            iss: UniqueIdText(self.root),
            sub: UniqueIdText(UniqueId::from_bytes(bearer.peer)),
            aud: UniqueIdText(bearer.audience),
            exp: now_s.saturating_add(lifetime_s),
            iat: now_s,
            net: UniqueIdText(bearer.network),
        };
        let signed = format!("{HEADER}.{}", URL_SAFE_NO_PAD.encode(encode_claims(&claims)));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()).to_bytes());
        Ok(IssuedTicket(format!("{signed}.{signature}")))
    }
}
