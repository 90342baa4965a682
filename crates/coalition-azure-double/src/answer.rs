//! What goes back.

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use serde_json::{Value, json};

/// An answer before faults are put into it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self { status, headers: vec![("content-type", "application/json".into())], body: Bytes::from(body.to_string()) }
    }

    pub(crate) const fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn into_response(self) -> Response {
        self.respond(Body::from(self.body.clone()))
    }

    /// An answer that ends in the middle.
    pub(crate) fn cut(&self) -> Response {
        let parts = [Ok(Bytes::from_static(b"{\"na")), Err(std::io::Error::other("the line is cut"))];
        self.respond(Body::from_stream(futures::stream::iter(parts)))
    }

    fn respond(&self, body: Body) -> Response {
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            response = response.header(*name, value);
        }
        response.body(body).expect("a status, headers and a body make an answer")
    }
}

/// Why a request is refused, in Azure's form.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into() }
    }

    pub(crate) fn error(&self) -> Value {
        json!({ "code": self.code, "message": self.message })
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::json(refusal.status, &json!({ "error": refusal.error() }))
    }
}
