//! Machines of the operator's own, over SSH: one backend, one offer, per machine.
//!
//! The machine needs an SSH server with SFTP and nothing else. The bridge puts its own program there once per version and
//! calls it as `runner`; the runner isolates, limits, meters and, at the grant's deadline, ends the workload by itself, so a
//! dead bridge leaves nothing running. What the bridge cannot see it does not sell, and it never takes its own blindness
//! for the end of a grant.

mod lasting;
mod owned;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use coalition_compute::{
    Capabilities, ComputeGrant, DeclaredRates, MIN_CPU_MILLICORES, MIN_RAM_MIB, OfferName, Region,
};
use coalition_host::types::{
    CleanReport, Egress, FORMAT_VERSION, IsolationLevel, MachineSpec, Phase, ProbeReport, RunnerState, WorkloadSpec,
};

use zeroize::Zeroizing;

use super::runner::{
    Runner, RunnerCallError, SMALL, StartError, exit_of, isolation_text, join, kind_of, metrics, offered_text,
    own_program,
};
use crate::backend::{
    Backend, BackendError, Exit, FailureKind, InstanceName, MoveError, Offering, Order, OwnedInstance,
    ProvisionedInstance, Unfit, UsageSeen,
};
use crate::fleet::chain;
use crate::platform::Platform;
use crate::ssh::{SshHost, SshTarget, quote};

/// Wait for a probe: it makes and removes namespaces and cgroups, where systemd runs in a unit of its own.
const PROBE: Duration = Duration::from_secs(60);
/// Wait for `runner stop` and `runner clean`; stopping waits up to 20 s for the supervisor and 5 s for the kernel.
const STOP: Duration = Duration::from_secs(60);
/// Images kept on the machine after use.
const KEEP_IMAGES: usize = 16;

/// How workloads are run on a host, whoever it belongs to.
#[derive(Clone, Debug)]
pub struct HostSetup {
    /// Directory on the host, relative to the login's home.
    pub dir: String,
    /// Name of this bridge's directory below it; from the provider id.
    pub owner: String,
    /// The weakest isolation sold.
    pub minimum_isolation: IsolationLevel,
    /// Where workloads may connect to.
    pub egress: Egress,
    /// Most that one workload sends and receives, millions of bits a second.
    pub network_mbit: Option<u32>,
    /// Processes and threads of one workload.
    pub pids_max: u32,
    /// The program to install; this process's own when absent.
    pub program: Option<PathBuf>,
    /// Wait for one transfer of an image.
    pub image_timeout: Duration,
    /// Wait from start to SSH.
    pub start_timeout: Duration,
    /// Pause between two looks at a running workload.
    pub watch_interval: Duration,
    /// Runs every workload in a virtual machine made so.
    pub machine: Option<MachineSpec>,
}

/// What a bare-metal backend is made of.
#[derive(Clone, Debug)]
pub struct BareMetalSetup {
    /// Name of the offer.
    pub name: OfferName,
    /// How to reach the machine.
    pub target: SshTarget,
    /// Where it stands.
    pub region: Region,
    /// CPU sold, thousandths of a core.
    pub cpu_millicores: u32,
    /// Memory sold, MiB.
    pub ram_mib: u32,
    /// Workloads at once.
    pub max_instances: u32,
    /// What it charges.
    pub rates: DeclaredRates,
    /// Address requesters reach workloads at.
    pub public_host: String,
    /// Address workloads' SSH servers listen on; all when absent.
    pub listen: Option<IpAddr>,
    /// How its workloads are run.
    pub host: HostSetup,
    /// The guest its workloads count as running in; none on a plain host.
    pub guest: Option<Platform>,
}

/// Capacity one instance takes of the machine.
#[derive(Clone, Copy)]
struct Taken {
    cpu_millicores: u32,
    ram_mib: u32,
    /// Reserved by the market on another offer, so that the market does not know it is here.
    unknown_to_market: bool,
}

/// One machine.
pub struct BareMetalBackend {
    setup: BareMetalSetup,
    ssh: SshHost,
    runner: Runner,
    ledger: Mutex<BTreeMap<InstanceName, Taken>>,
    trouble: Mutex<Option<String>>,
    /// Uploads of one image wait for each other; starts hold it shared so that pruning waits for them.
    images: tokio::sync::RwLock<()>,
    upload: tokio::sync::Mutex<()>,
}

impl BareMetalBackend {
    /// A backend for one machine; nothing is contacted yet.
    #[must_use]
    pub fn new(setup: BareMetalSetup) -> Self {
        let program = setup.host.program.clone().unwrap_or_else(own_program);
        Self {
            ssh: SshHost::new(setup.target.clone()),
            runner: Runner::new(program, &setup.host.dir, &setup.host.owner),
            setup,
            ledger: Mutex::default(),
            trouble: Mutex::default(),
            images: tokio::sync::RwLock::default(),
            upload: tokio::sync::Mutex::default(),
        }
    }

    /// Asks the machine what it offers; installs the runner when it is not there.
    ///
    /// # Errors
    /// [`BackendError`] saying what stands in the way.
    pub async fn probe(&self) -> Result<ProbeReport, BackendError> {
        let asked = async {
            let paths = self.runner.paths(&self.ssh).await?;
            let machine = self.setup.host.machine.as_ref();
            let machine = machine.map(|m| serde_json::to_string(m).expect("plain data always serialises to memory"));
            let args = [("--dir", paths.grants.as_str())];
            let args: Vec<_> = args.into_iter().chain(machine.iter().map(|m| ("--machine", m.as_str()))).collect();
            self.runner.call(&self.ssh, "probe", &args, PROBE, true).await
        };
        asked.await.map_err(|error| self.failed(&error, false))
    }

    /// Logs in, if there is no connection yet.
    ///
    /// # Errors
    /// [`BackendError`]; of kind auth when it shows another host key, or lets nobody in.
    pub async fn connect(&self) -> Result<(), BackendError> {
        self.ssh.connect().await.map_err(|error| self.failed(&error.into(), false))
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, BTreeMap<InstanceName, Taken>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn failed(&self, error: &RunnerCallError, started: bool) -> BackendError {
        let error = self.error(kind_of(error), chain(error), started);
        self.note(Some(error.message.clone()));
        error
    }

    fn error(&self, kind: FailureKind, message: String, started: bool) -> BackendError {
        BackendError { backend: self.setup.name.clone(), kind, message, started, remains: started, source: None }
    }

    /// Books the instance's capacity, or says that there is none. The market's own reservations always fit; grants that
    /// were reserved on another machine may not.
    fn book(&self, grant: &ComputeGrant, name: &InstanceName) -> Result<(), BackendError> {
        let mut ledger = self.ledger();
        let sum = |field: fn(&Taken) -> u32| ledger.values().map(|taken| u64::from(field(taken))).sum::<u64>();
        let (cpu, ram) = (sum(|taken| taken.cpu_millicores), sum(|taken| taken.ram_mib));
        let fits = cpu + u64::from(grant.cpu_millicores) <= u64::from(self.setup.cpu_millicores)
            && ram + u64::from(grant.ram_mib) <= u64::from(self.setup.ram_mib)
            && ledger.len() < self.setup.max_instances as usize;
        if !fits {
            let running = ledger.len();
            drop(ledger);
            let message = format!(
                "{running} instances hold {cpu} of {} mCPU and {ram} of {} MiB; {} mCPU and {} MiB do not fit",
                self.setup.cpu_millicores, self.setup.ram_mib, grant.cpu_millicores, grant.ram_mib
            );
            return Err(self.error(FailureKind::Capacity, message, false));
        }
        ledger.insert(name.clone(), self.taken(grant));
        Ok(())
    }

    fn taken(&self, grant: &ComputeGrant) -> Taken {
        Taken {
            cpu_millicores: grant.cpu_millicores,
            ram_mib: grant.ram_mib,
            unknown_to_market: grant.offer != self.setup.name,
        }
    }

    async fn put_image(&self, order: Order<'_>, images: &str) -> Result<String, RunnerCallError> {
        let path = image_path(images, order);
        let _one_at_a_time = self.upload.lock().await;
        if self.ssh.size_of(&path, SMALL).await? == Some(order.image.size_bytes) {
            return Ok(path);
        }
        let sent = self.ssh.upload(&order.image.path, &path, 0o600, self.setup.host.image_timeout).await?;
        if sent.hash.as_bytes() != order.image.hash.as_bytes() {
            self.ssh.remove_file(&path, SMALL).await?;
            return Err(RunnerCallError::Ssh(crate::ssh::SshError::Hash {
                host: self.ssh.target().label(),
                path,
                expected: order.image.hash.to_string(),
                actual: sent.hash.to_hex().to_string(),
            }));
        }
        Ok(path)
    }

    fn spec(&self, name: &InstanceName, order: Order<'_>, image: String) -> WorkloadSpec {
        let listen = self.setup.listen.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        WorkloadSpec {
            version: FORMAT_VERSION,
            grant_id: name.as_str().to_owned(),
            image: image.into(),
            image_blake3: order.image.hash.to_string(),
            image_size_bytes: order.image.size_bytes,
            cpu_millicores: order.grant.cpu_millicores,
            ram_mib: u64::from(order.grant.ram_mib),
            disk_mib: u64::from(order.workload.disk_mib),
            pids_max: self.setup.host.pids_max,
            valid_to_unix_ms: order.grant.valid_to_ms,
            ssh_listen: SocketAddr::new(listen, 0),
            ssh_host_key: order.keys.host_private.clone(),
            ssh_authorized_key: order.keys.login_public.clone(),
            command: order.workload.command.clone(),
            env: order.workload.env.iter().cloned().collect(),
            minimum_isolation: self.setup.host.minimum_isolation,
            egress: self.setup.host.egress.clone(),
            network_mbit: self.setup.host.network_mbit,
            machine: self.setup.host.machine.clone(),
        }
    }

    /// Puts image and spec on the machine; answers the grant's directory there. Nothing runs yet.
    async fn put_grant(&self, name: &InstanceName, order: Order<'_>) -> Result<String, RunnerCallError> {
        let paths = self.runner.paths(&self.ssh).await?;
        let image = self.put_image(order, &paths.images).await?;
        self.ssh.make_dirs(&paths.grants, name.as_str(), SMALL).await?;
        let dir = join(&paths.grants, name.as_str());
        let spec = serde_json::to_vec(&self.spec(name, order, image)).expect("plain data always serialises to memory");
        self.ssh.write_file(&join(&dir, "spec.json"), &Zeroizing::new(spec), SMALL).await?;
        Ok(dir)
    }

    async fn start_once(&self, name: &InstanceName, order: Order<'_>) -> Result<RunnerState, StartError> {
        let _images_stay = self.images.read().await;
        let dir = self.put_grant(name, order).await.map_err(StartError::Before)?;
        let started =
            self.runner.call(&self.ssh, "start", &[("--dir", &dir)], self.setup.host.start_timeout, false).await;
        started.map_err(StartError::from_call)
    }

    async fn start(&self, name: &InstanceName, order: Order<'_>) -> Result<ProvisionedInstance, BackendError> {
        let mut started = self.start_once(name, order).await;
        if matches!(started, Err(StartError::Image(_))) {
            // The copy on the machine went bad after it was checked here; it is sent once more.
            tracing::warn!(backend = %self.setup.name, "the machine's copy of an image is damaged; sending it again");
            let again = async {
                let paths = self.runner.paths(&self.ssh).await?;
                let path = image_path(&paths.images, order);
                self.ssh.remove_file(&path, SMALL).await?;
                self.remove(name).await
            };
            again.await.map_err(|error| self.failed(&error, false))?;
            started = self.start_once(name, order).await;
        }
        let state = started.map_err(|error| match error {
            StartError::Before(error) | StartError::Image(error) => self.failed(&error, false),
            StartError::Started(error) => self.failed(&error, true),
        })?;
        let Phase::Ready { port, isolation, .. } = state.phase else {
            let problem = format!("the workload did not become ready: {:?}", state.phase);
            return Err(self.error(FailureKind::Fatal, problem, true));
        };
        self.note(None);
        Ok(ProvisionedInstance {
            backend: self.setup.name.clone(),
            name: name.clone(),
            host: self.setup.public_host.clone(),
            port,
            user: "root".into(),
            isolation: isolation.level,
            isolation_text: isolation_text(&isolation),
        })
    }

    /// Removes images beyond the newest few; failures only cost room.
    async fn prune_images(&self) {
        let Ok(_alone) = self.images.try_write() else { return };
        let Ok(paths) = self.runner.paths(&self.ssh).await else { return };
        let Ok(mut files) = self.ssh.list_files(&paths.images, SMALL).await else { return };
        files.sort_by_key(|(_, _, changed)| std::cmp::Reverse(*changed));
        for (name, _, _) in files.into_iter().skip(KEEP_IMAGES) {
            let _ = self.ssh.remove_file(&join(&paths.images, &name), SMALL).await;
        }
    }

    async fn status(&self, name: &InstanceName) -> Result<RunnerState, RunnerCallError> {
        let paths = self.runner.paths(&self.ssh).await?;
        let dir = join(&paths.grants, name.as_str());
        self.runner.call(&self.ssh, "status", &[("--dir", &dir)], SMALL, true).await
    }

    async fn halt(&self, name: &InstanceName) -> Result<Option<Exit>, RunnerCallError> {
        let Some(dir) = self.dir_of(name).await? else { return Ok(None) };
        let stopped: Result<RunnerState, _> = self.runner.call(&self.ssh, "stop", &[("--dir", &dir)], STOP, true).await;
        match stopped {
            Ok(state) => Ok(exit_of(&state.phase)),
            Err(RunnerCallError::Refused(failure)) if failure.code == "no_grant" => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The instance's directory, if there is one.
    async fn dir_of(&self, name: &InstanceName) -> Result<Option<String>, RunnerCallError> {
        let paths = self.runner.paths(&self.ssh).await?;
        let dir = join(&paths.grants, name.as_str());
        Ok(self.ssh.size_of(&dir, SMALL).await?.map(|_| dir))
    }

    async fn remove(&self, name: &InstanceName) -> Result<(), RunnerCallError> {
        let paths = self.runner.paths(&self.ssh).await?;
        // Also where it is not there any more: a unit of systemd's may have outlived it.
        let dir = join(&paths.grants, name.as_str());
        let cleaned: Result<CleanReport, _> =
            self.runner.call(&self.ssh, "clean", &[("--dir", &dir)], STOP, true).await;
        match cleaned {
            Ok(_) => {}
            // A directory in which nothing was ever started: the path is ours and ends in 32 hex digits.
            Err(RunnerCallError::Refused(failure)) if failure.code == "no_grant" => {
                self.ssh
                    .exec_again("removing an unused directory", &format!("rm -rf -- {}", quote(&dir)), STOP)
                    .await?;
            }
            Err(error) => return Err(error),
        }
        match self.dir_of(name).await? {
            None => Ok(()),
            Some(dir) => {
                Err(RunnerCallError::Missing { status: 0, detail: format!("{dir} is still there after cleaning") })
            }
        }
    }

    fn offered(&self, probe: &ProbeReport) -> (Capabilities, String) {
        let unknown: Vec<Taken> = self.ledger().values().filter(|taken| taken.unknown_to_market).copied().collect();
        let less = |total: u32, field: fn(&Taken) -> u32| {
            unknown.iter().fold(total, |left, taken| left.saturating_sub(field(taken)))
        };
        let mut capabilities = self.nothing();
        let machines = match self.machines_that_fit(probe) {
            Ok(fit) => fit,
            Err(problem) => return (capabilities, problem),
        };
        let mut detail = offered_text(probe);
        if let (Some(_), Some(problem)) = (self.setup.host.egress.rules(), &probe.egress_problem) {
            detail = format!("egress rules open nothing here ({problem}); {detail}");
        }
        if self.level(probe) < self.setup.host.minimum_isolation {
            let (offers, wants) = (self.level(probe), self.setup.host.minimum_isolation);
            return (
                capabilities,
                format!("the machine isolates only by \"{offers}\", the boot file asks for \"{wants}\""),
            );
        }
        let own_clock = crate::now_ms();
        let skew_ms = own_clock.abs_diff(probe.clock_unix_ms);
        if skew_ms > 60_000 {
            let problem = format!(
                "the machine's clock is {} s off ours; grants would end at the wrong time (use NTP on both)",
                skew_ms / 1_000
            );
            return (capabilities, problem);
        }
        if probe.cpu_millicores < self.setup.cpu_millicores || probe.ram_mib < u64::from(self.setup.ram_mib) {
            detail = format!(
                "{detail}; more is sold than the machine has ({} of {} mCPU, {} of {} MiB)",
                self.setup.cpu_millicores, probe.cpu_millicores, self.setup.ram_mib, probe.ram_mib
            );
        }
        capabilities.max_cpu_millicores = less(self.setup.cpu_millicores, |taken| taken.cpu_millicores);
        capabilities.max_ram_mib = less(self.setup.ram_mib, |taken| taken.ram_mib);
        capabilities.max_instances = less(self.setup.max_instances.min(machines), |_| 1);
        (capabilities, detail)
    }

    /// What workloads run in here.
    fn level(&self, probe: &ProbeReport) -> IsolationLevel {
        if self.setup.host.machine.is_some() { IsolationLevel::Machine } else { probe.isolation.level }
    }

    /// How many virtual machines fit beside the memory sold, where there are any; or why none do.
    fn machines_that_fit(&self, probe: &ProbeReport) -> Result<u32, String> {
        let Some(machine) = &self.setup.host.machine else { return Ok(u32::MAX) };
        let missing = probe.machine.as_ref().map_or(&[][..], |found| &found.missing[..]);
        if !missing.is_empty() {
            return Err(format!("virtual machines cannot be run: {}", missing.join("; ")));
        }
        if probe.isolation.level < IsolationLevel::UserNamespaces {
            return Err("virtual machines need at least user namespaces around them, which this machine lacks".into());
        }
        let left = probe.ram_mib.saturating_sub(u64::from(self.setup.ram_mib));
        let fit = u32::try_from(left / machine.overhead_mib.max(1)).unwrap_or(u32::MAX);
        if fit > 0 {
            return Ok(fit);
        }
        Err(format!(
            "{} of {} MiB are sold, and a virtual machine takes {} MiB more than its workload; sell less",
            self.setup.ram_mib, probe.ram_mib, machine.overhead_mib
        ))
    }

    fn nothing(&self) -> Capabilities {
        Capabilities {
            regions: vec![self.setup.region.clone()],
            tdx_capable: self.setup.guest.is_some(),
            mrtds: self.setup.guest.as_ref().and_then(Platform::claimed_mrtd).into_iter().collect(),
            max_cpu_millicores: 0,
            max_ram_mib: 0,
            max_instances: 0,
            instance_cpu_millicores: self.setup.cpu_millicores,
            instance_ram_mib: self.setup.ram_mib,
        }
    }
}

#[async_trait]
impl Backend for BareMetalBackend {
    fn name(&self) -> &OfferName {
        &self.setup.name
    }

    fn rates(&self) -> DeclaredRates {
        self.setup.rates
    }

    async fn capabilities(&self) -> Offering {
        let rates = self.setup.rates;
        match self.probe().await {
            Ok(probe) => {
                self.note(None);
                let (capabilities, detail) = self.offered(&probe);
                Offering { capabilities, rates, isolation: Some(self.level(&probe)), detail, reachable: true }
            }
            Err(error) => {
                let capabilities = self.nothing();
                Offering { capabilities, rates, isolation: None, detail: error.message, reachable: false }
            }
        }
    }

    fn can_satisfy(&self, grant: &ComputeGrant) -> Result<(), Unfit> {
        if grant.region != self.setup.region {
            return Err(Unfit::Region { serves: self.setup.region.to_string(), wanted: grant.region.to_string() });
        }
        match (&self.setup.guest, grant.expected_mrtd) {
            (None, _) if grant.tdx_required => return Err(Unfit::Tdx),
            (Some(guest), Some(wanted)) if guest.claimed_mrtd() != Some(wanted) => return Err(Unfit::Mrtd { wanted }),
            _ => {}
        }
        if grant.cpu_millicores < MIN_CPU_MILLICORES || grant.ram_mib < MIN_RAM_MIB {
            return Err(Unfit::TooSmall { cpu_millicores: grant.cpu_millicores, ram_mib: grant.ram_mib });
        }
        if grant.cpu_millicores > self.setup.cpu_millicores || grant.ram_mib > self.setup.ram_mib {
            let size = |cpu: u32, ram: u32| format!("{cpu} mCPU and {ram} MiB");
            let wanted = size(grant.cpu_millicores, grant.ram_mib);
            return Err(Unfit::Size { wanted, most: size(self.setup.cpu_millicores, self.setup.ram_mib) });
        }
        Ok(())
    }

    fn guest(&self) -> Option<Platform> {
        self.setup.guest.clone()
    }

    async fn provision(&self, name: &InstanceName, order: Order<'_>) -> Result<ProvisionedInstance, BackendError> {
        self.book(order.grant, name)?;
        let started = self.start(name, order).await;
        match &started {
            Ok(_) => self.prune_images().await,
            Err(error) if !error.started => {
                self.ledger().remove(name);
            }
            Err(_) => {}
        }
        started
    }

    async fn watch_until_exit(
        &self,
        instance: &ProvisionedInstance,
        _valid_to_ms: u64,
        seen: &UsageSeen<'_>,
    ) -> Result<Exit, BackendError> {
        let mut blind_since = None;
        loop {
            match self.status(&instance.name).await {
                Ok(state) => {
                    if blind_since.take().is_some() {
                        self.note(None);
                    }
                    if let Some(exit) = exit_of(&state.phase) {
                        return Ok(exit);
                    }
                    if let Some(usage) = &state.usage_so_far {
                        seen(metrics(usage));
                    }
                }
                Err(RunnerCallError::Refused(failure)) if failure.code == "no_grant" => {
                    let message =
                        format!("the machine knows nothing of instance {} any more ({failure})", instance.name);
                    return Err(self.error(FailureKind::NotFound, message, true));
                }
                Err(error) => {
                    let since = *blind_since.get_or_insert_with(std::time::Instant::now);
                    self.note(Some(format!("not visible for {} s: {}", since.elapsed().as_secs(), chain(&error))));
                }
            }
            tokio::time::sleep(self.setup.host.watch_interval).await;
        }
    }

    async fn move_end(&self, name: &InstanceName, valid_to_ms: u64) -> Result<(), MoveError> {
        self.move_deadline(name, valid_to_ms).await
    }

    async fn stop(&self, name: &InstanceName) -> Result<Option<Exit>, BackendError> {
        let exit = self.halt(name).await.map_err(|error| self.failed(&error, true))?;
        // What is left of it is files; its CPU and memory can be sold again.
        self.ledger().remove(name);
        Ok(exit)
    }

    async fn terminate(&self, name: &InstanceName) -> Result<(), BackendError> {
        self.remove(name).await.map_err(|error| self.failed(&error, true))?;
        self.ledger().remove(name);
        Ok(())
    }

    async fn list_owned(&self) -> Result<Vec<OwnedInstance>, BackendError> {
        self.owned().await
    }

    fn load(&self) -> u32 {
        u32::try_from(self.ledger().len()).unwrap_or(u32::MAX)
    }

    fn adopt(&self, grant: &ComputeGrant, name: &InstanceName) {
        let taken = self.taken(grant);
        self.ledger().insert(name.clone(), taken);
    }

    async fn close(&self) {
        self.ssh.disconnect().await;
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn image_path(images: &str, order: Order<'_>) -> String {
    join(images, &format!("{}.image", order.image.hash))
}
