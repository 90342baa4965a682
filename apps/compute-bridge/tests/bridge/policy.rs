//! Order and pauses of the fleet, by property; and what they do to a grant.

use std::sync::Arc;

use coalition::RateQ64;
use compute_bridge::backend::{BackendError, FailureKind};
use compute_bridge::fleet::policy::*;
use compute_bridge::fleet::{AttemptResult, Fleet};
use proptest::prelude::*;

use super::fleet::{failing, try_made, try_one};
use super::harness::FakeBackend;

const POLICIES: [OrderPolicy; 4] =
    [OrderPolicy::Declared, OrderPolicy::Cheapest, OrderPolicy::LeastLoaded, OrderPolicy::Fastest];

fn error(kind: FailureKind, started: bool) -> BackendError {
    let backend = "metal".parse().unwrap();
    BackendError { backend, kind, message: String::new(), started, remains: false, source: None }
}

proptest! {
    #[test]
    fn everyone_has_one_place_and_the_reserved_one_the_first(
        standings in proptest::collection::vec(
            (proptest::option::of(0_u128..4), 0_u32..4, proptest::option::of(0_u64..4)), 0..8),
        policy in proptest::sample::select(&POLICIES[..]),
        reserved in proptest::option::of(0_usize..8),
    ) {
        let standings: Vec<Standing> = standings
            .into_iter()
            .map(|(rate, load, ready_ms)| Standing { rate: rate.map(RateQ64), load, ready_ms })
            .collect();
        let reserved = reserved.filter(|i| *i < standings.len());
        let places = order(policy, &standings, reserved);
        let mut sorted = places.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..standings.len()).collect::<Vec<_>>());
        if let Some(reserved) = reserved {
            prop_assert_eq!(places[0], reserved);
        }
        let others: Vec<usize> = places.into_iter().filter(|i| Some(*i) != reserved).collect();
        for pair in others.windows(2) {
            let (a, b) = (standings[pair[0]], standings[pair[1]]);
            // Never a worse one before a better one; equals as declared.
            let (before, equal) = match policy {
                OrderPolicy::Declared => (true, true),
                OrderPolicy::Cheapest => {
                    let key = |s: Standing| (s.rate.is_none(), s.rate);
                    (key(a) <= key(b), key(a) == key(b))
                }
                OrderPolicy::LeastLoaded => (a.load <= b.load, a.load == b.load),
                OrderPolicy::Fastest => (a.ready_ms <= b.ready_ms, a.ready_ms == b.ready_ms),
            };
            prop_assert!(before && (!equal || pair[0] < pair[1]));
        }
    }

    #[test]
    fn a_pause_follows_failures_in_a_row_grows_and_ends(
        steps in proptest::collection::vec((0_u8..4, 0_u64..100_000), 1..60),
    ) {
        let (mut health, mut now_ms, mut row, mut last_pause) = (Health::default(), 1_000_000_u64, 0_u32, 0_u64);
        for (step, wait_ms) in steps {
            now_ms += wait_ms;
            match step {
                0 => {
                    health.succeeded(wait_ms);
                    (row, last_pause) = (0, 0);
                    prop_assert!(health.paused_until(now_ms).is_none() && health.ready_ms().is_some());
                }
                1 => health.failed(&error(FailureKind::Fatal, true), now_ms),
                _ => {
                    health.failed(&error(FailureKind::Transient, false), now_ms);
                    row += 1;
                    let pause = health.paused_until(now_ms).map_or(0, |until| until - now_ms);
                    prop_assert_eq!(pause > 0, row >= PATIENCE);
                    prop_assert!(pause >= last_pause && pause <= LONGEST_PAUSE_MS);
                    last_pause = pause;
                }
            }
            prop_assert!(health.paused_until(now_ms + LONGEST_PAUSE_MS).is_none());
            prop_assert_eq!(health.describe(now_ms).is_some(), health.paused_until(now_ms).is_some());
        }
    }

    #[test]
    fn nothing_follows_what_may_still_run(kind in proptest::sample::select(&FailureKind::ALL[..]), started in any::<bool>()) {
        let mut failed = error(kind, started);
        failed.remains = true;
        prop_assert!(!goes_on(&failed, false));
        failed.remains = false;
        prop_assert_eq!(goes_on(&failed, false), goes_on(&failed, true));
    }
}

#[tokio::test]
async fn a_try_that_may_still_run_somewhere_is_the_last() {
    let backends = [failing("a", FailureKind::Capacity, true), FakeBackend::new("b")];
    *backends[0].unremovable.lock().unwrap() = true;
    let attempts = try_one(&backends, "a").await.result.unwrap_err();
    assert!(matches!(&attempts[..], [one] if matches!(one.result, AttemptResult::Failed { cleaned: false, .. })));
    assert_eq!(*backends[1].created.lock().unwrap(), 0);
    *backends[0].unremovable.lock().unwrap() = false;
    assert_eq!(try_one(&backends, "a").await.result.unwrap(), "b");
}

#[tokio::test]
async fn others_are_tried_as_the_order_says_and_only_within_the_price() {
    let backends = [failing("a", FailureKind::Capacity, false), FakeBackend::new("b"), FakeBackend::new("c")];
    let rate = |backend: &FakeBackend, rate: &str| *backend.core_hour.lock().unwrap() = rate.parse().unwrap();
    rate(&backends[2], "0.01");
    let made = |policy| Fleet::new(backends.iter().map(|b| Arc::clone(b) as _).collect()).unwrap().ordered(policy);
    assert_eq!(try_made(&made(OrderPolicy::Declared), "a").await.result.unwrap(), "b");
    assert_eq!(try_made(&made(OrderPolicy::Cheapest), "a").await.result.unwrap(), "c");
    assert_eq!(backends[1].running.lock().unwrap().len(), 1);
    backends[2].running.lock().unwrap().clear();
    assert_eq!(try_made(&made(OrderPolicy::LeastLoaded), "a").await.result.unwrap(), "c");
    // The grant pays 0.05.
    rate(&backends[1], "0.051");
    rate(&backends[2], "0.06");
    let attempts = try_made(&made(OrderPolicy::Declared), "a").await.result.unwrap_err();
    let dear = |result: &AttemptResult| matches!(result, AttemptResult::TooDear(_));
    assert!(attempts.len() == 3 && dear(&attempts[1].result) && dear(&attempts[2].result), "{attempts:?}");
    // The reserved one was cleared at its price, whatever it charges by now.
    assert_eq!(try_made(&made(OrderPolicy::Declared), "c").await.result.unwrap(), "c");
}

#[tokio::test]
async fn a_backend_that_keeps_failing_is_left_alone_and_says_so() {
    let backends = [failing("a", FailureKind::Transient, false), FakeBackend::new("b")];
    let fleet = Fleet::new(backends.iter().map(|b| Arc::clone(b) as _).collect()).unwrap();
    for _ in 0..PATIENCE {
        assert_eq!(try_made(&fleet, "a").await.result.unwrap(), "b");
    }
    let tried = try_made(&fleet, "a").await;
    assert_eq!((tried.result.unwrap().as_str(), tried.notes.len()), ("b", 1), "{:?}", tried.notes);
    let offerings = fleet.offerings().await;
    assert_eq!(offerings[0].1.capabilities.max_instances, 0);
    assert!(offerings[0].1.detail.contains("paused for") && offerings[0].1.detail.contains("transient"));
    assert!(offerings[1].1.capabilities.max_instances > 0);
}
