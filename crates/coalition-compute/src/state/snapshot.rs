//! The market as bytes, and back. What follows from the rest is not written: the queue, what is live, what is held. Where
//! the market asks for attestation, what is known of platforms follows the rest; extensions, reports and inventories come last, where there
//! are any.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coalition::{ProviderId, RequestId};
use coalition_log::{SnapshotError, state::MAX_STATE_BYTES};
use serde::{Deserialize, Serialize};

use super::{
    ClearingEntry, GrantExtras, GrantRecord, Held, InventoryRecord, LastClearing, MarketState, PlatformRecord,
    ProviderRecord, RequestRecord, RequestStage,
};
use crate::codec;
use crate::types::OfferName;

#[derive(Serialize)]
struct Written<'a> {
    providers: &'a BTreeMap<ProviderId, ProviderRecord>,
    requests: &'a BTreeMap<RequestId, RequestRecord>,
    grants: &'a BTreeMap<RequestId, GrantRecord>,
    finished: &'a VecDeque<RequestId>,
    clearings: &'a VecDeque<ClearingEntry>,
    last_clearing: Option<LastClearing>,
    next_index: Option<u64>,
    fault: Option<&'a str>,
}

#[derive(Serialize, Deserialize)]
struct Read {
    providers: BTreeMap<ProviderId, ProviderRecord>,
    requests: BTreeMap<RequestId, RequestRecord>,
    grants: BTreeMap<RequestId, GrantRecord>,
    finished: VecDeque<RequestId>,
    clearings: VecDeque<ClearingEntry>,
    last_clearing: Option<LastClearing>,
    next_index: Option<u64>,
    fault: Option<String>,
}

type Platforms = BTreeMap<ProviderId, PlatformRecord>;
type Later = (BTreeMap<RequestId, GrantExtras>, BTreeMap<ProviderId, InventoryRecord>);
type HeldOffers = BTreeMap<ProviderId, BTreeMap<OfferName, Held>>;

impl MarketState {
    /// The state as bytes; with it why the machine behind it stopped folding, if it did.
    pub(crate) fn to_snapshot(&self, fault: Option<&str>) -> Vec<u8> {
        let written = Written {
            providers: &self.providers,
            requests: &self.requests,
            grants: &self.grants,
            finished: &self.finished,
            clearings: &self.clearings,
            last_clearing: self.last_clearing,
            next_index: self.next_index,
            fault,
        };
        let later = (extras(&self.grants), inventories(&self.providers));
        let is_plain = later.0.is_empty() && later.1.is_empty();
        match (&self.params.attestation, is_plain) {
            (None, true) => codec::encode(&written),
            (None, false) => codec::encode(&(written, later)),
            (Some(_), true) => codec::encode(&(written, platforms(&self.providers))),
            (Some(_), false) => codec::encode(&(written, platforms(&self.providers), later)),
        }
    }

    /// The state of a market with this one's organism, parameters and retention, and the fault, from a snapshot.
    pub(crate) fn restored(&self, bytes: &[u8]) -> Result<(Self, Option<String>), SnapshotError> {
        let wrong = |what: &str| SnapshotError::Contradiction(what.into());
        let (mut read, platforms, later) = parse(bytes, self.params.attestation.is_some())?;
        check(&read).map_err(wrong)?;
        place(&mut read.providers, platforms).map_err(wrong)?;
        if let Some(later) = later {
            place_later(&mut read, later).map_err(wrong)?;
        }
        let of_open = |(id, record): (&RequestId, &RequestRecord)| {
            (record.stage == RequestStage::Open).then_some((record.pointer.index, (*id, record.signed.key)))
        };
        let open = read.requests.iter().filter_map(of_open).collect();
        let live: BTreeSet<RequestId> = live(&read.grants).map(|record| record.grant.request_id).collect();
        let state = Self {
            organism: self.organism,
            params: self.params.clone(),
            retention: self.retention,
            open,
            live,
            held: held(&read.grants),
            providers: read.providers,
            requests: read.requests,
            grants: read.grants,
            finished: read.finished,
            clearings: read.clearings,
            last_clearing: read.last_clearing,
            next_index: read.next_index,
        };
        Ok((state, read.fault))
    }
}

/// Bytes are whole in one form only: what is left over in one makes it another.
fn parse(bytes: &[u8], attested: bool) -> Result<(Read, Platforms, Option<Later>), SnapshotError> {
    if attested {
        if let Ok((read, platforms)) = codec::decode(bytes, MAX_STATE_BYTES) {
            return Ok((read, platforms, None));
        }
        let (read, platforms, later) = codec::decode(bytes, MAX_STATE_BYTES)?;
        return Ok((read, platforms, Some(later)));
    }
    if let Ok(read) = codec::decode(bytes, MAX_STATE_BYTES) {
        return Ok((read, Platforms::new(), None));
    }
    let (read, later) = codec::decode(bytes, MAX_STATE_BYTES)?;
    Ok((read, Platforms::new(), Some(later)))
}

fn extras(grants: &BTreeMap<RequestId, GrantRecord>) -> BTreeMap<&RequestId, &GrantExtras> {
    let known = grants.iter().filter(|(_, record)| record.extras != GrantExtras::default());
    known.map(|(id, record)| (id, &record.extras)).collect()
}

fn inventories(providers: &BTreeMap<ProviderId, ProviderRecord>) -> BTreeMap<&ProviderId, &InventoryRecord> {
    let known = providers.iter().filter(|(_, record)| record.inventory != InventoryRecord::default());
    known.map(|(id, record)| (id, &record.inventory)).collect()
}

fn place_later(read: &mut Read, (grants, providers): Later) -> Result<(), &'static str> {
    if grants.is_empty() && providers.is_empty() {
        return Err("nothing is written of extensions, reports and inventories, at length");
    }
    for (id, extras) in grants {
        if extras == GrantExtras::default() {
            return Err("extras of which there are none are written");
        }
        if extras.report.as_ref().is_some_and(|last| last.report.grant_id != id) {
            return Err("a usage report stands under another's grant");
        }
        read.grants.get_mut(&id).ok_or("extras of an unknown grant")?.extras = extras;
    }
    for (id, inventory) in providers {
        if inventory.last.as_ref().is_none_or(|last| last.stated.provider != id) {
            return Err("an inventory is missing or stands under another's id");
        }
        read.providers.get_mut(&id).ok_or("an inventory of an unknown provider")?.inventory = inventory;
    }
    Ok(())
}

fn platforms(providers: &BTreeMap<ProviderId, ProviderRecord>) -> BTreeMap<&ProviderId, &PlatformRecord> {
    let known = providers.iter().filter(|(_, record)| record.platform != PlatformRecord::default());
    known.map(|(id, record)| (id, &record.platform)).collect()
}

fn place(providers: &mut BTreeMap<ProviderId, ProviderRecord>, platforms: Platforms) -> Result<(), &'static str> {
    for (id, platform) in platforms {
        if platform == PlatformRecord::default() {
            return Err("a platform of which nothing is known is written");
        }
        if platform.attestation.as_ref().is_some_and(|held| held.provider != id) {
            return Err("an attestation stands under another's id");
        }
        providers.get_mut(&id).ok_or("a platform's provider is unknown")?.platform = platform;
    }
    Ok(())
}

fn live(grants: &BTreeMap<RequestId, GrantRecord>) -> impl Iterator<Item = &GrantRecord> {
    grants.values().filter(|record| record.is_live())
}

fn held(grants: &BTreeMap<RequestId, GrantRecord>) -> HeldOffers {
    let mut held = HeldOffers::new();
    for GrantRecord { grant, .. } in live(grants) {
        let offer = held.entry(grant.provider).or_default().entry(grant.offer.clone()).or_default();
        *offer = offer.plus(grant.cpu_millicores, grant.ram_mib);
    }
    held
}

fn check(read: &Read) -> Result<(), &'static str> {
    if read.requests.iter().any(|(id, record)| *id != record.request().request_id) {
        return Err("a request stands under another's id");
    }
    if read.grants.iter().any(|(id, record)| *id != record.grant.request_id) {
        return Err("a grant stands under another's id");
    }
    let has_request = |record: &GrantRecord| {
        read.requests.get(&record.grant.request_id).is_some_and(|request| request.stage == RequestStage::Granted)
    };
    if !live(&read.grants).all(has_request) {
        return Err("a live grant has no granted request");
    }
    let mut counts: BTreeMap<ProviderId, u32> = BTreeMap::new();
    for record in live(&read.grants) {
        let count = counts.entry(record.grant.provider).or_default();
        *count = count.saturating_add(1);
    }
    let counted = |(id, record): (&ProviderId, &ProviderRecord)| record.live == counts.get(id).copied().unwrap_or(0);
    if !read.providers.iter().all(counted) || counts.keys().any(|id| !read.providers.contains_key(id)) {
        return Err("a provider's live grants are miscounted");
    }
    let finished: BTreeSet<&RequestId> = read.finished.iter().collect();
    if finished.len() != read.finished.len() || finished.iter().any(|id| !read.requests.contains_key(*id)) {
        return Err("a finished request is unknown or finished twice");
    }
    Ok(())
}
