//! A quote without what its verifier has anyway, for places where bytes are few, such as a discovery entry.
//!
//! Of the three certificates in a quote, the platform's CA and the root also stand in the collateral that judges it. The slim
//! form leaves them out and keeps the platform's own certificate as DER: 2.5 instead of 5 KiB. Restoring gives the same quote,
//! byte for byte, or fails. Layout, integers big-endian: flags (1: bit 0 CRLF line ends, bit 1 a line end after the last
//! certificate) ‖ u8 zeros after the text ‖ u16 length ‖ the quote up to its certificates ‖ the platform's certificate.

use thiserror::Error;

use crate::collateral::{Collateral, CollateralError, CollateralSource};
use crate::quote::{Quote, QuoteError, collateral_key, decode_pem, encode_chain};

/// Longest slim form read.
pub const MAX_SLIM_BYTES: usize = 4_096;

const CRLF: u8 = 1;
const LINE_END: u8 = 2;
const FIXED_BYTES: usize = 4;

/// Why a slim quote cannot be restored.
#[derive(Debug, Error)]
pub enum SlimError {
    /// No slim form.
    #[error("the slim quote's {0} is malformed")]
    Malformed(&'static str),
    /// Over [`MAX_SLIM_BYTES`].
    #[error("a slim quote of {found} bytes is over the limit of {MAX_SLIM_BYTES}")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// The platform's certificate says nothing usable.
    #[error("the slim quote's platform certificate: {0}")]
    Certificate(String),
    /// Nobody has the collateral it leaves certificates out for.
    #[error("the collateral a slim quote needs")]
    Collateral(#[from] CollateralError),
    /// With the collateral's certificates it is no quote: they are not the ones it was made with.
    #[error("the slim quote does not fit the certificates of the collateral")]
    Quote(#[from] QuoteError),
}

impl Quote {
    /// The slim form. `None` when the quote is padded or filled in a way that it cannot keep.
    #[must_use]
    pub fn to_slim(&self) -> Option<Vec<u8>> {
        let bytes = self.bytes();
        let chain_at = self.chain_at();
        let text = &bytes[chain_at..];
        let crlf = text.contains(&b'\r');
        let line_end = if crlf { "\r\n" } else { "\n" };
        let pem = encode_chain(self.pck_chain(), line_end);
        let tail = text.get(pem.len()..)?;
        let ended = tail.starts_with(line_end.as_bytes());
        let zeros = &tail[if ended { line_end.len() } else { 0 }..];
        let flags = if crlf { CRLF } else { 0 } | if ended { LINE_END } else { 0 };
        let mut out = vec![flags, u8::try_from(zeros.len()).ok()?];
        out.extend(u16::try_from(chain_at).ok()?.to_be_bytes());
        out.extend(&bytes[..chain_at]);
        out.extend(&self.pck_chain()[0]);
        (out.len() <= MAX_SLIM_BYTES).then_some(out)
    }

    /// Restores a quote with the certificates of its collateral, which comes with it.
    ///
    /// # Errors
    /// [`SlimError`]. Success says nothing about validity; judge the quote with the collateral.
    pub fn from_slim(slim: &[u8], source: &dyn CollateralSource) -> Result<(Self, Collateral), SlimError> {
        if slim.len() > MAX_SLIM_BYTES {
            return Err(SlimError::TooLong { found: slim.len() });
        }
        let (fixed, rest) = slim.split_first_chunk::<FIXED_BYTES>().ok_or(SlimError::Malformed("length"))?;
        let [flags, zeros, high, low] = *fixed;
        if flags & !(CRLF | LINE_END) != 0 {
            return Err(SlimError::Malformed("flags"));
        }
        let head_bytes = usize::from(u16::from_be_bytes([high, low]));
        let (head, leaf) = rest.split_at_checked(head_bytes).ok_or(SlimError::Malformed("head"))?;
        let key = collateral_key(leaf).map_err(SlimError::Certificate)?;
        let collateral = source.collateral(key)?;
        let issuers = decode_pem(&collateral.bundle().pck_crl_issuer_chain)?;
        let [ca, root] = issuers.as_slice() else {
            return Err(SlimError::Malformed("collateral's chain of certificates"));
        };
        let line_end = if flags & CRLF == 0 { "\n" } else { "\r\n" };
        let mut bytes = head.to_vec();
        bytes.extend(encode_chain(&[leaf, ca, root], line_end).into_bytes());
        if flags & LINE_END != 0 {
            bytes.extend(line_end.as_bytes());
        }
        bytes.resize(bytes.len() + usize::from(zeros), 0);
        let quote = Self::parse(&bytes)?;
        // One quote has one slim form: zeros that were only padding would be a second.
        if quote.to_slim().as_deref() != Some(slim) {
            return Err(SlimError::Malformed("form"));
        }
        Ok((quote, collateral))
    }
}
