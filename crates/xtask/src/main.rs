//! Chores of this repository. `cargo xtask sim --seeds 1000` runs every simulation.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod sim;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask sim --seeds N [--first S] [--only whole|organism|order]
  Runs N seeds of each simulation (whole: a committee from writers to readers; organism: everything
  after ordering; order: ordering alone), in slices, and remembers in target/sim-state.json where to go on;
  --first starts somewhere else. The last line is a summary in JSON.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((chore, rest)) if chore == "sim" => sim::Options::parse(rest).and_then(|options| sim::run(&options)),
        _ => Err(sim::SimError::Usage("say what to do".into())),
    };
    match outcome {
        Ok(held) => ExitCode::from(u8::from(!held)),
        Err(error) => {
            eprintln!("{error}");
            if matches!(error, sim::SimError::Usage(_)) {
                eprintln!("{USAGE}");
            }
            ExitCode::from(2)
        }
    }
}
