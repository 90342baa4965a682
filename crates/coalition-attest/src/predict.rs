//! What a TDX guest will measure, computed from what it is to be started with; and what it has measured, replayed from its
//! event log.
//!
//! | register | is extended with | known beforehand |
//! |---|---|---|
//! | MRTD | the firmware's pages, by the hypervisor | from the [`Firmware`], for each of two [`PageOrder`]s |
//! | RTMR0 | the machine as the firmware finds it: memory, ACPI tables, variables | no: from the [`EventLog`] |
//! | RTMR1 | the kernel, and the firmware's handing over | for [`DirectBoot`] |
//! | RTMR2 | command line and initial file system | for [`DirectBoot`] |
//! | RTMR3 | what the workload likes | by the workload |
//!
//! Sources: Intel TDX Virtual Firmware Design Guide (metadata, event log), Intel TDX Module ABI (`TDH.MEM.PAGE.ADD`, `TDH.MR.EXTEND`),
//! TCG PC Client Platform Firmware Profile (event log), Microsoft's Authenticode for PE, Linux' boot protocol, and QEMU's
//! loader as it behaves.

mod boot;
mod event_log;
mod firmware;
mod kernel;

pub use boot::{DirectBoot, KernelImage, PredictError};
pub use event_log::{Event, EventLog, EventLogError, Unexplained};
pub use firmware::{Firmware, FirmwareError, PageOrder, Section, SectionKind};

use ring::digest::{SHA384, digest};

use crate::measurement::{REGISTER_BYTES, Rtmr};

fn sha384(bytes: &[u8]) -> [u8; REGISTER_BYTES] {
    digest(&SHA384, bytes).as_ref().try_into().expect("SHA-384 has 48 bytes")
}

/// A run-time register after one more event: SHA-384 of the register and the event's digest.
fn extend(register: &mut Rtmr, event: &[u8; REGISTER_BYTES]) {
    *register = Rtmr(sha384(&[&register.0[..], event].concat()));
}
