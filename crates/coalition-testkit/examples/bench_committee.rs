//! Benchmark of a committee of four on loopback, everything in one process: certified writes at several concurrencies,
//! the reader's verification rate, idle cost. `cargo run --release -p coalition-testkit --example bench_committee`
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::float_arithmetic,
    clippy::cast_precision_loss,
    missing_docs
)]

use std::time::{Duration, Instant};

use coalition_log::{Context, Draft, Entry, Fold, FoldFault, Machine, Refusal, SnapshotError};
use coalition_organism::{Follower, Organism, random_write_id};
use coalition_testkit::{Carried, Committee};

/// Commits every command as one entry.
struct Sink;

impl Machine for Sink {
    fn decide(&self, _: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
        Ok(vec![Draft::new("sink", command.to_vec())])
    }

    fn round(&self, _: &Context) -> Option<Vec<Draft>> {
        None
    }

    fn evolve(&mut self, _: &Entry) {}

    fn wake_at_ms(&self, _: &Context) -> Option<u64> {
        None
    }

    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        SnapshotError::unless_empty(snapshot)
    }
}

#[derive(Default)]
struct Count(u64);

impl Fold for Count {
    fn fold(&mut self, _: &Entry) -> Result<(), FoldFault> {
        self.0 += 1;
        Ok(())
    }
}

const DEADLINE: Duration = Duration::from_secs(60);

async fn writes(organism: &Organism, concurrency: usize, length: Duration) {
    let until = Instant::now() + length;
    let started = Instant::now();
    let workers = (0..concurrency).map(|_| {
        let organism = organism.clone();
        tokio::spawn(async move {
            let mut took = Vec::new();
            while Instant::now() < until {
                let sent = Instant::now();
                organism.write(random_write_id(), vec![0xA5; 256], DEADLINE).await.unwrap();
                took.push(sent.elapsed());
            }
            took
        })
    });
    let workers: Vec<_> = workers.collect();
    let mut took = Vec::new();
    for worker in workers {
        took.extend(worker.await.unwrap());
    }
    let seconds = started.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)].as_secs_f64() * 1e3;
    println!(
        "concurrency {concurrency:>3}: {:>8.0} certified/s   p50 {:>7.1} ms   p99 {:>7.1} ms   ({} writes)",
        took.len() as f64 / seconds,
        at(50),
        at(99),
        took.len()
    );
}

/// Seconds of CPU this process has used.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let started = Instant::now();
    let committee = Committee::start(4, vec![Carried::new("sink", || Sink)]).await;
    let client = committee.client().await;
    let organism = committee.organism(&client, "sink");
    organism.write(random_write_id(), vec![1], DEADLINE).await.unwrap();
    println!("four members up and first write certified: {:.2} s", started.elapsed().as_secs_f64());

    let (cpu, clock) = (cpu_seconds(), Instant::now());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let share = (cpu_seconds() - cpu) / clock.elapsed().as_secs_f64() * 100.0;
    println!("idle: {:.2} % of a core and {:.0} MiB for all four members and a client", share, resident_mib());

    for concurrency in [1, 16, 256] {
        writes(&organism, concurrency, Duration::from_secs(8)).await;
    }

    let reading = Instant::now();
    let reader = Follower::spawn(organism.clone(), Count::default());
    let size = reader.caught_up(DEADLINE).await.unwrap();
    println!(
        "reader: {size} entries fetched and verified, {:.0} a second",
        size as f64 / reading.elapsed().as_secs_f64()
    );
    println!("resident at the end: {:.0} MiB", resident_mib());
    committee.stop().await;
}
