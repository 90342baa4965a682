//! How fast the log is on this machine: appending, cosigning, proving, following.
//!
//! `cargo run --release -p coalition-log --example bench_log [entries] [directory]`; 200,000 entries in a temporary directory
//! by default. Every append is synced; the figures depend on the disk.
#![allow(clippy::print_stdout, clippy::float_arithmetic, reason = "a benchmark prints figures")]

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use coalition::{Roster, RosterMember, UniqueId};
use coalition_log::checkpoint::{Checkpoint, Cosigner, RosterVerifier, SignedCheckpoint};
use coalition_log::entry::{Entry, WriteId};
use coalition_log::follow::Follower;
use coalition_log::store::{Batch, Store, StoreOptions};
use ed25519_dalek::SigningKey;

type Outcome<T> = Result<T, Box<dyn Error>>;

const MEMBERS: u8 = 4;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let count: u64 = arguments.next().map_or(Ok(200_000), |text| text.parse())?;
    let temporary = tempfile::tempdir()?;
    let dir = arguments.next().map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let organism = UniqueId::from_bytes([1; 32]);
    let roster = Roster::new((0..MEMBERS).map(member).collect())?;
    println!("{count} entries with 256-byte bodies, one sync per append, in {}", dir.display());
    for batch in [1, 16, 64, 256, 1024] {
        let entries = if batch == 1 {
            count / 100
        } else if batch == 16 {
            count / 10
        } else {
            count
        };
        let mut store = Store::open(&dir.join(format!("batch-{batch}")), organism, &roster, StoreOptions::default())?;
        let (took, slowest) = append(&mut store, entries, batch)?;
        println!(
            "append    batches of {batch:>4}: {:>9.0} entries/s, slowest append {:>6.1} ms",
            rate(entries, took),
            slowest.as_secs_f64() * 1000.0
        );
    }
    let mut store = Store::open(&dir.join("batch-1024"), organism, &roster, StoreOptions::default())?;
    cosign(&mut store, organism, &roster)?;
    read(&store, organism, &roster)?;
    reopen(store, organism, &roster)
}

fn member(i: u8) -> RosterMember {
    let public = |seed: u8| SigningKey::from_bytes(&[seed; 32]).verifying_key().to_bytes();
    RosterMember {
        name: format!("m{i}"),
        checkpoint_key: public(i + 1),
        consensus_key: public(i + 65),
        peer_id: public(i + 129),
    }
}

fn cosigner(organism: UniqueId, i: u8) -> Cosigner {
    Cosigner::new(organism, &format!("m{i}"), SigningKey::from_bytes(&[i + 1; 32]))
}

fn entry(index: u64) -> Entry {
    let body = index.to_be_bytes().repeat(32);
    let write_id = WriteId([1; 16]);
    Entry { index, tick: Some(index), time_ms: index, write_id, kind: "bench.entry".into(), body, evidence: Vec::new() }
}

fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Appends in groups of batches of 16 commands, as a committee would under load.
fn append(store: &mut Store, count: u64, group: u64) -> Outcome<(Duration, Duration)> {
    let (mut took, mut slowest) = (Duration::ZERO, Duration::ZERO);
    let mut height = 0;
    while store.size() < count {
        let entries: Vec<Entry> = (store.size()..store.size() + group).map(entry).collect();
        let batches = entries.chunks(16).map(|entries| {
            height += 1;
            Batch { height, entries }
        });
        let batches: Vec<_> = batches.collect();
        let start = Instant::now();
        store.append_group(&batches)?;
        took += start.elapsed();
        slowest = slowest.max(start.elapsed());
    }
    Ok((took, slowest))
}

fn cosign(store: &mut Store, organism: UniqueId, roster: &Roster) -> Outcome<()> {
    let rounds = 200;
    let signer = cosigner(organism, 0);
    let first = store.size() - rounds;
    let start = Instant::now();
    for size in first..first + rounds {
        store.cosign_at(size, &signer, 1)?;
    }
    println!("cosign    with a synced guard:  {:>9.0} heads/s", rate(rounds, start.elapsed()));
    let head = store.head();
    let checkpoint = Checkpoint { organism, size: head.size, root: head.root };
    let signatures = (0..3).filter_map(|i| cosigner(organism, i).sign(&checkpoint, 1)).collect();
    let note = SignedCheckpoint { checkpoint, signatures };
    let verifier = RosterVerifier::new(organism, roster)?;
    let start = Instant::now();
    for _ in 0..rounds {
        verifier.certify(&note)?;
    }
    println!("certify   3 of 4 cosignatures:  {:>9.0} heads/s", rate(rounds, start.elapsed()));
    store.put_certified(&verifier.certify(&note)?)?;
    Ok(())
}

fn read(store: &Store, organism: UniqueId, roster: &Roster) -> Outcome<()> {
    let certified = store.certified().ok_or("no checkpoint")?;
    let mut follower = Follower::new(organism, roster)?;
    follower.accept_head(certified.note(), &[])?;
    let (mut serving, mut verifying) = (Duration::ZERO, Duration::ZERO);
    while follower.next_index() < certified.size() {
        let from = follower.next_index();
        let start = Instant::now();
        let entries = store.entries(from..(from + 256).min(certified.size()), 1 << 20)?;
        let proof = store.consistency_proof(from + entries.len() as u64, certified.size())?;
        serving += start.elapsed();
        let start = Instant::now();
        follower.accept_entries(from, &entries, &proof)?;
        verifying += start.elapsed();
    }
    println!("serve     ranges of 256:        {:>9.0} entries/s", rate(certified.size(), serving));
    println!("follow    ranges of 256:        {:>9.0} entries/s", rate(certified.size(), verifying));
    let proofs = 2000;
    let start = Instant::now();
    for i in 0..proofs {
        let evidence = store.evidence(i * 7919 % certified.size())?;
        evidence.verify(organism, roster)?;
    }
    println!("evidence  made and verified:    {:>9.0} entries/s", rate(proofs, start.elapsed()));
    Ok(())
}

fn reopen(store: Store, organism: UniqueId, roster: &Roster) -> Outcome<()> {
    let (dir, size) = (store.dir().to_owned(), store.size());
    drop(store);
    let start = Instant::now();
    let store = Store::open(&dir, organism, roster, StoreOptions::default())?;
    println!("reopen    {size} entries:       {:>9.1} ms", start.elapsed().as_secs_f64() * 1000.0);
    let start = Instant::now();
    store.entries(0..size, usize::MAX)?;
    println!("fold      read all, checked:    {:>9.0} entries/s", rate(size, start.elapsed()));
    Ok(())
}
