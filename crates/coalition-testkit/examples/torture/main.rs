//! Real member processes under load, killed and cut off at random, and every acknowledged write checked afterwards.
//!
//! `torture kills --count 1000` sends SIGKILL to members on loopback; `torture partitions --count 200` moves members of a committee
//! in network namespaces of its own between two bridges (needs root and iproute2). `--seed` repeats a schedule; the
//! interleaving with the load is the machine's. Exit status 1 means that a promise was broken; the last line is a JSON summary.
//!
//! `cargo run --release -p coalition-testkit --example torture -- kills --count 100`
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    missing_docs
)]

mod committee;
mod history;
mod member;
mod namespaces;
mod rng;
mod schedule;
mod workload;

use std::{process::ExitCode, time::Duration};

use committee::Places;
use schedule::{Options, Outcome};

const USAGE: &str = "\
torture kills|partitions [--count N] [--members N] [--writers N] [--seed N] [--keep DIR]
  kills        SIGKILL a random member, restart it a moment later; now and then several or all
  partitions   split the committee in two, in network namespaces; needs root";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "member") {
        return member::main(&arguments[1..]);
    }
    let options = match Options::parse(&arguments) {
        Ok(options) => options,
        Err(reason) => {
            eprintln!("{reason}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if options.partitions && std::env::var_os(namespaces::INSIDE).is_none() {
        return namespaces::run_inside(options.members);
    }
    let places =
        if options.partitions { Places::namespaces(options.members) } else { Places::loopback(options.members) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let outcome: Outcome = runtime.block_on(schedule::run(&options, places));
    runtime.shutdown_timeout(Duration::from_millis(500));
    println!("{}", outcome.to_json());
    if outcome.violations.is_empty() && outcome.did_enough(&options) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
