//! From a service into a directory, so that judging can go on without a network.

use std::path::PathBuf;

use super::http::HttpFetch;
use super::{Fetch, Pccs, PccsError};
use crate::collateral::{Claimed, Collateral, CollateralKey, CollateralSource as _, Directory};

const MAX_URL_BYTES: usize = 1_024;

/// Where collateral is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    url: String,
    root_crl_url: Option<String>,
}

impl Service {
    /// Intel's own service, and the place of its root's revocation list.
    #[must_use]
    pub fn intel() -> Self {
        Self {
            url: "https://api.trustedservices.intel.com".to_owned(),
            root_crl_url: Some("https://certificates.trustedservices.intel.com/IntelSGXRootCA.der".to_owned()),
        }
    }

    /// The service at a base address, such as `https://pccs.example:8081`. Plain HTTP will do: everything asked for is signed
    /// and public.
    ///
    /// # Errors
    /// [`PccsError::Address`].
    pub fn at(url: &str) -> Result<Self, PccsError> {
        Ok(Self { url: checked(url)?, root_crl_url: None })
    }

    /// Takes the root's revocation list from this address, for services that do not serve it.
    ///
    /// # Errors
    /// [`PccsError::Address`].
    pub fn with_root_crl(self, url: &str) -> Result<Self, PccsError> {
        Ok(Self { root_crl_url: Some(checked(url)?), ..self })
    }

    /// Its base address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    fn through<F: Fetch>(&self, fetch: F) -> Pccs<F> {
        let pccs = Pccs::new(&self.url, fetch);
        match &self.root_crl_url {
            Some(url) => pccs.root_crl_url(url),
            None => pccs,
        }
    }
}

/// An address that can be asked, shown and logged.
fn checked(url: &str) -> Result<String, PccsError> {
    let shown = || url.chars().filter(|c| !c.is_control()).take(80).collect();
    let wrong = |why| PccsError::Address { url: shown(), why };
    if url.len() > MAX_URL_BYTES {
        return Err(wrong("it is too long"));
    }
    let parsed = reqwest::Url::parse(url).map_err(|_| wrong("it is no URL"))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(wrong("it begins neither with https:// nor with http://"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        let url = "an address with a user or password".to_owned();
        return Err(PccsError::Address { url, why: "collateral is public, and addresses are shown: leave them out" });
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(wrong("it has a query or a fragment"));
    }
    Ok(url.to_owned())
}

/// Collateral that was fetched and stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The platform family.
    pub key: CollateralKey,
    /// The file.
    pub path: PathBuf,
    /// What came.
    pub collateral: Collateral,
    /// What it says of itself. Nobody has checked its signatures yet: that happens with a quote.
    pub claimed: Claimed,
    /// Whether the file had other bytes before, or there was none.
    pub changed: bool,
}

/// Fetches the collateral of a platform family and stores it as `<fmspc>-<ca>.json` in a directory, whole or not at all.
///
/// A quote names its family: [`Quote::collateral_key`](crate::Quote::collateral_key). Each of the four answers is bounded in
/// time and size. What is about another family, or older than what is stored, is refused.
///
/// # Errors
/// [`PccsError`]; the directory then is as before.
pub async fn fetch_into(service: &Service, key: CollateralKey, directory: &Directory) -> Result<Stored, PccsError> {
    store(&service.through(HttpFetch::new()?), key, directory).await
}

impl<F: Fetch> Pccs<F> {
    /// As [`fetch_into`], over any transport.
    ///
    /// # Errors
    /// [`PccsError`]; the directory then is as before.
    pub async fn store(&self, key: CollateralKey, directory: &Directory) -> Result<Stored, PccsError> {
        store(self, key, directory).await
    }
}

async fn store<F: Fetch>(pccs: &Pccs<F>, key: CollateralKey, directory: &Directory) -> Result<Stored, PccsError> {
    let collateral = pccs.collateral(key).await?;
    let another = |found: String| PccsError::AnotherPlatform { asked: key, found };
    let claimed = collateral.claimed().ok_or_else(|| another("nothing that it names".to_owned()))?;
    if claimed.fmspc != key.fmspc {
        return Err(another(hex::encode(claimed.fmspc)));
    }
    let path = directory.file(key);
    // A file that cannot be read, or is no collateral, protects nothing.
    let before = directory.collateral(key).ok();
    let known = before.as_ref().and_then(Collateral::claimed).filter(|known| known.fmspc == key.fmspc);
    let age = |claimed: &Claimed| (claimed.tcb_evaluation, claimed.issued_s);
    if let Some(known) = known
        && (claimed.tcb_evaluation < known.tcb_evaluation || claimed.issued_s < known.issued_s)
    {
        return Err(PccsError::Older { found: age(&claimed), stored: age(&known), path });
    }
    let changed = before.is_none_or(|before| before.digest() != collateral.digest());
    directory.store(key, &collateral)?;
    Ok(Stored { key, path, collateral, claimed, changed })
}
