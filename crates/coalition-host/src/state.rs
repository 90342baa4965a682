//! The files of a grant's directory, and which phase may follow which.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};

use crate::error::{Result, RunnerError};
use crate::types::{Phase, RunnerState, SecretText, UsageReport, WorkloadSpec};

/// Milliseconds since 1970 by this host's clock.
pub fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// True when `next` is a legal successor of `now` (none: no state yet).
pub fn may_follow(now: Option<&Phase>, next: &Phase) -> bool {
    match (now, next) {
        (_, Phase::Lost { .. }) | (Some(Phase::Ended { .. }), _) => false,
        (None, Phase::Starting) => true,
        (None, _) => false,
        (Some(Phase::Starting), Phase::Ready { .. } | Phase::Ended { .. }) => true,
        // A ready grant may be written again: that is how the workload's exit status becomes known.
        (Some(Phase::Ready { .. }), Phase::Ready { .. } | Phase::Ended { .. }) => true,
        (Some(Phase::Lost { .. }), Phase::Ended { .. }) => true,
        _ => false,
    }
}

/// Name of a phase, as in the JSON.
pub fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Ready { .. } => "ready",
        Phase::Ended { .. } => "ended",
        Phase::Lost { .. } => "lost",
    }
}

/// A grant's directory.
#[derive(Clone, Debug)]
pub struct GrantDir {
    path: PathBuf,
}

impl GrantDir {
    /// Names a directory; nothing is touched.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The unpacked root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Where the supervisor writes what it has to say.
    pub fn log(&self) -> PathBuf {
        self.path.join("runner.log")
    }

    /// The pipe on which a supervisor that systemd started says its first word.
    pub fn answer(&self) -> PathBuf {
        self.path.join("answer")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the directory private to its owner and resolves it, so that it means the same after a `chdir`.
    pub fn prepare(&self) -> Result<Self> {
        let what = || format!("cannot use the grant's directory {}", self.path.display());
        let path = self.path.canonicalize().map_err(|e| RunnerError::io(what(), e))?;
        let meta = fs::metadata(&path).map_err(|e| RunnerError::io(what(), e))?;
        if meta.uid() != nix::unistd::geteuid().as_raw() {
            return Err(RunnerError::Environment(format!(
                "{} belongs to uid {}, the runner is uid {}",
                path.display(),
                meta.uid(),
                nix::unistd::geteuid()
            )));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(|e| RunnerError::io(what(), e))?;
        Ok(Self { path })
    }

    /// Creates an empty private directory inside.
    pub fn create_rootfs(&self) -> Result<PathBuf> {
        let path = self.rootfs();
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .map_err(|e| RunnerError::io(format!("cannot create {}", path.display()), e))?;
        Ok(path)
    }

    /// Takes the lock that a supervisor holds for as long as it lives; none when another one holds it.
    pub fn lock(&self) -> Result<Option<Flock<File>>> {
        let path = self.file("supervisor.lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| RunnerError::io(format!("cannot open {}", path.display()), e))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(RunnerError::io(format!("cannot lock {}", path.display()), e)),
        }
    }

    /// The bytes of `spec.json`.
    pub fn read_spec(&self) -> Result<Vec<u8>> {
        let path = self.file("spec.json");
        let file = File::open(&path).map_err(|e| RunnerError::io(format!("cannot open {}", path.display()), e))?;
        let mut bytes = Vec::new();
        file.take(crate::spec::MAX_SPEC_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| RunnerError::io(format!("cannot read {}", path.display()), e))?;
        Ok(bytes)
    }

    /// Replaces `spec.json` by the same without the host's private key.
    pub fn erase_host_key(&self, spec: &WorkloadSpec) -> Result<()> {
        let public = WorkloadSpec { ssh_host_key: SecretText::default(), ..spec.clone() };
        self.replace("spec.json", &public, false)
    }

    /// The state, or none when there is no `state.json`.
    pub fn read_state(&self) -> Result<Option<RunnerState>> {
        self.read("state.json")
    }

    /// Replaces the state; refuses an impossible transition, which would be a bug worth stopping for.
    pub fn write_state(&self, before: Option<&RunnerState>, next: &RunnerState) -> Result<()> {
        if !may_follow(before.map(|s| &s.phase), &next.phase) {
            let from = before.map_or("nothing", |s| phase_name(&s.phase));
            return Err(RunnerError::Environment(format!("state {} cannot follow {from}", phase_name(&next.phase))));
        }
        self.replace("state.json", next, true)
    }

    /// The last usage report, or none.
    pub fn read_usage(&self) -> Result<Option<UsageReport>> {
        self.read("usage.json")
    }

    /// Replaces the usage report. Only the last one is worth waiting for the disk.
    pub fn write_usage(&self, usage: &UsageReport) -> Result<()> {
        self.replace("usage.json", usage, usage.is_final)
    }

    /// Leaves word why the supervisor is about to be told to stop.
    pub fn write_stop_reason(&self, reason: &str) -> Result<()> {
        self.replace("stop.json", &reason, false)
    }

    /// That word.
    pub fn read_stop_reason(&self) -> Option<String> {
        self.read("stop.json").ok().flatten()
    }

    /// Leaves word when the grant is to end instead, Unix milliseconds.
    pub fn write_until(&self, unix_ms: u64) -> Result<()> {
        self.replace("until.json", &unix_ms, true)
    }

    /// That word; none when nobody moved the end.
    pub fn read_until(&self) -> Option<u64> {
        self.read("until.json").ok().flatten()
    }

    /// The end of the supervisor's log, for an error message.
    pub fn log_tail(&self) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        if lines.is_empty() { "(none)".into() } else { lines.into_iter().rev().collect::<Vec<_>>().join(" | ") }
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.file(name);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| RunnerError::Unreadable { path, problem: e.to_string() }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(RunnerError::io(format!("cannot read {}", path.display()), e)),
        }
    }

    fn replace<T: serde::Serialize>(&self, name: &str, value: &T, durable: bool) -> Result<()> {
        let path = self.file(name);
        let temporary = self.file(&format!(".{name}.new"));
        let context = |e: std::io::Error| RunnerError::io(format!("cannot write {}", path.display()), e);
        let bytes = serde_json::to_vec(value).map_err(|e| context(e.into()))?;
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary).map_err(context)?;
        file.write_all(&bytes).map_err(context)?;
        if durable {
            file.sync_data().map_err(context)?;
        }
        fs::rename(&temporary, &path).map_err(context)?;
        if durable {
            File::open(&self.path).and_then(|d| d.sync_all()).map_err(context)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EndReason, FORMAT_VERSION, ProcessRef};

    fn ended() -> Phase {
        Phase::Ended { reason: EndReason::Stopped, detail: None, exit: None, usage: UsageReport::default() }
    }

    fn state(phase: Phase) -> RunnerState {
        RunnerState {
            version: FORMAT_VERSION,
            grant_id: "aabbccdd".into(),
            valid_to_unix_ms: 1,
            supervisor: ProcessRef { pid: 1, start_ticks: 2, boot_id: "b".into() },
            init: None,
            cgroups: vec![],
            unit: None,
            usage_so_far: None,
            phase,
        }
    }

    #[test]
    fn an_ended_grant_stays_ended() {
        assert!(may_follow(None, &Phase::Starting));
        assert!(!may_follow(None, &ended()));
        assert!(may_follow(Some(&Phase::Starting), &ended()));
        assert!(!may_follow(Some(&ended()), &Phase::Starting));
        assert!(!may_follow(Some(&ended()), &ended()));
        assert!(may_follow(Some(&Phase::Lost { usage: UsageReport::default() }), &ended()));
    }

    #[test]
    fn files_round_trip_and_wrong_transitions_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let dir = GrantDir::new(temp.path()).prepare().unwrap();
        assert!(dir.read_state().unwrap().is_none());
        let first = state(Phase::Starting);
        dir.write_state(None, &first).unwrap();
        assert_eq!(dir.read_state().unwrap().unwrap(), first);
        let last = state(ended());
        dir.write_state(Some(&first), &last).unwrap();
        assert!(dir.write_state(Some(&last), &first).is_err());
        let json = fs::read_to_string(temp.path().join("state.json")).unwrap();
        assert!(json.contains(r#""state":"ended""#), "{json}");
        fs::write(temp.path().join("state.json"), b"{").unwrap();
        assert_eq!(dir.read_state().unwrap_err().code(), "unreadable");
        assert_eq!(fs::metadata(temp.path()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn the_lock_is_held_once() {
        let temp = tempfile::tempdir().unwrap();
        let dir = GrantDir::new(temp.path());
        let held = dir.lock().unwrap();
        assert!(held.is_some() && dir.lock().unwrap().is_none());
        drop(held);
        assert!(dir.lock().unwrap().is_some());
    }
}
