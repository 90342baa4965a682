//! The hidden subcommand `runner`: everything a provider does on a host, one command at a time. Each prints one line
//! of JSON: its answer, or a [`crate::types::FailureReport`].

mod environment;
mod guest;
mod launcher;
mod machine;
mod meter;
mod ops;
mod own;
mod probe;
mod relay;
mod start;
mod supervise;
mod unit;
mod workload;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::error::{Result, RunnerError, USAGE};
use crate::isolate::{init, sys};
use crate::types::{FailureReport, MachineSpec};

/// Runs one runner command. `args` are what follows `runner` on the command line. Meant to be the whole process: it
/// may start children that are this same program, called as `<program> runner …`, so a binary that links this crate
/// must route a first argument `runner` here before doing anything else.
pub fn runner_main(args: &[OsString]) -> ExitCode {
    if let Err(e) = sys::close_inherited_on_exec() {
        return fail(&RunnerError::io("cannot keep our caller's files from workloads", e));
    }
    let words: Vec<&str> = args.iter().filter_map(|a| a.to_str()).collect();
    match words.first().copied() {
        Some("init") => return inside(&words[1..]),
        Some("guest") => return guest::guest_main(),
        Some("supervise") => return supervise::supervise_main(Options::parse(&args[1..])),
        _ => {}
    }
    match command(args) {
        Ok(line) => {
            print(&line);
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

/// The environment's first process. It has no standard output; what it says goes to `runner.log`.
fn inside(words: &[&str]) -> ExitCode {
    let outcome = match words {
        ["--check", what] => init::check(what),
        ["--second-stage"] => init::second_stage(),
        [] => init::first_stage(),
        other => Err(format!("runner init does not know {other:?}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            log(&format!("init: {problem}"));
            ExitCode::FAILURE
        }
    }
}

fn command(args: &[OsString]) -> Result<String> {
    let usage = |text: String| RunnerError::Usage(text);
    let (verb, rest) = args.split_first().ok_or_else(|| usage(format!("say what to do: {USAGE}")))?;
    let options = Options::parse(rest)?;
    let dir = || options.dir.clone().ok_or_else(|| usage("--dir DIR is missing".into()));
    match verb.to_str() {
        Some("probe") => to_line(&probe::probe(&options)?),
        Some("boot-files") => to_line(&probe::boot_files(&dir()?, options.machine.as_ref())?),
        Some("start") => to_line(&start::start(&dir()?)?),
        Some("status") => to_line(&ops::status(&dir()?)?),
        Some("stop") => to_line(&ops::stop(&dir()?, options.reason.as_deref())?),
        Some("clean") => to_line(&ops::clean(&dir()?)?),
        Some("extend") => {
            let until = options.until.ok_or_else(|| usage("--until UNIX_MS is missing".into()))?;
            to_line(&ops::extend(&dir()?, until)?)
        }
        Some("list") => {
            let root = options.root.clone().ok_or_else(|| usage("--root ROOT is missing".into()))?;
            to_line(&ops::list(&root)?)
        }
        _ => Err(usage(format!("unknown runner command {verb:?}"))),
    }
}

#[derive(Default)]
struct Options {
    dir: Option<PathBuf>,
    root: Option<PathBuf>,
    reason: Option<String>,
    until: Option<u64>,
    machine: Option<MachineSpec>,
    /// The unit that this process is.
    unit: Option<String>,
    /// Why it is none, on a host that systemd runs.
    no_unit: Option<String>,
}

impl Options {
    fn parse(args: &[OsString]) -> Result<Self> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(name) = args.next() {
            let mut value =
                || args.next().ok_or_else(|| RunnerError::Usage(format!("{} needs a value", name.display())));
            match name.to_str() {
                Some("--dir") => options.dir = Some(value()?.into()),
                Some("--root") => options.root = Some(value()?.into()),
                Some("--until") => {
                    let text = value()?.to_string_lossy().into_owned();
                    let unix_ms = text.parse();
                    options.until =
                        Some(unix_ms.map_err(|_| {
                            RunnerError::Usage(format!("--until takes Unix milliseconds, not {text:?}"))
                        })?);
                }
                Some("--unit") => options.unit = Some(value()?.to_string_lossy().into_owned()),
                Some("--no-unit") => options.no_unit = Some(value()?.to_string_lossy().into_owned()),
                Some("--reason") => options.reason = Some(value()?.to_string_lossy().into_owned()),
                Some("--machine") => options.machine = Some(machine(&value()?.to_string_lossy())?),
                _ => return Err(RunnerError::Usage(format!("unknown option {}", name.display()))),
            }
        }
        Ok(options)
    }
}

fn machine(json: &str) -> Result<MachineSpec> {
    serde_json::from_str(json).map_err(|e| RunnerError::Usage(format!("--machine: {e}")))
}

fn to_line(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| RunnerError::io("cannot write the answer", std::io::Error::from(e)))
}

fn print(line: &str) {
    // Nobody is left to tell when standard output is closed.
    let _ = writeln!(std::io::stdout(), "{line}");
    let _ = std::io::stdout().flush();
}

/// Prints a failure and turns it into an exit status.
fn fail(error: &RunnerError) -> ExitCode {
    if let Ok(line) = to_line(&FailureReport { error: error.to_failure() }) {
        print(&line);
    }
    ExitCode::from(error.exit_code())
}

/// A line in `runner.log`. Never anything about who requested the grant.
pub(crate) fn log(text: &str) {
    let _ = writeln!(std::io::stderr(), "{} {text}", crate::state::now_unix_ms());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(args: &[&str]) -> RunnerError {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        command(&args).unwrap_err()
    }

    #[test]
    fn a_wrong_command_line_is_told_apart_and_hinted() {
        for args in [
            &[][..],
            &["dance"],
            &["start"],
            &["start", "--dir"],
            &["list"],
            &["status", "--colour", "red"],
            &["extend", "--dir", "/", "--until", "soon"],
        ] {
            let error = failed(args);
            assert_eq!((error.code(), error.exit_code()), ("usage", 2));
            assert!(error.hint().is_some_and(|h| h.contains("probe")));
        }
        assert_eq!(failed(&["status", "--dir", "/nonexistent"]).code(), "no_grant");
    }

    #[test]
    fn an_empty_directory_holds_no_grant() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().to_str().unwrap();
        assert_eq!(failed(&["status", "--dir", dir]).code(), "no_grant");
        assert_eq!(failed(&["stop", "--dir", dir]).code(), "no_grant");
        assert_eq!(command(&["list".into(), "--root".into(), dir.into()]).unwrap(), r#"{"version":1,"grants":[]}"#);
    }
}
