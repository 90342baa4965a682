//! AWS EC2: one instance per grant, in one region, one offer.
//!
//! EC2 only gives the host. It comes up with a host key and a login made for it ([`super::machine_keys`],
//! [`super::cloud_init`]); from then on it is a machine like the operator's own, and [`BareMetalBackend`] does the rest.
//! EC2's API is asked what exists, and believed when it answers; that it does not answer says nothing about instances.

mod check;
mod launch;
pub mod ledger;
mod sight;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coalition::{ProviderId, UniqueId};
use coalition_aws::{AwsError, Ec2, EndpointError, ErrorKind, InstanceId, InstanceState};
use coalition_compute::{
    Capabilities, ComputeGrant, DeclaredRates, LogEnd, MIN_CPU_MILLICORES, MIN_RAM_MIB, OfferName, Region, UsageMetrics,
};
use coalition_host::types::IsolationLevel;

use self::launch::Wanted;
use self::ledger::{Ledger, Limits, Size, choose, is_foreign};
pub use self::sight::Absence;
use self::sight::Listing;
use super::machine_keys::MachineKeys;
use super::{BareMetalBackend, BareMetalSetup};
use crate::backend::{
    Backend, BackendError, Exit, FailureKind, InstanceName, Offering, Order, OwnedInstance, ProvisionedInstance, Unfit,
    UsageSeen,
};
use crate::check::Finding;
use crate::fleet::chain;
use crate::ssh::{LoginKey, SshTarget};

/// Tags on everything that is made.
pub mod tag {
    /// The provider id. Least-privilege policies name it.
    pub const BRIDGE: &str = "coalition:bridge";
    /// The coalition's fingerprint.
    pub const COALITION: &str = "coalition:coalition";
    /// The grant, as public in the market's log.
    pub const GRANT: &str = "coalition:grant";
    /// The instance's name in the bridge's journal.
    pub const INSTANCE: &str = "coalition:instance";
    /// The offer it was sold as.
    pub const OFFER: &str = "coalition:offer";
    /// When it switches itself off, Unix seconds.
    pub const UNTIL: &str = "coalition:until";
}

/// How long what the region and the account have is believed.
const FACTS_AGE: Duration = Duration::from_secs(600);
/// How long EC2 is asked to confirm an end, beyond the time in which it may not show what it has made.
const CONFIRM: Duration = Duration::from_secs(30);
/// How long a host that is to be stopped may be unreachable before EC2 is told to end it without its last usage.
const UNREACHABLE: Duration = Duration::from_secs(60);

/// What a backend on EC2 is made of.
#[derive(Clone)]
pub struct Ec2Setup {
    /// Name of the offer.
    pub name: OfferName,
    /// The API and the credentials.
    pub aws: coalition_aws::Setup,
    /// The region as the market calls it.
    pub region: Region,
    /// The image hosts are made of.
    pub image: String,
    /// Subnets, tried in this order when there is no room.
    pub subnets: Vec<String>,
    /// Security groups of every host.
    pub security_groups: Vec<String>,
    /// What is sold.
    pub sizes: Vec<Size>,
    /// Instances at once.
    pub max_instances: u32,
    /// Disk beside what image and workload need, GiB.
    pub root_gib: u32,
    /// Which of the account's quotas counts.
    pub quota_code: String,
    /// What it charges.
    pub rates: DeclaredRates,
    /// Hosts are reached inside their network, and get no address on the internet.
    pub private_addresses: bool,
    /// Port of the hosts' SSH servers.
    pub ssh_port: u16,
    /// Makes the hosts' keys.
    pub keys: MachineKeys,
    /// This bridge.
    pub provider: ProviderId,
    /// The coalition it serves.
    pub coalition: UniqueId,
    /// Directory on the hosts.
    pub dir: String,
    /// Name of this bridge's directory below it.
    pub owner: String,
    /// The weakest isolation sold.
    pub minimum_isolation: IsolationLevel,
    /// Processes and threads of one workload.
    pub pids_max: u32,
    /// The program to install on hosts; this process's own when absent.
    pub program: Option<PathBuf>,
    /// Wait for one transfer of an image.
    pub image_timeout: Duration,
    /// Wait from the workload's start to its SSH server.
    pub start_timeout: Duration,
    /// Pause between two looks at a running workload, or at a host that comes up.
    pub watch_interval: Duration,
    /// Wait from asking for a host to logging in.
    pub boot_timeout: Duration,
    /// How long after its grant's end a host switches itself off.
    pub poweroff_after: Duration,
    /// Pause between two listings of all instances.
    pub look: Duration,
    /// How long EC2 may not show an instance that was just made.
    pub settle: Duration,
}

/// What the region and the account have.
#[derive(Clone, Debug)]
struct Facts {
    at: Instant,
    root_device: String,
    root_gib: u32,
    quota_vcpus: Option<u32>,
    quota_text: String,
}

/// A request for an instance that was, or may have been, granted.
#[derive(Clone, Debug)]
struct Launched {
    at: Instant,
    /// Its id, when the answer arrived.
    id: Option<InstanceId>,
}

/// One region of one account.
pub struct Ec2Backend {
    setup: Ec2Setup,
    ec2: Ec2,
    ledger: Mutex<Ledger>,
    machines: Mutex<BTreeMap<InstanceName, Arc<BareMetalBackend>>>,
    launches: Mutex<BTreeMap<InstanceName, Launched>>,
    stop_fails: Mutex<BTreeMap<InstanceName, Instant>>,
    listing: tokio::sync::Mutex<Option<Arc<Listing>>>,
    facts: tokio::sync::Mutex<Option<Facts>>,
    quota: Mutex<Option<u32>>,
    trouble: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The client's taxonomy is the backends'.
const fn failure_kind(kind: ErrorKind) -> FailureKind {
    match kind {
        ErrorKind::Capacity => FailureKind::Capacity,
        ErrorKind::Quota => FailureKind::Quota,
        ErrorKind::Throttled => FailureKind::Throttled,
        ErrorKind::Auth => FailureKind::Auth,
        ErrorKind::NotFound => FailureKind::NotFound,
        ErrorKind::Conflict => FailureKind::Conflict,
        ErrorKind::Transient => FailureKind::Transient,
        ErrorKind::Fatal => FailureKind::Fatal,
    }
}

impl Ec2Backend {
    /// A backend; nothing is contacted yet.
    ///
    /// # Errors
    /// [`EndpointError`] when the region or the endpoint cannot be used.
    pub fn new(setup: Ec2Setup) -> Result<Self, EndpointError> {
        Ok(Self {
            ec2: Ec2::new(setup.aws.clone())?,
            setup,
            ledger: Mutex::default(),
            machines: Mutex::default(),
            launches: Mutex::default(),
            stop_fails: Mutex::default(),
            listing: tokio::sync::Mutex::default(),
            facts: tokio::sync::Mutex::default(),
            quota: Mutex::default(),
            trouble: Mutex::default(),
        })
    }

    fn note(&self, trouble: Option<String>) {
        *lock(&self.trouble) = trouble;
    }

    fn error(&self, kind: FailureKind, message: String) -> BackendError {
        BackendError { backend: self.setup.name.clone(), kind, message, started: false, remains: false, source: None }
    }

    fn failed(&self, error: &AwsError) -> BackendError {
        let message = chain(error);
        self.note(Some(message.clone()));
        self.error(failure_kind(error.kind()), message)
    }

    fn remember(&self, name: &InstanceName, launched: Launched) {
        lock(&self.launches).insert(name.clone(), launched);
    }

    fn launched(&self, name: &InstanceName) -> Option<Launched> {
        lock(&self.launches).get(name).cloned()
    }

    fn limits(&self) -> Limits {
        Limits { max_instances: self.setup.max_instances, quota_vcpus: *lock(&self.quota) }
    }

    /// What the region and the account have, asked when it is too old. The quota may be unknown, the image may not.
    async fn facts(&self) -> Result<Facts, BackendError> {
        let mut kept = self.facts.lock().await;
        if let Some(facts) = kept.as_ref().filter(|facts| facts.at.elapsed() < FACTS_AGE) {
            return Ok(facts.clone());
        }
        let image = self.ec2.image(&self.setup.image).await.map_err(|error| self.failed(&error))?;
        let (id, region) = (&self.setup.image, self.ec2.region());
        let image = image.ok_or_else(|| self.error(FailureKind::NotFound, format!("{region} has no image {id}")))?;
        if image.state != "available" {
            return Err(self.error(FailureKind::Fatal, format!("the image {id} is {}", image.state)));
        }
        let (quota_vcpus, quota_text) = match self.ec2.quota(&self.setup.quota_code).await {
            Ok(vcpus) => (Some(vcpus), format!("the account's quota is {vcpus} vCPUs")),
            Err(error) => (None, format!("the account's quota is unknown ({error})")),
        };
        *lock(&self.quota) = quota_vcpus;
        let (at, root_device, root_gib) = (Instant::now(), image.root_device, image.root_gib);
        let facts = Facts { at, root_device, root_gib, quota_vcpus, quota_text };
        *kept = Some(facts.clone());
        Ok(facts)
    }

    /// The machine at this address, as one of the operator's own.
    fn attach(&self, name: &InstanceName, host: &str, size: &Size) -> Arc<BareMetalBackend> {
        let mut machines = lock(&self.machines);
        if let Some(known) = machines.get(name) {
            return Arc::clone(known);
        }
        let setup = &self.setup;
        let host_key = setup.keys.host(name).public_openssh.parse().expect("a key made here parses");
        let target = SshTarget {
            host: host.to_owned(),
            port: setup.ssh_port,
            user: "root".into(),
            key: LoginKey::Held(setup.keys.login(name).private_openssh),
            host_key,
        };
        let machine = Arc::new(BareMetalBackend::new(BareMetalSetup {
            name: setup.name.clone(),
            target,
            region: setup.region.clone(),
            cpu_millicores: size.cpu_millicores,
            ram_mib: size.ram_mib,
            max_instances: 1,
            rates: setup.rates,
            public_host: host.to_owned(),
            listen: None,
            dir: setup.dir.clone(),
            owner: setup.owner.clone(),
            minimum_isolation: setup.minimum_isolation,
            pids_max: setup.pids_max,
            program: setup.program.clone(),
            image_timeout: setup.image_timeout,
            start_timeout: setup.start_timeout,
            watch_interval: setup.watch_interval,
            guest: None,
        }));
        machines.insert(name.clone(), Arc::clone(&machine));
        machine
    }

    /// The size of an instance type, or the largest for one that is not sold any more.
    fn size_of(&self, instance_type: &str) -> &Size {
        let sold = self.setup.sizes.iter().find(|size| size.instance_type == instance_type);
        sold.or_else(|| self.setup.sizes.iter().max_by_key(|size| size.cpu_millicores))
            .expect("an offer has at least one size: the boot file is checked for it")
    }

    /// The machine of this name; `None` when EC2 says that there is none (any more).
    async fn machine(&self, name: &InstanceName) -> Result<Option<Arc<BareMetalBackend>>, BackendError> {
        if let Some(known) = lock(&self.machines).get(name).cloned() {
            return Ok(Some(known));
        }
        let found = self.named(name).await?;
        let Some(live) = found.iter().find(|instance| !instance.state.is_over()) else { return Ok(None) };
        let Some(address) = self.address_of(live) else {
            return Err(self.error(FailureKind::Transient, format!("{} has no address", live.id)));
        };
        Ok(Some(self.attach(name, &address.to_string(), self.size_of(&live.instance_type))))
    }

    /// Ends every instance of this name and removes disks of it that stayed behind; confirmed by EC2.
    async fn end(&self, name: &InstanceName) -> Result<(), BackendError> {
        let until = Instant::now() + self.setup.settle + CONFIRM;
        loop {
            let mut ids: Vec<InstanceId> = Vec::new();
            let found = self.named(name).await?;
            ids.extend(found.iter().filter(|instance| !instance.state.is_over()).map(|instance| instance.id.clone()));
            let launched = self.launched(name);
            if let Some(id) = launched.as_ref().and_then(|launched| launched.id.clone())
                && found.iter().all(|instance| instance.id != id)
            {
                ids.push(id);
            }
            // EC2 may not show yet what it has just made.
            let is_young = launched.as_ref().is_some_and(|launched| launched.at.elapsed() < self.setup.settle);
            let unseen = found.is_empty() && is_young;
            if !ids.is_empty() {
                match self.ec2.terminate(&ids).await {
                    Ok(ended) if ended.iter().all(|one| one.state.is_over()) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::NotFound && !unseen => break,
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(self.failed(&error)),
                }
            } else if !unseen {
                break;
            }
            if Instant::now() >= until {
                let problem = format!("EC2 does not confirm that instance {name} ends");
                return Err(self.error(FailureKind::Transient, problem));
            }
            tokio::time::sleep(self.setup.watch_interval).await;
        }
        for (_, disk) in self.left_disks(Some(name)).await? {
            tracing::warn!(backend = %self.offer(), volume = %disk.id, "deleting a disk that its instance left behind");
            self.ec2.delete_volume(&disk.id).await.map_err(|error| self.failed(&error))?;
        }
        self.forget(name).await;
        Ok(())
    }

    async fn forget(&self, name: &InstanceName) {
        lock(&self.ledger).free(name);
        lock(&self.launches).remove(name);
        lock(&self.stop_fails).remove(name);
        let machine = lock(&self.machines).remove(name);
        if let Some(machine) = machine {
            machine.close().await;
        }
    }

    fn nothing(&self) -> Capabilities {
        let most = |field: fn(&Size) -> u32| self.setup.sizes.iter().map(field).max().unwrap_or_default();
        Capabilities {
            regions: vec![self.setup.region.clone()],
            // EC2 has no Intel TDX; SEV-SNP is no TDX and is not sold as such.
            tdx_capable: false,
            mrtds: Vec::new(),
            max_cpu_millicores: 0,
            max_ram_mib: 0,
            max_instances: 0,
            instance_cpu_millicores: most(|size| size.cpu_millicores),
            instance_ram_mib: most(|size| size.ram_mib),
        }
    }

    async fn offered(&self) -> Result<(Capabilities, String), BackendError> {
        let facts = self.facts().await?;
        self.listing(self.setup.look).await?;
        let limits = self.limits();
        let most = limits.instances(&self.setup.sizes);
        let unknown = lock(&self.ledger).unknown_to_market();
        let mut capabilities = self.nothing();
        capabilities.max_instances = most.saturating_sub(unknown);
        let all = |one: u32| one.saturating_mul(capabilities.max_instances);
        capabilities.max_cpu_millicores = all(capabilities.instance_cpu_millicores);
        capabilities.max_ram_mib = all(capabilities.instance_ram_mib);
        let (vcpus, declared) = (lock(&self.ledger).vcpus(), self.setup.max_instances);
        let detail = format!(
            "EC2 {}: {declared} instances declared; {}, {vcpus} in use here",
            self.ec2.region(),
            facts.quota_text
        );
        Ok((capabilities, detail))
    }
}

#[async_trait]
impl Backend for Ec2Backend {
    fn name(&self) -> &OfferName {
        &self.setup.name
    }

    fn rates(&self) -> DeclaredRates {
        self.setup.rates
    }

    async fn capabilities(&self) -> Offering {
        let rates = self.setup.rates;
        match self.offered().await {
            Ok((capabilities, detail)) => {
                self.note(None);
                let isolation = Some(self.setup.minimum_isolation);
                Offering { capabilities, rates, isolation, detail, reachable: true }
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
        if grant.tdx_required || grant.expected_mrtd.is_some() {
            return Err(Unfit::Tdx);
        }
        if grant.cpu_millicores < MIN_CPU_MILLICORES || grant.ram_mib < MIN_RAM_MIB {
            return Err(Unfit::TooSmall { cpu_millicores: grant.cpu_millicores, ram_mib: grant.ram_mib });
        }
        if choose(&self.setup.sizes, grant.cpu_millicores, grant.ram_mib).is_none() {
            let size = |cpu: u32, ram: u32| format!("{cpu} mCPU and {ram} MiB");
            let largest = self.nothing();
            let most = size(largest.instance_cpu_millicores, largest.instance_ram_mib);
            return Err(Unfit::Size { wanted: size(grant.cpu_millicores, grant.ram_mib), most });
        }
        Ok(())
    }

    async fn provision(&self, name: &InstanceName, order: Order<'_>) -> Result<ProvisionedInstance, BackendError> {
        let grant = order.grant;
        let size = choose(&self.setup.sizes, grant.cpu_millicores, grant.ram_mib)
            .ok_or_else(|| self.error(FailureKind::Fatal, "the grant fits on no size".into()))?;
        let booked = lock(&self.ledger).book(name, size, &self.limits(), is_foreign(grant, self.offer()));
        booked.map_err(|full| self.error(full.kind, full.message))?;
        let image_mib = order.image.size_bytes.div_ceil(1 << 20);
        let wanted = Wanted {
            name,
            grant: grant.request_id.to_string(),
            size,
            ends_ms: grant.valid_to_ms,
            disk_mib: image_mib.saturating_add(u64::from(order.workload.disk_mib)),
        };
        let obtained = async {
            let machine = self.obtain(&wanted).await?;
            machine.provision(name, order).await
        };
        let running = obtained.await.map_err(|error| {
            let remains = error.remains || self.launched(name).is_some();
            BackendError { remains, ..error }
        })?;
        self.note(None);
        Ok(running)
    }

    async fn watch_until_exit(
        &self,
        instance: &ProvisionedInstance,
        valid_to_ms: u64,
        seen: &UsageSeen<'_>,
    ) -> Result<Exit, BackendError> {
        let largest = self.size_of("");
        let machine = self.attach(&instance.name, &instance.host, largest);
        let newest = Mutex::new(UsageMetrics::default());
        let see = |usage: UsageMetrics| {
            *lock(&newest) = usage;
            seen(usage);
        };
        tokio::select! {
            exit = machine.watch_until_exit(instance, valid_to_ms, &see) => exit,
            () = self.until_gone(&instance.name) => {
                let end = if crate::now_ms() >= valid_to_ms { LogEnd::Deadline } else { LogEnd::BackendLost };
                tracing::warn!(backend = %self.offer(), instance = %instance.name, "EC2 says that the instance is gone");
                Ok(Exit { end, usage: *lock(&newest) })
            }
        }
    }

    async fn stop(&self, name: &InstanceName) -> Result<Option<Exit>, BackendError> {
        let Some(machine) = self.machine(name).await? else { return Ok(None) };
        let error = match machine.stop(name).await {
            Ok(exit) => {
                lock(&self.stop_fails).remove(name);
                return Ok(exit);
            }
            Err(error) => error,
        };
        let live = self.named(name).await?.into_iter().any(|instance| !instance.state.is_over());
        if !live && self.launched(name).is_none_or(|launched| launched.at.elapsed() >= self.setup.settle) {
            return Ok(None);
        }
        let since = *lock(&self.stop_fails).entry(name.clone()).or_insert_with(Instant::now);
        if since.elapsed() < UNREACHABLE {
            return Err(error);
        }
        tracing::warn!(backend = %self.offer(), instance = %name, "the host does not answer; EC2 ends it, and its last usage is what was seen");
        self.end(name).await?;
        Ok(None)
    }

    async fn terminate(&self, name: &InstanceName) -> Result<(), BackendError> {
        self.end(name).await
    }

    async fn list_owned(&self) -> Result<Vec<OwnedInstance>, BackendError> {
        let listing = self.listing(Duration::ZERO).await?;
        let disks = self.left_disks(None).await?;
        let mut owned: BTreeMap<InstanceName, bool> = BTreeMap::new();
        for (name, instance) in listing.instances.iter().filter(|(_, instance)| !instance.state.is_over()) {
            let running = matches!(instance.state, InstanceState::Pending | InstanceState::Running);
            *owned.entry(name.clone()).or_default() |= running;
        }
        for (name, _) in disks {
            owned.entry(name).or_default();
        }
        Ok(owned.into_iter().map(|(name, running)| OwnedInstance { name, running }).collect())
    }

    fn load(&self) -> u32 {
        lock(&self.ledger).count()
    }

    fn adopt(&self, grant: &ComputeGrant, name: &InstanceName) {
        let size = choose(&self.setup.sizes, grant.cpu_millicores, grant.ram_mib);
        lock(&self.ledger).adopt(name, size, is_foreign(grant, self.offer()));
    }

    fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    async fn close(&self) {
        let machines = std::mem::take(&mut *lock(&self.machines));
        for machine in machines.into_values() {
            machine.close().await;
        }
    }

    async fn check(&self, create: bool) -> Vec<Finding> {
        self.look_over(create).await
    }
}
