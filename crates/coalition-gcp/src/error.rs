//! One taxonomy of failures: what Google says, sorted by what is to be done about it.

use std::sync::Arc;
use std::time::Duration;

use coalition_cloud::{CloudError, ErrorKind, one_line};
use serde_json::Value;

use crate::action::Action;
use crate::credentials::CredentialsError;

/// Longest message of Google kept, in characters.
const MAX_MESSAGE: usize = 400;
/// Longest code kept.
const MAX_CODE: usize = 80;

/// Codes of operations (capitals), reasons of refusals (camel case), and errors of the token endpoint.
const CODES: &[(&str, ErrorKind)] = &[
    ("ZONE_RESOURCE_POOL_EXHAUSTED", ErrorKind::Capacity),
    ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", ErrorKind::Capacity),
    ("RESOURCE_POOL_EXHAUSTED", ErrorKind::Capacity),
    ("STOCKOUT", ErrorKind::Capacity),
    ("IP_SPACE_EXHAUSTED", ErrorKind::Capacity),
    ("IP_SPACE_EXHAUSTED_WITH_DETAILS", ErrorKind::Capacity),
    ("QUOTA_EXCEEDED", ErrorKind::Quota),
    ("quotaExceeded", ErrorKind::Quota),
    ("limitExceeded", ErrorKind::Quota),
    ("LIMIT_EXCEEDED", ErrorKind::Quota),
    ("dailyLimitExceeded", ErrorKind::Quota),
    ("rateLimitExceeded", ErrorKind::Throttled),
    ("userRateLimitExceeded", ErrorKind::Throttled),
    ("concurrentLimitExceeded", ErrorKind::Throttled),
    ("RATE_LIMIT_EXCEEDED", ErrorKind::Throttled),
    ("CONCURRENT_OPERATIONS_QUOTA_EXCEEDED", ErrorKind::Throttled),
    ("RESOURCE_OPERATION_RATE_EXCEEDED", ErrorKind::Throttled),
    ("resourceOperationRateExceeded", ErrorKind::Throttled),
    ("RESOURCE_EXHAUSTED", ErrorKind::Throttled),
    ("authError", ErrorKind::Auth),
    ("expired", ErrorKind::Auth),
    ("forbidden", ErrorKind::Auth),
    ("insufficientPermissions", ErrorKind::Auth),
    ("PERMISSION_DENIED", ErrorKind::Auth),
    ("PERMISSIONS_ERROR", ErrorKind::Auth),
    ("UNAUTHENTICATED", ErrorKind::Auth),
    ("IAM_PERMISSION_DENIED", ErrorKind::Auth),
    ("ACCESS_TOKEN_EXPIRED", ErrorKind::Auth),
    ("ACCESS_TOKEN_SCOPE_INSUFFICIENT", ErrorKind::Auth),
    ("ACCESS_TOKEN_TYPE_UNSUPPORTED", ErrorKind::Auth),
    ("CREDENTIALS_MISSING", ErrorKind::Auth),
    // The API is switched off, or nobody pays for the project.
    ("accessNotConfigured", ErrorKind::Auth),
    ("SERVICE_DISABLED", ErrorKind::Auth),
    ("BILLING_DISABLED", ErrorKind::Auth),
    ("CONSUMER_SUSPENDED", ErrorKind::Auth),
    ("CONSUMER_INVALID", ErrorKind::Auth),
    ("accountDisabled", ErrorKind::Auth),
    ("dailyLimitExceededUnreg", ErrorKind::Auth),
    // The token endpoint: a key that was deleted, or a clock that is wrong.
    ("invalid_grant", ErrorKind::Auth),
    ("invalid_client", ErrorKind::Auth),
    ("invalid_scope", ErrorKind::Auth),
    ("unauthorized_client", ErrorKind::Auth),
    ("access_denied", ErrorKind::Auth),
    ("notFound", ErrorKind::NotFound),
    ("NOT_FOUND", ErrorKind::NotFound),
    ("RESOURCE_NOT_FOUND", ErrorKind::NotFound),
    ("alreadyExists", ErrorKind::Conflict),
    ("ALREADY_EXISTS", ErrorKind::Conflict),
    ("RESOURCE_ALREADY_EXISTS", ErrorKind::Conflict),
    ("duplicate", ErrorKind::Conflict),
    ("resourceInUse", ErrorKind::Conflict),
    ("RESOURCE_IN_USE", ErrorKind::Conflict),
    ("resourceInUseByAnotherResource", ErrorKind::Conflict),
    ("RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", ErrorKind::Conflict),
    ("resourceNotReady", ErrorKind::Conflict),
    ("RESOURCE_NOT_READY", ErrorKind::Conflict),
    ("backendError", ErrorKind::Transient),
    ("backendNotConnected", ErrorKind::Transient),
    ("internalError", ErrorKind::Transient),
    ("INTERNAL_ERROR", ErrorKind::Transient),
    ("INTERNAL", ErrorKind::Transient),
    ("UNAVAILABLE", ErrorKind::Transient),
    ("DEADLINE_EXCEEDED", ErrorKind::Transient),
    ("ABORTED", ErrorKind::Transient),
    ("TIMEOUT", ErrorKind::Transient),
    ("UNREACHABLE", ErrorKind::Transient),
    ("internal_failure", ErrorKind::Transient),
    ("temporarily_unavailable", ErrorKind::Transient),
    // 403 with its status, and no permission would help.
    ("invalid", ErrorKind::Fatal),
    ("badRequest", ErrorKind::Fatal),
    ("INVALID_ARGUMENT", ErrorKind::Fatal),
    ("UNSUPPORTED_OPERATION", ErrorKind::Fatal),
    ("CONDITION_NOT_MET", ErrorKind::Fatal),
    ("conditionNotMet", ErrorKind::Fatal),
];

/// The kind of a code, with the HTTP status for codes nobody has heard of.
#[must_use]
pub fn kind_of(code: &str, status: u16) -> ErrorKind {
    if let Some((_, kind)) = CODES.iter().find(|(known, _)| *known == code) {
        return *kind;
    }
    match status {
        401 | 403 => ErrorKind::Auth,
        404 => ErrorKind::NotFound,
        409 => ErrorKind::Conflict,
        408 | 500..=599 => ErrorKind::Transient,
        429 => ErrorKind::Throttled,
        _ => ErrorKind::Fatal,
    }
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GcpError {
    /// Google answered and said no.
    #[error("{action}: Google says {code} ({status}): {message}")]
    Refused {
        /// The call.
        action: Action,
        /// What is to be done about it.
        kind: ErrorKind,
        /// Google's code or reason.
        code: String,
        /// Google's words, cut short.
        message: String,
        /// HTTP status.
        status: u16,
        /// When to ask again, as Google says.
        retry_after: Option<Duration>,
    },
    /// Google took the request, and its operation ended without what was asked.
    #[error("{action}: the operation failed with {code}: {message}")]
    Failed {
        /// The call.
        action: Action,
        /// What is to be done about it.
        kind: ErrorKind,
        /// Google's code.
        code: String,
        /// Google's words, cut short.
        message: String,
    },
    /// Google took the request, and its operation did not end in time.
    #[error("{action}: Google took it, but does not confirm it within {waited_s} s")]
    Unconfirmed {
        /// The call.
        action: Action,
        /// How long it was waited for.
        waited_s: u64,
    },
    /// It was asked more than once, and what it is about is not there any more: an earlier try may have done it.
    #[error("{action}: it is not there any more; an earlier try may have done it")]
    Gone {
        /// The call.
        action: Action,
    },
    /// Nothing was sent.
    #[error("{action}: {endpoint} cannot be reached, so nothing was asked")]
    Unreachable {
        /// The call.
        action: Action,
        /// Where to.
        endpoint: String,
        /// The cause.
        #[source]
        source: Arc<reqwest::Error>,
    },
    /// It was sent, and no whole answer came back: it may have been done.
    #[error("{action}: {endpoint} was asked and did not answer, so it may have been done")]
    Unanswered {
        /// The call.
        action: Action,
        /// Where to.
        endpoint: String,
        /// The cause.
        #[source]
        source: Arc<reqwest::Error>,
    },
    /// An answer that says nothing usable: it may have been done.
    #[error("{action}: the answer cannot be read: {problem}")]
    Garbled {
        /// The call.
        action: Action,
        /// What is wrong.
        problem: String,
    },
    /// What was to be asked cannot be: nothing was sent.
    #[error("{action}: nothing was asked: {problem}")]
    Unaskable {
        /// The call.
        action: Action,
        /// What is wrong.
        problem: String,
    },
    /// No credentials.
    #[error("{action}: nothing was asked")]
    Credentials {
        /// The call.
        action: Action,
        /// The cause.
        #[source]
        source: CredentialsError,
    },
    /// No token for the credentials.
    #[error("{action}: nothing was asked")]
    Token {
        /// The call.
        action: Action,
        /// The cause.
        #[source]
        source: Box<GcpError>,
    },
}

impl GcpError {
    /// What is to be done about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { kind, .. } | Self::Failed { kind, .. } => *kind,
            Self::Unreachable { .. } | Self::Unanswered { .. } | Self::Garbled { .. } | Self::Unconfirmed { .. } => {
                ErrorKind::Transient
            }
            Self::Gone { .. } => ErrorKind::NotFound,
            Self::Credentials { .. } => ErrorKind::Auth,
            Self::Token { source, .. } => source.kind(),
            Self::Unaskable { .. } => ErrorKind::Fatal,
        }
    }

    /// Google's code, when it gave one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } | Self::Failed { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Whether the call may have had its effect although it failed.
    #[must_use]
    pub fn may_have_acted(&self) -> bool {
        match self {
            Self::Unanswered { .. } | Self::Garbled { .. } | Self::Unconfirmed { .. } => true,
            Self::Refused { kind: ErrorKind::Transient, status, .. } => *status >= 500,
            _ => false,
        }
    }

    pub(crate) const fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Through Google's client, which knows errors of its own only.
    pub(crate) fn wrapped(self) -> google_cloud_gax::error::Error {
        google_cloud_gax::error::Error::exhausted(self)
    }

    /// What came back through Google's client.
    pub(crate) fn unwrapped(action: Action, error: &google_cloud_gax::error::Error) -> Self {
        let ours = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Self>());
        ours.cloned().unwrap_or_else(|| Self::Unaskable { action, problem: one_line(&error.to_string(), MAX_MESSAGE) })
    }
}

impl From<GcpError> for CloudError {
    fn from(error: GcpError) -> Self {
        let (kind, may_have_acted) = (error.kind(), error.may_have_acted());
        let message = match &error {
            GcpError::Token { source, .. } => format!("{error}: {source}"),
            GcpError::Credentials { source, .. } => format!("{error}: {source}"),
            other => other.to_string(),
        };
        let source: Option<Box<dyn std::error::Error + Send + Sync>> = match error {
            GcpError::Unreachable { source, .. } | GcpError::Unanswered { source, .. } => Some(Box::new(source)),
            _ => None,
        };
        Self { kind, message, may_have_acted, source }
    }
}

/// An answer with an error status.
pub(crate) fn read_refusal(action: Action, status: u16, retry_after: Option<Duration>, body: &[u8]) -> GcpError {
    let said = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let (code, message) = if action == Action::GetToken { said_by_tokens(&said) } else { said_by_api(&said) };
    let code = if code.is_empty() { "(no code)".to_owned() } else { one_line(&code, MAX_CODE) };
    let message = one_line(&message, MAX_MESSAGE);
    GcpError::Refused { action, kind: kind_of(&code, status), code, message, status, retry_after }
}

/// `{"error": {"code", "message", "status", "errors": [{"reason"}], "details": [{"reason"}]}}`. The most exact known
/// name counts.
fn said_by_api(said: &Value) -> (String, String) {
    let Some(error) = said.get("error") else { return Default::default() };
    let reasons = |list: &str| {
        let items = error.get(list).and_then(Value::as_array);
        items.into_iter().flatten().take(8).filter_map(|item| item.get("reason")?.as_str()).collect::<Vec<_>>()
    };
    let mut names = reasons("errors");
    names.extend(reasons("details"));
    names.extend(error.get("status").and_then(Value::as_str));
    let is_known = |name: &&&str| CODES.iter().any(|(known, _)| known == *name);
    let code = names.iter().find(is_known).or_else(|| names.first()).copied().unwrap_or_default();
    let message = error.get("message").and_then(Value::as_str).unwrap_or_default();
    (code.to_owned(), message.to_owned())
}

/// `{"error", "error_description"}`, or the API's form.
fn said_by_tokens(said: &Value) -> (String, String) {
    let text = |name: &str| said.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
    match text("error") {
        Some(code) => (code, text("error_description").unwrap_or_default()),
        None => said_by_api(said),
    }
}

/// What an operation ended with, from the code and words of its first error, or from its HTTP status.
pub(crate) fn failed(action: Action, code: &str, message: &str, status: u16) -> GcpError {
    let code = if code.is_empty() { format!("HTTP {status}") } else { one_line(code, MAX_CODE) };
    GcpError::Failed { action, kind: kind_of(&code, status), code, message: one_line(message, MAX_MESSAGE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_kind_and_the_table_no_code_twice() {
        for (i, (code, kind)) in CODES.iter().enumerate() {
            assert_eq!(kind_of(code, 500), *kind, "{code}");
            assert_eq!(kind_of(code, 418), *kind, "{code}");
            assert!(CODES[..i].iter().all(|(other, _)| other != code), "{code} twice");
        }
        let by_status = [
            (400, ErrorKind::Fatal),
            (401, ErrorKind::Auth),
            (403, ErrorKind::Auth),
            (404, ErrorKind::NotFound),
            (409, ErrorKind::Conflict),
            (412, ErrorKind::Fatal),
            (429, ErrorKind::Throttled),
            (503, ErrorKind::Transient),
        ];
        for (status, kind) in by_status {
            assert_eq!(kind_of("somethingNew", status), kind, "{status}");
        }
    }

    #[test]
    fn the_forms_of_errors() {
        let read = |action, status, body: &str| {
            let error = read_refusal(action, status, None, body.as_bytes());
            (error.kind(), error.code().unwrap().to_owned(), error.to_string())
        };
        let classic = r#"{"error":{"code":403,"message":"a\nb","errors":[{"domain":"usageLimits","reason":"rateLimitExceeded"}]}}"#;
        let one = read(Action::InsertInstance, 403, classic);
        assert_eq!((one.0, one.1.as_str()), (ErrorKind::Throttled, "rateLimitExceeded"));
        assert_eq!(one.2, "instances.insert: Google says rateLimitExceeded (403): a b");
        let details = r#"{"error":{"code":403,"status":"PERMISSION_DENIED","message":"m",
            "errors":[{"reason":"oddity"}],"details":[{"reason":"SERVICE_DISABLED"}]}}"#;
        assert_eq!(read(Action::GetRegion, 403, details).1, "SERVICE_DISABLED");
        let grant = r#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#;
        assert_eq!(read(Action::GetToken, 400, grant).0, ErrorKind::Auth);
        // "required" is a missing login or a missing field, by its status.
        let required = r#"{"error":{"message":"Login Required","errors":[{"reason":"required"}]}}"#;
        assert_eq!(read(Action::GetRegion, 401, required).0, ErrorKind::Auth);
        assert_eq!(read(Action::InsertInstance, 400, required).0, ErrorKind::Fatal);
        for nonsense in ["<html>bad gateway", "{\"error\":7}", "[]", "", "{\"error\":{\"errors\":[7,{\"reason\":[]}]}}"]
        {
            let error = read_refusal(Action::InsertInstance, 502, None, nonsense.as_bytes());
            assert_eq!((error.kind(), error.may_have_acted()), (ErrorKind::Transient, true), "{nonsense}");
        }
    }

    #[test]
    fn what_may_have_been_done() {
        let lost = GcpError::Garbled { action: Action::InsertInstance, problem: "p".into() };
        let error = CloudError::from(lost.clone());
        assert!(error.may_have_acted && error.kind == ErrorKind::Transient);
        // Through Google's client and back, nothing of it is lost.
        let back = GcpError::unwrapped(Action::GetRegion, &lost.wrapped());
        assert!(matches!(back, GcpError::Garbled { action: Action::InsertInstance, .. }), "{back}");
        let over = failed(Action::InsertInstance, "ZONE_RESOURCE_POOL_EXHAUSTED", "m", 503);
        assert!(!over.may_have_acted() && over.kind() == ErrorKind::Capacity);
        assert_eq!(failed(Action::InsertInstance, "", "m", 409).kind(), ErrorKind::Conflict);
    }
}
