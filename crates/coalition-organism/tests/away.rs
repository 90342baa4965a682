//! Members that were away until the others had dropped what they lack, and newcomers to committees that dropped their beginning:
//! with real engines, disks and sockets on loopback, while writes go on.
#![allow(missing_docs, clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use coalition::codec;
use coalition_log::{Context, Draft, Entry, Machine, Refusal, SnapshotError, state::MAX_STATE_BYTES};
use coalition_organism::{
    BatchKeeping, Fold, FoldFault, Follower, FromState, Organism, OrganismStatus, Standing, random_write_id,
};
use coalition_testkit::{Carried, Committee, key};
use coalition_universe::{Fault, PeerId, Service};
use futures::future::BoxFuture;

const SOON: Duration = Duration::from_secs(90);
const LONG: usize = 45_000;

/// Counts what it is told and adds up all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sum {
    notes: u64,
    sum: u64,
}

impl Sum {
    fn take(&mut self, entry: &Entry) {
        self.notes += 1;
        let sum = entry.body.iter().fold(self.sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        self.sum = sum;
    }
}

impl Machine for Sum {
    fn decide(&self, _: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
        Ok(vec![Draft::new("note", command.to_vec())])
    }

    fn round(&self, _: &Context) -> Option<Vec<Draft>> {
        None
    }

    fn evolve(&mut self, entry: &Entry) {
        self.take(entry);
    }

    fn wake_at_ms(&self, _: &Context) -> Option<u64> {
        None
    }

    fn snapshot(&self) -> Vec<u8> {
        codec::encode(&(self.notes, self.sum))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        (self.notes, self.sum) = codec::decode(snapshot, MAX_STATE_BYTES)?;
        Ok(())
    }
}

impl Fold for Sum {
    fn fold(&mut self, entry: &Entry) -> Result<(), FoldFault> {
        self.take(entry);
        Ok(())
    }
}

impl FromState for Sum {
    fn start_from(&mut self, machine: &[u8]) -> Result<(), SnapshotError> {
        self.restore(machine)
    }
}

/// A busy log and one that nobody writes to, on one engine that drops batches soon.
async fn committee() -> Committee {
    let carried = vec![Carried::new("busy", Sum::default).with_state_every(100), Carried::new("idle", Sum::default)];
    Committee::start_with(4, carried, |committee| {
        committee.heartbeat_ms = 50;
        committee.retain_entries = Some(32);
        committee.batches = BatchKeeping { retain: 16, common_every: 32, per_file: 8 };
    })
    .await
}

/// Enough for entries to leave the journal and be dropped.
async fn write_much(busy: &Organism) {
    let one = |number: u64| {
        let busy = busy.clone();
        let text = [&number.to_be_bytes()[..], &[0; LONG]].concat();
        async move { busy.write(random_write_id(), text, SOON).await.unwrap() }
    };
    for from in (0..400).step_by(32) {
        futures::future::join_all((from..from + 32).map(one)).await;
    }
}

async fn note(organism: &Organism, text: &str) -> u64 {
    organism.write(random_write_id(), text.into(), SOON).await.unwrap().entries[0].index
}

/// A writer that never stops until told.
struct Load {
    go_on: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u64>,
}

impl Load {
    fn start(organism: Organism) -> Self {
        let go_on = Arc::new(AtomicBool::new(true));
        let watched = Arc::clone(&go_on);
        let task = tokio::spawn(async move {
            let mut written = 0;
            while watched.load(Relaxed) {
                note(&organism, &format!("load {written}")).await;
                written += 1;
            }
            written
        });
        Self { go_on, task }
    }

    async fn stop(self) -> u64 {
        self.go_on.store(false, Relaxed);
        self.task.await.unwrap()
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}

async fn seated(committee: &Committee, member: usize, epoch: u64) {
    let mut standing = committee.member(member).unwrap().standing();
    let is_seated = |now: &Standing| matches!(now, Standing::Seated { epoch: at, .. } if *at == epoch);
    tokio::time::timeout(SOON, standing.wait_for(is_seated)).await.expect("the seat in time").unwrap();
}

fn log_of(committee: &Committee, member: usize, name: &str) -> OrganismStatus {
    committee.member(member).unwrap().status().into_iter().find(|status| status.name == name).unwrap()
}

fn height(committee: &Committee, member: usize) -> u64 {
    committee.member(member).unwrap().order_status().map_or(0, |status| status.delivered_height)
}

/// Until these members have dropped entries, and ordered batches above `lacks`.
async fn all_drop(committee: &Committee, members: &[usize], lacks: u64) {
    let drops = |member: &usize| {
        let order = committee.member(*member).unwrap().order_status();
        let entries = committee.member_dir(*member).join("logs/busy/pruned").is_file();
        entries && order.is_some_and(|order| order.pruned_height > lacks + 16)
    };
    until("dropping entries and batches", || members.iter().all(drops)).await;
}

fn starts_with_a_state(committee: &Committee, member: usize) -> bool {
    committee.member_dir(member).join("logs/busy/start").is_file()
}

/// Members must agree on every head from now on: three of four are needed, and `without` is stopped.
async fn is_needed(committee: &mut Committee, member: usize, without: usize, organisms: &[&Organism]) {
    committee.stop_member(without).await;
    for organism in organisms {
        let index = note(organism, "needs the one that came back").await;
        let name = if organism.id() == organisms[0].id() { "busy" } else { "idle" };
        until("the head at the member that came back", || log_of(committee, member, name).certified > index).await;
    }
    committee.start_member(without).await;
}

/// A committee whose others have dropped what member 3 lacks, which is stopped.
async fn member_3_is_away() -> (Committee, [Organism; 2]) {
    let mut committee = committee().await;
    let client = committee.client().await;
    let (busy, idle) = (committee.organism(&client, "busy"), committee.organism(&client, "idle"));
    note(&idle, "before").await;
    let lacks = height(&committee, 3);
    committee.drop_member(3).await;
    write_much(&busy).await;
    all_drop(&committee, &[0, 1, 2], lacks).await;
    (committee, [busy, idle])
}

async fn reads_all(organism: &Organism) -> Sum {
    let reader = Follower::start(organism.clone(), Sum::default()).from_state().spawn();
    reader.caught_up(SOON).await.unwrap();
    reader.read(Clone::clone)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_slept_past_what_all_dropped_comes_back_by_a_state_and_votes() {
    let (mut committee, [busy, idle]) = member_3_is_away().await;

    let load = Load::start(busy.clone());
    committee.start_member(3).await;
    let size = log_of(&committee, 0, "busy").size;
    until("catching up", || log_of(&committee, 3, "busy").certified > size + 20).await;
    assert!(starts_with_a_state(&committee, 3));
    seated(&committee, 3, 0).await;
    is_needed(&mut committee, 3, 0, &[&busy, &idle]).await;
    let written = load.stop().await;
    assert!(written > 20, "writes went on, {written} of them");

    // It restarts from what it took over, and is needed again.
    committee.drop_member(3).await;
    committee.start_member(3).await;
    seated(&committee, 3, 0).await;
    is_needed(&mut committee, 3, 1, &[&busy, &idle]).await;
    // 400, rounded up to whole requests, and two after.
    assert_eq!(reads_all(&busy).await.notes, 416 + 2 + written);
    assert_eq!(reads_all(&idle).await.notes, 3);
    committee.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newcomers_join_committees_that_dropped_their_beginning() {
    let mut committee = committee().await;
    let client = committee.client().await;
    let (busy, idle) = (committee.organism(&client, "busy"), committee.organism(&client, "idle"));
    note(&idle, "before").await;
    write_much(&busy).await;
    all_drop(&committee, &[0, 1, 2, 3], 0).await;

    // A newcomer that was there for the handover.
    assert_eq!(committee.add_seat(), 4);
    committee.start_member(4).await;
    let handover = committee.handover(1, (&[0, 1, 2, 3], &[0, 1, 2, 4]), &[0, 1, 2]);
    busy.hand_over(random_write_id(), &handover, SOON).await.unwrap();
    for member in [0, 1, 2, 4] {
        seated(&committee, member, 1).await;
    }
    assert!(starts_with_a_state(&committee, 4));
    is_needed(&mut committee, 4, 0, &[&busy, &idle]).await;
    seated(&committee, 0, 1).await;

    // One that comes when the batches after its handover are gone, too.
    assert_eq!(committee.add_seat(), 5);
    let handover = committee.handover(2, (&[0, 1, 2, 4], &[0, 1, 2, 5]), &[0, 1, 2]);
    busy.hand_over(random_write_id(), &handover, SOON).await.unwrap();
    for member in [0, 1, 2] {
        seated(&committee, member, 2).await;
    }
    all_drop(&committee, &[0, 1, 2], 0).await;
    let load = Load::start(busy.clone());
    committee.start_member(5).await;
    seated(&committee, 5, 2).await;
    is_needed(&mut committee, 5, 0, &[&busy, &idle]).await;
    seated(&committee, 0, 2).await;

    // A member that sleeps through a handover and what was dropped after it.
    assert_eq!(committee.add_seat(), 6);
    committee.start_member(6).await;
    committee.drop_member(1).await;
    let handover = committee.handover(3, (&[0, 1, 2, 5], &[0, 1, 2, 6]), &[0, 2, 5]);
    busy.hand_over(random_write_id(), &handover, SOON).await.unwrap();
    for member in [0, 2, 6] {
        seated(&committee, member, 3).await;
    }
    all_drop(&committee, &[0, 2, 6], 0).await;
    committee.start_member(1).await;
    seated(&committee, 1, 3).await;
    is_needed(&mut committee, 1, 0, &[&busy, &idle]).await;
    let written = load.stop().await;
    assert_eq!(reads_all(&busy).await.notes, 416 + 3 + written);
    committee.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_while_a_state_is_taken_over_are_resumed() {
    let (mut committee, [busy, idle]) = member_3_is_away().await;
    let load = Load::start(busy.clone());
    // It first has to notice that its engine stands still, then reads, then starts its engine again.
    for ms in [0, 3_150, 3_300, 3_450, 3_700, 4_000, 500, 1_000] {
        committee.start_member(3).await;
        tokio::time::sleep(Duration::from_millis(ms)).await;
        committee.drop_member(3).await;
    }
    // The others are no quorum without it while it does.
    committee.drop_member(1).await;
    committee.start_member(3).await;
    let size = log_of(&committee, 0, "busy").size;
    until("catching up", || log_of(&committee, 3, "busy").certified > size + 5).await;
    assert!(starts_with_a_state(&committee, 3));
    committee.start_member(1).await;
    is_needed(&mut committee, 3, 0, &[&busy, &idle]).await;
    load.stop().await;
    committee.stop().await;
}

/// Changes once what a member answers to the member that comes back to one method; all its anchors are too late.
struct Liar {
    inner: Arc<dyn Service>,
    victim: PeerId,
    lies_about: &'static str,
    told: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Service for Liar {
    fn call(&self, caller: PeerId, method: String, body: Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>, Fault>> {
        let lies = caller == self.victim && self.lies_about == method;
        // An engine started at the newest batch would skip those before it.
        let is_anchor = caller == self.victim && method == ANCHOR;
        let body = if is_anchor { [&body[..1], &[0xFF; 9], &[1]].concat() } else { body };
        let answer = self.inner.call(caller, method, body);
        let (what, told) = (self.lies_about, Arc::clone(&self.told));
        Box::pin(async move {
            let mut answer = answer.await?;
            if is_anchor {
                told.lock().unwrap().insert(ANCHOR);
            }
            if lies && told.lock().unwrap().insert(what) {
                let middle = answer.len() / 2;
                answer[middle] ^= 1;
            }
            Ok(answer)
        })
    }
}

const ANCHOR: &str = "organism.anchor";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_lie_about_states_and_anchors_are_refused() {
    let (mut committee, [busy, idle]) = member_3_is_away().await;
    // One after the other is asked, in the order of their ids.
    let told = Arc::new(Mutex::new(BTreeSet::new()));
    let mut members = [0, 1, 2];
    members.sort_by_key(|member| key(*member, 3).peer_id());
    let lies = ["organism.state", "organism.state_part", "organism.hashes"];
    for (member, lies_about) in members.into_iter().zip(lies) {
        let (inner, victim) = (committee.member(member).unwrap().service(), key(3, 3).peer_id());
        let liar = Liar { inner, victim, lies_about, told: Arc::clone(&told) };
        committee.node_of(member).unwrap().serve(Arc::new(liar));
    }
    let load = Load::start(busy.clone());
    committee.start_member(3).await;
    let size = log_of(&committee, 0, "busy").size;
    // Whoever starts its engine nowhere in particular finds the gap again. One that tells the truth is enough.
    until("catching up", || log_of(&committee, 3, "busy").size > size).await;
    until("every lie", || told.lock().unwrap().len() == 4).await;
    let truthful = committee.member(members[2]).unwrap().service();
    committee.node_of(members[2]).unwrap().serve(truthful);
    until("certifying", || log_of(&committee, 3, "busy").certified > size + 50).await;
    seated(&committee, 3, 0).await;
    load.stop().await;
    is_needed(&mut committee, 3, members[0], &[&busy, &idle]).await;
    assert!(starts_with_a_state(&committee, 3));
    committee.stop().await;
}
