//! Which fault comes when, and what is concluded at the end.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use coalition::UniqueId;
use coalition_log::{
    Entry,
    entry::is_host_kind,
    store::{Store, StoreOptions},
};
use coalition_organism::{Follower, Organism};
use coalition_universe::{Node, NodeConfig, NodeKey, Relay, UNIVERSE};
use serde_json::json;

use crate::{
    committee::{Committee, ORGANISM, Places},
    damage::{self, Unread},
    disks,
    handovers::{self, Succession},
    history::History,
    namespaces,
    rng::Rng,
    workload::{Shown, Writers},
};

/// Small, so that members that are killed come back from states.
const STATE_EVERY: u64 = 256;
/// Longest a committee may take to certify again after its faults have ended.
const RECOVERY: Duration = Duration::from_secs(120);

/// Which faults.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Kills,
    Partitions,
    Bytes,
    Disks,
    Handovers,
}

impl Mode {
    /// Least bytes of a write. Where files are at stake, logs must grow into tiles.
    fn write_bytes(self) -> usize {
        if self == Self::Bytes { 32 * 1024 } else { 0 }
    }

    /// Violations after which a run ends; a damaged file does not spoil what comes after it.
    fn patience(self) -> usize {
        if self == Self::Bytes { 10 } else { 1 }
    }

    /// Acknowledged writes for each fault below which a run proves little.
    fn writes_per_fault(self) -> usize {
        if matches!(self, Self::Partitions | Self::Kills | Self::Handovers) { 10 } else { 20 }
    }
}

pub struct Options {
    pub mode: Mode,
    pub count: usize,
    pub members: usize,
    pub writers: usize,
    pub seed: u64,
    pub keep: Option<PathBuf>,
}

impl Options {
    pub fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut arguments = arguments.iter();
        let mode = match arguments.next().map(String::as_str) {
            Some("kills") => Mode::Kills,
            Some("partitions") => Mode::Partitions,
            Some("bytes") => Mode::Bytes,
            Some("disks") => Mode::Disks,
            Some("handovers") => Mode::Handovers,
            other => return Err(format!("say what to do, not {other:?}")),
        };
        let mut options = Self { mode, count: 20, members: 4, writers: 8, seed: 1, keep: None };
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or(format!("{name} needs a value"))?;
            let number = || value.parse::<usize>().map_err(|_| format!("{name} is {value:?}, not a number"));
            match name.as_str() {
                "--count" => options.count = number()?,
                "--members" => options.members = number()?,
                "--writers" => options.writers = number()?,
                "--seed" => options.seed = number()? as u64,
                "--keep" => options.keep = Some(value.into()),
                _ => return Err(format!("there is no option {name}")),
            }
        }
        if !(4..=10).contains(&options.members) {
            return Err(format!("--members is {}; it must be 4 to 10", options.members));
        }
        if mode == Mode::Handovers && options.seats() > 128 {
            return Err(format!("--count is {}; at most {} members can come", options.count, 128 - options.members));
        }
        Ok(options)
    }

    /// Everybody who will ever be a member.
    pub fn seats(&self) -> usize {
        self.members + if self.mode == Mode::Handovers { self.count } else { 0 }
    }
}

#[derive(Default)]
pub struct Outcome {
    pub faults: usize,
    pub acknowledged: usize,
    pub unknown: usize,
    pub entries: usize,
    pub seconds: u64,
    pub slowest_recovery_ms: u128,
    /// What the faults led to, by kind.
    pub did: BTreeMap<String, usize>,
    /// The longest wait of writers around each handover without a crash.
    pub waits_ms: Vec<u64>,
    /// Damaged files that no member has read since.
    pub unread: Vec<Unread>,
    pub violations: Vec<String>,
}

impl Outcome {
    /// A run in which little happened proves little.
    pub fn did_enough(&self, options: &Options) -> bool {
        self.faults >= options.count && self.acknowledged >= options.mode.writes_per_fault() * options.count.max(1)
    }

    pub fn note(&mut self, what: impl Into<String>) {
        *self.did.entry(what.into()).or_default() += 1;
    }

    pub fn to_json(&self) -> serde_json::Value {
        let mut waits = self.waits_ms.clone();
        waits.sort_unstable();
        json!({
            "median_wait_ms": waits.get(waits.len() / 2), "longest_wait_ms": waits.last(),
            "faults": self.faults, "acknowledged": self.acknowledged, "unknown": self.unknown, "entries": self.entries,
            "seconds": self.seconds, "slowest_recovery_ms": u64::try_from(self.slowest_recovery_ms).unwrap_or(u64::MAX),
            "did": self.did, "violations": self.violations,
        })
    }
}

pub async fn run(options: &Options, places: Places) -> Outcome {
    let scratch = tempfile::tempdir().unwrap();
    let dir = options.keep.clone().unwrap_or_else(|| scratch.path().to_owned());
    std::fs::create_dir_all(&dir).unwrap();
    let started = Instant::now();
    let relay = Relay::start(places.relay).await.unwrap();
    let mut committee = Committee::new(places.clone(), &dir, STATE_EVERY).with_genesis(options.members);
    for member in 0..options.members {
        if options.mode == Mode::Disks {
            disks::mount(&committee.member_dir(member)).unwrap();
        }
        committee.start(member).unwrap_or_else(|words| panic!("member {member} does not start: {words}"));
    }
    let clients = [client(&places, &committee).await, client(&places, &committee).await];
    let reader = Follower::spawn(client(&places, &committee).await, Shown::default());
    let writers = Writers::start(&clients, options.writers, options.mode.write_bytes());
    let mut outcome = Outcome::default();
    progress_until(&writers, 50, &mut outcome, "the start").await;

    let mut rng = Rng::new(options.seed);
    let mut succession = Succession::new(options.members);
    while outcome.faults < options.count && outcome.violations.len() < options.mode.patience() {
        match options.mode {
            Mode::Kills => kill(&mut rng, &mut committee, &mut outcome).await,
            Mode::Partitions => partition(&mut rng, &committee, &mut outcome).await,
            Mode::Bytes => damage::one(&mut rng, &mut committee, &mut outcome).await,
            Mode::Disks => disks::one(&mut rng, &mut committee, &mut outcome).await,
            Mode::Handovers => {
                let around = (&mut succession, &writers);
                handovers::one(&mut rng, &mut committee, &clients[0], around, &mut outcome).await;
            }
        }
        if let Some((member, status)) = committee.dead() {
            if options.mode == Mode::Disks {
                // It was still ending when its disk was looked at.
                disks::after(&mut committee, member, &status, &mut outcome);
                continue;
            }
            let words = committee.words(member);
            if damage::explained(&outcome.unread, &words).is_some() {
                damage::after(&mut committee, member, words, &mut outcome).await;
                continue;
            }
            outcome.violations.push(format!("member {member} ended by itself with {status}: {}", words.trim()));
        }
        if outcome.faults % 10 == 0 {
            // Whatever the faults did, with everybody back the committee goes on.
            progress_until(&writers, 20, &mut outcome, "ten faults").await;
            let done = writers.acknowledged.load(Ordering::Relaxed);
            eprintln!("{:>6} faults, {done} writes acknowledged, {} s", outcome.faults, started.elapsed().as_secs());
        }
    }
    progress_until(&writers, 50, &mut outcome, "the last fault").await;
    let history = writers.finish().await;
    conclude(&mut outcome, &history, &reader, &mut committee).await;
    outcome.seconds = started.elapsed().as_secs();
    relay.stop().await;
    outcome
}

async fn client(places: &Places, committee: &Committee) -> Organism {
    let config = NodeConfig {
        network_id: UNIVERSE.derive("torture"),
        key: NodeKey::generate(),
        relay: places.relay_url(),
        bind: Some(std::net::SocketAddr::new(places.relay.ip(), 0)),
        bootstrap: (0..committee.len()).map(|member| places.peer(member)).collect(),
        public: false,
        start_timeout: Duration::from_secs(20),
    };
    let node: Arc<Node> = Node::start(config).await.unwrap();
    Organism::connect(node, UniqueId::from_bytes(ORGANISM), committee.roster()).unwrap()
}

/// Waits until so many more writes are acknowledged, and notes how long that took.
async fn progress_until(writers: &Writers, more: u64, outcome: &mut Outcome, after: &str) {
    let (began, goal) = (Instant::now(), writers.acknowledged.load(Ordering::Relaxed) + more);
    while writers.acknowledged.load(Ordering::Relaxed) < goal {
        if began.elapsed() > RECOVERY {
            outcome.violations.push(format!("no progress within {} s after {after}", RECOVERY.as_secs()));
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    outcome.slowest_recovery_ms = outcome.slowest_recovery_ms.max(began.elapsed().as_millis());
}

pub async fn pause(rng: &mut Rng, up_to_ms: usize) {
    tokio::time::sleep(Duration::from_millis(rng.below(up_to_ms) as u64)).await;
}

/// Mostly one member, as the committee must survive it; sometimes two, or all, which halts it.
pub fn victims(rng: &mut Rng, members: usize) -> Vec<usize> {
    let how_many = match rng.below(10) {
        0 => members,
        1 => 2,
        _ => 1,
    };
    let first = rng.below(members);
    (0..how_many).map(|offset| (first + offset) % members).collect()
}

/// SIGKILL, and a start within a second.
async fn kill(rng: &mut Rng, committee: &mut Committee, outcome: &mut Outcome) {
    pause(rng, 700).await;
    let victims = victims(rng, committee.len());
    for &victim in &victims {
        if committee.is_up(victim) {
            committee.kill(victim);
            outcome.faults += 1;
        }
        pause(rng, 30).await;
    }
    pause(rng, 600).await;
    for victim in victims {
        if let Err(words) = tokio::task::block_in_place(|| committee.start(victim)) {
            outcome.violations.push(format!("member {victim} does not start again after SIGKILL: {words}"));
        }
    }
}

/// Every member on one of two sides, for up to three seconds; then together again.
async fn partition(rng: &mut Rng, committee: &Committee, outcome: &mut Outcome) {
    let sides: Vec<usize> = (0..committee.len()).map(|_| usize::from(rng.percent(40))).collect();
    if let Err(reason) = namespaces::split(&sides) {
        outcome.violations.push(reason);
        return;
    }
    outcome.faults += 1;
    pause(rng, 3_000).await;
    if let Err(reason) = namespaces::split(&vec![0; committee.len()]) {
        outcome.violations.push(reason);
    }
    pause(rng, 1_000).await;
}

async fn conclude(outcome: &mut Outcome, history: &History, reader: &Follower<Shown>, committee: &mut Committee) {
    let acknowledged = history.highest().map_or(0, |index| index + 1);
    match reader.caught_up(RECOVERY).await {
        Ok(size) if size >= acknowledged => {}
        Ok(size) => outcome.violations.push(format!(
            "a quorum knows of {size} entries, and {acknowledged} were acknowledged before it was asked"
        )),
        Err(error) => outcome.violations.push(format!("the reader does not catch up: {error}")),
    }
    let log: Vec<Entry> = reader.read(|shown| shown.0.clone());
    outcome.acknowledged = history.acknowledged();
    outcome.unknown = history.unknown();
    outcome.entries = log.len();
    outcome.violations.extend(history.check(&log));
    outcome.violations.extend(committee.stop_all());
    let roster = committee.roster();
    for member in 0..committee.len() {
        match same_log(&committee.log_dir(member), &roster, &log) {
            Ok(()) => {}
            Err(reason) if damage::explained(&outcome.unread, &reason).is_some() => {
                let others = (0..committee.len()).filter(|other| *other != member);
                let mut repaired = others.map(|other| {
                    damage::copy_log(committee, other, member);
                    same_log(&committee.log_dir(member), &roster, &log)
                });
                match repaired.find(Result::is_ok) {
                    Some(_) => outcome.note("log's tile or entries: named when read, repaired from another member"),
                    None => outcome.violations.push(format!("member {member} cannot be repaired: {reason}")),
                }
            }
            Err(reason) => outcome.violations.push(format!("member {member}: {reason}")),
        }
    }
}

/// A member's own log on disk: everything the reader was shown, as far as it reaches, and no other history. Readers are not shown the
/// committee's own entries.
fn same_log(dir: &Path, roster: &coalition::Roster, shown: &[Entry]) -> Result<(), String> {
    let store = Store::open(dir, UniqueId::from_bytes(ORGANISM), roster, StoreOptions::default());
    let store = store.map_err(|error| error.to_string())?;
    let (mut next, mut shown) = (0, shown.iter().peekable());
    while next < store.size() && shown.peek().is_some() {
        for bytes in store.entries(next..store.size(), 1 << 20).map_err(|error| error.to_string())? {
            next += 1;
            let entry = Entry::decode(&bytes).map_err(|error| error.to_string())?;
            if is_host_kind(&entry.kind) {
                continue;
            }
            if shown.next().is_some_and(|expected| *expected != entry) {
                return Err(format!("its entry {} differs from the certified one", entry.index));
            }
        }
    }
    Ok(())
}
