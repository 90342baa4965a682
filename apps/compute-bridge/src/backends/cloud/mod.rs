//! A cloud: one host per grant, in one region, one offer.
//!
//! The cloud only gives the host. It comes up with a host key and a login made for it ([`super::machine_keys`],
//! [`super::cloud_init`]); from then on it is a machine like the operator's own, and [`BareMetalBackend`] does the rest.
//! The cloud's API is asked what exists, and believed when it answers; that it does not answer says nothing about hosts.
//! Which cloud it is nobody knows here: that is behind [`Cloud`].

mod check;
mod counted;
mod lasting;
mod launch;
pub mod ledger;
mod sight;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use coalition::{ProviderId, UniqueId};
use coalition_cloud::{Cloud, CloudError, ErrorKind, HostState, Image, Moment, Owner, Quota, Window};
use coalition_compute::{
    Capabilities, ComputeGrant, DeclaredRates, LogEnd, MIN_CPU_MILLICORES, MIN_RAM_MIB, OfferName, Region, UsageMetrics,
};

use self::launch::Wanted;
use self::ledger::{Ledger, Limits, Size, choose, is_foreign};
pub use self::sight::Absence;
use self::sight::Listing;
use super::machine_keys::MachineKeys;
use super::{BareMetalBackend, BareMetalSetup, HostSetup};
use crate::backend::{
    Backend, BackendError, Exit, FailureKind, InstanceName, MoveError, Offering, Order, OwnedInstance,
    ProvisionedInstance, Unfit, UsageSeen,
};
use crate::check::Finding;
use crate::evidence::Taken;
use crate::fleet::chain;
use crate::inventory::{CostBasis, Price};
use crate::ssh::{LoginKey, SshTarget};

/// How long what the region and the account have is believed.
const FACTS_AGE: Duration = Duration::from_secs(600);
/// How long a host that is to be stopped may be unreachable before the cloud is told to end it without its last usage.
const UNREACHABLE: Duration = Duration::from_secs(60);

/// What a backend on a cloud is made of.
#[derive(Clone)]
pub struct CloudSetup {
    /// Name of the offer.
    pub name: OfferName,
    /// The region and the account.
    pub cloud: Arc<dyn Cloud>,
    /// The region as the market calls it.
    pub region: Region,
    /// What is sold.
    pub sizes: Vec<Size>,
    /// Hosts at once.
    pub max_instances: u32,
    /// Disk beside what image and workload need, GiB.
    pub root_gib: u32,
    /// What it charges.
    pub rates: DeclaredRates,
    /// Hosts are reached inside their network.
    pub private_addresses: bool,
    /// Port of the hosts' SSH servers.
    pub ssh_port: u16,
    /// Makes the hosts' keys.
    pub keys: MachineKeys,
    /// This bridge.
    pub provider: ProviderId,
    /// The coalition it serves.
    pub coalition: UniqueId,
    /// How workloads are run on the hosts; its pauses between two looks are those at a host that comes up, too.
    pub host: HostSetup,
    /// Wait from asking for a host to logging in.
    pub boot_timeout: Duration,
    /// How long after its grant's end a host switches itself off.
    pub poweroff_after: Duration,
    /// Pause between two listings of all hosts.
    pub look: Duration,
    /// First pause before a host is asked for again, doubled each time.
    pub pause: Duration,
}

/// What the region and the account have.
#[derive(Clone, Debug)]
struct Facts {
    at: Instant,
    image: Image,
    quota: Quota,
}

/// A request for an instance that was, or may have been, granted.
#[derive(Clone, Debug)]
struct Launched {
    at: Instant,
    /// The cloud's name of it, when the answer arrived.
    id: Option<String>,
}

/// One region of one account.
pub struct CloudBackend {
    setup: CloudSetup,
    provider: String,
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

impl From<ErrorKind> for FailureKind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Capacity => Self::Capacity,
            ErrorKind::Quota => Self::Quota,
            ErrorKind::Throttled => Self::Throttled,
            ErrorKind::Auth => Self::Auth,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Conflict => Self::Conflict,
            ErrorKind::Transient => Self::Transient,
            ErrorKind::Fatal => Self::Fatal,
        }
    }
}

impl CloudBackend {
    /// A backend; nothing is contacted yet.
    #[must_use]
    pub fn new(setup: CloudSetup) -> Self {
        Self {
            provider: setup.provider.to_string(),
            setup,
            ledger: Mutex::default(),
            machines: Mutex::default(),
            launches: Mutex::default(),
            stop_fails: Mutex::default(),
            listing: tokio::sync::Mutex::default(),
            facts: tokio::sync::Mutex::default(),
            quota: Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// Whose things are looked for.
    fn owner(&self) -> Owner<'_> {
        Owner { bridge: &self.provider, offer: self.setup.name.as_str() }
    }

    fn note(&self, trouble: Option<String>) {
        *lock(&self.trouble) = trouble;
    }

    fn error(&self, kind: FailureKind, message: String) -> BackendError {
        BackendError { backend: self.setup.name.clone(), kind, message, started: false, remains: false, source: None }
    }

    fn failed(&self, error: &CloudError) -> BackendError {
        let message = chain(error);
        self.note(Some(message.clone()));
        self.error(error.kind.into(), message)
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
        let image = self.setup.cloud.image().await.map_err(|error| self.failed(&error))?;
        if let Some(state) = &image.unusable {
            return Err(self.error(FailureKind::Fatal, format!("the image {} is {state}", image.id)));
        }
        let quota = self.setup.cloud.quota().await;
        *lock(&self.quota) = quota.vcpus;
        let facts = Facts { at: Instant::now(), image, quota };
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
            host: setup.host.clone(),
            guest: None,
        }));
        machines.insert(name.clone(), Arc::clone(&machine));
        machine
    }

    /// The size of this name, or the largest for one that is not sold any more.
    fn size_of(&self, name: &str) -> &Size {
        let sold = self.setup.sizes.iter().find(|size| size.name == name);
        sold.or_else(|| self.setup.sizes.iter().max_by_key(|size| size.cpu_millicores))
            .expect("an offer has at least one size: the boot file is checked for it")
    }

    /// The machine of this name; `None` when the cloud says that there is none (any more).
    async fn machine(&self, name: &InstanceName) -> Result<Option<Arc<BareMetalBackend>>, BackendError> {
        if let Some(known) = lock(&self.machines).get(name).cloned() {
            return Ok(Some(known));
        }
        let found = self.named(name).await?;
        let Some(live) = found.iter().find(|host| !host.state.is_over()) else { return Ok(None) };
        let Some(address) = self.address_of(live) else {
            return Err(self.error(FailureKind::Transient, format!("{} has no address", live.id)));
        };
        Ok(Some(self.attach(name, &address.to_string(), self.size_of(&live.size))))
    }

    /// Ends every host of this name and removes what stayed behind of it; confirmed by the cloud.
    async fn end(&self, name: &InstanceName) -> Result<(), BackendError> {
        let until = Instant::now() + self.setup.cloud.settle() + self.setup.cloud.end_patience();
        while !self.is_ended(name).await? {
            if Instant::now() >= until {
                let problem = format!("{} does not confirm that the host of {name} ends", self.setup.cloud.name());
                return Err(self.error(FailureKind::Transient, problem));
            }
            tokio::time::sleep(self.setup.host.watch_interval).await;
        }
        for leftover in self.leftovers(Some(name)).await? {
            let (what, id) = (leftover.1.what, &leftover.1.id);
            tracing::warn!(backend = %self.offer(), what, id, "deleting what its host left behind");
            self.setup.cloud.remove(&leftover.1).await.map_err(|error| self.failed(&error))?;
        }
        self.forget(name).await;
        Ok(())
    }

    /// Asks for the end of everything of this name; answers whether the cloud says that all of it is over.
    async fn is_ended(&self, name: &InstanceName) -> Result<bool, BackendError> {
        let found = self.named(name).await?;
        let mut ids: Vec<String> =
            found.iter().filter(|host| !host.state.is_over()).map(|host| host.id.clone()).collect();
        let launched = self.launched(name);
        let unlisted = launched.as_ref().and_then(|launched| launched.id.clone());
        ids.extend(unlisted.filter(|id| found.iter().all(|host| host.id != *id)));
        // The cloud may not show yet what it has just made.
        let is_young = launched.is_some_and(|launched| launched.at.elapsed() < self.setup.cloud.settle());
        let is_unseen = found.is_empty() && is_young;
        if ids.is_empty() {
            return Ok(!is_unseen);
        }
        let mut all_over = true;
        for id in ids {
            match self.setup.cloud.end(&id).await {
                Ok(state) => all_over &= state.is_over(),
                Err(error) if error.kind == ErrorKind::NotFound => all_over &= !is_unseen,
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Ok(all_over)
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
            // What runs on a host is a workload beside its system, not the measured guest itself: not sold as TDX.
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
            "{} {}: {declared} instances declared; {}, {vcpus} in use here",
            self.setup.cloud.name(),
            self.setup.cloud.region(),
            facts.quota.text
        );
        Ok((capabilities, detail))
    }
}

#[async_trait]
impl Backend for CloudBackend {
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
                let isolation = Some(self.setup.host.minimum_isolation);
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
                tracing::warn!(backend = %self.offer(), instance = %instance.name, "the cloud says that the host is gone");
                Ok(Exit { end, usage: *lock(&newest) })
            }
        }
    }

    async fn move_end(&self, name: &InstanceName, valid_to_ms: u64) -> Result<(), MoveError> {
        self.move_everything(name, valid_to_ms).await
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
        let live = self.named(name).await?.into_iter().any(|host| !host.state.is_over());
        if !live && self.launched(name).is_none_or(|launched| launched.at.elapsed() >= self.setup.cloud.settle()) {
            return Ok(None);
        }
        let since = *lock(&self.stop_fails).entry(name.clone()).or_insert_with(Instant::now);
        if since.elapsed() < UNREACHABLE {
            return Err(error);
        }
        tracing::warn!(backend = %self.offer(), instance = %name, "the host does not answer; the cloud ends it, and its last usage is what was seen");
        self.end(name).await?;
        Ok(None)
    }

    async fn terminate(&self, name: &InstanceName) -> Result<(), BackendError> {
        self.end(name).await
    }

    fn telemetry_moment(&self) -> Option<Moment> {
        Some(self.setup.cloud.telemetry_moment())
    }

    async fn telemetry(&self, name: &InstanceName, window: Window) -> Result<Taken, BackendError> {
        self.counted(name, window).await
    }

    async fn list_owned(&self) -> Result<Vec<OwnedInstance>, BackendError> {
        let listing = self.listing(Duration::ZERO).await?;
        let leftovers = self.leftovers(None).await?;
        let mut owned: BTreeMap<InstanceName, OwnedInstance> = BTreeMap::new();
        let left =
            |name: &InstanceName| OwnedInstance { name: name.clone(), running: false, since_ms: None, size: None };
        for (name, host) in listing.hosts.iter().filter(|(_, host)| !host.state.is_over()) {
            let one = owned.entry(name.clone()).or_insert_with(|| left(name));
            one.running |= matches!(host.state, HostState::Coming | HostState::Running);
            let since_ms = host.since_s.map(|since_s| since_s.saturating_mul(1_000));
            // Of several with one name, the oldest.
            one.since_ms = [one.since_ms, since_ms].into_iter().flatten().min();
            one.size.get_or_insert_with(|| host.size.clone());
        }
        for (name, _) in leftovers {
            owned.entry(name.clone()).or_insert_with(|| left(&name));
        }
        Ok(owned.into_values().collect())
    }

    fn price(&self, grant: &ComputeGrant) -> Option<Price> {
        let size = choose(&self.setup.sizes, grant.cpu_millicores, grant.ram_mib)?;
        Some(Price { core_hour: size.price_hour, cpu_millicores: 1_000, basis: CostBasis::SizePrice })
    }

    fn price_of(&self, owned: &OwnedInstance) -> Option<Price> {
        let size = self.setup.sizes.iter().find(|size| Some(&size.name) == owned.size.as_ref())?;
        Some(Price { core_hour: size.price_hour, cpu_millicores: 1_000, basis: CostBasis::SizePrice })
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
