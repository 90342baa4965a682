//! Members handed over one after the other under load, half of the time while one of them is killed, and how long writers wait.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use coalition::{Roster, RosterMember, UniqueId};
use coalition_log::handover::{ApprovedHandover, Handover};
use coalition_organism::{Organism, random_write_id};
use coalition_testkit::key;
use ed25519_dalek::SigningKey;

use crate::{
    committee::{Committee, ORGANISM},
    rng::Rng,
    schedule::{Outcome, pause},
    workload::Writers,
};

const DEADLINE: Duration = Duration::from_secs(90);
/// Writes after a handover until it counts as over.
const OVER: u64 = 50;

/// Who is a member now.
pub struct Succession {
    now: Vec<usize>,
    epoch: u64,
}

impl Succession {
    pub fn new(genesis: usize) -> Self {
        Self { now: (0..genesis).collect(), epoch: 0 }
    }
}

/// The roster of these seats.
pub fn roster_of(seats: &[usize]) -> Roster {
    let member = |seat: &usize| {
        let public = |purpose| *key(*seat, purpose).peer_id().as_bytes();
        let (checkpoint_key, consensus_key, peer_id) = (public(1), public(2), public(3));
        RosterMember { name: format!("m{seat}"), checkpoint_key, consensus_key, peer_id }
    };
    Roster::new(seats.iter().map(member).collect()).unwrap()
}

/// Swaps a member for one that never was, which joins by reading the log from the others.
pub async fn one(
    rng: &mut Rng,
    committee: &mut Committee,
    organism: &Organism,
    (succession, writers): (&mut Succession, &Writers),
    outcome: &mut Outcome,
) {
    pause(rng, 500).await;
    let (newcomer, leaving) = (committee.len() - committee.unused(), rng.below(succession.now.len()));
    if let Err(words) = tokio::task::block_in_place(|| committee.start(newcomer)) {
        outcome.violations.push(format!("newcomer {newcomer} does not start: {words}"));
        return;
    }
    let mut next = succession.now.clone();
    let left = std::mem::replace(&mut next[leaving], newcomer);
    let approved = approved(rng, succession, &next);
    let victim = rng.percent(50).then(|| succession.now[rng.below(succession.now.len())]);
    let delay = Duration::from_millis(rng.below(200) as u64);
    let waited = tokio::spawn(longest_wait(writers.acknowledged.clone()));
    let handed = {
        let (organism, approved) = (organism.clone(), [(UniqueId::from_bytes(ORGANISM), approved)]);
        tokio::spawn(async move { organism.hand_over(random_write_id(), &approved, DEADLINE).await })
    };
    if let Some(victim) = victim {
        tokio::time::sleep(delay).await;
        committee.kill(victim);
        outcome.note("killed around a handover");
        pause(rng, 600).await;
        if let Err(words) = tokio::task::block_in_place(|| committee.start(victim)) {
            outcome.violations.push(format!("member {victim} does not start again after SIGKILL: {words}"));
        }
    }
    if let Err(error) = handed.await.unwrap() {
        outcome.violations.push(format!("handover {} failed: {error}", succession.epoch + 1));
    }
    match waited.await.unwrap() {
        Some(longest) if victim.is_none() => outcome.waits_ms.push(longest),
        Some(_) => {}
        None => outcome.violations.push(format!("no progress after handover {}", succession.epoch + 1)),
    }
    *succession = Succession { now: next, epoch: succession.epoch + 1 };
    committee.kill(left);
    outcome.faults += 1;
}

/// A quorum's consent, of members chosen at random.
fn approved(rng: &mut Rng, succession: &Succession, next: &[usize]) -> ApprovedHandover {
    let handover = Handover { epoch: succession.epoch + 1, next: roster_of(next) };
    let roster = roster_of(&succession.now);
    let missing = rng.below(succession.now.len());
    let approving = (0..succession.now.len()).filter(|seat| *seat != missing);
    let approvals = approving.map(|seat| {
        let signing = SigningKey::from_bytes(key(succession.now[seat], 1).expose());
        handover.approve(&signing, u8::try_from(seat).unwrap(), UniqueId::from_bytes(ORGANISM), &roster)
    });
    ApprovedHandover::new(handover.clone(), approvals.collect())
}

/// The longest time without an acknowledgement, in milliseconds, until some more writes are acknowledged and a second has passed;
/// `None` if that takes too long.
async fn longest_wait(acknowledged: std::sync::Arc<std::sync::atomic::AtomicU64>) -> Option<u64> {
    let (began, mut last) = (Instant::now(), Instant::now());
    let mut known = acknowledged.load(Ordering::Relaxed);
    let goal = known + OVER;
    let mut longest = Duration::ZERO;
    while known < goal || began.elapsed() < Duration::from_secs(3) {
        if last.elapsed() > DEADLINE {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let now = acknowledged.load(Ordering::Relaxed);
        if now != known {
            longest = longest.max(last.elapsed());
            (known, last) = (now, Instant::now());
        }
    }
    u64::try_from(longest.as_millis()).ok()
}
