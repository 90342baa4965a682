//! A grant in a virtual machine, from the host's side: QEMU in the grant's environment, its disks as open files, and what
//! the guest reports.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot, watch};

use super::environment::{Holdings, Up, Work, build_environment, find_bootable, limits, watch_over};
use super::{log, own, relay};
use crate::error::{Result, RunnerError, exit_code_of};
use crate::isolate::cgroup::{Groups, Hierarchies};
use crate::isolate::control::{Control, Launched};
use crate::isolate::discover::Abilities;
use crate::isolate::proto::{Launch, MACHINE_FDS, MachineView, Program};
use crate::machine::boot::{self, BootFiles};
use crate::machine::qemu::{Accelerator, Disk, Machine, System};
use crate::machine::report::{self, MAX_LINE, Order, Report};
use crate::machine::tools;
use crate::rootfs::open_verified;
use crate::spec::{CheckedSpec, image_path};
use crate::ssh::Traffic;
use crate::state::GrantDir;
use crate::types::{
    Egress, ExitOutcome, Failure, GuestUsage, Isolation, IsolationLevel, MachineSpec, Mechanism, SecretText,
    WorkloadSpec,
};

/// Longest a guest may take from its first instruction to SSH, on the processor and emulated; one of ours, and one that is
/// somebody's whole system.
const BOOT_LIMIT: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(240));
const OWN_BOOT_LIMIT: (Duration, Duration) = (Duration::from_secs(180), Duration::from_secs(600));
/// Processes and threads of QEMU: one a processor, and its workers.
const QEMU_THREADS: u32 = 96;
/// Bytes of the console that are kept for an error message.
const CONSOLE_TAIL: usize = 1024;
/// Longest a guest may take to take an order.
const ORDER_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for the rest of a dead machine's console.
const DRAIN: Duration = Duration::from_secs(1);
/// Lines of nonsense after which a guest is not listened to any more.
const NONSENSE: usize = 16;
/// Serial numbers by which the guest tells its disks apart, in the order of their descriptors.
pub(super) const DISKS: [&str; 3] = ["root", "image", "grant"];

/// What happens in a grant.
pub(super) enum Event {
    /// The workload ended; none when nobody knows how.
    Exited(Option<ExitOutcome>),
    /// The guest's own counters.
    Usage(GuestUsage),
    /// The machine is gone.
    Gone(String),
}

/// A machine that is up.
pub(super) struct Running {
    reports: mpsc::Receiver<Report>,
    pub(super) exit: oneshot::Receiver<ExitOutcome>,
    pub(super) console: Console,
    /// Ends that the guest says it has taken.
    moved: watch::Sender<u64>,
    /// The way to tell it something: were it closed, its reports would have no other side.
    orders: Orders,
}

/// The way to tell a guest something; clones share it.
#[derive(Clone)]
pub(super) struct Orders {
    pipe: Arc<tokio::sync::Mutex<pipe::Sender>>,
    moved: watch::Receiver<u64>,
}

impl Orders {
    /// Has the guest's own timer end the grant at another time; done when it says that it will. What it says is believed
    /// of that timer only: a guest that says so and does not ends itself at its old end, and the host at the new one.
    pub(super) async fn until(&self, unix_ms: u64) -> std::result::Result<(), String> {
        let line = report::order_line(Order::Until { unix_ms });
        let mut moved = self.moved.clone();
        let told = async {
            self.pipe.lock().await.write_all(&line).await.map_err(|e| format!("cannot tell the guest: {e}"))?;
            moved.wait_for(|end| *end == unix_ms).await.map(drop).map_err(|_| "the machine has ended".to_owned())
        };
        let silent = |_| format!("the guest did not take another end within {} s", ORDER_LIMIT.as_secs());
        tokio::time::timeout(ORDER_LIMIT, told).await.map_err(silent)?
    }
}

/// The last words of a console.
#[derive(Clone)]
pub(super) struct Console {
    kept: Arc<Mutex<VecDeque<u8>>>,
    /// Closed when nothing more can come.
    open: watch::Receiver<()>,
}

impl Console {
    /// Keeps the end of what comes from a pipe.
    fn listen(mut pipe: pipe::Receiver) -> Self {
        let (still, open) = watch::channel(());
        let console = Self { kept: Arc::default(), open };
        let kept = Arc::clone(&console.kept);
        tokio::spawn(async move {
            let mut piece = vec![0; 4096];
            while let Ok(got @ 1..) = pipe.read(&mut piece).await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&piece[..got]);
                let over = kept.len().saturating_sub(CONSOLE_TAIL);
                kept.drain(..over);
            }
            drop(still);
        });
        console
    }

    /// The end of it; of a machine that has ended, all that it said until then.
    pub(super) async fn last_words(&self) -> String {
        let mut open = self.open.clone();
        let _ = tokio::time::timeout(DRAIN, async { while open.changed().await.is_ok() {} }).await;
        self.text()
    }

    pub(super) fn text(&self) -> String {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(kept.make_contiguous()).into_owned();
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
    }
}

impl Running {
    /// Passes on what happens until the machine is gone.
    pub(super) async fn watch(mut self, events: mpsc::Sender<Event>) {
        loop {
            let event = tokio::select! {
                ended = &mut self.exit => {
                    let how = ended.map_or_else(|_| "its end was not seen".to_owned(), |outcome| format!("{outcome:?}"));
                    let words = self.console.last_words().await;
                    Event::Gone(format!("the virtual machine ended ({how}); its console ends: {words}"))
                }
                Some(report) = self.reports.recv() => match report {
                    Report::Exited(outcome) => Event::Exited(Some(outcome)),
                    Report::Usage(usage) => Event::Usage(usage),
                    Report::Moved { unix_ms } => {
                        self.moved.send_replace(unix_ms);
                        continue;
                    }
                    Report::Ready { .. } | Report::Failed { .. } => continue,
                },
            };
            let last = matches!(event, Event::Gone(_));
            if events.send(event).await.is_err() || last {
                return;
            }
        }
    }

    /// Waits until the guest serves SSH; answers what is weaker inside.
    async fn ready(&mut self, limit: Duration) -> Result<Vec<String>> {
        let failed = |problem: String, console: String| RunnerError::MachineFailed { problem, console };
        let timeout = tokio::time::sleep(limit);
        tokio::pin!(timeout);
        loop {
            tokio::select! {
                () = &mut timeout => {
                    return Err(failed(format!("no word from it within {} s", limit.as_secs()), self.console.text()));
                }
                ended = &mut self.exit => {
                    let how = ended.map_or_else(|_| "unseen".to_owned(), |outcome| format!("{outcome:?}"));
                    return Err(failed(format!("it ended ({how})"), self.console.last_words().await));
                }
                Some(report) = self.reports.recv() => match report {
                    Report::Ready { losses } => return Ok(losses),
                    // Only failures that this version knows are passed on as they are.
                    Report::Failed { code, message } if exit_code_of(&code) != 1 => {
                        return Err(RunnerError::Supervisor(Failure { code, message, hint: None }));
                    }
                    Report::Failed { message, .. } => return Err(failed(message, self.console.text())),
                    Report::Exited(_) | Report::Usage(_) | Report::Moved { .. } => {}
                },
            }
        }
    }
}

/// What a machine is made of.
struct Parts {
    qemu: PathBuf,
    accelerator: Accelerator,
    kvm_problem: Option<String>,
    filled: Filled,
}

/// What is in a machine: a system, and files in the order of their descriptors.
pub(super) struct Filled {
    pub(super) system: System,
    pub(super) memory_mib: u64,
    pub(super) disks: Vec<Disk>,
    /// To read, and to read and write.
    pub(super) root: (File, File),
    pub(super) second: File,
    pub(super) third: File,
}

/// Starts a machine and waits until one can log in.
pub(super) async fn bring_up(
    checked: &CheckedSpec,
    machine: &MachineSpec,
    dir: &GrantDir,
    traffic: &Arc<Traffic>,
    holdings: &mut Holdings,
    abilities: Abilities,
    socket: TcpListener,
) -> Result<Up> {
    let spec = &checked.spec;
    let parts = prepare(checked, machine, dir).await?;
    // QEMU gets what the grant has and what the machine costs; the guest's kernel keeps the workload to its own.
    let ram_mib = spec.ram_mib + machine.overhead_mib;
    let enclosed = WorkloadSpec { ram_mib, pids_max: QEMU_THREADS + boot::cpus(spec.cpu_millicores), ..spec.clone() };
    let groups = Groups::create(&Hierarchies::discover(), abilities.root, &spec.grant_id, limits(&enclosed));
    holdings.groups = groups;
    let view = MachineView {
        paths: tools::HOST_PATHS.iter().map(PathBuf::from).chain(machine.firmware.clone()).collect(),
        kvm: parts.accelerator == Accelerator::Kvm,
    };
    let (outer, built) = build_environment(&enclosed, dir, abilities, traffic, holdings, Some(view)).await?;
    holdings.control = Some(built.control.clone());
    let environment = watch_over(&built.control);
    let tdx = match &machine.tdx {
        Some(tdx) => {
            let public = checked.host_key.public_key().to_openssh();
            let public = public.map_err(|e| RunnerError::Environment(format!("the host key: {e}")))?;
            Some(boot::declared(spec, &public, tdx.quote_port))
        }
        None => None,
    };
    let Filled { system, memory_mib, disks, .. } = &parts.filled;
    let open = holdings.egress.is_some();
    let line = Machine {
        egress: open,
        program: parts.qemu.clone(),
        accelerator: parts.accelerator,
        cpus: boot::cpus(spec.cpu_millicores),
        memory_mib: *memory_mib,
        system: system.clone(),
        firmware: machine.firmware.clone(),
        disks: disks.clone(),
        console_fd: MACHINE_FDS + 3,
        tdx,
    };
    let mut running = launch(&built.control, line.arguments(), &parts.filled).await?;
    let limit = |(on_kvm, emulated)| if parts.accelerator == Accelerator::Kvm { on_kvm } else { emulated };
    let ours = matches!(system, System::Ours(_));
    let losses = match ours {
        true => running.ready(limit(BOOT_LIMIT)).await?,
        false => own::ready(&mut running, &built.control, checked, limit(OWN_BOOT_LIMIT)).await?,
    };
    let isolation = describe(outer, parts.kvm_problem, losses);
    let relay = relay::start(socket, built.control.clone(), traffic.clone())
        .map_err(|source| RunnerError::Listen { address: spec.ssh_listen, source })?;
    let address = relay.address;
    holdings.relay = Some(relay);
    holdings.orders = ours.then(|| running.orders.clone());
    Ok(Up { isolation, address, init: built.pid, environment, work: Work::Machine(running) })
}

/// The machine's isolation, from that of the environment it runs in.
fn describe(outer: Isolation, kvm_problem: Option<String>, inside: Vec<String>) -> Isolation {
    let mut losses = Vec::new();
    if let Some(problem) = kvm_problem {
        losses.push(format!("the virtual machine is emulated, which is slow: {problem}"));
    }
    // What is weak about the walls around QEMU is said as it is; its disk has a size and needs no looking at.
    losses.extend(outer.losses.into_iter().filter(|loss| !loss.starts_with("disk use is checked")));
    losses.extend(inside);
    let level = IsolationLevel::Machine;
    let (ram, pids, disk) = (Mechanism::Machine, Mechanism::Machine, Mechanism::Machine);
    Isolation { level, name: level.to_string(), ram, pids, disk, losses, ..outer }
}

async fn prepare(checked: &CheckedSpec, machine: &MachineSpec, dir: &GrantDir) -> Result<Parts> {
    let (image, hash, size) =
        (image_path(&checked.spec, dir.path()), checked.image_hash, checked.spec.image_size_bytes);
    let (machine, dir) = (machine.clone(), dir.clone());
    let spec = checked.spec.clone();
    let work = move || {
        let missing = |problem: String| RunnerError::NoMachine { problem };
        let qemu = tools::qemu().ok_or_else(|| missing("qemu-system-x86_64 is not installed".into()))?;
        if let Some(problem) = machine.tdx.as_ref().and_then(|_| tools::tdx_problem(&qemu, machine.firmware.as_deref()))
        {
            return Err(missing(format!("no TDX guests: {problem}")));
        }
        let mut file = open_verified(&image, size, &hash)?;
        let bootable = find_bootable(&mut file, &image)?;
        let jail = dir.create_rootfs()?.join("machine");
        fs::create_dir(&jail).map_err(|e| RunnerError::io(format!("cannot create {}", jail.display()), e))?;
        let disk = disk_path(&dir);
        let filled = match bootable {
            None => fill(&spec, &machine, file.file, &jail, &disk)?,
            Some(kind) => own::fill(&spec, &machine, (file, &image), kind, &jail, &disk)?,
        };
        open_up(&jail)?;
        let (accelerator, kvm_problem) = tools::accelerator(&qemu);
        Ok(Parts { qemu, accelerator, kvm_problem, filled })
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| RunnerError::Environment(format!("preparing: {e}")))?
}

/// Lets whoever QEMU runs as read what it starts from; the directory above is its owner's alone.
fn open_up(jail: &Path) -> Result<()> {
    let context = |e| RunnerError::io(format!("cannot open up {}", jail.display()), e);
    let entries = fs::read_dir(jail).map_err(context)?.flatten().map(|entry| entry.path());
    [jail.to_owned()]
        .into_iter()
        .chain(entries)
        .try_for_each(|path| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(context))
}

/// Our own system, the image beside it for it to unpack.
fn fill(spec: &WorkloadSpec, machine: &MachineSpec, image: File, jail: &Path, disk: &Path) -> Result<Filled> {
    let files = BootFiles::write(jail, machine)?;
    let root = make_disk(disk, spec.disk_mib)?;
    let grant = secret_file(&document(spec)?)?;
    let writable = |serial: &str| (serial == DISKS[0]).then_some(MACHINE_FDS + 4);
    let disks = DISKS.iter().zip(MACHINE_FDS..).map(|(serial, fd)| Disk { serial, fd, writable: writable(serial) });
    Ok(Filled {
        system: System::Ours(BootFiles::boot(Path::new("/machine"))),
        memory_mib: spec.ram_mib + files.guest_mib,
        disks: disks.collect(),
        root,
        second: image,
        third: grant,
    })
}

/// A file in memory that can be read only: QEMU's own descriptor must not be one that writes.
pub(super) fn secret_file(bytes: &[u8]) -> Result<File> {
    let file = tools::memory_file(bytes).map_err(|e| RunnerError::io("cannot keep the grant in memory", e))?;
    File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))
        .map_err(|e| RunnerError::io("cannot read the grant back", e))
}

/// What the guest is told: length as eight bytes, least first, and the spec, to whole sectors. In memory only: it has the
/// host key.
fn document(spec: &WorkloadSpec) -> Result<zeroize::Zeroizing<Vec<u8>>> {
    let inner = WorkloadSpec {
        image: "/dev/image".into(),
        ssh_listen: "0.0.0.0:22".parse().unwrap_or(spec.ssh_listen),
        minimum_isolation: IsolationLevel::ProcessLimits,
        machine: None,
        // Rules are kept outside; inside, the network is the guest's own and its workload's.
        egress: if spec.egress.rules().is_some() { Egress::Host } else { Egress::None },
        network_mbit: None,
        ssh_host_key: SecretText::new(spec.ssh_host_key.expose()),
        ..spec.clone()
    };
    let text = serde_json::to_vec(&inner).map_err(|e| RunnerError::io("cannot write the grant", io::Error::from(e)))?;
    let text = zeroize::Zeroizing::new(text);
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity((text.len() + 8).next_multiple_of(512)));
    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&text);
    let whole = bytes.len().next_multiple_of(512);
    bytes.resize(whole, 0);
    Ok(bytes)
}

fn disk_path(dir: &GrantDir) -> PathBuf {
    dir.path().join("root.disk")
}

/// Removes a machine's disk, if there is one.
pub(super) fn remove_disk(dir: &GrantDir) {
    let _ = fs::remove_file(disk_path(dir));
}

/// An empty file system of this size in a sparse file. The guest unpacks the image into it: whatever the image is, the
/// host's kernel never sees its files.
pub(super) fn make_disk(path: &Path, disk_mib: u64) -> Result<(File, File)> {
    let context = |e: io::Error| RunnerError::io(format!("cannot make the disk {}", path.display()), e);
    let missing = || RunnerError::NoMachine { problem: "mke2fs is not installed".into() };
    let mke2fs = tools::mke2fs().ok_or_else(missing)?;
    let disk = blank_disk(path, disk_mib)?;
    let output = Command::new(mke2fs)
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal,^resize_inode"])
        .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
        .arg(path)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(context)?;
    if output.status.success() {
        return Ok(disk);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(RunnerError::Environment(format!("mke2fs of {disk_mib} MiB: {}", text.trim())))
}

/// An empty sparse file of this size: to read, and to read and write.
pub(super) fn blank_disk(path: &Path, disk_mib: u64) -> Result<(File, File)> {
    let context = |e: io::Error| RunnerError::io(format!("cannot make the disk {}", path.display()), e);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(context)?;
    file.set_len(disk_mib << 20).map_err(context)?;
    Ok((File::open(path).map_err(context)?, file))
}

async fn launch(control: &Control, arguments: Vec<String>, filled: &Filled) -> Result<Running> {
    let failed = |e: io::Error| RunnerError::io("cannot make pipes", e);
    let (orders_theirs, orders_ours) = io::pipe().map_err(failed)?;
    let (reports_ours, reports_theirs) = io::pipe().map_err(failed)?;
    let (console_ours, console_theirs) = io::pipe().map_err(failed)?;
    let fds: [BorrowedFd<'_>; 8] = [
        orders_theirs.as_fd(),
        reports_theirs.as_fd(),
        console_theirs.as_fd(),
        filled.root.0.as_fd(),
        filled.second.as_fd(),
        filled.third.as_fd(),
        console_theirs.as_fd(),
        filled.root.1.as_fd(),
    ];
    let launch = Launch { program: Program::Machine(arguments), env: Vec::new(), terminal: None };
    let launched = control.launch(launch, &fds).await.map_err(RunnerError::Environment)?;
    let Launched { exit, .. } = launched;
    let console = Console::listen(pipe::Receiver::from_owned_fd(console_ours.into()).map_err(failed)?);
    let (sender, reports) = mpsc::channel(16);
    let ours = pipe::Receiver::from_owned_fd(reports_ours.into()).map_err(failed)?;
    tokio::spawn(listen_to_guest(ours, sender));
    let pipe = pipe::Sender::from_owned_fd(orders_ours.into()).map_err(failed)?;
    let (moved, taken) = watch::channel(0);
    let orders = Orders { pipe: Arc::new(tokio::sync::Mutex::new(pipe)), moved: taken };
    Ok(Running { reports, exit, console, moved, orders })
}

/// Reads reports until the guest is gone, or has nothing sensible to say.
async fn listen_to_guest(pipe: pipe::Receiver, reports: mpsc::Sender<Report>) {
    let mut source = BufReader::new(pipe);
    let mut nonsense = 0;
    let mut line = Vec::new();
    while nonsense < NONSENSE {
        line.clear();
        let limit = MAX_LINE as u64 + 1;
        match (&mut source).take(limit).read_until(b'\n', &mut line).await {
            Ok(1..) if line.ends_with(b"\n") => line.truncate(line.len() - 1),
            // A line without end, or the end.
            _ => break,
        }
        match report::parse(&line) {
            Ok(report) => {
                if reports.send(report).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                nonsense += 1;
                log(&format!("guest: {error}"));
            }
        }
    }
    // What it says further is read and dropped, so that it does not wait for us.
    let mut piece = vec![0; 4096];
    while let Ok(1..) = source.read(&mut piece).await {}
    reports.closed().await;
}
