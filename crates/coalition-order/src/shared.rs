//! What the parts of a running member and its handle share.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::mempool::Mempool;

/// No wake-up wanted.
const NEVER: u64 = u64::MAX;

/// Counters are statistics and never decide anything; the pool's lock is held for short computations only.
#[derive(Debug)]
pub(crate) struct Shared {
    pool: Mutex<Mempool>,
    changes: Notify,
    wake_at_ms: AtomicU64,
    pub(crate) finalized: AtomicU64,
    pub(crate) resumed: AtomicU64,
    pub(crate) delivered: AtomicU64,
    pub(crate) acknowledged: AtomicU64,
    /// Height of a delivery that was dropped without acknowledgement; 0 if none.
    pub(crate) dropped: AtomicU64,
    pub(crate) view: AtomicU64,
    pub(crate) pruned: AtomicU64,
    pub(crate) connected: AtomicUsize,
    pub(crate) faults: AtomicU64,
    pub(crate) gossip_dropped: AtomicU64,
}

impl Shared {
    pub(crate) fn new(pool: Mempool) -> Self {
        Self {
            pool: Mutex::new(pool),
            changes: Notify::new(),
            wake_at_ms: AtomicU64::new(NEVER),
            finalized: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            view: AtomicU64::new(0),
            pruned: AtomicU64::new(0),
            connected: AtomicUsize::new(0),
            faults: AtomicU64::new(0),
            gossip_dropped: AtomicU64::new(0),
        }
    }

    pub(crate) fn pool(&self) -> MutexGuard<'_, Mempool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes everybody who waits for [`Self::change`].
    pub(crate) fn changed(&self) {
        self.changes.notify_waiters();
    }

    /// Resolves at the first change after this call, so call it before looking at what may change.
    pub(crate) fn change(&self) -> Notified<'_> {
        self.changes.notified()
    }

    pub(crate) fn wake_at(&self) -> Option<u64> {
        Some(self.wake_at_ms.load(Relaxed)).filter(|t| *t != NEVER)
    }

    pub(crate) fn set_wake_at(&self, time_ms: Option<u64>) {
        let new = time_ms.unwrap_or(NEVER);
        if self.wake_at_ms.swap(new, Relaxed) != new {
            self.changed();
        }
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
