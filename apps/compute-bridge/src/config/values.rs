//! Values of the boot file that are more than a number or a text, each refused with what it must be.

use std::fmt;
use std::str::FromStr;

use coalition::RateQ64;
use coalition_host::egress::rules::Rule;
use coalition_host::spec::{check_mbit, check_rules};
use coalition_host::types::Egress;
use russh::keys::{Algorithm, HashAlg, PublicKey};
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A rate in USD per hour, written as an exact decimal in quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub RateQ64);

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Decimal;
        impl Visitor<'_> for Decimal {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a decimal number of USD per hour in quotes, like \"0.04\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
                let refused =
                    |error: coalition::MoneyError| E::custom(format!("{error}; write USD per hour like \"0.04\""));
                text.parse().map(Rate).map_err(refused)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Rate, E> {
                Err(E::custom(
                    "a rate without quotes is a binary fraction and not exact; write it in quotes, like \"0.04\"",
                ))
            }

            fn visit_i64<E: de::Error>(self, given: i64) -> Result<Rate, E> {
                Err(E::custom(format!("a rate is written in quotes, like \"{given}\"")))
            }
        }
        deserializer.deserialize_any(Decimal)
    }
}

/// Reads where workloads may connect to: `"none"`, `"host"`, or a list of rules.
pub(super) fn egress<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Egress, D::Error> {
    struct Written;
    impl<'de> Visitor<'de> for Written {
        type Value = Egress;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("\"none\", \"host\", or a list of rules like [\"public:443\", \"*.debian.org:80\"]")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Egress, E> {
            match text {
                "none" => Ok(Egress::None),
                "host" => Ok(Egress::Host),
                _ if text.parse::<Rule>().is_ok() => {
                    Err(E::custom(format!("one rule is a list, too: egress = [\"{text}\"]")))
                }
                _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
            }
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Egress, A::Error> {
            let mut rules = Vec::new();
            while let Some(rule) = list.next_element::<Rule>()? {
                rules.push(rule);
            }
            check_rules(&rules).map_err(de::Error::custom)?;
            Ok(Egress::Rules(rules))
        }
    }
    deserializer.deserialize_any(Written)
}

/// Reads a limit of bandwidth, millions of bits a second.
pub(super) fn network_mbit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let mbit = u32::deserialize(deserializer)?;
    check_mbit(mbit).map_err(de::Error::custom)?;
    Ok(Some(mbit))
}

/// The one host key a machine may show: Ed25519, as one line of `known_hosts` without the name.
#[derive(Clone, PartialEq, Eq)]
pub struct PinnedHostKey(PublicKey);

/// Why a text is no host key to pin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostKeyError {
    /// Not a public key line at all.
    #[error(
        "is not a public key line; expected \"ssh-ed25519 AAAA…\", as the host's /etc/ssh/ssh_host_ed25519_key.pub holds it \
         or `ssh-keyscan -t ed25519 HOST` prints it (without the host name)"
    )]
    Malformed,
    /// A key of another kind.
    #[error("is a key of type {0}; pin the host's ssh-ed25519 key (`ssh-keyscan -t ed25519 HOST`)")]
    OtherType(String),
}

impl PinnedHostKey {
    /// The key.
    #[must_use]
    pub const fn key(&self) -> &PublicKey {
        &self.0
    }

    /// Whether `presented` is this key; comments do not matter.
    #[must_use]
    pub fn matches(&self, presented: &PublicKey) -> bool {
        self.0.key_data() == presented.key_data()
    }

    /// `SHA256:…`, as ssh prints it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }
}

impl FromStr for PinnedHostKey {
    type Err = HostKeyError;

    fn from_str(text: &str) -> Result<Self, HostKeyError> {
        let key = PublicKey::from_openssh(text.trim()).map_err(|_| HostKeyError::Malformed)?;
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(HostKeyError::OtherType(key.algorithm().to_string()));
        }
        Ok(Self(key))
    }
}

impl fmt::Debug for PinnedHostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PinnedHostKey({})", self.fingerprint())
    }
}

impl<'de> Deserialize<'de> for PinnedHostKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| de::Error::custom(format!("the host key {error}")))
    }
}
