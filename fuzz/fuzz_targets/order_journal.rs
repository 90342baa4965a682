#![no_main]
//! The engine's journal as found after anything: opening answers in words and never panics; what it opens it opens again,
//! the same. The input is a row of batches, each sealed as it should be unless its first byte says otherwise.
#![allow(dead_code, unused_imports)]

#[path = "../../crates/coalition-order/tests/support/disk.rs"]
mod disk;
#[path = "../../crates/coalition-order/src/error.rs"]
mod error;
#[path = "../../crates/coalition-order/src/journal/mod.rs"]
mod journal;

use disk::Flaky;
pub use error::OrderError;
use journal::{
    format::{HEADER, Head, format_text, seal},
    recovery::{LOGS, recover},
};
use libfuzzer_sys::fuzz_target;

const KEY: [u8; 32] = [7; 32];

/// Appends one batch: flags, three small numbers, a length, and so many bytes of records.
fn batch<'a>(data: &'a [u8], logs: &mut [Vec<u8>; 2]) -> Option<&'a [u8]> {
    let ([flags, segment, sequence, base, length], rest) = data.split_first_chunk::<5>()?;
    let (records, rest) = rest.split_at_checked(usize::from(*length).min(rest.len()))?;
    let log = &mut logs[usize::from(flags & 1)];
    if flags & 2 != 0 {
        log.extend_from_slice(records);
        return Some(rest);
    }
    let mut bytes = vec![0; HEADER];
    bytes.extend_from_slice(records);
    let head =
        Head { segment: (*segment).into(), sequence: (*sequence).into(), base: (*base).into(), first_id: 1 };
    seal(&mut bytes, &KEY, head, log.len() as u64);
    log.extend_from_slice(&bytes);
    Some(rest)
}

fuzz_target!(|data: &[u8]| {
    let mut logs = [Vec::new(), Vec::new()];
    let mut rest = data;
    while let Some(after) = batch(rest, &mut logs) {
        rest = after;
    }
    let disk = Flaky::default();
    disk.put("format", format_text(&KEY).as_bytes());
    for (name, content) in LOGS.iter().zip(&logs) {
        disk.put(name, content);
    }
    let Ok(first) = recover(&disk, &KEY) else { return };
    let again = recover(&disk, &KEY).unwrap_or_else(|error| panic!("opened once, then: {error}"));
    assert_eq!(first.blobs, again.blobs);
    assert!(again.last.sequence > first.last.sequence);
});
