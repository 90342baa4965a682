//! `runner start`: hands a directory to a supervisor of its own, which outlives us, and passes on its first word.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Result, RunnerError};
use crate::state::GrantDir;
use crate::types::{RunnerState, parse_answer};

/// Starts the grant described by `spec.json` in `dir`; returns once it is ready, or failed and cleared away.
pub(super) fn start(dir: &Path) -> Result<RunnerState> {
    let dir = GrantDir::new(dir).prepare()?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(dir.log())
        .map_err(|e| RunnerError::io(format!("cannot open {}", dir.log().display()), e))?;
    let mut supervisor = Command::new("/proc/self/exe")
        .arg0("coalition-runner")
        .args(["runner", "supervise"])
        .arg(dir.path())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|e| RunnerError::io("cannot start the supervisor", e))?;
    let mut line = String::new();
    let stdout = supervisor.stdout.take().map(BufReader::new);
    let read = stdout.map(|mut s| s.read_line(&mut line)).transpose();
    let answer = match read {
        Ok(_) if !line.is_empty() => parse_answer(line.trim_end()).map_err(RunnerError::Supervisor),
        _ => Err(RunnerError::SupervisorDied { last_words: dir.log_tail() }),
    };
    if answer.is_err() {
        // It has cleared away before it spoke, and is on its way out: "failed" then means that nothing runs.
        let _ = supervisor.wait();
    }
    answer
}
