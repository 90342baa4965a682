//! One taxonomy of failures: what AWS says, sorted by what is to be done about it.

use coalition_cloud::{ErrorKind, one_line};

use crate::action::{Action, Service};
use crate::credentials::CredentialsError;
use crate::xml;

/// Longest message of AWS kept, in characters.
const MAX_MESSAGE: usize = 400;
/// Longest code kept.
const MAX_CODE: usize = 80;

/// Codes of which the name does not tell by itself.
const CODES: &[(&str, ErrorKind)] = &[
    ("InsufficientInstanceCapacity", ErrorKind::Capacity),
    ("InsufficientHostCapacity", ErrorKind::Capacity),
    ("InsufficientReservedInstanceCapacity", ErrorKind::Capacity),
    ("InsufficientCapacity", ErrorKind::Capacity),
    ("InsufficientCapacityOnHost", ErrorKind::Capacity),
    ("InsufficientFreeAddressesInSubnet", ErrorKind::Capacity),
    ("InsufficientAddressCapacity", ErrorKind::Capacity),
    ("InsufficientVolumeCapacity", ErrorKind::Capacity),
    // This type is not offered in this zone; another zone or backend may have it.
    ("Unsupported", ErrorKind::Capacity),
    ("UnsupportedOperation", ErrorKind::Fatal),
    ("InstanceLimitExceeded", ErrorKind::Quota),
    ("VcpuLimitExceeded", ErrorKind::Quota),
    ("VolumeLimitExceeded", ErrorKind::Quota),
    ("VolumeIOPSLimit", ErrorKind::Quota),
    ("MaxIOPSLimitExceeded", ErrorKind::Quota),
    ("NetworkInterfaceLimitExceeded", ErrorKind::Quota),
    ("AddressLimitExceeded", ErrorKind::Quota),
    ("ResourceCountExceeded", ErrorKind::Quota),
    ("ResourceLimitExceeded", ErrorKind::Quota),
    ("RequestResourceCountExceeded", ErrorKind::Quota),
    ("RequestLimitExceeded", ErrorKind::Throttled),
    ("Throttling", ErrorKind::Throttled),
    ("ThrottlingException", ErrorKind::Throttled),
    ("ThrottledException", ErrorKind::Throttled),
    ("RequestThrottled", ErrorKind::Throttled),
    ("RequestThrottledException", ErrorKind::Throttled),
    ("EC2ThrottledException", ErrorKind::Throttled),
    ("TooManyRequestsException", ErrorKind::Throttled),
    ("BandwidthLimitExceeded", ErrorKind::Throttled),
    ("PriorRequestNotComplete", ErrorKind::Throttled),
    ("SlowDown", ErrorKind::Throttled),
    ("AuthFailure", ErrorKind::Auth),
    ("UnauthorizedOperation", ErrorKind::Auth),
    ("AccessDenied", ErrorKind::Auth),
    ("AccessDeniedException", ErrorKind::Auth),
    ("NotAuthorized", ErrorKind::Auth),
    ("InvalidClientTokenId", ErrorKind::Auth),
    ("SignatureDoesNotMatch", ErrorKind::Auth),
    ("InvalidSignatureException", ErrorKind::Auth),
    ("IncompleteSignature", ErrorKind::Auth),
    ("UnrecognizedClientException", ErrorKind::Auth),
    ("MissingAuthenticationToken", ErrorKind::Auth),
    ("MissingAuthenticationTokenException", ErrorKind::Auth),
    ("ExpiredToken", ErrorKind::Auth),
    ("ExpiredTokenException", ErrorKind::Auth),
    // The signature's time: this machine's clock is wrong.
    ("RequestExpired", ErrorKind::Auth),
    ("OptInRequired", ErrorKind::Auth),
    ("PendingVerification", ErrorKind::Auth),
    ("PendingAccountVerification", ErrorKind::Auth),
    ("Blocked", ErrorKind::Auth),
    ("NoSuchResourceException", ErrorKind::NotFound),
    ("IdempotentParameterMismatch", ErrorKind::Conflict),
    ("IdempotentInstanceTerminated", ErrorKind::Conflict),
    ("IncorrectInstanceState", ErrorKind::Conflict),
    ("IncorrectState", ErrorKind::Conflict),
    ("InvalidState", ErrorKind::Conflict),
    ("VolumeInUse", ErrorKind::Conflict),
    ("DependencyViolation", ErrorKind::Conflict),
    ("InternalError", ErrorKind::Transient),
    ("InternalFailure", ErrorKind::Transient),
    ("InternalServerError", ErrorKind::Transient),
    ("ServerInternal", ErrorKind::Transient),
    ("ServiceException", ErrorKind::Transient),
    ("ServiceUnavailable", ErrorKind::Transient),
    ("Unavailable", ErrorKind::Transient),
    ("RequestTimeout", ErrorKind::Transient),
    ("RequestTimeoutException", ErrorKind::Transient),
];

/// The kind of a code, with the HTTP status for codes nobody has heard of. Reasons of instances that ended on their own
/// (`Server.InsufficientInstanceCapacity`) are read as well.
#[must_use]
pub fn kind_of(code: &str, status: u16) -> ErrorKind {
    let bare = code.strip_prefix("Server.").or_else(|| code.strip_prefix("Client.")).unwrap_or(code);
    if let Some((_, kind)) = CODES.iter().find(|(known, _)| *known == bare) {
        return *kind;
    }
    match bare.rsplit_once('.') {
        Some((_, "NotFound")) => ErrorKind::NotFound,
        Some((_, "Duplicate" | "InUse")) => ErrorKind::Conflict,
        Some((_, "Malformed" | "Unavailable")) => ErrorKind::Fatal,
        _ => match status {
            401 | 403 => ErrorKind::Auth,
            429 => ErrorKind::Throttled,
            500..=599 => ErrorKind::Transient,
            _ => ErrorKind::Fatal,
        },
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum AwsError {
    /// AWS answered and said no.
    #[error("{action}: AWS says {code} ({status}): {message}")]
    Refused {
        /// The call.
        action: Action,
        /// What is to be done about it.
        kind: ErrorKind,
        /// AWS's code.
        code: String,
        /// AWS's words, cut short.
        message: String,
        /// HTTP status.
        status: u16,
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
        source: Box<reqwest::Error>,
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
        source: Box<reqwest::Error>,
    },
    /// An answer that says nothing usable: it may have been done.
    #[error("{action}: the answer cannot be read: {problem}")]
    Garbled {
        /// The call.
        action: Action,
        /// What is wrong.
        problem: String,
    },
    /// No credentials, or the request could not be signed with them.
    #[error("{action}: nothing was asked")]
    Credentials {
        /// The call.
        action: Action,
        /// The cause.
        #[source]
        source: CredentialsError,
    },
}

impl AwsError {
    /// What is to be done about it.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Unreachable { .. } | Self::Unanswered { .. } | Self::Garbled { .. } => ErrorKind::Transient,
            Self::Credentials { .. } => ErrorKind::Auth,
        }
    }

    /// AWS's code, when it gave one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            _ => None,
        }
    }

    /// Whether the call may have had its effect although it failed.
    #[must_use]
    pub const fn may_have_acted(&self) -> bool {
        match self {
            Self::Unanswered { .. } | Self::Garbled { .. } => true,
            Self::Refused { kind: ErrorKind::Transient, status, .. } => *status >= 500,
            Self::Refused { .. } | Self::Unreachable { .. } | Self::Credentials { .. } => false,
        }
    }
}

/// An answer with an error status, in any of the three forms AWS has.
pub(crate) fn read_refusal(action: Action, status: u16, body: &[u8]) -> AwsError {
    let said = match action.service() {
        Service::ServiceQuotas | Service::CloudWatch => said_in_json(body),
        Service::Ec2 | Service::Sts => said_in_xml(body),
    };
    let (code, message) = said.unwrap_or_default();
    let code = one_line(if code.is_empty() { "(no code)" } else { &code }, MAX_CODE);
    AwsError::Refused { action, kind: kind_of(&code, status), code, message: one_line(&message, MAX_MESSAGE), status }
}

fn said_in_xml(body: &[u8]) -> Option<(String, String)> {
    let root = xml::parse(body).ok()?;
    // EC2: Response/Errors/Error; STS: ErrorResponse/Error.
    let error = root.at(&["Errors", "Error"]).or_else(|| root.child("Error"))?;
    let text = |name: &str| error.text_at(&[name]).unwrap_or_default().to_owned();
    Some((text("Code"), text("Message")))
}

fn said_in_json(body: &[u8]) -> Option<(String, String)> {
    let said: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = |names: [&str; 2]| names.iter().find_map(|name| said.get(name)?.as_str()).unwrap_or_default().to_owned();
    let code = text(["__type", "code"]);
    let bare = code.rsplit('#').next().unwrap_or_default().to_owned();
    Some((bare, text(["message", "Message"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_kind_and_the_table_no_code_twice() {
        for (i, (code, kind)) in CODES.iter().enumerate() {
            assert_eq!(kind_of(code, 500), *kind, "{code}");
            assert_eq!(kind_of(&format!("Server.{code}"), 400), *kind, "{code}");
            assert!(CODES[..i].iter().all(|(other, _)| other != code), "{code} twice");
        }
        let by_name = [
            ("InvalidInstanceID.NotFound", ErrorKind::NotFound),
            ("InvalidAMIID.NotFound", ErrorKind::NotFound),
            ("InvalidKeyPair.Duplicate", ErrorKind::Conflict),
            ("InvalidInstanceID.Malformed", ErrorKind::Fatal),
            ("InvalidParameterValue", ErrorKind::Fatal),
            ("SomethingNew", ErrorKind::Fatal),
        ];
        for (code, kind) in by_name {
            assert_eq!(kind_of(code, 400), kind, "{code}");
        }
        for (status, kind) in [(503, ErrorKind::Transient), (403, ErrorKind::Auth), (429, ErrorKind::Throttled)] {
            assert_eq!(kind_of("SomethingNew", status), kind);
        }
    }

    #[test]
    fn the_three_forms_of_errors() {
        let ec2 = b"<Response><Errors><Error><Code>VcpuLimitExceeded</Code><Message>a\nb</Message></Error></Errors></Response>";
        let sts = b"<ErrorResponse xmlns='x'><Error><Type>Sender</Type><Code>ExpiredToken</Code><Message>m</Message></Error></ErrorResponse>";
        let json = br#"{"__type":"com.amazonaws#NoSuchResourceException","Message":"none"}"#;
        let read = |action, status, body: &[u8]| {
            let error = read_refusal(action, status, body);
            (error.kind(), error.code().unwrap().to_owned(), error.to_string())
        };
        let one = read(Action::RunInstances, 400, ec2);
        assert_eq!((one.0, one.1.as_str()), (ErrorKind::Quota, "VcpuLimitExceeded"));
        assert_eq!(one.2, "RunInstances: AWS says VcpuLimitExceeded (400): a b");
        assert_eq!(read(Action::GetCallerIdentity, 403, sts).0, ErrorKind::Auth);
        assert_eq!(read(Action::GetServiceQuota, 400, json).0, ErrorKind::NotFound);
        let nonsense = read_refusal(Action::RunInstances, 502, b"<html>bad gateway");
        assert_eq!((nonsense.kind(), nonsense.may_have_acted()), (ErrorKind::Transient, true));
    }
}
