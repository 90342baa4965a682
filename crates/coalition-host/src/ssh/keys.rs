//! Ed25519 keys in OpenSSH's own text forms, so that callers need no SSH library types.

use rand_core::{OsRng, RngCore};
use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{PrivateKey, PublicKey};
use zeroize::Zeroize;

use crate::types::SecretText;

/// A key pair as texts.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// The private key, "-----BEGIN OPENSSH PRIVATE KEY-----", unencrypted.
    pub private_openssh: SecretText,
    /// The public key, `ssh-ed25519 AAAA… comment`: a line for `authorized_keys`, and with a host name before it for
    /// `known_hosts`.
    pub public_openssh: String,
}

/// A key text that is not one.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not an unencrypted OpenSSH private key.
    #[error("not an unencrypted OpenSSH private key")]
    Private,
    /// Not an OpenSSH public key.
    #[error("{0:?} is not an OpenSSH public key")]
    Public(String),
}

/// Makes a fresh Ed25519 key pair from the operating system's randomness.
///
/// # Panics
/// When the operating system has no randomness to give.
pub fn generate(comment: &str) -> KeyPair {
    let mut seed = [0u8; 32];
    OsRng.fill_bytes(&mut seed);
    let pair = from_seed(&seed, comment);
    seed.zeroize();
    pair
}

/// The key pair of a 32-byte seed: a host key that must be the same after a restart.
pub fn from_seed(seed: &[u8; 32], comment: &str) -> KeyPair {
    let data = KeypairData::Ed25519(Ed25519Keypair::from_seed(seed));
    let key = PrivateKey::new(data, comment).expect("an unencrypted Ed25519 key is always well-formed");
    let private = key.to_openssh(LineEnding::LF).expect("writing to memory cannot fail");
    let public = key.public_key().to_openssh().expect("writing to memory cannot fail");
    KeyPair { private_openssh: SecretText::new(private.as_str()), public_openssh: public }
}

/// The public half of a private key, as `ssh-ed25519 AAAA…`.
pub fn public_of(private_openssh: &SecretText) -> Result<String, KeyError> {
    private(private_openssh)?.public_key().to_openssh().map_err(|_| KeyError::Private)
}

pub(crate) fn private(text: &SecretText) -> Result<PrivateKey, KeyError> {
    match PrivateKey::from_openssh(text.expose()) {
        Ok(key) if !key.is_encrypted() => Ok(key),
        _ => Err(KeyError::Private),
    }
}

pub(crate) fn public(text: &str) -> Result<PublicKey, KeyError> {
    PublicKey::from_openssh(text).map_err(|_| KeyError::Public(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_key_and_texts_parse_back() {
        let (a, b) = (from_seed(&[7; 32], "x"), from_seed(&[7; 32], "x"));
        assert_eq!(a.public_openssh, b.public_openssh);
        assert_eq!(public_of(&a.private_openssh).unwrap(), a.public_openssh);
        assert!(public(&a.public_openssh).is_ok() && a.public_openssh.starts_with("ssh-ed25519 AAAA"));
        assert_ne!(generate("x").public_openssh, generate("x").public_openssh);
        assert!(!format!("{a:?}").contains("BEGIN"));
    }
}
