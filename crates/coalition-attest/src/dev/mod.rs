//! The development root: quotes of the real format, vouched for by software keys, where there is no TDX hardware.
//!
//! A [`DevelopmentRoot`] is a whole certification authority in one value: root, platform CA, TCB signer, one platform.
//! Its [`DevelopmentGuest`] signs quotes that the ordinary verifier accepts under this root and under no other. Nothing
//! it makes can be taken for Intel's: certificates, quoting enclave, module and platform family all have names and
//! values of their own, and every verdict under it carries [`DEVELOPMENT_LABEL`].
//!
//! It can also make what must be refused ([`CollateralOptions`], [`GuestOptions`], [`PlatformOptions`]), because tests
//! need revoked keys, expired lists and debug guests that no real platform hands out.

mod collateral;
mod der;
mod guest;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber, date_time_ymd,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

pub use self::collateral::CollateralOptions;
pub use self::guest::{DevelopmentGuest, GuestOptions};
use crate::root::{DEVELOPMENT_COMMON_NAME, DEVELOPMENT_LABEL, RootError, TrustRoot};

/// Platform family of every development platform; no real one has it.
pub const DEVELOPMENT_FMSPC: [u8; 6] = [0xde, 0x7e, 0x10, 0, 0, 0];

/// Security version of every component of a development platform.
pub(crate) const SVN: u8 = 5;
/// Security version of its provisioning enclave.
pub(crate) const PCE_SVN: u8 = 13;

const VERSION: u8 = 1;

/// Why a development root could not be made or used.
#[derive(Debug, Error)]
pub enum DevError {
    /// A certificate or revocation list could not be made.
    #[error("the development root could not issue a certificate")]
    Issue(#[from] rcgen::Error),
    /// A key is unusable, or the random source failed.
    #[error("the development root's {0} key cannot be used")]
    Key(&'static str),
    /// A stored root does not parse.
    #[error("the stored development root is damaged: {0}")]
    Stored(String),
    /// Its own certificate is refused.
    #[error("the development root's certificate is refused")]
    Root(#[from] RootError),
    /// A time that no certificate can carry.
    #[error("{0} is no time a certificate can carry")]
    Time(u64),
}

/// One of the certificates of a development root, for revoking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Certificate {
    /// The self-signed root.
    Root,
    /// The CA of platform certificates.
    PlatformCa,
    /// The signer of TCB info and QE identity.
    TcbSigner,
    /// The one platform's certificate.
    Platform,
}

impl Certificate {
    const ALL: [Self; 4] = [Self::Root, Self::PlatformCa, Self::TcbSigner, Self::Platform];

    const fn suffix(self) -> &'static str {
        match self {
            Self::Root => "",
            Self::PlatformCa => " - PCK Platform CA",
            Self::TcbSigner => " - TCB Signing",
            Self::Platform => " - PCK Certificate",
        }
    }

    const fn serial(self) -> u8 {
        self as u8 + 1
    }
}

/// Properties of the one platform, fixed when its certificate is issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PlatformOptions {
    /// Packages may be added.
    pub dynamic_platform: bool,
    /// Root keys are cached by the maker.
    pub cached_keys: bool,
    /// Hyper-threads share cores.
    pub smt: bool,
}

/// One key and its certificate.
struct Identity {
    key: Zeroizing<Vec<u8>>,
    certificate: Vec<u8>,
}

/// A certification authority of software keys. Holds secrets: keep its stored form private to the user.
pub struct DevelopmentRoot {
    identities: [Identity; 4],
}

impl std::fmt::Debug for DevelopmentRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DevelopmentRoot({DEVELOPMENT_LABEL}, keys redacted)")
    }
}

impl DevelopmentRoot {
    /// Makes new keys and certificates, valid from 2020 to 2049.
    ///
    /// # Errors
    /// [`DevError`] when the random source fails.
    pub fn generate() -> Result<Self, DevError> {
        Self::generate_with(PlatformOptions::default())
    }

    /// The same, with a platform of these properties.
    ///
    /// # Errors
    /// As [`DevelopmentRoot::generate`].
    pub fn generate_with(platform: PlatformOptions) -> Result<Self, DevError> {
        let keys: [KeyPair; 4] = [new_key()?, new_key()?, new_key()?, new_key()?];
        let [root_key, ca_key, signer_key, platform_key] = &keys;
        let root = Issuer::new(params(Certificate::Root, None), root_key);
        let ca = Issuer::new(params(Certificate::PlatformCa, None), ca_key);
        let certificates = [
            params(Certificate::Root, None).self_signed(root_key)?,
            params(Certificate::PlatformCa, None).signed_by(ca_key, &root)?,
            params(Certificate::TcbSigner, None).signed_by(signer_key, &root)?,
            params(Certificate::Platform, Some(platform)).signed_by(platform_key, &ca)?,
        ];
        let mut certificates = certificates.iter().map(|certificate| certificate.der().to_vec());
        let identities = keys.each_ref().map(|key| Identity {
            key: Zeroizing::new(key.serialize_der()),
            certificate: certificates.next().unwrap_or_default(),
        });
        Ok(Self { identities })
    }

    /// The root as a policy names it.
    ///
    /// # Errors
    /// [`DevError::Root`] when its certificate is refused, which a stored one may be.
    pub fn trust_root(&self) -> Result<TrustRoot, DevError> {
        Ok(TrustRoot::development(self.certificate(Certificate::Root))?)
    }

    /// One of its certificates, DER.
    #[must_use]
    pub fn certificate(&self, which: Certificate) -> &[u8] {
        &self.identities[which as usize].certificate
    }

    /// The stored form: JSON with all secrets and the label. Write it to a file only the user can read.
    #[must_use]
    pub fn to_secret(&self) -> Zeroizing<String> {
        let stored = Stored {
            version: VERSION,
            label: DEVELOPMENT_LABEL.to_owned(),
            keys: self.identities.iter().map(|identity| hex::encode(&*identity.key)).collect(),
            certificates: self.identities.iter().map(|identity| hex::encode(&identity.certificate)).collect(),
        };
        Zeroizing::new(serde_json::to_string(&stored).expect("strings always serialize"))
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// [`DevError`] when it is damaged or its root certificate is no development root's.
    pub fn from_secret(text: &str) -> Result<Self, DevError> {
        let damaged = |what: &dyn std::fmt::Display| DevError::Stored(what.to_string());
        let stored: Stored = serde_json::from_str(text).map_err(|e| damaged(&e))?;
        if stored.version != VERSION {
            return Err(damaged(&format!("version {}, expected {VERSION}", stored.version)));
        }
        let mut identities = Vec::with_capacity(4);
        for (key, certificate) in stored.keys.iter().zip(&stored.certificates) {
            let key = Zeroizing::new(hex::decode(key).map_err(|_| damaged(&"a key is no hexadecimal"))?);
            let certificate = hex::decode(certificate).map_err(|e| damaged(&e))?;
            identities.push(Identity { key, certificate });
        }
        let identities = identities.try_into().map_err(|_| damaged(&"it does not hold four keys"))?;
        let root = Self { identities };
        root.trust_root()?;
        for which in Certificate::ALL {
            root.signing_key(which)?;
        }
        Ok(root)
    }

    fn key_der(&self, which: Certificate) -> &[u8] {
        &self.identities[which as usize].key
    }

    /// Signs as raw `r ‖ s`.
    fn sign(&self, which: Certificate, message: &[u8]) -> Result<Vec<u8>, DevError> {
        sign_raw(&self.signing_key(which)?, message)
    }

    fn signing_key(&self, which: Certificate) -> Result<EcdsaKeyPair, DevError> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, self.key_der(which), &SystemRandom::new())
            .map_err(|_| DevError::Key("signing"))
    }

    fn issuer(&self, which: Certificate) -> Result<Issuer<'static, KeyPair>, DevError> {
        let der = PrivatePkcs8KeyDer::from(self.key_der(which));
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)?;
        Ok(Issuer::new(params(which, None), key))
    }
}

/// The stored form. Its key texts are secrets.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u8,
    label: String,
    keys: Vec<String>,
    certificates: Vec<String>,
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.keys.zeroize();
    }
}

fn new_key() -> Result<KeyPair, DevError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

fn sign_raw(key: &EcdsaKeyPair, message: &[u8]) -> Result<Vec<u8>, DevError> {
    let signature = key.sign(&SystemRandom::new(), message).map_err(|_| DevError::Key("signing"))?;
    Ok(signature.as_ref().to_vec())
}

/// The 64 bytes `x ‖ y` of a public key.
fn public_key(key: &EcdsaKeyPair) -> [u8; 64] {
    let mut out = [0; 64];
    out.copy_from_slice(&key.public_key().as_ref()[1..65]);
    out
}

/// What each certificate says. `platform` is needed for the platform's own certificate only, not to sign with its key.
fn params(which: Certificate, platform: Option<PlatformOptions>) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("{DEVELOPMENT_COMMON_NAME}{}", which.suffix()));
    name.push(DnType::OrganizationName, "Software keys, no hardware");
    params.distinguished_name = name;
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2049, 12, 31);
    params.serial_number = Some(SerialNumber::from_slice(&[which.serial()]));
    params.use_authority_key_identifier_extension = true;
    let constraint = match which {
        Certificate::Root => Some(1),
        Certificate::PlatformCa => Some(0),
        Certificate::TcbSigner | Certificate::Platform => None,
    };
    if let Some(depth) = constraint {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    } else {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    }
    if let Some(platform) = platform {
        params.custom_extensions.push(CustomExtension::from_oid_content(&der::SGX_EXTENSION, der::pck(platform)));
    }
    params
}
