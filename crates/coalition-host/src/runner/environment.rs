//! Building one grant's environment from a checked spec, and taking it down again.

use std::io::Seek;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::launcher::InsideLauncher;
use super::machine::{Orders, Running};
use super::workload::Output;
use crate::accepting::Listening;
use crate::egress::Egressing;
use crate::error::{Result, RunnerError};
use crate::isolate::cgroup::{Groups, Hierarchies, Limits};
use crate::isolate::control::{Control, build};
use crate::isolate::discover::{Abilities, affinity, available_cpus, describe};
use crate::isolate::launch::GRANT_VARIABLE;
use crate::isolate::proto::{MachineView, Network, Setup, Workload};
use crate::machine::bootable::{self, Bootable, BootableError};
use crate::machine::qemu::GUEST_RESOLVER;
use crate::proc;
use crate::rootfs::oci::ImageConfig;
use crate::rootfs::{ImageFile, Owner, Unpacked, open_verified, remove_tree, unpack};
use crate::spec::{CheckedSpec, image_path};
use crate::ssh::{ServerKeys, ServerLimits, Traffic, listen};
use crate::state::GrantDir;
use crate::types::{Egress, Isolation, IsolationLevel, Mechanism, WorkloadSpec};

/// Longest an environment may take to be built, the image already unpacked.
const BUILD_LIMIT: Duration = Duration::from_secs(20);
/// Rules that a receipt names one by one.
const TOLD_RULES: usize = 8;
/// Longest the dead may take to be gone.
const DEATH_LIMIT: Duration = Duration::from_secs(15);

/// Everything a grant has on this host besides its files. What is present must be taken down.
#[derive(Default)]
pub(super) struct Holdings {
    pub(super) groups: Groups,
    /// Host pid of the environment's first process.
    pub(super) init: Option<i32>,
    pub(super) control: Option<Control>,
    pub(super) ssh: Option<Listening>,
    pub(super) relay: Option<Listening>,
    pub(super) egress: Option<Egressing>,
    /// We are in a virtual machine, whose network is its grant's alone.
    pub(super) in_machine: bool,
    /// The way to tell a virtual machine's guest something.
    pub(super) orders: Option<Orders>,
}

/// A grant that is up.
pub(super) struct Up {
    pub(super) isolation: Isolation,
    pub(super) address: SocketAddr,
    pub(super) init: i32,
    /// Ends with the environment.
    pub(super) environment: JoinHandle<()>,
    pub(super) work: Work,
}

/// Who runs the workload.
pub(super) enum Work {
    /// We: in this environment, this, with these variables.
    Inside(Control, Workload, Vec<(String, String)>),
    /// The first process of a virtual machine.
    Machine(Running),
}

pub(super) fn limits(spec: &WorkloadSpec) -> Limits {
    Limits { cpu_millicores: spec.cpu_millicores, ram_mib: spec.ram_mib, pids_max: spec.pids_max }
}

fn network(spec: &WorkloadSpec, level: IsolationLevel, in_machine: bool) -> Network {
    match &spec.egress {
        Egress::Host if in_machine => Network::Kept(GUEST_RESOLVER),
        Egress::Rules(_) if level != IsolationLevel::ProcessLimits => Network::Tunnel,
        Egress::None | Egress::Host | Egress::Rules(_) => Network::Loopback,
    }
}

fn setup(spec: &WorkloadSpec, rootfs: PathBuf, isolation: &Isolation, groups: &Groups, in_machine: bool) -> Setup {
    let cpus = (isolation.cpu == Mechanism::Affinity)
        .then(|| affinity(&spec.grant_id, spec.cpu_millicores, &available_cpus()));
    Setup {
        level: isolation.level,
        grant_id: spec.grant_id.clone(),
        hostname: format!("grant-{}", &spec.grant_id[..8]),
        rootfs,
        ram_mib: spec.ram_mib,
        disk_mib: spec.disk_mib,
        pids_max: spec.pids_max,
        uid_base: isolation.uid_base,
        ram_by_rlimit: isolation.ram == Mechanism::Rlimit,
        pids_by_rlimit: isolation.pids == Mechanism::Rlimit,
        cpus,
        cgroup_namespace: groups.any(),
        no_network: isolation.level == IsolationLevel::ProcessLimits && spec.egress != Egress::Host,
        network: network(spec, isolation.level, in_machine),
        valid_to_unix_ms: spec.valid_to_unix_ms,
        machine: None,
    }
}

/// Makes the machine: image checked and unpacked, environment built, SSH up. On failure, `holdings` names what has to
/// be taken down.
pub(super) async fn bring_up(
    checked: &CheckedSpec,
    dir: &GrantDir,
    (traffic, output): (&Arc<Traffic>, &Arc<Output>),
    holdings: &mut Holdings,
) -> Result<Up> {
    let spec = &checked.spec;
    let abilities = Abilities::discover();
    let level = abilities.level();
    let enclosed = if spec.machine.is_some() { IsolationLevel::UserNamespaces } else { IsolationLevel::ProcessLimits };
    let offered = if spec.machine.is_some() && level >= enclosed { IsolationLevel::Machine } else { level };
    let minimum = spec.minimum_isolation.max(enclosed);
    if offered < minimum {
        return Err(RunnerError::IsolationTooWeak { offered, minimum });
    }
    let socket = TcpListener::bind(spec.ssh_listen)
        .await
        .map_err(|source| RunnerError::Listen { address: spec.ssh_listen, source })?;
    if let Some(machine) = &spec.machine {
        return super::machine::bring_up(checked, machine, dir, traffic, holdings, abilities, socket).await;
    }
    let mapped = describe(abilities, &Groups::default(), &spec.grant_id, spec.cpu_millicores).uid_base;
    let owner = match (level, mapped) {
        (IsolationLevel::RootNamespaces, base) => Owner::From(base.unwrap_or(0)),
        _ => Owner::Ourselves,
    };
    let config = unpack_image(checked, dir, owner).await?.config;
    holdings.groups = Groups::create(&Hierarchies::discover(), abilities.root, &spec.grant_id, limits(spec));
    serve(checked, dir, config, abilities, socket, (traffic, output), holdings).await
}

/// Builds the environment around an unpacked image and serves SSH into it.
pub(super) async fn serve(
    checked: &CheckedSpec,
    dir: &GrantDir,
    config: ImageConfig,
    abilities: Abilities,
    socket: TcpListener,
    (traffic, output): (&Arc<Traffic>, &Arc<Output>),
    holdings: &mut Holdings,
) -> Result<Up> {
    let spec = &checked.spec;
    let (mut isolation, built) = build_environment(spec, dir, abilities, traffic, holdings, None).await?;
    holdings.control = Some(built.control.clone());
    let mut env = config.env;
    env.extend(spec.env.clone());
    let env: Vec<(String, String)> = env.into_iter().collect();
    let environment = built.control.clone();
    let launcher = Arc::new(InsideLauncher { environment, env: env.clone(), output: output.clone() });
    let keys = ServerKeys { host: checked.host_key.clone(), authorized: vec![checked.authorized_key.clone()] };
    let ssh = listen(socket, keys, launcher, traffic.clone(), ServerLimits::GRANT)
        .map_err(|source| RunnerError::Listen { address: spec.ssh_listen, source })?;
    let address = ssh.address;
    holdings.ssh = Some(ssh);
    if let Some(user) = config.user.as_ref().filter(|_| isolation.level != IsolationLevel::RootNamespaces) {
        isolation.losses.push(format!("the image wants its workload to run as {user:?}; it runs as root inside"));
    }
    // Who asks for a command of their own gets that one, as they wrote it.
    let argv = if spec.command.is_empty() { config.command } else { spec.command.clone() };
    let workload = Workload { argv, workdir: config.workdir, user: config.user };
    let environment = watch_over(&built.control);
    Ok(Up { isolation, address, init: built.pid, environment, work: Work::Inside(built.control, workload, env) })
}

/// Hands out an environment's answers from now on; ends with the environment.
pub(super) fn watch_over(control: &Control) -> JoinHandle<()> {
    let control = control.clone();
    tokio::spawn(async move { control.run().await })
}

async fn unpack_image(checked: &CheckedSpec, dir: &GrantDir, owner: Owner) -> Result<Unpacked> {
    let (image, hash) = (image_path(&checked.spec, dir.path()), checked.image_hash);
    let (size, disk_mib, dir) = (checked.spec.image_size_bytes, checked.spec.disk_mib, dir.clone());
    let work = move || {
        let mut file = open_verified(&image, size, &hash)?;
        if let Some(kind) = find_bootable(&mut file, &image)? {
            return Err(RunnerError::ImageNeedsMachine { path: image, kind: kind.to_string() });
        }
        let rootfs = dir.create_rootfs()?;
        unpack(file, &image, &rootfs, disk_mib, owner)
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| RunnerError::Environment(format!("unpacking: {e}")))?
}

/// What boots in an image; none when it is an archive.
pub(super) fn find_bootable(image: &mut ImageFile, path: &Path) -> Result<Option<Bootable>> {
    let wrong = |e: BootableError| RunnerError::ImageUnbootable { path: path.into(), problem: e.to_string() };
    let found = bootable::find(&mut image.file, image.size).map_err(wrong)?;
    image.file.rewind().map_err(|e| RunnerError::io(format!("cannot read image {}", path.display()), e))?;
    Ok(found)
}

/// Builds the environment of a workload, or of a virtual machine when it is to see something of the host.
pub(super) async fn build_environment(
    spec: &WorkloadSpec,
    dir: &GrantDir,
    abilities: Abilities,
    traffic: &Arc<Traffic>,
    holdings: &mut Holdings,
    machine: Option<MachineView>,
) -> Result<(Isolation, crate::isolate::control::Built)> {
    let Holdings { groups, init, in_machine, .. } = holdings;
    let mut chosen = None;
    let enclose = |pid: i32| {
        if groups.add(pid).is_err() {
            // Groups that refuse our process limit nothing; better to say so than to keep them.
            groups.remove();
            *groups = Groups::default();
        }
        let isolation = describe(abilities, groups, &spec.grant_id, spec.cpu_millicores);
        let workload = setup(spec, dir.rootfs(), &isolation, groups, *in_machine);
        // A machine's memory is its size, mapped whole: a limit of mappings would only keep it from starting.
        let setup = Setup { ram_by_rlimit: workload.ram_by_rlimit && machine.is_none(), machine, ..workload };
        chosen = Some(isolation);
        setup
    };
    let mut built = tokio::time::timeout(BUILD_LIMIT, build(enclose, init))
        .await
        .map_err(|_| RunnerError::Environment(format!("not built within {} s", BUILD_LIMIT.as_secs())))??;
    let mut isolation = chosen.ok_or_else(|| RunnerError::Environment("no isolation was chosen".into()))?;
    // First, because texts that hold all of this are cut at their end.
    isolation.losses.splice(..0, opened(spec, isolation.level, built.tunnel.is_some()));
    if let (Some(tunnel), Egress::Rules(rules)) = (built.tunnel.take(), &spec.egress) {
        let egress = Egressing::start(tunnel, rules.clone(), Arc::clone(traffic));
        holdings.egress = Some(egress.map_err(|e| RunnerError::io("cannot serve the grant's egress", e))?);
    }
    isolation.losses.extend(built.losses.iter().cloned());
    Ok((isolation, built))
}

/// What of a network is open to the workload, in words.
fn opened(spec: &WorkloadSpec, level: IsolationLevel, tunnel: bool) -> Option<String> {
    match &spec.egress {
        Egress::Host if level == IsolationLevel::ProcessLimits => Some(
            "the workload may use the host's network: the host's own services, neighbours, a cloud's metadata"
                .to_owned(),
        ),
        Egress::Rules(_) if level == IsolationLevel::ProcessLimits => Some(
            "the rules of egress open nothing, because the workload has no network of its own to enforce them on"
                .to_owned(),
        ),
        Egress::Rules(rules) if tunnel => {
            let (named, rest) = rules.split_at(rules.len().min(TOLD_RULES));
            let mut names: Vec<String> = named.iter().map(ToString::to_string).collect();
            names.extend((!rest.is_empty()).then(|| format!("{} more", rest.len())));
            Some(format!("the workload may connect to {}", names.join(", ")))
        }
        Egress::None | Egress::Host | Egress::Rules(_) => None,
    }
}

impl Holdings {
    /// Closes SSH and kills every process; returns when they are gone. Counters can still be read afterwards.
    pub(super) async fn kill(&mut self, grant_id: &str) -> Result<()> {
        if let Some(ssh) = self.ssh.take() {
            ssh.shutdown().await;
        }
        if let Some(relay) = self.relay.take() {
            relay.shutdown().await;
        }
        self.control = None;
        self.orders = None;
        let egress = self.egress.take();
        let (init, groups, grant_id) = (self.init.take(), self.groups.clone(), grant_id.to_owned());
        let work = move || {
            egress.into_iter().for_each(Egressing::shutdown);
            kill_all(init, &groups, &grant_id)
        };
        tokio::task::spawn_blocking(work).await.map_err(|e| RunnerError::Environment(format!("killing: {e}")))?
    }

    /// Removes what only empty environments can lose.
    pub(super) fn release(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            let left = self.groups.remove();
            if left.is_empty() {
                self.groups = Groups::default();
                return Ok(());
            }
            if started.elapsed() > DEATH_LIMIT {
                return Err(RunnerError::WillNotDie { count: left.len(), waited_ms: 15_000 });
            }
            // The kernel lets go of a group a moment after its last process is reaped.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Kills everything that belongs to a grant and waits until it is gone: the first process (with a pid namespace, the
/// kernel ends the rest), members of its cgroups, and whatever carries its mark.
pub(super) fn kill_all(init: Option<i32>, groups: &Groups, grant_id: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let mut victims = groups.pids();
        victims.extend(init.filter(|pid| proc::stat(*pid).is_some_and(|s| !matches!(s.state, 'Z' | 'X'))));
        victims.extend(proc::with_environment(GRANT_VARIABLE, grant_id));
        victims.sort_unstable();
        victims.dedup();
        for pid in &victims {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        // Those that were our children, or came to us as orphans, are ours to bury.
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(s) if s != WaitStatus::StillAlive) {}
        let dead = |pid| proc::look(pid).is_ok_and(|found| found.is_none_or(|s| matches!(s.state, 'Z' | 'X')));
        let gone = init.is_none_or(dead);
        if victims.is_empty() && gone {
            return Ok(());
        }
        if started.elapsed() > DEATH_LIMIT {
            let waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            return Err(RunnerError::WillNotDie { count: victims.len(), waited_ms });
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Removes the unpacked root file system.
pub(super) fn remove_rootfs(dir: &GrantDir) -> Result<()> {
    remove_tree(&dir.rootfs()).map_err(|e| RunnerError::io(format!("cannot remove {}", dir.rootfs().display()), e))
}
