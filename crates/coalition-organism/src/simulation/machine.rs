//! The simulated service: claims of keys, so that answers depend on all that went before; sums that carry a digest of the
//! state into the log; work that only time asks for; and ticks when it is the coalition's clock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use coalition::{UniqueId, codec, hash_many};
use coalition_log::{Context, Draft, Entry, Machine, Refusal, SnapshotError};
use serde::{Deserialize, Serialize};

/// Committee time between two entries that nobody asked for.
const HOUR_MS: u64 = 700;
const TICK_MS: u64 = 300;

pub(super) const TICK_KIND: &str = "sim.tick";
/// Ignored by every fold; what a planted bug hides an entry behind.
pub(super) const SKIPPED_KIND: &str = "sim.skipped";

/// What the entries fold to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Book {
    claims: BTreeMap<u8, u64>,
    entries: u64,
    summed: u64,
    hour: u64,
    tick: u64,
    tick_at: u64,
}

impl Book {
    pub(super) fn digest(&self) -> UniqueId {
        let mut bytes = Vec::with_capacity(64);
        for (key, index) in &self.claims {
            bytes.push(*key);
            bytes.extend_from_slice(&index.to_be_bytes());
        }
        for number in [self.entries, self.summed, self.hour, self.tick, self.tick_at] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        hash_many(&[&bytes])
    }

    /// Folds one entry, the committee's own excepted.
    pub(super) fn fold(&mut self, entry: &Entry) {
        match entry.kind.as_str() {
            "sim.claim" => drop(self.claims.insert(entry.body[0], entry.index)),
            "sim.release" => drop(self.claims.remove(&entry.body[0])),
            "sim.sum" => self.summed = self.entries,
            "sim.hour" => self.hour = entry.time_ms / HOUR_MS,
            TICK_KIND => (self.tick, self.tick_at) = (tick_of(entry).unwrap(), entry.time_ms),
            SKIPPED_KIND => return,
            _ => {}
        }
        self.entries += 1;
    }
}

/// Reads the tick out of an entry of the clock.
pub(super) fn tick_of(entry: &Entry) -> Option<u64> {
    (entry.kind == TICK_KIND).then(|| entry.body.as_slice().try_into().map(u64::from_be_bytes).ok()).flatten()
}

/// The machine; the harness looks at its state through the shared book.
pub(super) struct Keeper {
    pub(super) book: Arc<Mutex<Book>>,
    pub(super) is_clock: bool,
    /// A planted bug: what is written depends on this.
    pub(super) quirk: Option<u8>,
}

impl Keeper {
    pub(super) fn new(is_clock: bool) -> Self {
        Self { book: Arc::default(), is_clock, quirk: None }
    }

    /// What it has folded.
    pub(super) fn take(self) -> Book {
        look(&self.book, std::mem::take)
    }
}

pub(super) fn look<R>(book: &Mutex<Book>, look: impl FnOnce(&mut Book) -> R) -> R {
    look(&mut book.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Machine for Keeper {
    fn decide(&self, _: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
        let [what, key, value] = *command else {
            return Err(Refusal::new("malformed", format!("a command has 3 bytes, not {}", command.len())));
        };
        let claimed = look(&self.book, |book| book.claims.get(&(key % 16)).copied());
        match (what % 8, claimed) {
            (0..4, None) => {
                let quirk = self.quirk.filter(|_| value.is_multiple_of(2));
                let body = [key % 16, value].into_iter().chain(quirk).collect();
                Ok(vec![Draft::new("sim.claim", body)])
            }
            (0..4, Some(index)) => Err(Refusal::new("claimed", format!("key {} is claimed since {index}", key % 16))),
            (4, _) => Ok(Vec::new()),
            (5, Some(_)) => Ok(vec![Draft::new("sim.release", vec![key % 16])]),
            (5, None) => Err(Refusal::new("free", format!("key {} is not claimed", key % 16))),
            _ => Ok((0..=value % 3).map(|i| Draft::new("sim.many", vec![key, value, i])).collect()),
        }
    }

    fn round(&self, cx: &Context) -> Option<Vec<Draft>> {
        look(&self.book, |book| {
            if self.is_clock && cx.time_ms >= book.tick_at + TICK_MS {
                return Some(vec![Draft::new(TICK_KIND, (book.tick + 1).to_be_bytes().to_vec())]);
            }
            if book.entries >= book.summed + 5 {
                return Some(vec![Draft::new("sim.sum", book.digest().as_bytes().to_vec())]);
            }
            (cx.time_ms / HOUR_MS > book.hour).then(|| vec![Draft::new("sim.hour", cx.tick.to_be_bytes().to_vec())])
        })
    }

    fn evolve(&mut self, entry: &Entry) {
        look(&self.book, |book| book.fold(entry));
    }

    fn wake_at_ms(&self, _: &Context) -> Option<u64> {
        Some(look(&self.book, |book| {
            let hour = (book.hour + 1) * HOUR_MS;
            if self.is_clock { hour.min(book.tick_at + TICK_MS) } else { hour }
        }))
    }

    fn snapshot(&self) -> Vec<u8> {
        look(&self.book, |book| codec::encode(book))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        let restored = codec::decode(snapshot, 1_000)?;
        look(&self.book, |book| *book = restored);
        Ok(())
    }
}
