//! Fetching over HTTP or HTTPS.

use std::sync::Arc;
use std::time::Duration;

use rustls_platform_verifier::BuilderVerifierExt;

use super::{Answer, Fetch, MAX_ANSWER_BYTES, PccsError};

const CONNECT: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(30);

/// Fetches with the system's root certificates, a limit of 30 s a request, and no redirects: a service that has moved is
/// named anew by whoever trusts it.
#[derive(Debug, Clone)]
pub struct HttpFetch(reqwest::Client);

impl HttpFetch {
    /// A client.
    ///
    /// # Errors
    /// [`PccsError::Client`] when the system's root certificates cannot be read.
    pub fn new() -> Result<Self, PccsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(BuilderVerifierExt::with_platform_verifier)
            .map_err(|e| PccsError::Client(Box::new(e)))?
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(TIMEOUT)
            .build();
        client.map(Self).map_err(|e| PccsError::Client(Box::new(e)))
    }
}

impl Fetch for HttpFetch {
    type Error = reqwest::Error;

    async fn get(&self, url: &str) -> Result<Answer, reqwest::Error> {
        // The caller names the address; the error need not name it again.
        let mut response = self.0.get(url).send().await.map_err(reqwest::Error::without_url)?;
        let text = |value: &reqwest::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let mut answer = Answer { status: response.status().as_u16(), headers, body: Vec::new() };
        while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
            answer.body.extend_from_slice(&chunk);
            if answer.body.len() > MAX_ANSWER_BYTES {
                break;
            }
        }
        Ok(answer)
    }
}
