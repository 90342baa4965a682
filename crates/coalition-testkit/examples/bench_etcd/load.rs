//! Closed loops against either system, and what its processes spent meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{etcd, ours};

/// Bytes of a value.
pub const VALUE_BYTES: usize = 256;

pub enum System {
    Etcd(etcd::Cluster),
    Ours(Box<ours::Cluster>),
}

/// One client of either.
#[derive(Clone)]
pub enum Writer {
    Etcd(etcd::Writer),
    Ours(ours::Writer),
}

impl System {
    pub fn name(&self) -> String {
        match self {
            Self::Etcd(_) => "etcd, 3".into(),
            Self::Ours(cluster) => format!("ours, {}", cluster.pids().len()),
        }
    }

    pub fn members(&self) -> usize {
        self.pids().len()
    }

    fn pids(&self) -> Vec<u32> {
        match self {
            Self::Etcd(cluster) => cluster.pids(),
            Self::Ours(cluster) => cluster.pids(),
        }
    }

    fn writer(&self, number: usize) -> Writer {
        match self {
            Self::Etcd(cluster) => Writer::Etcd(cluster.writer(number)),
            Self::Ours(cluster) => Writer::Ours(cluster.writer(number)),
        }
    }

    fn count(&self) -> &Arc<AtomicU64> {
        match self {
            Self::Etcd(cluster) => &cluster.committed,
            Self::Ours(cluster) => &cluster.committed,
        }
    }

    /// Writes acknowledged so far.
    pub fn committed(&self) -> u64 {
        self.count().load(Ordering::Relaxed)
    }
}

impl Writer {
    async fn write(&self, content: Vec<u8>) -> Result<(), String> {
        match self {
            Self::Etcd(writer) => writer.write(content).await,
            Self::Ours(writer) => writer.write(content).await,
        }
    }
}

/// What one step measured.
pub struct Step {
    took: Vec<Duration>,
    length: Duration,
    spent: Spent,
}

impl Step {
    pub fn per_second(&self) -> f64 {
        self.took.len() as f64 / self.length.as_secs_f64()
    }

    /// Milliseconds.
    pub fn percentile(&self, percent: usize) -> f64 {
        let at = (self.took.len() * percent / 100).min(self.took.len().saturating_sub(1));
        self.took.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1e3)
    }

    pub fn cpu_us_per_commit(&self) -> f64 {
        self.spent.cpu_us as f64 / self.took.len() as f64
    }

    pub fn written_kb_per_commit(&self) -> f64 {
        self.spent.written as f64 / 1e3 / self.took.len() as f64
    }

    pub fn sent_kb_per_commit(&self) -> f64 {
        self.spent.sent as f64 / 1e3 / self.took.len() as f64
    }
}

/// What a system costs.
#[derive(Clone, Copy, Default)]
pub struct Spent {
    /// Processor time of the system's processes.
    pub cpu_us: u64,
    /// Bytes they sent to the disk.
    pub written: u64,
    /// Bytes that anybody sent over loopback, headers and clients included.
    pub sent: u64,
}

impl std::ops::Sub for Spent {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            cpu_us: self.cpu_us - before.cpu_us,
            written: self.written - before.written,
            sent: self.sent - before.sent,
        }
    }
}

/// What a system has cost so far.
pub fn spent(system: &System) -> Spent {
    let mut sum = Spent { sent: loopback_bytes(), ..Spent::default() };
    for pid in system.pids() {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        sum.cpu_us += (ticks(11) + ticks(12)) * 10_000;
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        sum.written += line.and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or(0);
    }
    sum
}

fn loopback_bytes() -> u64 {
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let loopback = devices.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
    let sent = loopback.and_then(|counters| counters.split_whitespace().nth(8)?.parse().ok());
    sent.unwrap_or(0)
}

/// Keeps so many writes under way for `length`, or until `most` are acknowledged.
pub async fn run(system: &System, concurrency: usize, length: Duration, most: u64) -> Result<Step, String> {
    let (began, before) = (Instant::now(), spent(system));
    let (until, goal) = (began + length, system.committed().saturating_add(most));
    let loops: Vec<_> = (0..concurrency)
        .map(|number| {
            let (writer, count) = (system.writer(number), Arc::clone(system.count()));
            tokio::spawn(async move {
                let mut took = Vec::new();
                while Instant::now() < until && count.load(Ordering::Relaxed) < goal {
                    let sent = Instant::now();
                    writer.write(content()).await?;
                    took.push(sent.elapsed());
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, String>(took)
            })
        })
        .collect();
    let mut took = Vec::new();
    for ended in loops {
        took.extend(ended.await.map_err(|error| error.to_string())??);
    }
    let (length, after) = (began.elapsed(), spent(system));
    took.sort_unstable();
    Ok(Step { took, length, spent: after - before })
}

/// A value nobody wrote before.
fn content() -> Vec<u8> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("{:<VALUE_BYTES$}", NUMBER.fetch_add(1, Ordering::Relaxed)).into_bytes()
}
