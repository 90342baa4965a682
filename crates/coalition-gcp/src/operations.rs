//! Operations: what Google is doing with a request it took.
//!
//! Google's poller gives a failed operation as a success; here the operation's own words decide, always within a deadline.

use std::time::Duration;

use coalition_cloud::ErrorKind;
use google_cloud_compute_v1::client::ZoneOperations;
use google_cloud_compute_v1::model::Operation;
use google_cloud_compute_v1::model::operation::Status;
use tokio::time::Instant;

use crate::action::Action;
use crate::error::{GcpError, failed};

/// Longest name of an operation accepted.
const MAX_NAME: usize = 128;

/// An operation of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    /// The call that began it.
    pub(crate) action: Action,
    pub(crate) zone: String,
    pub(crate) name: String,
}

/// Where it stands.
#[derive(Debug)]
pub(crate) enum Progress {
    Running(Running),
    Done,
    Failed(GcpError),
}

/// Looks at operations.
pub(crate) struct Operations {
    pub(crate) client: ZoneOperations,
    pub(crate) project: String,
    /// Pause between two looks.
    pub(crate) poll: Duration,
}

impl Operations {
    /// One look.
    pub(crate) async fn look(&self, of: &Running) -> Result<Progress, GcpError> {
        let asked = self.client.get().set_project(&self.project).set_zone(&of.zone).set_operation(&of.name);
        let operation = asked.send().await.map_err(|error| GcpError::unwrapped(Action::GetOperation, &error))?;
        judge(of.action, &of.zone, &operation)
    }

    /// Waits until it is done, at most so long. Looks that fail are repeated as long as repeating may help.
    pub(crate) async fn follow(&self, mut progress: Progress, patience: Duration) -> Progress {
        let until = Instant::now() + patience;
        loop {
            let Progress::Running(running) = &progress else { return progress };
            if Instant::now() + self.poll > until {
                return progress;
            }
            tokio::time::sleep(self.poll).await;
            let looked = tokio::time::timeout_at(until, self.look(running)).await;
            match looked {
                Ok(Ok(next)) => progress = next,
                Ok(Err(error)) if matches!(error.kind(), ErrorKind::Transient | ErrorKind::Throttled) => {}
                Ok(Err(_)) | Err(_) => return progress,
            }
        }
    }
}

/// What an operation says. It failed when it has an error or an HTTP status of one, whatever its status.
pub(crate) fn judge(action: Action, zone: &str, operation: &Operation) -> Result<Progress, GcpError> {
    let garbled = |problem: &str| GcpError::Garbled { action, problem: problem.to_owned() };
    let status = operation.status.as_ref().ok_or_else(|| garbled("it is no operation: it has no status"))?;
    let http = operation.http_error_status_code.and_then(|status| u16::try_from(status).ok()).unwrap_or_default();
    if operation.error.is_some() || http >= 400 || operation.http_error_message.is_some() {
        let first = operation.error.as_ref().and_then(|error| error.errors.first());
        let code = first.and_then(|error| error.code.as_deref()).unwrap_or_default();
        let words = first.and_then(|error| error.message.as_deref()).or(operation.http_error_message.as_deref());
        return Ok(Progress::Failed(failed(action, code, words.unwrap_or_default(), http)));
    }
    if *status == Status::Done {
        return Ok(Progress::Done);
    }
    if !matches!(status, Status::Pending | Status::Running) {
        return Err(garbled("its operation is in no known state"));
    }
    let name = operation.name.as_deref().unwrap_or_default();
    let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_name) {
        return Err(garbled("its operation has no name"));
    }
    Ok(Progress::Running(Running { action, zone: zone.to_owned(), name: name.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Progress, GcpError> {
        judge(Action::InsertInstance, "us-east1-b", &serde_json::from_str(text).unwrap())
    }

    #[test]
    fn a_failed_operation_is_a_failure() {
        let failures = [
            (
                r#"{"status":"DONE","error":{"errors":[{"code":"ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS","message":"m"}]}}"#,
                ErrorKind::Capacity,
            ),
            (r#"{"status":"DONE","httpErrorStatusCode":409,"httpErrorMessage":"CONFLICT"}"#, ErrorKind::Conflict),
            (r#"{"status":"RUNNING","error":{"errors":[{"code":"QUOTA_EXCEEDED"}]}}"#, ErrorKind::Quota),
            (r#"{"status":"DONE","error":{}}"#, ErrorKind::Fatal),
        ];
        for (text, kind) in failures {
            let Ok(Progress::Failed(error)) = read(text) else { panic!("{text}") };
            assert_eq!((error.kind(), error.may_have_acted()), (kind, false), "{text}");
        }
    }

    #[test]
    fn what_is_no_operation_is_none() {
        assert!(matches!(read(r#"{"status":"DONE"}"#), Ok(Progress::Done)));
        assert!(matches!(read(r#"{"status":"PENDING","name":"operation-1-a"}"#), Ok(Progress::Running(_))));
        for wrong in [
            "{}",
            r#"{"status":"RUNNING"}"#,
            r#"{"status":"DREAMING","name":"a"}"#,
            r#"{"status":"RUNNING","name":"../a"}"#,
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.may_have_acted(), "{wrong}");
        }
    }
}
