//! The bytes of a TDX quote, parsed strictly: every byte is accounted for, so none can change unnoticed.
//!
//! Quotes of version 4 (a TD 1.0 report) and version 5 (TD 1.0, 1.5 and 1.5ex reports) with ECDSA P-256 keys and an
//! embedded PCK certificate chain. Parsing checks form only; what a quote claims is worth nothing until
//! [`crate::verify::Verifier`] has judged it.
//!
//! Platforms pad quotes with zeros; the padding is checked and dropped, so that one quote has one [`Quote::digest`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coalition::{Mrtd, UniqueId, hash_many};
use thiserror::Error;

use crate::collateral::CollateralKey;
use crate::measurement::{Measurements, MrConfigId, MrOwner, MrOwnerConfig, Rtmr};

/// Longest quote looked at, padding included.
pub const MAX_QUOTE_BYTES: usize = 32 * 1024;

const VERSION: u8 = 1;
const TAG: &[u8] = b"coalition/attest/quote";

const HEADER_BYTES: usize = 48;
const TD10_BYTES: usize = 584;
const TD15_BYTES: usize = 648;
const TD15_EX_BYTES: usize = 885;
const TEE_TDX: u32 = 0x81;
const KEY_ECDSA_P256: u16 = 2;
const CERT_QE_REPORT: u16 = 6;
const CERT_PCK_CHAIN: u16 = 5;
const QE_REPORT_BYTES: usize = 384;
const QE_AUTH_BYTES: u16 = 32;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Why bytes are no TDX quote this crate can judge.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum QuoteError {
    /// Longer than [`MAX_QUOTE_BYTES`].
    #[error("a quote of {found} bytes is over the limit of {MAX_QUOTE_BYTES}")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// The bytes end inside a field.
    #[error("the quote ends in its {field}: {needed} bytes needed, {left} left")]
    Truncated {
        /// The field.
        field: &'static str,
        /// Bytes it needs.
        needed: usize,
        /// Bytes left.
        left: usize,
    },
    /// A stated length that disagrees with what it measures.
    #[error("the {field} states a length of {stated}, its contents have {actual}")]
    Length {
        /// The field.
        field: &'static str,
        /// Length stated.
        stated: usize,
        /// Length there is.
        actual: usize,
    },
    /// A field with a value this crate does not judge.
    #[error("the quote's {field} is {found}, only {expected} is supported")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// Value found.
        found: u64,
        /// What is supported.
        expected: &'static str,
    },
    /// Something other than zeros after the quote.
    #[error("byte {at} after the end of the quote is {found:#04x}, padding must be zero")]
    Padding {
        /// Position in the input.
        at: usize,
        /// The byte.
        found: u8,
    },
    /// The embedded certificates are not three PEM certificates in their one encoding.
    #[error("the quote's certificate chain: {0}")]
    Certificates(&'static str),
    /// Text that is neither a quote nor its hexadecimal form.
    #[error("the input is neither a quote nor the hexadecimal form of one: {0}")]
    Text(String),
}

/// The report inside a quote: which generation of the TDX module wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    /// TDX 1.0.
    Td10,
    /// TDX 1.5.
    Td15,
    /// TDX 1.5 with service TD fields.
    Td15Ex,
}

/// A well-formed TDX quote, not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    bytes: Vec<u8>,
    version: u16,
    kind: ReportKind,
    report_at: usize,
    pck_chain: [Vec<u8>; 3],
    chain_at: usize,
}

impl Quote {
    /// Parses a quote and drops its zero padding.
    ///
    /// # Errors
    /// [`QuoteError`] when the bytes are not exactly one supported quote and zeros.
    pub fn parse(input: &[u8]) -> Result<Self, QuoteError> {
        if input.len() > MAX_QUOTE_BYTES {
            return Err(QuoteError::TooLong { found: input.len() });
        }
        let mut reader = Reader { rest: input };
        let version = parse_header(&mut reader)?;
        let (kind, report_at) = parse_body(&mut reader, version)?;
        let auth_len = reader.u32("signature length")?;
        let auth = reader.take("signature data", auth_len)?;
        let (pck_chain, chain_bytes) = parse_auth(auth)?;
        let end = input.len() - reader.rest.len();
        if let Some(offset) = reader.rest.iter().position(|b| *b != 0) {
            return Err(QuoteError::Padding { at: end + offset, found: reader.rest[offset] });
        }
        let chain_at = end - chain_bytes;
        Ok(Self { bytes: input[..end].to_vec(), version, kind, report_at, pck_chain, chain_at })
    }

    /// Parses what a file or a flag holds: the quote itself, or its hexadecimal form with or without `0x`.
    ///
    /// # Errors
    /// [`QuoteError`] when it is neither.
    pub fn from_file_bytes(input: &[u8]) -> Result<Self, QuoteError> {
        if input.len() > 2 * MAX_QUOTE_BYTES + 4 {
            return Err(QuoteError::TooLong { found: input.len() });
        }
        match std::str::from_utf8(input).map(str::trim) {
            Ok(text) if !text.is_empty() && text.is_ascii() && !text.contains('\0') => {
                let digits = text.strip_prefix("0x").unwrap_or(text);
                let bytes = hex::decode(digits).map_err(|e| QuoteError::Text(e.to_string()))?;
                Self::parse(&bytes)
            }
            _ => Self::parse(input),
        }
    }

    /// The quote without padding.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Names these exact bytes. Not a replay guard: an ECDSA signature has a second valid form, so a nonce is needed.
    #[must_use]
    pub fn digest(&self) -> UniqueId {
        hash_many(&[&[VERSION], TAG, &self.bytes])
    }

    /// Version of the quote format, 4 or 5.
    #[must_use]
    pub const fn version(&self) -> u16 {
        self.version
    }

    /// Generation of the report.
    #[must_use]
    pub const fn kind(&self) -> ReportKind {
        self.kind
    }

    /// What the root of its chain says it is, unverified: the certificate's subject, and the label of its kind.
    #[must_use]
    pub fn claimed_root(&self) -> (String, &'static str) {
        crate::root::claimed(&self.pck_chain[2])
    }

    /// The registers as the quote claims them.
    #[must_use]
    pub fn measurements(&self) -> Measurements {
        Measurements {
            mrtd: Mrtd(self.report(136)),
            rtmr: [Rtmr(self.report(328)), Rtmr(self.report(376)), Rtmr(self.report(424)), Rtmr(self.report(472))],
            mr_config_id: MrConfigId(self.report(184)),
            mr_owner: MrOwner(self.report(232)),
            mr_owner_config: MrOwnerConfig(self.report(280)),
        }
    }

    /// The 64 bytes the guest asked to have quoted.
    #[must_use]
    pub fn report_data(&self) -> [u8; 64] {
        self.report(520)
    }

    /// The TD attributes, least significant bit first.
    #[must_use]
    pub fn td_attributes(&self) -> u64 {
        u64::from_le_bytes(self.report(120))
    }

    /// Whether the guest claims to be open to its host's debugger.
    #[must_use]
    pub fn is_debug(&self) -> bool {
        self.td_attributes() & 1 != 0
    }

    /// The embedded certificates, DER: the platform's PCK certificate, its CA, the root.
    #[must_use]
    pub const fn pck_chain(&self) -> &[Vec<u8>; 3] {
        &self.pck_chain
    }

    /// Which collateral judges this quote.
    ///
    /// # Errors
    /// What is wrong with the platform certificate, in words.
    pub fn collateral_key(&self) -> Result<CollateralKey, String> {
        collateral_key(&self.pck_chain[0])
    }

    /// Where the text of the certificates starts, which is the last part of a quote.
    pub(crate) const fn chain_at(&self) -> usize {
        self.chain_at
    }

    /// `N` bytes at an offset of the report; the offsets used lie inside the shortest report, which was parsed.
    fn report<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.bytes[self.report_at + at..][..N]);
        out
    }
}

/// Reads the header; returns the version.
fn parse_header(reader: &mut Reader<'_>) -> Result<u16, QuoteError> {
    let mut header = Reader { rest: reader.take("header", HEADER_BYTES)? };
    let version = header.u16("version")?;
    if !matches!(version, 4 | 5) {
        return Err(QuoteError::Unsupported { field: "version", found: version.into(), expected: "4 or 5 (TDX)" });
    }
    let key = header.u16("key type")?;
    if key != KEY_ECDSA_P256 {
        let expected = "2 (ECDSA P-256)";
        return Err(QuoteError::Unsupported { field: "attestation key type", found: key.into(), expected });
    }
    let tee = header.u32("TEE type")?;
    if tee != TEE_TDX as usize {
        let found = u64::try_from(tee).unwrap_or(u64::MAX);
        return Err(QuoteError::Unsupported { field: "TEE type", found, expected: "0x81 (TDX)" });
    }
    Ok(version)
}

/// Reads the report; returns its kind and where it starts.
fn parse_body(reader: &mut Reader<'_>, version: u16) -> Result<(ReportKind, usize), QuoteError> {
    if version == 4 {
        reader.take("TD report", TD10_BYTES)?;
        return Ok((ReportKind::Td10, HEADER_BYTES));
    }
    let body = reader.u16("body type")?;
    let (kind, actual) = match body {
        2 => (ReportKind::Td10, TD10_BYTES),
        3 => (ReportKind::Td15, TD15_BYTES),
        4 => (ReportKind::Td15Ex, TD15_EX_BYTES),
        found => {
            let expected = "2, 3 or 4 (TD report)";
            return Err(QuoteError::Unsupported { field: "body type", found: found.into(), expected });
        }
    };
    let stated = reader.u32("body size")?;
    if stated != actual {
        return Err(QuoteError::Length { field: "body", stated, actual });
    }
    reader.take("TD report", actual)?;
    Ok((kind, HEADER_BYTES + 6))
}

/// Checks the signature data down to its last byte; returns the certificate chain and the bytes it takes at the end.
fn parse_auth(auth: &[u8]) -> Result<([Vec<u8>; 3], usize), QuoteError> {
    let mut reader = Reader { rest: auth };
    reader.take("signature", 64)?;
    reader.take("attestation key", 64)?;
    let certification = reader.certification("certification data", CERT_QE_REPORT, "6 (QE report)")?;
    reader.finish("signature data", auth.len())?;

    let mut inner = Reader { rest: certification };
    inner.take("QE report", QE_REPORT_BYTES)?;
    inner.take("QE report signature", 64)?;
    let stated = inner.u16("QE authentication length")?;
    if stated != QE_AUTH_BYTES {
        let (stated, actual) = (usize::from(stated), usize::from(QE_AUTH_BYTES));
        return Err(QuoteError::Length { field: "QE authentication data", stated, actual });
    }
    inner.take("QE authentication data", usize::from(QE_AUTH_BYTES))?;
    let chain = inner.certification("PCK certification data", CERT_PCK_CHAIN, "5 (PCK certificate chain)")?;
    inner.finish("certification data", certification.len())?;
    Ok((parse_chain(chain)?, chain.len()))
}

/// Three certificates in the one PEM encoding they can have: 64 columns, one kind of line end, zeros after it.
fn parse_chain(bytes: &[u8]) -> Result<[Vec<u8>; 3], QuoteError> {
    let wrong = QuoteError::Certificates;
    let text_len = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    let text = std::str::from_utf8(&bytes[..text_len]).map_err(|_| wrong("it is no text"))?;
    let line_end = if text.contains('\r') { "\r\n" } else { "\n" };
    let chain: [Vec<u8>; 3] =
        decode_pem(text)?.try_into().map_err(|_| wrong("it does not hold exactly leaf, CA and root"))?;
    let expected = encode_chain(&chain, line_end);
    let canonical = text == expected || text.strip_suffix(line_end) == Some(expected.as_str());
    if canonical { Ok(chain) } else { Err(wrong("it is not in its canonical PEM form")) }
}

/// The certificates of a PEM text, DER.
pub(crate) fn decode_pem(text: &str) -> Result<Vec<Vec<u8>>, QuoteError> {
    let wrong = QuoteError::Certificates;
    let mut certificates = Vec::with_capacity(3);
    for block in text.split_inclusive(END) {
        let Some(block) = block.trim_start().strip_prefix(BEGIN) else {
            if block.trim().is_empty() {
                continue;
            }
            return Err(wrong("something other than a certificate is in it"));
        };
        let body = block.strip_suffix(END).ok_or_else(|| wrong("a certificate does not end"))?;
        let digits: String = body.split_ascii_whitespace().collect();
        certificates.push(STANDARD.decode(digits).map_err(|_| wrong("a certificate is no base64"))?);
    }
    Ok(certificates)
}

/// Which collateral judges quotes of the platform with this certificate, DER.
pub(crate) fn collateral_key(leaf: &[u8]) -> Result<CollateralKey, String> {
    let extension = dcap_qvl::intel::parse_pck_extension(leaf).map_err(|e| format!("{e:#}"))?;
    let ca = dcap_qvl::intel::pck_ca(leaf).map_err(|e| format!("{e:#}"))?;
    Ok(CollateralKey { fmspc: extension.fmspc, ca: ca.into() })
}

/// PEM of a chain, without a line end after the last certificate.
pub(crate) fn encode_chain<T: AsRef<[u8]>>(chain: &[T], line_end: &str) -> String {
    let mut blocks = Vec::with_capacity(chain.len());
    for certificate in chain {
        let base64 = STANDARD.encode(certificate);
        let mut lines = vec![BEGIN];
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            let (line, tail) = rest.split_at(rest.len().min(64));
            lines.push(line);
            rest = tail;
        }
        lines.push(END);
        blocks.push(lines.join(line_end));
    }
    blocks.join(line_end)
}

/// A cursor over a quote; integers are little-endian.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, field: &'static str, needed: usize) -> Result<&'a [u8], QuoteError> {
        let (head, rest) =
            self.rest.split_at_checked(needed).ok_or(QuoteError::Truncated { field, needed, left: self.rest.len() })?;
        self.rest = rest;
        Ok(head)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, QuoteError> {
        let bytes = self.take(field, 2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self, field: &'static str) -> Result<usize, QuoteError> {
        let bytes = self.take(field, 4)?;
        let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Ok(usize::try_from(value).unwrap_or(usize::MAX))
    }

    /// Type, length and contents of certification data of the one supported type.
    fn certification(
        &mut self,
        field: &'static str,
        wanted: u16,
        expected: &'static str,
    ) -> Result<&'a [u8], QuoteError> {
        let found = self.u16(field)?;
        if found != wanted {
            return Err(QuoteError::Unsupported { field, found: found.into(), expected });
        }
        let len = self.u32(field)?;
        self.take(field, len)
    }

    fn finish(&self, field: &'static str, stated: usize) -> Result<(), QuoteError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(QuoteError::Length { field, stated, actual: stated - left }),
        }
    }
}
