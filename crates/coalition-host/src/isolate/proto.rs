//! What the supervisor and the first process of an environment tell each other: one JSON datagram per message over a
//! private socket pair, with descriptors attached where the variant says so.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::sys;
use crate::types::{ExitOutcome, IsolationLevel};

/// Largest message.
pub(crate) const MAX_MESSAGE: usize = 160 * 1024;

/// How to build the environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) level: IsolationLevel,
    pub(crate) grant_id: String,
    pub(crate) hostname: String,
    pub(crate) rootfs: PathBuf,
    pub(crate) ram_mib: u64,
    pub(crate) disk_mib: u64,
    pub(crate) pids_max: u32,
    /// Host uid that uid 0 inside stands for; none: ourselves.
    pub(crate) uid_base: Option<u32>,
    /// Limit memory per process, because no cgroup does.
    pub(crate) ram_by_rlimit: bool,
    /// Limit processes per user, because no cgroup does.
    pub(crate) pids_by_rlimit: bool,
    /// Confine to these CPUs, because no cgroup limits CPU time.
    pub(crate) cpus: Option<Vec<usize>>,
    /// Unshare the cgroup namespace too.
    pub(crate) cgroup_namespace: bool,
    /// Refuse network sockets, because the network is the host's and not for the workload.
    pub(crate) no_network: bool,
    /// What of a network there is inside.
    pub(crate) network: Network,
    pub(crate) valid_to_unix_ms: u64,
    /// Shows what of the host a virtual machine's program needs, read-only; none for workloads.
    pub(crate) machine: Option<MachineView>,
}

/// What of a network an environment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Network {
    /// One of its own: loopback.
    Loopback,
    /// One of its own: loopback, and a tunnel, the other end of which comes along with [`FromInit::Ready`].
    Tunnel,
    /// That of whoever starts it: a virtual machine, whose it is alone. Names are resolved there at this address.
    Kept(std::net::Ipv4Addr),
}

/// What of the host is seen where a virtual machine's program runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineView {
    /// Absolute paths.
    pub(crate) paths: Vec<PathBuf>,
    /// `/dev/kvm` too.
    pub(crate) kvm: bool,
}

/// A terminal to run in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terminal {
    pub(crate) name: String,
    pub(crate) cols: u16,
    pub(crate) rows: u16,
    pub(crate) xpixel: u16,
    pub(crate) ypixel: u16,
    /// RFC 4254 mode numbers and values.
    pub(crate) modes: Vec<(u8, u32)>,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Program {
    /// The user's login shell.
    Shell,
    /// A command line for the user's shell.
    Command(String),
    /// The grant's workload. Two descriptors come along: its standard output and error.
    Workload(Workload),
    /// The virtual machine: argv. Its standard streams come along, and further descriptors, which it finds from
    /// [`MACHINE_FDS`] on.
    Machine(Vec<String>),
    /// The image's own SFTP server, else ours.
    Sftp,
}

/// Number of the first descriptor that a virtual machine is given.
pub(crate) const MACHINE_FDS: i32 = 100;

/// What runs once inside, and how its image wants it run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Workload {
    pub(crate) argv: Vec<String>,
    /// Where it starts; none for home.
    pub(crate) workdir: Option<String>,
    /// `user[:group]`; none for root.
    pub(crate) user: Option<String>,
}

/// One process to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) program: Program,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) terminal: Option<Terminal>,
}

/// Supervisor to environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToInit {
    /// First message, sent once to each stage.
    Setup(Box<Setup>),
    /// The user map is written.
    Mapped,
    /// Start a process. Without a terminal, its standard streams come along; a workload has no input.
    Launch { id: u64, launch: Launch },
    /// Signal the process group of a started process.
    Signal { id: u64, signal: i32 },
    /// Connect to a loopback port inside.
    Connect { id: u64, port: u16 },
    /// The grant ends at another time.
    Until { id: u64, unix_ms: u64 },
}

/// Environment to supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromInit {
    /// The namespaces exist; this is the host pid of their first process.
    Born { pid: i32 },
    /// A user namespace exists and needs its maps.
    WantsMaps,
    /// Everything is built; these are things that could not be had. A tunnel, if there is one, comes along.
    Ready { losses: Vec<String> },
    /// The environment cannot be built.
    Broken { problem: String },
    /// A process runs. With a terminal, its master end comes along.
    Launched { id: u64 },
    /// It does not.
    NotLaunched { id: u64, problem: String },
    /// A launched process ended.
    Exited { id: u64, outcome: ExitOutcome },
    /// A connection; the socket comes along, possibly still connecting.
    Connected { id: u64 },
    /// The end is moved.
    Moved { id: u64 },
    /// No connection.
    NotConnected { id: u64, problem: String },
}

/// Sends a message.
pub(crate) fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a message of {} bytes", bytes.len())));
    }
    sys::send_with_fds(socket, &bytes, fds)
}

/// A message and the descriptors that came with it.
pub(crate) type Received<T> = Option<(T, Vec<OwnedFd>)>;

/// Receives a message; none when the other side is gone.
pub(crate) fn receive<T: serde::de::DeserializeOwned>(socket: &impl AsFd) -> io::Result<Received<T>> {
    match sys::receive_with_fds(socket.as_fd(), MAX_MESSAGE)? {
        Some((bytes, fds)) => Ok(Some((serde_json::from_slice(&bytes)?, fds))),
        None => Ok(None),
    }
}
