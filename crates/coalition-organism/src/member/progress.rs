//! Telling an operator how far catching up has come: at most once a second, and only if it takes that long.

use std::time::{Duration, Instant};

const TELL_EVERY: Duration = Duration::from_secs(1);

/// One thing being caught up with.
#[derive(Debug)]
pub(super) struct Progress {
    began: Instant,
    told: Instant,
    from: u64,
}

impl Progress {
    pub(super) fn from(from: u64) -> Self {
        let now = Instant::now();
        Self { began: now, told: now, from }
    }

    /// `done` of `total` of what `what` names are here, counted from nothing.
    pub(super) fn tell(&mut self, organism: &str, what: &'static str, done: u64, total: u64) {
        if self.told.elapsed() < TELL_EVERY {
            return;
        }
        self.told = Instant::now();
        let percent = percent(self.from, done, total);
        let seconds = self.began.elapsed().as_secs();
        tracing::info!(organism, what, done, total, percent, seconds, "catching up");
    }
}

/// How much of the way from `from` to `total` is done, in percent, rounded down.
fn percent(from: u64, done: u64, total: u64) -> u64 {
    let (way, done) = (total.saturating_sub(from), done.saturating_sub(from));
    if way == 0 { 100 } else { u64::try_from(u128::from(done) * 100 / u128::from(way)).unwrap_or(100).min(100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents() {
        assert_eq!(percent(0, 0, 0), 100);
        assert_eq!((percent(10, 10, 30), percent(10, 15, 30), percent(10, 30, 30)), (0, 25, 100));
        assert_eq!(percent(10, 5, 30), 0);
        assert_eq!(percent(0, u64::MAX, u64::MAX), 100);
    }
}
