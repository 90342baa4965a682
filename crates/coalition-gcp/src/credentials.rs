//! Where the right to ask comes from: a service account's key, or the metadata server of the machine this runs on.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rsa::KeyPair;
use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

/// Longest key file accepted, in bytes. Google's have about 2,400.
const MAX_FILE: usize = 32 << 10;
/// Where machines on Compute Engine find out about themselves.
pub(crate) const METADATA_SERVER: &str = "http://169.254.169.254";

/// Where credentials come from. Asked before every call, so that keys that were exchanged are used at once.
pub type CredentialSource = Arc<dyn Fn() -> Result<Credentials, CredentialsError> + Send + Sync>;

/// Why there are no credentials. Never repeats what it read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// No JSON, or not an object.
    #[error("the key file is no JSON; expected the file that Google made for a service account's key")]
    NoJson,
    /// Another sort of credentials.
    #[error("the key file is of type {found:?}; expected a service account's key (\"service_account\")")]
    Type {
        /// As it says.
        found: String,
    },
    /// A field is missing, or is no text.
    #[error("the key file has no {field}")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field that cannot be used.
    #[error("{field} in the key file {problem}")]
    Malformed {
        /// The field.
        field: &'static str,
        /// What is wrong, without the value.
        problem: &'static str,
    },
    /// The source itself cannot be used.
    #[error("{0}")]
    Unavailable(String),
}

/// A service account's key. The key's bytes are wiped when dropped, but for the copy in use, which only the signer reads.
/// `Debug` shows whose it is.
#[derive(Clone)]
pub struct ServiceAccountKey {
    pub(crate) email: String,
    pub(crate) key_id: String,
    pub(crate) token_uri: String,
    pub(crate) signer: Arc<KeyPair>,
}

/// What proves who asks.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// A service account's key.
    Key(ServiceAccountKey),
    /// The service account of the machine this runs on.
    MetadataServer(MetadataServer),
}

/// Where the machine's own service account is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataServer {
    pub(crate) endpoint: String,
}

impl Credentials {
    /// A service account's key, from the JSON text Google gave for it.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn from_key_file(text: &str) -> Result<Self, CredentialsError> {
        ServiceAccountKey::parse(text).map(Self::Key)
    }

    /// The metadata server; `endpoint` only for a test, on loopback.
    ///
    /// # Errors
    /// [`CredentialsError::Unavailable`] when the endpoint is neither Google's nor on loopback.
    pub fn from_metadata_server(endpoint: Option<&str>) -> Result<Self, CredentialsError> {
        let endpoint = endpoint.unwrap_or(METADATA_SERVER).trim_end_matches('/');
        if endpoint != METADATA_SERVER && !is_loopback_http(endpoint) {
            let problem = "the metadata server is at 169.254.169.254, or for a test at http://127.0.0.1:PORT";
            return Err(CredentialsError::Unavailable(problem.into()));
        }
        Ok(Self::MetadataServer(MetadataServer { endpoint: endpoint.to_owned() }))
    }

    /// What tokens are kept under: tokens of another key are never used.
    pub(crate) fn fingerprint(&self) -> Vec<u8> {
        match self {
            Self::Key(key) => {
                [key.email.as_bytes(), b"\n", key.token_uri.as_bytes(), b"\n", key.signer.public().as_ref()].concat()
            }
            Self::MetadataServer(server) => server.endpoint.clone().into_bytes(),
        }
    }
}

impl ServiceAccountKey {
    /// Reads the JSON text Google gave for it.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn parse(text: &str) -> Result<Self, CredentialsError> {
        if text.len() > MAX_FILE {
            return Err(CredentialsError::NoJson);
        }
        let mut said: Value = serde_json::from_str(text).map_err(|_| CredentialsError::NoJson)?;
        let pem = said.get_mut("private_key").map(Value::take);
        let pem = pem.and_then(|pem| if let Value::String(pem) = pem { Some(Zeroizing::new(pem)) } else { None });
        if !said.is_object() {
            return Err(CredentialsError::NoJson);
        }
        let text = |field: &'static str| {
            said.get(field)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
                .ok_or(CredentialsError::Missing { field })
        };
        let sort = text("type")?;
        if sort != "service_account" {
            return Err(CredentialsError::Type { found: coalition_cloud::one_line(sort, 40) });
        }
        let printable = |field: &'static str| {
            let value = text(field)?;
            let is_good = value.len() <= 255 && value.bytes().all(|b| b.is_ascii_graphic() && !b"\"\\<>".contains(&b));
            let problem = "is too long, or has characters it cannot have";
            if is_good { Ok(value.to_owned()) } else { Err(CredentialsError::Malformed { field, problem }) }
        };
        let (email, key_id, token_uri) =
            (printable("client_email")?, printable("private_key_id")?, printable("token_uri")?);
        if !token_uri.starts_with("https://") && !is_loopback_http(&token_uri) {
            return Err(CredentialsError::Malformed { field: "token_uri", problem: "is not encrypted" });
        }
        let pem = pem.ok_or(CredentialsError::Missing { field: "private_key" })?;
        let signer = Arc::new(read_key(&pem)?);
        Ok(Self { email, key_id, token_uri, signer })
    }
}

fn read_key(pem: &str) -> Result<KeyPair, CredentialsError> {
    let wrong = |problem| CredentialsError::Malformed { field: "private_key", problem };
    let body = pem.trim().strip_prefix("-----BEGIN PRIVATE KEY-----");
    let body = body.and_then(|rest| rest.strip_suffix("-----END PRIVATE KEY-----"));
    let body = body.ok_or_else(|| wrong("is no PKCS #8 key in PEM"))?;
    let packed: Zeroizing<String> = Zeroizing::new(body.chars().filter(|c| !c.is_ascii_whitespace()).collect());
    let mut der = STANDARD.decode(packed.as_bytes()).map_err(|_| wrong("is no base64"))?;
    let read = KeyPair::from_pkcs8(&der).map_err(|_| wrong("is no RSA key of 2048 to 4096 bits"));
    der.zeroize();
    read
}

/// Whether the URL's host is this machine: nothing of it leaves.
pub(crate) fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
    host.is_some_and(|host| host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
}

fn is_loopback_http(url: &str) -> bool {
    let parsed = url.parse::<reqwest::Url>().ok().filter(|url| url.scheme() == "http" && url.username().is_empty());
    parsed.as_ref().is_some_and(is_loopback)
}

impl std::fmt::Debug for ServiceAccountKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServiceAccountKey({}, redacted)", self.email)
    }
}
