//! What the operator may know: counts, capacity, reasons and money. Nothing in here can name a requester.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use coalition::{ProviderId, RateQ64};
use coalition_compute::{Attestation, OfferName};
use serde::Serialize;

use crate::backend::{Backend, FailureKind, Offering};
use crate::fleet::Fleet;
use crate::journal::{Journal, Stage};
use crate::market::{Earnings, Market};

/// Said of everything that nothing vouches for.
const NOT_ATTESTED: &str = "not attested";
/// Events kept for the page.
const KEEP_EVENTS: usize = 100;

/// Shared counters of one running bridge.
pub struct Status {
    provider: ProviderId,
    started_ms: u64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    card: Option<PostedCard>,
    card_problem: Option<String>,
    attested: Option<Attestation>,
    attest_problem: Option<String>,
    offerings: Vec<(OfferName, Offering)>,
    attempts: BTreeMap<(OfferName, &'static str), u64>,
    refusals: BTreeMap<String, u64>,
    orphans_destroyed: u64,
    events: VecDeque<StatusEvent>,
}

#[derive(Clone, Copy)]
struct PostedCard {
    at_ms: u64,
    tick: u64,
}

/// One line of the page's history.
#[derive(Clone, Debug, Serialize)]
pub struct StatusEvent {
    /// Wall clock, Unix milliseconds.
    pub at_ms: u64,
    /// What happened, in words that name no requester and no instance.
    pub text: String,
}

/// One backend on the page.
#[derive(Clone, Debug, Serialize)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Whether it answered last time.
    pub reachable: bool,
    /// Regions.
    pub regions: Vec<String>,
    /// Declared CPU, thousandths of a core.
    pub cpu_millicores: u32,
    /// Declared memory, MiB.
    pub ram_mib: u32,
    /// CPU not held by live grants.
    pub free_cpu_millicores: u64,
    /// Memory not held by live grants.
    pub free_ram_mib: u64,
    /// USD per core-hour.
    pub core_hour: RateQ64,
    /// USD per GiB-hour.
    pub gib_hour: RateQ64,
    /// Isolation level, when known.
    pub isolation: Option<String>,
    /// What can vouch for its machines, in words: the root's label, or "not attested".
    pub posture: String,
    /// The level's losses, or what is wrong.
    pub detail: String,
    /// The last trouble with it, if it still stands.
    pub trouble: Option<String>,
    /// Until when it is left alone after failures in a row, Unix milliseconds, if it is.
    pub paused_until_ms: Option<u64>,
    /// Tries by result (`ok` or a failure kind).
    pub attempts: BTreeMap<String, u64>,
}

/// Everything on the page.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// This bridge's provider id.
    pub provider: String,
    /// When it started, Unix milliseconds.
    pub started_ms: u64,
    /// Whether its card is in the market now.
    pub card_live: bool,
    /// Whether the market considers it too old.
    pub card_stale: bool,
    /// When it was last posted, Unix milliseconds.
    pub card_posted_ms: Option<u64>,
    /// The tick it was posted at.
    pub card_tick: Option<u64>,
    /// Why the last post failed, if it did.
    pub card_problem: Option<String>,
    /// What vouches for this bridge, in words: the root's label, or "not attested".
    pub posture: String,
    /// What the committee verified of it.
    pub attestation: Option<Attestation>,
    /// Why the last attestation failed, if it did.
    pub attestation_problem: Option<String>,
    /// Live grants bound to the card, as the log counts them.
    pub bonds: u32,
    /// Why the market's log cannot be followed, if it cannot.
    pub market_trouble: Option<String>,
    /// Grants by state, all states listed.
    pub grants: BTreeMap<&'static str, u64>,
    /// Backends in the fleet's order.
    pub backends: Vec<BackendStatus>,
    /// Grants given back, by reason.
    pub refusals: BTreeMap<String, u64>,
    /// Instances destroyed because no live grant explained them.
    pub orphans_destroyed: u64,
    /// Certified usage and estimated revenue.
    pub earnings: Earnings,
    /// Newest last.
    pub events: Vec<StatusEvent>,
}

impl Status {
    /// Empty counters.
    #[must_use]
    pub fn new(provider: ProviderId) -> Arc<Self> {
        Arc::new(Self { provider, started_ms: crate::now_ms(), inner: Mutex::default() })
    }

    fn with<R>(&self, act: impl FnOnce(&mut Inner) -> R) -> R {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a line to the history. The text must name no requester.
    pub fn event(&self, text: impl Into<String>) {
        let event = StatusEvent { at_ms: crate::now_ms(), text: text.into() };
        self.with(|inner| {
            if inner.events.len() == KEEP_EVENTS {
                inner.events.pop_front();
            }
            inner.events.push_back(event);
        });
    }

    /// The card was posted.
    pub fn card_posted(&self, tick: u64) {
        self.with(|inner| {
            inner.card = Some(PostedCard { at_ms: crate::now_ms(), tick });
            inner.card_problem = None;
        });
    }

    /// The card could not be posted.
    pub fn card_failed(&self, problem: String) {
        self.with(|inner| inner.card_problem = Some(problem));
    }

    /// The committee verified an attestation of this bridge.
    pub fn attested(&self, attested: Attestation) {
        self.with(|inner| (inner.attested, inner.attest_problem) = (Some(attested), None));
    }

    /// This bridge could not be attested.
    pub fn not_attested(&self, problem: String) {
        self.with(|inner| inner.attest_problem = Some(problem));
    }

    /// What the backends offer now.
    pub fn offerings(&self, offerings: Vec<(OfferName, Offering)>) {
        let before = self.with(|inner| inner.offerings.clone());
        let reachable = |known: &[(OfferName, Offering)], name| {
            known.iter().find(|(other, _)| other == name).is_none_or(|(_, offering)| offering.reachable)
        };
        for (name, offering) in &offerings {
            match (reachable(&before, name), offering.reachable) {
                (true, false) => self.event(format!(
                    "{name} cannot be seen; nothing of it is sold, its grants go on: {}",
                    offering.detail
                )),
                (false, true) => self.event(format!("{name} is seen again")),
                _ => {}
            }
        }
        self.with(|inner| inner.offerings = offerings);
    }

    /// A try at provisioning ended.
    pub fn attempt(&self, backend: &OfferName, failed: Option<FailureKind>) {
        let result = failed.map_or("ok", FailureKind::as_str);
        self.with(|inner| *inner.attempts.entry((backend.clone(), result)).or_default() += 1);
    }

    /// A grant was given back.
    pub fn refused(&self, reason: &str) {
        self.with(|inner| *inner.refusals.entry(reason.to_owned()).or_default() += 1);
    }

    /// Instances nobody explained were destroyed.
    pub fn orphan_destroyed(&self) {
        self.with(|inner| inner.orphans_destroyed += 1);
    }

    /// Everything as of now.
    #[must_use]
    pub fn snapshot(&self, market: &dyn Market, journal: &Journal, fleet: &Fleet) -> Snapshot {
        let mut grants: BTreeMap<&'static str, u64> = Stage::NAMES.into_iter().map(|name| (name, 0)).collect();
        journal.for_each(|_, state| *grants.entry(state.stage.name()).or_default() += 1);
        let card = market.card(self.provider);
        let backends = self.with(|inner| {
            let one = |(name, offering): &(OfferName, Offering)| {
                let free = card.as_ref().and_then(|card| card.free.iter().find(|free| free.offer.name == *name));
                let paused_until_ms = fleet.health(name).paused_until(crate::now_ms());
                let backend = fleet.get(name).map(AsRef::as_ref);
                BackendStatus { paused_until_ms, ..backend_status(name, offering, free, backend, &inner.attempts) }
            };
            inner.offerings.iter().map(one).collect()
        });
        let now_ms = market.at().time_ms;
        self.with(|inner| Snapshot {
            posture: inner
                .attested
                .as_ref()
                .filter(|held| now_ms < held.expires_ms)
                .map_or_else(|| NOT_ATTESTED.to_owned(), |held| held.root.label().to_owned()),
            attestation: inner.attested.clone(),
            attestation_problem: inner.attest_problem.clone(),
            provider: self.provider.to_string(),
            started_ms: self.started_ms,
            card_live: card.is_some(),
            card_stale: card.as_ref().is_some_and(|card| card.stale),
            card_posted_ms: inner.card.map(|card| card.at_ms),
            card_tick: inner.card.map(|card| card.tick),
            card_problem: inner.card_problem.clone(),
            bonds: card.as_ref().map_or(0, |card| card.bonds.count),
            market_trouble: market.trouble(),
            grants,
            backends,
            refusals: inner.refusals.clone(),
            orphans_destroyed: inner.orphans_destroyed,
            earnings: market.earnings(self.provider),
            events: inner.events.iter().cloned().collect(),
        })
    }
}

fn backend_status(
    name: &OfferName,
    offering: &Offering,
    free: Option<&coalition_compute::FreeOffer>,
    backend: Option<&dyn Backend>,
    attempts: &BTreeMap<(OfferName, &'static str), u64>,
) -> BackendStatus {
    let capabilities = &offering.capabilities;
    let root = backend.and_then(Backend::guest).and_then(|guest| guest.root().ok());
    let own = attempts.iter().filter(|((backend, _), _)| backend == name);
    BackendStatus {
        name: name.to_string(),
        reachable: offering.reachable,
        regions: capabilities.regions.iter().map(ToString::to_string).collect(),
        cpu_millicores: capabilities.max_cpu_millicores,
        ram_mib: capabilities.max_ram_mib,
        free_cpu_millicores: free.map_or(0, |free| free.cpu_millicores),
        free_ram_mib: free.map_or(0, |free| free.ram_mib),
        core_hour: offering.rates.core_hour,
        gib_hour: offering.rates.gib_hour,
        isolation: offering.isolation.map(|level| level.to_string()),
        posture: root.map_or_else(|| NOT_ATTESTED.to_owned(), |root| root.label().to_owned()),
        detail: offering.detail.clone(),
        trouble: backend.and_then(Backend::trouble),
        paused_until_ms: None,
        attempts: own.map(|((_, result), count)| ((*result).to_owned(), *count)).collect(),
    }
}
