//! RA-TLS: TLS 1.3 in which each side's certificate carries a quote, verified in the handshake by the other.
//!
//! A certificate is self-signed and worth nothing by itself; the quote in it binds the certificate's public key, the
//! side (client or server), the network, the config and a nonce. The handshake proves the key, the quote proves the
//! guest that holds it. There is no lower level to fall back to: a peer without a certificate, without a quote, with
//! TLS 1.2, or resuming an earlier session is a refused connection.

use std::fmt;
use std::sync::Arc;

use coalition::UniqueId;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName as Hint, OtherError, ServerConfig,
    SignatureScheme,
};
use thiserror::Error;
use x509_cert::der::{Decode as _, Encode as _};
use zeroize::Zeroizing;

use crate::binding::{Binding, Expect, Nonce};
use crate::cache::VerdictCache;
use crate::collateral::{Collateral, CollateralSource};
use crate::evidence::{Evidence, EvidenceError};
use crate::guest::{GuestError, QuoteSource};
use crate::verdict::{NotValid, Outcome, Verdict};
use crate::verify::Verifier;

/// Object id of the certificate extension that carries [`Evidence`].
pub const EVIDENCE_OID: [u64; 3] = [2, 25, 1_913_404_125];

/// The server name clients send; nothing depends on it.
pub const SERVER_NAME: &str = "attested.invalid";

/// Which side a certificate is for; a quote for one is refused from the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The side that connects.
    Client,
    /// The side that accepts.
    Server,
}

impl Side {
    const fn purpose(self) -> &'static str {
        match self {
            Self::Client => "ra-tls/client",
            Self::Server => "ra-tls/server",
        }
    }
}

/// What one side's quote is bound to, besides its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Network or coalition.
    pub network: UniqueId,
    /// Hash of the config that side runs.
    pub config: UniqueId,
    /// Nonce that side was given: fresh per bond where replay across bonds matters.
    pub nonce: Nonce,
}

/// Why an identity could not be made or a configuration built.
#[derive(Debug, Error)]
pub enum RaTlsError {
    /// The key or certificate could not be made.
    #[error("the RA-TLS certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    /// There is no quote.
    #[error("the RA-TLS certificate has no quote")]
    Quote(#[from] GuestError),
    /// The evidence does not fit a certificate.
    #[error("the RA-TLS evidence")]
    Evidence(#[from] EvidenceError),
    /// The TLS library refused.
    #[error("the TLS configuration")]
    Tls(#[from] rustls::Error),
}

/// Why a peer's certificate was refused.
#[derive(Debug, Error)]
pub enum Refused {
    /// It is no certificate of this kind.
    #[error("the peer's certificate is refused: {0}")]
    Certificate(&'static str),
    /// It carries no usable evidence.
    #[error("the peer's certificate carries no usable evidence")]
    Evidence(#[from] EvidenceError),
    /// Its quote is not valid.
    #[error("the peer's quote is refused: {0}")]
    Verdict(#[from] NotValid),
}

/// Why this side refused its peer, out of the error its TLS connection ended with. None when the cause is another.
#[must_use]
pub fn refusal(error: &rustls::Error) -> Option<&Refused> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.downcast_ref(),
        _ => None,
    }
}

/// A key pair and the certificate that carries its quote.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: Zeroizing<Vec<u8>>,
    side: Side,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?}, key redacted)", self.side)
    }
}

impl Identity {
    /// Makes a key, has it quoted, and puts the quote in a certificate. Blocks as long as the quote takes.
    ///
    /// With `collateral` the peer needs no place of its own to judge the quote.
    ///
    /// # Errors
    /// [`RaTlsError`].
    pub fn new(
        source: &dyn QuoteSource,
        collateral: Option<&Collateral>,
        side: Side,
        context: &Context,
    ) -> Result<Self, RaTlsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        let binding = Binding {
            purpose: side.purpose(),
            network: context.network,
            key: &spki,
            config: context.config,
            nonce: context.nonce.value,
        };
        let quote = source.quote(&binding.report_data())?;
        let evidence = Evidence { quote, collateral: collateral.cloned() };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "coalition RA-TLS");
        params.custom_extensions.push(CustomExtension::from_oid_content(&EVIDENCE_OID, evidence.to_bytes()?));
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { certificate, key: Zeroizing::new(key.serialize_der()), side })
    }

    /// The certificate, DER.
    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.to_vec()).into()
    }
}

/// What the other side must be.
pub struct Peer {
    /// Judges its quote.
    pub verifier: Arc<Verifier>,
    /// Where collateral is looked for, before what the peer brought.
    pub collateral: Arc<dyn CollateralSource>,
    /// Remembers verdicts.
    pub cache: Arc<VerdictCache>,
    /// What its quote must be bound to.
    pub context: Context,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({:?})", self.verifier)
    }
}

impl Peer {
    /// Judges the certificate of a peer on `side` at `now_s`, Unix seconds. After a handshake this is remembered.
    ///
    /// # Errors
    /// [`Refused`] when it carries no quote, or its quote is anything but valid.
    pub fn judge(&self, certificate: &CertificateDer<'_>, side: Side, now_s: u64) -> Result<Verdict, Refused> {
        let wrong = Refused::Certificate;
        let parsed = x509_cert::Certificate::from_der(certificate).map_err(|_| wrong("it does not parse"))?;
        let parsed = parsed.tbs_certificate();
        let validity = parsed.validity();
        let from = validity.not_before.to_unix_duration().as_secs();
        let until = validity.not_after.to_unix_duration().as_secs();
        if !(from..=until).contains(&now_s) {
            return Err(wrong("it is not valid at this time"));
        }
        let spki = parsed.subject_public_key_info().to_der().map_err(|_| wrong("its key does not encode"))?;
        let oid = EVIDENCE_OID.map(|part| part.to_string()).join(".");
        let mut found = parsed
            .extensions()
            .map(|all| all.iter())
            .into_iter()
            .flatten()
            .filter(|extension| extension.extn_id.to_string() == oid);
        let extension = match (found.next(), found.next()) {
            (Some(extension), None) => extension,
            (None, _) => return Err(wrong("it carries no quote")),
            (Some(_), Some(_)) => return Err(wrong("it carries more than one quote")),
        };
        let evidence = Evidence::from_bytes(extension.extn_value.as_bytes())?;
        let context = &self.context;
        let expect = Expect::bound(side.purpose(), context.network, &spki, context.config, context.nonce);
        let verdict = evidence.judge(&self.verifier, &self.cache, &*self.collateral, &expect, now_s);
        if matches!(verdict.outcome, Outcome::Valid) { Ok(verdict) } else { Err(NotValid(Box::new(verdict)).into()) }
    }
}

/// A server that shows its quote and demands one.
///
/// # Errors
/// [`RaTlsError::Tls`].
pub fn server_config(
    identity: &Identity,
    peer: Arc<Peer>,
    time: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, RaTlsError> {
    let provider = Arc::new(ring::default_provider());
    let judge = Arc::new(Judge { peer, provider: Arc::clone(&provider) });
    let mut config = ServerConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(judge)
        .with_single_cert(vec![identity.certificate.clone()], identity.key())?;
    // A resumed session would skip the certificate, and with it the quote.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A client that shows its quote and demands one. Connect with the name [`SERVER_NAME`].
///
/// # Errors
/// [`RaTlsError::Tls`].
pub fn client_config(
    identity: &Identity,
    peer: Arc<Peer>,
    time: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, RaTlsError> {
    let provider = Arc::new(ring::default_provider());
    let judge = Arc::new(Judge { peer, provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(judge)
        .with_client_auth_cert(vec![identity.certificate.clone()], identity.key())?;
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// Judges certificates for the TLS library.
struct Judge {
    peer: Arc<Peer>,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Judge({:?})", self.peer)
    }
}

impl Judge {
    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let judged = if intermediates.is_empty() {
            self.peer.judge(certificate, side, now.as_secs()).map(|_| ())
        } else {
            Err(Refused::Certificate("it comes with others, and must come alone"))
        };
        judged.map_err(|refused| CertificateError::Other(OtherError(Arc::new(refused))).into())
    }

    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Only TLS 1.3 is offered and accepted, so this is never asked; if it were, it would be a downgrade.
fn downgrade() -> rustls::Error {
    rustls::Error::General("RA-TLS speaks TLS 1.3 only".to_owned())
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, Side::Server, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(downgrade())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[Hint] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, Side::Client, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(downgrade())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
