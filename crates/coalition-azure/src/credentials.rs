//! Whom Azure is asked as.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::ids::is_guid;

/// Longest secret taken, in bytes; Entra's own have 40.
const MAX_SECRET: usize = 512;

/// Gives credentials; asked whenever a new token is needed, so that what an operator replaced counts without a restart.
pub type CredentialSource = Arc<dyn Fn() -> Result<Credentials, CredentialsError> + Send + Sync>;

/// Why there are no credentials. Never holds any.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// A part is no such part.
    #[error("the {part} is none: expected {expected}")]
    Malformed {
        /// Which.
        part: &'static str,
        /// What one looks like.
        expected: &'static str,
    },
    /// They could not be had.
    #[error("{0}")]
    Unavailable(String),
}

/// An identity in Microsoft Entra. `Debug` shows no secret; it is wiped when dropped. What Microsoft's crates copy of it while
/// they ask for a token is not.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// An application with a client secret.
    ClientSecret {
        /// The directory, a GUID.
        tenant: String,
        /// The application, a GUID.
        client: String,
        /// Its secret.
        secret: Zeroizing<String>,
    },
    /// The identity of the Azure machine this runs on.
    ManagedIdentity {
        /// The client id, a GUID, of a user-assigned identity; the machine's own when absent.
        client: Option<String>,
    },
}

impl Credentials {
    /// An application with a client secret.
    ///
    /// # Errors
    /// [`CredentialsError::Malformed`], which does not repeat what was given.
    pub fn client_secret(tenant: &str, client: &str, secret: &str) -> Result<Self, CredentialsError> {
        const GUID: &str = "a GUID, like 00000000-0000-0000-0000-000000000000";
        for (part, given) in [("tenant id", tenant), ("client id", client)] {
            if !is_guid(given) {
                return Err(CredentialsError::Malformed { part, expected: GUID });
            }
        }
        if secret.is_empty() || secret.len() > MAX_SECRET || !secret.bytes().all(|b| b.is_ascii_graphic()) {
            let expected = "the secret's value as Entra showed it, one line without spaces (not its id)";
            return Err(CredentialsError::Malformed { part: "client secret", expected });
        }
        let secret = Zeroizing::new(secret.to_owned());
        Ok(Self::ClientSecret { tenant: tenant.to_owned(), client: client.to_owned(), secret })
    }

    /// The machine's own identity, or the user-assigned one with this client id.
    ///
    /// # Errors
    /// [`CredentialsError::Malformed`].
    pub fn managed_identity(client: Option<&str>) -> Result<Self, CredentialsError> {
        if client.is_some_and(|client| !is_guid(client)) {
            return Err(CredentialsError::Malformed { part: "client id", expected: "a GUID" });
        }
        Ok(Self::ManagedIdentity { client: client.map(ToOwned::to_owned) })
    }
}

impl std::fmt::Display for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClientSecret { tenant, client, .. } => write!(f, "application {client} of tenant {tenant}"),
            Self::ManagedIdentity { client: Some(client) } => write!(f, "the managed identity {client}"),
            Self::ManagedIdentity { client: None } => f.write_str("this machine's managed identity"),
        }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

    #[test]
    fn what_is_none_is_refused_without_being_repeated() {
        let good = Credentials::client_secret(GUID, GUID, "s3cr~et.").unwrap();
        assert!(!format!("{good} {good:?}").contains("s3cr"), "{good:?}");
        for secret in ["", "two words", "l\nine", "\u{e9}", &"x".repeat(513)] {
            let wrong = Credentials::client_secret(GUID, GUID, secret).unwrap_err();
            assert!(secret.is_empty() || !format!("{wrong} {wrong:?}").contains(secret), "{wrong}");
        }
        assert!(Credentials::client_secret("contoso.com", GUID, "x").unwrap_err().to_string().contains("tenant id"));
        assert!(Credentials::client_secret(GUID, "x", "x").is_err());
        assert!(Credentials::managed_identity(Some("x")).is_err());
        assert_eq!(Credentials::managed_identity(None).unwrap().to_string(), "this machine's managed identity");
    }
}
