//! Names that appear in cards and requests.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Invalid;

/// Longest region or offer name, in bytes.
pub const MAX_NAME_BYTES: usize = 32;

fn check(field: &'static str, text: &str) -> Result<(), Invalid> {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(|b| word(*b)) && bytes.last().is_some_and(|b| word(*b));
    if ends && bytes.len() <= MAX_NAME_BYTES && bytes.iter().all(|b| word(*b) || *b == b'-') {
        return Ok(());
    }
    Err(Invalid::Name { field, given: text.chars().take(40).collect() })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $field:literal) => {
        $(#[$doc])*
        ///
        /// 1 to 32 characters of `a-z`, `0-9` and `-`, with a letter or digit at both ends.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                check($field, &text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $type {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                check($field, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name!(
    /// Where a machine stands, as providers and requesters agree to call it (`us-east-1`, `home-01`, `local`).
    Region,
    "region"
);
name!(
    /// Name of one offer on a card, usually the backend behind it (`aws`, `baremetal`).
    OfferName,
    "offer name"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charset_and_length() {
        for good in ["a", "us-east-1", "7", &"x".repeat(32)] {
            assert_eq!(good.parse::<Region>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a b", "é", "a_b", &"x".repeat(33)] {
            assert!(bad.parse::<Region>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<Region>(serde_json::json!(bad)).is_err(), "{bad:?}");
        }
    }
}
