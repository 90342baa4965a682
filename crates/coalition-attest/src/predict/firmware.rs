//! A guest's firmware: which pages of it the hypervisor adds to the guest, and the MRTD that comes of that.

use ring::digest::{Context, SHA384};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::measurement::Mrtd;

const PAGE: u64 = 4_096;
const CHUNK: usize = 256;
/// Largest firmware looked at. OVMF has 2 to 16 MiB.
const MAX_FIRMWARE: usize = 64 << 20;
/// Most memory that sections may cover: the hash walks through all of it.
const MAX_COVERED: u64 = 256 << 20;
const MAX_SECTIONS: usize = 64;
/// Bytes between the end of the table of GUIDs and that of the file.
const AFTER_TABLE: usize = 32;
/// GUID and length, which end every entry of that table.
const ENTRY_END: usize = 18;
/// 96b582de-1fb2-45f7-baea-a366c55a082d
const TABLE: [u8; 16] =
    [0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d];
/// e47a6535-984a-4798-865e-4685a7bf8ec2
const METADATA: [u8; 16] =
    [0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47, 0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2];
const EXTENDED: u32 = 1;
const AUGMENTED: u32 = 2;

/// Why bytes are no firmware for TDX guests.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FirmwareError {
    /// No file of that size is one.
    #[error("the firmware has {0} bytes, more than {MAX_FIRMWARE}")]
    TooLong(usize),
    /// It does not say what a TDX guest starts with.
    #[error(
        "the firmware has no TDX metadata: it is built without TDX, or is only a part (OVMF_CODE) of one file (OVMF.fd)"
    )]
    NoMetadata,
    /// It says it wrongly.
    #[error("the firmware's TDX metadata is wrong: {0}")]
    Metadata(&'static str),
    /// A section of it cannot be.
    #[error("section {section} of the firmware's TDX metadata is wrong: {reason}")]
    Section {
        /// Which, from 0.
        section: usize,
        /// What is wrong.
        reason: &'static str,
    },
}

/// What a section of the firmware is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SectionKind {
    /// Code.
    Code,
    /// Configuration: the variables it starts with.
    Configuration,
    /// Where the hypervisor describes the machine.
    HandOff,
    /// Memory to work in.
    Memory,
    /// Another, by its number.
    Other(u32),
}

/// A part of the guest's memory that is there when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Section {
    /// What it is.
    pub kind: SectionKind,
    /// Its first address in the guest; a whole page.
    pub address: u64,
    /// Its size, bytes; whole pages.
    pub bytes: u64,
    /// Whether its contents are measured, not only its place.
    pub measured: bool,
    /// Whether the hypervisor adds it, rather than the guest when it needs it.
    pub added: bool,
    /// Its contents in the file; zeroes follow.
    #[serde(skip)]
    contents: std::ops::Range<usize>,
}

/// In which order the hypervisor adds and measures pages. It is part of the MRTD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PageOrder {
    /// A section's pages are added, then all of them measured. `dstack-mr` takes this order for QEMU 8.
    SectionBySection,
    /// Each page is added and measured. `dstack-mr` takes this order for QEMU 9 and later.
    PageByPage,
}

impl PageOrder {
    /// Both.
    pub const ALL: [Self; 2] = [Self::PageByPage, Self::SectionBySection];
}

/// A firmware that says what a TDX guest starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware<'a> {
    bytes: &'a [u8],
    sections: Vec<Section>,
}

impl<'a> Firmware<'a> {
    /// Reads a firmware file, e.g. OVMF.fd.
    ///
    /// # Errors
    /// [`FirmwareError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FirmwareError> {
        if bytes.len() > MAX_FIRMWARE {
            return Err(FirmwareError::TooLong(bytes.len()));
        }
        let from_end = metadata_from_end(bytes)?;
        let wrong = FirmwareError::Metadata;
        let start = bytes.len().checked_sub(from_end).ok_or(wrong("it begins before the file"))?;
        let (header, rest) = bytes[start..].split_at_checked(16).ok_or(wrong("it is cut short"))?;
        if &header[..4] != b"TDVF" || word(header, 8) != Some(1) {
            return Err(wrong("it is not of version 1"));
        }
        let count =
            word(header, 12).and_then(|count| usize::try_from(count).ok()).filter(|count| *count <= MAX_SECTIONS);
        let count = count.ok_or(wrong("it has more than 64 sections"))?;
        let described = rest.get(..count * 32).ok_or(wrong("its sections are cut short"))?;
        let sections = described.chunks_exact(32).enumerate();
        let sections: Vec<Section> = sections
            .map(|(section, text)| {
                read_section(text, bytes.len()).map_err(|reason| FirmwareError::Section { section, reason })
            })
            .collect::<Result<_, _>>()?;
        let covered = sections.iter().try_fold(0_u64, |sum, section| sum.checked_add(section.bytes));
        if covered.is_none_or(|covered| covered > MAX_COVERED) {
            return Err(wrong("its sections cover more than 256 MiB"));
        }
        Ok(Self { bytes, sections })
    }

    /// What the guest starts with, in the order in which it is measured.
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// The MRTD of every guest that is started with this firmware, by a hypervisor that adds pages in this order: the machine's size
    /// and what boots on it are not part of it.
    #[must_use]
    pub fn mrtd(&self, order: PageOrder) -> Mrtd {
        let mut hash = Context::new(&SHA384);
        for section in &self.sections {
            let pages = || (0..section.bytes / PAGE).map(|page| page * PAGE);
            match order {
                PageOrder::SectionBySection => {
                    pages().for_each(|at| add(&mut hash, section, at));
                    pages().for_each(|at| self.measure(&mut hash, section, at));
                }
                PageOrder::PageByPage => pages().for_each(|at| {
                    add(&mut hash, section, at);
                    self.measure(&mut hash, section, at);
                }),
            }
        }
        Mrtd(hash.finish().as_ref().try_into().expect("SHA-384 has 48 bytes"))
    }

    fn measure(&self, hash: &mut Context, section: &Section, at: u64) {
        if !section.measured {
            return;
        }
        let contents = &self.bytes[section.contents.clone()];
        let from = usize::try_from(at).map_or(contents.len(), |at| at.min(contents.len()));
        let mut page = [0; 4_096];
        let there = &contents[from..contents.len().min(from + page.len())];
        page[..there.len()].copy_from_slice(there);
        for (chunk, address) in page.chunks_exact(CHUNK).zip((section.address + at..).step_by(CHUNK)) {
            hash.update(&call(b"MR.EXTEND", address));
            hash.update(chunk);
        }
    }
}

fn add(hash: &mut Context, section: &Section, at: u64) {
    if section.added {
        hash.update(&call(b"MEM.PAGE.ADD", section.address + at));
    }
}

/// What the TDX module hashes of a call.
fn call(name: &[u8], address: u64) -> [u8; 128] {
    let mut text = [0; 128];
    text[..name.len()].copy_from_slice(name);
    text[16..24].copy_from_slice(&address.to_le_bytes());
    text
}

/// How far before the end of the file the metadata begins, by the table of GUIDs, which is read from its end.
fn metadata_from_end(bytes: &[u8]) -> Result<usize, FirmwareError> {
    let none = FirmwareError::NoMetadata;
    let end = bytes.len().checked_sub(AFTER_TABLE).ok_or(none.clone())?;
    let (rest, length) = entry_end(&bytes[..end], &TABLE).ok_or(none.clone())?;
    // The length counts this last entry, too.
    let length = length.checked_sub(ENTRY_END).filter(|length| *length <= rest.len());
    let mut table = &rest[rest.len() - length.ok_or(FirmwareError::Metadata("its table begins before the file"))?..];
    while table.len() >= ENTRY_END {
        let (rest, length) = split_entry(table);
        let data = length.checked_sub(ENTRY_END).filter(|length| *length <= rest.len());
        let (before, data) =
            rest.split_at(rest.len() - data.ok_or(FirmwareError::Metadata("its table's entries overlap"))?);
        if table.ends_with(&METADATA) {
            let offset = word(data, data.len().saturating_sub(4)).and_then(|offset| usize::try_from(offset).ok());
            return offset.filter(|offset| *offset > 0).ok_or(FirmwareError::Metadata("its place is missing"));
        }
        table = before;
    }
    Err(none)
}

fn split_entry(table: &[u8]) -> (&[u8], usize) {
    let (rest, end) = table.split_at(table.len() - ENTRY_END);
    (rest, usize::from(u16::from_le_bytes([end[0], end[1]])))
}

fn entry_end<'a>(table: &'a [u8], guid: &[u8; 16]) -> Option<(&'a [u8], usize)> {
    (table.len() >= ENTRY_END && table.ends_with(guid)).then(|| split_entry(table))
}

fn read_section(text: &[u8], file: usize) -> Result<Section, &'static str> {
    let small = |at| word(text, at).ok_or("it is cut short");
    let large = |at| Ok::<_, &str>(u64::from(small(at)?) | u64::from(small(at + 4)?) << 32);
    let (from, length) = (small(0)?, small(4)?);
    let (address, bytes, kind, attributes) = (large(8)?, large(16)?, small(24)?, small(28)?);
    if address % PAGE != 0 || bytes % PAGE != 0 || address.checked_add(bytes).is_none() {
        return Err("it is not made of whole pages");
    }
    if u64::from(length) > bytes {
        return Err("its contents are larger than itself");
    }
    let from = usize::try_from(from).map_err(|_| "its contents are not in the file")?;
    let end = usize::try_from(length).ok().and_then(|length| from.checked_add(length)).filter(|end| *end <= file);
    let contents = if length == 0 { 0..0 } else { from..end.ok_or("its contents are not in the file")? };
    let kind = match kind {
        0 => SectionKind::Code,
        1 => SectionKind::Configuration,
        2 => SectionKind::HandOff,
        3 => SectionKind::Memory,
        other => SectionKind::Other(other),
    };
    let (measured, added) = (attributes & EXTENDED != 0, attributes & AUGMENTED == 0);
    Ok(Section { kind, address, bytes, measured, added, contents })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
pub(super) mod tests {
    use ring::digest::{SHA256, digest};

    use super::*;
    use crate::predict::sha384;

    /// A small firmware: two pages of which one and a half are in the file, memory that is not measured, and memory that is not
    /// even added.
    pub(in crate::predict) fn small() -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..6_144_u32).map(|i| u8::try_from(i * 7 % 251).unwrap()).collect();
        let metadata = bytes.len();
        bytes.extend(b"TDVF");
        for word in [16 + 3 * 32, 1, 3_u32] {
            bytes.extend(word.to_le_bytes());
        }
        for (from, length, address, size, kind, attributes) in [
            (0_u32, 6_144_u32, 0xffff_e000_u64, 8_192_u64, 0_u32, 1_u32),
            (0, 0, 0x80_9000, 4_096, 2, 0),
            (0, 0, 0x81_0000, 8_192, 3, 2),
        ] {
            bytes.extend(from.to_le_bytes());
            bytes.extend(length.to_le_bytes());
            bytes.extend(address.to_le_bytes());
            bytes.extend(size.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(attributes.to_le_bytes());
        }
        let table_at = bytes.len();
        bytes.extend([1, 2, 3, 4, 5, 6, 24, 0]);
        bytes.extend([9; 16]);
        let (at, end) = (bytes.len(), 4 + 18 + 18 + 32);
        bytes.extend(u32::try_from(at + end - metadata).unwrap().to_le_bytes());
        bytes.extend(22_u16.to_le_bytes());
        bytes.extend(METADATA);
        let length = bytes.len() - table_at + 18;
        bytes.extend(u16::try_from(length).unwrap().to_le_bytes());
        bytes.extend(TABLE);
        bytes.extend([0xcc; AFTER_TABLE]);
        bytes
    }

    /// The same hashes, written out.
    fn by_hand(order: PageOrder) -> Mrtd {
        let file = small();
        let mut pages = file[..6_144].to_vec();
        pages.resize(8_192, 0);
        let mut text = Vec::new();
        let measure = |text: &mut Vec<u8>, page: usize| {
            for chunk in 0..16 {
                let at = page * 4_096 + chunk * 256;
                text.extend(call(b"MR.EXTEND", 0xffff_e000 + at as u64));
                text.extend(&pages[at..at + 256]);
            }
        };
        for page in 0..2 {
            text.extend(call(b"MEM.PAGE.ADD", 0xffff_e000 + page as u64 * 4_096));
            if order == PageOrder::PageByPage {
                measure(&mut text, page);
            }
        }
        if order == PageOrder::SectionBySection {
            (0..2).for_each(|page| measure(&mut text, page));
        }
        text.extend(call(b"MEM.PAGE.ADD", 0x80_9000));
        Mrtd(sha384(&text))
    }

    #[test]
    fn mrtd_is_what_the_module_hashes() {
        let file = small();
        let firmware = Firmware::parse(&file).unwrap();
        assert_eq!(firmware.sections().len(), 3);
        assert!(!firmware.sections()[2].added && firmware.sections()[0].measured);
        for order in PageOrder::ALL {
            assert_eq!(firmware.mrtd(order), by_hand(order), "{order:?}");
        }
        assert_ne!(firmware.mrtd(PageOrder::PageByPage), firmware.mrtd(PageOrder::SectionBySection));
    }

    #[test]
    fn what_is_no_firmware_says_so() {
        let file = small();
        assert_eq!(Firmware::parse(&[]).unwrap_err(), FirmwareError::NoMetadata);
        assert_eq!(Firmware::parse(&file[..file.len() - 1]).unwrap_err(), FirmwareError::NoMetadata);
        let mut other = file.clone();
        let guid = other.len() - AFTER_TABLE - 18 - 1;
        other[guid] ^= 1;
        assert_eq!(Firmware::parse(&other).unwrap_err(), FirmwareError::NoMetadata);
        let unaligned = {
            let mut file = file.clone();
            file[6_144 + 16 + 8] = 1;
            file
        };
        let wrong = Firmware::parse(&unaligned).unwrap_err();
        assert!(matches!(wrong, FirmwareError::Section { section: 0, .. }), "{wrong}");
        // Nothing in the metadata makes it panic.
        for at in 6_144..file.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut file = file.clone();
                file[at] = value;
                if let Ok(firmware) = Firmware::parse(&file) {
                    let _ = firmware.mrtd(PageOrder::PageByPage);
                }
            }
        }
    }

    /// Debian's `ovmf` 2022.11-6+deb12u2, if it is installed or `COALITION_OVMF` names it.
    #[test]
    fn debians_firmware() {
        let path = std::env::var("COALITION_OVMF").unwrap_or_else(|_| "/usr/share/ovmf/OVMF.fd".into());
        let is_it = |file: &Vec<u8>| hex::encode(digest(&SHA256, file)).starts_with(DEBIAN);
        let Some(file) = std::fs::read(&path).ok().filter(is_it) else {
            println!("skipped: {path} is not there, or of another version");
            return;
        };
        let firmware = Firmware::parse(&file).unwrap();
        assert_eq!(firmware.sections().len(), 6);
        assert!(firmware.mrtd(PageOrder::SectionBySection).to_string().starts_with("acccbcc870a381ad"));
        assert!(firmware.mrtd(PageOrder::PageByPage).to_string().starts_with("4c7206f0f483c524"));
    }

    /// SHA-256, the beginning.
    const DEBIAN: &str = "7b456907dd0786d4";
}
