//! Failures of the runner: one enum, each with a stable code, an exit status and a hint.

use std::path::PathBuf;

use crate::types::{Failure, IsolationLevel};

/// What can go wrong in a runner command.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// `spec.json` is not acceptable.
    #[error("spec field `{field}`: {problem}")]
    Spec {
        /// The field.
        field: &'static str,
        /// What is wrong, with the value.
        problem: String,
    },
    /// `valid_to` is not in the future.
    #[error("the grant ended {ago_ms} ms ago by this host's clock ({now_ms} now, valid to {valid_to_ms})")]
    DeadlinePassed {
        /// How long ago.
        ago_ms: u64,
        /// The host's clock.
        now_ms: u64,
        /// The deadline.
        valid_to_ms: u64,
    },
    /// The image file has another size.
    #[error("image {path} has {actual} bytes, the grant says {expected}")]
    ImageSize {
        /// The file.
        path: PathBuf,
        /// From the spec.
        expected: u64,
        /// On disk.
        actual: u64,
    },
    /// The image file has another hash.
    #[error("image {path} has blake3 {actual}, the grant says {expected}")]
    ImageHash {
        /// The file.
        path: PathBuf,
        /// From the spec.
        expected: String,
        /// On disk.
        actual: String,
    },
    /// The image cannot be a root file system.
    #[error("image entry {entry:?}: {problem}")]
    ImageEntry {
        /// Name in the archive.
        entry: String,
        /// What is wrong.
        problem: String,
    },
    /// The image is not readable as an archive.
    #[error("image {path} is not a tar or gzipped tar archive: {problem}")]
    ImageFormat {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The image is meant to boot and does not.
    #[error("image {path} cannot be started: {problem}")]
    ImageUnbootable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The image boots, and this host runs no virtual machines for it.
    #[error("image {path} is {kind}, which takes a virtual machine of its own, and this grant is not to have one")]
    ImageNeedsMachine {
        /// The file.
        path: PathBuf,
        /// What kind of image.
        kind: String,
    },
    /// The image takes more than the grant's disk.
    #[error("the image takes more than the {limit_mib} MiB of disk granted")]
    ImageTooLarge {
        /// `disk_mib`.
        limit_mib: u64,
    },
    /// The host isolates less than the spec asks.
    #[error("this host offers isolation \"{offered}\", the provider asks for at least \"{minimum}\"")]
    IsolationTooWeak {
        /// What there is.
        offered: IsolationLevel,
        /// What is asked.
        minimum: IsolationLevel,
    },
    /// A virtual machine cannot be made here.
    #[error("this host cannot run virtual machines: {problem}")]
    NoMachine {
        /// What is missing.
        problem: String,
    },
    /// A virtual machine did not come up.
    #[error("the virtual machine did not become ready: {problem}; its console ends: {console:?}")]
    MachineFailed {
        /// What happened.
        problem: String,
        /// The console's last words.
        console: String,
    },
    /// Building the environment failed.
    #[error("cannot build the isolated environment: {0}")]
    Environment(String),
    /// The SSH server cannot listen.
    #[error("cannot listen for SSH on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is a grant in this directory already.
    #[error("{dir} already holds a grant that is {state}")]
    Occupied {
        /// The directory.
        dir: PathBuf,
        /// Its phase.
        state: String,
    },
    /// There is no grant in this directory.
    #[error("{dir} holds no grant")]
    NoGrant {
        /// The directory.
        dir: PathBuf,
    },
    /// The grant is over; there is no end to move.
    #[error("the grant in {dir} is over")]
    Over {
        /// The directory.
        dir: PathBuf,
    },
    /// The supervisor did not take the new end.
    #[error("the supervisor did not take the new end within {waited_ms} ms")]
    NotMoved {
        /// How long was waited.
        waited_ms: u64,
    },
    /// Processes survived being killed.
    #[error("{count} processes of the grant are still there {waited_ms} ms after being killed")]
    WillNotDie {
        /// How many.
        count: usize,
        /// How long was waited.
        waited_ms: u64,
    },
    /// The supervisor ended without an answer.
    #[error("the supervisor ended without becoming ready; its last words: {last_words}")]
    SupervisorDied {
        /// Tail of `runner.log`.
        last_words: String,
    },
    /// A supervisor's own typed failure, passed on.
    #[error("{}", .0.message)]
    Supervisor(Failure),
    /// A file or system call failed.
    #[error("{what}")]
    Io {
        /// What was being done, with the path.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A file does not parse.
    #[error("{path} is not valid: {problem}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Shorthand.
pub type Result<T, E = RunnerError> = std::result::Result<T, E>;

impl RunnerError {
    /// An I/O failure with its context.
    pub fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { what: what.into(), source: source.into() }
    }

    /// Stable name of the kind.
    pub fn code(&self) -> &str {
        match self {
            Self::Usage(_) => "usage",
            Self::Spec { .. } => "bad_spec",
            Self::DeadlinePassed { .. } => "deadline_passed",
            Self::ImageSize { .. } => "image_size_mismatch",
            Self::ImageHash { .. } => "image_hash_mismatch",
            Self::ImageEntry { .. } => "image_entry_refused",
            Self::ImageFormat { .. } => "image_not_an_archive",
            Self::ImageUnbootable { .. } => "image_not_bootable",
            Self::ImageNeedsMachine { .. } => "image_needs_machine",
            Self::ImageTooLarge { .. } => "image_too_large",
            Self::IsolationTooWeak { .. } => "isolation_too_weak",
            Self::Environment(_) => "environment",
            Self::NoMachine { .. } => "no_machine",
            Self::MachineFailed { .. } => "machine_failed",
            Self::Listen { .. } => "cannot_listen",
            Self::Occupied { .. } => "occupied",
            Self::NoGrant { .. } => "no_grant",
            Self::Over { .. } => "over",
            Self::NotMoved { .. } => "not_moved",
            Self::WillNotDie { .. } => "will_not_die",
            Self::SupervisorDied { .. } => "supervisor_died",
            Self::Supervisor(failure) => &failure.code,
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => "disk_full",
            Self::Io { .. } => "io",
            Self::Unreadable { .. } => "unreadable",
        }
    }

    /// Exit status of the process, stable per code.
    pub fn exit_code(&self) -> u8 {
        exit_code_of(self.code())
    }

    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Supervisor(failure) => return failure.hint.clone(),
            Self::Usage(_) => USAGE,
            Self::DeadlinePassed { .. } => "compare this host's clock with the provider's (`date -u`); use NTP",
            Self::ImageSize { .. } | Self::ImageHash { .. } => {
                "the file was damaged, cut short or exchanged on its way: push it again, and compare `b3sum` at both ends"
            }
            Self::ImageEntry { .. } => {
                "make the archive from a plain root file system, e.g. `tar -C rootfs -cf image.tar .`"
            }
            Self::ImageFormat { .. } => "give a tar of a root file system, e.g. `tar -C rootfs -cf image.tar .`",
            Self::ImageUnbootable { .. } => {
                "`coalition image inspect IMAGE` says what hosts make of it; docs/ISOLATION.md, images that boot"
            }
            Self::ImageNeedsMachine { .. } => {
                "ask providers whose isolation is \"virtual machine\" (isolation = \"machine\" in bridge.toml), or give a tar of \
                 the root file system"
            }
            Self::ImageTooLarge { .. } => "ask for more disk, or make the image smaller",
            Self::IsolationTooWeak { .. } => {
                "run the runner as root, allow user namespaces (sysctl user.max_user_namespaces, \
                 kernel.apparmor_restrict_unprivileged_userns=0), or lower minimum_isolation"
            }
            Self::NoMachine { .. } => {
                "`compute-bridge check` says what to install; docs/OPERATORS.md, virtual machines"
            }
            Self::Listen { .. } => "give port 0 to take any free port, or an address this host has",
            Self::Occupied { .. } => "use another directory, or `runner stop` and `runner clean` this one first",
            Self::NotMoved { .. } => {
                "it ends when it would have; a machine that is too busy to answer may be asked again"
            }
            Self::WillNotDie { .. } => {
                "look for processes in uninterruptible sleep (ps, state D); run `runner clean` again"
            }
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "free disk space on the host, or point the grants' directory elsewhere"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// The failure as printed: message with its cause chain, code and hint.
    pub fn to_failure(&self) -> Failure {
        let mut message = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(inner) = cause {
            message = format!("{message}: {inner}");
            cause = inner.source();
        }
        Failure { code: self.code().to_owned(), message, hint: self.hint() }
    }
}

/// Exit status for a failure code; 1 for one this version does not know.
pub fn exit_code_of(code: &str) -> u8 {
    match code {
        "usage" => 2,
        "bad_spec" | "unreadable" => 10,
        "deadline_passed" => 11,
        "image_size_mismatch" => 12,
        "image_hash_mismatch" => 13,
        "image_entry_refused" => 14,
        "image_not_an_archive" => 15,
        "image_too_large" => 16,
        "isolation_too_weak" => 17,
        "environment" => 18,
        "cannot_listen" => 19,
        "occupied" => 20,
        "no_grant" => 21,
        "will_not_die" => 22,
        "supervisor_died" => 23,
        "disk_full" => 24,
        "over" => 25,
        "not_moved" => 26,
        "no_machine" => 27,
        "machine_failed" => 28,
        "image_not_bootable" => 29,
        "image_needs_machine" => 30,
        _ => 1,
    }
}

/// How the runner is called.
pub const USAGE: &str = "runner probe [--dir DIR] [--machine JSON] | boot-files --dir DIR --machine JSON | start --dir DIR | \
                         status --dir DIR | stop --dir DIR [--reason TEXT] | clean --dir DIR | \
                         extend --dir DIR --until UNIX_MS | list --root ROOT";
