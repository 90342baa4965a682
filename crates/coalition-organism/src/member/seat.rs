//! A member's life over all epochs: a seat in the engine of the epoch in force, or a reader until it has one.
//!
//! What epoch a member is in is a fold of its certified logs: the handovers that are in them and proven. So a crash at any
//! instant resumes where it was. An engine has its own namespace and storage in every epoch, and ends once the roster that
//! hands over has certified the handover in every log.

use std::{sync::Arc, time::Duration};

use coalition::{Roster, UniqueId, hash_many};
use coalition_log::{checkpoint::Cosigner, handover::RosterChain, state::STATE_EVERY};
use coalition_order::{Anchor, OrderConfig, OrderHandle, OrderMember};
use coalition_universe::Node;
use ed25519_dalek::SigningKey;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};
use zeroize::Zeroizing;

use super::{
    MemberError, MemberKeys, OrderSetup, anchor,
    executor::Executor,
    gossip::Gossiper,
    hosted::{Complaints, Hosted, lock},
    reading::Behind,
    retention::{BatchKeeping, Retention},
};
use crate::{
    execution::COMMON_EVERY,
    wire::{self, Gossip},
};

/// How often it is checked whether a handover is certified. A counter is read.
const CHECK: Duration = Duration::from_millis(100);
/// An engine that delivers nothing for so long, beyond its heartbeat, may have been left behind by a handover.
const SILENCE: Duration = Duration::from_secs(3);
/// The same once the handover is in the log: what is lacking is its certificate, and the others may have gone with it.
const SILENCE_AT_THE_END: Duration = Duration::from_secs(1);
/// A gap that nobody fills for so long is one that nobody can fill, although no log is longer than this member's.
const GAP_PATIENCE: Duration = Duration::from_secs(12);
/// Longest time an engine may take to end.
const ENGINE_STOP: Duration = Duration::from_secs(10);
/// How long an engine that has handed over still tells the others.
const FAREWELL: Duration = Duration::from_millis(300);
/// How long a member without a seat lets others hold its calls, in milliseconds.
const WAIT_MS: u32 = 1_000;
/// Where a seat is reached of which no address is known: it has to reach this member.
const NOWHERE: std::net::SocketAddr = std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

/// What a member is in its committee at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It orders and certifies.
    Seated {
        /// The epoch.
        epoch: u64,
        /// Its place in the epoch's roster.
        seat: usize,
    },
    /// It catches up by reading the log from others, until a handover it can join.
    Following {
        /// The epoch it has reached.
        epoch: u64,
    },
    /// It had a seat, and a handover has ended that. It reads on and serves readers; it may be stopped.
    Left {
        /// The epoch it has reached.
        epoch: u64,
    },
}

impl Standing {
    /// Whether it has a seat.
    #[must_use]
    pub const fn is_seated(&self) -> bool {
        matches!(self, Self::Seated { .. })
    }
}

/// Why an engine's time ended.
enum Ended {
    HandedOver,
    LeftBehind(u64),
    /// The others have dropped batches that this engine lacks.
    Stranded(u64),
    Stopped,
}

/// What drives one member.
pub(super) struct Driver {
    pub(super) organisms: Arc<Vec<Hosted>>,
    pub(super) keys: MemberKeys,
    pub(super) order: OrderSetup,
    pub(super) data_dir: std::path::PathBuf,
    pub(super) node: Arc<Node>,
    pub(super) batches: BatchKeeping,
    /// Whom to ask next.
    pub(super) turn: usize,
    pub(super) engine: watch::Sender<Option<OrderHandle>>,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) stop: watch::Receiver<bool>,
}

/// The engine of one epoch, and the loops around it.
pub(super) struct Engaged {
    epoch: u64,
    order: OrderHandle,
    executor: JoinHandle<Result<(), MemberError>>,
    gossiper: JoinHandle<Result<(), MemberError>>,
}

impl Driver {
    /// The epoch all logs have reached. One that has its last entry is not handed over any more.
    fn epoch(&self) -> u64 {
        let going_on = self.organisms.iter().filter(|organism| !organism.is_over());
        going_on.map(|organism| organism.log.chain().epoch()).min().unwrap_or_else(|| self.newest())
    }

    /// The furthest epoch that any log has reached.
    pub(super) fn newest(&self) -> u64 {
        self.organisms.iter().map(|organism| organism.log.chain().epoch()).max().unwrap_or(0)
    }

    /// The rosters as the furthest log knows them.
    pub(super) fn chain(&self) -> Arc<RosterChain> {
        let chains = self.organisms.iter().map(|organism| organism.log.chain());
        chains.max_by_key(|chain| chain.epoch()).expect("a member carries at least one organism")
    }

    /// This member's place in a roster.
    pub(super) fn seat_in(&self, roster: &Roster) -> Option<usize> {
        let (checkpoint, consensus) = (self.keys.checkpoint.peer_id(), self.keys.consensus.peer_id());
        roster.members().iter().position(|member| {
            member.checkpoint_key == *checkpoint.as_bytes() && member.consensus_key == *consensus.as_bytes()
        })
    }

    /// Where this member stands by its logs.
    pub(super) fn find_standing(&self) -> Standing {
        let (epoch, chain) = (self.epoch(), self.chain());
        let seats: Vec<Option<usize>> = chain.rosters().map(|roster| self.seat_in(roster)).collect();
        let at = usize::try_from(epoch).unwrap_or(usize::MAX);
        match seats.get(at).copied().flatten() {
            Some(seat) => Standing::Seated { epoch, seat },
            None if seats.iter().take(at).any(Option::is_some) => Standing::Left { epoch },
            None => Standing::Following { epoch },
        }
    }

    /// Takes the seat of the epoch in force, if there is one and the logs end where batches do. After reading the logs from
    /// others, the engine starts above the batches whose effects they have.
    pub(super) async fn engage_if_seated(&mut self, has_read: bool) -> Result<Option<Engaged>, MemberError> {
        let standing = match self.find_standing() {
            Standing::Seated { epoch, .. } if !self.organisms.iter().all(Hosted::ends_with_a_batch) => {
                Standing::Following { epoch }
            }
            standing => standing,
        };
        let engaged = match standing {
            Standing::Seated { epoch, seat } => Some(self.engage(epoch, seat, has_read).await?),
            Standing::Following { .. } | Standing::Left { .. } => None,
        };
        tracing::info!(?standing, "where this member stands");
        self.standing.send_replace(standing);
        Ok(engaged)
    }

    /// Lives until it is told to stop.
    pub(super) async fn run(mut self, mut engaged: Option<Engaged>) -> Result<(), MemberError> {
        // A crash may have come before it.
        self.drop_storage().await;
        loop {
            let Some(engine) = engaged.take() else {
                if self.follow(0, WAIT_MS).await? {
                    return Ok(());
                }
                self.drop_storage().await;
                engaged = self.engage_if_seated(true).await?;
                continue;
            };
            match self.serve_engine(engine).await? {
                Ended::Stopped => return Ok(()),
                Ended::HandedOver => {
                    self.drop_storage().await;
                    engaged = self.engage_if_seated(false).await?;
                }
                Ended::Stranded(epoch) => {
                    tracing::info!(
                        epoch,
                        "the others have dropped ordered batches that this member lacks; reading the log from them"
                    );
                    if self.follow(epoch, 0).await? {
                        return Ok(());
                    }
                    self.drop_storage().await;
                    engaged = self.engage_if_seated(true).await?;
                }
                Ended::LeftBehind(epoch) => {
                    tracing::info!(
                        epoch,
                        "the committee has handed over without this member; reading the log from others"
                    );
                    if self.follow(epoch + 1, 0).await? {
                        return Ok(());
                    }
                    self.drop_storage().await;
                    engaged = self.engage_if_seated(true).await?;
                }
            }
        }
    }

    async fn engage(&mut self, epoch: u64, seat: usize, has_read: bool) -> Result<Engaged, MemberError> {
        let chain = self.chain();
        let at = usize::try_from(epoch).unwrap_or(usize::MAX);
        let roster = chain.rosters().nth(at).ok_or(MemberError::Ended("succession of rosters"))?.clone();
        let mut config = self.order_config(epoch, &roster)?;
        if has_read {
            config.floor = anchor::newest(&self.node, &self.peers(), &self.organisms, &config, epoch).await;
            tracing::info!(epoch, floor = config.floor.as_ref().map(Anchor::height), "where the engine starts");
        }
        let (order, deliveries) = coalition_order::start(config)?;
        let inbox = order.gossip_inbox().ok_or(MemberError::Ended("gossip inbox"))?;
        let name = roster.members()[seat].name.clone();
        let signing = || SigningKey::from_bytes(self.keys.checkpoint.expose());
        let cosigners =
            || self.organisms.iter().map(|o| Cosigner::new(o.id, &name, signing())).collect::<Vec<Cosigner>>();
        let gossiper = Gossiper {
            organisms: Arc::clone(&self.organisms),
            cosigners: cosigners(),
            epoch,
            order: order.clone(),
            faults: Complaints::default(),
        };
        let executor = Executor {
            organisms: Arc::clone(&self.organisms),
            cosigners: cosigners(),
            epoch,
            order: order.clone(),
            retention: Retention::new(self.batches),
        };
        let executor = tokio::task::spawn_blocking(move || executor.run(deliveries));
        let gossiper = tokio::spawn(gossiper.run(inbox));
        self.engine.send_replace(Some(order.clone()));
        Ok(Engaged { epoch, order, executor, gossiper })
    }

    /// Until the epoch is handed over, was handed over without this member, or the member stops.
    async fn serve_engine(&mut self, mut engaged: Engaged) -> Result<Ended, MemberError> {
        let mut check = interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let silence = SILENCE + Duration::from_millis(2 * self.order.heartbeat_ms);
        let (mut delivered, mut since, mut asked) = (0, Instant::now(), Instant::now());
        let mut stop = self.stop.clone();
        let mut failed = Box::pin({
            let order = engaged.order.clone();
            async move { order.wait_failed().await }
        });
        let ended = loop {
            tokio::select! {
                result = &mut engaged.executor => {
                    result.map_err(|_| MemberError::Ended("batch loop"))??;
                    return Err(self.cause("batch loop", &engaged.order).await);
                }
                result = &mut engaged.gossiper => {
                    result.map_err(|_| MemberError::Ended("certification loop"))??;
                    return Err(self.cause("certification loop", &engaged.order).await);
                }
                error = &mut failed => {
                    self.engine.send_replace(None);
                    return Err(self.first_cause(engaged, error.into()).await);
                }
                () = told(&mut stop) => break Ended::Stopped,
                _ = check.tick() => {
                    if self.has_handed_over(engaged.epoch)? {
                        break Ended::HandedOver;
                    }
                    let patience = if self.is_at_the_end(engaged.epoch) { SILENCE_AT_THE_END } else { silence };
                    let status = engaged.order.status();
                    let now = status.delivered_height;
                    // What is final and not delivered is behind a gap, unless this member's own consumer is at work.
                    let reached = now.max(status.resumed_height);
                    let has_gap = status.finalized_height > reached && status.acknowledged_height == now;
                    if now != delivered {
                        (delivered, since, asked) = (now, Instant::now(), Instant::now());
                    } else if has_gap && since.elapsed() > GAP_PATIENCE + silence && !self.peers().is_empty() {
                        break Ended::Stranded(engaged.epoch);
                    } else if asked.elapsed() > patience {
                        asked = Instant::now();
                        tokio::select! {
                            () = told(&mut stop) => break Ended::Stopped,
                            behind = self.is_behind(engaged.epoch, has_gap) => match behind {
                                Some(Behind::Epoch) => break Ended::LeftBehind(engaged.epoch),
                                Some(Behind::Log) => break Ended::Stranded(engaged.epoch),
                                None => {}
                            }
                        }
                    }
                }
            }
        };
        if matches!(ended, Ended::HandedOver) {
            self.tell_certificates(&engaged.order);
            tokio::time::sleep(FAREWELL).await;
        }
        self.engine.send_replace(None);
        let stopped = engaged.order.stop(ENGINE_STOP).await;
        drop(failed);
        engaged.executor.await.map_err(|_| MemberError::Ended("batch loop"))??;
        engaged.gossiper.await.map_err(|_| MemberError::Ended("certification loop"))??;
        stopped?;
        Ok(ended)
    }

    /// Why a loop ended that should not have: the engine knows, and may still be about to tell.
    async fn cause(&self, what: &'static str, order: &OrderHandle) -> MemberError {
        self.engine.send_replace(None);
        match tokio::time::timeout(super::CAUSE_GRACE, order.wait_failed()).await {
            Ok(error) => error.into(),
            Err(_) => MemberError::Ended(what),
        }
    }

    /// The engine ends when its consumer has failed: then the consumer knows why.
    async fn first_cause(&self, engaged: Engaged, error: MemberError) -> MemberError {
        let Engaged { executor, gossiper, .. } = engaged;
        let failure = |task: JoinHandle<Result<(), MemberError>>| async {
            tokio::time::timeout(super::CAUSE_GRACE, task).await.ok()?.ok()?.err()
        };
        if let Some(cause) = failure(executor).await {
            return cause;
        }
        failure(gossiper).await.unwrap_or(error)
    }

    /// Whether every log that is to be handed over is, and can prove it.
    fn has_handed_over(&self, epoch: u64) -> Result<bool, MemberError> {
        if !self.is_at_the_end(epoch) {
            return Ok(false);
        }
        let mut all = true;
        for organism in self.organisms.iter() {
            // A log that ended in this epoch has its last head from the roster of this epoch, too.
            let ended_here = || organism.log.chain().epoch() < epoch || organism.is_certified();
            all &= match organism.is_over() {
                true => ended_here(),
                false => organism.epoch() > epoch && organism.prove_handover()?,
            };
        }
        if all {
            self.organisms.iter().try_for_each(Hosted::keep_certificate)?;
        }
        Ok(all)
    }

    /// Sends the certificates that end the epoch to the other members, of whom some may lack them.
    fn tell_certificates(&self, order: &OrderHandle) {
        for organism in self.organisms.iter() {
            if let Some(head) = organism.log.chain().last_handover() {
                let checkpoint = head.note().to_string();
                order.gossip(wire::encode(&Gossip::Certified { organism: organism.id, checkpoint }));
            }
        }
    }

    /// Whether a handover of this epoch is in some log, proven or not.
    fn is_at_the_end(&self, epoch: u64) -> bool {
        self.organisms.iter().any(|organism| organism.epoch() > epoch)
    }

    /// The engine of an epoch: its namespace, storage and start follow from the logs alone.
    fn order_config(&self, epoch: u64, roster: &Roster) -> Result<OrderConfig, MemberError> {
        let address = |member| {
            (self.order.addresses)(member).unwrap_or_else(|| {
                tracing::warn!(member = member.name, "no address is known; it has to reach this member");
                NOWHERE
            })
        };
        let members = roster.members().iter();
        Ok(OrderConfig {
            namespace: namespace(epoch, roster, &self.organisms),
            roster: members
                .map(|member| OrderMember { public_key: member.consensus_key, address: address(member) })
                .collect(),
            secret_key: Zeroizing::new(*self.keys.consensus.expose()),
            listen: self.order.listen,
            storage_dir: self.storage_dir(epoch),
            heartbeat_ms: self.order.heartbeat_ms,
            starts_after_ms: self.ended_at_ms(epoch)?,
            batches_per_file: self.batches.per_file,
            ..OrderConfig::default()
        })
    }

    fn storage_dir(&self, epoch: u64) -> std::path::PathBuf {
        self.data_dir.join(if epoch == 0 { "order".into() } else { format!("order-{epoch}") })
    }

    /// Committee time of the handover that began an epoch: the same in all logs.
    fn ended_at_ms(&self, epoch: u64) -> Result<u64, MemberError> {
        let Some(before) = epoch.checked_sub(1) else { return Ok(0) };
        let mut times = 0;
        for organism in self.organisms.iter() {
            let proofs = organism.log.chain().proofs(before, u64::MAX);
            let entry = proofs.first().and_then(|proof| coalition_log::Entry::decode(&proof.entry).ok());
            times = times.max(entry.map_or(0, |entry| entry.time_ms));
        }
        Ok(times)
    }

    /// Frees what the engines of former epochs kept: they never run again.
    async fn drop_storage(&self) {
        let former: Vec<_> = (0..self.epoch()).map(|epoch| self.storage_dir(epoch)).collect();
        let removing = move || former.iter().filter(|dir| dir.exists()).try_for_each(std::fs::remove_dir_all);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(removing).await {
            tracing::warn!(%error, "the storage of a former epoch's engine is still there");
        }
    }
}

/// Resolves when the member is told to stop, or dropped.
pub(super) async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The committee's id in the ordering engine: its epoch, its roster and the organisms it carries, in order, with what else all
/// members must agree on.
fn namespace(epoch: u64, roster: &Roster, organisms: &[Hosted]) -> Vec<u8> {
    let (roster, number) = (roster.fingerprint(), epoch.to_be_bytes());
    let mut parts: Vec<&[u8]> = vec![b"coalition.committee.v1", roster.as_bytes()];
    let ids: Vec<UniqueId> = organisms.iter().map(|organism| organism.id).collect();
    parts.extend(ids.iter().map(|id| &id.as_bytes()[..]));
    let cadences: Vec<u64> = organisms.iter().map(|organism| lock(&organism.execution).state_every()).collect();
    let bytes: Vec<[u8; 8]> = cadences.iter().map(|cadence| cadence.to_be_bytes()).collect();
    if cadences.iter().any(|cadence| *cadence != STATE_EVERY) {
        parts.extend(bytes.iter().map(|cadence| &cadence[..]));
    }
    let common_every = organisms.first().map_or(COMMON_EVERY, |organism| lock(&organism.execution).common_every());
    let common_bytes = common_every.to_be_bytes();
    if common_every != COMMON_EVERY {
        parts.extend([b"common", &common_bytes[..]]);
    }
    if epoch > 0 {
        parts.push(b"epoch");
        parts.push(&number);
    }
    hash_many(&parts).as_bytes().to_vec()
}
