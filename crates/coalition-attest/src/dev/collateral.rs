//! Collateral of a development root: revocation lists, TCB info and QE identity, dated as asked.

use dcap_qvl::QuoteCollateralV3;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::guest::{MODULE_ATTRIBUTES, MODULE_SVN, QE_PRODUCT, QE_SVN, module_signer, qe_signer};
use super::{Certificate, DEVELOPMENT_FMSPC, DevError, DevelopmentRoot, PCE_SVN, SVN};
use crate::collateral::{Collateral, Origin};
use crate::quote::encode_chain;

/// How long development collateral is valid, seconds: thirty days, as Intel's.
const VALID_FOR_S: u64 = 30 * 24 * 3600;

/// How far fresh collateral is dated back, seconds, so that a verifier whose clock is a little behind takes it too.
const DATED_BACK_S: u64 = 300;

const TCB_DATE: &str = "2020-01-01T00:00:00Z";

/// What collateral says; every field but the dates is for making collateral that must be refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollateralOptions {
    /// Date of all of it, Unix seconds.
    pub issued_s: u64,
    /// End of all of it, Unix seconds.
    pub expires_s: u64,
    /// Its TCB evaluation.
    pub evaluation: u32,
    /// Status of the platform's level, in the words of TCB info.
    pub status: &'static str,
    /// Status of the quoting enclave's level.
    pub qe_status: &'static str,
    /// Advisories of the platform's level.
    pub advisories: Vec<String>,
    /// Platform family it is about.
    pub fmspc: [u8; 6],
    /// Provisioning enclave it is about.
    pub pce_id: [u8; 2],
    /// Security version every platform component must have.
    pub required_svn: u8,
    /// Security version the TDX module must have.
    pub required_module_svn: u8,
    /// Security version of an older TDX module that is known, and out of date.
    pub outdated_module_svn: Option<u8>,
    /// Revoked certificates.
    pub revoked: Vec<Certificate>,
    /// Which key signs TCB info and QE identity.
    pub signer: Certificate,
}

impl CollateralOptions {
    /// Ordinary collateral: up to date, valid for thirty days from `issued_s`, Unix seconds.
    #[must_use]
    pub const fn issued(issued_s: u64) -> Self {
        Self {
            issued_s,
            expires_s: issued_s + VALID_FOR_S,
            evaluation: 1,
            status: "UpToDate",
            qe_status: "UpToDate",
            advisories: Vec::new(),
            fmspc: DEVELOPMENT_FMSPC,
            pce_id: [0; 2],
            required_svn: SVN,
            required_module_svn: MODULE_SVN,
            outdated_module_svn: None,
            revoked: Vec::new(),
            signer: Certificate::TcbSigner,
        }
    }
}

impl DevelopmentRoot {
    /// Fresh collateral for its platform: valid for thirty days, from five minutes before `now_s`, Unix seconds.
    ///
    /// # Errors
    /// [`DevError`] when a key is unusable or the time cannot be written.
    pub fn collateral(&self, now_s: u64) -> Result<Collateral, DevError> {
        self.collateral_with(&CollateralOptions::issued(now_s.saturating_sub(DATED_BACK_S)))
    }

    /// Collateral that says what `options` say.
    ///
    /// # Errors
    /// As [`DevelopmentRoot::collateral`].
    pub fn collateral_with(&self, options: &CollateralOptions) -> Result<Collateral, DevError> {
        let chain = |leaf: Certificate| {
            encode_chain(&[self.certificate(leaf), self.certificate(Certificate::Root)], "\n") + "\n"
        };
        let tcb_info = tcb_info(options)?;
        let qe_identity = qe_identity(options)?;
        let bundle = QuoteCollateralV3 {
            pck_crl_issuer_chain: chain(Certificate::PlatformCa),
            root_ca_crl: self.crl(Certificate::Root, options)?,
            pck_crl: self.crl(Certificate::PlatformCa, options)?,
            tcb_info_issuer_chain: chain(Certificate::TcbSigner),
            tcb_info_signature: self.sign(options.signer, tcb_info.as_bytes())?,
            tcb_info,
            qe_identity_issuer_chain: chain(Certificate::TcbSigner),
            qe_identity_signature: self.sign(options.signer, qe_identity.as_bytes())?,
            qe_identity,
            pck_certificate_chain: None,
        };
        Ok(Collateral::new(bundle, Origin::Development))
    }

    /// The revocation list of one of its two CAs: those of the revoked certificates that it issued.
    fn crl(&self, ca: Certificate, options: &CollateralOptions) -> Result<Vec<u8>, DevError> {
        let issued_by_ca = |which: &&Certificate| match ca {
            Certificate::PlatformCa => **which == Certificate::Platform,
            _ => **which != Certificate::Platform,
        };
        let revoked_certs = options
            .revoked
            .iter()
            .filter(issued_by_ca)
            .map(|which| {
                Ok(RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&[which.serial()]),
                    revocation_time: moment(options.issued_s)?,
                    reason_code: None,
                    invalidity_date: None,
                })
            })
            .collect::<Result<_, DevError>>()?;
        let params = CertificateRevocationListParams {
            this_update: moment(options.issued_s)?,
            next_update: moment(options.expires_s)?,
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer(ca)?)?.der().to_vec())
    }
}

fn moment(seconds: u64) -> Result<OffsetDateTime, DevError> {
    i64::try_from(seconds).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok()).ok_or(DevError::Time(seconds))
}

fn date(seconds: u64) -> Result<String, DevError> {
    moment(seconds)?.format(&Rfc3339).map_err(|_| DevError::Time(seconds))
}

fn tcb_info(options: &CollateralOptions) -> Result<String, DevError> {
    let components = |svn: u8| vec![json!({ "svn": svn }); 16];
    let module = json!({
        "mrsigner": hex::encode_upper(module_signer()),
        "attributes": hex::encode_upper(MODULE_ATTRIBUTES),
        "attributesMask": "FF".repeat(8),
    });
    let mut identity = module.clone();
    identity["id"] = json!("TDX_01");
    let level = |svn: u8, status: &str| json!({ "tcb": { "isvsvn": svn }, "tcbDate": TCB_DATE, "tcbStatus": status });
    let mut levels = vec![level(options.required_module_svn, "UpToDate")];
    levels.extend(options.outdated_module_svn.map(|svn| level(svn, "OutOfDate")));
    identity["tcbLevels"] = json!(levels);
    Ok(json!({
        "id": "TDX",
        "version": 3,
        "issueDate": date(options.issued_s)?,
        "nextUpdate": date(options.expires_s)?,
        "fmspc": hex::encode_upper(options.fmspc),
        "pceId": hex::encode_upper(options.pce_id),
        "tcbType": 0,
        "tcbEvaluationDataNumber": options.evaluation,
        "tdxModule": module,
        "tdxModuleIdentities": [identity],
        "tcbLevels": [{
            "tcb": {
                "sgxtcbcomponents": components(options.required_svn),
                "pcesvn": PCE_SVN,
                "tdxtcbcomponents": components(0),
            },
            "tcbDate": TCB_DATE,
            "tcbStatus": options.status,
            "advisoryIDs": options.advisories,
        }],
    })
    .to_string())
}

fn qe_identity(options: &CollateralOptions) -> Result<String, DevError> {
    Ok(json!({
        "id": "TD_QE",
        "version": 2,
        "issueDate": date(options.issued_s)?,
        "nextUpdate": date(options.expires_s)?,
        "tcbEvaluationDataNumber": options.evaluation,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": hex::encode_upper(qe_signer()),
        "isvprodid": QE_PRODUCT,
        "tcbLevels": [{ "tcb": { "isvsvn": QE_SVN }, "tcbDate": TCB_DATE, "tcbStatus": options.qe_status }],
    })
    .to_string())
}
