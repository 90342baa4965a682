//! What a side expects of the next peer: always the same, whatever a closure answers, or nonces drawn one by one.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use coalition::UniqueId;
use ring::rand::{SecureRandom as _, SystemRandom};
use thiserror::Error;

use super::{Context, RaTlsError, Side};
use crate::binding::Nonce;

/// What a peer says its quote is bound to. Only a claim: the quote is then compared with what is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The side it stands on.
    pub side: Side,
    /// Hash of the config it runs.
    pub config: UniqueId,
    /// The nonce it was given.
    pub nonce: UniqueId,
}

/// Why nobody expects a peer that claims this.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unexpected {
    /// A nonce that was never drawn here, or is forgotten.
    #[error("its nonce is not one that was drawn here, or is forgotten: ask for a fresh one")]
    Unknown,
    /// A nonce of an earlier bond.
    #[error("its nonce has served another connection: ask for a fresh one")]
    Used,
    /// A nonce that is too old.
    #[error("its nonce is {age_s} s old, at most {max_s} s are allowed: ask for a fresh one")]
    Old {
        /// Its age, seconds.
        age_s: u64,
        /// Age allowed, seconds.
        max_s: u64,
    },
    /// A config that is not welcome.
    #[error("it claims config {0}, which is not expected here")]
    Config(UniqueId),
    /// Another reason of whoever decides.
    #[error("{0}")]
    Other(String),
}

/// Decides what the quote of the next peer must be bound to.
///
/// A [`Context`] expects the same of everybody. A closure `Fn(&Claim, now_s) -> Result<Context, Unexpected>` may look the
/// claim up. [`ChallengeBook`] expects each of its nonces once.
pub trait Expectations: Send + Sync {
    /// What the quote of a peer that claims this must be bound to, at `now_s`, Unix seconds. Changes nothing: it is asked
    /// again when a certificate is judged after its handshake.
    ///
    /// # Errors
    /// [`Unexpected`].
    fn expected(&self, claim: &Claim, now_s: u64) -> Result<Context, Unexpected>;

    /// Called once a handshake, after the quote was found valid and the peer has proved its key.
    ///
    /// # Errors
    /// [`Unexpected::Used`] where every nonce serves once and this one has. The connection is refused then.
    fn accept(&self, _claim: &Claim) -> Result<(), Unexpected> {
        Ok(())
    }
}

/// The same for everybody, whatever is claimed.
impl Expectations for Context {
    fn expected(&self, _claim: &Claim, _now_s: u64) -> Result<Context, Unexpected> {
        Ok(*self)
    }
}

impl<F: Fn(&Claim, u64) -> Result<Context, Unexpected> + Send + Sync> Expectations for F {
    fn expected(&self, claim: &Claim, now_s: u64) -> Result<Context, Unexpected> {
        self(claim, now_s)
    }
}

/// A nonce that was drawn.
struct Drawn {
    config: UniqueId,
    issued_s: u64,
    is_used: bool,
}

/// Nonces for peers to have quoted: each is good for one connection, for a while.
///
/// Bounded in age and count. What is forgotten is unknown, and what is unknown is refused: forgetting never lets anybody in.
/// When it is full, used nonces go first, then the oldest, so whoever hands them out limits how fast strangers may ask.
pub struct ChallengeBook {
    network: UniqueId,
    max_age_s: u64,
    capacity: usize,
    random: SystemRandom,
    drawn: Mutex<HashMap<UniqueId, Drawn>>,
}

impl fmt::Debug for ChallengeBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChallengeBook({} of {}, {} s)", self.len(), self.capacity, self.max_age_s)
    }
}

impl ChallengeBook {
    /// A book of at most `capacity` nonces, at least one, each good for `max_age_s` seconds.
    #[must_use]
    pub fn new(network: UniqueId, max_age_s: u64, capacity: usize) -> Self {
        Self { network, max_age_s, capacity: capacity.max(1), random: SystemRandom::new(), drawn: Mutex::default() }
    }

    /// Draws a nonce for one connection of a peer that must run this config. `now_s`: Unix seconds.
    ///
    /// # Errors
    /// [`RaTlsError::Tls`] when the random source fails.
    pub fn draw(&self, config: UniqueId, now_s: u64) -> Result<Nonce, RaTlsError> {
        let mut value = [0; 32];
        self.random.fill(&mut value).map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
        let value = UniqueId::from_bytes(value);
        let mut drawn = self.lock();
        if drawn.len() >= self.capacity {
            drawn.retain(|_, old| now_s.saturating_sub(old.issued_s) <= self.max_age_s);
        }
        while drawn.len() >= self.capacity {
            let first = drawn.iter().min_by_key(|(value, old)| (!old.is_used, old.issued_s, **value));
            let Some(first) = first.map(|(value, _)| *value) else { break };
            drawn.remove(&first);
        }
        drawn.insert(value, Drawn { config, issued_s: now_s, is_used: false });
        Ok(Nonce { value, issued_s: now_s })
    }

    /// Nonces remembered now, used and old ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every critical section leaves the map whole, so a panic elsewhere in a holder does not matter.
    fn lock(&self) -> MutexGuard<'_, HashMap<UniqueId, Drawn>> {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Expectations for ChallengeBook {
    fn expected(&self, claim: &Claim, now_s: u64) -> Result<Context, Unexpected> {
        let drawn = self.lock();
        let known = drawn.get(&claim.nonce).ok_or(Unexpected::Unknown)?;
        let age_s = now_s.saturating_sub(known.issued_s);
        if age_s > self.max_age_s {
            return Err(Unexpected::Old { age_s, max_s: self.max_age_s });
        }
        let nonce = Nonce { value: claim.nonce, issued_s: known.issued_s };
        Ok(Context { network: self.network, config: known.config, nonce })
    }

    fn accept(&self, claim: &Claim) -> Result<(), Unexpected> {
        let mut drawn = self.lock();
        let known = drawn.get_mut(&claim.nonce).ok_or(Unexpected::Unknown)?;
        if std::mem::replace(&mut known.is_used, true) { Err(Unexpected::Used) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> UniqueId {
        UniqueId::from_bytes([n; 32])
    }

    fn claim(nonce: Nonce) -> Claim {
        Claim { side: Side::Client, config: id(9), nonce: nonce.value }
    }

    #[test]
    fn a_nonce_is_good_once_and_for_a_while() {
        let book = ChallengeBook::new(id(1), 60, 8);
        let (one, other) = (book.draw(id(2), 100).unwrap(), book.draw(id(3), 100).unwrap());
        assert_ne!(one.value, other.value);
        let context = Context { network: id(1), config: id(2), nonce: one };
        assert_eq!(book.expected(&claim(one), 160), Ok(context), "the config it was drawn for, not the one claimed");
        assert_eq!(book.expected(&claim(one), 161), Err(Unexpected::Old { age_s: 61, max_s: 60 }));
        assert_eq!(book.accept(&claim(one)), Ok(()));
        assert_eq!(book.accept(&claim(one)), Err(Unexpected::Used));
        assert_eq!(book.expected(&claim(one), 160), Ok(context), "judged again after its handshake");
        assert_eq!(book.accept(&claim(other)), Ok(()));
        let never = Nonce { value: id(7), issued_s: 100 };
        assert_eq!(book.expected(&claim(never), 100), Err(Unexpected::Unknown));
        assert_eq!(book.accept(&claim(never)), Err(Unexpected::Unknown));
    }

    #[test]
    fn the_old_then_the_used_then_the_oldest_are_forgotten() {
        let book = ChallengeBook::new(id(1), 60, 3);
        let known = |nonce, now| book.expected(&claim(nonce), now).is_ok();
        let [a, b, c] = [100, 101, 102].map(|now| book.draw(id(2), now).unwrap());
        book.accept(&claim(b)).unwrap();
        let d = book.draw(id(2), 103).unwrap();
        assert_eq!([a, b, c, d].map(|nonce| known(nonce, 103)), [true, false, true, true], "the used one went");
        assert_eq!(book.accept(&claim(b)), Err(Unexpected::Unknown), "and does not come back");
        let e = book.draw(id(2), 104).unwrap();
        assert_eq!([a, c, d, e].map(|nonce| known(nonce, 104)), [false, true, true, true], "the oldest went");
        let f = book.draw(id(2), 300).unwrap();
        assert_eq!(book.len(), 1, "all the others were too old");
        assert!(known(f, 300) && !book.is_empty());
        assert_eq!(ChallengeBook::new(id(1), 60, 0).draw(id(2), 1).map(|_| ()).ok(), Some(()), "at least one");
    }
}
