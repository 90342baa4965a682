//! One signed request, and its answer within limits.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use coalition_cloud::ErrorKind;
use reqwest::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use rustls_platform_verifier::BuilderVerifierExt;
use zeroize::Zeroizing;

use crate::action::{Action, Service};
use crate::credentials::{CredentialSource, CredentialsError};
use crate::error::{AwsError, read_refusal};
use crate::form::Form;
use crate::xml::{self, Element};

/// Wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Times a repeatable call is made before its failure counts.
const TRIES: u32 = 3;
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// What a client is made of.
#[derive(Clone)]
pub struct Setup {
    /// The region, e.g. `eu-central-1`.
    pub region: String,
    /// Another address than AWS's own for all services: `https://…`, or `http://` on loopback.
    pub endpoint: Option<String>,
    /// Asked before every call.
    pub credentials: CredentialSource,
    /// Wait for one answer.
    pub timeout: Duration,
    /// Pause before a repetition; doubled each time.
    pub pause: Duration,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The region is no name of one.
    #[error("{0:?} is no region of AWS; expected one like \"eu-central-1\"")]
    Region(String),
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

/// A client of one region.
pub struct Ec2 {
    setup: Setup,
    http: reqwest::Client,
}

/// What goes over the wire.
struct Body {
    content_type: &'static str,
    target: Option<String>,
    /// Wiped when dropped: user data may hold a key. What the HTTP client copies of it is not.
    bytes: Zeroizing<String>,
}

impl Ec2 {
    /// A client; nothing is contacted yet.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn new(setup: Setup) -> Result<Self, EndpointError> {
        let named = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if setup.region.is_empty() || setup.region.len() > 40 || !setup.region.bytes().all(named) {
            return Err(EndpointError::Region(setup.region.chars().take(40).collect()));
        }
        let loopback = setup.endpoint.as_deref().map_or(Ok(false), check_endpoint)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(BuilderVerifierExt::with_platform_verifier)
            .map_err(EndpointError::Tls)?
            .with_no_client_auth();
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(setup.timeout)
            .http1_only();
        let builder = if loopback { builder.no_proxy() } else { builder };
        let http = builder.build().map_err(EndpointError::Http)?;
        Ok(Self { setup, http })
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.setup.region
    }

    fn endpoint(&self, service: Service) -> String {
        if let Some(own) = &self.setup.endpoint {
            return format!("{}/", own.trim_end_matches('/'));
        }
        let region = &self.setup.region;
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        format!("https://{}.{region}.{suffix}/", service.name())
    }

    /// One call of the Query protocol, repeated where that changes nothing.
    pub(crate) async fn query(&self, action: Action, form: Form) -> Result<Element, AwsError> {
        let body = Body { content_type: FORM, target: None, bytes: Zeroizing::new(form.into_body()) };
        let answer = self.again(action, &body).await?;
        xml::parse(&answer).map_err(|error| AwsError::Garbled { action, problem: error.to_string() })
    }

    /// One call of the JSON protocol.
    pub(crate) async fn json(&self, action: Action, body: &serde_json::Value) -> Result<Vec<u8>, AwsError> {
        let (service, bytes) = (action.service(), Zeroizing::new(body.to_string()));
        let target = Some(format!("{}.{}", service.version(), action.name()));
        self.again(action, &Body { content_type: service.json(), target, bytes }).await
    }

    async fn again(&self, action: Action, body: &Body) -> Result<Vec<u8>, AwsError> {
        let mut pause = self.setup.pause;
        for _ in 1..TRIES {
            match self.once(action, body).await {
                Err(error)
                    if action.is_repeatable()
                        && matches!(error.kind(), ErrorKind::Throttled | ErrorKind::Transient) => {}
                done => return done,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.once(action, body).await
    }

    async fn once(&self, action: Action, body: &Body) -> Result<Vec<u8>, AwsError> {
        let endpoint = self.endpoint(action.service());
        let request =
            self.signed(action, &endpoint, body).map_err(|source| AwsError::Credentials { action, source })?;
        let label = endpoint.trim_end_matches('/').to_owned();
        let sent = self.http.execute(request).await;
        let mut answer = sent.map_err(|error| {
            let (endpoint, source) = (label.clone(), Box::new(error.without_url()));
            // Before there is a connection nothing can have been asked.
            if source.is_connect() || source.is_builder() {
                AwsError::Unreachable { action, endpoint, source }
            } else {
                AwsError::Unanswered { action, endpoint, source }
            }
        })?;
        let status = answer.status();
        let mut bytes = Vec::new();
        loop {
            let part = answer.chunk().await.map_err(|error| AwsError::Unanswered {
                action,
                endpoint: label.clone(),
                source: Box::new(error.without_url()),
            })?;
            let Some(part) = part else { break };
            if bytes.len() + part.len() > xml::MAX_BYTES {
                let problem = format!("it is longer than {} bytes", xml::MAX_BYTES);
                return Err(AwsError::Garbled { action, problem });
            }
            bytes.extend_from_slice(&part);
        }
        if status.is_success() { Ok(bytes) } else { Err(read_refusal(action, status.as_u16(), &bytes)) }
    }

    fn signed(&self, action: Action, endpoint: &str, body: &Body) -> Result<reqwest::Request, CredentialsError> {
        let unsignable = |what: &str| CredentialsError::Unavailable(format!("the request cannot be signed: {what}"));
        let identity = (self.setup.credentials)()?.for_signing().into();
        let url: reqwest::Url = endpoint.parse().map_err(|_| unsignable("its address is none"))?;
        let host = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            (None, _) => return Err(unsignable("its address has no host")),
        };
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.setup.region)
            .name(action.service().name())
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|_| unsignable("a parameter is missing"))?
            .into();
        let mut headers = vec![("host", host.as_str()), ("content-type", body.content_type)];
        if let Some(target) = &body.target {
            headers.push(("x-amz-target", target));
        }
        let payload = SignableBody::Bytes(body.bytes.as_bytes());
        let signable = SignableRequest::new("POST", endpoint, headers.into_iter(), payload);
        let signable = signable.map_err(|_| unsignable("its form"))?;
        // The signer's own errors may hold parts of the key; none of them is kept.
        let (instructions, _) = sign(signable, &params).map_err(|_| unsignable("the key"))?.into_parts();
        let mut request = reqwest::Request::new(reqwest::Method::POST, url);
        let header = |value: &str| HeaderValue::from_str(value).map_err(|_| unsignable("a header"));
        let kept = request.headers_mut();
        kept.insert(HOST, header(&host)?);
        kept.insert(CONTENT_TYPE, HeaderValue::from_static(body.content_type));
        if let Some(target) = &body.target {
            kept.insert("x-amz-target", header(target)?);
        }
        for (name, value) in instructions.headers() {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unsignable("a header"))?;
            let mut value = header(value)?;
            value.set_sensitive(true);
            kept.insert(name, value);
        }
        *request.body_mut() = Some(body.bytes.to_string().into());
        Ok(request)
    }
}

/// Whether the endpoint is on loopback; anything else must be encrypted.
fn check_endpoint(given: &str) -> Result<bool, EndpointError> {
    let wrong = |problem| EndpointError::Endpoint { given: given.chars().take(80).collect(), problem };
    let url: reqwest::Url = given.parse().map_err(|_| wrong("is no URL"))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.path() != "/" {
        return Err(wrong("has more than a host and a port"));
    }
    let host = url.host_str().unwrap_or_default();
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match url.scheme() {
        "https" => Ok(loopback),
        "http" if loopback => Ok(true),
        _ => Err(wrong("is not encrypted")),
    }
}

impl std::fmt::Debug for Ec2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ec2({}, {})", self.setup.region, self.endpoint(Service::Ec2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_encrypted_or_loopback_endpoints() {
        assert!(check_endpoint("http://127.0.0.1:5000").unwrap() && check_endpoint("http://localhost:1").unwrap());
        assert!(!check_endpoint("https://ec2.example.net").unwrap());
        for wrong in
            ["http://10.0.0.1", "ftp://127.0.0.1", "https://a:b@c", "https://a/b", "nonsense", "https://a/?q=1"]
        {
            assert!(check_endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
