//! A door for calls: draws challenges, judges what is shown, and remembers whom it let in until what they showed has ended.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use coalition::UniqueId;
use coalition_attest::Nonce;

use crate::admission::{Admission, Bearer};
use crate::challenges::Challenges;
use crate::demand::TicketValidator;
use crate::presentation::Presentation;
use crate::refused::Refused;
use crate::resources::{Resources, Unresolved};
use crate::sources::{ENDLESS_FOR_S, PeerKey};

/// Peers remembered at once. Whoever is forgotten shows its tickets again.
pub const MAX_ADMITTED: usize = 4_096;

/// The door of one organism at one member.
pub struct Door {
    network: UniqueId,
    audience: UniqueId,
    admission: Admission,
    challenges: Arc<Challenges>,
    admitted: Mutex<BTreeMap<PeerKey, Admitted>>,
}

/// A peer that was let in.
struct Admitted {
    until_s: u64,
    /// Of the seats it was judged by.
    edition: u64,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Door({}, {:?})", self.audience, self.admission)
    }
}

impl Door {
    /// The door of `audience` on `network`. `secret` is drawn at random and told nobody: it makes the challenges.
    ///
    /// # Errors
    /// [`Unresolved`] when a demand could not be judged with these resources.
    pub fn new(
        (network, audience): (UniqueId, UniqueId),
        validator: &TicketValidator,
        resources: Resources,
        secret: [u8; 32],
    ) -> Result<Self, Unresolved> {
        let challenges = Arc::new(Challenges::new(secret));
        let admission = validator.enforce(&resources.with_nonces(Arc::clone(&challenges) as _))?;
        Ok(Self { network, audience, admission, challenges, admitted: Mutex::default() })
    }

    /// The fingerprint of the access rules it enforces.
    #[must_use]
    pub const fn fingerprint(&self) -> UniqueId {
        self.admission.fingerprint()
    }

    /// A peer at this door.
    #[must_use]
    pub const fn bearer(&self, peer: PeerKey) -> Bearer {
        Bearer { network: self.network, audience: self.audience, peer }
    }

    /// What this peer has to have quoted, if it wants to show an attestation whose age counts. `now_s`: Unix seconds.
    #[must_use]
    pub fn challenge(&self, peer: PeerKey, now_s: u64) -> Nonce {
        self.challenges.draw(&self.bearer(peer), now_s)
    }

    /// Judges what a peer shows; remembers it, if admitted, until the returned second, or until seats change hands. What has
    /// no end is remembered for [`ENDLESS_FOR_S`].
    ///
    /// # Errors
    /// [`Refused`]; what the peer was admitted for before goes on.
    pub fn present(&self, peer: PeerKey, presentation: &[u8], now_s: u64) -> Result<u64, Refused> {
        let shown = Presentation::from_bytes(presentation)?;
        // Before judging: seats that change meanwhile make this judgement an old one.
        let edition = self.admission.edition();
        let until_s = match self.admission.judge(&self.bearer(peer), &shown, now_s)? {
            u64::MAX => now_s.saturating_add(ENDLESS_FOR_S),
            until_s => until_s,
        };
        let mut admitted = self.lock();
        if admitted.len() >= MAX_ADMITTED && !admitted.contains_key(&peer) {
            admitted.retain(|_, old| old.until_s > now_s && old.edition == edition);
            let soonest = admitted.iter().min_by_key(|(peer, old)| (old.until_s, **peer)).map(|(peer, _)| *peer);
            if let Some(soonest) = soonest.filter(|_| admitted.len() >= MAX_ADMITTED) {
                admitted.remove(&soonest);
            }
        }
        admitted.insert(peer, Admitted { until_s, edition });
        Ok(until_s)
    }

    /// Whether a peer may come in at `now_s`, Unix seconds: it has shown what is demanded, and that has not ended. Where
    /// nothing is demanded, or only what the verifier looks up itself, nothing need be shown.
    #[must_use]
    pub fn is_admitted(&self, peer: PeerKey, now_s: u64) -> bool {
        let edition = self.admission.edition();
        if self.lock().get(&peer).is_some_and(|known| known.until_s > now_s && known.edition == edition) {
            return true;
        }
        self.admission.judge(&self.bearer(peer), &Presentation::empty(), now_s).is_ok()
    }

    /// Every critical section leaves the map whole, so a panic elsewhere in a holder does not matter.
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<PeerKey, Admitted>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
