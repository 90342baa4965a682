//! Which certificate authority vouches for a quote. A policy names exactly one; there is no value that means "any".

use std::fmt;

use coalition::{UniqueId, hash_many};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;
use x509_cert::der::Decode as _;

/// What every output says beside anything a development root vouches for.
pub const DEVELOPMENT_LABEL: &str = "DEVELOPMENT ROOT — not attested by Intel";

/// Common name of the certificates of every development root, so that a bare certificate viewer shows it too.
pub const DEVELOPMENT_COMMON_NAME: &str = "DEVELOPMENT ROOT - NOT INTEL";

const INTEL_ROOT_DER: &[u8] = &crate::intel_root::DER;

const VERSION: u8 = 1;
const TAG: &[u8] = b"coalition/attest/root";
const MAX_DER_BYTES: usize = 4096;

/// The root of trust a policy names.
///
/// As text: `"intel"`, or `{ development = "<hex of the root certificate>" }`. The two can never be mistaken for each
/// other: a development root is refused when it carries Intel's certificate, and has a different id for every key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrustRoot {
    /// Intel's provisioning certification root: real hardware.
    Intel,
    /// A development root: software keys, real format, no hardware behind it.
    Development(DevelopmentCertificate),
}

/// The self-signed certificate of a development root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevelopmentCertificate(Vec<u8>);

/// Why bytes are no development root.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RootError {
    /// Not hexadecimal.
    #[error("a development root is the hexadecimal form of its certificate: {0}")]
    Hex(String),
    /// Too long to be looked at.
    #[error("a root certificate of {found} bytes is over the limit of {MAX_DER_BYTES}")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// No X.509 certificate.
    #[error("the development root is no X.509 certificate: {0}")]
    Certificate(String),
    /// Intel's certificate under the name of a development root.
    #[error("this is Intel's root certificate: name it as root = \"intel\"")]
    Intel,
    /// A certificate that does not say what it is.
    #[error("a development root's subject must contain '{DEVELOPMENT_COMMON_NAME}', this one is '{found}'")]
    Unlabelled {
        /// Subject found.
        found: String,
    },
}

impl DevelopmentCertificate {
    /// Takes the certificate of a development root.
    ///
    /// # Errors
    /// [`RootError`] when it is no certificate, is Intel's, or its subject does not say that it is for development.
    pub fn from_der(der: &[u8]) -> Result<Self, RootError> {
        if der.len() > MAX_DER_BYTES {
            return Err(RootError::TooLong { found: der.len() });
        }
        if der == INTEL_ROOT_DER {
            return Err(RootError::Intel);
        }
        let parsed = x509_cert::Certificate::from_der(der).map_err(|e| RootError::Certificate(e.to_string()))?;
        let found = parsed.tbs_certificate().subject().to_string();
        if !found.contains(DEVELOPMENT_COMMON_NAME) {
            return Err(RootError::Unlabelled { found });
        }
        Ok(Self(der.to_vec()))
    }

    /// The certificate, DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for DevelopmentCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DevelopmentCertificate({} bytes)", self.0.len())
    }
}

impl TrustRoot {
    /// The root with this development certificate.
    ///
    /// # Errors
    /// As [`DevelopmentCertificate::from_der`].
    pub fn development(der: &[u8]) -> Result<Self, RootError> {
        DevelopmentCertificate::from_der(der).map(Self::Development)
    }

    /// The certificate that ends every chain under this root, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        match self {
            Self::Intel => INTEL_ROOT_DER,
            Self::Development(certificate) => certificate.der(),
        }
    }

    /// Whether real hardware stands behind it.
    #[must_use]
    pub const fn is_intel(&self) -> bool {
        matches!(self, Self::Intel)
    }

    /// Number of the kind in canonical encodings: 1 Intel, 2 development.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Intel => 1,
            Self::Development(_) => 2,
        }
    }

    /// Identity of the root: folds its kind and certificate. The id an access rule or a policy names it by.
    #[must_use]
    pub fn id(&self) -> UniqueId {
        hash_many(&[&[VERSION], TAG, &[self.kind()], self.certificate()])
    }

    /// What to print beside everything this root vouches for.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Intel => "Intel",
            Self::Development(_) => DEVELOPMENT_LABEL,
        }
    }
}

/// What a root certificate says it is, unverified: its subject, cut to 200 characters, and the label of its kind.
pub(crate) fn claimed(certificate: &[u8]) -> (String, &'static str) {
    let subject = x509_cert::Certificate::from_der(certificate)
        .map_or_else(|_| "no certificate".to_owned(), |c| c.tbs_certificate().subject().to_string());
    let label = if certificate == INTEL_ROOT_DER {
        TrustRoot::Intel.label()
    } else if subject.contains(DEVELOPMENT_COMMON_NAME) {
        DEVELOPMENT_LABEL
    } else {
        "unknown"
    };
    (subject.chars().take(200).collect(), label)
}

impl fmt::Display for TrustRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Intel => f.write_str("Intel"),
            Self::Development(_) => write!(f, "{DEVELOPMENT_LABEL} ({})", self.id()),
        }
    }
}

impl fmt::Debug for TrustRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustRoot({self})")
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Form {
    Intel,
    Development(String),
}

impl Serialize for TrustRoot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Intel => Form::Intel,
            Self::Development(certificate) => Form::Development(hex::encode(certificate.der())),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TrustRoot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Intel => Ok(Self::Intel),
            Form::Development(text) => hex::decode(text)
                .map_err(|e| RootError::Hex(e.to_string()))
                .and_then(|der| Self::development(&der))
                .map_err(de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intels_certificate_is_no_development_root() {
        assert_eq!(TrustRoot::development(INTEL_ROOT_DER), Err(RootError::Intel));
        assert!(matches!(TrustRoot::development(b"nothing"), Err(RootError::Certificate(_))));
        assert!(matches!(TrustRoot::development(&[0; 5000]), Err(RootError::TooLong { .. })));
    }

    #[test]
    fn there_is_no_text_for_any_root() {
        for text in ["\"any\"", "\"\"", "null", "\"*\"", "{\"development\":\"\"}"] {
            assert!(serde_json::from_str::<TrustRoot>(text).is_err(), "{text} was taken for a root");
        }
        assert_eq!(serde_json::from_str::<TrustRoot>("\"intel\"").unwrap(), TrustRoot::Intel);
    }
}
