//! Which backend is tried before which, and which is left alone for a while. Pure: times are arguments.

use coalition::RateQ64;
use coalition_compute::OfferName;
use serde::Deserialize;

use crate::backend::{BackendError, FailureKind};

/// Failures in a row after which a backend is paused.
pub const PATIENCE: u32 = 3;
/// The first pause, and the longest.
pub const FIRST_PAUSE_MS: u64 = 30_000;
/// The longest pause.
pub const LONGEST_PAUSE_MS: u64 = 1_800_000;

/// In which order backends are tried after the one the market reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderPolicy {
    /// As in the boot file.
    #[default]
    Declared,
    /// Lowest posted rate for this grant first.
    Cheapest,
    /// Fewest instances first.
    LeastLoaded,
    /// Shortest time from intent to login as measured by this process first; those never measured before those.
    Fastest,
}

/// What decides the order, of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Effective rate for the grant; `None` when it has none.
    pub rate: Option<RateQ64>,
    /// Instances it runs.
    pub load: u32,
    /// Milliseconds it needs, once measured.
    pub ready_ms: Option<u64>,
}

/// The backends' places in the order they are tried: all of them, each once, the reserved one first. Equals stay in the boot
/// file's order.
#[must_use]
pub fn order(policy: OrderPolicy, standings: &[Standing], reserved: Option<usize>) -> Vec<usize> {
    let mut places: Vec<usize> = (0..standings.len()).collect();
    places.sort_by_key(|&i| {
        let standing = standings[i];
        let key = match policy {
            OrderPolicy::Declared => (0, 0),
            OrderPolicy::Cheapest => (u8::from(standing.rate.is_none()), standing.rate.map_or(0, |rate| rate.0)),
            OrderPolicy::LeastLoaded => (0, u128::from(standing.load)),
            OrderPolicy::Fastest => (0, standing.ready_ms.map_or(0, |ms| u128::from(ms) + 1)),
        };
        (reserved != Some(i), key)
    });
    places
}

/// How a backend has done of late.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    failures: u32,
    paused_until_ms: u64,
    last: Option<FailureKind>,
    ready_ms: Option<u64>,
}

impl Health {
    /// A try failed. Failures of the workload, or of what was asked, are not the backend's.
    pub fn failed(&mut self, error: &BackendError, now_ms: u64) {
        let of_what_was_asked =
            [FailureKind::TooLarge, FailureKind::BadImage, FailureKind::Unsuited, FailureKind::Conflict];
        let is_its_own = !error.started && !of_what_was_asked.contains(&error.kind);
        if !is_its_own {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.last = Some(error.kind);
        if self.failures >= PATIENCE {
            let doublings = (self.failures - PATIENCE).min(16);
            let pause_ms = (FIRST_PAUSE_MS << doublings).min(LONGEST_PAUSE_MS);
            self.paused_until_ms = now_ms.saturating_add(pause_ms);
        }
    }

    /// A try succeeded, in so many milliseconds.
    pub fn succeeded(&mut self, took_ms: u64) {
        let ready_ms = self.ready_ms.map_or(took_ms, |before| before - before / 4 + took_ms / 4);
        *self = Self { ready_ms: Some(ready_ms), ..Self::default() };
    }

    /// Until when it is left alone, if it is. One try is made when the pause is over; should it fail, the next pause is longer.
    #[must_use]
    pub fn paused_until(&self, now_ms: u64) -> Option<u64> {
        (now_ms < self.paused_until_ms).then_some(self.paused_until_ms)
    }

    /// Typical milliseconds from intent to login, once measured.
    #[must_use]
    pub const fn ready_ms(&self) -> Option<u64> {
        self.ready_ms
    }

    /// The pause in words, for card and page.
    #[must_use]
    pub fn describe(&self, now_ms: u64) -> Option<String> {
        let until_ms = self.paused_until(now_ms)?;
        let (failures, kind) = (self.failures, self.last.map_or("unknown", FailureKind::as_str));
        let left_s = (until_ms - now_ms).div_ceil(1_000);
        Some(format!("paused for {left_s} s more after {failures} failures in a row, the last: {kind}"))
    }
}

/// Whether the next backend may be tried after this failure. What may still run, or cost money, is in the way of a second one.
#[must_use]
pub fn goes_on(error: &BackendError, cleaned: bool) -> bool {
    if error.remains && !cleaned {
        return false;
    }
    match error.kind {
        FailureKind::Capacity | FailureKind::Quota | FailureKind::Unsuited => true,
        // What a backend is configured with may not exist there; it may elsewhere.
        FailureKind::Throttled | FailureKind::Auth | FailureKind::Transient | FailureKind::NotFound => !error.started,
        FailureKind::Conflict | FailureKind::Fatal | FailureKind::TooLarge | FailureKind::BadImage => false,
    }
}

/// The name of a backend and what it charges for a grant, against what the grant pays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{backend} charges {charges} USD per core-hour, the grant pays {pays}")]
pub struct TooDear {
    /// The backend.
    pub backend: OfferName,
    /// Its posted effective rate.
    pub charges: RateQ64,
    /// The cleared rate.
    pub pays: RateQ64,
}
