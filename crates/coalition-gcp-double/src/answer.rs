//! Answers in Google's form.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) retry_after_s: Option<u64>,
}

pub(crate) fn refusal(status: u16, reason: &str, message: &str) -> Refusal {
    Refusal { status, reason: reason.to_owned(), message: message.to_owned(), retry_after_s: None }
}

/// A field that has a value it cannot have.
pub(crate) fn invalid(field: &str, value: &str, why: &str) -> Refusal {
    refusal(400, "invalid", &format!("Invalid value for field '{field}': '{value}'. {why}"))
}

pub(crate) fn not_found(resource: &str) -> Refusal {
    refusal(404, "notFound", &format!("The resource '{resource}' was not found"))
}

impl Refusal {
    pub(crate) fn response(&self) -> Response {
        let error = json!({ "domain": "global", "reason": self.reason, "message": self.message });
        let body = json!({ "error": { "code": self.status, "message": self.message, "errors": [error] } });
        let builder = Response::builder().status(self.status).header("content-type", "application/json");
        let builder = match self.retry_after_s {
            Some(seconds) => builder.header("retry-after", seconds.to_string()),
            None => builder,
        };
        builder.body(Body::from(body.to_string())).expect("a status and a body make an answer")
    }
}

pub(crate) fn plain(status: u16, body: impl Into<Bytes>) -> Response {
    let builder = Response::builder().status(status).header("content-type", "application/json");
    builder.body(Body::from(body.into())).expect("a status and a body make an answer")
}

pub(crate) fn ok(body: &Value) -> Response {
    plain(200, body.to_string())
}

/// As the metadata server answers.
pub(crate) fn flavoured(body: String) -> Response {
    let builder = Response::builder().status(200).header("metadata-flavor", "Google");
    builder.body(Body::from(body)).expect("a status and a body make an answer")
}

/// An answer that ends in the middle.
pub(crate) fn lost() -> Response {
    let parts = [Ok(Bytes::from_static(b"{\"kind\": \"compu")), Err(std::io::Error::other("the line is cut"))];
    let body = Body::from_stream(futures::stream::iter(parts));
    Response::builder().status(200).body(body).expect("a status and a body make an answer")
}

/// An answer that does not end.
pub(crate) fn endless() -> Response {
    let part = Bytes::from(vec![b' '; 1 << 20]);
    let body = Body::from_stream(futures::stream::repeat_with(move || Ok::<_, std::io::Error>(part.clone())));
    Response::builder().status(200).body(body).expect("a status and a body make an answer")
}
