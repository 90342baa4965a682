//! Names AWS gives to things, checked before they are used in another request.

/// Why a text is no id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no {what}; expected {prefix} and 8 to 17 hex digits")]
pub struct IdError {
    given: String,
    what: &'static str,
    prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                let fits = |rest: &str| (8..=17).contains(&rest.len()) && rest.bytes().all(hex);
                if text.strip_prefix($prefix).is_some_and(fits) {
                    return Ok(Self(text.to_owned()));
                }
                Err(IdError { given: text.chars().take(40).collect(), what: $what, prefix: $prefix })
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// An instance, `i-…`.
    InstanceId, "instance id", "i-"
);
id!(
    /// A volume, `vol-…`.
    VolumeId, "volume id", "vol-"
);
