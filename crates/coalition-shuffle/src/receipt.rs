//! The access receipt: how a requester gets into its machine.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coalition::{AlmanacTick, RequestId, UniqueId};
use curve25519_dalek::edwards::CompressedEdwardsY;
use rand_core::CryptoRngCore;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::cell::{CellError, REPLY_ROOM, ReplyCell};
use crate::seal::{Purpose, ReceiverKey, ReceiverPublic, SealContext};

/// Version byte of an encoded receipt.
pub const RECEIPT_VERSION: u8 = 1;
/// Longest host name or address, in bytes.
pub const MAX_HOST_BYTES: usize = 253;
/// Longest user name, in bytes.
pub const MAX_USER_BYTES: usize = 32;
/// Longest private key, in bytes of PEM.
pub const MAX_PRIVATE_KEY_BYTES: usize = 2_400;
/// Longest statement of isolation, in bytes.
pub const MAX_ISOLATION_BYTES: usize = 512;

const SSH_PORT: u16 = 22;
const KEY_TYPE: &str = "ssh-ed25519";

/// An SSH server's Ed25519 host key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SshHostKey(pub [u8; 32]);

impl SshHostKey {
    /// `ssh-ed25519 BASE64`, as in `known_hosts` and `authorized_keys`.
    #[must_use]
    pub fn to_openssh(&self) -> String {
        let mut blob = Vec::with_capacity(51);
        for part in [KEY_TYPE.as_bytes(), &self.0] {
            let length = u32::try_from(part.len()).expect("parts of a key are short");
            blob.extend_from_slice(&length.to_be_bytes());
            blob.extend_from_slice(part);
        }
        format!("{KEY_TYPE} {}", STANDARD.encode(blob))
    }
}

impl fmt::Debug for SshHostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SshHostKey({})", self.to_openssh())
    }
}

/// What vouches for the machine beside its provider's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Posture {
    /// Nothing: the requester trusts the provider's host.
    NotAttested,
    /// A quote of the guest the machine runs in, which binds its host key. The provider hands it over beside the receipt;
    /// what it is worth is for the requester to judge.
    Attested {
        /// Digest of the quote.
        quote: UniqueId,
    },
}

impl fmt::Display for Posture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAttested => f.write_str("not attested"),
            Self::Attested { quote } => write!(f, "a quote of its guest, {quote}"),
        }
    }
}

/// Chapter 27's seven fields, then how the workload is isolated and what vouches for that.
///
/// The provider is deliberately absent; the grant names it. Wiped when dropped; `Debug` shows no key and no address.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct SshAccessReceipt {
    /// Public DNS name or address.
    pub instance_host: String,
    /// Port of the SSH server; not 0.
    pub instance_port: u16,
    /// User to log in as.
    pub user: String,
    /// The per-grant private key, OpenSSH PEM; empty when the requester's envelope named a key of its own, which then is
    /// the one that may log in.
    pub ssh_key_private: Vec<u8>,
    /// The key the SSH server will show.
    #[zeroize(skip)]
    pub ssh_host_key: SshHostKey,
    /// The grant.
    #[zeroize(skip)]
    pub grant_id: RequestId,
    /// The tick expected at the deadline.
    #[zeroize(skip)]
    pub valid_to: AlmanacTick,
    /// How the workload is isolated, in a sentence for a person.
    pub isolation: String,
    /// What vouches for the machine.
    #[zeroize(skip)]
    pub posture: Posture,
}

/// Why a receipt was refused. Messages repeat nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReceiptError {
    /// A field that breaks its limits.
    #[error("the receipt's {field} must be {rule}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// Another version.
    #[error("the receipt has version {found}, this software reads version {RECEIPT_VERSION}; update it")]
    Version {
        /// Version found.
        found: u8,
    },
    /// Not an encoded receipt, or not the one encoding of its value.
    #[error("the receipt is malformed")]
    Malformed,
    /// For another grant than the one it was sealed for.
    #[error("the receipt names grant {found} but came for grant {expected}; the provider is confused or lying")]
    OtherGrant {
        /// Grant it came for.
        expected: RequestId,
        /// Grant it names.
        found: RequestId,
    },
    /// The cell around it was refused.
    #[error("the receipt's cell was refused")]
    Cell(#[from] CellError),
}

impl SshAccessReceipt {
    /// The `known_hosts` line: `[host]:port ssh-ed25519 BASE64`, or `host ssh-ed25519 BASE64` on port 22, which is how
    /// OpenSSH looks it up.
    #[must_use]
    pub fn known_hosts_line(&self) -> String {
        let key = self.ssh_host_key.to_openssh();
        match self.instance_port {
            SSH_PORT => format!("{} {key}", self.instance_host),
            port => format!("[{}]:{port} {key}", self.instance_host),
        }
    }

    /// Checks every limit of the fields.
    ///
    /// # Errors
    /// [`ReceiptError::Field`] naming the first field that breaks one.
    pub fn check(&self) -> Result<(), ReceiptError> {
        // A leading hyphen would be read as an option by ssh; blanks and commas would forge known_hosts entries.
        let host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'-');
        let user = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let word = |text: &str, max, fits: fn(u8) -> bool| {
            !text.is_empty() && text.len() <= max && !text.starts_with('-') && text.bytes().all(fits)
        };
        let key = self.ssh_key_private.as_slice();
        let pem = key.starts_with(b"-----BEGIN ") && key.len() <= MAX_PRIVATE_KEY_BYTES && key.is_ascii();
        let key = pem || key.is_empty();
        let told = self.isolation.len() <= MAX_ISOLATION_BYTES && !self.isolation.chars().any(char::is_control);
        let point = CompressedEdwardsY(self.ssh_host_key.0).decompress().is_some();
        let rules = [
            ("instance_host", "a DNS name or address", word(&self.instance_host, MAX_HOST_BYTES, host)),
            ("instance_port", "1 to 65535", self.instance_port != 0),
            ("user", "a Unix user name", word(&self.user, MAX_USER_BYTES, user)),
            ("ssh_key_private", "an ASCII PEM of at most 2,400 bytes, or empty", key),
            ("ssh_host_key", "an Ed25519 public key", point),
            ("isolation", "one line of at most 512 bytes", told),
        ];
        match rules.into_iter().find(|(_, _, holds)| !holds) {
            Some((field, rule, _)) => Err(ReceiptError::Field { field, rule }),
            None => Ok(()),
        }
    }

    /// Canonical bytes: `0x01 ‖ postcard of the fields`.
    ///
    /// # Errors
    /// [`ReceiptError::Field`] for a field that breaks its limits.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, ReceiptError> {
        self.check()?;
        let size = postcard::experimental::serialized_size(self).map_err(|_| ReceiptError::Malformed)?;
        let mut bytes = Zeroizing::new(vec![RECEIPT_VERSION; 1 + size]);
        postcard::to_slice(self, &mut bytes[1..]).map_err(|_| ReceiptError::Malformed)?;
        Ok(bytes)
    }

    /// Decodes [`SshAccessReceipt::encode`].
    ///
    /// # Errors
    /// [`ReceiptError`] for another version, anything malformed or not canonical, and broken limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReceiptError> {
        let (&version, body) = bytes.split_first().ok_or(ReceiptError::Malformed)?;
        if version != RECEIPT_VERSION {
            return Err(ReceiptError::Version { found: version });
        }
        let receipt: Self = postcard::from_bytes(body).map_err(|_| ReceiptError::Malformed)?;
        if receipt.encode()?.as_slice() != bytes {
            return Err(ReceiptError::Malformed);
        }
        Ok(receipt)
    }

    /// Seals the receipt into a reply cell for the requester, bound to its own grant and the coalition.
    ///
    /// # Errors
    /// [`ReceiptError`] for broken limits; [`ReceiptError::OtherGrant`] when `context` is another grant's.
    pub fn seal_to<R: CryptoRngCore + ?Sized>(
        &self,
        requester: &ReceiverPublic,
        context: &SealContext,
        rng: &mut R,
    ) -> Result<ReplyCell, ReceiptError> {
        self.check_grant(context)?;
        Ok(ReplyCell::seal(&self.encode()?, Purpose::SshReceipt, requester, context, rng)?)
    }

    /// Opens a reply cell with the requester's key.
    ///
    /// # Errors
    /// [`ReceiptError`] when the cell is for another key, coalition or grant, or holds no valid receipt.
    pub fn unseal_with(cell: &ReplyCell, key: &ReceiverKey, context: &SealContext) -> Result<Self, ReceiptError> {
        let receipt = Self::decode(&cell.open(key, Purpose::SshReceipt, context)?)?;
        receipt.check_grant(context).map(|()| receipt)
    }

    fn check_grant(&self, context: &SealContext) -> Result<(), ReceiptError> {
        if self.grant_id != context.grant {
            return Err(ReceiptError::OtherGrant { expected: context.grant, found: self.grant_id });
        }
        Ok(())
    }
}

impl fmt::Debug for SshAccessReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SshAccessReceipt(grant {}, {}, rest redacted)", self.grant_id, self.posture)
    }
}

/// The largest receipt: version, three-byte port, ten-byte tick, host key, grant, posture with a digest, and four texts
/// behind lengths of two bytes.
const LARGEST: usize =
    1 + 3 + 10 + 32 + 32 + 33 + 8 + MAX_HOST_BYTES + MAX_USER_BYTES + MAX_PRIVATE_KEY_BYTES + MAX_ISOLATION_BYTES;
const _: () = assert!(LARGEST <= REPLY_ROOM, "every valid receipt fits one cell");

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing::SeededRng;
    use proptest::prelude::*;

    pub(crate) fn sample(grant: RequestId) -> SshAccessReceipt {
        let host_key = curve25519_dalek::EdwardsPoint::mul_base(&curve25519_dalek::Scalar::from(7u8));
        SshAccessReceipt {
            instance_host: "127.0.0.1".into(),
            instance_port: 2222,
            user: "root".into(),
            ssh_key_private: b"-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n"
                .to_vec(),
            ssh_host_key: SshHostKey(host_key.compress().to_bytes()),
            grant_id: grant,
            valid_to: AlmanacTick(77),
            isolation: "user, mount, pid and network namespaces; cgroup limits".into(),
            posture: Posture::NotAttested,
        }
    }

    fn grant() -> RequestId {
        RequestId(UniqueId::from_u8(6))
    }

    fn context() -> SealContext {
        SealContext { coalition: UniqueId::from_u8(5), grant: grant() }
    }

    #[test]
    fn seals_and_unseals() {
        let mut rng = SeededRng::new("receipt");
        let key = ReceiverKey::generate(&mut rng);
        let cell = sample(grant()).seal_to(&key.public(), &context(), &mut rng).unwrap();
        assert_eq!(SshAccessReceipt::unseal_with(&cell, &key, &context()).unwrap(), sample(grant()));
        let other = SealContext { grant: RequestId(UniqueId::from_u8(7)), ..context() };
        assert!(matches!(SshAccessReceipt::unseal_with(&cell, &key, &other), Err(ReceiptError::Cell(_))));
        let wrong = sample(grant()).seal_to(&key.public(), &other, &mut rng);
        assert!(matches!(wrong, Err(ReceiptError::OtherGrant { .. })));
    }

    #[test]
    fn a_receipt_naming_another_grant_than_it_came_for_is_refused() {
        let mut rng = SeededRng::new("lying");
        let key = ReceiverKey::generate(&mut rng);
        let lying = sample(RequestId(UniqueId::from_u8(9))).encode().unwrap();
        let cell = ReplyCell::seal(&lying, Purpose::SshReceipt, &key.public(), &context(), &mut rng).unwrap();
        let refused = SshAccessReceipt::unseal_with(&cell, &key, &context());
        assert!(matches!(refused, Err(ReceiptError::OtherGrant { .. })));
    }

    #[test]
    fn golden_vector() {
        let bytes = sample(grant()).encode().unwrap();
        assert_eq!(hex::encode(bytes.as_slice()), include_str!("../tests/vectors/receipt.hex").trim());
        let mut quoted = sample(grant());
        quoted.posture = Posture::Attested { quote: UniqueId::from_bytes([8; 32]) };
        let bytes = quoted.encode().unwrap();
        assert_eq!(hex::encode(bytes.as_slice()), include_str!("../tests/vectors/receipt-attested.hex").trim());
        assert_eq!(SshAccessReceipt::decode(&bytes).unwrap(), quoted);
    }

    #[test]
    fn known_hosts_lines_are_what_openssh_looks_up() {
        let mut receipt = sample(grant());
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA";
        assert!(receipt.known_hosts_line().starts_with(&format!("[127.0.0.1]:2222 {key}")));
        receipt.instance_port = 22;
        assert!(receipt.known_hosts_line().starts_with(&format!("127.0.0.1 {key}")));
        let blob = STANDARD.decode(receipt.ssh_host_key.to_openssh().split(' ').nth(1).unwrap()).unwrap();
        assert_eq!((blob.len(), &blob[19..]), (51, receipt.ssh_host_key.0.as_slice()));
    }

    #[test]
    fn every_limit_is_enforced_and_named() {
        type Change = fn(&mut SshAccessReceipt);
        let cases: &[(&str, Change)] = &[
            ("instance_host", |r| r.instance_host = String::new()),
            ("instance_host", |r| r.instance_host = "-oProxyCommand=x".into()),
            ("instance_host", |r| r.instance_host = "a b".into()),
            ("instance_host", |r| r.instance_host = "a\n*".into()),
            ("instance_host", |r| r.instance_host = "a".repeat(MAX_HOST_BYTES + 1)),
            ("instance_port", |r| r.instance_port = 0),
            ("user", |r| r.user = "-l".into()),
            ("user", |r| r.user = "a b".into()),
            ("user", |r| r.user = "a".repeat(MAX_USER_BYTES + 1)),
            ("ssh_key_private", |r| r.ssh_key_private = vec![1]),
            ("ssh_key_private", |r| r.ssh_key_private.resize(MAX_PRIVATE_KEY_BYTES + 1, b'a')),
            ("ssh_host_key", |r| r.ssh_host_key = SshHostKey([2; 32])),
            ("isolation", |r| r.isolation = "a\x1b[31m".into()),
            ("isolation", |r| r.isolation = "a".repeat(MAX_ISOLATION_BYTES + 1)),
        ];
        for (field, change) in cases {
            let mut receipt = sample(grant());
            change(&mut receipt);
            let error = receipt.encode().unwrap_err();
            assert!(matches!(&error, ReceiptError::Field { field: f, .. } if f == field), "{field}: {error}");
        }
    }

    #[test]
    fn debug_shows_no_key_and_no_address() {
        let shown = format!("{:?}", sample(grant()));
        for secret in ["BEGIN", "c2Vj", "127.0.0.1", "2222"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = SshAccessReceipt::decode(&bytes);
            bytes.insert(0, RECEIPT_VERSION);
            let _ = SshAccessReceipt::decode(&bytes);
        }
    }
}
