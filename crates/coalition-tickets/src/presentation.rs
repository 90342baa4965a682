//! What a peer shows at a door: up to eight tickets in one strict form.
//!
//! Layout, integers big-endian: version `01` ‖ u8 count, then per ticket u8 kind ‖ u32 length ‖ bytes. Kinds: 1 attestation
//! ([`crate::tdx_ticket`]), 2 ticket of an issuer ([`crate::issuer`]), 3 settlement pointer. In the substrate a presentation is
//! the data of one ticket of class [`CLASS`], and because a discovery entry of over 4,096 bytes hides its owner, it has to be
//! short there: attestations in their slim form.

use coalition::{EvidencePointer, UniqueId};
use coalition_attest::evidence::MAX_INLINE_COLLATERAL_BYTES;
use coalition_attest::quote::MAX_QUOTE_BYTES;
use mosaik::tickets::Ticket;
use thiserror::Error;

use crate::issuer::{IssuedTicket, MAX_ISSUED_BYTES};
use crate::refused::Refused;
use crate::tdx_ticket::{TdxTicket, TdxTicketError};

/// Class of presentations among the substrate's tickets.
pub const CLASS: UniqueId = coalition::unique_id!("coalition.tickets.presentation.v1");

/// Most tickets in a presentation.
pub const MAX_TICKETS: usize = 8;

/// Longest presentation.
pub const MAX_PRESENTATION_BYTES: usize = 128 * 1024;

/// Longest attestation ticket: head, and evidence with its collateral beside it.
pub const MAX_TDX_BYTES: usize = 64 + MAX_QUOTE_BYTES + MAX_INLINE_COLLATERAL_BYTES;

const VERSION: u8 = 1;
const SETTLEMENT_BYTES: usize = 32 + 8 + 32;

/// One ticket of a presentation, its bytes not yet judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// An attestation bound to its bearer: [`TdxTicket`].
    Tdx(Vec<u8>),
    /// A ticket of a coalition's issuer.
    Issued(IssuedTicket),
    /// Where a settlement of the bearer was committed.
    Settlement(EvidencePointer),
}

/// Why bytes are no presentation.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PresentationError {
    /// Over [`MAX_PRESENTATION_BYTES`].
    #[error("a presentation of {found} bytes is over the limit of {MAX_PRESENTATION_BYTES}")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// Of another version.
    #[error("the presentation has version {0}, expected {VERSION}")]
    Version(u8),
    /// Over [`MAX_TICKETS`].
    #[error("{0} tickets in one presentation, at most {MAX_TICKETS} are taken")]
    TooMany(usize),
    /// A kind that this build does not know.
    #[error("a ticket of kind {0}, this build knows 1 to 3")]
    Kind(u8),
    /// The bytes end early, go on afterwards, or a length is not the one its kind has.
    #[error("the presentation's {0} does not have the length it states or must have")]
    Length(&'static str),
    /// A ticket over the limit of its kind.
    #[error("a ticket of kind {kind} with {found} bytes, at most {max} are taken")]
    TicketTooLong {
        /// The kind.
        kind: u8,
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// An issued ticket that is no text.
    #[error("an issued ticket that is no ASCII text")]
    Text,
}

impl From<PresentationError> for Refused {
    fn from(error: PresentationError) -> Self {
        Self::Malformed { kind: "presentation", what: error.to_string() }
    }
}

/// What a peer shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Presentation {
    tickets: Vec<Shown>,
}

impl Presentation {
    /// Nothing: enough at a door that only looks at who comes.
    #[must_use]
    pub const fn empty() -> Self {
        Self { tickets: Vec::new() }
    }

    /// The same with an attestation.
    ///
    /// # Errors
    /// [`TdxTicketError`] when it is too long to be shown.
    pub fn with_tdx(self, ticket: &TdxTicket) -> Result<Self, TdxTicketError> {
        Ok(self.with(Shown::Tdx(ticket.to_bytes()?)))
    }

    /// The same with an issued ticket.
    #[must_use]
    pub fn with_issued(self, ticket: IssuedTicket) -> Self {
        self.with(Shown::Issued(ticket))
    }

    /// The same with a pointer to a settlement.
    #[must_use]
    pub fn with_settlement(self, pointer: EvidencePointer) -> Self {
        self.with(Shown::Settlement(pointer))
    }

    fn with(mut self, ticket: Shown) -> Self {
        self.tickets.push(ticket);
        self
    }

    /// The tickets, in the order they were added.
    #[must_use]
    pub fn tickets(&self) -> &[Shown] {
        &self.tickets
    }

    /// The canonical bytes.
    ///
    /// # Errors
    /// [`PresentationError`] when there are too many tickets or too many bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, PresentationError> {
        let count = u8::try_from(self.tickets.len()).ok().filter(|_| self.tickets.len() <= MAX_TICKETS);
        let mut out = vec![VERSION, count.ok_or(PresentationError::TooMany(self.tickets.len()))?];
        for ticket in &self.tickets {
            let (kind, bytes) = match ticket {
                Shown::Tdx(bytes) => (1, bytes.clone()),
                Shown::Issued(ticket) => (2, ticket.as_str().as_bytes().to_vec()),
                Shown::Settlement(pointer) => (3, settlement_bytes(pointer)),
            };
            let too_long = PresentationError::TooLong { found: bytes.len() };
            out.push(kind);
            out.extend(u32::try_from(bytes.len()).map_err(|_| too_long)?.to_be_bytes());
            out.extend(bytes);
        }
        if out.len() > MAX_PRESENTATION_BYTES {
            return Err(PresentationError::TooLong { found: out.len() });
        }
        Ok(out)
    }

    /// Reads the canonical bytes. What the tickets say is judged later.
    ///
    /// # Errors
    /// [`PresentationError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PresentationError> {
        if bytes.len() > MAX_PRESENTATION_BYTES {
            return Err(PresentationError::TooLong { found: bytes.len() });
        }
        let (head, mut rest) = bytes.split_first_chunk::<2>().ok_or(PresentationError::Length("head"))?;
        let [version, count] = *head;
        if version != VERSION {
            return Err(PresentationError::Version(version));
        }
        if usize::from(count) > MAX_TICKETS {
            return Err(PresentationError::TooMany(count.into()));
        }
        let mut tickets = Vec::with_capacity(count.into());
        for _ in 0..count {
            let (ticket, after) = read_ticket(rest)?;
            tickets.push(ticket);
            rest = after;
        }
        if rest.is_empty() { Ok(Self { tickets }) } else { Err(PresentationError::Length("end")) }
    }

    /// The presentation as a ticket of the substrate, for a discovery entry.
    ///
    /// # Errors
    /// As [`Presentation::to_bytes`].
    pub fn to_ticket(&self) -> Result<Ticket, PresentationError> {
        Ok(Ticket::new(CLASS, self.to_bytes()?.into()))
    }
}

fn read_ticket(bytes: &[u8]) -> Result<(Shown, &[u8]), PresentationError> {
    let (head, rest) = bytes.split_first_chunk::<5>().ok_or(PresentationError::Length("ticket"))?;
    let [kind, a, b, c, d] = *head;
    let found = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    let max = match kind {
        1 => MAX_TDX_BYTES,
        2 => MAX_ISSUED_BYTES,
        3 => SETTLEMENT_BYTES,
        other => return Err(PresentationError::Kind(other)),
    };
    if found > max {
        return Err(PresentationError::TicketTooLong { kind, found, max });
    }
    let (data, rest) = rest.split_at_checked(found).ok_or(PresentationError::Length("ticket"))?;
    let ticket = match kind {
        1 => Shown::Tdx(data.to_vec()),
        2 => Shown::Issued(IssuedTicket::from_ascii(data).ok_or(PresentationError::Text)?),
        _ => Shown::Settlement(read_settlement(data).ok_or(PresentationError::Length("settlement pointer"))?),
    };
    Ok((ticket, rest))
}

fn settlement_bytes(pointer: &EvidencePointer) -> Vec<u8> {
    [pointer.organism.as_bytes().as_slice(), &pointer.index.to_be_bytes(), pointer.digest.as_bytes()].concat()
}

fn read_settlement(bytes: &[u8]) -> Option<EvidencePointer> {
    let (organism, rest) = bytes.split_first_chunk::<32>()?;
    let (index, rest) = rest.split_first_chunk::<8>()?;
    let digest = <[u8; 32]>::try_from(rest).ok()?;
    let id = |bytes: &[u8; 32]| UniqueId::from_bytes(*bytes);
    Some(EvidencePointer { organism: id(organism), index: u64::from_be_bytes(*index), digest: id(&digest) })
}
