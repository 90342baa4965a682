//! How much a double answered and how long that took it, so that a measurement can tell the client's time from the server's.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What was answered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Answers.
    pub answers: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Time it took to make them, sending aside; more than what passed when several were made at once.
    pub took: Duration,
}

/// Counts.
#[derive(Clone, Default)]
pub struct Counter(Arc<Mutex<Served>>);

impl Counter {
    /// One more answer.
    pub fn count(&self, bytes: u64, took: Duration) {
        let mut served = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        served.answers += 1;
        served.bytes += bytes;
        served.took += took;
    }

    /// What was answered since the last time this was asked.
    #[must_use]
    pub fn take(&self) -> Served {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
