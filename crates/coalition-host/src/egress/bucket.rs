//! A limit of bytes over time, shared by everything a grant sends and receives.
//!
//! Bytes are paid for after they have passed: each payment says how long its payer has to rest. So nobody has to know beforehand how
//! much will come, debts are paid by whoever comes next, and the sum over all payers keeps to the rate.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What may pass at once after a rest, in time of the full rate.
const BURST: Duration = Duration::from_millis(100);

/// The limit itself. Pure: clock values in.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    bytes_per_sec: u64,
    /// When everything taken so far is paid for, from some beginning.
    paid_until: Duration,
}

impl Bucket {
    /// So many millions of bits a second; 0 counts as 1.
    #[must_use]
    pub fn new(mbit: u32) -> Self {
        Self { bytes_per_sec: u64::from(mbit.max(1)) * 125_000, paid_until: Duration::ZERO }
    }

    /// Takes `bytes` at `now`; answers how long to rest before taking more.
    pub fn take(&mut self, bytes: usize, now: Duration) -> Duration {
        let nanos = u128::from(bytes as u64) * 1_000_000_000 / u128::from(self.bytes_per_sec);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = self.paid_until.max(now.saturating_sub(BURST));
        self.paid_until = from.saturating_add(cost);
        self.paid_until.saturating_sub(now)
    }
}

/// A [`Bucket`] with a clock, for many.
#[derive(Debug)]
pub(crate) struct Throttle {
    bucket: Mutex<Bucket>,
    began: Instant,
}

impl Throttle {
    pub(crate) fn new(mbit: u32) -> Self {
        // As if there had been a rest before.
        Self {
            bucket: Mutex::new(Bucket::new(mbit)),
            began: Instant::now().checked_sub(BURST).unwrap_or_else(Instant::now),
        }
    }

    /// Takes bytes that have passed; answers how long to rest.
    pub(crate) fn take(&self, bytes: usize) -> Duration {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, self.began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rest_earns_a_burst_and_no_more() {
        let mut bucket = Bucket::new(8);
        let second = Duration::from_secs(1);
        // A million bytes a second: a tenth of that passes at once.
        assert_eq!(bucket.take(100_000, second), Duration::ZERO);
        assert_eq!(bucket.take(100_000, second), Duration::from_millis(100));
        assert_eq!(bucket.take(100_000, second * 100), Duration::ZERO);
        assert_eq!(bucket.take(1, second * 100), Duration::from_micros(1));
    }

    proptest! {
        /// Whoever rests as told never gets more than the rate and one burst, however the bytes are cut, nor less than it.
        #[test]
        fn the_rate_holds(mbit in 1u32..2_000, pieces in proptest::collection::vec(1usize..200_000, 1..200), rest in 0u64..3_000) {
            let mut bucket = Bucket::new(mbit);
            let began = Duration::from_millis(rest);
            let (mut now, mut sum) = (began, 0u128);
            for piece in &pieces {
                now += bucket.take(*piece, now);
                sum += *piece as u128;
            }
            let allowed = u128::from(mbit) * 125_000 * ((now - began) + BURST).as_nanos() / 1_000_000_000;
            prop_assert!(sum <= allowed + pieces.len() as u128, "{sum} of {allowed} allowed");
            let earned = u128::from(mbit) * 125_000 * (now - began).as_nanos() / 1_000_000_000;
            prop_assert!(now == began || earned <= sum, "{earned} could have passed, {sum} did");
        }
    }
}
