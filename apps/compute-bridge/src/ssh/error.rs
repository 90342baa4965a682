//! What can go wrong between the bridge and a machine.

use std::path::PathBuf;

use crate::backend::FailureKind;

/// Why an SSH operation failed. Messages name the machine, what was tried and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// No TCP connection, or no SSH server behind it.
    #[error("{host} cannot be reached over SSH; check that it is up and that its SSH port is open from here")]
    Connect {
        /// `host:port`.
        host: String,
        /// The cause.
        #[source]
        source: Box<SshError>,
    },
    /// Another host key than the pinned one. Nothing was sent.
    #[error(
        "{host} shows the host key {presented}, pinned is {pinned}; if the host was reinstalled, put its new key into \
         `host_key` after checking it on the host itself, otherwise somebody is in between"
    )]
    HostKey {
        /// `host:port`.
        host: String,
        /// Fingerprint of the key in the boot file.
        pinned: String,
        /// Fingerprint of the key shown, or what was shown instead of a key.
        presented: String,
    },
    /// The server does not take our key.
    #[error(
        "{host} refuses to let {user} in with the key {key_fingerprint} ({key_from}); add its public half to \
         ~{user}/.ssh/authorized_keys there"
    )]
    Refused {
        /// `host:port`.
        host: String,
        /// The user.
        user: String,
        /// Fingerprint of the key offered.
        key_fingerprint: String,
        /// Its file, or what made it.
        key_from: String,
    },
    /// The private key file cannot be used.
    #[error("the private key {key_from} cannot be used: {problem}")]
    KeyFile {
        /// Its file, or what made it.
        key_from: String,
        /// What is wrong; never its content.
        problem: String,
    },
    /// No answer in time.
    #[error("{host} did not finish {what} within {waited_ms} ms")]
    Deadline {
        /// `host:port`.
        host: String,
        /// What was waited for.
        what: String,
        /// How long.
        waited_ms: u64,
    },
    /// The connection ended in the middle.
    #[error("the connection to {host} ended during {what}")]
    Lost {
        /// `host:port`.
        host: String,
        /// What was under way.
        what: String,
    },
    /// The server opens no further channel on the connection.
    #[error("{host} opens no channel for {what} ({reason}); MaxSessions in its sshd_config should be 10 or more")]
    NoChannel {
        /// `host:port`.
        host: String,
        /// What it was for.
        what: String,
        /// What the server said.
        reason: String,
    },
    /// The server would not do it.
    #[error("{host} refused {what}")]
    Denied {
        /// `host:port`.
        host: String,
        /// What.
        what: String,
    },
    /// A file operation on the machine failed.
    #[error("{what} {path} on {host} failed: {problem}")]
    File {
        /// `host:port`.
        host: String,
        /// What was being done.
        what: &'static str,
        /// The file there.
        path: String,
        /// What the machine said.
        problem: String,
        /// Whether its disk is full, or most probably is.
        disk_full: bool,
    },
    /// A file here could not be read.
    #[error("{} cannot be read", .path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// What arrived is not what was sent.
    #[error("{path} on {host} has blake3 {actual}, sent was {expected}; check the machine's disk and memory")]
    Hash {
        /// `host:port`.
        host: String,
        /// The file there.
        path: String,
        /// Sent.
        expected: String,
        /// Read back.
        actual: String,
    },
    /// The output of a command is larger than anything expected.
    #[error("a command on {host} wrote more than {limit} bytes")]
    TooMuchOutput {
        /// `host:port`.
        host: String,
        /// The limit.
        limit: usize,
    },
    /// The protocol failed.
    #[error("SSH failed")]
    Protocol(#[source] russh::Error),
}

impl From<russh::Error> for SshError {
    fn from(error: russh::Error) -> Self {
        Self::Protocol(error)
    }
}

impl SshError {
    /// What kind of failure this is for a backend.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::HostKey { .. } | Self::Refused { .. } | Self::KeyFile { .. } => FailureKind::Auth,
            Self::File { disk_full: true, .. } => FailureKind::Capacity,
            Self::Connect { source, .. } => match source.kind() {
                FailureKind::Auth => FailureKind::Auth,
                _ => FailureKind::Transient,
            },
            Self::Deadline { .. } | Self::Lost { .. } | Self::NoChannel { .. } | Self::Protocol(_) => {
                FailureKind::Transient
            }
            Self::Denied { .. }
            | Self::File { .. }
            | Self::Local { .. }
            | Self::Hash { .. }
            | Self::TooMuchOutput { .. } => FailureKind::Fatal,
        }
    }

    /// Whether it failed before the machine was told anything.
    #[must_use]
    pub const fn is_before_anything(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::HostKey { .. }
                | Self::Refused { .. }
                | Self::KeyFile { .. }
                | Self::NoChannel { .. }
        )
    }

    /// Whether the operation may simply be tried again on a new connection.
    #[must_use]
    pub const fn is_lost_connection(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Protocol(_))
    }
}
