//! What there is on the backends, held against the journal: owned, found again, or explained by nothing; and what it costs. A backend that
//! cannot be looked at is said to be blind, never empty.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coalition::{MicroUsd, ProviderId, RateQ64, RequestId};
use coalition_compute::OfferName;
use ed25519_dalek::SigningKey;
use serde::Serialize;

use crate::backend::{Backend, InstanceName, OwnedInstance};
use crate::backends::build::backends;
use crate::config::BridgeConfig;
use crate::fleet::chain;
use crate::journal::{self, GrantState, Stage};
use crate::wiring::BridgeError;

/// What an instance's price is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// USD per core and hour.
    pub core_hour: RateQ64,
    /// Cores it is for, in thousandths.
    pub cpu_millicores: u32,
    /// Where it comes from.
    pub basis: CostBasis,
}

/// Where a cost comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CostBasis {
    /// What the boot file says the cloud charges for the size.
    SizePrice,
    /// What this bridge posts for a machine of the grant's size; its own machines cost it something else.
    PostedRate,
}

impl Price {
    fn of_seconds(&self, seconds: u64) -> Option<MicroUsd> {
        self.core_hour.cost_of_ms(u64::from(self.cpu_millicores).checked_mul(seconds)?)
    }
}

/// Whose an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// An open grant of the journal explains it.
    Owned,
    /// As owned, and it was found again after a journal had been lost.
    Adopted,
    /// Nothing explains it; the sweep destroys it after its grace.
    Orphaned,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Where it is.
    pub backend: OfferName,
    /// Its name there.
    pub instance: InstanceName,
    /// Whose it is.
    pub standing: Standing,
    /// Whether it runs, or is only something left over.
    pub running: bool,
    /// The grant it is for.
    pub grant: Option<RequestId>,
    /// Where that stands.
    pub stage: Option<&'static str>,
    /// Seconds since the grant; of what no grant explains, since it is there.
    pub age_sec: Option<u64>,
    /// What it costs per hour.
    pub cost_hour: Option<MicroUsd>,
    /// What it has cost in that time.
    pub cost_so_far: Option<MicroUsd>,
    /// Where the two come from.
    pub cost_basis: Option<CostBasis>,
}

/// A backend that could not be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blind {
    /// Which.
    pub backend: OfferName,
    /// Why.
    pub why: String,
}

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// Grants the journal has open.
    pub open_grants: usize,
    /// Instances, by backend and name.
    pub items: Vec<Item>,
    /// What could not be looked at; what is there is not among the instances.
    pub blind: Vec<Blind>,
}

/// What one backend was seen to hold.
pub type Seen = (Arc<dyn Backend>, Result<Vec<OwnedInstance>, String>);

/// Lists every backend at once.
pub async fn look(fleet: &[Arc<dyn Backend>]) -> Vec<Seen> {
    let listed = fleet.iter().map(|backend| async move {
        let held = backend.list_owned().await.map_err(|error| chain(&error));
        (Arc::clone(backend), held)
    });
    futures::future::join_all(listed).await
}

/// Holds what was seen against open grants. Names in `expected` may be explained by grants that are being looked for.
#[must_use]
pub fn take(
    open: &BTreeMap<RequestId, GrantState>,
    seen: &[Seen],
    expected: &BTreeSet<InstanceName>,
    now_ms: u64,
) -> Inventory {
    let explained: BTreeMap<&InstanceName, &GrantState> =
        open.values().filter_map(|state| Some((state.instance()?.1, state))).collect();
    let mut found = Inventory { open_grants: open.len(), ..Inventory::default() };
    for (backend, held) in seen {
        match held {
            Err(why) => found.blind.push(Blind { backend: backend.name().clone(), why: why.clone() }),
            Ok(held) => {
                let known =
                    held.iter().filter(|one| explained.contains_key(&one.name) || !expected.contains(&one.name));
                found
                    .items
                    .extend(known.map(|one| item(backend.as_ref(), one, explained.get(&one.name).copied(), now_ms)));
            }
        }
    }
    found.items.sort_by(|a, b| (&a.backend, &a.instance).cmp(&(&b.backend, &b.instance)));
    found
}

fn item(backend: &dyn Backend, one: &OwnedInstance, state: Option<&GrantState>, now_ms: u64) -> Item {
    let grant = state.map(|state| &state.grant);
    let price = grant.map_or_else(|| backend.price_of(one), |grant| backend.price(grant));
    let began_ms = grant.map(|grant| grant.valid_to_ms.saturating_sub(u64::from(grant.duration_sec) * 1_000));
    let age_sec = began_ms.or(one.since_ms).map(|began_ms| now_ms.saturating_sub(began_ms) / 1_000);
    Item {
        backend: backend.name().clone(),
        instance: one.name.clone(),
        standing: match state {
            None => Standing::Orphaned,
            Some(state) if was_found_again(state) => Standing::Adopted,
            Some(_) => Standing::Owned,
        },
        running: one.running,
        grant: grant.map(|grant| grant.request_id),
        stage: state.map(|state| state.stage.name()),
        age_sec,
        cost_hour: price.and_then(|price| price.of_seconds(3_600)),
        cost_so_far: price.zip(age_sec).and_then(|(price, age_sec)| price.of_seconds(age_sec)),
        cost_basis: price.map(|price| price.basis),
    }
}

/// An adopted instance is known by its name alone: where it is reached was on the receipt.
fn was_found_again(state: &GrantState) -> bool {
    match &state.stage {
        Stage::Replied { instance } | Stage::Extending { instance, .. } => instance.port == 0,
        _ => false,
    }
}

impl Inventory {
    /// How many of this standing.
    #[must_use]
    pub fn count(&self, standing: Standing) -> usize {
        self.items.iter().filter(|item| item.standing == standing).count()
    }

    /// Whether everything could be seen and is explained.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.blind.is_empty() && self.count(Standing::Orphaned) == 0
    }
}

impl std::fmt::Display for Inventory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for item in &self.items {
            let standing = format!("{:?}", item.standing).to_lowercase();
            let grant = item.grant.map_or_else(|| "-".to_owned(), |grant| grant.to_string()[..8].to_owned());
            let age = item.age_sec.map_or_else(|| "-".to_owned(), |age| format!("{age} s"));
            let cost = |cost: Option<MicroUsd>| cost.map_or_else(|| "unknown".to_owned(), |cost| cost.to_string());
            let basis = match item.cost_basis {
                Some(CostBasis::SizePrice) => " (the size's price)",
                Some(CostBasis::PostedRate) => " (the posted rate)",
                None => "",
            };
            writeln!(
                f,
                "{:<16} {} {standing:<8} {:<8} grant {grant} {:<12} age {age:<8} {} per hour, {} so far{basis}",
                item.backend,
                item.instance,
                if item.running { "running" } else { "left" },
                item.stage.unwrap_or("-"),
                cost(item.cost_hour),
                cost(item.cost_so_far),
            )?;
        }
        for blind in &self.blind {
            writeln!(f, "{:<16} BLIND: what is there is not counted: {}", blind.backend, blind.why)?;
        }
        let (owned, adopted) = (self.count(Standing::Owned), self.count(Standing::Adopted));
        writeln!(
            f,
            "{} open grants; {} instances: {owned} owned, {adopted} adopted, {} orphaned; {} backends blind",
            self.open_grants,
            self.items.len(),
            self.count(Standing::Orphaned),
            self.blind.len()
        )
    }
}

/// The inventory of a boot file's bridge, whether or not it runs: its journal is only read. A runner that is missing on a machine is
/// installed, and a key that is missing is made; nothing else changes.
///
/// # Errors
/// [`BridgeError`] when boot file or journal cannot be read.
pub async fn of_boot_file(config: BridgeConfig) -> Result<Inventory, BridgeError> {
    let resolved = config.resolve()?;
    let public = SigningKey::from_bytes(resolved.key.expose()).verifying_key().to_bytes();
    let fleet = backends(&resolved, ProviderId::from_public_key(&public))?;
    let seen = look(&fleet).await;
    // The journal is read after the machines: what appeared in between is younger than its intent.
    let mut open = journal::read(&resolved.config.absolute(resolved.config.data_dir.get_ref()))?;
    open.retain(|_, state| !state.is_closed());
    let found = take(&open, &seen, &BTreeSet::new(), crate::now_ms());
    for backend in fleet {
        backend.close().await;
    }
    Ok(found)
}
