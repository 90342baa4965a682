//! The last step of the pipeline: the project's own HTTP client and TLS, and the limit on answers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use azure_core::error::{Error, ErrorKind};
use azure_core::http::headers::{HeaderName, HeaderValue, Headers};
use azure_core::http::policies::{Policy, PolicyResult};
use azure_core::http::{AsyncRawResponse, Body, Context, Method, Request};
use reqwest::Url;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls_platform_verifier::Verifier;

use crate::setup::{Places, Setup, SetupError};

/// Wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest answer when nothing else is said: of token endpoints.
const MAX_BYTES: usize = 1 << 20;
/// Where an Azure machine asks for tokens of its identity.
const METADATA: &str = "169.254.169.254";
/// Headers an answer is read for.
const KEPT: [&str; 4] = ["azure-asyncoperation", "location", "retry-after", "content-type"];

/// Longest answer this call takes, in bytes.
pub(crate) struct Limit(pub(crate) usize);

/// An answer beyond its limit.
#[derive(Debug, thiserror::Error)]
#[error("it is longer than {0} bytes")]
pub(crate) struct TooLong(usize);

/// The HTTP clients.
#[derive(Clone)]
pub(crate) struct Transport {
    http: reqwest::Client,
    /// Past every proxy: the metadata service answers the machine itself only.
    direct: reqwest::Client,
    metadata: Option<Url>,
}

impl Transport {
    pub(crate) fn new(setup: &Setup, places: &Places) -> Result<Self, SetupError> {
        let root = setup.addresses.extra_root.as_deref();
        let build = |direct: bool| {
            let builder = reqwest::Client::builder()
                .tls_backend_preconfigured(tls(root)?)
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(CONNECT)
                .timeout(setup.timeout)
                .http1_only();
            let builder = if direct { builder.no_proxy() } else { builder };
            builder.build().map_err(SetupError::Http)
        };
        Ok(Self { http: build(places.is_loopback)?, direct: build(true)?, metadata: places.metadata.clone() })
    }

    /// The last bytes of what is behind a signed URL, asked without a token.
    pub(crate) async fn tail(&self, url: Url, read: usize, keep: usize) -> Result<Vec<u8>, reqwest::Error> {
        let mut answer = self.http.get(url).send().await?.error_for_status()?;
        let (mut tail, mut seen) = (Vec::new(), 0_usize);
        while let Some(part) = answer.chunk().await? {
            seen = seen.saturating_add(part.len());
            tail.extend_from_slice(&part);
            let beyond = tail.len().saturating_sub(keep);
            tail.drain(..beyond);
            if seen >= read {
                break;
            }
        }
        Ok(tail)
    }

    fn prepare(&self, request: &Request) -> reqwest::RequestBuilder {
        let mut url = request.url().clone();
        let to_metadata = url.host_str() == Some(METADATA);
        if let Some(own) = self.metadata.as_ref().filter(|_| to_metadata) {
            let (path, query) = (url.path().to_owned(), url.query().map(ToOwned::to_owned));
            url = own.clone();
            url.set_path(&path);
            url.set_query(query.as_deref());
        }
        let http = if to_metadata { &self.direct } else { &self.http };
        let mut built = http.request(method(request.method()), url);
        for (name, value) in request.headers().iter() {
            if let Ok(mut value) = reqwest::header::HeaderValue::from_str(value.as_str()) {
                value.set_sensitive(name.as_str().eq_ignore_ascii_case("authorization"));
                built = built.header(name.as_str(), value);
            }
        }
        match request.body() {
            Body::Bytes(bytes) => built.body(bytes.clone()),
            Body::SeekableStream(_) => built,
        }
    }

    async fn execute(&self, request: &Request, limit: usize) -> PolicyResult {
        let is_encrypted = request.url().scheme() == "https" || request.url().host_str() == Some(METADATA);
        if !is_encrypted {
            return Err(Error::with_message(ErrorKind::Connection, "the address is not encrypted"));
        }
        let mut answer = self.prepare(request).send().await.map_err(|error| {
            // Before there is a connection nothing can have been asked.
            let unsent = error.is_connect() || error.is_builder();
            failed(if unsent { ErrorKind::Connection } else { ErrorKind::Io }, error)
        })?;
        let mut bytes = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(|error| failed(ErrorKind::Io, error))? {
            if bytes.len() + part.len() > limit {
                return Err(Error::new(ErrorKind::DataConversion, TooLong(limit)));
            }
            bytes.extend_from_slice(&part);
        }
        let mut headers = Headers::new();
        for name in KEPT {
            if let Some(value) = answer.headers().get(name).and_then(|value| value.to_str().ok()) {
                headers.insert(HeaderName::from_static(name), HeaderValue::from(value.to_owned()));
            }
        }
        Ok(AsyncRawResponse::from_bytes(answer.status().as_u16().into(), headers, bytes))
    }
}

/// Signed URLs and queries stay out of what is kept of an error.
fn failed(kind: ErrorKind, error: reqwest::Error) -> Error {
    Error::new(kind, error.without_url())
}

fn method(method: Method) -> reqwest::Method {
    match method {
        Method::Delete => reqwest::Method::DELETE,
        Method::Head => reqwest::Method::HEAD,
        Method::Patch => reqwest::Method::PATCH,
        Method::Post => reqwest::Method::POST,
        Method::Put => reqwest::Method::PUT,
        _ => reqwest::Method::GET,
    }
}

fn tls(extra_root: Option<&str>) -> Result<rustls::ClientConfig, SetupError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = Vec::new();
    if let Some(pem) = extra_root {
        for root in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.push(root.map_err(|_| SetupError::Root)?);
        }
        if roots.is_empty() {
            return Err(SetupError::Root);
        }
    }
    let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(&provider)).map_err(SetupError::Tls)?;
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(SetupError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

#[async_trait]
impl Policy for Transport {
    async fn send(&self, context: &Context, request: &mut Request, _next: &[Arc<dyn Policy>]) -> PolicyResult {
        let limit = context.value::<Limit>().map_or(MAX_BYTES, |limit| limit.0);
        self.execute(request, limit).await
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transport")
    }
}
