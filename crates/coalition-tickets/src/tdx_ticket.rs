//! A ticket that carries an attestation: a quote bound to the peer that shows it, at one door of one network.
//!
//! Layout, integers big-endian: version `01` ‖ u8 form ‖ u64 time of the nonce, Unix seconds ‖ nonce (32) ‖ form 1: evidence,
//! quote and collateral; form 2: a slim quote, whose verifier has the collateral. The quote's report data binds purpose
//! `ticket`, the network, the peer's key, the door's id and the nonce, so another peer, door or network has no use for it.

use coalition::UniqueId;
use coalition_attest::evidence::MAX_INLINE_COLLATERAL_BYTES;
use coalition_attest::quote::MAX_QUOTE_BYTES;
use coalition_attest::{
    Binding, Collateral, Evidence, EvidenceError, GuestError, MAX_SLIM_BYTES, Nonce, Quote, QuoteError, QuoteSource,
};
use thiserror::Error;

use crate::admission::Bearer;

/// The purpose bound in a ticket's quote.
pub const TICKET_PURPOSE: &str = "ticket";

const VERSION: u8 = 1;
const WITH_COLLATERAL: u8 = 1;
const SLIM: u8 = 2;
const HEAD_BYTES: usize = 2 + 8 + 32;

/// What of the attestation travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carried {
    /// [`Evidence`], encoded: the quote, and its collateral if the bearer has it.
    Evidence(Vec<u8>),
    /// A slim quote.
    Slim(Vec<u8>),
}

/// An attestation, not yet judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxTicket {
    /// The nonce in the quote, and when its bearer says it was drawn. Only the door that drew it knows.
    pub nonce: Nonce,
    /// The attestation.
    pub carried: Carried,
}

/// Why there is no ticket.
#[derive(Debug, Error)]
pub enum TdxTicketError {
    /// Of another version.
    #[error("the attestation ticket has version {0}, expected {VERSION}")]
    Version(u8),
    /// Of an unknown form.
    #[error("the attestation ticket has form {0}, expected 1 or 2")]
    Form(u8),
    /// The bytes end early.
    #[error("the attestation ticket ends in its head")]
    Truncated,
    /// Over the limit.
    #[error("an attestation of {found} bytes in a ticket, at most {max} are taken")]
    TooLong {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The guest made no quote.
    #[error("the guest makes no quote")]
    Guest(#[from] GuestError),
    /// What it made is none.
    #[error("the guest's quote is none")]
    Quote(#[from] QuoteError),
    /// Quote and collateral cannot travel together.
    #[error("the evidence cannot be shown")]
    Evidence(#[from] EvidenceError),
    /// The quote has no slim form.
    #[error(
        "the guest's quote has no slim form: it is padded inside, or over {MAX_SLIM_BYTES} bytes without certificates"
    )]
    NotSlim,
}

impl TdxTicket {
    /// What the guest has to quote for this bearer and nonce.
    #[must_use]
    pub fn report_data(bearer: &Bearer, nonce: UniqueId) -> [u8; 64] {
        let Bearer { network, audience, peer } = bearer;
        Binding { purpose: TICKET_PURPOSE, network: *network, key: peer, config: *audience, nonce }.report_data()
    }

    /// A ticket with evidence made elsewhere over [`TdxTicket::report_data`].
    #[must_use]
    pub const fn of_evidence(nonce: Nonce, evidence: Vec<u8>) -> Self {
        Self { nonce, carried: Carried::Evidence(evidence) }
    }

    /// Has the guest quoted, with the collateral beside the quote. May take seconds.
    ///
    /// # Errors
    /// [`TdxTicketError`].
    pub fn quote(
        guest: &dyn QuoteSource,
        collateral: Option<Collateral>,
        bearer: &Bearer,
        nonce: Nonce,
    ) -> Result<Self, TdxTicketError> {
        let quote = Quote::parse(&guest.quote(&Self::report_data(bearer, nonce.value))?)?;
        let evidence = Evidence { quote: quote.bytes().to_vec(), collateral }.to_bytes()?;
        Ok(Self::of_evidence(nonce, evidence))
    }

    /// As [`TdxTicket::quote`], in the slim form that fits a discovery entry. Its verifier must have the collateral.
    ///
    /// # Errors
    /// [`TdxTicketError`].
    pub fn quote_slim(guest: &dyn QuoteSource, bearer: &Bearer, nonce: Nonce) -> Result<Self, TdxTicketError> {
        let quote = Quote::parse(&guest.quote(&Self::report_data(bearer, nonce.value))?)?;
        Ok(Self { nonce, carried: Carried::Slim(quote.to_slim().ok_or(TdxTicketError::NotSlim)?) })
    }

    /// The canonical bytes.
    ///
    /// # Errors
    /// [`TdxTicketError::TooLong`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, TdxTicketError> {
        let (form, data) = match &self.carried {
            Carried::Evidence(bytes) => (WITH_COLLATERAL, bytes),
            Carried::Slim(bytes) => (SLIM, bytes),
        };
        check_length(form, data.len())?;
        let mut out = vec![VERSION, form];
        out.extend(self.nonce.issued_s.to_be_bytes());
        out.extend(self.nonce.value.as_bytes());
        out.extend(data);
        Ok(out)
    }

    /// Reads the canonical bytes. The attestation inside is parsed when it is judged.
    ///
    /// # Errors
    /// [`TdxTicketError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TdxTicketError> {
        let (head, data) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(TdxTicketError::Truncated)?;
        let ([version, form], rest) = head.split_first_chunk::<2>().ok_or(TdxTicketError::Truncated)?;
        let (issued, value) = rest.split_first_chunk::<8>().ok_or(TdxTicketError::Truncated)?;
        let value = <[u8; 32]>::try_from(value).map_err(|_| TdxTicketError::Truncated)?;
        if *version != VERSION {
            return Err(TdxTicketError::Version(*version));
        }
        check_length(*form, data.len())?;
        let nonce = Nonce { value: UniqueId::from_bytes(value), issued_s: u64::from_be_bytes(*issued) };
        let carried = if *form == SLIM { Carried::Slim(data.to_vec()) } else { Carried::Evidence(data.to_vec()) };
        Ok(Self { nonce, carried })
    }
}

fn check_length(form: u8, found: usize) -> Result<(), TdxTicketError> {
    let max = match form {
        // Version, two lengths, quote and collateral.
        WITH_COLLATERAL => 9 + MAX_QUOTE_BYTES + MAX_INLINE_COLLATERAL_BYTES,
        SLIM => MAX_SLIM_BYTES,
        other => return Err(TdxTicketError::Form(other)),
    };
    if found > max { Err(TdxTicketError::TooLong { found, max }) } else { Ok(()) }
}
