//! What a provider daemon and the runner say to each other: plain data, serialised as JSON, versioned.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::egress::rules::Rule;

/// Version of every document in this module; a runner refuses another one.
pub const FORMAT_VERSION: u16 = 1;

/// A text that must not be printed: zeroed on drop, `Debug` shows its length only.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself; keep the borrow short and never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// True when there is nothing (left) inside.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<secret, {} bytes>", self.0.len())
    }
}

/// Everything a host needs to run one grant. Written as `spec.json` into the grant's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadSpec {
    /// [`FORMAT_VERSION`].
    pub version: u16,
    /// The grant, as 8 to 64 lower-case hex digits; names cgroups and the host name inside.
    pub grant_id: String,
    /// The root file system: a tar, a gzipped tar or an OCI archive; in a virtual machine also a disk or a unified kernel image.
    /// A relative path is relative to the grant's directory.
    pub image: PathBuf,
    /// BLAKE3 of the image file's bytes, 64 hex digits. Checked before anything is unpacked.
    pub image_blake3: String,
    /// Size of the image file in bytes. Checked before anything is unpacked.
    pub image_size_bytes: u64,
    /// CPU share, thousandths of a core.
    pub cpu_millicores: u32,
    /// Memory in MiB, page cache of the grant's own files included.
    pub ram_mib: u64,
    /// Unpacked image plus everything the workload writes, in MiB.
    pub disk_mib: u64,
    /// Processes and threads at one time.
    pub pids_max: u32,
    /// When the grant ends, milliseconds since 1970. The runner enforces it alone.
    pub valid_to_unix_ms: u64,
    /// Where the grant's SSH server listens; port 0 takes any free port.
    pub ssh_listen: SocketAddr,
    /// The grant's SSH host key: an unencrypted private key in OpenSSH format. Erased from disk once read.
    pub ssh_host_key: SecretText,
    /// The one key that may log in: an `authorized_keys` line without options.
    pub ssh_authorized_key: String,
    /// The workload: argv, run once inside. Empty: none, the grant is a machine to log in to.
    #[serde(default)]
    pub command: Vec<String>,
    /// Environment of the workload and of every session.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The weakest isolation the provider accepts; a host that offers less refuses to start.
    #[serde(default)]
    pub minimum_isolation: IsolationLevel,
    /// Where the workload may connect to.
    #[serde(default)]
    pub egress: Egress,
    /// Most that passes the grant's walls, millions of bits a second, both directions together; none for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_mbit: Option<u32>,
    /// Runs the grant in a virtual machine of its own, inside the isolation that the host offers.
    #[serde(default)]
    pub machine: Option<MachineSpec>,
}

/// Where a workload may connect to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Nothing. A workload with a network of its own has nobody else in it; one without may open no network socket.
    #[default]
    None,
    /// All of the host's network, where the workload has none of its own; elsewhere as [`Egress::None`].
    Host,
    /// Where these lead, from the host's address, where the workload has a network of its own; elsewhere as [`Egress::None`].
    Rules(Vec<Rule>),
}

impl Egress {
    /// The rules; none where there are none.
    #[must_use]
    pub fn rules(&self) -> Option<&[Rule]> {
        match self {
            Self::Rules(rules) => Some(rules),
            Self::None | Self::Host => None,
        }
    }
}

/// How virtual machines are made on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSpec {
    /// The guests' kernel, a bzImage on the host. Absolute.
    pub kernel: PathBuf,
    /// That kernel's directory below `/lib/modules`; none when all it needs is built in.
    #[serde(default)]
    pub modules: Option<PathBuf>,
    /// Memory a machine takes beside its workload's, MiB: the guest's kernel and runner, and QEMU itself.
    #[serde(default = "machine_overhead")]
    pub overhead_mib: u64,
    /// Firmware instead of QEMU's BIOS.
    #[serde(default)]
    pub firmware: Option<PathBuf>,
    /// Makes TDX guests; needs firmware for them.
    #[serde(default)]
    pub tdx: Option<TdxSpec>,
}

/// How TDX guests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdxSpec {
    /// Port on the host's vsock of Intel's quote generation service.
    #[serde(default = "quote_port")]
    pub quote_port: u32,
}

/// [`MachineSpec::overhead_mib`] unless it is said.
pub const fn machine_overhead() -> u64 {
    288
}

const fn quote_port() -> u32 {
    4050
}

/// How strongly a workload is separated from its host, weakest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IsolationLevel {
    /// The workload runs as the runner's own user and sees the host's files and processes.
    #[default]
    ProcessLimits,
    /// Own file system, processes, network and host name by an unprivileged user namespace; limits per process.
    UserNamespaces,
    /// Namespaces made by root, workload mapped to an unused uid range, limits by cgroup.
    RootNamespaces,
    /// A virtual machine with a kernel of its own, which itself runs in one of the two above.
    Machine,
}

impl fmt::Display for IsolationLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ProcessLimits => "none: process limits only",
            Self::UserNamespaces => "user namespaces+rlimits (unprivileged)",
            Self::RootNamespaces => "namespaces+cgroups (root)",
            Self::Machine => "virtual machine",
        })
    }
}

/// What enforces one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mechanism {
    /// A cgroup v1 controller.
    CgroupV1,
    /// The cgroup v2 controller.
    CgroupV2,
    /// `setrlimit`, per process or per user.
    Rlimit,
    /// CPU affinity: whole cores only.
    Affinity,
    /// The virtual machine's own size, and its kernel.
    Machine,
    /// A periodic check that ends the grant when exceeded.
    Sweep,
    /// Nothing.
    Nothing,
}

/// The isolation a workload really has, with everything that is weaker than full isolation in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// The level.
    pub level: IsolationLevel,
    /// The level as printed to people.
    pub name: String,
    /// What limits CPU.
    pub cpu: Mechanism,
    /// What limits memory.
    pub ram: Mechanism,
    /// What limits processes.
    pub pids: Mechanism,
    /// What limits disk.
    pub disk: Mechanism,
    /// First host uid of the 65,536 the workload's uids are mapped to, when there is such a mapping.
    pub uid_base: Option<u32>,
    /// Each sentence is one thing a user of this machine should know is weaker than full isolation.
    pub losses: Vec<String>,
}

/// A process that cannot be confused with a later one of the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Process id as the host sees it.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: start time in clock ticks since boot.
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id` of the boot it belongs to.
    pub boot_id: String,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitOutcome {
    /// `exit(code)`.
    Code(i32),
    /// Killed by this signal number.
    Signal(i32),
}

/// Why a grant ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// `valid_to` passed.
    Deadline,
    /// `runner stop`, or a termination signal to the supervisor.
    Stopped,
    /// The workload used more disk than granted.
    DiskExceeded,
    /// The first process of the environment died (killed from outside, or out of memory).
    EnvironmentDied,
    /// It never became ready; `detail` says why.
    FailedToStart,
    /// The supervisor died without a word (killed, or the host rebooted).
    Lost,
}

/// Counters of a virtual machine's own kernel: what its workload used, without what the machine itself costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestUsage {
    /// CPU time of the workload, milliseconds of one core.
    pub cpu_core_ms: u64,
    /// Its memory now, MiB rounded up.
    pub ram_mib: u64,
    /// Its disk now, MiB rounded up.
    pub disk_mib: u64,
}

/// Resources used so far. Every number only ever grows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// [`FORMAT_VERSION`].
    pub version: u16,
    /// The grant.
    pub grant_id: String,
    /// CPU time, milliseconds of one core.
    pub cpu_core_ms: u64,
    /// Memory over time, MiB × milliseconds (trapezoid over the samples; working set, see docs/ISOLATION.md).
    pub ram_mib_ms: u64,
    /// Bytes through the grant's SSH server (channel payload, both directions), and of its connections to outside.
    pub net_bytes: u64,
    /// Largest memory sample, MiB rounded up.
    pub ram_peak_mib: u64,
    /// Samples taken.
    pub samples: u64,
    /// When metering began, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// When this report was made, milliseconds since 1970.
    pub updated_unix_ms: u64,
    /// True for the last report of a grant.
    pub is_final: bool,
    /// Connections, flows of datagrams and questions about names that the rules of its egress did not let out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub egress_refused: u64,
    /// What the machine's own kernel counted, as it says; nothing is billed by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestUsage>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Where a grant stands; `state.json` in its directory, replaced atomically.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerState {
    /// [`FORMAT_VERSION`].
    pub version: u16,
    /// The grant.
    pub grant_id: String,
    /// When it ends at the latest, milliseconds since 1970.
    pub valid_to_unix_ms: u64,
    /// The process that owns the grant on this host.
    pub supervisor: ProcessRef,
    /// First process of the environment, once there is one.
    pub init: Option<ProcessRef>,
    /// cgroup directories made for it.
    pub cgroups: Vec<PathBuf>,
    /// The unit of systemd's that it is, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Reported while it runs, never written: usage as of the last sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_so_far: Option<UsageReport>,
    /// The phase.
    #[serde(flatten)]
    pub phase: Phase,
}

/// Phases of a grant on its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Phase {
    /// Checking and unpacking the image, building the environment.
    Starting,
    /// SSH is up.
    Ready {
        /// Address the SSH server listens on.
        ssh_address: SocketAddr,
        /// Its port, also when the spec said 0.
        port: u16,
        /// Host pid of the environment's first process.
        pid: i32,
        /// How isolated it is.
        isolation: Isolation,
        /// How the workload command ended, once it has. The grant lives on.
        workload_exit: Option<ExitOutcome>,
    },
    /// Over; every process, mount and cgroup is gone. Files stay until `clean`.
    Ended {
        /// Why.
        reason: EndReason,
        /// More about it, for people.
        detail: Option<String>,
        /// How the workload command ended, if it did by itself.
        exit: Option<ExitOutcome>,
        /// Final usage.
        usage: UsageReport,
    },
    /// Reported, never written: the supervisor is gone but said no last word. `stop` settles it.
    Lost {
        /// Usage as of its last report.
        usage: UsageReport,
    },
}

/// Who looks after grants' supervisors on a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supervision {
    /// The service manager whose units grants are; none: each supervisor is on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manager: Option<ServiceManager>,
    /// Why there is none, on a host that systemd runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One of systemd's service managers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceManager {
    /// The host's: process 1.
    System,
    /// The user's own.
    User,
}

/// Answer of `runner probe`: what this host offers, before any grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// [`FORMAT_VERSION`].
    pub version: u16,
    /// Host name.
    pub hostname: String,
    /// Machine architecture, as `uname -m`.
    pub arch: String,
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// True when the runner has uid 0.
    pub root: bool,
    /// True when it can create user namespaces.
    pub user_namespaces: bool,
    /// The isolation a workload would get here, with its losses.
    pub isolation: Isolation,
    /// Who looks after grants' supervisors.
    #[serde(default)]
    pub supervision: Supervision,
    /// cgroup v1 controllers this runner may use.
    pub cgroup_v1: Vec<String>,
    /// cgroup v2 controllers this runner may use.
    pub cgroup_v2: Vec<String>,
    /// CPUs usable, thousandths of a core.
    pub cpu_millicores: u32,
    /// Memory, MiB.
    pub ram_mib: u64,
    /// Memory available now, MiB.
    pub ram_available_mib: u64,
    /// Free space where grants would live, MiB.
    pub disk_available_mib: u64,
    /// The host's clock, milliseconds since 1970.
    pub clock_unix_ms: u64,
    /// Why rules of egress open nothing here; none when they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_problem: Option<String>,
    /// What it has for virtual machines; only when asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineProbe>,
}

/// Answer of `runner boot-files`: what a machine starts from, and so what a TDX guest measures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootReport {
    /// [`FORMAT_VERSION`].
    pub version: u16,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub command_line: String,
    /// The firmware.
    pub firmware: Option<PathBuf>,
    /// A guest's memory is its grant's and so much, MiB.
    pub memory_added_mib: u64,
}

/// What a host has for virtual machines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineProbe {
    /// True when KVM executes machines here; else they are emulated.
    pub kvm: bool,
    /// Why it does not.
    pub kvm_problem: Option<String>,
    /// What is missing and what to do about it; empty when machines can be started.
    pub missing: Vec<String>,
}

/// Answer of `runner clean`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanReport {
    /// [`FORMAT_VERSION`].
    pub version: u16,
    /// The directory that is gone.
    pub dir: PathBuf,
    /// What was there and is removed now, for people.
    pub removed: Vec<String>,
}

/// One grant directory as `runner list` finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedGrant {
    /// Its directory.
    pub dir: PathBuf,
    /// Its state, or none when `state.json` is missing or unreadable.
    pub state: Option<RunnerState>,
    /// Why there is no state.
    pub problem: Option<String>,
    /// The unit that runs on although the directory is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

/// Answer of `runner list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListReport {
    /// [`FORMAT_VERSION`].
    pub version: u16,
    /// Grant directories, sorted by path.
    pub grants: Vec<ListedGrant>,
}

/// What a failed runner command prints instead of its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureReport {
    /// The failure.
    pub error: Failure,
}

/// A failure of the runner, as seen by who called it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable snake_case name, see docs/ISOLATION.md.
    pub code: String,
    /// One sentence naming what was wrong, with both values.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Failure {}

/// Reads one line a runner command printed: its answer, or the typed failure. A line that is neither becomes the
/// failure `unreadable_answer`.
pub fn parse_answer<T: serde::de::DeserializeOwned>(line: &str) -> Result<T, Failure> {
    if let Ok(report) = serde_json::from_str::<FailureReport>(line) {
        return Err(report.error);
    }
    serde_json::from_str(line).map_err(|e| Failure {
        code: "unreadable_answer".into(),
        message: format!(
            "the runner answered {:?}, which is not its JSON: {e}",
            line.chars().take(200).collect::<String>()
        ),
        hint: Some("check that both machines run the same version".into()),
    })
}
