//! The platform quotes come from: the TDX guest this process runs in, or a development guest that proves nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use coalition::{Mrtd, UniqueId};
use coalition_attest::dev::DevError;
use coalition_attest::{
    CollateralError, CollateralSource, ConfigfsTsm, DevelopmentGuest, DevelopmentRoot, Directory, Evidence,
    EvidenceError, GuestError, Measurements, Quote, QuoteError, QuoteSource, TrustRoot,
};
use coalition_compute::MAX_EVIDENCE_BYTES;

/// Largest development root file read, in bytes.
const MAX_ROOT_BYTES: u64 = 64 << 10;

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// The guest made no quote.
    #[error("the guest makes no quote")]
    Guest(#[from] GuestError),
    /// The development root cannot be used.
    #[error("the development root cannot be used")]
    Development(#[from] DevError),
    /// What the guest made is no quote.
    #[error("the guest's quote is none")]
    Quote(#[from] QuoteError),
    /// The quote's platform certificate says nothing usable.
    #[error("the quote's platform certificate: {0}")]
    Certificate(String),
    /// No collateral for the platform.
    #[error("no collateral for this platform; put it into attestation.collateral_dir")]
    Collateral(#[from] CollateralError),
    /// Quote and collateral cannot travel together.
    #[error("the evidence cannot be sent")]
    Evidence(#[from] EvidenceError),
    /// Longer than a market takes.
    #[error("the evidence has {found} bytes, a market takes at most {MAX_EVIDENCE_BYTES}")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// The file of a development root cannot be read.
    #[error("the development root {path} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Evidence ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Digest of the quote.
    pub digest: UniqueId,
    /// Quote and collateral, encoded.
    pub bytes: Vec<u8>,
}

/// Where quotes and their collateral come from.
#[derive(Clone)]
pub enum Platform {
    /// The TDX guest this process runs in; collateral from a directory.
    Tdx(ConfigfsTsm, Directory),
    /// Software under a development root.
    Development(Arc<DevelopmentRoot>, Arc<DevelopmentGuest>),
}

impl Platform {
    /// The TDX guest this process runs in.
    #[must_use]
    pub fn tdx(collateral_dir: PathBuf) -> Self {
        Self::Tdx(ConfigfsTsm::default(), Directory::new(collateral_dir))
    }

    /// A development guest that claims this initial content.
    ///
    /// # Errors
    /// [`PlatformError::Development`].
    pub fn development(root: Arc<DevelopmentRoot>, mrtd: Mrtd) -> Result<Self, PlatformError> {
        let guest = root.guest(Measurements::of_mrtd(mrtd))?;
        Ok(Self::Development(root, Arc::new(guest)))
    }

    /// Reads the stored form of a development root.
    ///
    /// # Errors
    /// [`PlatformError`] when it cannot be read or is none.
    pub fn load_root(path: &Path) -> Result<Arc<DevelopmentRoot>, PlatformError> {
        let failed = |source| PlatformError::File { path: path.to_owned(), source };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > MAX_ROOT_BYTES {
            return Err(failed(std::io::Error::other(format!("{length} bytes are too many"))));
        }
        let text = zeroize::Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
        Ok(Arc::new(DevelopmentRoot::from_secret(&text)?))
    }

    /// The root that vouches for its quotes.
    ///
    /// # Errors
    /// [`PlatformError::Development`] when a stored root's certificate is refused.
    pub fn root(&self) -> Result<TrustRoot, PlatformError> {
        match self {
            Self::Tdx(..) => Ok(TrustRoot::Intel),
            Self::Development(root, _) => Ok(root.trust_root()?),
        }
    }

    /// The initial content it claims, where that is known without a quote.
    #[must_use]
    pub fn claimed_mrtd(&self) -> Option<Mrtd> {
        match self {
            Self::Tdx(..) => None,
            Self::Development(_, guest) => Some(guest.measurements().mrtd),
        }
    }

    /// A quote over this report data with its collateral. May take seconds; call it where blocking is allowed.
    ///
    /// # Errors
    /// [`PlatformError`].
    pub fn show(&self, report_data: &[u8; 64], now_ms: u64) -> Result<Shown, PlatformError> {
        let (quote, collateral) = match self {
            Self::Tdx(guest, directory) => {
                let quote = Quote::parse(&guest.quote(report_data)?)?;
                let key = quote.collateral_key().map_err(PlatformError::Certificate)?;
                (quote, directory.collateral(key)?)
            }
            Self::Development(root, guest) => {
                (Quote::parse(&guest.quote(report_data)?)?, root.collateral(now_ms / 1_000)?)
            }
        };
        let evidence = Evidence { quote: quote.bytes().to_vec(), collateral: Some(collateral) }.to_bytes()?;
        if evidence.len() > MAX_EVIDENCE_BYTES {
            return Err(PlatformError::TooLong { found: evidence.len() });
        }
        Ok(Shown { digest: quote.digest(), bytes: evidence })
    }

    /// As [`Platform::show`], on a thread that may block.
    ///
    /// # Errors
    /// [`PlatformError`].
    pub async fn show_aside(&self, report_data: [u8; 64]) -> Result<Shown, PlatformError> {
        let platform = self.clone();
        let shown = tokio::task::spawn_blocking(move || platform.show(&report_data, crate::now_ms()));
        let gone = |_| PlatformError::Guest(GuestError::Answer("nothing: it panicked".to_owned()));
        shown.await.map_err(gone).and_then(|shown| shown)
    }
}

impl std::fmt::Debug for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tdx(guest, _) => write!(f, "Platform({})", guest.label()),
            Self::Development(_, guest) => write!(f, "Platform({guest:?})"),
        }
    }
}
