//! Access keys: where they come from and how they are kept from being seen.

use std::sync::Arc;

use zeroize::Zeroizing;

/// Longest part of credentials accepted, in bytes. Session tokens are the longest, about 1,000.
const MAX_PART: usize = 4_096;

/// An access key. Wiped when dropped; `Debug` shows the id's last four characters only.
#[derive(Clone)]
pub struct Credentials {
    id: String,
    secret: Zeroizing<String>,
    token: Option<Zeroizing<String>>,
}

/// Where credentials come from. Asked before every call, so that keys that were exchanged are used at once.
pub type CredentialSource = Arc<dyn Fn() -> Result<Credentials, CredentialsError> + Send + Sync>;

/// Why there are no credentials. Never repeats what it read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// No section of this name.
    #[error("the credentials file has no section [{profile}]; it has {found}")]
    NoProfile {
        /// The section.
        profile: String,
        /// Those there are.
        found: String,
    },
    /// The section lacks a key.
    #[error("{place} has no {key}")]
    Missing {
        /// Section, or the environment.
        place: String,
        /// The key.
        key: &'static str,
    },
    /// A value that is no access key.
    #[error("{key} {problem}")]
    Malformed {
        /// The key.
        key: &'static str,
        /// What is wrong, without the value.
        problem: &'static str,
    },
    /// The source itself cannot be used.
    #[error("{0}")]
    Unavailable(String),
}

impl Credentials {
    /// Checks the parts' form.
    ///
    /// # Errors
    /// [`CredentialsError::Malformed`].
    pub fn new(id: &str, secret: &str, token: Option<&str>) -> Result<Self, CredentialsError> {
        let printable =
            |text: &str| !text.is_empty() && text.len() <= MAX_PART && text.bytes().all(|b| b.is_ascii_graphic());
        let check = |key: &'static str, text: &str| {
            if printable(text) {
                return Ok(());
            }
            Err(CredentialsError::Malformed { key, problem: "is empty, too long, or has characters no access key has" })
        };
        check("aws_access_key_id", id)?;
        check("aws_secret_access_key", secret)?;
        token.map_or(Ok(()), |token| check("aws_session_token", token))?;
        let hidden = |text: &str| Zeroizing::new(text.to_owned());
        Ok(Self { id: id.to_owned(), secret: hidden(secret), token: token.map(hidden) })
    }

    /// In the form the signer takes, which wipes it, too.
    pub(crate) fn for_signing(&self) -> aws_credential_types::Credentials {
        let token = self.token.as_ref().map(|token| token.as_str().to_owned());
        aws_credential_types::Credentials::new(self.id.as_str(), self.secret.as_str(), token, None, "coalition-aws")
    }

    /// The id's last four characters, to tell keys apart in messages.
    #[must_use]
    pub fn tail(&self) -> &str {
        self.id.get(self.id.len().saturating_sub(4)..).unwrap_or_default()
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials(…{}, redacted)", self.tail())
    }
}

/// The access key in the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, for passing ones, `AWS_SESSION_TOKEN`.
///
/// # Errors
/// [`CredentialsError`].
pub fn from_environment() -> Result<Credentials, CredentialsError> {
    let read = |name: &str| std::env::var(name).ok().map(Zeroizing::new).filter(|value| !value.is_empty());
    let need =
        |name: &'static str| read(name).ok_or(CredentialsError::Missing { place: "the environment".into(), key: name });
    let (id, secret) = (need("AWS_ACCESS_KEY_ID")?, need("AWS_SECRET_ACCESS_KEY")?);
    Credentials::new(&id, &secret, read("AWS_SESSION_TOKEN").as_ref().map(|token| token.as_str()))
}

/// One section of a credentials file as AWS's own tools write it.
///
/// # Errors
/// [`CredentialsError`].
pub fn from_profile(text: &str, profile: &str) -> Result<Credentials, CredentialsError> {
    let (mut here, mut found) = (false, Vec::new());
    let (mut id, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let name = name.trim();
            here = name == profile;
            found.push(name.chars().take(40).collect::<String>());
            continue;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| here) else { continue };
        let value = Some(value.trim());
        match key.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => id = value,
            "aws_secret_access_key" => secret = value,
            "aws_session_token" => token = value.filter(|value| !value.is_empty()),
            _ => {}
        }
    }
    if !found.iter().any(|name| name == profile) {
        found.truncate(8);
        let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
        return Err(CredentialsError::NoProfile { profile: profile.chars().take(40).collect(), found });
    }
    let place = || format!("section [{profile}]");
    let id = id.ok_or_else(|| CredentialsError::Missing { place: place(), key: "aws_access_key_id" })?;
    let secret = secret.ok_or_else(|| CredentialsError::Missing { place: place(), key: "aws_secret_access_key" })?;
    Credentials::new(id, secret, token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# mine\n[default]\naws_access_key_id = AKIAEXAMPLE1234\nAWS_SECRET_ACCESS_KEY=s3cr/et+==\n\n\
                        [passing]\naws_access_key_id=ASIA9\naws_secret_access_key=x\naws_session_token=t0ken\n[empty]\n";

    #[test]
    fn sections_are_read_and_nothing_is_shown() {
        let one = from_profile(FILE, "default").unwrap();
        let shown = format!("{one:?} {:?}", one.for_signing());
        assert_eq!(one.tail(), "1234");
        assert!(!shown.contains("s3cr"), "{shown}");
        let two = from_profile(FILE, "passing").unwrap();
        assert!(two.token.is_some() && two.id == "ASIA9" && two.tail() == "SIA9");
        let missing = from_profile(FILE, "empty").unwrap_err();
        assert_eq!(missing.to_string(), "section [empty] has no aws_access_key_id");
        let none = from_profile(FILE, "other").unwrap_err().to_string();
        assert!(none.contains("[other]") && none.contains("default, passing, empty"), "{none}");
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_repeated() {
        let wrong = Credentials::new("AKIA", "sec ret", None).unwrap_err();
        assert!(!format!("{wrong} {wrong:?}").contains("sec ret"));
        assert!(Credentials::new("", "x", None).is_err() && Credentials::new("a", "b", Some("\u{e9}")).is_err());
    }
}
