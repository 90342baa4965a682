//! `runner guest`: the first process of a virtual machine. Finds its disks, unpacks the image, and serves the grant as a
//! host would; what happens is reported on a serial port. When it ends, so does the machine.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::environment::{Holdings, Up, Work, limits, serve};
use super::log;
use super::machine::DISKS;
use super::workload::Output;
use crate::error::{Result, RunnerError};
use crate::isolate::cgroup::{Groups, Hierarchies};
use crate::isolate::control::Control;
use crate::isolate::discover::Abilities;
use crate::isolate::{link, sys};
use crate::machine::initrd::MODULE_DIR;
use crate::machine::qemu::{GUEST_ADDRESS, GUEST_GATEWAY, REPORT_PORT};
use crate::machine::report::{MAX_LINE, Order, Report, line, parse_order};
use crate::rootfs::{ImageFile, Owner, unpack};
use crate::spec::{self, CheckedSpec, MAX_SPEC_BYTES};
use crate::ssh::Traffic;
use crate::state::{GrantDir, now_unix_ms};
use crate::types::{Egress, GuestUsage};

/// Wait for the kernel to find a device.
const DEVICE_LIMIT: Duration = Duration::from_secs(20);
const USAGE_EVERY: Duration = Duration::from_secs(1);
const GRANT_DIR: &str = "/grant";

/// Runs the machine; it is switched off when this returns.
pub(super) fn guest_main() -> ExitCode {
    if std::process::id() != 1 {
        return super::fail(&RunnerError::Usage("runner guest is the first process of a virtual machine".into()));
    }
    if let Err(error) = prepare_system().and_then(|()| live()) {
        log(&format!("guest: {}", error.to_failure()));
    }
    // Only an error returns, and then leaving is all that is left: the kernel panics and the machine ends.
    let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_POWER_OFF);
    ExitCode::FAILURE
}

fn problem(what: &str, e: impl std::fmt::Display) -> RunnerError {
    RunnerError::Environment(format!("{what}: {e}"))
}

fn mnt(source: &str, target: &str, kind: &str, flags: MsFlags, data: Option<&str>) -> Result<()> {
    mount(Some(source), target, Some(kind), flags, data).map_err(|e| problem(&format!("mount {target}"), e))
}

/// The kernel's file systems, its modules, the network.
fn prepare_system() -> Result<()> {
    // The initial file system is one that can never be left by pivot_root, so it is bound over itself.
    let none: Option<&str> = None;
    mount(Some("/"), "/new", none, MsFlags::MS_BIND, none).map_err(|e| problem("bind the root", e))?;
    std::env::set_current_dir("/new").map_err(|e| problem("enter the root", e))?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).map_err(|e| problem("move the root", e))?;
    nix::unistd::chroot(".").map_err(|e| problem("change the root", e))?;
    std::env::set_current_dir("/").map_err(|e| problem("enter the new root", e))?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mnt("proc", "/proc", "proc", safe, None)?;
    mnt("sysfs", "/sys", "sysfs", safe, None)?;
    mnt("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, None)?;
    mnt("cgroup2", "/sys/fs/cgroup", "cgroup2", safe, None)?;
    load_modules()?;
    link::loopback_up().map_err(|e| problem("bring loopback up", e))?;
    link::ethernet_up(GUEST_ADDRESS.0, GUEST_ADDRESS.1).map_err(|e| problem("bring the network up", e))
}

fn load_modules() -> Result<()> {
    let Ok(entries) = fs::read_dir(Path::new("/").join(MODULE_DIR)) else { return Ok(()) };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for path in files {
        let compressed = path.extension().is_none_or(|end| end != "ko");
        let loaded = File::open(&path).and_then(|file| sys::load_module(&file, compressed));
        loaded.map_err(|e| problem(&format!("load {}", path.display()), e))?;
    }
    Ok(())
}

/// Looks until a directory of the kernel has an entry whose `file` says `wanted`; answers the entry's name.
fn find(class: &str, file: &str, wanted: &str) -> Result<String> {
    let began = Instant::now();
    loop {
        let entries = fs::read_dir(class).into_iter().flatten().flatten();
        let says = |path: PathBuf| fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == wanted);
        if let Some(found) = entries.filter(|entry| says(entry.path())).map(|entry| entry.file_name()).next() {
            return Ok(found.to_string_lossy().into_owned());
        }
        if began.elapsed() > DEVICE_LIMIT {
            return Err(problem("find a device", format!("nothing in {class} is {wanted:?}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn disk(serial: &str) -> Result<PathBuf> {
    find("/sys/block", "serial", serial).map(|name| Path::new("/dev").join(name))
}

fn live() -> Result<()> {
    let port = find("/sys/class/virtio-ports", "name", REPORT_PORT)?;
    let port = OpenOptions::new().read(true).write(true).open(Path::new("/dev").join(port));
    let mut port = port.map_err(|e| problem("open the report port", e))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| problem("start the runtime", e))?;
    if let Err(error) = runtime.block_on(serve_grant(&mut port)) {
        let failure = error.to_failure();
        tell(&mut port, &Report::Failed { code: failure.code, message: failure.message });
        return Err(error);
    }
    Ok(())
}

/// Hears what the host says, on a thread of its own: the port opens once, and reading it waits.
fn hear(port: &File) -> Result<mpsc::Receiver<Order>> {
    let mut source = BufReader::new(port.try_clone().map_err(|e| problem("listen to the report port", e))?);
    let (sender, orders) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut source).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line) {
                Ok(1..) if line.ends_with(b"\n") => line.truncate(line.len() - 1),
                // A line without end, or the end: nothing more is heard, and the grant ends when it would have.
                _ => return,
            }
            match parse_order(&line) {
                Ok(order) if sender.blocking_send(order).is_err() => return,
                Ok(_) => {}
                Err(error) => log(&format!("host: {error}")),
            }
        }
    });
    Ok(orders)
}

/// Does what the host says; a timer that did not move is not said to have.
async fn obey(port: &mut File, control: &Control, order: Order) {
    let Order::Until { unix_ms } = order;
    match control.until(unix_ms).await {
        Ok(()) => tell(port, &Report::Moved { unix_ms }),
        Err(error) => log(&format!("new end: {error}")),
    }
}

/// A report that cannot be written reaches nobody; the machine's end says the rest.
fn tell(port: &mut File, report: &Report) {
    let _ = port.write_all(&line(report));
}

fn read_grant() -> Result<CheckedSpec> {
    let path = disk(DISKS[2])?;
    let context = |e| problem("read the grant", e);
    let mut file = File::open(&path).map_err(context)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(context)?;
    let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX).min(MAX_SPEC_BYTES + 1);
    let mut bytes = zeroize::Zeroizing::new(vec![0; length]);
    file.read_exact(&mut bytes).map_err(context)?;
    spec::parse(&bytes, now_unix_ms())
}

async fn serve_grant(port: &mut File) -> Result<()> {
    let checked = read_grant()?;
    let spec = &checked.spec;
    let dir = GrantDir::new(GRANT_DIR);
    let root = disk(DISKS[0])?;
    let rootfs = dir.create_rootfs()?;
    let target = rootfs.display().to_string();
    let options = Some("noinit_itable");
    mnt(&root.display().to_string(), &target, "ext4", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, options)?;
    let _ = fs::remove_dir(rootfs.join("lost+found"));
    let image = disk(DISKS[1])?;
    let file = File::open(&image).map_err(|e| problem("open the image", e))?;
    let abilities = Abilities::discover();
    let base = crate::isolate::discover::describe(abilities, &Groups::default(), &spec.grant_id, spec.cpu_millicores);
    let file = ImageFile { file, size: spec.image_size_bytes, hash: checked.image_hash };
    let owner = Owner::From(base.uid_base.unwrap_or(0));
    let config = unpack(file, Path::new("image"), &rootfs, spec.disk_mib, owner)?.config;
    if spec.egress != Egress::None {
        link::ethernet_route(GUEST_GATEWAY).map_err(|e| problem("find the way out", e))?;
    }
    let mut holdings = Holdings { in_machine: true, ..Holdings::default() };
    let limits = limits(spec);
    holdings.groups = Groups::create(&Hierarchies::discover(), abilities.root, &spec.grant_id, limits);
    let listen: SocketAddr = spec.ssh_listen;
    let socket = TcpListener::bind(listen).await.map_err(|source| RunnerError::Listen { address: listen, source })?;
    let (traffic, output) = (Arc::<Traffic>::default(), Output::new(dir.path().to_owned()));
    let up = serve(&checked, &dir, config, abilities, socket, (&traffic, &output), &mut holdings).await?;
    let orders = hear(port)?;
    watch((port, orders), up, &output, &holdings, &rootfs).await;
    Ok(())
}

/// Reports, and does what the host says, until the environment is gone.
async fn watch(
    (port, mut orders): (&mut File, mpsc::Receiver<Order>),
    up: Up,
    output: &Arc<Output>,
    holdings: &Holdings,
    rootfs: &Path,
) {
    let losses = up.isolation.losses.iter().filter(|loss| !loss.starts_with("disk use is checked"));
    tell(port, &Report::Ready { losses: losses.cloned().collect() });
    let Work::Inside(control, workload, env) = up.work else { return };
    let mut environment = up.environment;
    let mut running = true;
    let work = output.run(&control, workload, env);
    let mut ticks = tokio::time::interval(USAGE_EVERY);
    tokio::pin!(work);
    loop {
        tokio::select! {
            _ = &mut environment => return,
            outcome = &mut work, if running => {
                running = false;
                outcome.flatten().into_iter().for_each(|outcome| tell(port, &Report::Exited(outcome)));
            }
            Some(order) = orders.recv() => obey(port, &control, order).await,
            _ = ticks.tick() => tell(port, &Report::Usage(usage(holdings, rootfs))),
        }
    }
}

fn usage(holdings: &Holdings, rootfs: &Path) -> GuestUsage {
    let used = |disk: nix::sys::statvfs::Statvfs| {
        (disk.blocks().saturating_sub(disk.blocks_free())).saturating_mul(disk.fragment_size())
    };
    GuestUsage {
        cpu_core_ms: holdings.groups.cpu_us().unwrap_or(0) / 1000,
        ram_mib: holdings.groups.ram_bytes().unwrap_or(0).div_ceil(1 << 20),
        disk_mib: statvfs(rootfs).map_or(0, used).div_ceil(1 << 20),
    }
}
