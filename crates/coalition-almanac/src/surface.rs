//! What readers fold an Almanac's log into.

use std::collections::VecDeque;

use coalition::{AlmanacTick, codec};
use coalition_log::{Entry, FromState, Persist, SnapshotError, Ticking};
use serde::{Deserialize, Serialize};

use crate::config::AlmanacParams;
use crate::machine::{LastTick, last_tick};
use crate::types::{AlmanacTickBody, DecodeError, TICK_KIND};

/// How many ticks a fold remembers unless told otherwise.
pub const DEFAULT_RETAIN: usize = 4_096;

/// One tick as a reader sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TickRecord {
    /// The tick's sequence number.
    pub tick: AlmanacTick,
    /// Committee time of the tick, Unix milliseconds.
    pub time_ms: u64,
    /// Index of the tick's entry in the Almanac's log.
    pub index: u64,
    /// The advisory per-member vector, in roster order.
    pub timestamps: Vec<Option<u64>>,
}

/// Why an entry could not be folded. A certified log never causes this unless its committee runs another version.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The body does not parse.
    #[error("almanac entry {index} does not parse")]
    Body {
        /// Index of the entry.
        index: u64,
        /// What was wrong with it.
        #[source]
        source: DecodeError,
    },
    /// Sequence numbers must grow by one.
    #[error("almanac entry {index} has tick {found} after tick {last}; expected {}", last.saturating_add(1))]
    Sequence {
        /// Index of the entry.
        index: u64,
        /// Sequence number of the tick before.
        last: u64,
        /// Sequence number found.
        found: u64,
    },
    /// Committee time must not run backwards.
    #[error("almanac entry {index} has time {found_ms} ms, before the tick before it at {last_ms} ms")]
    Time {
        /// Index of the entry.
        index: u64,
        /// Time of the tick before, milliseconds.
        last_ms: u64,
        /// Time found, milliseconds.
        found_ms: u64,
    },
}

/// The ticks of an Almanac: a bounded window over the newest ones, and conversions between ticks and time.
///
/// May start anywhere in the log: the first tick seen fixes the sequence.
#[derive(Clone, Debug)]
pub struct Ticks {
    params: AlmanacParams,
    retain: usize,
    window: VecDeque<TickRecord>,
    /// The tick before the window's first, when the fold started from a certified state.
    before: Option<LastTick>,
}

/// Longest saved fold, in bytes; far above what any sensible window takes.
const MAX_SAVED_BYTES: usize = 64 << 20;

impl Ticks {
    /// An empty fold that remembers the newest [`DEFAULT_RETAIN`] ticks.
    #[must_use]
    pub fn new(params: AlmanacParams) -> Self {
        Self::with_retain(params, DEFAULT_RETAIN)
    }

    /// An empty fold that remembers the newest `retain` ticks (at least one).
    #[must_use]
    pub fn with_retain(params: AlmanacParams, retain: usize) -> Self {
        Self { params, retain: retain.max(1), window: VecDeque::new(), before: None }
    }

    /// Folds one entry. Returns the tick it added, if it was one.
    ///
    /// # Errors
    /// [`FoldError`] when the entry contradicts the Almanac's rules; the fold is unchanged then.
    pub fn apply(&mut self, entry: &Entry) -> Result<Option<AlmanacTick>, FoldError> {
        if entry.kind != TICK_KIND {
            return Ok(None);
        }
        let index = entry.index;
        let body = AlmanacTickBody::from_bytes(&entry.body).map_err(|source| FoldError::Body { index, source })?;
        if let Some(last) = self.last() {
            if last.seq.checked_add(1) != Some(body.seq) {
                return Err(FoldError::Sequence { index, last: last.seq, found: body.seq });
            }
            if entry.time_ms < last.time_ms {
                return Err(FoldError::Time { index, last_ms: last.time_ms, found_ms: entry.time_ms });
            }
        }
        let tick = AlmanacTick(body.seq);
        self.window.push_back(TickRecord { tick, time_ms: entry.time_ms, index, timestamps: body.timestamps });
        while self.window.len() > self.retain {
            self.window.pop_front();
        }
        Ok(Some(tick))
    }

    /// The tick before whatever comes next.
    fn last(&self) -> Option<LastTick> {
        let newest = self.window.back().map(|record| LastTick { seq: record.tick.0, time_ms: record.time_ms });
        newest.or(self.before)
    }

    /// The newest tick; `None` also when the fold started from a certified state and has seen none since.
    #[must_use]
    pub fn latest(&self) -> Option<&TickRecord> {
        self.window.back()
    }

    /// The tick with this sequence number, if it happened and is still remembered.
    #[must_use]
    pub fn get(&self, tick: AlmanacTick) -> Option<&TickRecord> {
        let first = self.window.front()?.tick.0;
        let offset = usize::try_from(tick.0.checked_sub(first)?).ok()?;
        self.window.get(offset)
    }

    /// Remembered ticks, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &TickRecord> {
        self.window.iter()
    }

    /// Whether tick `tick` has happened: the condition behind a reader's `when().tick(n)`.
    #[must_use]
    pub fn reached(&self, tick: AlmanacTick) -> bool {
        tick.0 == 0 || self.last().is_some_and(|last| last.seq >= tick.0)
    }

    /// The last remembered tick at or before `time_ms`.
    #[must_use]
    pub fn at_time_ms(&self, time_ms: u64) -> Option<&TickRecord> {
        let after = self.window.partition_point(|record| record.time_ms <= time_ms);
        self.window.get(after.checked_sub(1)?)
    }

    /// When `tick` happened, or, for one still to come, the earliest time it can be due at the cadence. `None` before the
    /// first tick was seen and for ticks already forgotten. A committee that stops in between makes it later.
    #[must_use]
    pub fn time_of_ms(&self, tick: AlmanacTick) -> Option<u64> {
        if let Some(record) = self.get(tick) {
            return Some(record.time_ms);
        }
        let latest = self.latest()?;
        let ahead = tick.0.checked_sub(latest.tick.0)?;
        let cadence = u64::from(self.params.cadence_ms());
        (latest.time_ms / cadence).checked_add(ahead)?.checked_mul(cadence)
    }

    /// The tick expected to be current at `time_ms` in the future, at the cadence, if the committee does not stop.
    #[must_use]
    pub fn expected_at_ms(&self, time_ms: u64) -> Option<AlmanacTick> {
        let latest = self.latest()?;
        let cadence = u64::from(self.params.cadence_ms());
        let ahead = (time_ms / cadence).saturating_sub(latest.time_ms / cadence);
        latest.tick.0.checked_add(ahead).map(AlmanacTick)
    }

    /// How many ticks a duration spans, rounded up: what to add to the current tick for a deadline `duration_ms` away.
    #[must_use]
    pub fn ticks_for_ms(&self, duration_ms: u64) -> u64 {
        duration_ms.div_ceil(u64::from(self.params.cadence_ms()))
    }
}

impl coalition_log::Fold for Ticks {
    fn fold(&mut self, entry: &Entry) -> Result<(), coalition_log::FoldFault> {
        self.apply(entry)?;
        Ok(())
    }
}

impl FromState for Ticks {
    /// The window is empty then: a machine remembers one tick. Sequence and time of the next are checked against it.
    fn start_from(&mut self, machine: &[u8]) -> Result<(), SnapshotError> {
        self.before = last_tick(machine)?;
        self.window.clear();
        Ok(())
    }
}

impl Persist for Ticks {
    fn save(&self) -> Vec<u8> {
        codec::encode(&(self.before, &self.window))
    }

    fn load(&mut self, saved: &[u8]) -> Result<(), SnapshotError> {
        let (before, window): (Option<LastTick>, VecDeque<TickRecord>) = codec::decode(saved, MAX_SAVED_BYTES)?;
        let is_next = |(a, b): (&TickRecord, &TickRecord)| a.tick.checked_add(1) == Some(b.tick);
        if !window.iter().zip(window.iter().skip(1)).all(is_next) {
            return Err(SnapshotError::Contradiction("its ticks do not follow each other".into()));
        }
        (self.before, self.window) = (before, window);
        while self.window.len() > self.retain {
            self.window.pop_front();
        }
        Ok(())
    }
}

impl Ticking for Ticks {
    fn has_ticked(&self, tick: u64) -> bool {
        self.reached(AlmanacTick(tick))
    }
}
