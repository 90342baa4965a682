//! Collateral: what Intel signs about a platform, without which no quote can be judged.
//!
//! One bundle holds the revocation lists, the TCB info and the quoting enclave's identity for one platform family
//! ([`CollateralKey`]). It is public, signed, and valid for about a month, so it may come from anywhere: beside the
//! quote, from a [`Directory`], or from a PCCS ([`crate::pccs`]). A [`CollateralSource`] only looks things up; fetching
//! is a separate, asynchronous step, so that verification never waits for a network.

use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use coalition::{UniqueId, hash_many};
use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::config::PckCa;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest collateral looked at, as JSON.
pub const MAX_COLLATERAL_BYTES: usize = 1024 * 1024;

const VERSION: u8 = 1;
const TAG: &[u8] = b"coalition/attest/collateral";

/// The certificate authority that issued a platform's certificate; each has its own revocation list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ca {
    /// Single-package platforms.
    Processor,
    /// Multi-package platforms: all that run TDX.
    Platform,
}

impl Ca {
    /// Its name in requests: `processor` or `platform`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Platform => "platform",
        }
    }
}

impl From<PckCa> for Ca {
    fn from(ca: PckCa) -> Self {
        match ca {
            PckCa::Processor => Self::Processor,
            PckCa::Platform => Self::Platform,
        }
    }
}

/// Which collateral a platform needs. As text: `00806f050000-platform`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollateralKey {
    /// Family, model, stepping, platform and custom SKU.
    pub fmspc: [u8; 6],
    /// Issuer of the platform's certificate.
    pub ca: Ca,
}

impl fmt::Display for CollateralKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", hex::encode(self.fmspc), self.ca.name())
    }
}

impl FromStr for CollateralKey {
    type Err = CollateralError;

    fn from_str(text: &str) -> Result<Self, CollateralError> {
        let wrong = || CollateralError::Key(text.to_owned());
        let (fmspc, ca) = text.split_once('-').ok_or_else(wrong)?;
        let ca = [Ca::Processor, Ca::Platform].into_iter().find(|c| c.name() == ca).ok_or_else(wrong)?;
        Ok(Self { fmspc: coalition::serde_hex::parse(fmspc).map_err(|_| wrong())?, ca })
    }
}

/// Why there is no collateral.
#[derive(Debug, Error)]
pub enum CollateralError {
    /// None is stored for the platform.
    #[error("no collateral for platform {key} in {place}")]
    Missing {
        /// The platform.
        key: CollateralKey,
        /// Where it was looked for.
        place: String,
    },
    /// It is no collateral bundle.
    #[error("the collateral is malformed: {0}")]
    Malformed(String),
    /// Longer than [`MAX_COLLATERAL_BYTES`].
    #[error("collateral of {found} bytes is over the limit of {MAX_COLLATERAL_BYTES}")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// Not a platform key.
    #[error("'{0}' is no platform key: expected twelve hexadecimal digits, a dash, and processor or platform")]
    Key(String),
    /// A file could not be read or written.
    #[error("collateral file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// Where a piece of collateral came from; printed with every verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Beside the quote: the prover chose it.
    Inline,
    /// A local directory: as new as whoever filled it last. No network was asked.
    Directory,
    /// Fetched from a collateral service.
    Pccs,
    /// Made by a development root.
    Development,
}

impl Origin {
    /// Whether no network was asked, so that a newer revocation list may exist.
    #[must_use]
    pub const fn is_offline(self) -> bool {
        !matches!(self, Self::Pccs)
    }
}

/// One collateral bundle. Its JSON form is the widespread one of `dcap-qvl`: byte strings in hexadecimal.
#[derive(Clone, PartialEq, Eq)]
pub struct Collateral {
    inner: QuoteCollateralV3,
    origin: Origin,
    digest: UniqueId,
}

impl fmt::Debug for Collateral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Collateral({:?}, {})", self.origin, self.digest)
    }
}

impl Collateral {
    /// Wraps a bundle.
    ///
    /// A platform certificate chain inside it is dropped: quotes judged here carry their own.
    #[must_use]
    pub fn new(mut inner: QuoteCollateralV3, origin: Origin) -> Self {
        inner.pck_certificate_chain = None;
        let digest = hash_many(&[
            &[VERSION],
            TAG,
            inner.pck_crl_issuer_chain.as_bytes(),
            &inner.root_ca_crl,
            &inner.pck_crl,
            inner.tcb_info_issuer_chain.as_bytes(),
            inner.tcb_info.as_bytes(),
            &inner.tcb_info_signature,
            inner.qe_identity_issuer_chain.as_bytes(),
            inner.qe_identity.as_bytes(),
            &inner.qe_identity_signature,
        ]);
        Self { inner, origin, digest }
    }

    /// Parses the JSON form.
    ///
    /// # Errors
    /// [`CollateralError::TooLong`] and [`CollateralError::Malformed`].
    pub fn from_json(json: &[u8], origin: Origin) -> Result<Self, CollateralError> {
        if json.len() > MAX_COLLATERAL_BYTES {
            return Err(CollateralError::TooLong { found: json.len() });
        }
        let inner = serde_json::from_slice(json).map_err(|e| CollateralError::Malformed(e.to_string()))?;
        Ok(Self::new(inner, origin))
    }

    /// The JSON form.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.inner).expect("strings and byte strings always serialize")
    }

    /// Names these exact bytes, wherever they came from.
    #[must_use]
    pub const fn digest(&self) -> UniqueId {
        self.digest
    }

    /// Where it came from.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// What its TCB info says of itself, unverified. None when it does not say so much.
    #[must_use]
    pub fn claimed(&self) -> Option<Claimed> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head<'a> {
            fmspc: &'a str,
            issue_date: &'a str,
            next_update: &'a str,
            tcb_evaluation_data_number: u32,
        }
        let seconds = |text: &str| {
            let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
            u64::try_from(at.unix_timestamp()).ok()
        };
        let head: Head<'_> = serde_json::from_str(&self.inner.tcb_info).ok()?;
        Some(Claimed {
            fmspc: coalition::serde_hex::parse(&head.fmspc.to_ascii_lowercase()).ok()?,
            issued_s: seconds(head.issue_date)?,
            next_update_s: seconds(head.next_update)?,
            tcb_evaluation: head.tcb_evaluation_data_number,
        })
    }

    pub(crate) const fn bundle(&self) -> &QuoteCollateralV3 {
        &self.inner
    }
}

/// What the TCB info in a bundle says of itself. True only of a bundle with which some quote has verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// The platform family it is about.
    pub fmspc: [u8; 6],
    /// Its date, Unix seconds.
    pub issued_s: u64,
    /// When the next one is due, Unix seconds; other parts may end before.
    pub next_update_s: u64,
    /// Number of its TCB evaluation.
    pub tcb_evaluation: u32,
}

/// Looks collateral up, without a network.
pub trait CollateralSource: Send + Sync {
    /// The collateral for a platform.
    ///
    /// # Errors
    /// [`CollateralError::Missing`] when there is none, another when what is there cannot be used.
    fn collateral(&self, key: CollateralKey) -> Result<Collateral, CollateralError>;
}

/// One bundle for whatever is asked: beside a quote, or in a test. A wrong one fails verification, not lookup.
impl CollateralSource for Collateral {
    fn collateral(&self, _key: CollateralKey) -> Result<Collateral, CollateralError> {
        Ok(self.clone())
    }
}

impl<T: CollateralSource + ?Sized> CollateralSource for std::sync::Arc<T> {
    fn collateral(&self, key: CollateralKey) -> Result<Collateral, CollateralError> {
        (**self).collateral(key)
    }
}

/// A directory of bundles, one file `<fmspc>-<ca>.json` per platform.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The directory at `path`; it may not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where the bundle of a platform lies.
    #[must_use]
    pub fn file(&self, key: CollateralKey) -> PathBuf {
        self.path.join(format!("{key}.json"))
    }

    /// Stores a bundle whole or not at all, readable to everybody: it is written beside its place and then moved there.
    ///
    /// # Errors
    /// [`CollateralError::TooLong`] when it could not be read again, and [`CollateralError::File`].
    pub fn store(&self, key: CollateralKey, collateral: &Collateral) -> Result<(), CollateralError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let json = collateral.to_json();
        if json.len() > MAX_COLLATERAL_BYTES {
            return Err(CollateralError::TooLong { found: json.len() });
        }
        let path = self.file(key);
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let beside = self.path.join(format!(".{key}.{}.{unique}", std::process::id()));
        std::fs::create_dir_all(&self.path).map_err(|e| file_error(&self.path, e))?;
        let stored = write_public(&beside, json.as_bytes())
            .map_err(|e| file_error(&beside, e))
            .and_then(|()| std::fs::rename(&beside, &path).map_err(|e| file_error(&path, e)));
        if stored.is_err() {
            // What is left over says nothing; the error of the write does.
            let _ = std::fs::remove_file(&beside);
        }
        stored
    }
}

/// Writes a file of mode 644, whatever the process's mask, down to the disk.
fn write_public(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = std::fs::File::options().write(true).create(true).truncate(true).open(path)?;
    file.write_all(bytes)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.sync_all()
}

impl CollateralSource for Directory {
    fn collateral(&self, key: CollateralKey) -> Result<Collateral, CollateralError> {
        let path = self.file(key);
        let limit = MAX_COLLATERAL_BYTES as u64;
        let length = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(CollateralError::Missing { key, place: self.path.display().to_string() });
            }
            Err(e) => return Err(file_error(&path, e)),
        };
        if length > limit {
            return Err(CollateralError::TooLong { found: usize::try_from(length).unwrap_or(usize::MAX) });
        }
        let json = std::fs::read(&path).map_err(|e| file_error(&path, e))?;
        Collateral::from_json(&json, Origin::Directory)
    }
}

fn file_error(path: &Path, source: io::Error) -> CollateralError {
    CollateralError::File { path: path.to_owned(), source }
}
