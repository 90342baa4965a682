//! The newest of a workload's output on disk: two files, the older of which is given up when the newer is full.
//!
//! The index is in memory: whoever wrote the files is the only one to read them, and a grant does not outlive it.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use super::{HEADER_BYTES, MAX_PAYLOAD_BYTES, Record, Stream, first};

/// Bytes of both files together.
pub(crate) const LIMIT_BYTES: u64 = 16 << 20;

/// One file: where it begins in the whole of what was ever written, and how much of that came before it.
struct Segment {
    file: File,
    base: u64,
    length: u64,
    /// Bytes of output in everything before this file, lost ones included.
    payload_before: u64,
}

/// The files and what is in them.
pub(crate) struct Ring {
    dir: PathBuf,
    half: u64,
    segments: VecDeque<Segment>,
    /// Files made so far.
    made: u64,
    /// Bytes of output that came so far.
    payload: u64,
    /// Of those, how many could not be written since the last that could.
    lost: u64,
}

/// How far a reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reader {
    position: u64,
    payload: u64,
}

impl Ring {
    /// Keeps files in `dir`; none is made before the first output.
    pub(crate) fn new(dir: PathBuf, limit_bytes: u64) -> Self {
        Self { dir, half: limit_bytes / 2, segments: VecDeque::new(), made: 0, payload: 0, lost: 0 }
    }

    /// Adds output, at most [`MAX_PAYLOAD_BYTES`]. What the disk does not take is counted as gone.
    pub(crate) fn append(&mut self, stream: Stream, at_unix_ms: u64, bytes: &[u8]) {
        let size = bytes.len() as u64;
        let written = self.write_lost().and_then(|()| {
            self.write(&Record::Output { stream, at_unix_ms, bytes: bytes.to_vec() }.encode(), self.payload)
        });
        if written.is_err() {
            self.lost += size;
        }
        self.payload += size;
    }

    /// Says, where the gap is, what could not be written.
    fn write_lost(&mut self) -> io::Result<()> {
        if self.lost > 0 {
            self.write(&Record::Gone { bytes: self.lost }.encode(), self.payload - self.lost)?;
            self.lost = 0;
        }
        Ok(())
    }

    fn write(&mut self, record: &[u8], payload_before: u64) -> io::Result<()> {
        let size = record.len() as u64;
        if self.segments.back().is_none_or(|last| last.length + size > self.half) {
            self.rotate(payload_before)?;
        }
        let last = self.segments.back_mut().ok_or(io::ErrorKind::NotFound)?;
        // Only what was written whole counts; what is left of a failed try is written over.
        last.file.write_all_at(record, last.length)?;
        last.length += size;
        Ok(())
    }

    fn rotate(&mut self, payload_before: u64) -> io::Result<()> {
        if self.segments.len() == 2 {
            self.segments.pop_front();
        }
        let path = self.dir.join(format!("output.{}", self.made % 2));
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).mode(0o600).open(path)?;
        let base = self.segments.back().map_or(0, |last| last.base + last.length);
        self.segments.push_back(Segment { file, base, length: 0, payload_before });
        self.made += 1;
        Ok(())
    }

    /// The next records of a reader, encoded; none when it has seen everything. Says what is not there any more.
    pub(crate) fn read(&self, reader: &mut Reader, since_unix_ms: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(oldest) = self.segments.front() else { return Ok(None) };
        let mut out = Vec::new();
        if reader.position < oldest.base {
            let bytes = oldest.payload_before.saturating_sub(reader.payload);
            if bytes > 0 {
                out = Record::Gone { bytes }.encode();
            }
            *reader = Reader { position: oldest.base, payload: oldest.payload_before };
        }
        let Some(segment) = self.segments.iter().find(|s| reader.position < s.base + s.length) else {
            return Ok(Some(out).filter(|out| !out.is_empty()));
        };
        let at = reader.position - segment.base;
        let most = segment.length.saturating_sub(at).min((HEADER_BYTES + MAX_PAYLOAD_BYTES) as u64);
        let mut bytes = vec![0; usize::try_from(most).unwrap_or(HEADER_BYTES + MAX_PAYLOAD_BYTES)];
        segment.file.read_exact_at(&mut bytes, at)?;
        let mut used = 0;
        while let Some((record, size)) = first(&bytes[used..]).map_err(io::Error::other)? {
            reader.payload += match &record {
                Record::Output { bytes, .. } => bytes.len() as u64,
                Record::Gone { bytes } => *bytes,
                _ => 0,
            };
            let wanted = !matches!(record, Record::Output { at_unix_ms, .. } if at_unix_ms < since_unix_ms);
            if wanted {
                out.extend_from_slice(&bytes[used..used + size]);
            }
            used += size;
        }
        if used == 0 {
            return Err(io::Error::other("a record is cut"));
        }
        reader.position += used as u64;
        Ok(Some(out))
    }

    /// Bytes of output that came and are neither kept nor named by a record yet.
    pub(crate) const fn unsaid(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Records;

    const PIECE: usize = 1000;

    fn ring() -> (tempfile::TempDir, Ring) {
        let temp = tempfile::tempdir().unwrap();
        let ring = Ring::new(temp.path().to_owned(), 10_000);
        (temp, ring)
    }

    fn read_all(ring: &Ring, reader: &mut Reader, since: u64) -> Vec<Record> {
        let (mut records, mut seen) = (Records::default(), Vec::new());
        while let Some(bytes) = ring.read(reader, since).unwrap() {
            records.push(&bytes);
        }
        while let Some(record) = records.pull().unwrap() {
            seen.push(record);
        }
        seen
    }

    /// Bytes that are there, and bytes said to be gone.
    fn totals(records: &[Record]) -> (u64, u64) {
        let mut sum = (0, 0);
        for record in records {
            match record {
                Record::Output { bytes, .. } => sum.0 += bytes.len() as u64,
                Record::Gone { bytes } => sum.1 += *bytes,
                other => panic!("{other:?}"),
            }
        }
        sum
    }

    #[test]
    fn the_newest_stay_and_every_byte_is_accounted_for() {
        let (temp, mut ring) = ring();
        let mut slow = Reader::default();
        for n in 0..100u64 {
            ring.append(Stream::Stdout, n, &[u8::try_from(n).unwrap(); PIECE]);
            if n == 3 {
                assert_eq!(read_all(&ring, &mut slow, 0).len(), 4);
            }
        }
        let fresh = read_all(&ring, &mut Reader::default(), 0);
        let (kept, gone) = totals(&fresh);
        assert_eq!(kept + gone, 100 * PIECE as u64);
        assert!(kept >= 4_000 && matches!(fresh[0], Record::Gone { .. }), "{kept} bytes kept");
        let last = Record::Output { stream: Stream::Stdout, at_unix_ms: 99, bytes: vec![99; PIECE] };
        assert_eq!(fresh.last(), Some(&last));
        // One that fell behind is told how much it missed, beyond the 4 pieces it had.
        let (kept, gone) = totals(&read_all(&ring, &mut slow, 0));
        assert_eq!(kept + gone, 96 * PIECE as u64);
        assert_eq!(read_all(&ring, &mut slow, 0), vec![]);
        let on_disk: u64 = std::fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(on_disk <= 10_000, "{on_disk} bytes on disk");
    }

    #[test]
    fn what_is_older_than_asked_for_is_left_out() {
        let (_temp, mut ring) = ring();
        (0..4).for_each(|n| ring.append(Stream::Stderr, n, b"x"));
        assert_eq!(read_all(&ring, &mut Reader::default(), 2).len(), 2);
        assert_eq!(read_all(&ring, &mut Reader::default(), 9).len(), 0);
    }

    #[test]
    fn a_disk_that_takes_nothing_costs_the_output_and_nothing_else() {
        let (temp, mut ring) = ring();
        ring.append(Stream::Stdout, 1, b"kept");
        let (mut full, real) = (Reader::default(), ring.segments.pop_back().unwrap());
        let length = real.length;
        let refusing = OpenOptions::new().write(true).open("/dev/full").unwrap();
        ring.segments.push_back(Segment { file: refusing, ..real });
        ring.append(Stream::Stdout, 2, b"lost");
        assert_eq!(ring.unsaid(), 4);
        let again = OpenOptions::new().read(true).write(true).open(temp.path().join("output.0")).unwrap();
        ring.segments[0] = Segment { file: again, base: 0, length, payload_before: 0 };
        ring.append(Stream::Stdout, 3, b"more");
        let seen = read_all(&ring, &mut full, 0);
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert_eq!(seen[1], Record::Gone { bytes: 4 });
        assert_eq!((totals(&seen), ring.unsaid()), ((8, 4), 0));
    }
}
