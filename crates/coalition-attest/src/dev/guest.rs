//! The software guest: quotes of the real format, signed by a development root's platform.

use dcap_qvl::INTEL_QE_VENDOR_ID;
use ring::digest::{SHA256, SHA384, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use super::{Certificate, DevError, DevelopmentRoot, SVN, public_key, sign_raw};
use crate::guest::{GuestError, QuoteSource};
use crate::measurement::{Measurements, Register};
use crate::quote::{ReportKind, encode_chain};
use crate::root::DEVELOPMENT_LABEL;

/// Security version of the development TDX module.
pub(super) const MODULE_SVN: u8 = 5;
/// Its attributes.
pub(super) const MODULE_ATTRIBUTES: [u8; 8] = [0; 8];
/// Product of the development quoting enclave; the one of every quoting enclave for TDX.
pub(super) const QE_PRODUCT: u16 = 2;
/// Its security version.
pub(super) const QE_SVN: u16 = 4;

/// `SEPT_VE_DISABLE`: what every sound guest has set.
const SOUND_ATTRIBUTES: u64 = 1 << 28;
const XFAM: u64 = 0x61e7;
const QE_AUTH: [u8; 32] = [0xde; 32];

/// Signer of the development TDX module; Intel's is all zeros.
pub(super) fn module_signer() -> [u8; 48] {
    let mut out = [0; 48];
    out.copy_from_slice(digest(&SHA384, b"coalition development TDX module").as_ref());
    out
}

/// Signer of the development quoting enclave.
pub(super) fn qe_signer() -> [u8; 32] {
    sha256(&[b"coalition development quoting enclave"])
}

/// The form of the quotes a guest makes; every field but `version` and `kind` is for quotes that must be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestOptions {
    /// Format version, 4 or 5; version 4 carries only [`ReportKind::Td10`].
    pub version: u16,
    /// Generation of the report.
    pub kind: ReportKind,
    /// TD attributes.
    pub attributes: u64,
    /// Security version of the TDX module it was launched under.
    pub module_svn: u8,
    /// Security version of the TDX module it runs under now, where that was updated since; told by TD 1.5 reports.
    pub current_module_svn: Option<u8>,
    /// Security version of the quoting enclave.
    pub qe_svn: u16,
    /// Product of the quoting enclave.
    pub qe_product: u16,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            version: 4,
            kind: ReportKind::Td10,
            attributes: SOUND_ATTRIBUTES,
            module_svn: MODULE_SVN,
            current_module_svn: None,
            qe_svn: QE_SVN,
            qe_product: QE_PRODUCT,
        }
    }
}

impl GuestOptions {
    /// A guest that its host can debug.
    #[must_use]
    pub fn debug() -> Self {
        Self { attributes: SOUND_ATTRIBUTES | 1, ..Self::default() }
    }
}

/// A guest without hardware. Its quotes verify under its development root and no other.
pub struct DevelopmentGuest {
    measurements: Measurements,
    options: GuestOptions,
    key: EcdsaKeyPair,
    public_key: [u8; 64],
    certification: Vec<u8>,
}

impl std::fmt::Debug for DevelopmentGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DevelopmentGuest({DEVELOPMENT_LABEL}, {})", self.measurements.mrtd)
    }
}

impl DevelopmentRoot {
    /// A guest that claims these measurements.
    ///
    /// # Errors
    /// [`DevError`] when a key is unusable.
    pub fn guest(&self, measurements: Measurements) -> Result<DevelopmentGuest, DevError> {
        self.guest_with(measurements, GuestOptions::default())
    }

    /// A guest whose quotes have this form.
    ///
    /// # Errors
    /// As [`DevelopmentRoot::guest`].
    pub fn guest_with(&self, measurements: Measurements, options: GuestOptions) -> Result<DevelopmentGuest, DevError> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(|_| DevError::Key("attestation"))?;
        let key =
            EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).map_err(|_| DevError::Key("attestation"))?;
        let public_key = public_key(&key);
        let report = qe_report(&public_key, &options);
        let mut chain = encode_chain(
            &[Certificate::Platform, Certificate::PlatformCa, Certificate::Root].map(|c| self.certificate(c)),
            "\n",
        )
        .into_bytes();
        chain.extend(b"\n\0");

        let mut certification = report.to_vec();
        certification.extend(self.sign(Certificate::Platform, &report)?);
        certification.extend(32u16.to_le_bytes());
        certification.extend(QE_AUTH);
        certification.extend(5u16.to_le_bytes());
        push_with_length(&mut certification, &chain);
        Ok(DevelopmentGuest { measurements, options, key, public_key, certification })
    }
}

impl DevelopmentGuest {
    /// What it claims to be.
    #[must_use]
    pub const fn measurements(&self) -> &Measurements {
        &self.measurements
    }

    /// A quote over this report data.
    ///
    /// # Errors
    /// [`DevError::Key`] when the random source fails.
    pub fn sign_quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, DevError> {
        let mut quote = self.signed_part(report_data);
        let mut auth = sign_raw(&self.key, &quote)?;
        auth.extend(self.public_key);
        auth.extend(6u16.to_le_bytes());
        push_with_length(&mut auth, &self.certification);
        push_with_length(&mut quote, &auth);
        Ok(quote)
    }

    fn signed_part(&self, report_data: &[u8; 64]) -> Vec<u8> {
        let options = &self.options;
        let mut out = Vec::with_capacity(8192);
        out.extend(options.version.to_le_bytes());
        out.extend(2u16.to_le_bytes());
        out.extend(0x81u32.to_le_bytes());
        out.extend([0; 4]);
        out.extend(INTEL_QE_VENDOR_ID);
        out.extend(b"DEVELOPMENT ROOT\0\0\0\0");
        if options.version == 5 {
            let (kind, size): (u16, u32) = match options.kind {
                ReportKind::Td10 => (2, 584),
                ReportKind::Td15 => (3, 648),
                ReportKind::Td15Ex => (4, 885),
            };
            out.extend(kind.to_le_bytes());
            out.extend(size.to_le_bytes());
        }
        let start = out.len();
        let svn = tee_tcb_svn(options.module_svn);
        out.extend(svn);
        out.extend([0; 48]);
        out.extend(module_signer());
        out.extend(MODULE_ATTRIBUTES);
        out.extend(options.attributes.to_le_bytes());
        out.extend(XFAM.to_le_bytes());
        let order = [
            Register::Mrtd,
            Register::MrConfigId,
            Register::MrOwner,
            Register::MrOwnerConfig,
            Register::Rtmr0,
            Register::Rtmr1,
            Register::Rtmr2,
            Register::Rtmr3,
        ];
        order.into_iter().for_each(|register| out.extend(self.measurements.get(register).0));
        out.extend(report_data);
        if options.kind != ReportKind::Td10 {
            out.extend(options.current_module_svn.map_or(svn, tee_tcb_svn));
            out.extend([0; 48]);
        }
        if options.kind == ReportKind::Td15Ex {
            out.resize(start + 885, 0);
        }
        out
    }
}

impl QuoteSource for DevelopmentGuest {
    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, GuestError> {
        self.sign_quote(report_data).map_err(|e| GuestError::Development(Box::new(e)))
    }

    fn label(&self) -> &'static str {
        DEVELOPMENT_LABEL
    }
}

/// Module version 1 with this security version; the platform's own components after it.
fn tee_tcb_svn(module_svn: u8) -> [u8; 16] {
    let mut out = [SVN; 16];
    out[0] = module_svn;
    out[1] = 1;
    out
}

fn qe_report(attestation_key: &[u8; 64], options: &GuestOptions) -> [u8; 384] {
    let mut out = [0; 384];
    out[..16].fill(SVN);
    out[48] = 0x11;
    out[64..96].copy_from_slice(&sha256(&[b"coalition development quoting enclave image"]));
    out[128..160].copy_from_slice(&qe_signer());
    out[256..258].copy_from_slice(&options.qe_product.to_le_bytes());
    out[258..260].copy_from_slice(&options.qe_svn.to_le_bytes());
    out[320..352].copy_from_slice(&sha256(&[attestation_key, &QE_AUTH]));
    out
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, &parts.concat()).as_ref());
    out
}

/// A little-endian length, then the bytes; nothing here is near the limit.
fn push_with_length(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend(bytes);
}
