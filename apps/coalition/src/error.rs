//! What goes wrong, as a person and as a script read it: kind, cause chain, hint, exit status (decision D16).

use std::{error::Error as StdError, fmt, io::ErrorKind, process::ExitCode, sync::Arc};

use serde_json::{Value, json};

/// What kind of failure it is; each has its exit status. Stable: scripts match on both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A fault of this program or this machine.
    Fault,
    /// The command line is wrong.
    Usage,
    /// Something given is wrong: a file, a config, a value, an unknown grant.
    Input,
    /// The coalition cannot be reached.
    Unreachable,
    /// A committee or provider said no, or nobody serves it.
    Refused,
    /// Evidence proves nothing.
    Unproven,
    /// Something else is in the way: another instance, a port, a file.
    Conflict,
    /// Gave up waiting.
    TimedOut,
    /// The user interrupted.
    Interrupted,
}

impl Kind {
    /// Every kind, for documentation and tests.
    pub const ALL: [Self; 9] = [
        Self::Fault,
        Self::Usage,
        Self::Input,
        Self::Unreachable,
        Self::Refused,
        Self::Unproven,
        Self::Conflict,
        Self::TimedOut,
        Self::Interrupted,
    ];

    /// The process's exit status.
    #[must_use]
    pub const fn status(self) -> u8 {
        match self {
            Self::Fault => 1,
            Self::Usage => 2,
            Self::Input => 3,
            Self::Unreachable => 4,
            Self::Refused => 5,
            Self::Unproven => 6,
            Self::Conflict => 7,
            Self::TimedOut => 8,
            Self::Interrupted => 130,
        }
    }

    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Usage => "usage",
            Self::Input => "input",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Unproven => "unproven",
            Self::Conflict => "conflict",
            Self::TimedOut => "timed_out",
            Self::Interrupted => "interrupted",
        }
    }
}

type Cause = Box<dyn StdError + Send + Sync>;

/// A failed command.
#[derive(Debug)]
pub struct CliError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    code: String,
    message: String,
    cause: Option<Cause>,
    hint: Option<String>,
    remains: Vec<String>,
    status: Option<u8>,
}

/// What every command returns.
pub type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    /// A failure of this kind. `code` is stable `snake_case`, `message` one sentence that names what was wrong.
    pub fn new(kind: Kind, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            code: code.into(),
            message: message.into(),
            cause: None,
            hint: None,
            remains: Vec::new(),
            status: None,
        }))
    }

    /// Something given is wrong.
    pub fn input(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Input, code, message)
    }

    /// This program or machine is at fault.
    pub fn fault(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::Fault, code, message)
    }

    /// Ends with the status of another program and says nothing more about it.
    #[must_use]
    pub fn status_of(status: u8) -> Self {
        let mut error = Self::fault("child_status", format!("the command exited with status {status}"));
        error.0.status = Some(status);
        error
    }

    /// With the error that caused it; its own chain is printed, once.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Cause>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// With what to do, usually the exact command.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// With what to do besides what is already said.
    #[must_use]
    pub fn and_hint(mut self, hint: &str) -> Self {
        self.0.hint = Some(match self.0.hint.take() {
            Some(first) => format!("{first}; {hint}"),
            None => hint.to_owned(),
        });
        self
    }

    /// With something that exists after the failure: what it is, what it costs, how to release it.
    #[must_use]
    pub fn remains(mut self, what: impl Into<String>) -> Self {
        self.0.remains.push(what.into());
        self
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Its stable code.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// Whether another program has already said what is wrong.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.0.status.is_some()
    }

    /// The process's exit status.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.0.status.unwrap_or_else(|| self.0.kind.status())
    }

    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status())
    }

    /// Whether it comes of a disk, or a quota on it, without room.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let full = |cause: &(dyn StdError + 'static)| {
            let shared = || cause.downcast_ref::<Arc<std::io::Error>>().map(Arc::as_ref);
            let error = cause.downcast_ref::<std::io::Error>().or_else(shared);
            error.is_some_and(|error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
        };
        let mut next = self.0.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static));
        while let Some(cause) = next {
            if full(cause) {
                return true;
            }
            next = cause.source();
        }
        false
    }

    /// The messages of the causes, outermost first. A cause whose text its parent already ends with is left out, because
    /// some libraries print their source as well as returning it.
    #[must_use]
    pub fn causes(&self) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        let mut next = self.0.cause.as_deref().map(|cause| cause as &dyn StdError);
        while let Some(cause) = next {
            let text = cause.to_string();
            let said = out.last().map_or(self.0.message.as_str(), String::as_str);
            if !said.ends_with(&text) {
                out.push(text);
            }
            next = cause.source();
        }
        out
    }

    /// As JSON: `{"error": {kind, code, message, causes, hint, remains, status}}`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({ "error": {
            "kind": self.0.kind.name(),
            "code": self.0.code,
            "message": self.0.message,
            "causes": self.causes(),
            "hint": self.0.hint,
            "remains": self.0.remains,
            "status": self.status(),
        }})
    }
}

impl fmt::Display for CliError {
    /// The whole answer as a person reads it, without colour: message, causes, what remains, hint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.message)?;
        for cause in self.causes() {
            write!(f, "\n  because: {cause}")?;
        }
        for remains in &self.0.remains {
            write!(f, "\n  still there: {remains}")?;
        }
        if let Some(hint) = &self.0.hint {
            write!(f, "\n\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// Adds kind, code and message to a lower error in one go.
pub trait Context<T> {
    /// Something given is wrong.
    ///
    /// # Errors
    /// The error with this code and message around it.
    fn or_input(self, code: &str, message: impl FnOnce() -> String) -> Result<T>;

    /// This program or machine is at fault.
    ///
    /// # Errors
    /// The error with this code and message around it.
    fn or_fault(self, code: &str, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Cause>> Context<T> for std::result::Result<T, E> {
    fn or_input(self, code: &str, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| CliError::input(code, message()).because(cause))
    }

    fn or_fault(self, code: &str, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| CliError::fault(code, message()).because(cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("inner: the root")]
    struct Inner(#[source] Root);
    #[derive(Debug, thiserror::Error)]
    #[error("the root")]
    struct Root;

    #[test]
    fn the_chain_is_printed_once() {
        let error =
            CliError::input("bad", "it failed").because(Outer(Inner(Root))).hint("run `x`").remains("a machine");
        assert_eq!(error.causes(), ["outer", "inner: the root"]);
        assert_eq!(
            error.to_string(),
            "it failed\n  because: outer\n  because: inner: the root\n  still there: a machine\n\nhint: run `x`"
        );
        assert_eq!(error.to_json()["error"]["status"], 3);
    }

    #[test]
    fn a_full_disk_is_seen_through_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot append to /data/x")]
        struct Append(#[source] std::io::Error);
        #[derive(Debug, thiserror::Error)]
        #[error("cannot append to /data/y")]
        struct Shared(#[source] Arc<std::io::Error>);
        let failed = |kind: ErrorKind| CliError::fault("disk", "stopped").because(Append(kind.into()));
        assert!(failed(ErrorKind::StorageFull).is_disk_full());
        let shared = Shared(Arc::new(ErrorKind::StorageFull.into()));
        assert!(CliError::fault("disk", "stopped").because(shared).is_disk_full());
        assert!(!failed(ErrorKind::PermissionDenied).is_disk_full());
        assert!(!CliError::fault("disk", "stopped").is_disk_full());
    }

    #[test]
    fn every_kind_has_its_own_status_and_name() {
        let statuses: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.status()).collect();
        let names: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!((statuses.len(), names.len()), (9, 9));
        assert!(!statuses.contains(&0));
    }

    #[test]
    fn a_status_of_another_program_passes_through() {
        let error = CliError::status_of(42);
        assert!(error.is_silent());
        assert_eq!(error.status(), 42);
    }
}
