//! What a provisioning backend is: a handful of methods, a list of what it owns, and one taxonomy of failures.
//!
//! A backend provides a host; everything above it is the same code for all. Operations are idempotent by instance name:
//! names derive from the grant, are written to the journal before the first call, and may be terminated at any time, also
//! when it is unknown whether they were ever created.

use std::path::PathBuf;

use async_trait::async_trait;
use coalition::{Mrtd, UniqueId};
use coalition_cloud::{Moment, Window};
use coalition_compute::{
    Capabilities, ComputeGrant, DeclaredRates, LogEnd, MIN_CPU_MILLICORES, MIN_RAM_MIB, OfferName, UsageMetrics,
};
use coalition_host::types::{IsolationLevel, SecretText};
use coalition_shuffle::SshHostKey;
use serde::{Deserialize, Serialize};

use crate::check::Finding;
use crate::evidence::Taken;
use crate::inventory::{CostBasis, Price};
use crate::platform::Platform;

/// What kind of failure; decides what happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The backend has no room now. The next backend is tried.
    Capacity,
    /// An account or configuration limit is reached. The next backend is tried.
    Quota,
    /// Asked too often; later.
    Throttled,
    /// Credentials or host key refused; a person must act.
    Auth,
    /// The thing asked about does not exist.
    NotFound,
    /// It exists already, in another shape.
    Conflict,
    /// The backend could not be reached or did not answer in time.
    Transient,
    /// It will not work however often it is tried.
    Fatal,
    /// The image unpacks to more than the workload's disk; it does so everywhere.
    TooLarge,
    /// The image is none: damaged, or with something in it that no host takes; it is so everywhere.
    BadImage,
    /// The image is of a kind that this backend does not run. The next backend is tried.
    Unsuited,
}

impl FailureKind {
    /// Stable name, for journals and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Quota => "quota",
            Self::Throttled => "throttled",
            Self::Auth => "auth",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Transient => "transient",
            Self::Fatal => "fatal",
            Self::TooLarge => "too_large",
            Self::BadImage => "bad_image",
            Self::Unsuited => "unsuited",
        }
    }

    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::Capacity,
        Self::Quota,
        Self::Throttled,
        Self::Auth,
        Self::NotFound,
        Self::Conflict,
        Self::Transient,
        Self::Fatal,
        Self::TooLarge,
        Self::BadImage,
        Self::Unsuited,
    ];
}

/// A failure of a backend. The message is the operator's; it never holds anything of a requester.
#[derive(Debug, thiserror::Error)]
#[error("{backend}: {message} ({})", .kind.as_str())]
pub struct BackendError {
    /// Which backend.
    pub backend: OfferName,
    /// What kind.
    pub kind: FailureKind,
    /// What was wrong and what to do.
    pub message: String,
    /// Whether the workload was started, so that the failure is the workload's or the host's and not a lack of room.
    pub started: bool,
    /// Whether something of it may still run or cost money, until [`Backend::terminate`] confirms that nothing does.
    pub remains: bool,
    /// What lies below.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Name of an instance on its backend: 32 lower-case hex digits, derived from provider, grant and attempt.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceName(String);

impl InstanceName {
    /// The name of the `attempt`-th try of `grant` by `provider`. Says nothing about the requester.
    #[must_use]
    pub fn derive(provider: &coalition::ProviderId, grant: &coalition::RequestId, attempt: u32) -> Self {
        let parts: [&[u8]; 4] =
            [b"compute-bridge/instance/1", provider.as_bytes(), grant.as_bytes(), &attempt.to_be_bytes()];
        Self(hex::encode(&coalition::hash_many(&parts).as_bytes()[..16]))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for InstanceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 32 && text.bytes().all(hex) {
            return Ok(Self(text));
        }
        Err(format!(
            "{:?} is no instance name; expected 32 lower-case hex digits",
            text.chars().take(40).collect::<String>()
        ))
    }
}

impl From<InstanceName> for String {
    fn from(name: InstanceName) -> Self {
        name.0
    }
}

impl std::fmt::Display for InstanceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image on this machine, its hash checked.
#[derive(Clone, Debug)]
pub struct LocalImage {
    /// The file.
    pub path: PathBuf,
    /// blake3 of its bytes.
    pub hash: UniqueId,
    /// Its size.
    pub size_bytes: u64,
}

/// What to run, as the requester's envelope says. `Debug` shows nothing of it.
#[derive(Clone, Default)]
pub struct Workload {
    /// Program and arguments; empty for a machine to log in to.
    pub command: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Disk in MiB, default already filled in.
    pub disk_mib: u32,
}

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Workload({} MiB disk, rest redacted)", self.disk_mib)
    }
}

/// The keys of one grant: the machine's host key, made for it, and the public half of the requester's login key.
#[derive(Debug)]
pub struct InstanceKeys {
    /// Host key, OpenSSH private key text.
    pub host_private: SecretText,
    /// The same key's public half.
    pub host_public: SshHostKey,
    /// The one key that may log in, as an `authorized_keys` line.
    pub login_public: String,
}

/// Everything a backend needs for one instance.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    /// The grant.
    pub grant: &'a ComputeGrant,
    /// The image.
    pub image: &'a LocalImage,
    /// The workload.
    pub workload: &'a Workload,
    /// The keys.
    pub keys: &'a InstanceKeys,
}

/// A running instance, as the journal keeps it: enough to find, watch and end it after a restart, and nothing secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvisionedInstance {
    /// Which backend runs it.
    pub backend: OfferName,
    /// Its name there.
    pub name: InstanceName,
    /// Where requesters reach its SSH server.
    pub host: String,
    /// The server's port.
    pub port: u16,
    /// The user to log in as.
    pub user: String,
    /// How strongly it is isolated.
    pub isolation: IsolationLevel,
    /// The same in a sentence, with what is weaker than full isolation.
    pub isolation_text: String,
}

/// What a backend has to say about an instance it ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Why it is over.
    pub end: LogEnd,
    /// Usage as last measured.
    pub usage: UsageMetrics,
}

/// One thing found on a backend that this bridge made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedInstance {
    /// Its name.
    pub name: InstanceName,
    /// Whether it still runs, or is only left-over files.
    pub running: bool,
    /// Since when it is there, Unix milliseconds, where that can be told.
    pub since_ms: Option<u64>,
    /// The cloud's name of its size, where it has one.
    pub size: Option<String>,
}

/// What a backend offers now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offering {
    /// For the card. All capacity zero when the backend cannot be reached: what cannot be seen is not sold.
    pub capabilities: Capabilities,
    /// What it charges.
    pub rates: DeclaredRates,
    /// The isolation workloads get, when known.
    pub isolation: Option<IsolationLevel>,
    /// The same in words, or why nothing is known.
    pub detail: String,
    /// Whether the backend answered.
    pub reachable: bool,
}

/// Why a backend does not fit a grant at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is in none of its regions.
    #[error("it serves {serves}, the grant is for {wanted}")]
    Region {
        /// The backend's regions.
        serves: String,
        /// The grant's.
        wanted: String,
    },
    /// The grant needs TDX.
    #[error("the grant needs TDX, which it does not have")]
    Tdx,
    /// The grant names another measurement.
    #[error("its guests have another measurement than the grant's {wanted}")]
    Mrtd {
        /// The grant's.
        wanted: Mrtd,
    },
    /// The grant is smaller than what a host can run.
    #[error(
        "the grant's {cpu_millicores} mCPU and {ram_mib} MiB are less than {MIN_CPU_MILLICORES} mCPU and {MIN_RAM_MIB} MiB"
    )]
    TooSmall {
        /// What the grant asks, thousandths of a core.
        cpu_millicores: u32,
        /// What the grant asks, MiB.
        ram_mib: u32,
    },
    /// The grant is larger than its largest instance.
    #[error("the grant's {wanted} is more than its largest instance's {most}")]
    Size {
        /// What the grant asks.
        wanted: String,
        /// What it has.
        most: String,
    },
}

/// Why the end of an instance was not moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// What ends it cannot be moved while it runs.
    #[error("{backend}: the end cannot be moved: {why}")]
    Fixed {
        /// Which backend.
        backend: OfferName,
        /// What ends it.
        why: String,
    },
    /// Not now; the same may be asked again.
    #[error(transparent)]
    Failed(#[from] BackendError),
}

/// Is told the usage of an instance as it grows.
pub type UsageSeen<'a> = dyn Fn(UsageMetrics) + Send + Sync + 'a;

/// One class of machines a bridge can provision on.
///
/// Adding a class is one file with this trait, one section in the boot file, one line where the fleet is built.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Its name: the offer's on the card.
    fn name(&self) -> &OfferName;

    /// What it charges.
    fn rates(&self) -> DeclaredRates;

    /// What it offers now. Never fails: a backend that cannot be reached offers nothing and says why.
    async fn capabilities(&self) -> Offering;

    /// Whether the grant fits it at all, from configuration alone.
    ///
    /// # Errors
    /// [`Unfit`] says why not.
    fn can_satisfy(&self, grant: &ComputeGrant) -> Result<(), Unfit>;

    /// Creates and starts the instance under this name, and waits until its SSH server answers. On failure nothing billable is left that
    /// [`Backend::terminate`] of the same name would not remove.
    ///
    /// # Errors
    /// [`BackendError`].
    async fn provision(&self, name: &InstanceName, order: Order<'_>) -> Result<ProvisionedInstance, BackendError>;

    /// Waits until the instance has ended by itself, its host's deadline included. Not being able to see the host is not an
    /// end: it goes on waiting. Tells `seen` the usage so far whenever it is known.
    ///
    /// # Errors
    /// [`BackendError`] only for what waiting cannot cure, e.g. an instance the host has never heard of.
    async fn watch_until_exit(
        &self,
        instance: &ProvisionedInstance,
        valid_to_ms: u64,
        seen: &UsageSeen<'_>,
    ) -> Result<Exit, BackendError>;

    /// Moves everything that would end the running instance by itself to this time, later or earlier, and confirms it. Said again
    /// it changes nothing more.
    ///
    /// # Errors
    /// [`MoveError`]; some of it may have been moved then.
    async fn move_end(&self, _name: &InstanceName, _valid_to_ms: u64) -> Result<(), MoveError> {
        Err(MoveError::Fixed { backend: self.name().clone(), why: "this kind of backend does not do that".into() })
    }

    /// Stops the instance but keeps what its final usage is read from. Answers that usage; `None` when there is no such
    /// instance (any more).
    ///
    /// # Errors
    /// [`BackendError`]; the caller tries again until it succeeds.
    async fn stop(&self, name: &InstanceName) -> Result<Option<Exit>, BackendError>;

    /// Stops the instance, removes it and everything of it, and confirms that. Succeeds when there is nothing (left).
    ///
    /// # Errors
    /// [`BackendError`]; the caller tries again until it succeeds.
    async fn terminate(&self, name: &InstanceName) -> Result<(), BackendError>;

    /// When an API beside this bridge is to be asked what it counted of an instance that ends; nothing where there is none.
    fn telemetry_moment(&self) -> Option<Moment> {
        None
    }

    /// What that API counted of the instance.
    ///
    /// # Errors
    /// [`BackendError`]; nothing depends on it.
    async fn telemetry(&self, _name: &InstanceName, _window: Window) -> Result<Taken, BackendError> {
        Err(BackendError {
            backend: self.name().clone(),
            kind: FailureKind::NotFound,
            message: "nobody but this bridge counts here".into(),
            started: false,
            remains: false,
            source: None,
        })
    }

    /// Everything on the backend that this bridge made.
    ///
    /// # Errors
    /// [`BackendError`] when it cannot be seen; nothing may be concluded then.
    async fn list_owned(&self) -> Result<Vec<OwnedInstance>, BackendError>;

    /// What an instance for this grant costs: the posted rate, where nothing better is known.
    fn price(&self, grant: &ComputeGrant) -> Option<Price> {
        let core_hour = self.rates().effective_core_hour(grant.cpu_millicores, grant.ram_mib)?;
        Some(Price { core_hour, cpu_millicores: grant.cpu_millicores, basis: CostBasis::PostedRate })
    }

    /// What an instance that was found costs, where its size tells; for those that no grant explains.
    fn price_of(&self, _owned: &OwnedInstance) -> Option<Price> {
        None
    }

    /// The guest its workloads run in, where that can be quoted. `None` for a plain host.
    fn guest(&self) -> Option<Platform> {
        None
    }

    /// Instances that are there or about to be.
    fn load(&self) -> u32 {
        0
    }

    /// Tells the backend of an instance that runs since before this process started, so that it counts its capacity.
    fn adopt(&self, _grant: &ComputeGrant, _name: &InstanceName) {}

    /// What the last failure or loss of contact was, for the operator.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Lets go of connections, when the bridge ends. What runs, runs on.
    async fn close(&self) {}

    /// Looks over everything a grant needs here, as far as it costs nothing; with `create` also makes one machine and ends it,
    /// where machines are made.
    async fn check(&self, _create: bool) -> Vec<Finding> {
        let offering = self.capabilities().await;
        let ok = offering.reachable && offering.capabilities.max_instances > 0;
        vec![Finding::new(format!("machine {}", self.name()), ok, offering.detail)]
    }
}
