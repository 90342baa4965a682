//! What only the winning provider may read of a request.

use std::fmt;

use coalition::UniqueId;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::seal::ReceiverPublic;

/// Version byte of an encoded envelope.
pub const ENVELOPE_VERSION: u8 = 1;

/// Longest region name, in bytes.
pub const MAX_REGION_BYTES: usize = 64;
/// Longest image pointer, in bytes.
pub const MAX_IMAGE_POINTER_BYTES: usize = 1_024;
/// Most arguments of a command.
pub const MAX_COMMAND_ARGS: usize = 64;
/// Most bytes of a command, all arguments together.
pub const MAX_COMMAND_BYTES: usize = 1_024;
/// Most environment variables.
pub const MAX_ENV_VARS: usize = 64;
/// Most bytes of the environment, names and values together.
pub const MAX_ENV_BYTES: usize = 1_024;
/// Longest authorized key line, in bytes; an RSA key of 4,096 bits fits.
pub const MAX_AUTHORIZED_KEY_BYTES: usize = 800;
/// Largest image, in bytes: 64 GiB.
pub const MAX_IMAGE_BYTES: u64 = 64 << 30;
/// Most CPU, in thousandths of a core.
pub const MAX_CPU_MILLICORES: u32 = 1_024_000;
/// Most memory, and most disk, in MiB: 16 TiB.
pub const MAX_MIB: u32 = 16 << 20;

/// Network identity a requester uses for one request only. Never printed: it is the one thing that links a request to a
/// connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RotatingPeer([u8; 32]);

impl RotatingPeer {
    /// From the bytes of a peer's Ed25519 public key.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes of the peer's Ed25519 public key.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for RotatingPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RotatingPeer(redacted)")
    }
}

impl Zeroize for RotatingPeer {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

/// The machine and program a requester wants: an envelope without the keys made for one request.
///
/// Chapter 26's fields, plus size and limits. Wiped when dropped; `Debug` shows sizes only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct WorkloadSpec {
    /// blake3 of the image to boot.
    #[zeroize(skip)]
    pub image_hash: UniqueId,
    /// Size of the image in bytes; at least 1, at most [`MAX_IMAGE_BYTES`].
    pub image_size_bytes: u64,
    /// Where to run, or anywhere; lower-case letters, digits and hyphens, at most [`MAX_REGION_BYTES`].
    pub requested_region: Option<String>,
    /// Where the image is fetched from, as the transport writes addresses; at most [`MAX_IMAGE_POINTER_BYTES`].
    pub image_pointer: Vec<u8>,
    /// CPU, in thousandths of a core; at least 1.
    pub cpu_millicores: u32,
    /// Memory, in MiB; at least 1.
    pub ram_mib: u32,
    /// Disk, in MiB; 0 takes the provider's default.
    pub disk_mib: u32,
    /// Program and arguments; empty runs the image's own.
    pub command: Vec<String>,
    /// Environment variables, names distinct.
    pub env: Vec<(String, String)>,
    /// One line as in `authorized_keys`: the only key that may log in. Without it the provider makes a key pair for the
    /// grant and sends its private half with the receipt.
    pub ssh_authorized_key: Option<String>,
}

/// What the winning provider reads: the workload, and the two keys made for this request.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct Envelope {
    /// The identity replies are addressed to.
    pub peer_id: RotatingPeer,
    /// The key the receipt is sealed to.
    #[zeroize(skip)]
    pub peer_x25519: ReceiverPublic,
    /// What to run.
    pub workload: WorkloadSpec,
}

/// Why an envelope was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EnvelopeError {
    /// A number outside its range.
    #[error("{field} is {value}; it must be {min} to {max}")]
    Range {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Least value allowed.
        min: u64,
        /// Greatest value allowed.
        max: u64,
    },
    /// A text or list that is too long.
    #[error("{field} has {found} {unit}, at most {max} fit; shorten it")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// Its length.
        found: usize,
        /// Greatest length allowed.
        max: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// A text with characters that do not belong there. The text itself is private and not repeated.
    #[error("{field} must be {rule}")]
    Form {
        /// Which field.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// Another version.
    #[error("the envelope has version {found}, this software reads version {ENVELOPE_VERSION}; update it")]
    Version {
        /// Version found.
        found: u8,
    },
    /// Not an encoded envelope.
    #[error("the envelope is malformed")]
    Malformed,
    /// Decodes, but is not the one encoding of its value.
    #[error("the envelope is not in canonical form")]
    NotCanonical,
    /// All fields are within their limits but do not fit one cell together.
    #[error("the envelope has {found} bytes, a cell carries {max}; shorten command, env, image pointer or key")]
    DoesNotFit {
        /// Encoded length.
        found: usize,
        /// Room in a cell.
        max: usize,
    },
}

impl WorkloadSpec {
    /// Checks every limit of the fields.
    ///
    /// # Errors
    /// [`EnvelopeError`] naming the first field that breaks one.
    pub fn check(&self) -> Result<(), EnvelopeError> {
        range("image_size_bytes", self.image_size_bytes, 1, MAX_IMAGE_BYTES)?;
        range("cpu_millicores", self.cpu_millicores.into(), 1, MAX_CPU_MILLICORES.into())?;
        range("ram_mib", self.ram_mib.into(), 1, MAX_MIB.into())?;
        range("disk_mib", self.disk_mib.into(), 0, MAX_MIB.into())?;
        length("image_pointer", self.image_pointer.len(), MAX_IMAGE_POINTER_BYTES, "bytes")?;
        self.requested_region.as_deref().map_or(Ok(()), check_region)?;
        self.check_command()?;
        self.check_env()?;
        self.ssh_authorized_key.as_deref().map_or(Ok(()), check_authorized_key)
    }

    fn check_command(&self) -> Result<(), EnvelopeError> {
        length("command", self.command.len(), MAX_COMMAND_ARGS, "arguments")?;
        length("command", self.command.iter().map(String::len).sum(), MAX_COMMAND_BYTES, "bytes")?;
        let first_is_empty = self.command.first().is_some_and(String::is_empty);
        form("command", "free of NUL", self.command.iter().all(|arg| !arg.contains('\0')))?;
        form("command", "a program name first", !first_is_empty)
    }

    fn check_env(&self) -> Result<(), EnvelopeError> {
        length("env", self.env.len(), MAX_ENV_VARS, "variables")?;
        length("env", self.env.iter().map(|(name, value)| name.len() + value.len()).sum(), MAX_ENV_BYTES, "bytes")?;
        let names_fit = self.env.iter().all(|(name, _)| is_variable_name(name));
        form("env", "named with letters, digits and underscores, no digit first", names_fit)?;
        form("env", "free of NUL", self.env.iter().all(|(_, value)| !value.contains('\0')))?;
        let distinct = (1..self.env.len()).all(|i| self.env[..i].iter().all(|(name, _)| *name != self.env[i].0));
        form("env", "a list of distinct names", distinct)
    }
}

impl fmt::Debug for WorkloadSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image_hash, image_size_bytes, cpu_millicores, ram_mib, disk_mib, .. } = self;
        write!(f, "WorkloadSpec(image {image_hash}, {image_size_bytes} B, {cpu_millicores} mCPU, ")?;
        write!(f, "{ram_mib} MiB RAM, {disk_mib} MiB disk, rest redacted)")
    }
}

impl Envelope {
    /// Canonical bytes: `0x01 ‖ postcard of the fields`.
    ///
    /// # Errors
    /// [`EnvelopeError`] when a field breaks its limit or all together exceed `room` bytes.
    pub fn encode(&self, room: usize) -> Result<Zeroizing<Vec<u8>>, EnvelopeError> {
        self.workload.check()?;
        let found = 1 + postcard::experimental::serialized_size(self).map_err(|_| EnvelopeError::Malformed)?;
        if found > room {
            return Err(EnvelopeError::DoesNotFit { found, max: room });
        }
        let mut bytes = Zeroizing::new(vec![ENVELOPE_VERSION; found]);
        postcard::to_slice(self, &mut bytes[1..]).map_err(|_| EnvelopeError::Malformed)?;
        Ok(bytes)
    }

    /// Decodes [`Envelope::encode`] and checks every limit.
    ///
    /// # Errors
    /// [`EnvelopeError`] for another version, anything malformed or not canonical, and broken limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let (&version, body) = bytes.split_first().ok_or(EnvelopeError::Malformed)?;
        if version != ENVELOPE_VERSION {
            return Err(EnvelopeError::Version { found: version });
        }
        let envelope: Self = postcard::from_bytes(body).map_err(|_| EnvelopeError::Malformed)?;
        if envelope.encode(usize::MAX)?.as_slice() != bytes {
            return Err(EnvelopeError::NotCanonical);
        }
        Ok(envelope)
    }
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envelope({:?}, keys redacted)", self.workload)
    }
}

const fn range(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), EnvelopeError> {
    if value < min || value > max { Err(EnvelopeError::Range { field, value, min, max }) } else { Ok(()) }
}

const fn length(field: &'static str, found: usize, max: usize, unit: &'static str) -> Result<(), EnvelopeError> {
    if found > max { Err(EnvelopeError::TooLong { field, found, max, unit }) } else { Ok(()) }
}

const fn form(field: &'static str, rule: &'static str, holds: bool) -> Result<(), EnvelopeError> {
    if holds { Ok(()) } else { Err(EnvelopeError::Form { field, rule }) }
}

fn check_region(region: &str) -> Result<(), EnvelopeError> {
    length("requested_region", region.len(), MAX_REGION_BYTES, "bytes")?;
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let holds = !region.is_empty() && region.bytes().all(fits);
    form("requested_region", "lower-case letters, digits and hyphens", holds)
}

fn check_authorized_key(key: &str) -> Result<(), EnvelopeError> {
    length("ssh_authorized_key", key.len(), MAX_AUTHORIZED_KEY_BYTES, "bytes")?;
    let printable = key.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    // Options such as command="…" or from="…" come before the type; they are the host's business, not the requester's.
    let typed = ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| key.starts_with(kind)) && key.contains(' ');
    form(
        "ssh_authorized_key",
        "one printable line as in authorized_keys: type, key, comment, no options",
        printable && typed,
    )
}

fn is_variable_name(name: &str) -> bool {
    let word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    word && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::seal::ReceiverKey;
    use proptest::prelude::*;

    /// An envelope with every field in use.
    pub(crate) fn sample() -> Envelope {
        Envelope {
            peer_id: RotatingPeer::from_bytes([0xa5; 32]),
            peer_x25519: ReceiverKey::from_bytes(&[3; 32]).public(),
            workload: WorkloadSpec {
                image_hash: UniqueId::hash(b"image"),
                image_size_bytes: 1_234_567,
                requested_region: Some("eu-west-1".into()),
                image_pointer: b"peer address".to_vec(),
                cpu_millicores: 1_500,
                ram_mib: 256,
                disk_mib: 0,
                command: vec!["/bin/serve".into(), "--port".into(), "80".into()],
                env: vec![("TOKEN".into(), "s3cret-value".into()), ("_X1".into(), String::new())],
                ssh_authorized_key: Some("ssh-ed25519 AAAAC3Nza me@home".into()),
            },
        }
    }

    type Change = fn(&mut WorkloadSpec);

    fn refused(change: Change) -> EnvelopeError {
        let mut envelope = sample();
        change(&mut envelope.workload);
        envelope.encode(usize::MAX).unwrap_err()
    }

    #[test]
    fn round_trips() {
        let bytes = sample().encode(4_000).unwrap();
        assert_eq!(Envelope::decode(&bytes).unwrap(), sample());
        assert_eq!(hex::encode(bytes.as_slice()), include_str!("../tests/vectors/envelope.hex").trim());
    }

    #[test]
    fn every_limit_is_enforced_and_named() {
        let cases: &[(&str, Change)] = &[
            ("image_size_bytes", |w| w.image_size_bytes = 0),
            ("image_size_bytes", |w| w.image_size_bytes = MAX_IMAGE_BYTES + 1),
            ("cpu_millicores", |w| w.cpu_millicores = 0),
            ("cpu_millicores", |w| w.cpu_millicores = MAX_CPU_MILLICORES + 1),
            ("ram_mib", |w| w.ram_mib = 0),
            ("ram_mib", |w| w.ram_mib = MAX_MIB + 1),
            ("disk_mib", |w| w.disk_mib = MAX_MIB + 1),
            ("image_pointer", |w| w.image_pointer = vec![0; MAX_IMAGE_POINTER_BYTES + 1]),
            ("requested_region", |w| w.requested_region = Some(String::new())),
            ("requested_region", |w| w.requested_region = Some("EU".into())),
            ("requested_region", |w| w.requested_region = Some("a".repeat(MAX_REGION_BYTES + 1))),
            ("command", |w| w.command = vec![String::new()]),
            ("command", |w| w.command = vec!["a\0b".into()]),
            ("command", |w| w.command = vec!["a".into(); MAX_COMMAND_ARGS + 1]),
            ("command", |w| w.command = vec!["a".repeat(MAX_COMMAND_BYTES + 1)]),
            ("env", |w| w.env = vec![("1A".into(), String::new())]),
            ("env", |w| w.env = vec![(String::new(), String::new())]),
            ("env", |w| w.env = vec![("A=B".into(), String::new())]),
            ("env", |w| w.env = vec![("A".into(), "\0".into())]),
            ("env", |w| w.env = vec![("A".into(), "1".into()), ("A".into(), "2".into())]),
            ("env", |w| w.env = (0..=MAX_ENV_VARS).map(|i| (format!("A{i}"), String::new())).collect()),
            ("env", |w| w.env = vec![("A".into(), "b".repeat(MAX_ENV_BYTES))]),
            ("ssh_authorized_key", |w| w.ssh_authorized_key = Some("ssh-ed25519 A\nssh-ed25519 B".into())),
            ("ssh_authorized_key", |w| w.ssh_authorized_key = Some("command=\"x\" ssh-ed25519 A".into())),
            ("ssh_authorized_key", |w| w.ssh_authorized_key = Some(format!("ssh-rsa {}", "A".repeat(800)))),
        ];
        for (field, change) in cases {
            let error = refused(*change);
            assert!(error.to_string().starts_with(field), "{field}: {error}");
        }
    }

    #[test]
    fn what_does_not_fit_the_room_is_refused() {
        let found = sample().encode(usize::MAX).unwrap().len();
        let refused = sample().encode(found - 1).unwrap_err();
        assert_eq!(refused, EnvelopeError::DoesNotFit { found, max: found - 1 });
    }

    #[test]
    fn other_versions_trailing_bytes_and_long_varints_are_refused() {
        let bytes = sample().encode(4_000).unwrap().to_vec();
        let mut version = bytes.clone();
        version[0] = 2;
        assert_eq!(Envelope::decode(&version), Err(EnvelopeError::Version { found: 2 }));
        let mut trailing = bytes.clone();
        trailing.push(0);
        assert_eq!(Envelope::decode(&trailing), Err(EnvelopeError::NotCanonical));
        // The disk size 0 written in two bytes instead of one; found by the fields before it.
        let mut before = sample();
        before.workload.disk_mib = 1;
        let other = before.encode(4_000).unwrap();
        let at = bytes.iter().zip(other.iter()).position(|(a, b)| a != b).unwrap();
        let mut long = bytes;
        long.splice(at..=at, [0x80, 0x00]);
        assert!(Envelope::decode(&long).is_err());
        assert_eq!(Envelope::decode(&[]), Err(EnvelopeError::Malformed));
    }

    #[test]
    fn debug_shows_neither_keys_nor_private_texts() {
        let envelope = sample();
        let shown = format!("{envelope:?}");
        for secret in ["a5a5", "165, 165", "s3cret", "TOKEN", "serve", "AAAAC3", "peer address"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Envelope::decode(&bytes);
            bytes.insert(0, ENVELOPE_VERSION);
            let _ = Envelope::decode(&bytes);
        }

        #[test]
        fn changed_bytes_decode_to_nothing_else_than_what_they_say(at in 0usize..240, to in any::<u8>()) {
            let mut bytes = sample().encode(4_000).unwrap().to_vec();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(envelope) = Envelope::decode(&bytes) {
                let again = envelope.encode(4_000).unwrap();
                prop_assert_eq!(again.as_slice(), bytes.as_slice());
            }
        }
    }
}
