//! The runner on a machine: putting it there once per version, and calling it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use coalition_compute::{LogEnd, UsageMetrics};
use coalition_host::types::{
    EndReason, Failure, Isolation, Phase, ProbeReport, ServiceManager, UsageReport, parse_answer,
};
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use crate::backend::{Exit, FailureKind};
use crate::ssh::{SshError, SshHost, file_blake3, quote};

/// Wait for one small file operation.
pub(super) const SMALL: Duration = Duration::from_secs(20);
/// Wait for the program's transfer, each way.
const TRANSFER: Duration = Duration::from_secs(300);
const NOT_EXECUTABLE: u32 = 126;
const NOT_FOUND: u32 = 127;

/// Where things are on the machine. Absolute paths.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    /// The runner.
    pub(super) runner: String,
    /// Images by hash.
    pub(super) images: String,
    /// One directory per grant of this bridge.
    pub(super) grants: String,
}

/// Why a call of the runner failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunnerCallError {
    /// The machine or the way to it.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The runner ran and said no.
    #[error("the runner says: {0}")]
    Refused(Failure),
    /// The runner is not where it was put, or does not run there.
    #[error("the runner does not run on this machine (exit status {status}): {detail}")]
    Missing { status: u32, detail: String },
    /// The program to install cannot be read here.
    #[error("the program to install, {}, cannot be read", .path.display())]
    Program {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The installed runner of one machine.
pub(super) struct Runner {
    program: PathBuf,
    /// Directory on the machine, relative to the home, or absolute.
    base: String,
    /// Directory name of this bridge, so that two bridges on one machine never touch each other's grants.
    owner: String,
    installed: Mutex<Option<Paths>>,
}

impl Runner {
    pub(super) fn new(program: PathBuf, base: &str, owner: &str) -> Self {
        Self { program, base: base.into(), owner: owner.into(), installed: Mutex::new(None) }
    }

    /// Makes sure that directories and runner are there; the first call of a process checks the program's hash on the
    /// machine itself.
    pub(super) async fn paths(&self, ssh: &SshHost) -> Result<Paths, RunnerCallError> {
        let mut installed = self.installed.lock().await;
        if let Some(paths) = installed.as_ref() {
            return Ok(paths.clone());
        }
        let home = ssh.home(SMALL).await?;
        let base = if self.base.starts_with('/') { self.base.clone() } else { join(&home, &self.base) };
        let root = if self.base.starts_with('/') { "/" } else { home.as_str() };
        let below = |path: &str| path.strip_prefix(root).unwrap_or(path).to_owned();
        let grants = format!("{base}/{}/grants", self.owner);
        let images = format!("{base}/images");
        let bin = format!("{base}/bin");
        for dir in [&bin, &images, &grants] {
            ssh.make_dirs(root, &below(dir), SMALL).await?;
        }
        let runner = self.install(ssh, &bin).await?;
        let paths = Paths { runner, images, grants };
        *installed = Some(paths.clone());
        Ok(paths)
    }

    /// Forgets that the machine is set up; the next call looks again.
    pub(super) async fn forget(&self) {
        *self.installed.lock().await = None;
    }

    async fn install(&self, ssh: &SshHost, bin: &str) -> Result<String, RunnerCallError> {
        let unreadable = |source| RunnerCallError::Program { path: self.program.clone(), source };
        let (hash, size) = file_blake3(&self.program).await.map_err(unreadable)?;
        tracing::debug!(host = %ssh.target().label(), size, "looking for the runner");
        let path = format!("{bin}/runner-{}", hash.to_hex());
        if ssh.size_of(&path, SMALL).await? == Some(size) && ssh.remote_blake3(&path, TRANSFER).await?.0 == hash {
            return Ok(path);
        }
        let sent = ssh.upload(&self.program, &path, 0o700, TRANSFER).await?;
        let (arrived, _) = ssh.remote_blake3(&path, TRANSFER).await?;
        if sent.hash != hash || arrived != hash {
            ssh.remove_file(&path, SMALL).await?;
            return Err(RunnerCallError::Ssh(SshError::Hash {
                host: ssh.target().label(),
                path,
                expected: hash.to_hex().to_string(),
                actual: arrived.to_hex().to_string(),
            }));
        }
        tracing::info!(host = %ssh.target().label(), runner = %path, "installed the runner");
        Ok(path)
    }

    /// Calls `runner VERB ARGS` and parses the one line it answers. `again` allows a second try on a new connection, for
    /// verbs that may run twice.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        ssh: &SshHost,
        verb: &str,
        args: &[(&str, &str)],
        deadline: Duration,
        again: bool,
    ) -> Result<T, RunnerCallError> {
        let paths = self.paths(ssh).await?;
        let mut line = format!("{} runner {verb}", quote(&paths.runner));
        for (name, value) in args {
            line.push_str(&format!(" {name} {}", quote(value)));
        }
        let what = format!("runner {verb}");
        let output = if again {
            ssh.exec_again(&what, &line, deadline).await?
        } else {
            ssh.exec(&what, &line, deadline).await?
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let answer = text.trim().lines().last().unwrap_or_default();
        match output.status {
            Some(status @ (NOT_EXECUTABLE | NOT_FOUND)) if answer.is_empty() => {
                self.forget().await;
                Err(RunnerCallError::Missing { status, detail: output.stderr_tail() })
            }
            _ if answer.is_empty() => {
                let status = output.status.unwrap_or_default();
                Err(RunnerCallError::Missing { status, detail: output.stderr_tail() })
            }
            _ => parse_answer(answer).map_err(RunnerCallError::Refused),
        }
    }
}

/// `dir/rest`, without doubling the slash.
pub(super) fn join(dir: &str, rest: &str) -> String {
    format!("{}/{rest}", dir.trim_end_matches('/'))
}

/// This process's own program, readable also after the file was replaced by an upgrade.
pub(super) fn own_program() -> PathBuf {
    Path::new("/proc/self/exe").to_path_buf()
}

/// Usage as the market counts it: whole units, rounded down, so that nothing is ever over-reported.
pub(super) fn metrics(usage: &UsageReport) -> UsageMetrics {
    UsageMetrics {
        cpu_core_seconds: usage.cpu_core_ms / 1_000,
        ram_mib_seconds: usage.ram_mib_ms / 1_000,
        net_bytes: usage.net_bytes,
    }
}

/// How a workload ended, if it did.
pub(super) fn exit_of(phase: &Phase) -> Option<Exit> {
    match phase {
        Phase::Starting | Phase::Ready { .. } => None,
        Phase::Lost { usage } => Some(Exit { end: LogEnd::BackendLost, usage: metrics(usage) }),
        Phase::Ended { reason, usage, .. } => {
            let end = match reason {
                EndReason::Deadline => LogEnd::Deadline,
                EndReason::Lost => LogEnd::BackendLost,
                EndReason::FailedToStart => LogEnd::ProvisioningFailed,
                EndReason::Stopped | EndReason::DiskExceeded | EndReason::EnvironmentDied => LogEnd::Exited,
            };
            Some(Exit { end, usage: metrics(usage) })
        }
    }
}

/// A failed start, by how far it got.
pub(super) enum StartError {
    /// Nothing was started.
    Before(RunnerCallError),
    /// Nothing was started, because the image on the machine is not the one that was sent.
    Image(RunnerCallError),
    /// The workload was started, or may have been.
    Started(RunnerCallError),
}

impl StartError {
    pub(super) fn from_call(error: RunnerCallError) -> Self {
        let failure = match &error {
            RunnerCallError::Refused(failure) => failure,
            RunnerCallError::Ssh(ssh) if ssh.is_before_anything() => return Self::Before(error),
            _ => return Self::Started(error),
        };
        match failure.code.as_str() {
            "image_hash_mismatch" | "image_size_mismatch" => Self::Image(error),
            "bad_spec"
            | "no_machine"
            | "unreadable"
            | "usage"
            | "deadline_passed"
            | "isolation_too_weak"
            | "cannot_listen"
            | "disk_full"
            | "occupied"
            | "image_too_large"
            | "image_entry_refused"
            | "image_not_an_archive"
            | "image_not_bootable"
            | "image_needs_machine" => Self::Before(error),
            _ => Self::Started(error),
        }
    }
}

pub(super) fn kind_of(error: &RunnerCallError) -> FailureKind {
    match error {
        RunnerCallError::Ssh(error) => error.kind(),
        RunnerCallError::Refused(failure) => match failure.code.as_str() {
            "disk_full" => FailureKind::Capacity,
            "image_too_large" => FailureKind::TooLarge,
            "image_entry_refused" | "image_not_an_archive" | "image_not_bootable" => FailureKind::BadImage,
            "image_needs_machine" => FailureKind::Unsuited,
            "occupied" => FailureKind::Conflict,
            "no_grant" => FailureKind::NotFound,
            "cannot_listen" | "will_not_die" => FailureKind::Transient,
            _ => FailureKind::Fatal,
        },
        RunnerCallError::Missing { .. } | RunnerCallError::Program { .. } => FailureKind::Fatal,
    }
}

/// What a probe says of isolation, virtual machines first.
pub(super) fn offered_text(probe: &ProbeReport) -> String {
    let outer = isolation_text(&probe.isolation);
    let outer = match probe.supervision.manager {
        Some(ServiceManager::System) => format!("{outer}; grants are units of the host's systemd"),
        Some(ServiceManager::User) => format!("{outer}; grants are units of the user's systemd"),
        None => outer,
    };
    match &probe.machine {
        None => outer,
        Some(found) => match &found.kvm_problem {
            None => format!("virtual machines on KVM, in {outer}"),
            Some(problem) => format!("virtual machines, emulated and slow ({problem}), in {outer}"),
        },
    }
}

/// The level and its losses, on one line and short enough for a receipt.
pub(super) fn isolation_text(isolation: &Isolation) -> String {
    let mut text = isolation.name.clone();
    for loss in &isolation.losses {
        text.push_str("; ");
        text.push_str(loss);
    }
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let limit = coalition_shuffle::receipt::MAX_ISOLATION_BYTES;
    match clean.char_indices().find(|(at, c)| at + c.len_utf8() > limit - 3) {
        Some((at, _)) => format!("{}…", &clean[..at]),
        None => clean,
    }
}
