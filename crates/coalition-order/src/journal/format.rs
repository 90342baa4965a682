//! What stands in the log and in file names. Pure.
//!
//! All integers are big endian. A log file is a row of batches, each at a multiple of [`BLOCK`] bytes:
//!
//! | bytes | content |
//! |---|---|
//! | 4 | `COJ1` |
//! | 4 | length of the records |
//! | 8 | segment: counts the uses of the two log files |
//! | 8 | sequence: counts the batches, never restarts |
//! | 8 | base: oldest segment whose records may not be in the files yet |
//! | 8 | first id: the lowest id not given to a file before this batch |
//! | 24 | keyed blake3 of the 40 bytes above, the batch's offset and its records |
//! | … | records, then zeros up to the next block |
//!
//! The key is random per directory, so no bytes from outside can pass for a batch.

/// Batches start at multiples of it: no sector with durable bytes is ever written again before its log file is reused.
pub(crate) const BLOCK: u64 = 512;
/// Bytes of a batch before its records.
pub(crate) const HEADER: usize = 64;

const MAGIC: [u8; 4] = *b"COJ1";
const SEALED: usize = 40;
const FORMAT: &str = "coalition-order journal 1";

/// Head of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) segment: u64,
    pub(crate) sequence: u64,
    pub(crate) base: u64,
    pub(crate) first_id: u64,
}

/// What is told apart in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    Create { id: u64, version: u16, partition: &'a str, name: &'a [u8] },
    Write { id: u64, offset: u64, bytes: &'a [u8] },
    Resize { id: u64, len: u64 },
    Remove { id: u64 },
}

/// Space a batch with so many bytes of records takes.
pub(crate) fn batch_size(records: usize) -> u64 {
    ((HEADER + records) as u64).next_multiple_of(BLOCK)
}

/// Completes `batch`: [`HEADER`] bytes of room, then records. Pads it to whole blocks.
pub(crate) fn seal(batch: &mut Vec<u8>, key: &[u8; 32], head: Head, offset: u64) {
    let records = batch.len() - HEADER;
    batch[..4].copy_from_slice(&MAGIC);
    batch[4..8].copy_from_slice(&u32::try_from(records).expect("the buffer is bounded").to_be_bytes());
    for (i, field) in [head.segment, head.sequence, head.base, head.first_id].into_iter().enumerate() {
        batch[8 + 8 * i..16 + 8 * i].copy_from_slice(&field.to_be_bytes());
    }
    let sum = checksum(key, &batch[..SEALED], offset, &batch[HEADER..]);
    batch[SEALED..HEADER].copy_from_slice(&sum);
    batch.resize(usize::try_from(batch_size(records)).unwrap_or(usize::MAX), 0);
}

/// Reads a head and the length of the records that follow; not verified yet.
pub(crate) fn parse_head(bytes: &[u8; HEADER]) -> Option<(Head, usize)> {
    if bytes[..4] != MAGIC {
        return None;
    }
    let mut reader = Reader(&bytes[4..]);
    let records = usize::try_from(reader.u32()?).ok()?;
    let (segment, sequence, base, first_id) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
    Some((Head { segment, sequence, base, first_id }, records))
}

/// Whether head and records are what was written at `offset`.
pub(crate) fn verify(head: &[u8; HEADER], key: &[u8; 32], offset: u64, records: &[u8]) -> bool {
    checksum(key, &head[..SEALED], offset, records) == head[SEALED..]
}

fn checksum(key: &[u8; 32], head: &[u8], offset: u64, records: &[u8]) -> [u8; HEADER - SEALED] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(head).update(&offset.to_be_bytes()).update(records);
    let mut sum = [0; HEADER - SEALED];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

impl Record<'_> {
    /// Appends it; bytes of a write may also follow on their own, after [`put_write`].
    pub(crate) fn put(&self, to: &mut Vec<u8>) {
        match *self {
            Self::Create { id, version, partition, name } => {
                to.push(1);
                to.extend_from_slice(&id.to_be_bytes());
                to.extend_from_slice(&version.to_be_bytes());
                to.push(u8::try_from(partition.len()).expect("checked with the file name"));
                to.push(u8::try_from(name.len()).expect("checked with the file name"));
                to.extend_from_slice(partition.as_bytes());
                to.extend_from_slice(name);
            }
            Self::Write { id, offset, bytes } => {
                put_write(to, id, offset, bytes.len());
                to.extend_from_slice(bytes);
            }
            Self::Resize { id, len } => {
                to.push(3);
                to.extend_from_slice(&id.to_be_bytes());
                to.extend_from_slice(&len.to_be_bytes());
            }
            Self::Remove { id } => {
                to.push(4);
                to.extend_from_slice(&id.to_be_bytes());
            }
        }
    }
}

/// Begins the record of a write whose `len` bytes the caller appends.
pub(crate) fn put_write(to: &mut Vec<u8>, id: u64, offset: u64, len: usize) {
    to.push(2);
    to.extend_from_slice(&id.to_be_bytes());
    to.extend_from_slice(&offset.to_be_bytes());
    to.extend_from_slice(&u32::try_from(len).expect("checked by the caller").to_be_bytes());
}

/// The records of a verified batch, or `None` where they make no sense.
pub(crate) fn records(bytes: &[u8]) -> impl Iterator<Item = Option<Record<'_>>> {
    let mut reader = Reader(bytes);
    std::iter::from_fn(move || {
        if reader.0.is_empty() {
            return None;
        }
        let record = record(&mut reader);
        if record.is_none() {
            reader.0 = &[];
        }
        Some(record)
    })
}

fn record<'a>(reader: &mut Reader<'a>) -> Option<Record<'a>> {
    let kind = reader.take(1)?[0];
    let id = reader.u64()?;
    Some(match kind {
        1 => {
            let version = u16::from_be_bytes(reader.take(2)?.try_into().ok()?);
            let [partition, name] = reader.take(2)?.try_into().ok()?;
            let partition = std::str::from_utf8(reader.take(partition.into())?).ok()?;
            Record::Create { id, version, partition, name: reader.take(name.into())? }
        }
        2 => {
            let offset = reader.u64()?;
            let len = usize::try_from(reader.u32()?).ok()?;
            Record::Write { id, offset, bytes: reader.take(len)? }
        }
        3 => Record::Resize { id, len: reader.u64()? },
        4 => Record::Remove { id },
        _ => return None,
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }
}

/// Content of the file that names the layout and holds the key.
pub(crate) fn format_text(key: &[u8; 32]) -> String {
    format!("{FORMAT}\n{}\n", hex(key))
}

/// The key in it; `Err` is the layout found.
pub(crate) fn parse_format(text: &str) -> Result<[u8; 32], String> {
    let mut lines = text.lines();
    let found = lines.next().unwrap_or_default();
    let key = lines.next().and_then(unhex).and_then(|k| <[u8; 32]>::try_from(k).ok());
    match key {
        Some(key) if found == FORMAT => Ok(key),
        _ => Err(found.chars().take(64).collect()),
    }
}

/// A blob's identity, as its file name tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobFile {
    pub(crate) id: u64,
    pub(crate) partition: String,
    pub(crate) name: Vec<u8>,
    pub(crate) version: u16,
}

impl BlobFile {
    /// `<id>.<partition>.<name in hex>.<version>`; `None` if longer than file systems allow.
    pub(crate) fn file_name(&self) -> Option<String> {
        let name = format!("{:016x}.{}.{}.{}", self.id, self.partition, hex(&self.name), self.version);
        (name.len() <= 255).then_some(name)
    }

    /// Reads it back. The highest id is none: ids are counted.
    pub(crate) fn parse(file_name: &str) -> Option<Self> {
        let mut parts = file_name.split('.');
        let (id, partition, name, version) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let blob = Self {
            id: u64::from_str_radix(id, 16).ok()?,
            partition: partition.into(),
            name: unhex(name)?,
            version: version.parse().ok()?,
        };
        let is_one = is_partition(&blob.partition) && blob.id < u64::MAX;
        (is_one && blob.file_name().as_deref() == Some(file_name)).then_some(blob)
    }
}

/// Whether partitions can be called so.
pub(crate) fn is_partition(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks_exact(2);
    if !digits.remainder().is_empty() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    digits.map(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_nonsense_is_found() {
        let all = [
            Record::Create { id: 1, version: 2, partition: "p-1", name: b"\0n" },
            Record::Write { id: 1, offset: 77, bytes: b"bytes" },
            Record::Write { id: 1, offset: 0, bytes: b"" },
            Record::Resize { id: 1, len: 5 },
            Record::Remove { id: u64::MAX },
        ];
        let mut bytes = Vec::new();
        all.iter().for_each(|r| r.put(&mut bytes));
        assert_eq!(records(&bytes).collect::<Option<Vec<_>>>().unwrap(), all);
        for cut in 1..9 {
            assert_eq!(records(&bytes[..bytes.len() - cut]).last(), Some(None));
        }
        bytes.push(9);
        assert_eq!(records(&bytes).last(), Some(None));
    }

    #[test]
    fn every_bit_of_a_batch_counts() {
        let head = Head { segment: 3, sequence: 9, base: 2, first_id: 17 };
        let mut batch = vec![0; HEADER];
        Record::Resize { id: 1, len: 5 }.put(&mut batch);
        let records = batch.len() - HEADER;
        seal(&mut batch, &[7; 32], head, 1024);
        assert_eq!(batch.len() as u64, batch_size(records));
        let check = |batch: &[u8], key: u8, offset: u64| {
            let sealed: &[u8; HEADER] = batch[..HEADER].try_into().unwrap();
            parse_head(sealed).is_some_and(|(found, len)| {
                len <= batch.len() - HEADER
                    && verify(sealed, &[key; 32], offset, &batch[HEADER..HEADER + len])
                    && found == head
            })
        };
        assert!(check(&batch, 7, 1024));
        assert!(!check(&batch, 8, 1024) && !check(&batch, 7, 512));
        for bit in 0..(HEADER + records) * 8 {
            batch[bit / 8] ^= 1 << (bit % 8);
            assert!(!check(&batch, 7, 1024), "bit {bit}");
            batch[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn names_and_format_come_back() {
        let blob = BlobFile { id: 0xAB, partition: "order-key_1".into(), name: vec![0, 255], version: 3 };
        assert_eq!(blob.file_name().unwrap(), "00000000000000ab.order-key_1.00ff.3");
        assert_eq!(BlobFile::parse("00000000000000ab.order-key_1.00ff.3"), Some(blob.clone()));
        for bad in [
            "",
            "ab.p.00.3",
            "00000000000000ab.p.0.3",
            "00000000000000AB.p.00.3",
            "00000000000000ab.p.00.03.1",
            "00000000000000ab..00.3",
            "00000000000000ab./.00.3",
            "ffffffffffffffff.p.00.3",
        ] {
            assert_eq!(BlobFile::parse(bad), None, "{bad}");
        }
        assert_eq!(BlobFile { name: vec![0; 120], ..blob }.file_name(), None);
        assert_eq!(parse_format(&format_text(&[0x5A; 32])), Ok([0x5A; 32]));
        assert_eq!(parse_format("coalition-order journal 2\n"), Err("coalition-order journal 2".into()));
    }
}
