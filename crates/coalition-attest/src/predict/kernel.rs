//! A Linux kernel as the firmware sees it: QEMU's loader fills in the header, and the firmware hashes it as a PE image.

use super::{PredictError, sha384};
use crate::measurement::REGISTER_BYTES;

/// Largest kernel looked at.
const MAX_KERNEL: usize = 256 << 20;
/// What QEMU keeps free below the end of low memory for ACPI tables.
const ACPI_DATA: u64 = 0x2_8000;
/// Where QEMU's `q35` machine splits memory, for small and for large guests.
const LOW_MEMORY: (u64, u64) = (0xb000_0000, 0x8000_0000);
const HEADER_END: usize = 0x268;

const fn wrong(reason: &'static str) -> PredictError {
    PredictError::Kernel(reason)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, PredictError> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map(|bytes| u16::from_le_bytes(*bytes)).ok_or(wrong("it is cut short"))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, PredictError> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map(|bytes| u32::from_le_bytes(*bytes)).ok_or(wrong("it is cut short"))
}

fn usize_at(bytes: &[u8], at: usize) -> Result<usize, PredictError> {
    u32_at(bytes, at).and_then(|value| usize::try_from(value).map_err(|_| wrong("it is too large for this machine")))
}

/// The kernel with what QEMU's loader writes into its header (`hw/i386/x86-common.c`, boot protocol 2.02 and later): where the command
/// line and the initial file system will be, and who loads it.
pub(super) fn as_loaded(kernel: &[u8], initrd: u64, ram_mib: u64) -> Result<Vec<u8>, PredictError> {
    if kernel.len() < HEADER_END || kernel.len() > MAX_KERNEL || &kernel[0x202..0x206] != b"HdrS" {
        return Err(wrong("it has no Linux boot header; give the bzImage, not vmlinux"));
    }
    let protocol = u16_at(kernel, 0x206)?;
    if protocol < 0x202 || kernel[0x211] & 1 == 0 {
        return Err(wrong("its boot protocol is older than 2.02 or it loads low; no TDX guest starts it"));
    }
    let mut kernel = kernel.to_vec();
    let (real, command_line) = (0x1_0000_u32, 0x2_0000_u32);
    kernel[0x210] = 0xb0;
    kernel[0x211] |= 0x80;
    // The end of the heap has 16 bits.
    kernel[0x224..0x226].copy_from_slice(&(command_line - real - 0x200).to_le_bytes()[..2]);
    kernel[0x228..0x22c].copy_from_slice(&command_line.to_le_bytes());
    if initrd > 0 {
        let (address, bytes) = initrd_place(&kernel, protocol, initrd, ram_mib)?;
        kernel[0x218..0x21c].copy_from_slice(&address.to_le_bytes());
        kernel[0x21c..0x220].copy_from_slice(&bytes.to_le_bytes());
    }
    Ok(kernel)
}

fn initrd_place(kernel: &[u8], protocol: u16, initrd: u64, ram_mib: u64) -> Result<(u32, u32), PredictError> {
    let can_be_above_4g = protocol >= 0x20c && u16_at(kernel, 0x236)? & 2 != 0;
    let highest = match protocol {
        _ if can_be_above_4g => u32::MAX,
        0x203.. => u32_at(kernel, 0x22c)?,
        _ => 0x37ff_ffff,
    };
    let ram = ram_mib.checked_mul(1 << 20).ok_or(wrong("no machine has so much memory"))?;
    let low = if ram < LOW_MEMORY.0 { LOW_MEMORY.0 } else { LOW_MEMORY.1 };
    let free = low.min(ram).checked_sub(ACPI_DATA).ok_or(wrong("the machine has too little memory"))?;
    let highest = if u64::from(highest) >= free { free.saturating_sub(1) } else { u64::from(highest) };
    let address = highest.checked_sub(initrd).ok_or(wrong("the initial file system does not fit below it"))? & !4_095;
    let small = |value: u64| u32::try_from(value).map_err(|_| wrong("the initial file system is too large"));
    Ok((small(address)?, small(initrd)?))
}

/// Where the hashed parts of a PE image are: everything but its checksum, the entry that places its signatures, and these.
fn hashed_parts(image: &[u8]) -> Result<Vec<std::ops::Range<usize>>, PredictError> {
    let pe = usize_at(image, 0x3c)?;
    if image.get(pe..).is_none_or(|rest| !rest.starts_with(b"PE\0\0")) {
        return Err(wrong("it is no PE image: it was built without its EFI stub"));
    }
    let (sections, optional_bytes) = (u16_at(image, pe + 6)?, u16_at(image, pe + 20)?);
    let optional = pe + 24;
    let directories = optional
        + match u16_at(image, optional)? {
            0x10b => 96,
            0x20b => 112,
            _ => return Err(wrong("its PE header is of an unknown form")),
        };
    let (headers, checksum, signatures) = (usize_at(image, optional + 60)?, optional + 64, directories + 4 * 8);
    let has_signatures = u32_at(image, directories - 4)? > 4;
    let signed = if has_signatures { usize_at(image, signatures + 4)? } else { 0 };
    let before_checksum = 0..checksum;
    let mut parts = vec![before_checksum];
    if has_signatures {
        parts.extend([checksum + 4..signatures, signatures + 8..headers]);
    } else {
        parts.push(checksum + 4..headers);
    }
    let table = optional + usize::from(optional_bytes);
    let section = |i: u16| {
        let at = table + usize::from(i) * 40;
        let (bytes, from) = (usize_at(image, at + 16)?, usize_at(image, at + 20)?);
        from.checked_add(bytes).map(|end| from..end).ok_or(wrong("a section of it is nowhere"))
    };
    let mut bodies: Vec<_> = (0..sections).map(section).collect::<Result<_, _>>()?;
    bodies.retain(|body| !body.is_empty());
    bodies.sort_by_key(|body| body.start);
    let hashed = bodies.iter().try_fold(headers, |sum, body| sum.checked_add(body.len()));
    let hashed = hashed.ok_or(wrong("its sections are larger than any file"))?;
    parts.extend(bodies);
    // What follows the sections is hashed, but for the signatures, which come last.
    let end = image.len().checked_sub(signed).ok_or(wrong("its signatures are larger than itself"))?;
    if end > hashed {
        parts.push(hashed..end);
    }
    Ok(parts)
}

/// The Authenticode digest of a PE image, as the firmware measures images that it starts.
pub(super) fn authenticode(image: &[u8]) -> Result<[u8; REGISTER_BYTES], PredictError> {
    Ok(sha384(&authenticode_text(image)?))
}

fn authenticode_text(image: &[u8]) -> Result<Vec<u8>, PredictError> {
    let mut text = Vec::with_capacity(image.len());
    for part in hashed_parts(image)? {
        if text.len() > MAX_KERNEL {
            return Err(wrong("its sections overlap"));
        }
        text.extend_from_slice(image.get(part).ok_or(wrong("a section of it is not in the file"))?);
    }
    Ok(text)
}

#[cfg(test)]
pub(super) mod tests {
    use ring::digest::{SHA256, digest};

    use super::*;

    /// A kernel of one section, with room for signatures, and signed with 24 bytes.
    pub(in crate::predict) fn small() -> Vec<u8> {
        let mut image = vec![0; 0x1000];
        image[..2].copy_from_slice(b"MZ");
        image[0x3c..0x40].copy_from_slice(&0x40_u32.to_le_bytes());
        image[0x40..0x44].copy_from_slice(b"PE\0\0");
        image[0x46..0x48].copy_from_slice(&1_u16.to_le_bytes());
        image[0x54..0x56].copy_from_slice(&160_u16.to_le_bytes());
        let optional = 0x58;
        image[optional..optional + 2].copy_from_slice(&0x20b_u16.to_le_bytes());
        image[optional + 60..optional + 64].copy_from_slice(&0x400_u32.to_le_bytes());
        image[optional + 64..optional + 68].copy_from_slice(&[0xaa; 4]);
        image[optional + 108..optional + 112].copy_from_slice(&6_u32.to_le_bytes());
        image[optional + 144..optional + 148].copy_from_slice(&0x1000_u32.to_le_bytes());
        image[optional + 148..optional + 152].copy_from_slice(&24_u32.to_le_bytes());
        let section = optional + 160;
        image[section + 16..section + 20].copy_from_slice(&0xc00_u32.to_le_bytes());
        image[section + 20..section + 24].copy_from_slice(&0x400_u32.to_le_bytes());
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x211] = 1;
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        image[0x236..0x238].copy_from_slice(&0x3f_u16.to_le_bytes());
        (0x400..0x1000).for_each(|at| image[at] = u8::try_from(at % 241).unwrap());
        image.extend([0x55; 24]);
        image
    }

    #[test]
    fn signatures_and_checksum_do_not_count() {
        let image = small();
        let optional = 0x58;
        let by_hand = [&image[..optional + 64], &image[optional + 68..optional + 144], &image[optional + 152..0x1000]];
        assert_eq!(authenticode(&image).unwrap(), sha384(&by_hand.concat()));
        for at in [optional + 64, optional + 67, 0x1000, 0x1017] {
            let mut other = image.clone();
            other[at] ^= 1;
            assert_eq!(authenticode(&other).unwrap(), authenticode(&image).unwrap(), "byte {at}");
        }
        let mut other = image.clone();
        other[0x999] ^= 1;
        assert_ne!(authenticode(&other).unwrap(), authenticode(&image).unwrap());
    }

    #[test]
    fn nothing_in_a_header_makes_it_panic() {
        let image = small();
        for at in 0..0x160 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut other = image.clone();
                other[at] = value;
                let _ = authenticode(&other);
            }
        }
        for length in 0..0x400 {
            assert!(authenticode(&image[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn the_loader_writes_where_things_will_be() {
        let kernel = small();
        let loaded = as_loaded(&kernel, 0x10_0000, 4_096).unwrap();
        let changed: Vec<usize> = (0..kernel.len()).filter(|at| kernel[*at] != loaded[*at]).collect();
        assert!(changed.iter().all(|at| (0x210..0x22c).contains(at)), "{changed:x?}");
        assert_eq!((loaded[0x210], loaded[0x211], u16_at(&loaded, 0x224).unwrap()), (0xb0, 0x81, 0xfe00));
        // 2 GiB of low memory in large guests, less what is kept for ACPI, less the file system, in whole pages.
        assert_eq!(u32_at(&loaded, 0x218).unwrap(), (0x8000_0000 - 0x2_8000 - 1 - 0x10_0000) & !4_095);
        assert_eq!(u32_at(&loaded, 0x21c).unwrap(), 0x10_0000);
        let other = as_loaded(&kernel, 0x10_0000, 2_560).unwrap();
        assert_eq!(u32_at(&other, 0x218).unwrap(), (0xa000_0000 - 0x2_8000 - 1 - 0x10_0000) & !4_095);
        assert!(as_loaded(&kernel, 1 << 31, 4_096).is_err());
        assert!(as_loaded(&kernel, 1, u64::MAX).is_err());
        assert!(as_loaded(&kernel[..0x200], 1, 4_096).is_err());
    }

    /// Somebody else's signature says what the digest of an image is: `COALITION_SIGNED_PE` names one, e.g. Debian's signed
    /// kernel or boot loader.
    #[test]
    fn a_signed_image_names_the_same_digest() {
        let Some(path) = std::env::var_os("COALITION_SIGNED_PE") else {
            println!("skipped: COALITION_SIGNED_PE names no signed image");
            return;
        };
        let image = std::fs::read(path).unwrap();
        let ours = digest(&SHA256, &authenticode_text(&image).unwrap());
        let named = image.windows(32).any(|window| window == ours.as_ref());
        assert!(named, "no signature of the image is of {}", hex::encode(ours));
    }
}
