//! Keys with quotes: what a side shows, and the extension it travels in.
//!
//! The extension holds version `02` ‖ config (32) ‖ nonce (32) ‖ [`Evidence`]. Config and nonce only say which of the things
//! a peer may expect this is meant to be; the quote's report data is what binds them.

use std::fmt;
use std::sync::Arc;

use coalition::UniqueId;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::expect::Claim;
use super::{Context, EVIDENCE_OID, RaTlsError, Refused, Side};
use crate::binding::Binding;
use crate::collateral::Collateral;
use crate::evidence::Evidence;
use crate::guest::QuoteSource;

const VERSION: u8 = 2;

/// Makes the identities of one side, one for each nonce it is given: no quote serves two bonds.
pub struct Prover {
    /// The guest.
    pub source: Arc<dyn QuoteSource>,
    /// Its collateral, if the peer is to need none of its own.
    pub collateral: Option<Collateral>,
    /// The side it stands on.
    pub side: Side,
    /// Network or coalition.
    pub network: UniqueId,
    /// Hash of the config it runs.
    pub config: UniqueId,
}

impl fmt::Debug for Prover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prover({:?}, {})", self.side, self.source.label())
    }
}

impl Prover {
    /// A fresh key with a fresh quote over the nonce its peer drew for this one bond. Blocks as long as the quote takes.
    ///
    /// # Errors
    /// [`RaTlsError`].
    pub fn identity(&self, nonce: UniqueId) -> Result<Identity, RaTlsError> {
        let claim = Claim { side: self.side, config: self.config, nonce };
        Identity::of(&*self.source, self.collateral.as_ref(), self.network, claim)
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
        let claim = Claim { side, config: context.config, nonce: context.nonce.value };
        Self::of(source, collateral, context.network, claim)
    }

    fn of(
        source: &dyn QuoteSource,
        collateral: Option<&Collateral>,
        network: UniqueId,
        claim: Claim,
    ) -> Result<Self, RaTlsError> {
        let Claim { side, config, nonce } = claim;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        let binding = Binding { purpose: side.purpose(), network, key: &spki, config, nonce };
        let quote = source.quote(&binding.report_data())?;
        let evidence = Evidence { quote, collateral: collateral.cloned() };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "coalition RA-TLS");
        let content = write_statement(&claim, &evidence.to_bytes()?);
        params.custom_extensions.push(CustomExtension::from_oid_content(&EVIDENCE_OID, content));
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { certificate, key: Zeroizing::new(key.serialize_der()), side })
    }

    /// The certificate, DER.
    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.to_vec()).into()
    }
}

fn write_statement(claim: &Claim, evidence: &[u8]) -> Vec<u8> {
    [&[VERSION], claim.config.as_bytes().as_slice(), claim.nonce.as_bytes(), evidence].concat()
}

/// What an extension says: the claim, and the evidence, not yet parsed.
pub(super) fn read_statement(content: &[u8], side: Side) -> Result<(Claim, &[u8]), Refused> {
    let wrong = Refused::Certificate("its extension is not of version 2: config, nonce and evidence");
    let Some((&[VERSION], rest)) = content.split_first_chunk::<1>() else { return Err(wrong) };
    let Some((config, rest)) = rest.split_first_chunk::<32>() else { return Err(wrong) };
    let Some((nonce, evidence)) = rest.split_first_chunk::<32>() else { return Err(wrong) };
    Ok((Claim { side, config: UniqueId::from_bytes(*config), nonce: UniqueId::from_bytes(*nonce) }, evidence))
}
