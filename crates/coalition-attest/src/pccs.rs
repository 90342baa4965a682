//! Fetching collateral from a provisioning certificate caching service (PCCS), or anything that speaks its version 4.
//!
//! Four requests for public, signed data. The transport is a small trait; the feature `http` has one over `reqwest`.
//! Nothing fetched is trusted: it is judged with the quote. A service can only withhold, or serve what is old and
//! unexpired, which a policy limits by age and TCB evaluation.

use std::future::Future;

use dcap_qvl::QuoteCollateralV3;
use thiserror::Error;

use crate::collateral::{Collateral, CollateralKey, Origin};

/// Longest answer read.
pub const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Why collateral could not be fetched.
#[derive(Debug, Error)]
pub enum PccsError {
    /// The request failed.
    #[error("{url} could not be fetched")]
    Fetch {
        /// What was asked for.
        url: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The service refused.
    #[error("{url} answered with status {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// The answer lacks something or is malformed.
    #[error("{url} answered without a usable {what}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is missing or wrong.
        what: &'static str,
    },
    /// The HTTP client could not be made.
    #[error("the HTTP client could not be made")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// An HTTP answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(String, String)>,
    /// Body, at most [`MAX_ANSWER_BYTES`].
    pub body: Vec<u8>,
}

/// The one thing asked of an HTTP client.
pub trait Fetch: Send + Sync {
    /// Why a request failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// A GET, bounded in time and in size.
    fn get(&self, url: &str) -> impl Future<Output = Result<Answer, Self::Error>> + Send;
}

/// A collateral service.
#[derive(Debug, Clone)]
pub struct Pccs<F> {
    base: String,
    root_crl_url: Option<String>,
    fetch: F,
}

impl<F: Fetch> Pccs<F> {
    /// The service at `base`, such as `https://pccs.example:8081`.
    pub fn new(base: &str, fetch: F) -> Self {
        Self { base: base.trim_end_matches('/').to_owned(), root_crl_url: None, fetch }
    }

    /// Takes the root's revocation list from elsewhere: Intel's own service does not serve it.
    #[must_use]
    pub fn root_crl_url(mut self, url: &str) -> Self {
        self.root_crl_url = Some(url.to_owned());
        self
    }

    /// Fetches the collateral of one platform family. Store it where verification looks.
    ///
    /// # Errors
    /// [`PccsError`].
    pub async fn collateral(&self, key: CollateralKey) -> Result<Collateral, PccsError> {
        let (base, ca, fmspc) = (&self.base, key.ca.name(), hex::encode_upper(key.fmspc));
        let crl = self.get(format!("{base}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der")).await?;
        let tcb = self.get(format!("{base}/tdx/certification/v4/tcb?fmspc={fmspc}&update=standard")).await?;
        let qe = self.get(format!("{base}/tdx/certification/v4/qe/identity?update=standard")).await?;
        let root_url = self.root_crl_url.clone().unwrap_or_else(|| format!("{base}/sgx/certification/v4/rootcacrl"));
        let root = self.get(root_url).await?;

        let (tcb_info, tcb_info_signature) = tcb.signed("tcbInfo", "TCB info")?;
        let (qe_identity, qe_identity_signature) = qe.signed("enclaveIdentity", "QE identity")?;
        let tcb_chain = ["TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"];
        let bundle = QuoteCollateralV3 {
            pck_crl_issuer_chain: crl.header(&["SGX-PCK-CRL-Issuer-Chain"])?,
            root_ca_crl: root.der()?,
            pck_crl: crl.der()?,
            tcb_info_issuer_chain: tcb.header(&tcb_chain)?,
            tcb_info,
            tcb_info_signature,
            qe_identity_issuer_chain: qe.header(&["SGX-Enclave-Identity-Issuer-Chain"])?,
            qe_identity,
            qe_identity_signature,
            pck_certificate_chain: None,
        };
        Ok(Collateral::new(bundle, Origin::Pccs))
    }

    async fn get(&self, url: String) -> Result<Fetched, PccsError> {
        let answer = match self.fetch.get(&url).await {
            Ok(answer) => answer,
            Err(error) => return Err(PccsError::Fetch { url, source: Box::new(error) }),
        };
        if !(200..300).contains(&answer.status) {
            return Err(PccsError::Status { url, status: answer.status });
        }
        if answer.body.len() > MAX_ANSWER_BYTES {
            return Err(PccsError::Answer { url, what: "body: it is too long" });
        }
        Ok(Fetched { url, answer })
    }
}

struct Fetched {
    url: String,
    answer: Answer,
}

impl Fetched {
    fn wrong(&self, what: &'static str) -> PccsError {
        PccsError::Answer { url: self.url.clone(), what }
    }

    /// A certificate chain in a header, percent-encoded.
    fn header(&self, names: &[&str]) -> Result<String, PccsError> {
        let found = self.answer.headers.iter().find(|(name, _)| names.iter().any(|n| name.eq_ignore_ascii_case(n)));
        let (_, value) = found.ok_or_else(|| self.wrong("issuer chain header"))?;
        percent_decode(value).ok_or_else(|| self.wrong("issuer chain header"))
    }

    /// A revocation list: DER, or its hexadecimal form as some services send it.
    fn der(&self) -> Result<Vec<u8>, PccsError> {
        let body = &self.answer.body;
        if body.first() == Some(&0x30) && body.get(1).is_some_and(|b| *b >= 0x80) {
            return Ok(body.clone());
        }
        hex::decode(body.trim_ascii()).map_err(|_| self.wrong("revocation list"))
    }

    /// The exact signed bytes out of `{"<name>":<signed>,"signature":"<hex>"}`, untouched by any JSON writer.
    fn signed(&self, name: &str, what: &'static str) -> Result<(String, Vec<u8>), PccsError> {
        let text = std::str::from_utf8(&self.answer.body).map_err(|_| self.wrong(what))?;
        let split = || {
            let rest = text.trim().strip_prefix(&format!("{{\"{name}\":"))?;
            let (signed, signature) = rest.strip_suffix("\"}")?.rsplit_once(",\"signature\":\"")?;
            Some((signed.to_owned(), hex::decode(signature).ok()?))
        };
        split().ok_or_else(|| self.wrong(what))
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let mut decoded = [0];
            hex::decode_to_slice(digits, &mut decoded).ok()?;
            out.push(decoded[0]);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// The HTTP client of the feature `http`.
#[cfg(feature = "http")]
pub mod http {
    use std::time::Duration;

    use super::{Answer, Fetch, MAX_ANSWER_BYTES, PccsError};

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// Fetches over HTTP or HTTPS, with the system's root certificates and a limit of 30 s a request.
    #[derive(Debug, Clone)]
    pub struct HttpFetch(reqwest::Client);

    impl HttpFetch {
        /// A client. Makes ring the process's TLS provider if none is chosen yet.
        ///
        /// # Errors
        /// [`PccsError::Client`] when the system's root certificates cannot be read.
        pub fn new() -> Result<Self, PccsError> {
            if rustls::crypto::CryptoProvider::get_default().is_none() {
                // An error only says that somebody was faster.
                let _ = rustls::crypto::ring::default_provider().install_default();
            }
            let client = reqwest::Client::builder().timeout(TIMEOUT).build();
            client.map(Self).map_err(|e| PccsError::Client(Box::new(e)))
        }
    }

    impl Fetch for HttpFetch {
        type Error = reqwest::Error;

        async fn get(&self, url: &str) -> Result<Answer, reqwest::Error> {
            let mut response = self.0.get(url).send().await?;
            let text = |value: &reqwest::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
            let mut answer = Answer { status: response.status().as_u16(), headers, body: Vec::new() };
            while let Some(chunk) = response.chunk().await? {
                answer.body.extend_from_slice(&chunk);
                if answer.body.len() > MAX_ANSWER_BYTES {
                    break;
                }
            }
            Ok(answer)
        }
    }
}
