#![no_main]
//! The engine's journal as found after anything: opening answers in words and never panics; what it opens it opens again,
//! the same, unless it has what is never written: changes of a removed file, ids or batches out of order. The input is a row of
//! batches, each sealed as it should be unless its first byte says otherwise.
#![allow(dead_code, unused_imports)]

#[path = "../../crates/coalition-order/tests/support/dice.rs"]
mod dice;
#[path = "../../crates/coalition-order/tests/support/disk.rs"]
mod disk;
#[path = "../../crates/coalition-order/src/error.rs"]
mod error;
#[path = "../../crates/coalition-order/src/journal/mod.rs"]
mod journal;

use disk::Flaky;
pub use error::OrderError;
use journal::{
    format::{HEADER, Head, Record, format_text, records, seal},
    recovery::{LOGS, recover},
};
use libfuzzer_sys::fuzz_target;

const KEY: [u8; 32] = [7; 32];

/// What has been laid out so far.
#[derive(Default)]
struct Laid {
    logs: [Vec<u8>; 2],
    next_id: u64,
    last_sequence: u8,
    /// There is what no journal ever writes.
    never_written: bool,
}

impl Laid {
    /// Appends one batch: flags, three small numbers, a length, and so many bytes of records.
    fn batch<'a>(&mut self, data: &'a [u8]) -> Option<&'a [u8]> {
        let ([flags, segment, sequence, base, length], rest) = data.split_first_chunk::<5>()?;
        let (content, rest) = rest.split_at_checked(usize::from(*length).min(rest.len()))?;
        let first_id = self.next_id.max(1);
        for record in records(content).flatten() {
            match record {
                Record::Create { id, .. } => {
                    self.never_written |= id < self.next_id;
                    self.next_id = self.next_id.max(id.saturating_add(1));
                }
                Record::Remove { .. } => self.never_written = true,
                Record::Write { .. } | Record::Resize { .. } => {}
            }
        }
        let log = &mut self.logs[usize::from(flags & 1)];
        if flags & 2 != 0 {
            log.extend_from_slice(content);
            return Some(rest);
        }
        // What is known of ids goes by the order of batches.
        self.never_written |= *sequence <= self.last_sequence;
        self.last_sequence = self.last_sequence.max(*sequence);
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(content);
        let head = Head { segment: (*segment).into(), sequence: (*sequence).into(), base: (*base).into(), first_id };
        seal(&mut bytes, &KEY, head, log.len() as u64);
        log.extend_from_slice(&bytes);
        Some(rest)
    }
}

fuzz_target!(|data: &[u8]| {
    let mut laid = Laid::default();
    let mut rest = data;
    while let Some(after) = laid.batch(rest) {
        rest = after;
    }
    let Laid { logs, never_written, .. } = laid;
    let disk = Flaky::default();
    disk.put("format", format_text(&KEY).as_bytes());
    for (name, content) in LOGS.iter().zip(&logs) {
        disk.put(name, content);
    }
    let Ok(first) = recover(&disk, &KEY) else { return };
    match recover(&disk, &KEY) {
        Ok(again) => {
            if !never_written {
                assert_eq!(first.blobs, again.blobs);
            }
            assert!(again.last.sequence > first.last.sequence);
        }
        Err(error) => assert!(never_written, "opened once, then: {error}"),
    }
});
