//! The market in memory: the committee's real machine and the bridge's real fold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coalition::{ProviderId, RequestId, UniqueId};
use coalition_compute::*;
use coalition_log::entry::WriteId;
use coalition_log::{Context, Entry, Fold, Machine, Refusal, retirement::RETIRED_CODE};
use coalition_organism::WriteError;
use compute_bridge::market::{Books, Earnings, GrantSight, Market, MarketError, MarketFold};
use compute_bridge::now_ms;

use super::harness::{CADENCE_MS, organism};

struct Book {
    machine: ComputeMachine,
    fold: MarketFold,
    entries: Vec<Entry>,
    writes: BTreeMap<[u8; 16], Result<(), Refusal>>,
    online: bool,
    retired: bool,
    /// How far the committee's clock is ahead.
    skew_ms: i64,
    /// Whether nothing tells the committee's time but entries.
    clockless: bool,
}

/// The real machine and the real fold, ordered by a mutex instead of a committee.
pub(crate) struct MemoryMarket {
    started_ms: u64,
    book: Mutex<Book>,
    changes: tokio::sync::watch::Sender<u64>,
}

pub(crate) fn params() -> ComputeParams {
    ComputeParams { round_ms: 10, grant_grace_ticks: 100, ..ComputeParams::standard(CADENCE_MS) }
}

impl MemoryMarket {
    pub(crate) fn new() -> Arc<Self> {
        Self::with(params())
    }

    pub(crate) fn with(params: ComputeParams) -> Arc<Self> {
        let machine = ComputeMachine::new(organism(), params.clone()).unwrap();
        let fold = MarketFold::new(organism(), params);
        let book = Book {
            machine,
            fold,
            entries: Vec::new(),
            writes: BTreeMap::new(),
            online: true,
            retired: false,
            skew_ms: 0,
            clockless: false,
        };
        Arc::new(Self {
            started_ms: now_ms() - 10_000,
            book: Mutex::new(book),
            changes: tokio::sync::watch::channel(0).0,
        })
    }

    fn context(&self) -> Context {
        let now_ms = now_ms();
        let tick = (now_ms - self.started_ms) / u64::from(CADENCE_MS);
        let time_ms = now_ms.saturating_add_signed(self.book.lock().unwrap().skew_ms);
        Context { height: tick, time_ms, tick }
    }

    pub(crate) fn set_clock_ahead_by(&self, skew_ms: i64) {
        self.book.lock().unwrap().skew_ms = skew_ms;
    }

    /// From now on the committee's time is only known from the last entry.
    pub(crate) fn take_clock_away(&self) {
        self.book.lock().unwrap().clockless = true;
    }

    pub(crate) fn set_online(&self, online: bool) {
        self.book.lock().unwrap().online = online;
    }

    /// As after the market's last entry.
    pub(crate) fn retire(&self) {
        self.book.lock().unwrap().retired = true;
    }

    /// Executes one command, then everything that is due.
    pub(crate) fn execute(&self, command: Option<&Command>) -> Result<(), coalition_log::Refusal> {
        let cx = self.context();
        let mut book = self.book.lock().unwrap();
        let decided = command.map_or(Ok(Vec::new()), |command| book.machine.decide(&cx, &command.to_bytes()));
        let result = decided.map(|drafts| book.commit(drafts, &cx));
        while let Some(drafts) = book.machine.round(&cx) {
            book.commit(drafts, &cx);
        }
        let size = book.entries.len() as u64;
        drop(book);
        self.changes.send_if_modified(|seen| std::mem::replace(seen, size) != size);
        result
    }

    pub(crate) fn read<R>(&self, look: impl FnOnce(&MarketFold) -> R) -> R {
        look(&self.book.lock().unwrap().fold)
    }

    pub(crate) fn record(&self, id: &RequestId) -> Option<GrantRecord> {
        let _ = self.execute(None);
        self.read(|fold| fold.view().grant(id).cloned())
    }

    /// How many inventories agreed with the log.
    pub(crate) fn agreeing(&self) -> usize {
        let book = self.book.lock().unwrap();
        let agreed = |entry: &&Entry| matches!(MarketEntry::decode(entry), Ok(Some(MarketEntry::Inventory(body))) if body.agrees);
        book.entries.iter().filter(agreed).count()
    }

    /// The newest log of a grant.
    pub(crate) fn last_log(&self, id: &RequestId) -> ComputeLog {
        let book = self.book.lock().unwrap();
        let log = |entry: &Entry| match MarketEntry::decode(entry) {
            Ok(Some(MarketEntry::Log(body))) if body.log.statement.grant_id == *id => Some(body.log.statement),
            _ => None,
        };
        book.entries.iter().rev().find_map(log).expect("the grant has a log")
    }

    /// How many entries of this kind there are.
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.book.lock().unwrap().entries.iter().filter(|entry| entry.kind == kind).count()
    }

    /// Kinds and bodies of everything committed, for searching.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.book.lock().unwrap().entries.iter().flat_map(|entry| entry.body.clone()).collect()
    }
}

impl Book {
    fn commit(&mut self, drafts: Vec<coalition_log::Draft>, cx: &Context) {
        for draft in drafts {
            let entry = draft.into_entry(self.entries.len() as u64, Some(cx.tick), cx.time_ms);
            self.machine.evolve(&entry);
            self.fold.fold(&entry).unwrap();
            self.entries.push(entry);
        }
    }
}

#[async_trait]
impl Market for MemoryMarket {
    fn organism(&self) -> UniqueId {
        organism()
    }

    fn at(&self) -> At {
        let (cx, book) = (self.context(), self.book.lock().unwrap());
        let last_ms = book.entries.last().map_or(0, |entry| entry.time_ms);
        At { tick: cx.tick, time_ms: if book.clockless { last_ms } else { cx.time_ms } }
    }

    fn grants_of(&self, provider: ProviderId) -> Vec<GrantSight> {
        self.read(|fold| {
            let own = fold.view().state().grants().values().filter(|record| record.grant.provider == provider);
            own.map(|record| fold.sight(record)).collect()
        })
    }

    fn grant(&self, provider: ProviderId, id: &RequestId) -> Option<GrantSight> {
        self.read(|fold| {
            fold.view().grant(id).filter(|record| record.grant.provider == provider).map(|record| fold.sight(record))
        })
    }

    fn card(&self, provider: ProviderId) -> Option<CardView> {
        let at = self.at();
        self.read(|fold| fold.view().card(&provider, at))
    }

    fn card_sequence(&self, provider: ProviderId) -> u64 {
        self.read(|fold| fold.view().state().providers().get(&provider).map_or(0, |record| record.sequence))
    }

    fn attestation_rule(&self) -> Option<AttestationRule> {
        self.read(|fold| fold.view().state().params().attestation.clone())
    }

    fn challenge(&self, provider: ProviderId) -> Option<Challenge> {
        self.read(|fold| fold.view().state().providers().get(&provider)?.platform.challenge)
    }

    fn attestation(&self, provider: ProviderId) -> Option<Attestation> {
        self.read(|fold| fold.view().state().providers().get(&provider)?.platform.attestation.clone())
    }

    fn earnings(&self, provider: ProviderId) -> Earnings {
        self.read(|fold| fold.earnings(provider))
    }

    fn books(&self, provider: ProviderId) -> Books {
        self.read(|fold| fold.books(provider))
    }

    async fn changed(&self, seen: u64, deadline: Duration) -> u64 {
        let _ = self.execute(None);
        let mut changes = self.changes.subscribe();
        let wait = changes.wait_for(|size| *size > seen);
        let _ = tokio::time::timeout(deadline.min(Duration::from_millis(50)), wait).await;
        *self.changes.borrow()
    }

    async fn write(&self, id: WriteId, command: Command, deadline: Duration) -> Result<(), MarketError> {
        let (online, retired) = {
            let book = self.book.lock().unwrap();
            (book.online, book.retired)
        };
        if retired {
            return Err(MarketError::Refused(Refusal::new(RETIRED_CODE, "the market has retired")));
        }
        if !online {
            tokio::time::sleep(deadline.min(Duration::from_millis(20))).await;
            return Err(MarketError::Unavailable(WriteError::Deadline { waited_ms: 20, last: None }));
        }
        if let Some(known) = self.book.lock().unwrap().writes.get(&id.0).cloned() {
            return known.map_err(MarketError::Refused);
        }
        let result = self.execute(Some(&command));
        self.book.lock().unwrap().writes.insert(id.0, result.clone());
        result.map_err(MarketError::Refused)
    }

    fn trouble(&self) -> Option<String> {
        None
    }
}
