//! What a workload wrote to its standard output and error: records, as the runner keeps them on disk and as its SSH
//! server hands them to the requester. The bytes are in docs/ISOLATION.md.

mod query;
mod ring;

pub use query::{LogQuery, QueryError, SUBSYSTEM};
pub(crate) use ring::{LIMIT_BYTES, Reader, Ring};

use crate::types::ExitOutcome;

/// Bytes before a record's payload: kind, time, length.
const HEADER_BYTES: usize = 13;
/// Largest payload.
pub const MAX_PAYLOAD_BYTES: usize = 32 * 1024;

/// Which of its two outputs a workload wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One piece of what is known about a workload's output, in the order it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Bytes it wrote.
    Output {
        /// Where to.
        stream: Stream,
        /// When the runner read them, milliseconds since 1970 by the host's clock.
        at_unix_ms: u64,
        /// At most [`MAX_PAYLOAD_BYTES`].
        bytes: Vec<u8>,
    },
    /// So many bytes were written here and are not kept any more.
    Gone {
        /// How many.
        bytes: u64,
    },
    /// The last record: the workload's command has ended.
    Exited {
        /// When, milliseconds since 1970 by the host's clock.
        at_unix_ms: u64,
        /// How.
        outcome: ExitOutcome,
    },
    /// The last record: it runs.
    Running,
    /// The last record: the grant has no command, it is a machine to log in to.
    NoCommand,
}

/// Bytes that are no records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A kind this software does not know.
    #[error("a record has kind {0}, this software knows 1 to 6; update it")]
    Kind(u8),
    /// Longer than any record is.
    #[error("a record of kind {kind} has {length} bytes, at most {MAX_PAYLOAD_BYTES} are expected")]
    TooLong {
        /// Its kind.
        kind: u8,
        /// Its length.
        length: u32,
    },
    /// Of another length than its kind has, or with a value no such record has.
    #[error("a record of kind {kind} and {length} bytes is malformed")]
    Malformed {
        /// Its kind.
        kind: u8,
        /// Its length.
        length: u32,
    },
}

impl Record {
    /// Whether nothing follows it.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        matches!(self, Self::Exited { .. } | Self::Running | Self::NoCommand)
    }

    /// `kind u8 ‖ time u64 ‖ length u32 ‖ payload`, big endian.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Output { stream: Stream::Stdout, at_unix_ms, bytes } => framed(1, *at_unix_ms, bytes),
            Self::Output { stream: Stream::Stderr, at_unix_ms, bytes } => framed(2, *at_unix_ms, bytes),
            Self::Gone { bytes } => framed(3, 0, &bytes.to_be_bytes()),
            Self::Exited { at_unix_ms, outcome } => {
                let (how, number) = match outcome {
                    ExitOutcome::Code(code) => (0, code),
                    ExitOutcome::Signal(signal) => (1, signal),
                };
                let mut payload = vec![how];
                payload.extend_from_slice(&number.to_be_bytes());
                framed(4, *at_unix_ms, &payload)
            }
            Self::Running => framed(5, 0, &[]),
            Self::NoCommand => framed(6, 0, &[]),
        }
    }
}

fn framed(kind: u8, at_unix_ms: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.push(kind);
    bytes.extend_from_slice(&at_unix_ms.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The first record of `bytes` and how many bytes it takes; none when more bytes are needed.
///
/// # Errors
/// [`RecordError`]; nothing after it can be read either.
pub fn first(bytes: &[u8]) -> Result<Option<(Record, usize)>, RecordError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let [kind, time @ .., l0, l1, l2, l3] = *header;
    let (at_unix_ms, length) = (u64::from_be_bytes(time), u32::from_be_bytes([l0, l1, l2, l3]));
    if !(1..=6).contains(&kind) {
        return Err(RecordError::Kind(kind));
    }
    let size = usize::try_from(length).ok().filter(|size| *size <= MAX_PAYLOAD_BYTES);
    let size = size.ok_or(RecordError::TooLong { kind, length })?;
    let Some(payload) = rest.get(..size) else { return Ok(None) };
    let record = parse(kind, at_unix_ms, payload).ok_or(RecordError::Malformed { kind, length })?;
    Ok(Some((record, HEADER_BYTES + size)))
}

fn parse(kind: u8, at_unix_ms: u64, payload: &[u8]) -> Option<Record> {
    match (kind, payload) {
        (1, bytes) => Some(Record::Output { stream: Stream::Stdout, at_unix_ms, bytes: bytes.to_vec() }),
        (2, bytes) => Some(Record::Output { stream: Stream::Stderr, at_unix_ms, bytes: bytes.to_vec() }),
        (3, bytes) => Some(Record::Gone { bytes: u64::from_be_bytes(bytes.try_into().ok()?) }),
        (4, [how, number @ ..]) => {
            let number = i32::from_be_bytes(number.try_into().ok()?);
            let outcome = match how {
                0 => ExitOutcome::Code(number),
                1 => ExitOutcome::Signal(number),
                _ => return None,
            };
            Some(Record::Exited { at_unix_ms, outcome })
        }
        (5, []) => Some(Record::Running),
        (6, []) => Some(Record::NoCommand),
        _ => None,
    }
}

/// Puts records together from pieces of any size.
#[derive(Debug, Default)]
pub struct Records {
    waiting: Vec<u8>,
}

impl Records {
    /// Adds what came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.waiting.extend_from_slice(bytes);
    }

    /// The next whole record, if there is one.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn pull(&mut self) -> Result<Option<Record>, RecordError> {
        Ok(first(&self.waiting)?.map(|(record, size)| {
            self.waiting.drain(..size);
            record
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn each() -> Vec<Record> {
        vec![
            Record::Output { stream: Stream::Stdout, at_unix_ms: 7, bytes: b"out\n".to_vec() },
            Record::Output { stream: Stream::Stderr, at_unix_ms: u64::MAX, bytes: vec![] },
            Record::Gone { bytes: 1 << 40 },
            Record::Exited { at_unix_ms: 9, outcome: ExitOutcome::Code(-1) },
            Record::Exited { at_unix_ms: 9, outcome: ExitOutcome::Signal(9) },
            Record::Running,
            Record::NoCommand,
        ]
    }

    #[test]
    fn records_come_back_whole_from_pieces_of_any_size() {
        let bytes: Vec<u8> = each().iter().flat_map(Record::encode).collect();
        for size in 1..bytes.len() {
            let (mut records, mut seen) = (Records::default(), Vec::new());
            for piece in bytes.chunks(size) {
                records.push(piece);
                while let Some(record) = records.pull().unwrap() {
                    seen.push(record);
                }
            }
            assert_eq!(seen, each(), "in pieces of {size}");
        }
        assert_eq!(each().iter().filter(|record| record.is_last()).count(), 4);
    }

    #[test]
    fn what_is_no_record_is_named() {
        let record = |kind, payload: &[u8]| first(&framed(kind, 0, payload)).unwrap_err();
        assert_eq!(record(0, &[]), RecordError::Kind(0));
        assert_eq!(record(7, &[]), RecordError::Kind(7));
        assert_eq!(record(5, &[1]), RecordError::Malformed { kind: 5, length: 1 });
        assert_eq!(record(4, &[2, 0, 0, 0, 0]), RecordError::Malformed { kind: 4, length: 5 });
        assert_eq!(record(3, &[0; 7]), RecordError::Malformed { kind: 3, length: 7 });
        // Refused at its header, before a byte of it is waited for.
        let long = u32::try_from(MAX_PAYLOAD_BYTES).unwrap() + 1;
        let mut header = framed(1, 0, &[]);
        header[9..].copy_from_slice(&long.to_be_bytes());
        assert_eq!(first(&header).unwrap_err(), RecordError::TooLong { kind: 1, length: long });
    }

    proptest! {
        #[test]
        fn any_bytes_are_records_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some((record, size))) = first(&bytes) {
                prop_assert_eq!(first(&record.encode()).unwrap().unwrap(), (record, size));
            }
        }
    }
}
