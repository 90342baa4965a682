//! One taxonomy of failures.

/// What kind of failure; decides what happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorKind {
    /// No such machine is free now, or none in this place.
    Capacity,
    /// A limit of the account is reached.
    Quota,
    /// Asked too often.
    Throttled,
    /// Credentials refused, or not allowed to do this; a person must act.
    Auth,
    /// What was named does not exist.
    NotFound,
    /// It exists in another shape or state.
    Conflict,
    /// Not reached, no answer, or the cloud's own trouble.
    Transient,
    /// It will not work however often it is tried.
    Fatal,
}

/// Why a call failed. The message holds no credentials and no user data.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CloudError {
    /// What is to be done about it.
    pub kind: ErrorKind,
    /// Which call, what the cloud said, on one line.
    pub message: String,
    /// Whether the call may have had its effect although it failed: it was sent, and no usable answer came back.
    pub may_have_acted: bool,
    /// What lies below.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl CloudError {
    /// A failure that had no effect.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), may_have_acted: false, source: None }
    }
}

/// What a stranger said, on one line and at most `most` characters long.
#[must_use]
pub fn one_line(text: &str, most: usize) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(most).collect();
    if text.chars().nth(most).is_some() { format!("{line}…") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_single_and_short() {
        assert_eq!(one_line("a\nb\x1b[0m", 10), "a b [0m");
        assert_eq!(one_line(&"ä".repeat(9), 4), "ääää…");
        assert_eq!(one_line("äbcd", 4), "äbcd");
    }
}
