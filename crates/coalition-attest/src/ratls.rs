//! RA-TLS: TLS 1.3 in which each side's certificate carries a quote, verified in the handshake by the other.
//!
//! A certificate is self-signed and worth nothing by itself; the quote in it binds the certificate's public key, the
//! side (client or server), the network, the config and a nonce. The handshake proves the key, the quote proves the
//! guest that holds it. There is no lower level to fall back to: a peer without a certificate, without a quote, with
//! TLS 1.2, or resuming an earlier session is a refused connection.
//!
//! One bond, one quote: each side draws a nonce from its [`ChallengeBook`] and tells the other before the handshake, each
//! has a [`Prover`] make an [`Identity`] over the nonce it was told, and the book takes every nonce once.

use std::fmt;
use std::sync::Arc;

use coalition::UniqueId;
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, ClientConfig, OtherError, ServerConfig};
use thiserror::Error;
use x509_cert::der::{Decode as _, Encode as _};

use crate::binding::{Expect, Nonce};
use crate::cache::VerdictCache;
use crate::collateral::CollateralSource;
use crate::evidence::{Evidence, EvidenceError};
use crate::guest::GuestError;
use crate::verdict::{NotValid, Outcome, Verdict};
use crate::verify::Verifier;

mod expect;
mod handshake;
mod identity;

pub use expect::{ChallengeBook, Claim, Expectations, Unexpected};
pub use identity::{Identity, Prover};

use handshake::Judge;
use identity::read_statement;

/// Object id of the certificate extension that carries config, nonce and [`Evidence`].
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
    /// Nonce that side was given: fresh for each bond with a [`ChallengeBook`].
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
    /// Nobody expects what it claims.
    #[error("the peer is refused: {0}")]
    Unexpected(#[from] Unexpected),
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

/// What the other side must be.
pub struct Peer {
    /// Judges its quote.
    pub verifier: Arc<Verifier>,
    /// Where collateral is looked for, before what the peer brought.
    pub collateral: Arc<dyn CollateralSource>,
    /// Remembers verdicts.
    pub cache: Arc<VerdictCache>,
    /// What its quote must be bound to: a [`Context`], a closure, or a [`ChallengeBook`].
    pub expectations: Arc<dyn Expectations>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({:?})", self.verifier)
    }
}

impl Peer {
    /// Judges the certificate of a peer on `side` at `now_s`, Unix seconds. After a handshake this is remembered. Uses up no
    /// nonce: only a handshake does.
    ///
    /// # Errors
    /// [`Refused`] when it carries no quote, is not expected, or its quote is anything but valid.
    pub fn judge(&self, certificate: &CertificateDer<'_>, side: Side, now_s: u64) -> Result<Verdict, Refused> {
        let wrong = Refused::Certificate;
        let parsed = parse(certificate)?;
        let validity = parsed.tbs_certificate().validity();
        let from = validity.not_before.to_unix_duration().as_secs();
        let until = validity.not_after.to_unix_duration().as_secs();
        if !(from..=until).contains(&now_s) {
            return Err(wrong("it is not valid at this time"));
        }
        let spki = parsed.tbs_certificate().subject_public_key_info().to_der();
        let spki = spki.map_err(|_| wrong("its key does not encode"))?;
        let (claim, evidence) = read_statement(statement(&parsed)?, side)?;
        let evidence = Evidence::from_bytes(evidence)?;
        let Context { network, config, nonce } = self.expectations.expected(&claim, now_s)?;
        let expect = Expect::bound(side.purpose(), network, &spki, config, nonce);
        let verdict = evidence.judge(&self.verifier, &self.cache, &*self.collateral, &expect, now_s);
        if !matches!(verdict.outcome, Outcome::Valid) {
            return Err(NotValid(Box::new(verdict)).into());
        }
        // The quote is what is expected; then so must be the claim, or one quote would have many certificates.
        if (claim.config, claim.nonce) != (config, nonce.value) {
            return Err(wrong("it claims another config or nonce than its quote has"));
        }
        Ok(verdict)
    }

    /// Takes a peer whose certificate was judged valid and that has proved its key.
    fn accept(&self, certificate: &CertificateDer<'_>, side: Side) -> Result<(), Refused> {
        let parsed = parse(certificate)?;
        let (claim, _) = read_statement(statement(&parsed)?, side)?;
        Ok(self.expectations.accept(&claim)?)
    }
}

fn parse(certificate: &CertificateDer<'_>) -> Result<x509_cert::Certificate, Refused> {
    x509_cert::Certificate::from_der(certificate).map_err(|_| Refused::Certificate("it does not parse"))
}

/// The content of the one extension that carries a quote.
fn statement(certificate: &x509_cert::Certificate) -> Result<&[u8], Refused> {
    let oid = EVIDENCE_OID.map(|part| part.to_string()).join(".");
    let all = certificate.tbs_certificate().extensions().map(|all| all.iter()).into_iter().flatten();
    let mut found = all.filter(|extension| extension.extn_id.to_string() == oid);
    match (found.next(), found.next()) {
        (Some(extension), None) => Ok(extension.extn_value.as_bytes()),
        (None, _) => Err(Refused::Certificate("it carries no quote")),
        (Some(_), Some(_)) => Err(Refused::Certificate("it carries more than one quote")),
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
        .with_single_cert(vec![identity.certificate().clone()], identity.key())?;
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
        .with_client_auth_cert(vec![identity.certificate().clone()], identity.key())?;
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}
