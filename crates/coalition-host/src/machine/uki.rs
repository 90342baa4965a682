//! A unified kernel image: a PE program whose sections are a kernel, its initial file system and its command line, by the
//! UAPI group's "Unified Kernel Image" specification. Pure: bytes and a size in, places in the file out.
//!
//! The program in it is never run: a machine starts from the sections directly, as its own stub would have it, with or without
//! UEFI firmware. Of an image with several profiles the first is taken, as a boot menu does by itself.

/// Bytes of the beginning of a file within which its headers must be.
pub const HEAD_BYTES: usize = 64 * 1024;
/// Most sections of a PE program, by its specification.
const MAX_SECTIONS: usize = 96;
/// Longest command line an x86 kernel takes, without the end.
const MAX_COMMAND_LINE: usize = 2047;
/// `IMAGE_FILE_MACHINE_AMD64`.
const AMD64: u64 = 0x8664;
/// Where a bzImage says `HdrS`.
const BZIMAGE_MAGIC_AT: u64 = 0x202;

/// A section's contents: where in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// First byte.
    pub offset: u64,
    /// Bytes, without padding.
    pub size: u64,
}

/// What of an image a machine starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uki {
    /// The kernel.
    pub linux: Section,
    /// The initial file system.
    pub initrd: Option<Section>,
    /// The command line.
    pub cmdline: Option<Section>,
    /// What the system calls itself, in the form of `os-release`.
    pub osrel: Option<Section>,
}

/// A PE program that is no unified kernel image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UkiError {
    /// The headers are cut, or not where they should be.
    #[error("it begins like a PE program and is none: {0}")]
    NotPe(&'static str),
    /// For another machine.
    #[error("it is a program for machine type {0:#06x}; hosts are x86-64, type {AMD64:#06x}")]
    Architecture(u64),
    /// Too many sections.
    #[error("it has {0} sections, at most {MAX_SECTIONS} are possible")]
    Sections(u64),
    /// A section is not where it says.
    #[error("its section {name} ends at byte {end}, and the file has {size}")]
    Outside {
        /// The section.
        name: &'static str,
        /// Where it ends.
        end: u64,
        /// The file's size.
        size: u64,
    },
    /// A section has more in memory than in the file.
    #[error("its section {name} has {memory} bytes in memory and {file} in the file")]
    Short {
        /// The section.
        name: &'static str,
        /// In memory.
        memory: u64,
        /// In the file.
        file: u64,
    },
    /// A section is there twice.
    #[error("it has two sections {0} in one profile")]
    Twice(&'static str),
    /// It has no kernel.
    #[error("it is a PE program without a section .linux, so no unified kernel image")]
    NoKernel,
    /// Its kernel is none.
    #[error("its section .linux is no bzImage")]
    NoBzImage,
    /// Its command line is none.
    #[error("its command line {0}")]
    CommandLine(&'static str),
}

/// True when a file that begins like this may be a PE program.
#[must_use]
pub fn looks_like_pe(head: &[u8]) -> bool {
    head.starts_with(b"MZ")
}

fn number<const N: usize>(head: &[u8], at: usize) -> Option<u64> {
    let field = head.get(at..at.checked_add(N)?)?;
    Some(field.iter().rev().fold(0, |acc, byte| acc << 8 | u64::from(*byte)))
}

/// The sections of the first profile: the common ones, and those between the first `.profile` and the second, which go
/// before the common ones.
#[derive(Default)]
struct Profile<'a> {
    common: Vec<(&'a [u8], Raw)>,
    own: Vec<(&'a [u8], Raw)>,
}

#[derive(Clone, Copy)]
struct Raw {
    memory: u64,
    file: u64,
    offset: u64,
}

impl<'a> Profile<'a> {
    fn read(head: &'a [u8]) -> Result<Self, UkiError> {
        let pe = number::<4>(head, 0x3c).and_then(|at| usize::try_from(at).ok());
        let pe = pe.filter(|at| head.get(*at..).is_some_and(|rest| rest.starts_with(b"PE\0\0")));
        let pe = pe.ok_or(UkiError::NotPe("there is no PE header where it says"))?;
        let cut = UkiError::NotPe("its headers are cut");
        let field = |at: usize| number::<2>(head, pe + at).ok_or(cut.clone());
        let (machine, count, optional) = (field(4)?, field(6)?, field(20)?);
        if machine != AMD64 {
            return Err(UkiError::Architecture(machine));
        }
        let sections = usize::try_from(count).ok().filter(|count| *count <= MAX_SECTIONS);
        let sections = sections.ok_or(UkiError::Sections(count))?;
        let table = pe + 24 + usize::try_from(optional).unwrap_or(usize::MAX / 2);
        let (mut found, mut profiles) = (Self::default(), 0);
        for at in (0..sections).map(|number| table + 40 * number) {
            let name = head.get(at..at + 8).ok_or(cut.clone())?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let field = |offset: usize| number::<4>(head, at + offset).ok_or(cut.clone());
            let raw = Raw { memory: field(8)?, file: field(16)?, offset: field(20)? };
            profiles += u32::from(name == b".profile");
            match profiles {
                0 => found.common.push((name, raw)),
                1 => found.own.push((name, raw)),
                _ => break,
            }
        }
        Ok(found)
    }

    fn section(&self, name: &'static str, file_size: u64) -> Result<Option<Section>, UkiError> {
        let of = |sections: &[(&[u8], Raw)]| {
            let mut found = sections.iter().filter(|(other, _)| *other == name.as_bytes()).map(|(_, raw)| *raw);
            let first = found.next();
            if found.next().is_some() { Err(UkiError::Twice(name)) } else { Ok(first) }
        };
        let (own, common) = (of(&self.own)?, of(&self.common)?);
        let Some(raw) = own.or(common) else { return Ok(None) };
        if raw.memory > raw.file {
            return Err(UkiError::Short { name, memory: raw.memory, file: raw.file });
        }
        let end = raw.offset + raw.memory;
        if end > file_size {
            return Err(UkiError::Outside { name, end, size: file_size });
        }
        Ok(Some(Section { offset: raw.offset, size: raw.memory }))
    }
}

/// Finds the parts of an image. `head` is the file's beginning, [`HEAD_BYTES`] of it or all.
///
/// # Errors
/// [`UkiError`].
pub fn find(head: &[u8], file_size: u64) -> Result<Uki, UkiError> {
    let profile = Profile::read(&head[..head.len().min(HEAD_BYTES)])?;
    let section = |name| profile.section(name, file_size);
    let linux = section(".linux")?.filter(|linux| linux.size > 0).ok_or(UkiError::NoKernel)?;
    let initrd = section(".initrd")?.filter(|initrd| initrd.size > 0);
    Ok(Uki { linux, initrd, cmdline: section(".cmdline")?, osrel: section(".osrel")? })
}

impl Uki {
    /// Checks the beginning of the kernel.
    ///
    /// # Errors
    /// [`UkiError::NoBzImage`].
    pub fn check_kernel(&self, kernel_head: &[u8]) -> Result<(), UkiError> {
        let at = usize::try_from(BZIMAGE_MAGIC_AT).unwrap_or(usize::MAX);
        let magic = kernel_head.get(at..at + 4);
        if magic == Some(b"HdrS") { Ok(()) } else { Err(UkiError::NoBzImage) }
    }
}

/// The command line in a section's bytes, as an image's own stub takes it: white space for control characters, none at its ends.
///
/// # Errors
/// [`UkiError::CommandLine`].
pub fn command_line(bytes: &[u8]) -> Result<String, UkiError> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|_| UkiError::CommandLine("is no UTF-8"))?;
    if text.contains('\0') {
        return Err(UkiError::CommandLine("has a zero byte"));
    }
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = text.trim();
    if text.len() > MAX_COMMAND_LINE {
        return Err(UkiError::CommandLine("is longer than 2047 bytes"));
    }
    Ok(text.to_owned())
}

/// Puts sections together to an image, padded as `ukify` does; what the tests boot and mutate. There is no stub in it: no
/// firmware could start it.
#[must_use]
pub fn assemble(sections: &[(&str, &[u8])]) -> Vec<u8> {
    const ALIGNMENT: usize = 512;
    const PE_AT: u32 = 0x80;
    let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes();
    let mut image = vec![0; PE_AT as usize];
    image[..2].copy_from_slice(b"MZ");
    image[0x3c..0x40].copy_from_slice(&PE_AT.to_le_bytes());
    image.extend_from_slice(b"PE\0\0\x64\x86");
    image.extend_from_slice(&small(sections.len())[..2]);
    image.extend_from_slice(&[0; 12]);
    // No optional header; characteristics: executable, large addresses.
    image.extend_from_slice(&[0, 0, 0x22, 0]);
    let mut at = (image.len() + 40 * sections.len()).next_multiple_of(ALIGNMENT);
    for (name, contents) in sections {
        let mut header = [0; 40];
        let name = &name.as_bytes()[..name.len().min(8)];
        header[..name.len()].copy_from_slice(name);
        let padded = contents.len().next_multiple_of(ALIGNMENT);
        for (field, value) in [(8, contents.len()), (16, padded), (20, at)] {
            header[field..field + 4].copy_from_slice(&small(value));
        }
        image.extend_from_slice(&header);
        at += padded;
    }
    for (_, contents) in sections {
        image.resize(image.len().next_multiple_of(ALIGNMENT), 0);
        image.extend_from_slice(contents);
    }
    image.resize(image.len().next_multiple_of(ALIGNMENT), 0);
    image
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(image: &[u8], section: Section) -> &[u8] {
        &image[usize::try_from(section.offset).unwrap()..][..usize::try_from(section.size).unwrap()]
    }

    fn found(image: &[u8]) -> Result<Uki, UkiError> {
        find(image, image.len() as u64)
    }

    #[test]
    fn golden_sections_are_where_they_say() {
        let image =
            assemble(&[(".osrel", b"NAME=x\n"), (".cmdline", b"quiet\n"), (".initrd", b"0707"), (".linux", b"K")]);
        let at = |offset, size| Some(Section { offset, size });
        let wanted = Uki {
            linux: Section { offset: 0x800, size: 1 },
            initrd: at(0x600, 4),
            cmdline: at(0x400, 6),
            osrel: at(0x200, 7),
        };
        assert_eq!(found(&image), Ok(wanted));
        assert_eq!(bytes(&image, wanted.initrd.unwrap()), b"0707");
        assert_eq!((image.len(), &image[..2], &image[0x80..0x86]), (0xa00, &b"MZ"[..], &b"PE\0\0\x64\x86"[..]));
    }

    #[test]
    fn of_several_profiles_the_first_is_taken() {
        let image = assemble(&[
            (".linux", b"K"),
            (".cmdline", b"common"),
            (".profile", b"ID=one"),
            (".cmdline", b"one"),
            (".profile", b"ID=two"),
            (".cmdline", b"two"),
        ]);
        assert_eq!(bytes(&image, found(&image).unwrap().cmdline.unwrap()), b"one");
    }

    #[test]
    fn each_flaw_is_named() {
        let good = assemble(&[(".linux", b"K")]);
        let changed = |at: usize, value: u8| {
            let mut image = good.clone();
            image[at] = value;
            found(&image)
        };
        assert!(found(&good).is_ok());
        assert_eq!(changed(0x80, b'N'), Err(UkiError::NotPe("there is no PE header where it says")));
        assert_eq!(changed(0x84, 0x4c), Err(UkiError::Architecture(0x864c)));
        assert_eq!(changed(0x86, 97), Err(UkiError::Sections(97)));
        assert_eq!(changed(0x86, 90), Err(UkiError::NotPe("its headers are cut")));
        assert_eq!(changed(0x98 + 1, b'm'), Err(UkiError::NoKernel));
        assert_eq!(changed(0x98 + 8, 0), Err(UkiError::NoKernel));
        assert!(matches!(changed(0x98 + 11, 1), Err(UkiError::Short { name: ".linux", .. })));
        assert!(matches!(changed(0x98 + 23, 1), Err(UkiError::Outside { name: ".linux", .. })));
        assert_eq!(found(&assemble(&[(".linux", b"K"), (".linux", b"K")])), Err(UkiError::Twice(".linux")));
        assert_eq!(found(&good).unwrap().check_kernel(b"short"), Err(UkiError::NoBzImage));
    }

    #[test]
    fn command_lines_are_as_a_stub_takes_them() {
        assert_eq!(command_line(b" a=b\n\tc \n\0"), Ok("a=b  c".to_owned()));
        for bad in [&b"a\0b"[..], b"\xff", &[b'a'; 2048]] {
            assert!(matches!(command_line(bad), Err(UkiError::CommandLine(_))));
        }
    }

    proptest! {
        #[test]
        fn what_is_found_lies_within_the_file(
            at in 0usize..0x300, value in any::<u8>(), also in 0usize..0x300, other in any::<u8>(), cut in 0usize..0x900,
        ) {
            let mut image = assemble(&[(".cmdline", b"quiet"), (".initrd", &[1; 700]), (".linux", &[2; 600])]);
            (image[at], image[also]) = (value, other);
            image.truncate(image.len() - cut);
            if let Ok(uki) = found(&image) {
                for section in [Some(uki.linux), uki.initrd, uki.cmdline, uki.osrel].into_iter().flatten() {
                    prop_assert_eq!(bytes(&image, section).len() as u64, section.size);
                }
            }
        }

        #[test]
        fn what_was_put_together_is_found_again(
            linux in proptest::collection::vec(any::<u8>(), 1..1500), initrd in proptest::collection::vec(any::<u8>(), 0..1500),
        ) {
            let image = assemble(&[(".text", b"stub"), (".linux", &linux), (".initrd", &initrd)]);
            let uki = found(&image).unwrap();
            prop_assert_eq!(bytes(&image, uki.linux), &linux[..]);
            prop_assert_eq!(uki.initrd.map_or(&[][..], |initrd| bytes(&image, initrd)), &initrd[..]);
        }

        #[test]
        fn any_command_line_is_one_line(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(text) = command_line(&bytes) {
                prop_assert!(!text.contains(char::is_control) && text.trim() == text);
            }
        }
    }
}
