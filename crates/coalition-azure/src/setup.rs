//! What a client is made of, checked before anything is contacted.

use std::net::IpAddr;
use std::time::Duration;

use coalition_cloud::one_line;
use reqwest::Url;

use crate::credentials::CredentialSource;
use crate::ids::{ResourceId, is_guid, is_name};
use crate::image::ImageName;

const ENDPOINT: &str = "https://management.azure.com";
const AUTHORITY: &str = "https://login.microsoftonline.com";
/// The place of hosts in no zone.
pub(crate) const NO_ZONE: &str = "any";

/// One region of one subscription, and how hosts are made there.
#[derive(Clone)]
pub struct Setup {
    /// The subscription, a GUID.
    pub subscription: String,
    /// The resource group hosts are made in. Best one for this bridge alone: its role can delete machines in it.
    pub resource_group: String,
    /// The region, e.g. `westeurope`.
    pub region: String,
    /// Zones hosts are made in, e.g. `1`, `2`, `3`; `any` leaves the choice to Azure. Tried in this order.
    pub places: Vec<String>,
    /// What hosts are made of, a generalised image: `/subscriptions/…/galleries/…/images/…/versions/…`, or
    /// `publisher:offer:sku:version` of the marketplace.
    pub image: String,
    /// The hosts' subnet, `/subscriptions/…/virtualNetworks/…/subnets/…`.
    pub subnet: String,
    /// Their network security group, `/subscriptions/…/networkSecurityGroups/…`; the subnet's alone counts when absent.
    pub security_group: Option<String>,
    /// Hosts get no address on the internet.
    pub private_addresses: bool,
    /// Whether confidential hosts boot signed kernels only.
    pub secure_boot: bool,
    /// Whether confidential hosts' disks are bound to the host, too, and not their firmware's state alone. Images must allow it.
    pub confidential_disk: bool,
    /// Whether hosts' consoles are kept, so that they can be read.
    pub boot_diagnostics: bool,
    /// The family of sizes whose quota counts beside the region's, e.g. `standardDCASv5Family`.
    pub quota_family: Option<String>,
    /// Asked whenever a token is needed.
    pub credentials: CredentialSource,
    /// Other addresses than those of Azure's public cloud.
    pub addresses: Addresses,
    /// Wait for one answer.
    pub timeout: Duration,
    /// Pause before a repetition, doubled each time; and between two looks at an operation, unless Azure says how long.
    pub pause: Duration,
    /// How long an operation is followed before it is left to the next look, and how long making a host looks whether there is
    /// room for it; 20 s when absent.
    pub follow: Option<Duration>,
    /// How long Azure may not show what it has just made; a minute when absent.
    pub settle: Option<Duration>,
}

/// Where Azure is. All absent: the public cloud.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// The Resource Manager, `https://…`.
    pub endpoint: Option<String>,
    /// Who gives out tokens, `https://…`.
    pub authority: Option<String>,
    /// Who gives out tokens of managed identities: loopback only.
    pub metadata: Option<String>,
    /// A certificate authority trusted beside the system's, PEM; only if every address is on loopback.
    pub extra_root: Option<String>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A value is none of its kind.
    #[error("{what} {given:?} is none; expected {expected}")]
    Value {
        /// Of what.
        what: &'static str,
        /// As given.
        given: String,
        /// What one looks like.
        expected: &'static str,
    },
    /// Two values contradict each other.
    #[error("{problem}: {first:?} and {second:?}; {fix}")]
    Contradiction {
        /// What is wrong.
        problem: &'static str,
        /// One.
        first: String,
        /// The other.
        second: String,
        /// What to do.
        fix: &'static str,
    },
    /// An address cannot be used.
    #[error("the address {given:?} {problem}; expected https://HOST, or https://127.0.0.1:PORT for a test")]
    Address {
        /// As given.
        given: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// No TLS.
    #[error("TLS cannot be set up; are the system's root certificates installed (ca-certificates)?")]
    Tls(#[source] rustls::Error),
    /// The additional certificate authority is none.
    #[error("the additional root certificate is no PEM certificate")]
    Root,
    /// No HTTP client.
    #[error("the HTTP client cannot be set up")]
    Http(#[source] reqwest::Error),
}

/// The addresses, checked.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) endpoint: Url,
    pub(crate) authority: Url,
    pub(crate) metadata: Option<Url>,
    /// What tokens are asked for.
    pub(crate) scope: String,
    pub(crate) is_loopback: bool,
}

impl Setup {
    /// Checks every value.
    pub(crate) fn check(&self) -> Result<(Places, ImageName), SetupError> {
        let name = |what, given: &str, fits: bool, expected| {
            let wrong = SetupError::Value { what, given: one_line(given, 120), expected };
            if fits { Ok(()) } else { Err(wrong) }
        };
        let id = &self.subscription;
        name("the subscription", id, is_guid(id), "a GUID, like 00000000-0000-0000-0000-000000000000")?;
        let group = &self.resource_group;
        name("the resource group", group, is_name(group), "letters, digits, '-', '_' and '.'")?;
        let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let region = &self.region;
        let fits = (3..=30).contains(&region.len()) && region.bytes().all(lower);
        name("the region", region, fits, "one like \"westeurope\", in lower case and without spaces")?;
        let zone = |place: &String| place == NO_ZONE || (place.len() == 1 && ("1"..="9").contains(&place.as_str()));
        let places = self.places.join(", ");
        let expected = "zones \"1\", \"2\", \"3\", or \"any\" for hosts in no zone; at least one";
        name("the list of places", &places, !self.places.is_empty() && self.places.iter().all(zone), expected)?;
        let of =
            |text: &str, types: &[&str]| ResourceId::parse(text).is_some_and(|id| id.is("Microsoft.Network", types));
        let subnet = &self.subnet;
        let expected = "/subscriptions/…/resourceGroups/…/providers/Microsoft.Network/virtualNetworks/…/subnets/…";
        name("the subnet", subnet, of(subnet, &["virtualNetworks", "subnets"]), expected)?;
        if let Some(group) = &self.security_group {
            let expected = "/subscriptions/…/resourceGroups/…/providers/Microsoft.Network/networkSecurityGroups/…";
            name("the network security group", group, of(group, &["networkSecurityGroups"]), expected)?;
        }
        if let Some(family) = &self.quota_family {
            name("the family", family, is_name(family), "one like \"standardDCASv5Family\", see az vm list-usage")?;
        }
        if self.confidential_disk && !self.secure_boot {
            return Err(SetupError::Contradiction {
                problem: "a disk bound to its host needs a verified boot",
                first: "confidential_disk = true".to_owned(),
                second: "secure_boot = false".to_owned(),
                fix: "switch the second on, or the first off",
            });
        }
        self.check_network()?;
        let image = self.image.parse().map_err(|expected| SetupError::Value {
            what: "the image",
            given: one_line(&self.image, 200),
            expected,
        })?;
        Ok((self.addresses.check()?, image))
    }

    /// A network belongs to one subscription: interfaces are never made in another.
    fn check_network(&self) -> Result<(), SetupError> {
        let all = std::iter::once(&self.subnet).chain(&self.security_group);
        for id in all.filter_map(|text| ResourceId::parse(text)) {
            if !id.subscription.eq_ignore_ascii_case(&self.subscription) {
                return Err(SetupError::Contradiction {
                    problem: "hosts and their network are in different subscriptions",
                    first: self.subscription.clone(),
                    second: id.subscription,
                    fix: "name a subnet and a security group of the hosts' own subscription",
                });
            }
        }
        Ok(())
    }
}

impl Addresses {
    fn check(&self) -> Result<Places, SetupError> {
        let (endpoint, at_home) = check_address(self.endpoint.as_deref().unwrap_or(ENDPOINT), false)?;
        let (authority, login_at_home) = check_address(self.authority.as_deref().unwrap_or(AUTHORITY), false)?;
        let metadata = self.metadata.as_deref().map(|given| check_address(given, true)).transpose()?;
        if at_home != login_at_home {
            // A secret for the one must not be shown to a stand-in of the other.
            return Err(SetupError::Contradiction {
                problem: "one address is on loopback and the other is not",
                first: endpoint.to_string(),
                second: authority.to_string(),
                fix: "give both `endpoint` and `authority`, or neither",
            });
        }
        if self.extra_root.is_some() && !at_home {
            return Err(SetupError::Contradiction {
                problem: "an additional root certificate is for tests on loopback only",
                first: endpoint.to_string(),
                second: authority.to_string(),
                fix: "install the certificate in the system's store instead",
            });
        }
        let scope = if at_home { ENDPOINT.to_owned() } else { endpoint.as_str().trim_end_matches('/').to_owned() };
        let metadata = metadata.map(|(url, _)| url);
        Ok(Places { endpoint, authority, metadata, scope: format!("{scope}/.default"), is_loopback: at_home })
    }
}

/// The address, and whether it is on loopback; anything else must be encrypted.
fn check_address(given: &str, loopback_only: bool) -> Result<(Url, bool), SetupError> {
    let wrong = |problem| SetupError::Address { given: one_line(given, 80), problem };
    let url: Url = given.parse().map_err(|_| wrong("is no URL"))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.path() != "/" {
        return Err(wrong("has more than a host and a port"));
    }
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if url.scheme() != "https" {
        return Err(wrong("is not encrypted"));
    }
    if loopback_only && !is_loopback {
        return Err(wrong("is not on loopback"));
    }
    Ok((url, is_loopback))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_encrypted_addresses_and_no_mixture() {
        assert!(check_address("https://127.0.0.1:5000", true).unwrap().1);
        assert!(check_address("https://[::1]:5000", true).unwrap().1);
        assert!(!check_address("https://management.chinacloudapi.cn", false).unwrap().1);
        for wrong in [
            "http://127.0.0.1",
            "http://10.0.0.1",
            "ftp://127.0.0.1",
            "https://a:b@c",
            "https://a/b",
            "no",
            "https://a/?q=1",
        ] {
            assert!(check_address(wrong, false).is_err(), "{wrong}");
        }
        assert!(check_address("https://169.254.169.254", true).is_err());
        let only = Addresses { endpoint: Some("https://127.0.0.1:1".into()), ..Addresses::default() };
        assert!(only.check().unwrap_err().to_string().contains("login.microsoftonline.com"));
        let root = Addresses { extra_root: Some("x".into()), ..Addresses::default() };
        assert!(root.check().is_err());
        let public = Addresses::default().check().unwrap();
        assert_eq!((public.scope.as_str(), public.is_loopback), ("https://management.azure.com/.default", false));
        let china = Addresses {
            endpoint: Some("https://management.chinacloudapi.cn".into()),
            authority: Some("https://login.chinacloudapi.cn/".into()),
            ..Addresses::default()
        };
        assert_eq!(china.check().unwrap().scope, "https://management.chinacloudapi.cn/.default");
    }
}
