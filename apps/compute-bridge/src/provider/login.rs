//! Who may log in to a grant's machine, and the keys made for it.
//!
//! A requester may bring its own public key: then it alone is admitted, and no private key is made that could get lost on
//! the way. Otherwise a pair is made for the grant, and its private half leaves in the sealed receipt only.

use coalition_host::keys;
use coalition_host::types::SecretText;
use coalition_shuffle::SshHostKey;
use russh::keys::{Algorithm, PublicKey};

use crate::backend::InstanceKeys;

/// Why nobody could log in. Says nothing that names the key's owner.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginError {
    /// The requester's line is no key.
    #[error("the requester's own login key is no OpenSSH public key")]
    Unreadable,
    /// A type the machines' SSH server does not check.
    #[error(
        "the requester's own login key is of type {0}; machines check ssh-ed25519 and ecdsa-sha2-nistp256, -384, -521"
    )]
    Type(String),
    /// A key made here cannot be read back.
    #[error("a fresh key is unreadable")]
    Fresh,
}

/// Which key is to be admitted.
#[derive(Debug)]
pub(super) enum Login {
    /// A pair made for the grant.
    Made,
    /// The requester's own, as a line for `authorized_keys`. Its comment, which tends to name a person and a machine, is
    /// left out.
    Own(String),
}

/// The keys of one grant.
pub(super) struct GrantKeys {
    /// What the machine gets.
    pub(super) instance: InstanceKeys,
    /// What the requester gets, unless it has its own.
    pub(super) login_private: Option<SecretText>,
}

impl Login {
    /// What an envelope asks for.
    ///
    /// # Errors
    /// [`LoginError`] for a key that could never log in.
    pub(super) fn of(own: Option<&str>) -> Result<Self, LoginError> {
        let Some(line) = own else { return Ok(Self::Made) };
        let key = PublicKey::from_openssh(line).map_err(|_| LoginError::Unreadable)?;
        if !matches!(key.algorithm(), Algorithm::Ed25519 | Algorithm::Ecdsa { .. }) {
            return Err(LoginError::Type(key.algorithm().to_string()));
        }
        let bare = PublicKey::new(key.key_data().clone(), "");
        bare.to_openssh().map(Self::Own).map_err(|_| LoginError::Unreadable)
    }

    /// Makes what is to be made.
    ///
    /// # Errors
    /// [`LoginError::Fresh`].
    pub(super) fn keys(&self) -> Result<GrantKeys, LoginError> {
        let host = keys::generate("grant-host");
        let host_public = ed25519_of(&host.public_openssh).ok_or(LoginError::Fresh)?;
        let (login_public, login_private) = match self {
            Self::Own(line) => (line.clone(), None),
            Self::Made => {
                let pair = keys::generate("grant");
                (pair.public_openssh, Some(pair.private_openssh))
            }
        };
        let instance = InstanceKeys { host_private: host.private_openssh, host_public, login_public };
        Ok(GrantKeys { instance, login_private })
    }
}

fn ed25519_of(openssh: &str) -> Option<SshHostKey> {
    let key = PublicKey::from_openssh(openssh).ok()?;
    key.key_data().ed25519().map(|key| SshHostKey(key.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    #[test]
    fn an_own_key_loses_its_comment_and_makes_no_private_key() {
        let Login::Own(line) = Login::of(Some(&format!("{ED25519} me@home"))).unwrap() else {
            panic!("a key was brought")
        };
        assert_eq!(line.trim_end(), ED25519);
        let keys = Login::Own(line.clone()).keys().unwrap();
        assert!(keys.login_private.is_none());
        assert_eq!(keys.instance.login_public, line);
    }

    #[test]
    fn without_one_a_pair_is_made() {
        let keys = Login::of(None).unwrap().keys().unwrap();
        let private = keys.login_private.unwrap();
        let public = keys::public_of(&private).unwrap();
        assert!(keys.instance.login_public.starts_with(public.trim_end()), "{public}");
    }

    #[test]
    fn what_could_never_log_in_is_refused_without_being_repeated() {
        let Err(error) = Login::of(Some("ssh-ed25519 AAAA secret-comment")) else { panic!("no key") };
        assert!(!error.to_string().contains("secret-comment"), "{error}");
    }
}
