//! Virtual machines as the isolation of a grant: QEMU in the grant's own namespaces and cgroups, and inside it this very
//! program as the first process of a guest that serves the grant as any host would.
//!
//! * [`qemu`]: the command line, from what the machine is to have. Pure; also of TDX guests.
//! * [`initrd`]: the guest's initial file system: this program, its libraries, the kernel's modules.
//! * [`tools`]: what of this a host has, and what to install.
//! * [`report`]: what the guest says, line by line.
//! * [`boot`]: what is started and so what a TDX guest measures, for whoever wants to predict it.
//!
//! An image may also be a system of its own, which then runs in the machine instead of ours:
//!
//! * [`bootable`]: such images, told by their content.
//! * [`uki`]: unified kernel images.
//! * [`seed`]: how such a system is given the grant's keys.

pub mod boot;
pub mod bootable;
pub mod initrd;
pub mod qemu;
pub mod report;
pub mod seed;
pub mod tools;
pub mod uki;
