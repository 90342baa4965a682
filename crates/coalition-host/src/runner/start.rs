//! `runner start`: hands a directory to a supervisor of its own, which outlives us, and passes on its first word. Where
//! systemd runs the host the supervisor is a unit of its; else, or where systemd refuses, a process in its own session.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::unit::{self, Systemd};
use crate::error::{Result, RunnerError};
use crate::spec;
use crate::state::{GrantDir, now_unix_ms};
use crate::types::{RunnerState, parse_answer};
use crate::units::{self, Unit};

/// Starts the grant described by `spec.json` in `dir`; returns once it is ready, or failed and cleared away.
pub(super) fn start(dir: &Path) -> Result<RunnerState> {
    let dir = GrantDir::new(dir).prepare()?;
    // A directory that is in use is a supervisor's to refuse, who needs no unit for that.
    let free = dir.read_state()?.is_none() && dir.lock()?.is_some();
    match Systemd::find() {
        Ok(systemd) if free => start_unit(&systemd, &dir),
        Err(Some(problem)) => start_alone(&dir, Some(&problem)),
        _ => start_alone(&dir, None),
    }
}

/// Starts the supervisor as a unit; alone, having said why, when systemd does not take it.
fn start_unit(systemd: &Systemd, dir: &GrantDir) -> Result<RunnerState> {
    let checked = spec::parse(&dir.read_spec()?, now_unix_ms())?;
    let name = units::of_grant(&checked.spec.grant_id);
    let left = Duration::from_millis(checked.spec.valid_to_unix_ms.saturating_sub(now_unix_ms()));
    let unit = supervisor(dir, &checked.spec.grant_id, left);
    let problem = match unit.and_then(|unit| systemd.start(&unit)) {
        Ok(mut answer) => {
            let state = word_of(unit::first_line(&mut answer), dir);
            if state.is_err() {
                // "Failed" is to mean that nothing runs, the unit included.
                unit::end(Some(&name))?;
            }
            return state;
        }
        Err(problem) => problem,
    };
    if systemd.is_live(&name) == Some(true) {
        return Err(RunnerError::Environment(format!("{problem}, and yet {name} runs")));
    }
    start_alone(dir, Some(&problem))
}

fn supervisor(dir: &GrantDir, grant_id: &str, left: Duration) -> std::result::Result<Unit, String> {
    let path = dir.path().to_str().ok_or_else(|| format!("{:?} is not UTF-8", dir.path()))?;
    let name = units::of_grant(grant_id);
    let program = unit::own_program()?;
    let words = [program.as_str(), "runner", "supervise", "--dir", path, "--unit", &name];
    Ok(Unit {
        description: units::describe_grant(grant_id, path),
        command: words.map(str::to_owned).to_vec(),
        env: unit::variables(),
        output: dir.answer(),
        log: dir.log(),
        lasts: left + units::GRACE,
        name,
    })
}

/// Starts the supervisor as a child of ours that outlives us. `problem`: why it is no unit, on a host that has units.
fn start_alone(dir: &GrantDir, problem: Option<&str>) -> Result<RunnerState> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(dir.log())
        .map_err(|e| RunnerError::io(format!("cannot open {}", dir.log().display()), e))?;
    let mut supervisor = Command::new("/proc/self/exe")
        .arg0("coalition-runner")
        .args(["runner", "supervise", "--dir"])
        .arg(dir.path())
        .args(problem.map(|problem| ["--no-unit", problem]).into_iter().flatten())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|e| RunnerError::io("cannot start the supervisor", e))?;
    let mut line = String::new();
    let stdout = supervisor.stdout.take().map(BufReader::new);
    let read = stdout.map(|mut s| s.read_line(&mut line)).transpose();
    let answer = word_of(read.ok().map(|_| line), dir);
    if answer.is_err() {
        // It has cleared away before it spoke, and is on its way out: "failed" then means that nothing runs.
        let _ = supervisor.wait();
    }
    answer
}

/// A supervisor's first word.
fn word_of(line: Option<String>, dir: &GrantDir) -> Result<RunnerState> {
    match line.filter(|line| !line.is_empty()) {
        Some(line) => parse_answer(line.trim_end()).map_err(RunnerError::Supervisor),
        None => Err(RunnerError::SupervisorDied { last_words: dir.log_tail() }),
    }
}
