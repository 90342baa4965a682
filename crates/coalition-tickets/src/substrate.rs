//! An admission as a validator of mosaik's streams, groups, collections and functions.
//!
//! The substrate asks it when a peer wants to connect, with the peer's signed discovery entry, and drops the peer's stream at
//! the returned expiry; the peer then comes again with whatever its entry holds by then. It folds the validator's signature
//! into groups' and functions' ids.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::DateTime;
use coalition::UniqueId;
use mosaik::discovery::PeerEntry;
use mosaik::tickets::{Expiration, InvalidTicket, TicketClass};

use crate::admission::{Admission, Bearer};
use crate::presentation::{CLASS, Presentation};
use crate::refused::Refused;

/// The door of one stream, group or collection. Peers show a [`Presentation`] in their discovery entry, an empty one where only
/// what the verifier looks up is demanded.
#[derive(Debug, Clone)]
pub struct SubstrateValidator {
    network: UniqueId,
    audience: UniqueId,
    admission: Arc<Admission>,
}

impl SubstrateValidator {
    /// The door of `audience` on `network`.
    #[must_use]
    pub const fn new(network: UniqueId, audience: UniqueId, admission: Arc<Admission>) -> Self {
        Self { network, audience, admission }
    }

    /// Until when the peer is let in, or the stable code of why not.
    fn judge(&self, ticket: &[u8], peer: &PeerEntry) -> Result<u64, &'static str> {
        if *peer.network_id() != self.network {
            return Err("network");
        }
        let shown = Presentation::from_bytes(ticket).map_err(|error| Refused::from(error).code())?;
        let bearer = Bearer { network: self.network, audience: self.audience, peer: *peer.id().as_bytes() };
        self.admission.judge(&bearer, &shown, now_s()).map_err(|refused| refused.code())
    }

    fn expiration(&self, ticket: &[u8], peer: &PeerEntry) -> Result<Expiration, &'static str> {
        // A panic in a validator would close the substrate's endpoint; here it is a refusal.
        let until_s = catch_unwind(AssertUnwindSafe(|| self.judge(ticket, peer))).unwrap_or_else(|_| {
            tracing::warn!(audience = %self.audience, "judging a ticket panicked");
            Err("panic")
        })?;
        if until_s == u64::MAX {
            return Ok(Expiration::Never);
        }
        // A time beyond what the substrate can name is refused rather than taken for never.
        let at = i64::try_from(until_s).ok().and_then(|at| DateTime::from_timestamp(at, 0));
        at.map(Expiration::At).ok_or("lifetime")
    }
}

impl mosaik::tickets::TicketValidator for SubstrateValidator {
    fn class(&self) -> TicketClass {
        CLASS
    }

    fn signature(&self) -> UniqueId {
        CLASS.derive(self.admission.fingerprint().as_bytes()).derive(self.audience.as_bytes())
    }

    fn validate(&self, ticket: &[u8], peer: &PeerEntry) -> Result<Expiration, InvalidTicket> {
        self.expiration(ticket, peer).map_err(|reason| {
            // The substrate's error carries no reason. Who it was about is not written down.
            tracing::debug!(audience = %self.audience, reason, "a ticket is refused");
            InvalidTicket
        })
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
