//! Fetching collateral from a provisioning certificate caching service (PCCS), or anything that speaks its version 4.
//!
//! Four requests for public, signed data. The transport is a small trait; [`http`] has one over `reqwest`, and
//! [`fetch_into`] puts what comes into a directory. Nothing fetched is trusted: it is judged with the quote. A service can
//! only withhold, or serve what is old and unexpired, which a policy limits by age and TCB evaluation.

use std::future::Future;
use std::path::PathBuf;

use dcap_qvl::QuoteCollateralV3;
use thiserror::Error;

use crate::collateral::{Collateral, CollateralError, CollateralKey, Origin};
use crate::verdict::date;

pub mod http;
mod store;

pub use store::{Service, Stored, fetch_into};

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
    /// Not an address to ask.
    #[error("'{url}' is no address of a collateral service: {why}")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The TCB info that came does not say what it is about, or says something else.
    #[error("the service was asked about platform {asked}, and its TCB info is about {found}")]
    AnotherPlatform {
        /// The platform asked about.
        asked: CollateralKey,
        /// What the TCB info says.
        found: String,
    },
    /// What is stored is newer than what came, so nothing was replaced.
    #[error(
        "the service's TCB info (evaluation {}, of {}) is older than the one in {} (evaluation {}, of {}): ask another \
         service, or remove the file if you trust this one more",
        .found.0, date(.found.1), .path.display(), .stored.0, date(.stored.1)
    )]
    Older {
        /// TCB evaluation and issue date, Unix seconds, of what came.
        found: (u32, u64),
        /// The same of what is stored.
        stored: (u32, u64),
        /// Where that is.
        path: PathBuf,
    },
    /// It could not be stored.
    #[error("the collateral could not be stored")]
    Store(#[from] CollateralError),
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
