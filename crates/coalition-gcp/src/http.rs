//! One HTTP request, and its answer within limits.
//!
//! TLS is set up here with one provider, explicitly, and nowhere for the whole process.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use rustls_platform_verifier::BuilderVerifierExt;

use crate::action::Action;
use crate::credentials::{METADATA_SERVER, is_loopback};
use crate::error::{GcpError, read_refusal};

/// Wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest answer read, in bytes. A page of instances with their user data has about 4 MiB.
pub(crate) const MAX_BYTES: usize = 16 << 20;
/// Longest pause that Google is obeyed for.
const MAX_RETRY_AFTER_S: u64 = 30;

/// Why there is no HTTP client.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The endpoint cannot be used.
    #[error("the endpoint {given:?} {problem}; expected https://HOST, or http://127.0.0.1:PORT for a test")]
    Endpoint {
        /// As given.
        given: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// No TLS.
    #[error("TLS cannot be set up; are the system's root certificates installed (ca-certificates)?")]
    Tls(#[source] rustls::Error),
    /// No HTTP client.
    #[error("the HTTP client cannot be set up")]
    Http(#[source] reqwest::Error),
}

/// An answer that is a success.
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
    /// It carries the word of metadata servers.
    pub(crate) is_flavoured: bool,
}

/// Sends requests.
pub(crate) struct Http {
    /// By the proxy of the environment, if there is one.
    outside: reqwest::Client,
    /// Without: to loopback, and to the metadata server, which answers only its own machine.
    here: reqwest::Client,
}

impl Http {
    /// `endpoint`: another than Google's own.
    pub(crate) fn new(endpoint: Option<&str>, timeout: Duration) -> Result<Self, HttpError> {
        endpoint.map_or(Ok(()), check_endpoint)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(BuilderVerifierExt::with_platform_verifier)
            .map_err(HttpError::Tls)?
            .with_no_client_auth();
        let builder = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT)
                .timeout(timeout)
                .http1_only()
        };
        let outside = builder().build().map_err(HttpError::Http)?;
        let here = builder().no_proxy().build().map_err(HttpError::Http)?;
        Ok(Self { outside, here })
    }

    fn client(&self, url: &reqwest::Url) -> &reqwest::Client {
        let base = url.origin().ascii_serialization();
        let is_here = base == METADATA_SERVER || is_loopback(url);
        if is_here { &self.here } else { &self.outside }
    }

    /// One attempt.
    pub(crate) async fn once(&self, action: Action, request: reqwest::Request) -> Result<Answer, GcpError> {
        let endpoint = request.url().origin().ascii_serialization();
        let unanswered = |error: reqwest::Error| {
            let (endpoint, source) = (endpoint.clone(), Arc::new(error.without_url()));
            GcpError::Unanswered { action, endpoint, source }
        };
        let mut answer = self.client(request.url()).execute(request).await.map_err(|error| {
            // Before there is a connection nothing can have been asked.
            if error.is_connect() || error.is_builder() {
                let source = Arc::new(error.without_url());
                return GcpError::Unreachable { action, endpoint: endpoint.clone(), source };
            }
            unanswered(error)
        })?;
        let status = answer.status();
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let retry_after = retry_after.map(|seconds| Duration::from_secs(seconds.min(MAX_RETRY_AFTER_S)));
        let is_flavoured = answer.headers().get("metadata-flavor").is_some_and(|value| value == "Google");
        let mut body = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(unanswered)? {
            if body.len() + part.len() > MAX_BYTES {
                let problem = format!("it is longer than {MAX_BYTES} bytes");
                return Err(GcpError::Garbled { action, problem });
            }
            body.extend_from_slice(&part);
        }
        if status.is_success() {
            return Ok(Answer { body, is_flavoured });
        }
        Err(read_refusal(action, status.as_u16(), retry_after, &body))
    }
}

/// Refuses what is neither encrypted nor on loopback.
fn check_endpoint(given: &str) -> Result<(), HttpError> {
    let wrong = |problem| HttpError::Endpoint { given: given.chars().take(80).collect(), problem };
    let url: reqwest::Url = given.parse().map_err(|_| wrong("is no URL"))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.path() != "/" {
        return Err(wrong("has more than a host and a port"));
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if is_loopback(&url) => Ok(()),
        _ => Err(wrong("is not encrypted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_encrypted_or_loopback_endpoints() {
        for right in ["http://127.0.0.1:5000", "http://localhost:1", "http://[::1]:1", "https://compute.example.net"] {
            assert!(check_endpoint(right).is_ok(), "{right}");
        }
        for wrong in [
            "http://10.0.0.1",
            "http://127.0.0.1.a.net",
            "ftp://127.0.0.1",
            "https://a:b@c",
            "https://a/b",
            "nonsense",
            "https://a/?q=1",
        ] {
            assert!(check_endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
