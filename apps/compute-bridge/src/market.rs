//! The Compute market as the bridge sees and writes it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coalition::{AlmanacTick, MicroUsd, ProviderId, RequestId, UniqueId};
use coalition_almanac::{AlmanacParams, Ticks};
use coalition_compute::{
    At, Attestation, AttestationRule, CardView, Challenge, Command, ComputeGrant, ComputeParams, GrantEnd, GrantRecord,
    GrantStage, InventoryEntry, MarketView, UsageMetrics,
};
use coalition_log::{Entry, Fold, FoldFault, Refusal, retirement::RETIRED_CODE};
use coalition_organism::{Follower, Organism, QUORUM_PATIENCE, WriteError, WriteId};
use serde::{Deserialize, Serialize};

/// An extension of a grant, and the end it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// Its number.
    pub number: u32,
    /// How much longer, in seconds.
    pub extra_sec: u32,
    /// The tick expected at the new end.
    pub valid_to: AlmanacTick,
    /// The new end, Unix milliseconds.
    pub valid_to_ms: u64,
}

/// A grant to this bridge as the certified log has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantSight {
    /// The grant.
    pub grant: ComputeGrant,
    /// Whether it still holds capacity.
    pub live: bool,
    /// Whether the provider has said that it serves.
    pub serving: bool,
    /// Whether the requester wants it ended.
    pub ending: bool,
    /// How it ended, if it has.
    pub ended: Option<GrantEnd>,
    /// Whether the final log is in.
    pub final_log: bool,
    /// Number of the last log.
    pub log_count: u32,
    /// End of the last log's window.
    pub logged_to: AlmanacTick,
    /// When the market gives up waiting for the final log, Unix milliseconds.
    pub gives_up_ms: u64,
    /// The extension that waits for an answer.
    pub extension: Option<Extension>,
}

/// What a statement of the inventory follows on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Index of the newest entry seen.
    pub as_of: u64,
    /// The last statement.
    pub last: Option<InventoryEntry>,
}

/// What the certified log says this bridge has done, as far as the fold remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Earnings {
    /// Grants with a final log.
    pub grants_logged: u64,
    /// Their usage.
    pub usage: UsageMetrics,
    /// What their logged windows are worth at their rates. An estimate: settlement happens elsewhere.
    pub revenue: MicroUsd,
}

/// Why a write did not commit.
#[derive(Debug, thiserror::Error)]
pub enum MarketError {
    /// The market's rules say no.
    #[error("the market refused: {0}")]
    Refused(Refusal),
    /// Not certified in time, or not admitted by ticket now; the same write may be tried again.
    #[error("the market did not certify")]
    Unavailable(#[source] WriteError),
}

/// The market.
#[async_trait]
pub trait Market: Send + Sync + 'static {
    /// The Compute organism; statements are signed for it.
    fn organism(&self) -> UniqueId;
    /// Tick and committee time as last seen.
    fn at(&self) -> At;
    /// Every remembered grant to this provider.
    fn grants_of(&self, provider: ProviderId) -> Vec<GrantSight>;
    /// One grant to this provider.
    fn grant(&self, provider: ProviderId, id: &RequestId) -> Option<GrantSight>;
    /// This provider's card.
    fn card(&self, provider: ProviderId) -> Option<CardView>;
    /// Sequence of this provider's last card statement, 0 when there is none.
    fn card_sequence(&self, provider: ProviderId) -> u64;
    /// What the market asks of providers' platforms, if anything.
    fn attestation_rule(&self) -> Option<AttestationRule>;
    /// The challenge this provider has not answered yet.
    fn challenge(&self, provider: ProviderId) -> Option<Challenge>;
    /// This provider's last verified attestation, which may have expired.
    fn attestation(&self, provider: ProviderId) -> Option<Attestation>;
    /// What this provider has earned.
    fn earnings(&self, provider: ProviderId) -> Earnings;
    /// How far the log is seen, and this provider's last inventory in it.
    fn books(&self, provider: ProviderId) -> Books;
    /// Waits until more than `seen` entries are folded, at most `deadline`; answers how many are.
    async fn changed(&self, seen: u64, deadline: Duration) -> u64;
    /// Writes a command; the same id may be used again for the same intent.
    ///
    /// # Errors
    /// [`MarketError`].
    async fn write(&self, id: WriteId, command: Command, deadline: Duration) -> Result<(), MarketError>;
    /// Why the log cannot be followed right now, if it cannot.
    fn trouble(&self) -> Option<String>;
}

/// The fold a bridge keeps of the Compute log.
pub struct MarketFold {
    view: MarketView,
    last: At,
    newest: u64,
    entries: u64,
}

impl MarketFold {
    /// An empty fold.
    #[must_use]
    pub const fn new(organism: UniqueId, params: ComputeParams) -> Self {
        let view = MarketView::new(organism, params);
        Self { view, last: At { tick: 0, time_ms: 0 }, newest: 0, entries: 0 }
    }

    /// The view.
    #[must_use]
    pub const fn view(&self) -> &MarketView {
        &self.view
    }

    /// What the log says about one grant.
    #[must_use]
    pub fn sight(&self, record: &GrantRecord) -> GrantSight {
        GrantSight {
            grant: record.grant.clone(),
            live: record.is_live(),
            serving: record.stage == GrantStage::Serving,
            ending: record.ending_ms.is_some(),
            ended: match &record.stage {
                GrantStage::Ended(end) => Some(end.clone()),
                GrantStage::Granted | GrantStage::Serving => None,
            },
            final_log: record.final_log,
            log_count: record.log_count,
            logged_to: record.logged_to,
            gives_up_ms: self.view.state().grant_end_ms(record),
            extension: record.extras.waiting.map(|waiting| {
                let longer = record.grant.extended(waiting.extra_sec, self.view.state().params());
                let (valid_to, valid_to_ms) = (longer.valid_to, longer.valid_to_ms);
                Extension { number: waiting.number, extra_sec: waiting.extra_sec, valid_to, valid_to_ms }
            }),
        }
    }

    /// How far the log is folded, and a provider's last inventory in it.
    #[must_use]
    pub fn books(&self, provider: ProviderId) -> Books {
        Books { as_of: self.newest, last: self.view.inventory(&provider).cloned() }
    }

    /// What the log says a provider has earned.
    #[must_use]
    pub fn earnings(&self, provider: ProviderId) -> Earnings {
        let params = self.view.state().params();
        let mut sum = Earnings::default();
        let done = self.view.state().grants().values().filter(|r| r.grant.provider == provider && r.final_log);
        for record in done {
            sum.grants_logged += 1;
            sum.usage = sum.usage.saturating_add(record.usage);
            let window_ms = record.logs.iter().map(|entry| params.ms_for_ticks(entry.log.window.ticks())).sum::<u64>();
            let most_ms = u64::from(record.grant.duration_sec).saturating_mul(1_000);
            let core_ms = u64::from(record.grant.cpu_millicores).saturating_mul(window_ms.min(most_ms)) / 1_000;
            let worth = record.grant.rate.cost_of_ms(core_ms).unwrap_or(MicroUsd::MAX);
            sum.revenue = sum.revenue.checked_add(worth).unwrap_or(MicroUsd::MAX);
        }
        sum
    }
}

impl Fold for MarketFold {
    fn fold(&mut self, entry: &Entry) -> Result<(), FoldFault> {
        self.view.apply(entry)?;
        self.entries += 1;
        self.newest = entry.index;
        self.last = At { tick: entry.tick.unwrap_or(self.last.tick), time_ms: entry.time_ms };
        Ok(())
    }
}

/// The ticks of the coalition's clock, when it ships one.
pub struct ClockFold(Ticks);

impl ClockFold {
    /// An empty fold.
    #[must_use]
    pub fn new(params: AlmanacParams) -> Self {
        Self(Ticks::with_retain(params, 64))
    }
}

impl Fold for ClockFold {
    fn fold(&mut self, entry: &Entry) -> Result<(), FoldFault> {
        self.0.apply(entry)?;
        Ok(())
    }
}

/// The market over the network: a verified, always current fold, and writes to the committee.
pub struct LiveMarket {
    organism: Organism,
    follower: Follower<MarketFold>,
    clock: Option<Follower<ClockFold>>,
}

impl LiveMarket {
    /// Follows the market, and the clock when there is one.
    #[must_use]
    pub fn follow(organism: Organism, params: ComputeParams, clock: Option<(Organism, AlmanacParams)>) -> Arc<Self> {
        let follower = Follower::spawn(organism.clone(), MarketFold::new(organism.id(), params));
        let clock = clock.map(|(almanac, params)| Follower::spawn(almanac, ClockFold::new(params)));
        Arc::new(Self { organism, follower, clock })
    }

    /// Time of the last tick, Unix milliseconds, when the coalition has a clock.
    #[must_use]
    pub fn last_tick_ms(&self) -> Option<u64> {
        self.clock.as_ref()?.read(|ticks| ticks.0.latest().map(|tick| tick.time_ms))
    }

    /// Waits until everything committed by now is folded; without a quorum, what one member knows. The bridge has machines to look
    /// after then, too, and goes on reading.
    ///
    /// # Errors
    /// [`coalition_organism::ReadError`].
    pub async fn caught_up(&self, deadline: Duration) -> Result<(), coalition_organism::ReadError> {
        let (_, unsettled) = self.follower.caught_up_as_can_be(QUORUM_PATIENCE, deadline).await?;
        if let Some(why) = unsettled {
            tracing::warn!(%why, "too few members of the market answer: what this bridge knows of it may be behind");
        }
        if let Some(clock) = &self.clock {
            clock.caught_up_as_can_be(QUORUM_PATIENCE, deadline).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Market for LiveMarket {
    fn organism(&self) -> UniqueId {
        self.organism.id()
    }

    fn at(&self) -> At {
        let last = self.follower.read(|fold| fold.last);
        let clock =
            self.clock.as_ref().and_then(|clock| clock.read(|ticks| ticks.0.latest().map(|t| (t.tick.0, t.time_ms))));
        let (tick, time_ms) = clock.unwrap_or_default();
        At { tick: last.tick.max(tick), time_ms: last.time_ms.max(time_ms) }
    }

    fn grants_of(&self, provider: ProviderId) -> Vec<GrantSight> {
        self.follower.read(|fold| {
            let own = fold.view.state().grants().values().filter(|record| record.grant.provider == provider);
            own.map(|record| fold.sight(record)).collect()
        })
    }

    fn grant(&self, provider: ProviderId, id: &RequestId) -> Option<GrantSight> {
        self.follower.read(|fold| {
            let record = fold.view.grant(id).filter(|record| record.grant.provider == provider)?;
            Some(fold.sight(record))
        })
    }

    fn card(&self, provider: ProviderId) -> Option<CardView> {
        let at = self.at();
        self.follower.read(|fold| fold.view.card(&provider, at))
    }

    fn card_sequence(&self, provider: ProviderId) -> u64 {
        self.follower.read(|fold| fold.view.state().providers().get(&provider).map_or(0, |record| record.sequence))
    }

    fn attestation_rule(&self) -> Option<AttestationRule> {
        self.follower.read(|fold| fold.view.state().params().attestation.clone())
    }

    fn challenge(&self, provider: ProviderId) -> Option<Challenge> {
        self.follower.read(|fold| fold.view.state().providers().get(&provider)?.platform.challenge)
    }

    fn attestation(&self, provider: ProviderId) -> Option<Attestation> {
        self.follower.read(|fold| fold.view.state().providers().get(&provider)?.platform.attestation.clone())
    }

    fn earnings(&self, provider: ProviderId) -> Earnings {
        self.follower.read(|fold| fold.earnings(provider))
    }

    fn books(&self, provider: ProviderId) -> Books {
        self.follower.read(|fold| fold.books(provider))
    }

    async fn changed(&self, seen: u64, deadline: Duration) -> u64 {
        let waited = self.follower.wait_for(deadline, |fold| (fold.entries > seen).then_some(fold.entries)).await;
        match waited {
            Ok(entries) => entries,
            Err(_) => {
                // A follower that has stopped answers at once; do not spin on it.
                tokio::time::sleep(Duration::from_millis(50)).await;
                self.follower.read(|fold| fold.entries)
            }
        }
    }

    async fn write(&self, id: WriteId, command: Command, deadline: Duration) -> Result<(), MarketError> {
        match self.organism.write(id, command.to_bytes(), deadline).await {
            Ok(_) => Ok(()),
            Err(WriteError::Refused(refusal)) => Err(MarketError::Refused(refusal)),
            Err(WriteError::Retired(retirement)) => {
                Err(MarketError::Refused(Refusal::new(RETIRED_CODE, format!("the market has retired ({retirement})"))))
            }
            Err(other) => Err(MarketError::Unavailable(other)),
        }
    }

    fn trouble(&self) -> Option<String> {
        self.follower.last_error()
    }
}
