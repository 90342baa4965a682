//! Long runs of the simulations: slice after slice of seeds in the tests' own binaries, with progress, a place to go on
//! from, and a summary.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use serde_json::{Value, json};

/// Where the next run of each simulation goes on.
const STATE: &str = "target/sim-state.json";

/// One of the simulations, and how its tests are asked.
struct Simulation {
    name: &'static str,
    /// What `cargo test` builds.
    target: &'static [&'static str],
    /// What the binary is asked to run.
    test: &'static [&'static str],
    seeds: &'static str,
    first: &'static str,
    /// Seeds in one slice: what is lost when a run is interrupted.
    slice: u64,
}

const ALL: [Simulation; 3] = [
    Simulation {
        name: "whole",
        target: &["-p", "coalition-organism", "--lib"],
        test: &["--exact", "simulation::whole::tests::a_whole_committee_holds"],
        seeds: "COALITION_SIM_SEEDS",
        first: "COALITION_SIM_FIRST_SEED",
        slice: 500,
    },
    Simulation {
        name: "organism",
        target: &["-p", "coalition-organism", "--lib"],
        test: &["--exact", "simulation::the_committee_holds"],
        seeds: "COALITION_SIM_SEEDS",
        first: "COALITION_SIM_FIRST_SEED",
        slice: 1_000,
    },
    Simulation {
        name: "order",
        target: &["-p", "coalition-order-sim", "--test", "sim"],
        test: &["--exact", "--ignored", "campaign::a_campaign"],
        seeds: "ORDER_SIM_SEEDS",
        first: "ORDER_SIM_FIRST_SEED",
        slice: 110,
    },
];

/// Why nothing could be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SimError {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A process could not be started or read.
    #[error("cannot {action}")]
    Process {
        /// What was tried.
        action: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The tests do not build.
    #[error("the {0} simulation does not build; run `cargo test --release --no-run` to see why")]
    Build(&'static str),
    /// The state file is not one.
    #[error("{STATE} is damaged; delete it, or say --first")]
    State,
}

/// What was asked.
pub(crate) struct Options {
    seeds: u64,
    first: Option<u64>,
    only: Option<String>,
}

impl Options {
    /// Reads the command line behind `sim`.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, SimError> {
        let mut options = Self { seeds: 0, first: None, only: None };
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| SimError::Usage(format!("{name} needs a value")))?;
            let number = || value.parse().map_err(|_| SimError::Usage(format!("{name} is {value:?}, not a number")));
            match name.as_str() {
                "--seeds" => options.seeds = number()?,
                "--first" => options.first = Some(number()?),
                "--only" if ALL.iter().any(|simulation| simulation.name == value) => options.only = Some(value.clone()),
                "--only" => return Err(SimError::Usage(format!("--only is {value:?}, not whole, organism or order"))),
                _ => return Err(SimError::Usage(format!("there is no option {name}"))),
            }
        }
        if options.seeds == 0 {
            return Err(SimError::Usage("--seeds must be at least 1".into()));
        }
        Ok(options)
    }
}

/// Runs what was asked; `false` when a seed failed.
pub(crate) fn run(options: &Options) -> Result<bool, SimError> {
    let mut summary = serde_json::Map::new();
    let mut held = true;
    for simulation in &ALL {
        if options.only.as_ref().is_none_or(|only| only == simulation.name) {
            let outcome = campaign(simulation, options)?;
            held &= outcome["held"] == true;
            summary.insert(simulation.name.into(), outcome);
        }
    }
    println!("{}", Value::Object(summary));
    Ok(held)
}

fn campaign(simulation: &Simulation, options: &Options) -> Result<Value, SimError> {
    let binary = build(simulation)?;
    let first = match options.first {
        Some(first) => first,
        None => state()?.get(simulation.name).and_then(Value::as_u64).unwrap_or(1),
    };
    let began = Instant::now();
    let mut did: BTreeMap<String, u64> = BTreeMap::new();
    let (mut next, end, mut held) = (first, first + options.seeds, true);
    while next < end && held {
        let seeds = simulation.slice.min(end - next);
        match slice(simulation, &binary, next, seeds)? {
            Some(counts) => counts.into_iter().for_each(|(what, times)| *did.entry(what).or_default() += times),
            None => held = false,
        }
        next += if held { seeds } else { 0 };
        remember(simulation.name, next)?;
        let seconds = began.elapsed().as_secs().max(1);
        let rate = (next - first) * 60 / seconds;
        eprintln!("{}: seeds {first} to {} hold, {rate} a minute, {seconds} s", simulation.name, next.max(1) - 1);
    }
    let seconds = began.elapsed().as_secs();
    Ok(json!({ "held": held, "first": first, "seeds": next - first, "seconds": seconds, "did": did }))
}

/// The test binary, built if it is not.
fn build(simulation: &Simulation) -> Result<PathBuf, SimError> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["test", "--release", "--no-run", "--message-format=json-render-diagnostics"])
        .args(simulation.target)
        .stderr(Stdio::inherit())
        .output()
        .map_err(failed("start cargo"))?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let test = message["profile"]["test"] == true;
        message["executable"].as_str().filter(|_| test).map(PathBuf::from)
    };
    lines.lines().filter_map(executable).next_back().ok_or(SimError::Build(simulation.name))
}

/// Runs some seeds and answers what they did; `None` when one failed, after its own words.
fn slice(
    simulation: &Simulation,
    binary: &PathBuf,
    first: u64,
    seeds: u64,
) -> Result<Option<BTreeMap<String, u64>>, SimError> {
    let mut child = Command::new(binary)
        .args(simulation.test)
        .arg("--nocapture")
        .env(simulation.seeds, seeds.to_string())
        .env(simulation.first, first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed(&format!("start {}", binary.display())))?;
    let mut told = Vec::new();
    let mut counts = None;
    for line in child.stdout.take().map(BufReader::new).into_iter().flat_map(BufReader::lines) {
        let line = line.map_err(failed("read a simulation's output"))?;
        match line.strip_prefix("summary ").and_then(|json| serde_json::from_str::<Value>(json).ok()) {
            Some(summary) => counts = serde_json::from_value(summary["did"].clone()).ok(),
            None => told.push(line),
        }
    }
    let status = child.wait().map_err(failed("wait for a simulation"))?;
    if status.success() && counts.is_some() {
        return Ok(counts);
    }
    told.iter().for_each(|line| eprintln!("{line}"));
    Ok(None)
}

fn state() -> Result<serde_json::Map<String, Value>, SimError> {
    match std::fs::read_to_string(STATE) {
        Ok(text) => serde_json::from_str(&text).map_err(|_| SimError::State),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(serde_json::Map::new()),
        Err(error) => Err(failed(&format!("read {STATE}"))(error)),
    }
}

fn remember(name: &str, next: u64) -> Result<(), SimError> {
    let mut state = state().unwrap_or_default();
    state.insert(name.into(), next.into());
    std::fs::create_dir_all("target").map_err(failed("create target"))?;
    std::fs::write(STATE, Value::Object(state).to_string()).map_err(failed(&format!("write {STATE}")))
}

fn failed(action: &str) -> impl FnOnce(std::io::Error) -> SimError {
    let action = action.to_owned();
    move |source| SimError::Process { action, source }
}
