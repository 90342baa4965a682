//! A few blows of `examples/crash_points`; the example gives hundreds.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::expect_used,
    unreachable_pub,
    missing_docs,
    dead_code
)]

#[path = "../examples/crash_points/hosts.rs"]
mod hosts;
#[path = "../examples/crash_points/life.rs"]
mod life;
#[path = "../examples/crash_points/plan.rs"]
mod plan;
#[path = "../examples/crash_points/trigger.rs"]
mod trigger;
#[path = "../examples/crash_points/world.rs"]
mod world;

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_killed_anywhere_leaks_nothing_and_ends_nothing_healthy() {
    let options = plan::Options { count: 6, seed: 11, keep: None };
    let Some(summary) = plan::run(&options, env!("CARGO_BIN_EXE_coalition").as_ref()).await else { return };
    assert!(summary.broken.is_empty(), "{:#?}", summary.broken);
    assert!(summary.blows >= 6 && summary.points > 60, "{}", summary.to_json());
}
