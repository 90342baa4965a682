//! What a member of a committee must know before it can order commands.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use blake3::Hasher;
use commonware_codec::{Copying, DecodeExt as _};
use commonware_cryptography::ed25519::PublicKey;
use commonware_utils::ordered::Set;
use zeroize::Zeroizing;

use crate::anchor::{Anchor, AnchorError};
use crate::block::{BlockLimits, MAX_TIME_MS};
use crate::error::OrderError;

/// Largest committee the wire formats and channel sizes are made for.
pub const MAX_MEMBERS: usize = 64;

/// Largest `max_batch_bytes`: a batch travels in one network message.
pub const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// One seat of the committee, in the order of the organism's config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderMember {
    /// Ed25519 public key of the seat's consensus key.
    pub public_key: [u8; 32],
    /// Address at which the other members reach this seat (TCP).
    pub address: SocketAddr,
}

/// Everything a member needs to take its seat.
///
/// `namespace`, the roster's keys, `starts_after_ms`, `max_batch_bytes`, `max_batch_commands` and `max_command_bytes` define the committee:
/// members that disagree in any of them refuse each other's connections, and a storage directory written under
/// one definition is refused under another. `heartbeat_ms` and `network_delay_ms` should be equal on all members.
#[derive(Clone)]
pub struct OrderConfig {
    /// Committee id. Separates all signatures and connections from those of any other committee.
    pub namespace: Vec<u8>,
    /// The seats, 1 to 64, unique keys. A quorum is `n - (n - 1) / 3`: 3 of 4, 5 of 7, but 3 of 3.
    pub roster: Vec<OrderMember>,
    /// Ed25519 seed of this member's consensus key; its public key must be in the roster. Members' clocks must be within
    /// ten seconds of each other, or they refuse each other's handshakes.
    pub secret_key: Zeroizing<[u8; 32]>,
    /// Address to listen on (TCP).
    pub listen: SocketAddr,
    /// Directory of this member alone; created if missing. Never copy or restore it to an older state:
    /// the votes recorded in it are what keeps this member from contradicting itself.
    pub storage_dir: PathBuf,
    /// An idle committee orders an empty batch at most this often, in milliseconds. An empty batch costs every member
    /// about half a KiB of disk and 150 bytes of memory until [`prune`](crate::OrderHandle::prune)d.
    pub heartbeat_ms: u64,
    /// Every batch's time is after this one, in milliseconds since the Unix epoch: where the committee before this one
    /// ended. Defines the committee, too. 0 for a first one.
    pub starts_after_ms: u64,
    /// Time a message is expected to need at worst, in milliseconds. A proposer that is silent for
    /// `heartbeat_ms + network_delay_ms` is passed over.
    pub network_delay_ms: u64,
    /// How far a batch's time may be ahead of a member's clock before the member withholds its vote, in milliseconds.
    pub max_clock_drift_ms: u64,
    /// Upper bound of one batch's commands together, in bytes, four bytes of framing per command included.
    pub max_batch_bytes: usize,
    /// Upper bound of the number of commands in one batch.
    pub max_batch_commands: usize,
    /// Upper bound of one command, in bytes.
    pub max_command_bytes: usize,
    /// Upper bound of one message of the side channel, in bytes.
    pub max_gossip_bytes: usize,
    /// Upper bound of submitted, not yet ordered commands of this process, in bytes. As much again is kept
    /// for the commands of all other members together.
    pub max_pending_bytes: usize,
    /// Batches handed to the consumer ahead of its acknowledgements.
    pub max_unacknowledged: usize,
    /// Threads of the engine's own runtime. By default two, but one where that leaves none for the rest: on two cores, one
    /// orders a tenth more.
    pub worker_threads: usize,
    /// Ordered batches per file: what [`prune`](crate::OrderHandle::prune) frees at a time. Fixed for the life of a storage
    /// directory; 4,096, except in tests.
    pub batches_per_file: u64,
    /// Where to start if the stored batches end below it. The consumer must have the effects of every batch before it. `None` goes
    /// on where the storage ends, or begins with the first batch.
    pub floor: Option<Anchor>,
}

impl Default for OrderConfig {
    fn default() -> Self {
        Self {
            namespace: Vec::new(),
            roster: Vec::new(),
            secret_key: Zeroizing::new([0; 32]),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            storage_dir: PathBuf::new(),
            heartbeat_ms: 1_000,
            starts_after_ms: 0,
            network_delay_ms: 1_000,
            max_clock_drift_ms: 2_000,
            max_batch_bytes: 512 * 1024,
            max_batch_commands: 4_096,
            max_command_bytes: 64 * 1024,
            max_gossip_bytes: 64 * 1024,
            max_pending_bytes: 16 * 1024 * 1024,
            max_unacknowledged: 16,
            worker_threads: std::thread::available_parallelism()
                .map_or(1, |cores| cores.get().saturating_sub(1).clamp(1, 2)),
            batches_per_file: 4_096,
            floor: None,
        }
    }
}

impl std::fmt::Debug for OrderConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OrderConfig")
            .field("members", &self.roster.len())
            .field("secret_key", &"redacted")
            .field("listen", &self.listen)
            .field("storage_dir", &self.storage_dir)
            .field("heartbeat_ms", &self.heartbeat_ms)
            .finish_non_exhaustive()
    }
}

impl OrderConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`OrderError::Config`] names the field, its value and what it must be.
    pub fn validate(&self) -> Result<(), OrderError> {
        let wrong = |text: String| Err(OrderError::Config(text));
        if self.namespace.is_empty() || self.namespace.len() > 256 {
            return wrong(format!("namespace has {} bytes; give it 1 to 256", self.namespace.len()));
        }
        if self.roster.is_empty() || self.roster.len() > MAX_MEMBERS {
            return wrong(format!("the roster has {} members; give it 1 to {MAX_MEMBERS}", self.roster.len()));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = self.roster.iter().position(|m| !seen.insert(m.public_key)) {
            return wrong(format!(
                "member {twice} has the same public key as an earlier one; every seat needs its own"
            ));
        }
        bound("starts_after_ms", self.starts_after_ms, 0, MAX_TIME_MS)?;
        bound("heartbeat_ms", self.heartbeat_ms, 10, 60_000)?;
        bound("network_delay_ms", self.network_delay_ms, 50, 60_000)?;
        bound("max_clock_drift_ms", self.max_clock_drift_ms, 1, 3_600_000)?;
        bound("max_command_bytes", self.max_command_bytes as u64, 1, MAX_BATCH_BYTES as u64 - 4)?;
        bound(
            "max_batch_bytes",
            self.max_batch_bytes as u64,
            self.max_command_bytes as u64 + 4,
            MAX_BATCH_BYTES as u64,
        )?;
        bound("max_batch_commands", self.max_batch_commands as u64, 1, 65_536)?;
        bound("max_gossip_bytes", self.max_gossip_bytes as u64, 1, MAX_BATCH_BYTES as u64)?;
        bound("max_pending_bytes", self.max_pending_bytes as u64, self.max_command_bytes as u64, 1 << 32)?;
        bound("max_unacknowledged", self.max_unacknowledged as u64, 1, 1_024)?;
        if self.floor.as_ref().is_some_and(|floor| *floor.committee() != self.fingerprint()) {
            return wrong("floor is an anchor of another committee; take one that this config verified".into());
        }
        bound("batches_per_file", self.batches_per_file, 1, 1 << 20)?;
        bound("worker_threads", self.worker_threads as u64, 1, 64)
    }

    /// Checks what somebody served as an anchor of the committee this describes.
    ///
    /// # Errors
    /// [`AnchorError`].
    pub fn verify_anchor(&self, bytes: &[u8]) -> Result<Anchor, AnchorError> {
        let keys = self.roster.iter().map(|member| PublicKey::decode(Copying(&member.public_key)));
        let keys: Vec<PublicKey> = keys.collect::<Result<_, _>>().map_err(|_| AnchorError::NoCommittee)?;
        let keys = Set::from_iter_dedup(keys);
        Anchor::check(bytes, self.fingerprint(), keys, &self.limits(), &self.secret_key)
    }

    /// Limits of a batch.
    pub(crate) const fn limits(&self) -> BlockLimits {
        BlockLimits {
            max_bytes: self.max_batch_bytes,
            max_commands: self.max_batch_commands,
            max_command_bytes: self.max_command_bytes,
        }
    }

    /// What the members must agree on, as 32 bytes: format version, namespace, keys in roster order, limits.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hasher = Hasher::new_derive_key("coalition-order committee v1");
        hasher.update(&(self.namespace.len() as u64).to_be_bytes());
        hasher.update(&self.namespace);
        hasher.update(&(self.roster.len() as u64).to_be_bytes());
        for member in &self.roster {
            hasher.update(&member.public_key);
        }
        for limit in [self.max_batch_bytes, self.max_batch_commands, self.max_command_bytes] {
            hasher.update(&(limit as u64).to_be_bytes());
        }
        if self.starts_after_ms > 0 {
            hasher.update(&self.starts_after_ms.to_be_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

fn bound(name: &str, value: u64, min: u64, max: u64) -> Result<(), OrderError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(OrderError::Config(format!("{name} is {value}; it must be between {min} and {max}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> OrderConfig {
        let member = |k: u8| OrderMember { public_key: [k; 32], address: SocketAddr::from(([127, 0, 0, 1], 1)) };
        OrderConfig { namespace: b"test".to_vec(), roster: vec![member(1), member(2)], ..OrderConfig::default() }
    }

    #[test]
    fn defaults_with_a_roster_are_valid() {
        config().validate().unwrap();
    }

    #[test]
    fn every_wrong_field_is_named() {
        let mut cases: Vec<(&str, OrderConfig)> = Vec::new();
        let mut with = |name, f: &dyn Fn(&mut OrderConfig)| {
            let mut c = config();
            f(&mut c);
            cases.push((name, c));
        };
        with("namespace", &|c| c.namespace.clear());
        with("roster", &|c| c.roster.clear());
        with("same public key", &|c| c.roster[1].public_key = [1; 32]);
        with("heartbeat_ms", &|c| c.heartbeat_ms = 0);
        with("max_batch_bytes", &|c| c.max_batch_bytes = c.max_command_bytes);
        with("max_command_bytes", &|c| c.max_command_bytes = 0);
        with("max_unacknowledged", &|c| c.max_unacknowledged = 0);
        for (name, config) in cases {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(name), "{error} should name {name}");
        }
    }

    #[test]
    fn fingerprint_covers_what_members_must_agree_on() {
        let base = config().fingerprint();
        let mut c = config();
        c.roster[0].address = SocketAddr::from(([10, 0, 0, 1], 9));
        c.heartbeat_ms = 77;
        assert_eq!(c.fingerprint(), base, "addresses and pace may change");
        c.roster.swap(0, 1);
        assert_ne!(c.fingerprint(), base, "the order of seats matters");
        let mut c = config();
        c.max_batch_bytes += 1;
        assert_ne!(c.fingerprint(), base);
        let mut c = config();
        c.starts_after_ms = 1;
        assert_ne!(c.fingerprint(), base);
        // Golden: a change here makes every stored committee unreadable.
        assert_eq!(hex(&base), "d1ba75cdd9a3922d5dda1486b07d481a7a45e09a709863791a094b86c9fff7c5");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn debug_hides_the_key() {
        let mut c = config();
        c.secret_key = Zeroizing::new([0xAB; 32]);
        let text = format!("{c:?}");
        assert!(!text.contains("171") && text.contains("redacted"), "{text}");
    }
}
