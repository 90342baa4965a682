//! A member that reads the logs from others: until it has a seat, or because its engine cannot go on with what the others'
//! engines still keep.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use coalition::Roster;
use coalition_universe::PeerId;
use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};

use super::{
    MemberError, Standing,
    catchup::{Failed, newest, poll},
    hosted::{Complaints, Hosted},
    progress::Progress,
    seat::{Driver, told},
    takeover,
};

/// Pause of a reader whose peers have nothing or fail.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest wait for a sign of life of those that are asked at once.
const PROBE: Duration = Duration::from_secs(1);
/// A member that drops old entries anyway takes a state rather than so many entries and more.
const WORTH_A_STATE: u64 = 16_384;

/// Why an engine that stands still should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// The committee has handed over.
    Epoch,
    /// The others' logs are ahead.
    Log,
}

/// What asking one peer for all logs led to.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    progress: bool,
    /// Every log is as far as the peer's certified head.
    at_head: bool,
}

impl Driver {
    /// Reads the logs from others until they are as far as some member's, and this member can take a seat in epoch `least` or a
    /// later one. A member that has nothing new may hold a call for `wait_ms`. Answers whether it was told to stop instead.
    pub(super) async fn follow(&mut self, least: u64, wait_ms: u32) -> Result<bool, MemberError> {
        let mut stop = self.stop.clone();
        let (mut failures, mut answering, complaints) = (0, usize::MAX, Complaints::default());
        let mut progress: Vec<Progress> = self.organisms.iter().map(|o| Progress::from(o.log.size())).collect();
        loop {
            if *stop.borrow() {
                return Ok(true);
            }
            self.tell_standing();
            let peers = self.peers();
            let Some((name, peer)) = peers.get(self.turn % peers.len().max(1)) else {
                return Err(MemberError::Setup("this member is alone, and has no seat".into()));
            };
            // Those who were asked since the last progress all failed, or had pruned what comes next.
            let nobody_has_it = failures >= answering.min(peers.len()).max(1);
            let asked = tokio::select! {
                asked = self.poll_all(*peer, wait_ms, nobody_has_it, &mut progress) => asked?,
                () = told(&mut stop) => return Ok(true),
            };
            match asked {
                Ok(Round { at_head: true, .. }) if self.newest() >= least && self.can_take_a_seat() => {
                    // It may be as far behind as this member: the next time another is asked first.
                    self.turn += 1;
                    return Ok(false);
                }
                Ok(Round { progress: true, .. }) => failures = 0,
                Ok(_) => {
                    failures = 0;
                    self.turn += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(reason) => {
                    failures += 1;
                    if failures >= peers.len() && complaints.is_worth_telling() {
                        tracing::warn!(member = name, %reason, "nobody gives this member the log; it tries on");
                    }
                    tracing::debug!(member = name, %reason, "asking the next member for the log");
                    let turn = tokio::select! {
                        turn = self.next_turn(&peers) => turn,
                        () = told(&mut stop) => return Ok(true),
                    };
                    (self.turn, answering) = turn;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn tell_standing(&self) {
        self.standing.send_if_modified(|standing| {
            let now = match self.find_standing() {
                Standing::Seated { epoch, .. } => Standing::Following { epoch },
                other => other,
            };
            std::mem::replace(standing, now) != now
        });
    }

    async fn poll_all(
        &self,
        peer: PeerId,
        wait_ms: u32,
        nobody_has_it: bool,
        progress: &mut [Progress],
    ) -> Result<Result<Round, String>, MemberError> {
        let organisms = Arc::clone(&self.organisms);
        let mut round = Round { progress: false, at_head: true };
        for (organism, progress) in organisms.iter().zip(progress) {
            let polled = match poll(&self.node, peer, organism, wait_ms).await? {
                Ok(polled) => polled,
                Err(Failed::Pruned(_)) if nobody_has_it || organism.retain().is_some() => {
                    match takeover::take(&self.node, peer, organism).await? {
                        Ok(()) => round.progress = true,
                        Err(reason) => return Ok(Err(reason)),
                    }
                    round.at_head = false;
                    continue;
                }
                Err(Failed::Pruned(reason) | Failed::Otherwise(reason)) => return Ok(Err(reason)),
            };
            let size = organism.log.size();
            progress.tell(&organism.name, "entries", size, polled.head);
            round.progress |= polled.progress;
            round.at_head &= polled.head <= size;
            let ahead = polled.head.saturating_sub(size);
            if organism.retain().is_some_and(|retain| ahead > retain.max(WORTH_A_STATE)) {
                // If it keeps none, the entries will do.
                if let Err(reason) = takeover::take(&self.node, peer, organism).await? {
                    tracing::debug!(organism = organism.name, %reason, "no state; reading entries instead");
                }
            }
        }
        Ok(Ok(round))
    }

    /// Whether every log stands in the newest epoch known, and this member has a seat in it.
    fn can_take_a_seat(&self) -> bool {
        let newest = self.newest();
        let chain = self.chain();
        let all = self.organisms.iter().all(|organism| {
            organism.is_over() || (organism.log.chain().epoch() == newest && organism.epoch() == newest)
        });
        all && self.organisms.iter().all(Hosted::ends_with_a_batch) && self.seat_in(chain.roster()).is_some()
    }

    /// Whether some other member can prove a later epoch, or, if this member's engine `has_gap`, a longer log. All are asked at
    /// once, and the first that can decides.
    pub(super) async fn is_behind(&self, epoch: u64, has_gap: bool) -> Option<Behind> {
        let peers = self.peers();
        let pairs = peers.iter().flat_map(|(_, peer)| self.organisms.iter().map(move |organism| (*peer, organism)));
        let asked = pairs.map(|(peer, organism)| async move {
            let news = newest(&self.node, peer, organism).await?;
            let is_longer = has_gap && news.size > organism.log.size();
            if news.epoch > epoch { Some(Behind::Epoch) } else { is_longer.then_some(Behind::Log) }
        });
        let asked: FuturesUnordered<_> = asked.collect();
        let mut behind = asked.filter_map(std::future::ready);
        behind.next().await
    }

    /// Everybody who is or was a member as far as this one knows, the newest first; then whoever else it was introduced to:
    /// of a committee that has changed since, a newcomer may know nobody who is left.
    pub(super) fn peers(&self) -> Vec<(String, PeerId)> {
        let (chain, me) = (self.chain(), self.node.peer_id());
        let rosters: Vec<&Roster> = chain.rosters().collect();
        let members = rosters.into_iter().rev().flat_map(Roster::members);
        let members =
            members.filter_map(|member| Some((member.name.clone(), PeerId::from_bytes(member.peer_id).ok()?)));
        let others = self.node.acquaintances().into_iter().map(|peer| (peer.to_string(), peer));
        let mut known = BTreeSet::from([me]);
        members.chain(others).filter(|(_, peer)| known.insert(*peer)).collect()
    }

    /// Whose turn it is after one that failed, and how many answer at all. All are asked at once, so that those who are gone
    /// cost their time once and together.
    async fn next_turn(&self, peers: &[(String, PeerId)]) -> (usize, usize) {
        let Some(organism) = self.organisms.first() else { return (self.turn + 1, 0) };
        let asked = peers.iter().enumerate().map(|(at, (_, peer))| async move {
            let news = tokio::time::timeout(PROBE, newest(&self.node, *peer, organism)).await.ok().flatten();
            news.map(|_| at)
        });
        let answering: BTreeSet<usize> = join_all(asked).await.into_iter().flatten().collect();
        let after = self.turn % peers.len().max(1) + 1;
        let next = answering.range(after..).next().or_else(|| answering.first()).copied();
        (next.unwrap_or(after), answering.len())
    }
}
