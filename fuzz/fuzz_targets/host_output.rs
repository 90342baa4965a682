#![no_main]
//! A workload's output as a machine hands it over, and what a requester asks a machine for: either side may say anything. The
//! first byte says how large the pieces are in which it comes.

use coalition_host::output::{LogQuery, Records};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&size, bytes)) = data.split_first() else { return };
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(query) = LogQuery::parse(text)
    {
        assert_eq!(LogQuery::parse(&query.to_string()), Ok(query));
    }
    let (mut records, mut written) = (Records::default(), Vec::new());
    for piece in bytes.chunks(usize::from(size).max(1)) {
        records.push(piece);
        loop {
            match records.pull() {
                Ok(Some(record)) => written.extend(record.encode()),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    // Times of records that have none are not kept.
    assert!(written.len() <= bytes.len());
});
