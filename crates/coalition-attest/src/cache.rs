//! Remembers verdicts, so that a quote shown again and again is verified once.
//!
//! A verdict is kept under everything it depends on: the quote, the collateral, the policy and what was expected. A
//! valid one ends when its collateral expires or its nonce grows too old, whichever is first; an invalid one after a
//! minute; *could not check* is never kept. Time that runs backwards finds nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use coalition::{UniqueId, hash_many};

use crate::binding::Expect;
use crate::collateral::Collateral;
use crate::quote::Quote;
use crate::verdict::{Outcome, Verdict};
use crate::verify::Verifier;

/// How long an invalid verdict is remembered, seconds.
pub const INVALID_FOR_S: u64 = 60;

const VERSION: u8 = 1;
const TAG: &[u8] = b"coalition/attest/verdict";

struct Kept {
    verdict: Verdict,
    until_s: u64,
}

/// A bounded memory of verdicts; share it behind an `Arc`.
pub struct VerdictCache {
    capacity: usize,
    kept: Mutex<HashMap<UniqueId, Kept>>,
}

impl std::fmt::Debug for VerdictCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerdictCache({} of {})", self.len(), self.capacity)
    }
}

impl VerdictCache {
    /// A memory of at most `capacity` verdicts; at least one.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), kept: Mutex::new(HashMap::new()) }
    }

    /// The remembered verdict, or a new one. Its quote age and time are those of `now_s` either way.
    #[must_use]
    pub fn judge(
        &self,
        verifier: &Verifier,
        quote: &Quote,
        collateral: &Collateral,
        expect: &Expect,
        now_s: u64,
    ) -> Verdict {
        let key = key(verifier, quote, collateral, expect);
        if let Some(mut verdict) = self.get(&key, now_s) {
            verdict.checked_at_s = now_s;
            verdict.quote_age_s = expect.issued_s().and_then(|issued| now_s.checked_sub(issued));
            return verdict;
        }
        let verdict = verifier.judge(quote, collateral, expect, now_s);
        if let Some(until_s) = ends_at(&verdict, verifier, expect) {
            self.insert(key, Kept { verdict: verdict.clone(), until_s });
        }
        verdict
    }

    /// Verdicts remembered now, ended ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get(&self, key: &UniqueId, now_s: u64) -> Option<Verdict> {
        let kept = self.lock();
        let found = kept.get(key)?;
        (found.verdict.checked_at_s <= now_s && now_s < found.until_s).then(|| found.verdict.clone())
    }

    fn insert(&self, key: UniqueId, new: Kept) {
        let mut kept = self.lock();
        if kept.len() >= self.capacity && !kept.contains_key(&key) {
            let now_s = new.verdict.checked_at_s;
            kept.retain(|_, old| now_s < old.until_s);
            let soonest = kept.iter().min_by_key(|(key, old)| (old.until_s, **key)).map(|(key, _)| *key);
            if let Some(soonest) = soonest.filter(|_| kept.len() >= self.capacity) {
                kept.remove(&soonest);
            }
        }
        kept.insert(key, new);
    }

    /// Every critical section leaves the map whole, so a panic elsewhere in a holder does not matter.
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<UniqueId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(verifier: &Verifier, quote: &Quote, collateral: &Collateral, expect: &Expect) -> UniqueId {
    let kind = match expect {
        Expect::Unbound => 0,
        Expect::Exact { .. } => 1,
        Expect::Bound { .. } => 2,
    };
    let issued = expect.issued_s();
    hash_many(&[
        &[VERSION],
        TAG,
        verifier.policy_fingerprint().as_bytes(),
        quote.bytes(),
        collateral.digest().as_bytes(),
        &[collateral.origin() as u8, kind, u8::from(issued.is_some())],
        expect.report_data().map_or(&[][..], |data| &data[..]),
        &issued.unwrap_or(0).to_be_bytes(),
    ])
}

/// The first second at which a verdict no longer holds; none when it must not be kept.
fn ends_at(verdict: &Verdict, verifier: &Verifier, expect: &Expect) -> Option<u64> {
    match &verdict.outcome {
        Outcome::CouldNotCheck(_) => None,
        Outcome::Invalid(_) => Some(verdict.checked_at_s.saturating_add(INVALID_FOR_S)),
        Outcome::Valid => verifier.valid_until_s(verdict, expect),
    }
}
