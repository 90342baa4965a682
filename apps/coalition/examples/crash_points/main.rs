//! Kills a bridge with SIGKILL at every point of its life that can be told apart, over and over, and checks what must be true
//! afterwards: nothing left on EC2 or on a host, no healthy machine ended, every grant ended in the market's log.
//!
//! The coalition is real processes, the bridge one more; EC2 is moto behind a proxy, its machines and the host of the operator's
//! own are SSH servers on loopback. Points are: before, during and after every call to EC2, before and after every call of the
//! runner over SSH, every record of the journal, and random instants. Every third blow is followed by another while the bridge
//! recovers. Exit status 1 means that a promise was broken; the last line is a JSON summary.
//!
//! `cargo run --release -p coalition-cli --example crash_points -- --count 500` (`cargo build --release` first: the program beside
//! it is what runs)
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    missing_docs
)]

mod hosts;
mod life;
mod plan;
mod trigger;
mod world;

use std::process::ExitCode;

const USAGE: &str = "crash_points [--count N] [--seed N] [--keep DIR]";

fn main() -> ExitCode {
    let mut options = plan::Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        let taken = match name.as_str() {
            "--count" => value.parse().map(|count| options.count = count).is_ok(),
            "--seed" => value.parse().map(|seed| options.seed = seed).is_ok(),
            "--keep" => {
                options.keep = Some(value.clone().into());
                !value.is_empty()
            }
            _ => false,
        };
        if !taken {
            eprintln!("{name} {value}: not understood\n{USAGE}");
            return ExitCode::from(2);
        }
    }
    let me = std::env::current_exe().expect("this program has a path");
    let Some(program) = me.parent().and_then(|dir| dir.parent()).map(|dir| dir.join("coalition")) else {
        return ExitCode::from(2);
    };
    if !program.exists() {
        eprintln!("{} is missing; run `cargo build --release` first", program.display());
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime starts");
    match runtime.block_on(plan::run(&options, &program)) {
        None => ExitCode::from(2),
        Some(summary) => {
            println!("{}", summary.to_json());
            if summary.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
    }
}
