//! One taxonomy of failures: what Azure says, sorted by what is to be done about it.

use std::time::Duration;

use coalition_cloud::{CloudError, ErrorKind, one_line};
use serde_json::Value;

use crate::action::Action;

/// Longest message of Azure kept, in characters.
const MAX_MESSAGE: usize = 400;
/// Longest code kept.
const MAX_CODE: usize = 80;
/// How deep errors inside errors are looked for, and how many.
const MAX_LEVELS: usize = 6;
const MAX_ERRORS: usize = 32;

/// Codes of which the HTTP status does not tell the kind, or the wrong one.
const CODES: &[(&str, ErrorKind)] = &[
    ("AllocationFailed", ErrorKind::Capacity),
    ("AllocationTimedOut", ErrorKind::Capacity),
    ("ZonalAllocationFailed", ErrorKind::Capacity),
    ("OverconstrainedAllocationRequest", ErrorKind::Capacity),
    ("OverconstrainedZonalAllocationRequest", ErrorKind::Capacity),
    // Of this size in this zone, or for this subscription there; another zone or backend may have it.
    ("SkuNotAvailable", ErrorKind::Capacity),
    ("NotAvailableForSubscription", ErrorKind::Capacity),
    ("AvailabilityZoneNotSupported", ErrorKind::Capacity),
    ("SubnetIsFull", ErrorKind::Capacity),
    ("QuotaExceeded", ErrorKind::Quota),
    ("ResourceQuotaExceeded", ErrorKind::Quota),
    ("SubscriptionIsOverQuotaForSku", ErrorKind::Quota),
    ("PublicIPCountLimitReached", ErrorKind::Quota),
    ("IPv4BasicSkuPublicIpCountLimitReached", ErrorKind::Quota),
    ("IPv4StandardSkuPublicIpCountLimitReached", ErrorKind::Quota),
    ("NetworkInterfaceCountLimitReached", ErrorKind::Quota),
    ("ResourceCountExceedsLimitDueToTemplate", ErrorKind::Quota),
    ("TooManyRequests", ErrorKind::Throttled),
    ("SubscriptionRequestsThrottled", ErrorKind::Throttled),
    ("ResourceRequestsThrottled", ErrorKind::Throttled),
    ("TenantRequestsThrottled", ErrorKind::Throttled),
    ("ResourceCollectionRequestsThrottled", ErrorKind::Throttled),
    ("OperationsThrottled", ErrorKind::Throttled),
    ("AuthenticationFailed", ErrorKind::Auth),
    ("AuthenticationFailedMissingToken", ErrorKind::Auth),
    ("AuthenticationFailedInvalidHeader", ErrorKind::Auth),
    ("AuthorizationFailed", ErrorKind::Auth),
    ("LinkedAuthorizationFailed", ErrorKind::Auth),
    ("LinkedAccessCheckFailed", ErrorKind::Auth),
    ("InvalidAuthenticationToken", ErrorKind::Auth),
    ("InvalidAuthenticationTokenTenant", ErrorKind::Auth),
    ("InvalidAuthenticationTokenAudience", ErrorKind::Auth),
    ("ExpiredAuthenticationToken", ErrorKind::Auth),
    ("InvalidSubscriptionId", ErrorKind::Auth),
    ("RequestDisallowedByPolicy", ErrorKind::Auth),
    ("RequestDisallowedByAzure", ErrorKind::Auth),
    ("ReadOnlyDisabledSubscription", ErrorKind::Auth),
    ("DisallowedProvider", ErrorKind::Auth),
    ("MissingSubscriptionRegistration", ErrorKind::Auth),
    ("SubscriptionNotRegistered", ErrorKind::Auth),
    ("ScopeLocked", ErrorKind::Auth),
    ("MarketplacePurchaseEligibilityFailed", ErrorKind::Auth),
    // With a wrong subscription or resource group everything would look gone: a person must act.
    ("SubscriptionNotFound", ErrorKind::Auth),
    ("ResourceGroupNotFound", ErrorKind::Auth),
    ("ResourceNotFound", ErrorKind::NotFound),
    ("NotFound", ErrorKind::NotFound),
    ("ParentResourceNotFound", ErrorKind::NotFound),
    ("InvalidResourceReference", ErrorKind::NotFound),
    ("ImageNotFound", ErrorKind::NotFound),
    ("PlatformImageNotFound", ErrorKind::NotFound),
    ("GalleryImageNotFound", ErrorKind::NotFound),
    ("ArtifactNotFound", ErrorKind::NotFound),
    ("OperationNotFound", ErrorKind::NotFound),
    ("Conflict", ErrorKind::Conflict),
    ("PropertyChangeNotAllowed", ErrorKind::Conflict),
    ("PreconditionFailed", ErrorKind::Conflict),
    ("InvalidResourceLocation", ErrorKind::Conflict),
    ("AnotherOperationInProgress", ErrorKind::Conflict),
    ("ResourceGroupBeingDeleted", ErrorKind::Conflict),
    ("NicInUse", ErrorKind::Conflict),
    ("InUseDiskCannotBeDeleted", ErrorKind::Conflict),
    ("PublicIPAddressInUse", ErrorKind::Conflict),
    ("PublicIPAddressCannotBeDeleted", ErrorKind::Conflict),
    ("AttachDiskWhileBeingDetached", ErrorKind::Conflict),
    ("InternalError", ErrorKind::Transient),
    ("InternalServerError", ErrorKind::Transient),
    ("InternalExecutionError", ErrorKind::Transient),
    ("InternalOperationError", ErrorKind::Transient),
    ("NetworkingInternalOperationError", ErrorKind::Transient),
    ("RetryableError", ErrorKind::Transient),
    ("RetryableErrorDueToAnotherOperation", ErrorKind::Transient),
    ("OperationPreempted", ErrorKind::Transient),
    ("ServerBusy", ErrorKind::Transient),
    ("ServerTimeout", ErrorKind::Transient),
    ("ServiceUnavailable", ErrorKind::Transient),
    ("GatewayTimeout", ErrorKind::Transient),
    ("RequestTimeout", ErrorKind::Transient),
    ("VMStartTimedOut", ErrorKind::Transient),
    ("OSProvisioningTimedOut", ErrorKind::Transient),
    ("OSProvisioningInternalError", ErrorKind::Transient),
];

/// Codes that only say that there is an error inside.
const WRAPPERS: &[&str] = &[
    "InvalidTemplateDeployment",
    "DeploymentFailed",
    "ResourceDeploymentFailure",
    "ResourceOperationFailure",
    "ValidationForResourceFailed",
    "MultipleErrorsOccurred",
];

/// The kind of a code and its message, with the HTTP status for codes nobody has heard of. A status of 404 alone does not mean
/// that a host is gone: something between here and Azure may have said it.
#[must_use]
pub fn kind_of(code: &str, message: &str, status: u16) -> ErrorKind {
    if code == "OperationNotAllowed" {
        // Quotas of virtual CPUs, and what a thing's state forbids, have one code.
        let words = message.to_ascii_lowercase();
        return if words.contains("quota") { ErrorKind::Quota } else { ErrorKind::Conflict };
    }
    if let Some((_, kind)) = CODES.iter().find(|(known, _)| known.eq_ignore_ascii_case(code)) {
        return *kind;
    }
    match status {
        401 | 403 => ErrorKind::Auth,
        409 | 412 => ErrorKind::Conflict,
        429 => ErrorKind::Throttled,
        408 | 500..=599 => ErrorKind::Transient,
        _ => ErrorKind::Fatal,
    }
}

/// Why a call failed. Holds no credentials and no user data.
#[derive(Debug, thiserror::Error)]
pub enum AzureError {
    /// Azure answered and said no.
    #[error("{action}: Azure says {code} ({status}): {message}")]
    Refused {
        /// The call.
        action: Action,
        /// What is to be done about it.
        kind: ErrorKind,
        /// Azure's code.
        code: String,
        /// Azure's words, cut short.
        message: String,
        /// HTTP status.
        status: u16,
        /// How long to wait before asking again, when Azure says so.
        retry_after: Option<Duration>,
    },
    /// Azure took the request, and it failed on the way.
    #[error("{action}: it was begun and ended with {code}: {message}")]
    Ended {
        /// The call that began it.
        action: Action,
        /// What is to be done about it.
        kind: ErrorKind,
        /// Azure's code.
        code: String,
        /// Azure's words, cut short.
        message: String,
    },
    /// Not asked: what was to be asked for is impossible.
    #[error("{action}: {problem}, so nothing was asked")]
    Impossible {
        /// The call.
        action: Action,
        /// What is wrong.
        problem: String,
    },
    /// Nothing was sent.
    #[error("{action}: {host} cannot be reached, so nothing was asked")]
    Unreachable {
        /// The call.
        action: Action,
        /// Where to.
        host: String,
        /// The cause.
        #[source]
        source: Option<Box<reqwest::Error>>,
    },
    /// It was sent, and no whole answer came back: it may have been done.
    #[error("{action}: {host} was asked and did not answer, so it may have been done")]
    Unanswered {
        /// The call.
        action: Action,
        /// Where to.
        host: String,
        /// The cause.
        #[source]
        source: Option<Box<reqwest::Error>>,
    },
    /// An answer that says nothing usable: it may have been done.
    #[error("{action}: the answer cannot be read: {problem}")]
    Garbled {
        /// The call.
        action: Action,
        /// What is wrong.
        problem: String,
    },
    /// No token to ask with.
    #[error("{action}: no token to ask with: {problem}")]
    NoToken {
        /// The call.
        action: Action,
        /// What is to be done about it.
        kind: ErrorKind,
        /// What is wrong.
        problem: String,
    },
}

impl AzureError {
    /// What is to be done about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { kind, .. } | Self::Ended { kind, .. } | Self::NoToken { kind, .. } => *kind,
            Self::Unreachable { .. } | Self::Unanswered { .. } | Self::Garbled { .. } => ErrorKind::Transient,
            Self::Impossible { .. } => ErrorKind::Fatal,
        }
    }

    /// Azure's code, when it gave one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } | Self::Ended { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Whether the call may have had its effect although it failed.
    #[must_use]
    pub const fn may_have_acted(&self) -> bool {
        match self {
            Self::Unanswered { .. } | Self::Garbled { .. } | Self::Ended { .. } => true,
            Self::Refused { kind: ErrorKind::Transient, status, .. } => *status >= 500,
            Self::Refused { .. } | Self::Unreachable { .. } | Self::NoToken { .. } | Self::Impossible { .. } => false,
        }
    }

    /// How long Azure asks to wait.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the token was not taken: one made before may still be in use.
    pub(crate) fn is_stale_token(&self) -> bool {
        matches!(self, Self::Refused { status: 401, .. })
    }
}

impl From<AzureError> for CloudError {
    fn from(error: AzureError) -> Self {
        let (kind, may_have_acted, message) = (error.kind(), error.may_have_acted(), error.to_string());
        let source = match error {
            AzureError::Unreachable { source, .. } | AzureError::Unanswered { source, .. } => {
                source.map(|source| source as Box<dyn std::error::Error + Send + Sync>)
            }
            _ => None,
        };
        Self { kind, message, may_have_acted, source }
    }
}

/// A code and its words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) code: String,
    pub(crate) message: String,
}

/// An answer with an error status.
pub(crate) fn read_refusal(action: Action, status: u16, body: &[u8], retry_after: Option<Duration>) -> AzureError {
    let said: Option<Value> = serde_json::from_slice(body).ok();
    let Said { code, message } = said.as_ref().map(read_said).unwrap_or_default();
    let code = if code.is_empty() { "(no code)".to_owned() } else { code };
    AzureError::Refused { action, kind: kind_of(&code, &message, status), code, message, status, retry_after }
}

/// What an error in any of Azure's forms says: `{"error": {…}}`, or its inside alone; of errors inside errors the first that
/// means something.
pub(crate) fn read_said(value: &Value) -> Said {
    let top = value.get("error").filter(|error| error.is_object()).unwrap_or(value);
    let (mut first, mut left) = (None, MAX_ERRORS);
    let inner = innermost(top, MAX_LEVELS, &mut left, &mut first);
    inner.or(first).unwrap_or_default()
}

/// Depth first: the first error that is no wrapper. `first` becomes the outermost that has a code.
fn innermost(error: &Value, levels: usize, left: &mut usize, first: &mut Option<Said>) -> Option<Said> {
    if levels == 0 || *left == 0 {
        return None;
    }
    *left -= 1;
    let text = |name: &str, most| one_line(error.get(name).and_then(Value::as_str).unwrap_or_default(), most);
    let said = Said { code: text("code", MAX_CODE), message: text("message", MAX_MESSAGE) };
    if first.is_none() && !said.code.is_empty() {
        *first = Some(said.clone());
    }
    let inside = error.get("details").and_then(Value::as_array).into_iter().flatten();
    let mut inside = inside.filter_map(|inner| innermost(inner, levels - 1, left, first));
    let is_wrapper = said.code.is_empty() || WRAPPERS.contains(&said.code.as_str());
    if is_wrapper { inside.next() } else { Some(said) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_kind_and_the_table_no_code_twice() {
        for (i, (code, kind)) in CODES.iter().enumerate() {
            assert_eq!(kind_of(code, "", 400), *kind, "{code}");
            assert_eq!(kind_of(&code.to_lowercase(), "", 500), *kind, "{code}");
            assert!(CODES[..i].iter().all(|(other, _)| !other.eq_ignore_ascii_case(code)), "{code} twice");
        }
        let quota =
            "Operation could not be completed as it results in exceeding approved standardDCASv5Family Cores quota.";
        assert_eq!(kind_of("OperationNotAllowed", quota, 409), ErrorKind::Quota);
        assert_eq!(kind_of("OperationNotAllowed", "the VM is marked for deletion", 409), ErrorKind::Conflict);
        let by_status = [
            (401, ErrorKind::Auth),
            (403, ErrorKind::Auth),
            (404, ErrorKind::Fatal),
            (408, ErrorKind::Transient),
            (409, ErrorKind::Conflict),
            (412, ErrorKind::Conflict),
            (429, ErrorKind::Throttled),
            (400, ErrorKind::Fatal),
            (302, ErrorKind::Fatal),
            (503, ErrorKind::Transient),
        ];
        for (status, kind) in by_status {
            assert_eq!(kind_of("SomethingNew", "", status), kind, "{status}");
        }
    }

    #[test]
    fn errors_inside_errors_are_found() {
        let read = |status, body: &str| {
            let error = read_refusal(Action::PutMachine, status, body.as_bytes(), None);
            (error.kind(), error.code().unwrap().to_owned(), error.may_have_acted())
        };
        let plain = r#"{"error":{"code":"SkuNotAvailable","message":"a\nb"}}"#;
        assert_eq!(read(409, plain), (ErrorKind::Capacity, "SkuNotAvailable".into(), false));
        assert_eq!(
            read_refusal(Action::PutMachine, 409, plain.as_bytes(), None).to_string(),
            "making a virtual machine: Azure says SkuNotAvailable (409): a b"
        );
        let wrapped = r#"{"error":{"code":"InvalidTemplateDeployment","message":"see inside","details":[
            {"code":"ValidationForResourceFailed","details":[{"code":"QuotaExceeded","message":"four"}]},{"code":"Other"}]}}"#;
        assert_eq!(read(400, wrapped), (ErrorKind::Quota, "QuotaExceeded".into(), false));
        // What means something by itself is not explained away by its details.
        let own = r#"{"error":{"code":"AllocationFailed","details":[{"code":"InternalError"}]}}"#;
        assert_eq!(read(409, own).1, "AllocationFailed");
        let empty = r#"{"error":{"code":"InvalidTemplateDeployment","details":[]}}"#;
        assert_eq!(read(400, empty), (ErrorKind::Fatal, "InvalidTemplateDeployment".into(), false));
        assert_eq!(read(429, r#"{"code":"TooManyRequests","message":"m"}"#).0, ErrorKind::Throttled);
        assert_eq!(read(502, "<html>bad gateway"), (ErrorKind::Transient, "(no code)".into(), true));
        assert_eq!(read(404, "<html>"), (ErrorKind::Fatal, "(no code)".into(), false));
        let deep = format!("{}{}", r#"{"details":["#.repeat(60), "]}".repeat(60));
        assert_eq!(read(400, &deep).1, "(no code)");
    }
}
