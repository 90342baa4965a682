//! The fleet: all backends of the bridge in the operator's order, and which one serves a grant.

pub mod policy;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use coalition::RequestId;
use coalition_cloud::Moment;
use coalition_compute::{ComputeGrant, Offer, OfferName};

use crate::backend::{Backend, BackendError, FailureKind, InstanceName, Offering, Order, ProvisionedInstance, Unfit};
use crate::journal::GrantState;

use self::policy::{Health, OrderPolicy, Standing, TooDear, goes_on, order};

/// The backends in order of preference.
#[derive(Clone)]
pub struct Fleet {
    backends: Arc<Vec<Arc<dyn Backend>>>,
    order: OrderPolicy,
    health: Arc<Mutex<BTreeMap<OfferName, Health>>>,
}

/// Why no fleet was made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FleetError {
    /// No backends.
    #[error("no backends configured; enable at least one, e.g. [[baremetal.machines]], in the boot file")]
    Empty,
    /// Two backends of one name.
    #[error("two backends are called {0}; names are offers on the card and must differ")]
    Duplicate(OfferName),
    /// Grants run on backends that the boot file does not name any more.
    #[error(
        "the boot file no longer names backends where grants still run: {grants}; name them again until then (a machine \
         without a `name` is called after its host and port, so give it the old one as its `name` when you change these)"
    )]
    Unnamed {
        /// Each grant, its backend, and how long it still runs.
        grants: String,
    },
}

/// One try of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The backend.
    pub backend: OfferName,
    /// How it went.
    pub result: AttemptResult,
}

/// How a try went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// Not tried: the grant does not fit.
    Unfit(Unfit),
    /// Not tried: it charges more than the grant pays.
    TooDear(TooDear),
    /// Not tried: it is paused after failures.
    Paused(String),
    /// Tried, failed.
    Failed {
        /// What kind of failure.
        kind: FailureKind,
        /// Whether the workload had been started.
        started: bool,
        /// Whether what it left is confirmed to be gone.
        cleaned: bool,
        /// What was wrong, for the operator.
        message: String,
    },
    /// Tried, runs.
    Running,
}

/// Told before and after each try, so that intent is on disk before anything is created.
#[async_trait]
pub trait AttemptLog: Send {
    /// A backend is about to be called; answers the name to create the instance under. An error stops the fleet.
    async fn intend(&mut self, backend: &OfferName) -> Result<InstanceName, JournalStop>;
    /// The try failed; what it may have left behind has been removed, or `cleaned` is false.
    async fn failed(&mut self, backend: &OfferName, error: &BackendError, cleaned: bool) -> Result<(), JournalStop>;
    /// The try failed, and what it may have left behind is about to be removed, or has been.
    async fn ending(&mut self, _: &OfferName, _: &InstanceName, _: &BackendError, _: Moment) {}
}

/// The journal could not be written; nothing may be created without it.
#[derive(Debug, thiserror::Error)]
#[error("the journal refused a record, so nothing more is provisioned")]
pub struct JournalStop(#[source] pub crate::journal::JournalError);

/// Why a grant could not be provisioned.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// Every backend was unfit or failed; each is listed.
    #[error("no backend could serve the grant: {}", describe(.0))]
    Exhausted(Vec<Attempt>),
    /// The journal failed.
    #[error(transparent)]
    Journal(#[from] JournalStop),
}

fn describe(attempts: &[Attempt]) -> String {
    let one = |attempt: &Attempt| match &attempt.result {
        AttemptResult::Unfit(unfit) => format!("{} does not fit ({unfit})", attempt.backend),
        AttemptResult::TooDear(dear) => dear.to_string(),
        AttemptResult::Paused(why) => format!("{} is {why}", attempt.backend),
        AttemptResult::Failed { kind, message, cleaned, .. } => {
            let rest = if *cleaned { "" } else { "; what it left is not confirmed to be gone" };
            format!("{} failed ({}: {message}{rest})", attempt.backend, kind.as_str())
        }
        AttemptResult::Running => format!("{} runs it", attempt.backend),
    };
    attempts.iter().map(one).collect::<Vec<_>>().join("; ")
}

impl Fleet {
    /// A fleet of these backends, preferred in this order.
    ///
    /// # Errors
    /// [`FleetError`] when there are none, or two of one name.
    pub fn new(backends: Vec<Arc<dyn Backend>>) -> Result<Self, FleetError> {
        if backends.is_empty() {
            return Err(FleetError::Empty);
        }
        for (i, backend) in backends.iter().enumerate() {
            if backends[..i].iter().any(|other| other.name() == backend.name()) {
                return Err(FleetError::Duplicate(backend.name().clone()));
            }
        }
        Ok(Self { backends: Arc::new(backends), order: OrderPolicy::default(), health: Arc::default() })
    }

    /// The same, tried in this order.
    #[must_use]
    pub fn ordered(self, order: OrderPolicy) -> Self {
        Self { order, ..self }
    }

    /// All backends.
    #[must_use]
    pub fn backends(&self) -> &[Arc<dyn Backend>] {
        &self.backends
    }

    /// The backend of this name.
    #[must_use]
    pub fn get(&self, name: &OfferName) -> Option<&Arc<dyn Backend>> {
        self.backends.iter().find(|backend| backend.name() == name)
    }

    /// Refuses a fleet that lacks a backend where grants still run: they would be given up, because nobody here knows any
    /// more how to reach them. After its deadline no grant runs, wherever it was.
    ///
    /// # Errors
    /// [`FleetError::Unnamed`] with every such grant.
    pub fn check_open(&self, open: &[(RequestId, GrantState)], now_ms: u64) -> Result<(), FleetError> {
        let lost = |(id, state): &(RequestId, GrantState)| {
            let (backend, _) = state.instance()?;
            let ends_ms = state.grant.valid_to_ms;
            let is_lost = self.get(backend).is_none() && ends_ms > now_ms;
            is_lost.then(|| format!("{id} on {backend} for {} s more", (ends_ms - now_ms).div_ceil(1_000)))
        };
        let lost: Vec<String> = open.iter().filter_map(lost).collect();
        if lost.is_empty() { Ok(()) } else { Err(FleetError::Unnamed { grants: lost.join(", ") }) }
    }

    /// What every backend offers now, in order. They are asked at the same time. A paused one sells nothing and says so.
    pub async fn offerings(&self) -> Vec<(OfferName, Offering)> {
        let ask = |backend: &Arc<dyn Backend>| {
            let backend = Arc::clone(backend);
            async move { (backend.name().clone(), backend.capabilities().await) }
        };
        let mut offerings = futures::future::join_all(self.backends.iter().map(ask)).await;
        let now_ms = crate::now_ms();
        for (name, offering) in &mut offerings {
            if let Some(pause) = self.health(name).describe(now_ms) {
                let sold = &mut offering.capabilities;
                (sold.max_cpu_millicores, sold.max_ram_mib, sold.max_instances) = (0, 0, 0);
                offering.detail = format!("{pause}; {}", offering.detail);
            }
        }
        offerings
    }

    /// How this backend has done of late.
    #[must_use]
    pub fn health(&self, backend: &OfferName) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).get(backend).cloned().unwrap_or_default()
    }

    fn note(&self, backend: &OfferName, happened: impl FnOnce(&mut Health)) {
        happened(self.health.lock().unwrap_or_else(PoisonError::into_inner).entry(backend.clone()).or_default());
    }

    /// The offers of a card, from what the backends offer.
    #[must_use]
    pub fn offers(offerings: &[(OfferName, Offering)]) -> Vec<Offer> {
        let offer = |(name, offering): &(OfferName, Offering)| Offer {
            name: name.clone(),
            capabilities: offering.capabilities.clone(),
            declared_rates: offering.rates,
        };
        offerings.iter().map(offer).collect()
    }

    /// Tries backends until one runs the grant: first the one the market reserved capacity on, then the others as the order
    /// says, as long as they charge no more than the grant pays. A lack of room, or a host that cannot be talked to, sends the
    /// grant on to the next; a workload that was started and failed ends it there, and so does a try of which it is not
    /// confirmed that nothing is left.
    ///
    /// # Errors
    /// [`ProvisionError`] with each attempt and its reason.
    pub async fn provision_for_grant(
        &self,
        order: Order<'_>,
        log: &mut dyn AttemptLog,
    ) -> Result<ProvisionedInstance, ProvisionError> {
        let mut attempts = Vec::new();
        for backend in self.in_order(order.grant) {
            let name = backend.name().clone();
            if let Some(result) = self.passed_over(backend.as_ref(), order.grant) {
                attempts.push(Attempt { backend: name, result });
                continue;
            }
            let instance = log.intend(&name).await?;
            let begun = Instant::now();
            let error = match backend.provision(&instance, order).await {
                Ok(running) => {
                    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                    self.note(&name, |health| health.succeeded(took_ms));
                    return Ok(running);
                }
                Err(error) => error,
            };
            log.ending(&name, &instance, &error, Moment::BeforeEnd).await;
            let cleaned = backend.terminate(&instance).await.is_ok();
            log.ending(&name, &instance, &error, Moment::AfterEnd).await;
            self.note(&name, |health| health.failed(&error, crate::now_ms()));
            if let Some(pause) = self.health(&name).describe(crate::now_ms()) {
                tracing::warn!(backend = %name, "{pause}");
            }
            log.failed(&name, &error, cleaned).await?;
            let (kind, started) = (error.kind, error.started);
            let result = AttemptResult::Failed { kind, started, cleaned, message: chain(&error) };
            attempts.push(Attempt { backend: name, result });
            if !goes_on(&error, cleaned) || crate::now_ms() >= order.grant.valid_to_ms {
                break;
            }
        }
        Err(ProvisionError::Exhausted(attempts))
    }

    /// Why a backend is not tried for this grant, if it is not.
    fn passed_over(&self, backend: &dyn Backend, grant: &ComputeGrant) -> Option<AttemptResult> {
        if let Err(unfit) = backend.can_satisfy(grant) {
            return Some(AttemptResult::Unfit(unfit));
        }
        if let Some(pause) = self.health(backend.name()).describe(crate::now_ms()) {
            return Some(AttemptResult::Paused(pause));
        }
        // What the reserved one charges is what was cleared, whatever it charges by now.
        let is_reserved = *backend.name() == grant.offer;
        let charges = backend.rates().effective_core_hour(grant.cpu_millicores, grant.ram_mib)?;
        let too_dear = !is_reserved && charges > grant.rate;
        let dear = || TooDear { backend: backend.name().clone(), charges, pays: grant.rate };
        too_dear.then(|| AttemptResult::TooDear(dear()))
    }

    fn in_order(&self, grant: &ComputeGrant) -> impl Iterator<Item = &Arc<dyn Backend>> {
        let standing = |backend: &Arc<dyn Backend>| Standing {
            rate: backend.rates().effective_core_hour(grant.cpu_millicores, grant.ram_mib),
            load: backend.load(),
            ready_ms: self.health(backend.name()).ready_ms(),
        };
        let standings: Vec<Standing> = self.backends.iter().map(standing).collect();
        let reserved = self.backends.iter().position(|backend| *backend.name() == grant.offer);
        order(self.order, &standings, reserved).into_iter().filter_map(|i| self.backends.get(i))
    }
}

/// An error with all its causes, for one line of a log.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
