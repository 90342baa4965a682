//! `runner status`, `stop`, `clean` and `list`: from outside the supervisor, dead or alive.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::environment::kill_all;
use super::{log, unit};
use crate::error::{Result, RunnerError};
use crate::isolate::cgroup::{Groups, Hierarchies};
use crate::proc;
use crate::rootfs::remove_tree;
use crate::state::{GrantDir, now_unix_ms};
use crate::types::{
    CleanReport, EndReason, FORMAT_VERSION, ListReport, ListedGrant, Phase, ProcessRef, RunnerState, UsageReport,
};

/// How long a supervisor may take to end its grant when told to.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long a supervisor may take to see that its grant ends at another time: it looks every second, and a guest takes its time.
const MOVE_LIMIT: Duration = Duration::from_secs(12);

fn load(dir: &Path) -> Result<(GrantDir, RunnerState)> {
    fs::metadata(dir).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => RunnerError::NoGrant { dir: dir.into() },
        _ => RunnerError::io(format!("cannot look at {}", dir.display()), e),
    })?;
    let dir = GrantDir::new(dir);
    let state = dir.read_state()?.ok_or_else(|| RunnerError::NoGrant { dir: dir.path().into() })?;
    let state = judge(&dir, state)?;
    Ok((dir, state))
}

fn alive(process: &ProcessRef) -> Result<bool> {
    proc::is_alive(process).map_err(|e| RunnerError::io(format!("cannot look at process {}", process.pid), e))
}

/// A grant that is not over but whose supervisor is gone is lost.
fn judge(dir: &GrantDir, state: RunnerState) -> Result<RunnerState> {
    if matches!(state.phase, Phase::Ended { .. }) || alive(&state.supervisor)? {
        return Ok(state);
    }
    // It may have written its last word between our two looks.
    let state = dir.read_state()?.unwrap_or(state);
    if matches!(state.phase, Phase::Ended { .. }) {
        return Ok(state);
    }
    let usage = dir.read_usage().ok().flatten().unwrap_or_else(|| UsageReport {
        version: FORMAT_VERSION,
        grant_id: state.grant_id.clone(),
        ..UsageReport::default()
    });
    Ok(RunnerState { phase: Phase::Lost { usage }, ..state })
}

/// The state as it is now, and what was used so far.
pub(super) fn status(dir: &Path) -> Result<RunnerState> {
    let (dir, mut state) = load(dir)?;
    if matches!(state.phase, Phase::Starting | Phase::Ready { .. }) {
        // Only a help to whoever asks: its absence is no error.
        state.usage_so_far = dir.read_usage().ok().flatten();
    }
    Ok(state)
}

/// Moves the end of a running grant, and returns when its supervisor has taken it.
pub(super) fn extend(dir: &Path, until_ms: u64) -> Result<RunnerState> {
    let (dir, mut state) = load(dir)?;
    let now_ms = now_unix_ms();
    if until_ms <= now_ms {
        return Err(RunnerError::DeadlinePassed { ago_ms: now_ms - until_ms, now_ms, valid_to_ms: until_ms });
    }
    dir.write_until(until_ms)?;
    let began = Instant::now();
    loop {
        if !matches!(state.phase, Phase::Starting | Phase::Ready { .. }) {
            return Err(RunnerError::Over { dir: dir.path().into() });
        }
        if state.valid_to_unix_ms == until_ms {
            return Ok(state);
        }
        if began.elapsed() >= MOVE_LIMIT {
            let waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            return Err(RunnerError::NotMoved { waited_ms });
        }
        std::thread::sleep(Duration::from_millis(20));
        state = load(dir.path())?.1;
    }
}

/// Ends a grant and returns when everything of it but its files is gone. Ending an ended grant repeats its last word.
pub(super) fn stop(dir: &Path, reason: Option<&str>) -> Result<RunnerState> {
    let (dir, state) = load(dir)?;
    match state.phase {
        Phase::Ended { .. } => Ok(state),
        Phase::Lost { ref usage } => settle(&dir, &state, usage.clone(), EndReason::Lost, reason),
        Phase::Starting | Phase::Ready { .. } => {
            // Before the signal, for the supervisor to find; but a disk without room for a word must not keep it alive.
            if let Some(Err(error)) = reason.map(|reason| dir.write_stop_reason(reason)) {
                log(&format!("stop reason: {}", error.to_failure()));
            }
            let _ = kill(Pid::from_raw(state.supervisor.pid), Signal::SIGTERM);
            wait_for_end(&dir, state, reason)
        }
    }
}

fn wait_for_end(dir: &GrantDir, state: RunnerState, reason: Option<&str>) -> Result<RunnerState> {
    let began = Instant::now();
    while began.elapsed() < STOP_LIMIT {
        let now = dir.read_state()?.map_or(Ok(state.clone()), |s| judge(dir, s))?;
        match now.phase {
            Phase::Ended { .. } if !alive(&now.supervisor)? => {
                unit::end(now.unit.as_deref())?;
                return Ok(now);
            }
            Phase::Lost { ref usage } => return settle(dir, &now, usage.clone(), EndReason::Lost, reason),
            _ => std::thread::sleep(Duration::from_millis(3)),
        }
    }
    // A supervisor that does not react is killed like everything else of the grant.
    if alive(&state.supervisor)? {
        let _ = kill(Pid::from_raw(state.supervisor.pid), Signal::SIGKILL);
    }
    let now = dir.read_state()?.unwrap_or(state);
    if matches!(now.phase, Phase::Ended { .. }) {
        return Ok(now);
    }
    let usage = dir.read_usage().ok().flatten().unwrap_or_default();
    settle(dir, &now, usage, EndReason::Stopped, reason)
}

/// Does a dead supervisor's work: kills what is left, removes cgroups, and writes the last word. The word is also the
/// answer, so that a disk that does not take it costs nothing but asking again.
fn settle(
    dir: &GrantDir,
    state: &RunnerState,
    mut usage: UsageReport,
    end: EndReason,
    reason: Option<&str>,
) -> Result<RunnerState> {
    let init = match &state.init {
        Some(init) if alive(init)? => Some(init.pid),
        _ => None,
    };
    unit::end(state.unit.as_deref())?;
    let root = nix::unistd::geteuid().is_root();
    let mut dirs = Groups::find(&Hierarchies::discover(), root, &state.grant_id);
    dirs.extend(state.cgroups.iter().filter(|d| !dirs.contains(d)).cloned().collect::<Vec<_>>());
    let groups = Groups::adopt(dirs);
    kill_all(init, &groups, &state.grant_id)?;
    let began = Instant::now();
    loop {
        let left = groups.remove();
        if left.is_empty() {
            break;
        }
        if began.elapsed() > Duration::from_secs(5) {
            return Err(RunnerError::WillNotDie { count: left.len(), waited_ms: 5_000 });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    usage.is_final = true;
    usage.updated_unix_ms = usage.updated_unix_ms.max(now_unix_ms().min(state.valid_to_unix_ms));
    let exit = match dir.read_state().ok().flatten().map(|s| s.phase) {
        Some(Phase::Ready { workload_exit, .. }) => workload_exit,
        _ => None,
    };
    let detail = reason.map(str::to_owned);
    let usage_kept = dir.write_usage(&usage);
    let next = RunnerState { phase: Phase::Ended { reason: end, detail, exit, usage }, ..state.clone() };
    for error in [usage_kept, dir.write_state(Some(state), &next)].into_iter().filter_map(Result::err) {
        log(&format!("last word: {}", error.to_failure()));
    }
    Ok(next)
}

/// Ends a grant if need be and removes its directory with everything in it.
pub(super) fn clean(dir: &Path) -> Result<CleanReport> {
    let mut removed = Vec::new();
    let path = match dir.canonicalize() {
        Ok(path) => path,
        // Cleaning twice is fine. What a unit whose directory somebody else removed still does is not.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            removed.extend(unit::end_stray(dir)?);
            return Ok(CleanReport { version: FORMAT_VERSION, dir: dir.into(), removed });
        }
        Err(e) => return Err(RunnerError::io(format!("cannot look at {}", dir.display()), e)),
    };
    let grant = GrantDir::new(&path);
    match grant.read_state() {
        Ok(None) if !looks_like_a_grant(&path) => return Err(RunnerError::NoGrant { dir: path }),
        Ok(None) => {}
        Ok(Some(_)) => {
            let state = stop(&path, Some("cleaned"))?;
            removed.extend(state.cgroups.iter().map(|c| c.display().to_string()));
        }
        // A state nobody can read must not keep a directory for ever, but a live supervisor keeps its own.
        Err(RunnerError::Unreadable { .. }) if grant.lock()?.is_some() => {}
        Err(e) => return Err(e),
    }
    remove_tree(&path).map_err(|e| RunnerError::io(format!("cannot remove {}", path.display()), e))?;
    removed.push(path.display().to_string());
    Ok(CleanReport { version: FORMAT_VERSION, dir: path, removed })
}

/// Refuses to remove a directory that a typing mistake named.
fn looks_like_a_grant(dir: &Path) -> bool {
    ["spec.json", "state.json", "supervisor.lock"].iter().any(|f| dir.join(f).exists())
}

/// Every grant directory directly below `root`, and units that outlived theirs.
pub(super) fn list(root: &Path) -> Result<ListReport> {
    let context = |e| RunnerError::io(format!("cannot list {}", root.display()), e);
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        // No grant was ever started here.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(ListReport { version: FORMAT_VERSION, grants: vec![] });
        }
        Err(e) => return Err(context(e)),
    };
    let mut grants = Vec::new();
    for entry in entries {
        let path = entry.map_err(context)?.path();
        if !path.is_dir() || !looks_like_a_grant(&path) {
            continue;
        }
        let (state, problem) = match status(&path) {
            Ok(state) => (Some(state), None),
            Err(e) => (None, Some(e.to_failure().to_string())),
        };
        grants.push(ListedGrant { dir: path, state, problem, unit: None });
    }
    grants.extend(unit::strays(root).into_iter().map(|stray| ListedGrant {
        problem: Some(format!("the directory is gone, and {} still runs", stray.name)),
        dir: stray.dir,
        state: None,
        unit: Some(stray.name),
    }));
    grants.sort_by(|a, b| a.dir.cmp(&b.dir));
    Ok(ListReport { version: FORMAT_VERSION, grants })
}
