//! How long a member needs that is many entries behind what the others keep, by entries and by a state; and how much disk an
//! idle committee's engine takes when it drops old batches, and when it does not.
//!
//! `cargo run --release -p coalition-testkit --example bench_catchup [entries] [seconds]`; 100,000 entries and 60 s by default.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a benchmark prints figures")]

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use coalition::codec;
use coalition_log::{Context, Draft, Entry, Machine, Refusal, SnapshotError, state::MAX_STATE_BYTES};
use coalition_organism::{BatchKeeping, Organism, random_write_id};
use coalition_testkit::{Carried, Committee};

const NAME: &str = "ledger";
const KEYS: u64 = 10_000;
const BODY_BYTES: usize = 128;
/// Entries one command writes.
const PER_COMMAND: u64 = 50;
const DEADLINE: Duration = Duration::from_secs(600);
/// Drops soon, so that a short run shows what a long one does.
const DROPS: BatchKeeping = BatchKeeping { retain: 64, common_every: 64, per_file: 16 };

/// The newest entry of each of so many keys.
#[derive(Default)]
struct Ledger {
    entries: u64,
    rows: BTreeMap<u64, Vec<u8>>,
}

impl Machine for Ledger {
    fn decide(&self, _: &Context, _: &[u8]) -> Result<Vec<Draft>, Refusal> {
        let body = |number: u64| number.to_be_bytes().repeat(BODY_BYTES / 8);
        Ok((0..PER_COMMAND).map(|i| Draft::new("ledger.row", body(self.entries + i))).collect())
    }

    fn round(&self, _: &Context) -> Option<Vec<Draft>> {
        None
    }

    fn evolve(&mut self, entry: &Entry) {
        self.entries += 1;
        self.rows.insert(self.entries % KEYS, entry.body.clone());
    }

    fn wake_at_ms(&self, _: &Context) -> Option<u64> {
        None
    }

    fn snapshot(&self) -> Vec<u8> {
        codec::encode(&(self.entries, &self.rows))
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        (self.entries, self.rows) = codec::decode(snapshot, MAX_STATE_BYTES)?;
        Ok(())
    }
}

async fn start(keeping: BatchKeeping, heartbeat_ms: u64) -> Committee {
    Committee::start_with(4, vec![Carried::new(NAME, Ledger::default)], |committee| {
        committee.heartbeat_ms = heartbeat_ms;
        committee.batches = keeping;
    })
    .await
}

fn certified(committee: &Committee, member: usize) -> u64 {
    committee.member(member).unwrap().status()[0].certified
}

async fn fill(ledger: &Organism, entries: u64) {
    for _ in 0..entries.div_ceil(PER_COMMAND * 16) {
        let writes = (0..16).map(|_| {
            let ledger = ledger.clone();
            tokio::spawn(async move { ledger.write(random_write_id(), vec![1], DEADLINE).await.unwrap() })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await.unwrap();
        }
    }
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < DEADLINE, "not in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Member 3 sleeps while the others write `entries` and drop the batches of them; it comes back, and keeps so many.
async fn come_back(entries: u64, retain_entries: Option<u64>) {
    let mut committee = start(DROPS, 100).await;
    let client = committee.client().await;
    let ledger = committee.organism(&client, NAME);
    fill(&ledger, 1).await;
    committee.stop_member(3).await;
    fill(&ledger, entries).await;
    let status = |member: usize| committee.member(member).unwrap().order_status().unwrap();
    until(|| (0..3).all(|member| status(member).pruned_height > 32)).await;
    committee.retain_entries = retain_entries;
    let (size, began) = (certified(&committee, 0), Instant::now());
    committee.start_member(3).await;
    until(|| committee.member(3).unwrap().status()[0].size >= size).await;
    let read = began.elapsed();
    until(|| committee.member(3).unwrap().standing().borrow().is_seated()).await;
    let seated = began.elapsed();
    committee.stop_member(0).await;
    ledger.write(random_write_id(), vec![1], DEADLINE).await.unwrap();
    let by_state = committee.member_dir(3).join("logs").join(NAME).join("start").exists();
    let how = if by_state { "by a state" } else { "by entries" };
    println!(
        "{size} entries {how}: read after {read:?}, seated after {seated:?}, the first write that needs it certified after {:?}",
        began.elapsed()
    );
    committee.stop().await;
}

fn bytes_in(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    files
        .map(|file| if file.path().is_dir() { bytes_in(&file.path()) } else { file.metadata().map_or(0, |m| m.len()) })
        .sum()
}

/// Writes of 50 entries, one after the other, for so long.
async fn grow(seconds: u64, keeping: BatchKeeping, name: &str) {
    let committee = start(keeping, 20).await;
    let client = committee.client().await;
    let ledger = committee.organism(&client, NAME);
    let began = Instant::now();
    let mut told = 0;
    while began.elapsed().as_secs() < seconds {
        ledger.write(random_write_id(), vec![1; 2_000], DEADLINE).await.unwrap();
        if began.elapsed().as_secs() >= told {
            let status = committee.member(0).unwrap().order_status().unwrap();
            let dir = committee.member_dir(0);
            let (order, log) = (bytes_in(&dir.join("order")) >> 10, bytes_in(&dir.join("logs")) >> 10);
            println!("{name}, {told} s: {} batches, engine {order} KiB, log {log} KiB", status.delivered_height);
            told += seconds / 6;
        }
    }
    committee.stop().await;
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().expect("a number"));
    let (entries, seconds) = (arguments.next().unwrap_or(100_000), arguments.next().unwrap_or(60));
    come_back(entries, None).await;
    come_back(entries, Some(1_000)).await;
    grow(seconds, DROPS, "drops").await;
    grow(seconds, BatchKeeping { retain: u64::MAX, ..DROPS }, "keeps").await;
}
