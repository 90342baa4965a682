//! Long-running operations: Azure takes a request, and says elsewhere how it goes.

use std::time::Duration;

use reqwest::Url;
use serde_json::Value;
use tokio::time::Instant;

use crate::action::Action;
use crate::client::{Answer, Ask, Azure};
use crate::error::{AzureError, Said, kind_of, read_said};

/// Longest pause taken from an answer.
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(30);
/// How long an operation is followed when the setup does not say.
const FOLLOW: Duration = Duration::from_secs(20);
/// Longest URL followed.
const MAX_URL: usize = 8 << 10;

/// Where it is said how a request goes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Operation {
    url: Url,
    /// Header `Azure-AsyncOperation`: a document with a status. Else header `Location`: the status of the answer says it.
    has_document: bool,
    /// How long to wait before the first look.
    wait: Option<Duration>,
}

/// How it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Not at its end; the next look after so long.
    Running(Duration),
    /// Done.
    Done,
    /// Azure knows nothing of the operation (any more).
    Forgotten,
}

/// The status in an operation's document.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Running,
    Succeeded,
    Failed(Said),
}

impl Operation {
    /// Of an answer's headers; `None` when it has none that leads back to where the question went.
    pub(crate) fn of(
        endpoint: &Url,
        document: Option<&str>,
        location: Option<&str>,
        wait: Option<Duration>,
    ) -> Option<Self> {
        let document =
            document.and_then(|url| own_url(endpoint, url)).map(|url| Self { url, has_document: true, wait });
        document.or_else(|| {
            let url = location.and_then(|url| own_url(endpoint, url))?;
            Some(Self { url, has_document: false, wait })
        })
    }
}

/// A URL of an answer, if it is the Resource Manager's own: whatever is asked there carries the token.
pub(crate) fn own_url(endpoint: &Url, text: &str) -> Option<Url> {
    if text.len() > MAX_URL {
        return None;
    }
    let url: Url = text.parse().ok()?;
    let same = url.scheme() == endpoint.scheme()
        && url.host_str() == endpoint.host_str()
        && url.port_or_known_default() == endpoint.port_or_known_default();
    (same && url.username().is_empty() && url.password().is_none()).then_some(url)
}

/// The seconds of a `Retry-After`, within bounds; Azure sends no dates.
pub(crate) fn read_wait(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs).map(|wait| wait.min(MAX_WAIT))
}

/// An operation's document.
pub(crate) fn read_status(action: Action, bytes: &[u8]) -> Result<Status, AzureError> {
    let garbled = |problem: &str| AzureError::Garbled { action, problem: problem.to_owned() };
    let document: Value = serde_json::from_slice(bytes).map_err(|_| garbled("an operation's status is no JSON"))?;
    let status = document.get("status").and_then(Value::as_str).ok_or_else(|| garbled("an operation has no status"))?;
    // Every other word means that it goes on.
    Ok(if status.eq_ignore_ascii_case("Succeeded") {
        Status::Succeeded
    } else if ["Failed", "Canceled", "Cancelled"].iter().any(|end| status.eq_ignore_ascii_case(end)) {
        let mut said = read_said(&document);
        if said.code.is_empty() {
            said.code = status.chars().filter(|c| c.is_ascii_alphabetic()).take(20).collect();
        }
        Status::Failed(said)
    } else {
        Status::Running
    })
}

impl Azure {
    /// One look. What the operation ended with is the error of the call that began it.
    pub(crate) async fn look(&self, action: Action, operation: &Operation) -> Result<Progress, AzureError> {
        let ended = |said: Said| {
            let kind = kind_of(&said.code, &said.message, 400);
            AzureError::Ended { action, kind, code: said.code, message: said.message }
        };
        let reading = Action::ReadOperation;
        let answer = match self.ask(&Ask::get(reading, operation.url.clone())).await {
            Ok(answer) => answer,
            Err(AzureError::Refused { status: 404 | 410, .. }) => return Ok(Progress::Forgotten),
            // Behind a location, the end of the operation is the answer itself.
            Err(AzureError::Refused { status, code, message, .. })
                if !operation.has_document && matches!(status, 400 | 402 | 405..=407 | 409 | 411..=428) =>
            {
                return Err(ended(Said { code, message }));
            }
            Err(error) => return Err(error),
        };
        let running = |answer: &Answer| Progress::Running(self.pause_of(answer.retry_after));
        if !operation.has_document {
            return Ok(if answer.status == 202 { running(&answer) } else { Progress::Done });
        }
        match read_status(reading, &answer.body)? {
            Status::Running => Ok(running(&answer)),
            Status::Succeeded => Ok(Progress::Done),
            Status::Failed(said) => Err(ended(said)),
        }
    }

    /// Looks until its end, or as long as the setup says; looks no more often than Azure asks for.
    pub(crate) async fn follow(&self, action: Action, operation: &Operation) -> Result<Progress, AzureError> {
        self.follow_from(action, operation, self.pause_of(operation.wait)).await
    }

    /// The same of one that was left to a later look: this is it.
    pub(crate) async fn take_up(&self, action: Action, operation: &Operation) -> Result<Progress, AzureError> {
        match self.look(action, operation).await? {
            Progress::Running(wait) => self.follow_from(action, operation, wait).await,
            over => Ok(over),
        }
    }

    async fn follow_from(
        &self,
        action: Action,
        operation: &Operation,
        mut wait: Duration,
    ) -> Result<Progress, AzureError> {
        let until = Instant::now() + self.patience();
        loop {
            if Instant::now() + wait > until {
                return Ok(Progress::Running(wait));
            }
            tokio::time::sleep(wait).await;
            match self.look(action, operation).await? {
                Progress::Running(next) => wait = next,
                over => return Ok(over),
            }
        }
    }

    /// How long an operation is followed.
    pub(crate) fn patience(&self) -> Duration {
        self.setup().follow.unwrap_or(FOLLOW)
    }

    pub(crate) fn pause_of(&self, asked: Option<Duration>) -> Duration {
        asked.unwrap_or_default().clamp(self.setup().pause.min(MAX_WAIT), MAX_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_go_to_the_resource_manager_only() {
        let endpoint: Url = "https://management.azure.com".parse().unwrap();
        for own in [
            "https://management.azure.com/a?b=c",
            "https://management.azure.com:443/",
            "https://MANAGEMENT.azure.com/x",
        ] {
            assert!(own_url(&endpoint, own).is_some(), "{own}");
        }
        for strange in [
            "https://management.azure.com.example.net/",
            "http://management.azure.com/",
            "https://management.azure.com:444/",
            "https://a@management.azure.com/",
            "//management.azure.com/",
            "/relative",
            "",
        ] {
            assert!(own_url(&endpoint, strange).is_none(), "{strange}");
        }
        assert!(own_url(&endpoint, &format!("https://management.azure.com/{}", "x".repeat(9_000))).is_none());
        let document = Operation::of(
            &endpoint,
            Some("https://management.azure.com/a"),
            Some("https://management.azure.com/b"),
            None,
        );
        assert!(document.unwrap().has_document);
        let location =
            Operation::of(&endpoint, Some("https://evil.example/a"), Some("https://management.azure.com/b"), None);
        assert!(!location.unwrap().has_document);
    }

    #[test]
    fn ends_are_told_from_what_goes_on() {
        let read = |text: &str| read_status(Action::ReadOperation, text.as_bytes());
        assert_eq!(read(r#"{"status":"Succeeded"}"#).unwrap(), Status::Succeeded);
        for running in ["InProgress", "Accepted", "Creating", "SomethingNew"] {
            assert_eq!(read(&format!(r#"{{"status":"{running}"}}"#)).unwrap(), Status::Running);
        }
        let failed = r#"{"status":"Failed","error":{"code":"ZonalAllocationFailed","message":"none"}}"#;
        let Status::Failed(said) = read(failed).unwrap() else { panic!() };
        assert_eq!(said.code, "ZonalAllocationFailed");
        let Status::Failed(said) = read(r#"{"status":"Canceled"}"#).unwrap() else { panic!() };
        assert_eq!(said.code, "Canceled");
        assert!(read("").is_err() && read("[]").is_err() && read(r#"{"status":3}"#).is_err());
        assert_eq!(read_wait(" 3 "), Some(Duration::from_secs(3)));
        assert_eq!(read_wait("86400"), Some(MAX_WAIT));
        assert_eq!(read_wait("Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }
}
