//! Images that are a machine's own system, told by their content: disks, and unified kernel images. Everything else is left to
//! whoever reads archives.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

use super::uki::{self, Section, Uki, UkiError};

/// Bytes of one sector, as partition tables count.
const SECTOR: usize = 512;
/// Where an MBR's four entries begin, each of 16 bytes.
const ENTRIES: usize = 446;
/// Most bytes of a small section that is read as text.
const MAX_TEXT: u64 = 4096;
/// Disks in other forms: what they begin with, where, and what `qemu-img` calls them.
const CONTAINERS: [(usize, &[u8], &str); 6] = [
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
];

/// How a disk says what is on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// A master boot record.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

/// An image that boots by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootable {
    /// A raw disk with its own boot loader.
    Disk(Table),
    /// A unified kernel image.
    Uki {
        /// Its parts.
        parts: Uki,
        /// Its command line; empty when it has none.
        command_line: String,
        /// `PRETTY_NAME` of the system in it, if it says.
        system: Option<String>,
    },
}

impl fmt::Display for Bootable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disk(Table::Mbr) => "a bootable disk (MBR)",
            Self::Disk(Table::Gpt) => "a bootable disk (GPT)",
            Self::Uki { .. } => "a unified kernel image",
        })
    }
}

/// An image that looks like one that boots and is none that a host takes.
#[derive(Debug, thiserror::Error)]
pub enum BootableError {
    /// A disk in another form.
    #[error(
        "it is a disk in the form {0}, which can name further files of the machine that reads it and is refused for that; \
         convert it: `qemu-img convert -O raw IMAGE disk.raw`"
    )]
    Container(&'static str),
    /// A kernel without a system.
    #[error(
        "it is a kernel and nothing else; make a unified kernel image of it and an initial file system: `ukify build`"
    )]
    Kernel,
    /// A PE program that is not one to start.
    #[error(transparent)]
    Uki(#[from] UkiError),
    /// The file cannot be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
}

/// Looks at a file of `size` bytes; none when it is nothing that boots by itself. Leaves the file's position anywhere.
///
/// # Errors
/// [`BootableError`].
pub fn find(file: &mut (impl Read + Seek), size: u64) -> Result<Option<Bootable>, BootableError> {
    let head = read(file, 0, size.min(uki::HEAD_BYTES as u64))?;
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if at(0, &[0x1f, 0x8b]) || at(257, b"ustar") {
        return Ok(None);
    }
    if let Some((_, _, name)) = CONTAINERS.iter().find(|(offset, magic, _)| at(*offset, magic)) {
        return Err(BootableError::Container(name));
    }
    if at(0x202, b"HdrS") && at(SECTOR - 2, &[0x55, 0xaa]) {
        return Err(BootableError::Kernel);
    }
    // A disk's boot code may begin with anything, also with the two letters of a PE program.
    if uki::looks_like_pe(&head) && !is_mbr(&head) {
        return find_uki(file, &head, size).map(Some);
    }
    let gpt = at(SECTOR, b"EFI PART") || at(4096, b"EFI PART");
    Ok(is_mbr(&head).then_some(Bootable::Disk(if gpt { Table::Gpt } else { Table::Mbr })))
}

/// The signature, and four entries that are active or not and nothing else.
fn is_mbr(head: &[u8]) -> bool {
    let signed = head.get(SECTOR - 2..SECTOR) == Some(&[0x55, 0xaa]);
    signed && (0..4).all(|number| matches!(head[ENTRIES + 16 * number], 0 | 0x80))
}

fn find_uki(file: &mut (impl Read + Seek), head: &[u8], size: u64) -> Result<Bootable, BootableError> {
    let parts = uki::find(head, size)?;
    parts.check_kernel(&read(file, parts.linux.offset, parts.linux.size.min(0x210))?)?;
    let mut text = |section: Option<Section>| {
        section.map(|section| read(file, section.offset, section.size.min(MAX_TEXT))).transpose()
    };
    let command_line = uki::command_line(&text(parts.cmdline)?.unwrap_or_default())?;
    let system = text(parts.osrel)?.and_then(|bytes| pretty_name(&bytes));
    Ok(Bootable::Uki { parts, command_line, system })
}

fn read(file: &mut (impl Read + Seek), at: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    file.seek(SeekFrom::Start(at))?;
    file.take(bytes).read_to_end(&mut read)?;
    Ok(read)
}

/// `PRETTY_NAME` of an `os-release`, fit to be shown.
fn pretty_name(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let value = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?.trim_matches(['"', '\'']);
    let shown: String = value.chars().filter(|c| !c.is_control()).take(80).collect();
    (!shown.is_empty()).then_some(shown)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn found(bytes: &[u8]) -> Result<Option<Bootable>, BootableError> {
        find(&mut Cursor::new(bytes), bytes.len() as u64)
    }

    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 8192];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk
    }

    #[test]
    fn images_are_told_by_their_content() {
        let mut gpt = disk();
        assert_eq!(found(&gpt).unwrap(), Some(Bootable::Disk(Table::Mbr)));
        gpt[..2].copy_from_slice(b"MZ");
        assert_eq!(found(&gpt).unwrap(), Some(Bootable::Disk(Table::Mbr)));
        gpt[512..520].copy_from_slice(b"EFI PART");
        assert_eq!(found(&gpt).unwrap(), Some(Bootable::Disk(Table::Gpt)));
        let mut odd = disk();
        odd[446] = 7;
        assert_eq!(found(&odd).unwrap(), None);
        let mut kernel = disk();
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(matches!(found(&kernel), Err(BootableError::Kernel)));
        let mut tar = disk();
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(found(&tar).unwrap(), None);
        for neither in [&b""[..], b"text", &[0x1f, 0x8b, 8], &[0; 600]] {
            assert_eq!(found(neither).unwrap(), None);
        }
    }

    #[test]
    fn disks_in_other_forms_are_refused_by_name_with_the_way_out() {
        for (offset, magic, name) in CONTAINERS {
            let mut bytes = vec![0; 600];
            bytes[offset..offset + magic.len()].copy_from_slice(magic);
            let told = found(&bytes).unwrap_err().to_string();
            assert!(told.contains(name) && told.contains("qemu-img convert -O raw"), "{told}");
        }
    }

    #[test]
    fn a_unified_kernel_image_says_what_it_starts() {
        let mut kernel = vec![0; 0x400];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        let osrel = b"ID=x\nPRETTY_NAME=\"A system\x07\"\n";
        let image = uki::assemble(&[(".osrel", osrel), (".cmdline", b"console=ttyS0\n"), (".linux", &kernel)]);
        let Some(Bootable::Uki { command_line, system, .. }) = found(&image).unwrap() else { panic!() };
        assert_eq!((command_line.as_str(), system.as_deref()), ("console=ttyS0", Some("A system")));
        let image = uki::assemble(&[(".linux", b"no kernel")]);
        assert!(matches!(found(&image), Err(BootableError::Uki(UkiError::NoBzImage))));
        assert!(matches!(found(b"MZ and then nothing"), Err(BootableError::Uki(UkiError::NotPe(_)))));
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000), magic in 0usize..4) {
            let mut bytes = bytes;
            let magic: &[u8] = [&b""[..], b"MZ", b"QFI\xfb", b"\x1f\x8b"][magic];
            bytes.splice(..0, magic.iter().copied());
            let _ = found(&bytes);
        }
    }
}
