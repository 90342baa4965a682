//! What a machine is started with: decided once, here, so that what is predicted for a TDX guest is what is run.

use std::fs;
use std::path::{Path, PathBuf};

use ring::digest::{SHA384, digest};

use super::initrd;
use super::qemu::{Boot, Tdx};
use crate::error::{Result, RunnerError};
use crate::isolate::sys;
use crate::types::{MachineSpec, WorkloadSpec};

/// The kernel's command line; the same for every grant, because nothing of a grant is measured with the kernel.
pub const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 rdinit=/init -- runner guest";
/// Memory of the guest for its kernel, MiB.
const KERNEL_MIB: u64 = 96;
/// Memory of QEMU itself, MiB.
const QEMU_MIB: u64 = 96;

/// Memory of a guest that is not its workload's, MiB: its kernel, and its initial file system, packed and unpacked.
#[must_use]
pub const fn guest_mib(initrd_bytes: u64) -> u64 {
    KERNEL_MIB + 2 * initrd_bytes.div_ceil(1 << 20)
}

/// Kernel and initial file system, as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// A copy of the kernel.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
    /// [`guest_mib`] of it.
    pub guest_mib: u64,
}

impl BootFiles {
    /// Writes both into `dir`, readable by everybody: nothing in them is secret.
    ///
    /// # Errors
    /// [`RunnerError`]; [`RunnerError::NoMachine`] when the memory set aside for a machine is not enough for them.
    pub fn write(dir: &Path, machine: &MachineSpec) -> Result<Self> {
        let mut files = Self { kernel: dir.join("kernel"), initrd: dir.join("initrd"), guest_mib: 0 };
        let put = |path: &Path, bytes: &[u8]| {
            fs::write(path, bytes).map_err(|e| RunnerError::io(format!("cannot write {}", path.display()), e))
        };
        let kernel = fs::read(&machine.kernel).map_err(|e| {
            RunnerError::io(format!("cannot read the machines' kernel {}", machine.kernel.display()), e)
        })?;
        put(&files.kernel, &kernel)?;
        let initrd = initrd::build(Path::new("/proc/self/exe"), &sys::loaded_libraries(), machine.modules.as_deref())?;
        put(&files.initrd, &initrd)?;
        files.guest_mib = guest_mib(initrd.len() as u64);
        let needed = files.guest_mib + QEMU_MIB;
        if machine.overhead_mib >= needed {
            return Ok(files);
        }
        let (given, size) = (machine.overhead_mib, initrd.len() >> 20);
        let problem = format!(
            "overhead_mib = {given}, and a guest with an initial file system of {size} MiB takes {needed}; \
             set aside more, or install the smaller program (`runner = \"coalition-runner\"`)"
        );
        Err(RunnerError::NoMachine { problem })
    }

    /// How a machine starts from them, seen from where they are called `dir`.
    #[must_use]
    pub fn boot(dir: &Path) -> Boot {
        Boot { kernel: dir.join("kernel"), initrd: Some(dir.join("initrd")), command_line: COMMAND_LINE.to_owned() }
    }
}

/// What a TDX guest declares before it starts: the grant it is for, so that a quote of it is of no other. MRCONFIGID is
/// SHA-384 over the lines `coalition/machine/1`, grant id, blake3 of the image, SSH host key, SSH login key, each ended by a
/// newline; the other two are zero.
#[must_use]
pub fn declared(spec: &WorkloadSpec, host_public: &str, quote_port: u32) -> Tdx {
    let login = key_only(&spec.ssh_authorized_key);
    let lines = ["coalition/machine/1", &spec.grant_id, &spec.image_blake3, &key_only(host_public), &login];
    let text: String = lines.iter().flat_map(|line| [*line, "\n"]).collect();
    let mut mr_config_id = [0; 48];
    mr_config_id.copy_from_slice(digest(&SHA384, text.as_bytes()).as_ref());
    Tdx { mr_config_id, mr_owner: [0; 48], mr_owner_config: [0; 48], quote_port }
}

/// A public key without its comment.
fn key_only(line: &str) -> String {
    line.split_ascii_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// Virtual processors for a share of so many thousandths of a core.
#[must_use]
pub const fn cpus(millicores: u32) -> u32 {
    millicores.div_ceil(1000)
}
