//! Challenges: values a door draws, so that a quote which contains one is not older than it.
//!
//! A challenge is a keyed hash of who asked and when, so a door remembers none of them, however many strangers ask.

use coalition::{UniqueId, hash_many};
use coalition_attest::Nonce;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::admission::Bearer;

const VERSION: u8 = 1;
const TAG: &[u8] = b"coalition/tickets/challenge";

/// Knows when nonces came into being.
pub trait Nonces: Send + Sync + 'static {
    /// Whether this value came into being at its stated time, as far as the verifier itself knows.
    fn is_dated(&self, bearer: &Bearer, nonce: &Nonce) -> bool;
}

/// Challenges of one door, under a secret that nobody else has.
pub struct Challenges {
    secret: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Challenges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Challenges(secret redacted)")
    }
}

impl Challenges {
    /// Challenges under a secret, drawn at random by the caller. With another secret, earlier challenges are no longer known.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        Self { secret: Zeroizing::new(secret) }
    }

    /// The challenge for a bearer at `now_s`, Unix seconds.
    #[must_use]
    pub fn draw(&self, bearer: &Bearer, now_s: u64) -> Nonce {
        let Bearer { network, audience, peer } = bearer;
        let at = now_s.to_be_bytes();
        let parts: [&[u8]; 7] =
            [&[VERSION], TAG, self.secret.as_slice(), network.as_bytes(), audience.as_bytes(), peer, &at];
        Nonce { value: hash_many(&parts), issued_s: now_s }
    }
}

impl Nonces for Challenges {
    fn is_dated(&self, bearer: &Bearer, nonce: &Nonce) -> bool {
        let own: UniqueId = self.draw(bearer, nonce.issued_s).value;
        bool::from(own.as_bytes().ct_eq(nonce.value.as_bytes()))
    }
}
