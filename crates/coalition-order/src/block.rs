//! The batch as consensus sees it: a block of commands, its one encoding, its digest and its limits.

use bytes::{Buf as _, BufMut, Bytes};
use commonware_codec::{Buf, EncodeSize, Error, Read, ReadExt as _, Write};
use commonware_consensus::types::Height;
use commonware_consensus::{Block, BoundedBlock, Heightable};
use commonware_cryptography::sha256::Digest;
use commonware_cryptography::{Digestible, Hasher as _, Sha256};

use crate::command::{CommandId, command_id};

/// Last millisecond of the year 9999. A later time is provably wrong, so decoding refuses it.
pub(crate) const MAX_TIME_MS: u64 = 253_402_300_799_999;

/// Bytes of a block before its commands.
const HEADER: usize = 8 + 32 + 8 + 8 + 4;

/// Separates block digests from every other SHA-256 in the system.
const DOMAIN: &[u8] = b"coalition-order block v1";

/// What a decoder admits. Equal on all members (part of the committee's fingerprint).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockLimits {
    /// All commands together, four bytes each for framing included.
    pub(crate) max_bytes: usize,
    /// Number of commands.
    pub(crate) max_commands: usize,
    /// One command.
    pub(crate) max_command_bytes: usize,
}

/// A proposed or ordered batch.
///
/// Encoding, big endian: `view u64 ‖ parent 32 ‖ height u64 ‖ time_ms u64 ‖ count u32 ‖ (len u32 ‖ bytes)*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BatchBlock {
    /// The consensus view it was proposed in: makes proposals of different views different blocks.
    pub(crate) view: u64,
    /// Digest of the block before it; for genesis, the committee's fingerprint.
    pub(crate) parent: Digest,
    /// One more than the parent's; genesis is 0.
    pub(crate) height: u64,
    /// Milliseconds since the Unix epoch, strictly larger than the parent's.
    pub(crate) time_ms: u64,
    /// The commands, in the order the proposer received them.
    pub(crate) commands: Vec<Bytes>,
}

impl BatchBlock {
    /// The block every member starts from.
    pub(crate) fn genesis(fingerprint: [u8; 32], time_ms: u64) -> Self {
        Self { view: 0, parent: Digest::from(fingerprint), height: 0, time_ms, commands: Vec::new() }
    }

    /// Ids of the commands, in order.
    pub(crate) fn ids(&self) -> Vec<CommandId> {
        self.commands.iter().map(|c| command_id(c)).collect()
    }
}

impl Write for BatchBlock {
    fn write(&self, buf: &mut impl BufMut) {
        buf.put_u64(self.view);
        self.parent.write(buf);
        buf.put_u64(self.height);
        buf.put_u64(self.time_ms);
        buf.put_u32(u32::try_from(self.commands.len()).expect("limited by max_commands"));
        for command in &self.commands {
            buf.put_u32(u32::try_from(command.len()).expect("limited by max_command_bytes"));
            buf.put_slice(command);
        }
    }
}

impl EncodeSize for BatchBlock {
    fn encode_size(&self) -> usize {
        HEADER + self.commands.iter().map(|c| 4 + c.len()).sum::<usize>()
    }
}

impl Read for BatchBlock {
    type Cfg = BlockLimits;

    fn read_cfg(buf: &mut impl Buf, limits: &BlockLimits) -> Result<Self, Error> {
        let view = u64::read(buf)?;
        let parent = Digest::read(buf)?;
        let height = u64::read(buf)?;
        let time_ms = u64::read(buf)?;
        if time_ms > MAX_TIME_MS {
            return Err(Error::Invalid("batch", "its time is after the year 9999"));
        }
        let count = u32::read(buf)? as usize;
        if count > limits.max_commands {
            return Err(Error::InvalidLength(count));
        }
        let mut total = 0;
        let mut commands = Vec::with_capacity(count.min(buf.remaining() / 4));
        for _ in 0..count {
            let len = u32::read(buf)? as usize;
            total += 4 + len;
            if len > limits.max_command_bytes || total > limits.max_bytes {
                return Err(Error::InvalidLength(len));
            }
            commands.push(buf.try_take_owned(len).map_err(|_| Error::EndOfBuffer)?);
        }
        Ok(Self { view, parent, height, time_ms, commands })
    }
}

impl Digestible for BatchBlock {
    type Digest = Digest;

    fn digest(&self) -> Digest {
        let mut encoded = Vec::with_capacity(self.encode_size());
        self.write(&mut encoded);
        Sha256::hash(&[DOMAIN, &encoded])
    }
}

impl Heightable for BatchBlock {
    fn height(&self) -> Height {
        Height::new(self.height)
    }
}

impl Block for BatchBlock {
    fn parent(&self) -> Digest {
        self.parent
    }
}

impl BoundedBlock for BatchBlock {
    fn max_encode_size(limits: &BlockLimits) -> usize {
        HEADER + limits.max_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use commonware_codec::{Decode as _, Encode as _};
    use proptest::prelude::*;

    const LIMITS: BlockLimits = BlockLimits { max_bytes: 200, max_commands: 10, max_command_bytes: 60 };

    fn block(commands: &[&[u8]]) -> BatchBlock {
        BatchBlock {
            view: 7,
            parent: Digest::from([9; 32]),
            height: 3,
            time_ms: 1_700_000_000_000,
            commands: commands.iter().map(|c| Bytes::copy_from_slice(c)).collect(),
        }
    }

    proptest! {
        #[test]
        fn round_trip(commands in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..16), 0..10)) {
            let commands: Vec<&[u8]> = commands.iter().map(Vec::as_slice).collect();
            let b = block(&commands);
            let bytes = b.encode();
            prop_assert_eq!(bytes.len(), b.encode_size());
            prop_assert!(bytes.len() <= BatchBlock::max_encode_size(&LIMITS));
            prop_assert_eq!(BatchBlock::decode_cfg(bytes, &LIMITS).unwrap(), b);
        }

        #[test]
        fn outside_bytes_never_panic_and_are_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(b) = BatchBlock::decode_cfg(Bytes::from(bytes.clone()), &LIMITS) {
                prop_assert_eq!(b.encode().to_vec(), bytes);
            }
        }
    }

    #[test]
    fn limits_hold() {
        let decode = |b: &BatchBlock| BatchBlock::decode_cfg(b.encode(), &LIMITS);
        assert!(decode(&block(&[&[0; 60]])).is_ok());
        assert!(decode(&block(&[&[0; 61]])).is_err(), "one command too large");
        assert!(decode(&block(&[b"" as &[u8]; 11])).is_err(), "too many commands");
        assert!(decode(&block(&[[0; 60].as_slice(); 3])).is_ok());
        assert!(decode(&block(&[[0; 60].as_slice(); 4])).is_err(), "too many bytes");
        let mut late = block(&[]);
        late.time_ms = MAX_TIME_MS + 1;
        assert!(decode(&late).is_err());
    }

    #[test]
    fn digest_commits_to_every_field() {
        let base = block(&[b"a", b"b"]);
        let mut digests = std::collections::BTreeSet::from([base.digest()]);
        for change in [
            |b: &mut BatchBlock| b.view += 1,
            |b: &mut BatchBlock| b.parent = Digest::from([8; 32]),
            |b: &mut BatchBlock| b.height += 1,
            |b: &mut BatchBlock| b.time_ms += 1,
            |b: &mut BatchBlock| b.commands.swap(0, 1),
            |b: &mut BatchBlock| b.commands = vec![Bytes::from_static(b"ab")],
        ] {
            let mut b = base.clone();
            change(&mut b);
            assert!(digests.insert(b.digest()));
        }
    }

    #[test]
    fn golden() {
        let genesis = BatchBlock::genesis([0x11; 32], 0);
        let expected = Sha256::hash(&[DOMAIN, &[0; 8], &[0x11; 32], &[0; 8], &[0; 8], &[0; 4]]);
        assert_eq!(genesis.digest(), expected);
        assert_eq!(expected.to_string(), "fcca4dd738dfdee9f82dc64fe8f08eb61cd6e7dbb030de0c5f9a3fb257ba2481");
        assert_eq!(
            block(&[b"a", b"bc"]).digest().to_string(),
            "3d366ea99bed9147ab4cd39380d7c65a16983d175ac6d0ab1e41e4f7f0a2674f"
        );
    }
}
