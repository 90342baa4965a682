//! Real member processes under load, killed and cut off at random, and every acknowledged write checked afterwards.
//!
//! `torture kills --count 1000` sends SIGKILL to members on loopback; `torture partitions --count 200` moves members of a committee
//! in network namespaces of its own between two bridges (needs root and iproute2). `torture bytes --count 200` damages one stored
//! file of a stopped member at a time; `torture disks --count 50` fills members' disks under load (needs root); `torture handovers --count 20`
//! swaps one member after the other for a new one. `--seed` repeats a schedule; the interleaving with the load is the machine's. Exit status 1 means that a promise was broken, 2 that the run
//! could not be made; the last line is a JSON summary.
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
mod damage;
mod disks;
mod handovers;
mod history;
mod member;
mod namespaces;
mod rng;
mod schedule;
mod workload;

use std::{process::ExitCode, time::Duration};

use committee::Places;
use schedule::{Mode, Options, Outcome};

const USAGE: &str = "\
torture kills|partitions|bytes|disks|handovers [--count N] [--members N] [--writers N] [--seed N] [--keep DIR]
  kills        SIGKILL a random member, restart it a moment later; now and then several or all
  partitions   split the committee in two, in network namespaces; needs root
  bytes        kill a member, damage one of its files, start it, repair it as its last words say
  disks        fill the disks of members, each a small one of its own, and free them; needs root
  handovers    swap a member for a new one, half of the time while one is killed";

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
    let inside = std::env::var_os(namespaces::INSIDE).is_some();
    match options.mode {
        Mode::Partitions if !inside => return namespaces::run_inside(options.members),
        Mode::Disks if !inside => return disks::run_inside(),
        Mode::Kills | Mode::Partitions | Mode::Bytes | Mode::Disks | Mode::Handovers => {}
    }
    let places = match options.mode {
        Mode::Partitions => Places::namespaces(options.members),
        Mode::Kills | Mode::Bytes | Mode::Disks | Mode::Handovers => Places::loopback(options.seats()),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let outcome: Outcome = runtime.block_on(schedule::run(&options, places));
    runtime.shutdown_timeout(Duration::from_millis(500));
    println!("{}", outcome.to_json());
    if outcome.violations.is_empty() && outcome.did_enough(&options) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
