//! How a reader and a member start on a long log: from a certified state and from the first entry.
//!
//! `cargo run --release -p coalition-testkit --example bench_follow [entries]`; 1,000,000 entries by default. Readers are processes of their
//! own, so that their memory is theirs.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a benchmark prints figures")]

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use coalition::{UniqueId, codec};
use coalition_log::{Context, Draft, Entry, Machine, Refusal, SnapshotError, state::MAX_STATE_BYTES};
use coalition_organism::{Fold, FoldFault, Follower, FromState, Organism, Persist, random_write_id};
use coalition_testkit::{Carried, Committee, roster};
use coalition_universe::{Node, NodeConfig, NodeKey, PeerAddress, UNIVERSE};

const NAME: &str = "ledger";
const KEYS: u64 = 10_000;
const BODY_BYTES: usize = 128;
/// Entries one command writes.
const PER_COMMAND: u64 = 250;
const DEADLINE: Duration = Duration::from_secs(600);

/// The newest entry of each of so many keys.
#[derive(Default)]
struct Ledger {
    entries: u64,
    rows: BTreeMap<u64, Vec<u8>>,
}

impl Ledger {
    fn take(&mut self, entry: &Entry) {
        self.entries += 1;
        self.rows.insert(self.entries % KEYS, entry.body.clone());
    }

    fn to_bytes(&self) -> Vec<u8> {
        codec::encode(&(self.entries, &self.rows))
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        (self.entries, self.rows) = codec::decode(bytes, MAX_STATE_BYTES)?;
        Ok(())
    }
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
        self.take(entry);
    }

    fn wake_at_ms(&self, _: &Context) -> Option<u64> {
        None
    }

    fn snapshot(&self) -> Vec<u8> {
        self.to_bytes()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        self.read(snapshot)
    }
}

impl Fold for Ledger {
    fn fold(&mut self, entry: &Entry) -> Result<(), FoldFault> {
        self.take(entry);
        Ok(())
    }
}

impl FromState for Ledger {
    fn start_from(&mut self, machine: &[u8]) -> Result<(), SnapshotError> {
        self.read(machine)
    }
}

impl Persist for Ledger {
    fn save(&self) -> Vec<u8> {
        self.to_bytes()
    }

    fn load(&mut self, saved: &[u8]) -> Result<(), SnapshotError> {
        self.read(saved)
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [read, how, relay, peers, file] if read == "read" => reader(how, relay, peers, Path::new(file)).await,
        [] => bench(1_000_000).await,
        [entries] => bench(entries.parse().unwrap()).await,
        other => panic!("{other:?}"),
    }
}

async fn bench(entries: u64) {
    let mut committee = Committee::start(1, vec![Carried::new(NAME, Ledger::default)]).await;
    println!("{entries} entries of {BODY_BYTES} bytes, a state of {KEYS} rows, a committee of one");
    for size in [entries / 10, entries] {
        let began = Instant::now();
        fill(&committee, size).await;
        println!("written up to {size}: {:.1} s", began.elapsed().as_secs_f64());
        restarts(&mut committee, size).await;
    }
    let (relay, peers) = committee.places();
    let (scratch, peers) = (tempfile::tempdir().unwrap(), serde_json::to_string(&peers).unwrap());
    let file = scratch.path().join("ledger.fold");
    for how in ["zero", "state", "disk"] {
        let program = std::env::current_exe().unwrap();
        let arguments = ["read", how, &relay, &peers, file.to_str().unwrap()];
        let status = tokio::task::block_in_place(|| Command::new(program).args(arguments).status().unwrap());
        assert!(status.success(), "the reader ended with {status}");
    }
    committee.stop().await;
}

async fn fill(committee: &Committee, size: u64) {
    let client = committee.client().await;
    let ledger = committee.organism(&client, NAME);
    let head = ledger.head(DEADLINE).await.unwrap().size();
    let mut commands = size.saturating_sub(head).div_ceil(PER_COMMAND);
    while commands > 0 {
        let now = commands.min(16);
        let writes = (0..now).map(|_| {
            let ledger = ledger.clone();
            tokio::spawn(async move { ledger.write(random_write_id(), vec![1], DEADLINE).await.unwrap() })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await.unwrap();
        }
        commands -= now;
    }
    client.stop().await;
}

async fn restarts(committee: &mut Committee, size: u64) {
    committee.stop_member(0).await;
    let from_state = committee.start_member(0).await;
    committee.stop_member(0).await;
    let states = committee.member_dir(0).join("logs").join(NAME).join("state");
    let aside = states.with_extension("aside");
    std::fs::rename(&states, &aside).unwrap();
    let from_zero = committee.start_member(0).await;
    std::fs::rename(&aside, &states).unwrap();
    let ms = |took: Duration| took.as_millis();
    println!("member start at {size}: {} ms from a state, {} ms folding the whole log", ms(from_state), ms(from_zero));
}

async fn reader(how: &str, relay: &str, peers: &str, file: &Path) {
    let peers: Vec<PeerAddress> = serde_json::from_str(peers).unwrap();
    let config = NodeConfig {
        network_id: UNIVERSE.derive("testkit"),
        key: NodeKey::generate(),
        relay: relay.to_owned(),
        bind: None,
        bootstrap: peers.clone(),
        public: false,
        start_timeout: Duration::from_secs(30),
    };
    let node = Node::start(config).await.unwrap();
    peers.into_iter().for_each(|peer| node.introduce(peer));
    let organism = Organism::connect(node.clone(), UniqueId::hash(NAME.as_bytes()), roster(1)).unwrap();
    let before = memory_kib();
    let began = Instant::now();
    let start = Follower::start(organism, Ledger::default());
    let follower = match how {
        "zero" => start.spawn(),
        _ => start.from_state().kept_in(file).spawn(),
    };
    let at_once = (began.elapsed(), follower.certified_size());
    let size = follower.caught_up(DEADLINE).await.unwrap();
    let took = began.elapsed();
    assert_eq!(follower.read(|ledger| ledger.rows.len() as u64), KEYS);
    println!(
        "reader from {how}: {} entries at hand after {} ms, all {size} after {} ms; {} MiB at most, {} MiB before",
        at_once.1,
        at_once.0.as_millis(),
        took.as_millis(),
        memory_kib() / 1_024,
        before / 1_024,
    );
    let until = Instant::now() + Duration::from_secs(20);
    while how == "state" && !file.is_file() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(follower);
    node.stop().await;
}

/// The most memory this process has had resident so far.
fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
