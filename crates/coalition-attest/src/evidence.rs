//! A quote and, if its bearer has it, the collateral to judge it with: what travels in cards, tickets and certificates.
//!
//! Collateral is signed by the root, so it loses nothing by coming from the bearer; how old it may be is the policy's
//! business. Layout, integers big-endian: version `01` ‖ u32 length ‖ quote ‖ u32 length ‖ collateral JSON or nothing.

use thiserror::Error;

use crate::binding::Expect;
use crate::cache::VerdictCache;
use crate::collateral::{Collateral, CollateralError, CollateralKey, CollateralSource, Origin};
use crate::quote::{MAX_QUOTE_BYTES, Quote};
use crate::verdict::{Outcome, Verdict};
use crate::verify::Verifier;

/// Longest collateral that travels beside a quote, as JSON; Intel's is about 24 KiB.
pub const MAX_INLINE_COLLATERAL_BYTES: usize = 48 * 1024;

const VERSION: u8 = 1;

/// A quote, not yet parsed, and what its bearer brought along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The quote.
    pub quote: Vec<u8>,
    /// Its collateral.
    pub collateral: Option<Collateral>,
}

/// Why bytes are no evidence.
#[derive(Debug, Error)]
pub enum EvidenceError {
    /// Of another version.
    #[error("the evidence has version {0}, expected {VERSION}")]
    Version(u8),
    /// The bytes end early or go on afterwards.
    #[error("the evidence's {0} does not have the length it states")]
    Length(&'static str),
    /// A part over its limit.
    #[error("the evidence's {field} has {found} bytes, at most {max} are allowed")]
    TooLong {
        /// The part.
        field: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The collateral is none.
    #[error("the evidence's collateral")]
    Collateral(#[from] CollateralError),
}

impl Evidence {
    /// The canonical bytes.
    ///
    /// # Errors
    /// [`EvidenceError::TooLong`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, EvidenceError> {
        let json = self.collateral.as_ref().map_or_else(String::new, Collateral::to_json);
        let mut out = vec![VERSION];
        push(&mut out, "quote", &self.quote, MAX_QUOTE_BYTES)?;
        push(&mut out, "collateral", json.as_bytes(), MAX_INLINE_COLLATERAL_BYTES)?;
        Ok(out)
    }

    /// Reads the canonical bytes.
    ///
    /// # Errors
    /// [`EvidenceError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let (version, rest) = bytes.split_first().ok_or(EvidenceError::Length("version"))?;
        if *version != VERSION {
            return Err(EvidenceError::Version(*version));
        }
        let (quote, rest) = pull(rest, "quote", MAX_QUOTE_BYTES)?;
        let (json, rest) = pull(rest, "collateral", MAX_INLINE_COLLATERAL_BYTES)?;
        if !rest.is_empty() {
            return Err(EvidenceError::Length("end"));
        }
        let collateral = if json.is_empty() { None } else { Some(Collateral::from_json(json, Origin::Inline)?) };
        Ok(Self { quote: quote.to_vec(), collateral })
    }

    /// Judges the quote at `now_s`, Unix seconds, remembering the verdict.
    ///
    /// Collateral comes from `own` first. Only if nothing can be said with that, because it is missing or old, is what
    /// the bearer brought tried: a revocation that is known here is never undone by an older list from there.
    #[must_use]
    pub fn judge(
        &self,
        verifier: &Verifier,
        cache: &VerdictCache,
        own: &dyn CollateralSource,
        expect: &Expect,
        now_s: u64,
    ) -> Verdict {
        let Ok(quote) = Quote::parse(&self.quote) else {
            return verifier.verify(&self.quote, own, expect, now_s);
        };
        // Once: reading the platform's certificate for the key takes a while.
        let found = quote.collateral_key().ok().map(|key| own.collateral(key));
        let known = match (found, &self.collateral) {
            (Some(Ok(collateral)), _) => cache.judge(verifier, &quote, &collateral, expect, now_s),
            (Some(Err(_)), Some(brought)) => return cache.judge(verifier, &quote, brought, expect, now_s),
            _ => verifier.verify_quote(&quote, own, expect, now_s),
        };
        match (&known.outcome, &self.collateral) {
            (Outcome::CouldNotCheck(_), Some(brought)) => cache.judge(verifier, &quote, brought, expect, now_s),
            _ => known,
        }
    }
}

fn push(out: &mut Vec<u8>, field: &'static str, bytes: &[u8], max: usize) -> Result<(), EvidenceError> {
    let too_long = EvidenceError::TooLong { field, found: bytes.len(), max };
    let len = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= max).ok_or(too_long)?;
    out.extend(len.to_be_bytes());
    out.extend(bytes);
    Ok(())
}

fn pull<'a>(bytes: &'a [u8], field: &'static str, max: usize) -> Result<(&'a [u8], &'a [u8]), EvidenceError> {
    let (len, rest) = bytes.split_first_chunk::<4>().ok_or(EvidenceError::Length(field))?;
    let found = usize::try_from(u32::from_be_bytes(*len)).unwrap_or(usize::MAX);
    if found > max {
        return Err(EvidenceError::TooLong { field, found, max });
    }
    rest.split_at_checked(found).ok_or(EvidenceError::Length(field))
}

/// No place of one's own: only what the bearer brings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nowhere;

impl CollateralSource for Nowhere {
    fn collateral(&self, key: CollateralKey) -> Result<Collateral, CollateralError> {
        Err(CollateralError::Missing { key, place: "the evidence".to_owned() })
    }
}
