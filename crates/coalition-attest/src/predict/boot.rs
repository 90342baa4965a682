//! What RTMR1 and RTMR2 hold once a kernel that the hypervisor was given directly has taken over.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{extend, kernel, sha384};
use crate::measurement::{REGISTER_BYTES, Rtmr};

/// Why nothing can be predicted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PredictError {
    /// The kernel cannot be started so.
    #[error("the kernel cannot be measured: {0}")]
    Kernel(&'static str),
}

/// Which kernel the firmware is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelImage {
    /// With the header that the hypervisor's loader has filled in. Which hypervisors do so changes with their versions: compare
    /// with a log of such a guest.
    Loaded {
        /// The guest's memory, MiB; decides where the initial file system is.
        ram_mib: u64,
    },
    /// As the file is: where the loader leaves it alone, or a unified kernel image.
    Untouched,
}

/// A guest started by `qemu -bios OVMF.fd -kernel … -initrd … -append …`.
#[derive(Debug, Clone, Copy)]
pub struct DirectBoot<'a> {
    /// The kernel with its EFI stub, i.e. a bzImage.
    pub kernel: &'a [u8],
    /// How the firmware sees it.
    pub image: KernelImage,
    /// The initial file system; empty for none.
    pub initrd: &'a [u8],
    /// The command line.
    pub command_line: &'a str,
}

impl DirectBoot<'_> {
    /// RTMR1: the kernel's Authenticode digest, then the steps by which the firmware hands over to it.
    ///
    /// # Errors
    /// [`PredictError`].
    pub fn rtmr1(&self) -> Result<Rtmr, PredictError> {
        let kernel = match self.image {
            KernelImage::Loaded { .. } if self.command_line.contains("vga=") => {
                return Err(PredictError::Kernel("`vga=` on the command line has QEMU write the video mode into it"));
            }
            KernelImage::Loaded { ram_mib } => {
                kernel::authenticode(&kernel::as_loaded(self.kernel, self.initrd.len() as u64, ram_mib)?)?
            }
            KernelImage::Untouched => kernel::authenticode(self.kernel)?,
        };
        let steps: [&[u8]; 4] = [
            b"Calling EFI Application from Boot Option",
            &[0; 4],
            b"Exit Boot Services Invocation",
            b"Exit Boot Services Returned with Success",
        ];
        let mut register = Rtmr([0; REGISTER_BYTES]);
        extend(&mut register, &kernel);
        steps.iter().for_each(|step| extend(&mut register, &sha384(step)));
        Ok(register)
    }

    /// RTMR2: the command line as the kernel's EFI stub is given it, and the initial file system.
    #[must_use]
    pub fn rtmr2(&self) -> Rtmr {
        let added = if self.initrd.is_empty() { "" } else { " initrd=initrd" };
        let text = self.command_line.encode_utf16().chain(added.encode_utf16()).chain([0]);
        let text: Vec<u8> = text.flat_map(u16::to_le_bytes).collect();
        let mut register = Rtmr([0; REGISTER_BYTES]);
        extend(&mut register, &sha384(&text));
        if !self.initrd.is_empty() {
            extend(&mut register, &sha384(self.initrd));
        }
        register
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot<'a>(kernel: &'a [u8], initrd: &'a [u8]) -> DirectBoot<'a> {
        DirectBoot { kernel, image: KernelImage::Loaded { ram_mib: 4_096 }, initrd, command_line: "console=hvc0" }
    }

    /// Computed from the documents a second time, in another language.
    #[test]
    fn golden() {
        let kernel = kernel::tests::small();
        let boot = boot(&kernel, b"initial");
        assert_eq!(
            boot.rtmr1().unwrap().to_string(),
            "7c0e2f07b88ea1b59bfd8a4d30b7281232056f7b8909dd3502c3388f933df86578a4dd186d2bccdf7b1688d98e6b0db0"
        );
        assert_eq!(
            boot.rtmr2().to_string(),
            "d7b76aa2c2bfc7d27bfd0268c14bb54f2976346c134db5a03dbd2a32881e0950c9b33c31e336fda3207cc4d8449d71bc"
        );
    }

    #[test]
    fn everything_counts_where_it_should() {
        let kernel = kernel::tests::small();
        let (one, other) = (boot(&kernel, b"initial"), boot(&kernel, b"another"));
        assert_eq!(one.rtmr1(), other.rtmr1(), "of equal size");
        assert_ne!(one.rtmr2(), other.rtmr2());
        let none = boot(&kernel, b"");
        assert_ne!((one.rtmr1(), one.rtmr2()), (none.rtmr1(), none.rtmr2()));
        let longer = DirectBoot { command_line: "console=hvc0 quiet", ..one };
        assert_eq!(longer.rtmr1(), one.rtmr1());
        assert_ne!(longer.rtmr2(), one.rtmr2());
        let smaller = DirectBoot { image: KernelImage::Loaded { ram_mib: 2_560 }, ..one };
        assert_ne!(smaller.rtmr1(), one.rtmr1());
        let larger = DirectBoot { image: KernelImage::Loaded { ram_mib: 65_536 }, ..one };
        assert_eq!(larger.rtmr1(), one.rtmr1());
        let untouched = DirectBoot { image: KernelImage::Untouched, ..one };
        assert_ne!(untouched.rtmr1(), one.rtmr1());
    }
}
