//! Why the verification library refused, as a typed reason: whose fault it is, the quote's or the collateral's.
//!
//! The library reports text. Its version is pinned exactly, and the tests drive it into every branch below; a text that
//! is not known becomes [`Invalid::Other`], so that nothing unknown is ever taken for acceptable.

use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use crate::collateral::Collateral;
use crate::quote::Quote;
use crate::verdict::{Invalid, Outcome, Unchecked};

/// What was being judged when the library refused.
pub(crate) struct Judged<'a> {
    pub(crate) quote: &'a Quote,
    pub(crate) collateral: &'a Collateral,
    pub(crate) root: &'a [u8],
    pub(crate) now_s: u64,
}

/// Which certificate chain fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chain {
    TcbInfo,
    QeIdentity,
    Platform,
}

impl Judged<'_> {
    /// The reason behind a certificate or revocation error.
    pub(crate) fn certificate(&self, error: &Error) -> Outcome {
        if matches!(error, Error::CrlExpired { .. }) {
            return Outcome::CouldNotCheck(Unchecked::CollateralExpired("revocation list"));
        }
        let text = format!("{error:?}");
        let bundle = self.collateral.bundle();
        for der in [&bundle.root_ca_crl, &bundle.pck_crl] {
            if let Err(error) = OwnedCertRevocationList::from_der(der) {
                let message = format!("a revocation list does not parse: {error:?}");
                return Outcome::CouldNotCheck(Unchecked::CollateralMalformed(message));
            }
        }
        let Some((chain, error)) = self.failing_chain() else {
            return match error {
                Error::CertRevoked => Outcome::Invalid(Invalid::Revoked("root certificate")),
                _ => Outcome::CouldNotCheck(Unchecked::CollateralForged(text)),
            };
        };
        if chain == Chain::Platform { platform(&error) } else { signer(&error, chain) }
    }

    /// Verifies the three chains as the library does and returns the first that fails, and how.
    fn failing_chain(&self) -> Option<(Chain, Error)> {
        let bundle = self.collateral.bundle();
        let tcb = pem(&bundle.tcb_info_issuer_chain);
        let qe = pem(&bundle.qe_identity_issuer_chain);
        let platform = self.quote.pck_chain().iter().map(|der| CertificateDer::from(der.clone())).collect();
        [(Chain::TcbInfo, tcb), (Chain::QeIdentity, qe), (Chain::Platform, platform)]
            .into_iter()
            .find_map(|(chain, certificates)| self.verify(&certificates).err().map(|error| (chain, error)))
    }

    fn verify(&self, certificates: &[CertificateDer<'_>]) -> Result<(), Error> {
        let [leaf, rest @ ..] = certificates else { return Err(Error::UnknownIssuer) };
        let root = CertificateDer::from_slice(self.root);
        let anchors = [webpki::anchor_from_trusted_cert(&root)?];
        let bundle = self.collateral.bundle();
        let crls: Vec<CertRevocationList<'_>> = [&bundle.root_ca_crl, &bundle.pck_crl]
            .into_iter()
            .map(|der| OwnedCertRevocationList::from_der(der).map(CertRevocationList::from))
            .collect::<Result<_, _>>()?;
        let crls: Vec<_> = crls.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&crls)
            .map_err(|_| Error::UnknownRevocationStatus)?
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Deny)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build();
        EndEntityCert::try_from(leaf)?
            .verify_for_usage(
                &[webpki::ring::ECDSA_P256_SHA256],
                &anchors,
                rest,
                UnixTime::since_unix_epoch(Duration::from_secs(self.now_s)),
                KeyUsage::server_auth(),
                Some(revocation),
                None,
            )
            .map(|_| ())
    }
}

fn pem(text: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok).collect()
}

/// An error of the platform's own chain: the quote's fault, unless the revocation list is not about its CA.
fn platform(error: &Error) -> Outcome {
    match error {
        Error::CertRevoked => Outcome::Invalid(Invalid::Revoked("platform certificate or its CA")),
        Error::CrlExpired { .. } => Outcome::CouldNotCheck(Unchecked::CollateralExpired("revocation list")),
        Error::UnknownRevocationStatus => {
            let message = "its revocation list is not from the CA of this platform".to_owned();
            Outcome::CouldNotCheck(Unchecked::CollateralOfAnother(message))
        }
        Error::InvalidCrlSignatureForPublicKey => {
            let message = "the revocation list is not signed by the CA of this platform".to_owned();
            Outcome::CouldNotCheck(Unchecked::CollateralForged(message))
        }
        other => Outcome::Invalid(Invalid::PlatformCertificate(format!("{other:?}"))),
    }
}

/// An error of the chain of whoever signed the collateral.
fn signer(error: &Error, chain: Chain) -> Outcome {
    let what = if chain == Chain::TcbInfo { "TCB info signer" } else { "QE identity signer" };
    Outcome::CouldNotCheck(match error {
        Error::CertExpired { .. } => Unchecked::CollateralExpired(what),
        Error::CertNotValidYet { .. } => Unchecked::CollateralNotYetValid(what),
        Error::CrlExpired { .. } => Unchecked::CollateralExpired("revocation list"),
        other => Unchecked::CollateralForged(format!("{what}: {other:?}")),
    })
}

/// The reason behind any other refusal, from the library's whole text.
pub(crate) fn refusal(text: &str) -> Outcome {
    match collateral_refusal(text) {
        Some(reason) => Outcome::CouldNotCheck(reason),
        None => Outcome::Invalid(quote_refusal(text)),
    }
}

/// Refusals that are the collateral's fault.
fn collateral_refusal(text: &str) -> Option<Unchecked> {
    let any = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    Some(if any(&["TCBInfo expired"]) {
        Unchecked::CollateralExpired("TCB info")
    } else if any(&["QE Identity expired"]) {
        Unchecked::CollateralExpired("QE identity")
    } else if any(&["TCBInfo issue date is in the future"]) {
        Unchecked::CollateralNotYetValid("TCB info")
    } else if any(&["QE Identity issue date is in the future"]) {
        Unchecked::CollateralNotYetValid("QE identity")
    } else if any(&["Signature is invalid for tcb_info", "Signature is invalid for qe_identity"])
        || any(&["must be issued directly by the root CA"])
    {
        Unchecked::CollateralForged(text.to_owned())
    } else if any(&["Fmspc mismatch"]) {
        Unchecked::CollateralOfAnother("another platform family (FMSPC)".to_owned())
    } else if any(&["non-TDX TCB info", "Unsupported QE Identity id/version"]) {
        Unchecked::CollateralOfAnother(text.to_owned())
    } else if any(&["Failed to decode TcbInfo", "Failed to decode QeIdentity", "Failed to parse TCB"])
        || any(&["Failed to parse QE", "too short for", "CRL", "Unrecognized TCB status", "Too many intermediate"])
    {
        Unchecked::CollateralMalformed(text.to_owned())
    } else {
        return None;
    })
}

/// Every other refusal is the quote's fault, the unknown ones too.
fn quote_refusal(text: &str) -> Invalid {
    let any = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    if any(&["Signature is invalid for qe_report"]) {
        Invalid::EnclaveReport
    } else if any(&["QE report hash mismatch"]) {
        Invalid::AttestationKey
    } else if any(&["ISV enclave report signature is invalid"]) {
        Invalid::Signature
    } else if any(&["TCB status is invalid: Revoked"]) {
        Invalid::TcbRevoked
    } else if any(&["QE report validation failed"]) {
        Invalid::QuotingEnclave(text.to_owned())
    } else if any(&["Debug mode is enabled", "TD profiling is enabled"]) {
        Invalid::Debug
    } else if any(&["TDX module", "No matching TCB level", "current TDX TCB"]) {
        Invalid::TcbUnknown(text.to_owned())
    } else if any(&["TD attributes", "TD migration", "SERVTD_EXT", "SEPT_VE", "service TD"]) {
        Invalid::Attributes(text.to_owned())
    } else if any(&["MRSIGNER", "ISVPRODID", "MISCSELECT", "ATTRIBUTES", "QE "]) {
        Invalid::QuotingEnclave(text.to_owned())
    } else {
        Invalid::Other(text.to_owned())
    }
}
