//! Folding one entry. The only code that changes a [`MarketState`].

use coalition::{EvidencePointer, ProviderId, RequestId};
use coalition_log::{Entry, EntryError};

use super::{
    At, CardRecord, ClearingEntry, GrantExtras, GrantRecord, GrantStage, LastClearing, LogEntry, MarketState,
    RequestRecord, RequestStage,
};
use crate::codec::DecodeError;
use crate::entries::{AttestationBody, CardRemovedBody, GrantEndedBody, LogBody, MarketEntry, RequestEndedBody};
use crate::sign::{AskChallenge, PostCard, Signed};
use crate::types::{Challenge, ClearingRecord, ComputeGrant, ComputeRequest, GrantEnd, UsageMetrics};

/// Why an entry could not be folded. A certified log of this version never causes this.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The body does not parse.
    #[error("entry {index} ({kind}) does not parse")]
    Body {
        /// Index of the entry.
        index: u64,
        /// Its kind.
        kind: String,
        /// What was wrong with it.
        #[source]
        source: DecodeError,
    },
    /// The entry breaks the limits of the log format.
    #[error("entry {index} is not a log entry")]
    Entry {
        /// Index of the entry.
        index: u64,
        /// What was wrong with it.
        #[source]
        source: EntryError,
    },
    /// Entries must come in order, each once.
    #[error("entry {found} came after entry {} had been folded", expected.saturating_sub(1))]
    Order {
        /// Lowest index that could come.
        expected: u64,
        /// Index found.
        found: u64,
    },
    /// The entry speaks of something that is not in a state to be spoken of so.
    #[error("entry {index} ({kind}) contradicts the log before it: {what}")]
    Contradiction {
        /// Index of the entry.
        index: u64,
        /// Its kind.
        kind: String,
        /// What contradicts what.
        what: &'static str,
    },
    /// An entry before the state that was restored could not be folded.
    #[error("{what}")]
    Earlier {
        /// What was said of it then.
        what: String,
    },
}

/// What the handlers need to know about the entry they fold.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) pointer: EvidencePointer,
    pub(super) at: At,
    has_clock: bool,
}

pub(super) type Folded = Result<(), &'static str>;

impl MarketState {
    /// Folds one entry; returns it decoded, or `None` when its kind is not this module's.
    ///
    /// Indices must grow. That none is missing is for whoever reads the log to check: the host's own entries need not
    /// come through here.
    ///
    /// # Errors
    /// [`FoldError`] when the entry is damaged or contradicts the log before it. The state then stays as it was.
    pub fn apply(&mut self, entry: &Entry) -> Result<Option<MarketEntry>, FoldError> {
        let index = entry.index;
        if let Some(expected) = self.next_index
            && index < expected
        {
            return Err(FoldError::Order { expected, found: index });
        }
        let decoded =
            MarketEntry::decode(entry).map_err(|source| FoldError::Body { index, kind: entry.kind.clone(), source })?;
        if let Some(decoded) = &decoded {
            let pointer = entry.pointer(self.organism).map_err(|source| FoldError::Entry { index, source })?;
            let at = At { tick: entry.tick.unwrap_or(0), time_ms: entry.time_ms };
            let place = Place { pointer, at, has_clock: entry.tick.is_some() };
            self.fold(decoded, place).map_err(|what| FoldError::Contradiction {
                index,
                kind: entry.kind.clone(),
                what,
            })?;
            self.prune(place);
        }
        self.next_index = Some(index.saturating_add(1));
        Ok(decoded)
    }

    fn fold(&mut self, entry: &MarketEntry, place: Place) -> Folded {
        match entry {
            MarketEntry::Card(signed) => self.fold_card(signed, place),
            MarketEntry::CardRemoved(body) => self.fold_card_removed(body),
            MarketEntry::Request(signed) => self.fold_request(signed, place),
            MarketEntry::RequestEnded(body) => self.fold_request_ended(body),
            MarketEntry::Clearing(record) => self.fold_clearing(record, place),
            MarketEntry::Grant(grant) => self.fold_grant(grant, place),
            MarketEntry::GrantServing(signed) => self.fold_serving(signed.statement.grant_id),
            MarketEntry::GrantEnding(signed) => self.fold_ending(signed.statement.grant_id, place),
            MarketEntry::GrantEnded(body) => self.fold_grant_ended(body, place),
            MarketEntry::Log(body) => self.fold_log(body, place),
            MarketEntry::Challenge(signed) => self.fold_challenge(signed, place),
            MarketEntry::Attestation(body) => self.fold_attestation(body),
            MarketEntry::ExtensionAsked(signed) => self.fold_extension_asked(&signed.statement, place),
            MarketEntry::ExtensionAnswered(signed) => self.fold_extension_answered(&signed.statement, place),
            MarketEntry::Inventory(body) => self.fold_inventory(body, place),
            MarketEntry::UsageReport(signed) => self.fold_report(&signed.statement, place),
        }
    }

    fn fold_card(&mut self, signed: &Signed<PostCard>, place: Place) -> Folded {
        self.forget_providers(place.at);
        let PostCard { sequence, card } = &signed.statement;
        let record = CardRecord {
            card: card.clone(),
            pointer: place.pointer,
            fresh_tick: card.refreshed_at.0.min(place.at.tick),
            posted_ms: place.at.time_ms,
        };
        let provider = self.providers.entry(card.provider_id).or_default();
        (provider.card, provider.sequence, provider.last_refreshed) = (Some(record), *sequence, card.refreshed_at.0);
        Ok(())
    }

    fn fold_challenge(&mut self, signed: &Signed<AskChallenge>, place: Place) -> Folded {
        self.forget_providers(place.at);
        let asked = &signed.statement;
        let provider = self.providers.entry(asked.provider).or_default();
        provider.sequence = asked.sequence;
        provider.platform.asked_at = asked.asked_at.0;
        provider.platform.challenge = Some(Challenge { nonce: place.pointer.digest, time_ms: place.at.time_ms });
        Ok(())
    }

    fn fold_attestation(&mut self, body: &AttestationBody) -> Folded {
        let shown = &body.shown.statement;
        let provider = self.providers.get_mut(&shown.provider).ok_or("the provider is not known")?;
        provider.platform.challenge.take().ok_or("the provider has no challenge to answer")?;
        provider.sequence = shown.sequence;
        provider.platform.attestation = Some(body.found.clone());
        Ok(())
    }

    fn fold_card_removed(&mut self, body: &CardRemovedBody) -> Folded {
        let record = self.providers.get_mut(&body.provider).ok_or("the provider is not known")?;
        record.card.take().ok_or("the provider has no card")?;
        if let crate::entries::CardRemoval::Deregistered(signed) = &body.reason {
            record.sequence = signed.statement.sequence;
        }
        Ok(())
    }

    fn fold_request(&mut self, signed: &Signed<ComputeRequest>, place: Place) -> Folded {
        let request = &signed.statement;
        if self.requests.contains_key(&request.request_id) {
            return Err("the request is already known");
        }
        let ticks_left = request.deadline.0.saturating_sub(place.at.tick);
        let record = RequestRecord {
            signed: signed.clone(),
            pointer: place.pointer,
            admitted_ms: place.at.time_ms,
            deadline_ms: place.at.time_ms.saturating_add(self.params.ms_for_ticks(ticks_left)),
            stage: RequestStage::Open,
            refusals: Vec::new(),
        };
        self.open.insert(place.pointer.index, (request.request_id, signed.key));
        self.requests.insert(request.request_id, record);
        Ok(())
    }

    fn fold_request_ended(&mut self, body: &RequestEndedBody) -> Folded {
        let record = self.requests.get_mut(&body.request_id).ok_or("the request is not known")?;
        if record.stage != RequestStage::Open {
            return Err("the request is not open");
        }
        record.stage = RequestStage::Ended(body.reason.clone());
        self.open.remove(&record.pointer.index);
        self.finished.push_back(body.request_id);
        Ok(())
    }

    fn fold_clearing(&mut self, record: &ClearingRecord, place: Place) -> Folded {
        self.last_clearing = Some(LastClearing { time_ms: place.at.time_ms, digest: place.pointer.digest });
        if self.retention.clearings > 0 {
            let record = record.clone();
            self.clearings.push_back(ClearingEntry { record, pointer: place.pointer, time_ms: place.at.time_ms });
            while self.clearings.len() > self.retention.clearings {
                self.clearings.pop_front();
            }
        }
        Ok(())
    }

    fn fold_grant(&mut self, grant: &ComputeGrant, place: Place) -> Folded {
        let request = self.requests.get_mut(&grant.request_id).ok_or("the request is not known")?;
        if request.stage != RequestStage::Open {
            return Err("the request is not open");
        }
        let provider = self.providers.get_mut(&grant.provider).ok_or("the provider is not known")?;
        request.stage = RequestStage::Granted;
        self.open.remove(&request.pointer.index);
        provider.live = provider.live.saturating_add(1);
        let held = self.held.entry(grant.provider).or_default().entry(grant.offer.clone()).or_default();
        *held = held.plus(grant.cpu_millicores, grant.ram_mib);
        self.live.insert(grant.request_id);
        let record = GrantRecord {
            grant: grant.clone(),
            pointer: place.pointer,
            granted_ms: place.at.time_ms,
            stage: GrantStage::Granted,
            ending_ms: None,
            usage: UsageMetrics::default(),
            log_count: 0,
            logged_to: grant.valid_from,
            final_log: false,
            logs: Vec::new(),
            extras: GrantExtras::default(),
        };
        self.grants.insert(grant.request_id, record);
        Ok(())
    }

    pub(super) fn live_grant_mut(&mut self, id: &RequestId) -> Result<&mut GrantRecord, &'static str> {
        let record = self.grants.get_mut(id).ok_or("the grant is not known")?;
        if record.is_live() { Ok(record) } else { Err("the grant has ended") }
    }

    fn fold_serving(&mut self, id: RequestId) -> Folded {
        self.live_grant_mut(&id)?.stage = GrantStage::Serving;
        Ok(())
    }

    fn fold_ending(&mut self, id: RequestId, place: Place) -> Folded {
        self.live_grant_mut(&id)?.ending_ms = Some(place.at.time_ms);
        Ok(())
    }

    fn fold_log(&mut self, body: &LogBody, place: Place) -> Folded {
        let keep = self.retention.logs_per_grant;
        let log = &body.log.statement;
        let record = self.grants.get_mut(&log.grant_id).ok_or("the grant is not known")?;
        if record.is_live() == body.late {
            return Err("a log is late exactly when its grant has ended");
        }
        record.usage = record.usage.saturating_add(log.usage);
        record.log_count = log.number;
        record.logged_to = log.window.to;
        record.final_log |= log.ended.is_some();
        if record.is_live() {
            record.stage = GrantStage::Serving;
        }
        if keep > 0 {
            record.logs.push(LogEntry { log: log.clone(), late: body.late, pointer: place.pointer });
            let excess = record.logs.len().saturating_sub(keep);
            record.logs.drain(..excess);
        }
        Ok(())
    }

    fn fold_grant_ended(&mut self, body: &GrantEndedBody, place: Place) -> Folded {
        let record = self.live_grant_mut(&body.grant_id)?;
        record.extras.waiting = None;
        record.stage = GrantStage::Ended(body.reason.clone());
        let wanted = record.ending_ms.is_none();
        let grant = record.grant.clone();
        self.live.remove(&body.grant_id);
        self.release(&grant);
        self.note_ending(&grant.provider, place);
        if let GrantEnd::Refused(signed) = &body.reason
            && wanted
        {
            return self.reopen(body.grant_id, grant.provider, signed.statement.reason);
        }
        self.finished.push_back(body.grant_id);
        Ok(())
    }

    fn release(&mut self, grant: &ComputeGrant) {
        if let Some(offers) = self.held.get_mut(&grant.provider) {
            if let Some(held) = offers.get_mut(&grant.offer) {
                *held = held.minus(grant.cpu_millicores, grant.ram_mib);
            }
            offers.retain(|_, held| held.instances > 0);
            if offers.is_empty() {
                self.held.remove(&grant.provider);
            }
        }
        if let Some(provider) = self.providers.get_mut(&grant.provider) {
            provider.live = provider.live.saturating_sub(1);
        }
    }

    fn reopen(&mut self, id: RequestId, provider: ProviderId, reason: crate::types::RefusalReason) -> Folded {
        let request = self.requests.get_mut(&id).ok_or("the request of the grant is not known")?;
        request.refusals.push((provider, reason));
        request.stage = RequestStage::Open;
        // Its old place in the queue: a refusal is not the requester's fault.
        self.open.insert(request.pointer.index, (id, request.signed.key));
        Ok(())
    }

    fn forget_providers(&mut self, at: At) {
        let forgettable: Vec<ProviderId> = self
            .providers
            .iter()
            .filter(|(_, record)| self.is_provider_forgettable(record, at))
            .map(|(id, _)| *id)
            .collect();
        for id in forgettable {
            self.providers.remove(&id);
        }
    }

    /// Drops finished requests and their grants beyond the retention once their deadlines have passed.
    fn prune(&mut self, place: Place) {
        while self.finished.len() > self.retention.finished {
            let Some(id) = self.finished.front() else { return };
            let replayable = self.requests.get(id).is_some_and(|record| {
                // Without an Almanac ticks stand still, and committee time is all there is.
                let past = record.request().deadline.0 <= place.at.tick;
                !past && (place.has_clock || place.at.time_ms < record.deadline_ms)
            });
            if replayable {
                return;
            }
            self.requests.remove(id);
            self.grants.remove(id);
            self.finished.pop_front();
        }
    }
}
