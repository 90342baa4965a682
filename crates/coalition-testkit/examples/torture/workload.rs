//! Writers that never stop, and a reader that keeps everything it was shown.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use coalition_log::{Entry, Fold, FoldFault};
use coalition_organism::{Organism, WriteError, random_write_id};

use crate::history::{History, Write};

/// A write that has no answer by then counts as unknown.
const DEADLINE: Duration = Duration::from_secs(90);

/// What a reader was shown, in order.
#[derive(Default)]
pub struct Shown(pub Vec<Entry>);

impl Fold for Shown {
    fn fold(&mut self, entry: &Entry) -> Result<(), FoldFault> {
        self.0.push(entry.clone());
        Ok(())
    }
}

/// Running writers.
pub struct Writers {
    stop: Arc<AtomicBool>,
    history: Arc<Mutex<History>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    pub acknowledged: Arc<AtomicU64>,
}

impl Writers {
    /// `clients` are handles on different nodes; every write has at least so many bytes.
    pub fn start(clients: &[Organism], writers: usize, bytes: usize) -> Self {
        let (stop, history) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(History::default())));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let tasks = (0..writers).map(|writer| {
            let organism = clients[writer % clients.len()].clone();
            let (stop, history, count) = (Arc::clone(&stop), Arc::clone(&history), Arc::clone(&acknowledged));
            tokio::spawn(async move {
                let mut number = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let write = one(&organism, writer, number, bytes).await;
                    if write.index.is_some() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    history.lock().unwrap().writes.push(write);
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, history, tasks, acknowledged }
    }

    /// Lets every writer finish its last write; answers what they did.
    pub async fn finish(self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        std::mem::take(&mut *self.history.lock().unwrap())
    }
}

async fn one(organism: &Organism, writer: usize, number: u64, bytes: usize) -> Write {
    let content = format!("{:bytes$}", format!("writer {writer} write {number}")).into_bytes();
    let began = Instant::now();
    let written = organism.write(random_write_id(), content.clone(), DEADLINE).await;
    let ended = Instant::now();
    let (index, complaint) = match written {
        Ok(committed) => match committed.entries.as_slice() {
            [pointer] => (Some(pointer.index), None),
            other => (None, Some(format!("{} entries for one write", other.len()))),
        },
        Err(WriteError::Deadline { .. }) => (None, None),
        Err(other) => (None, Some(other.to_string())),
    };
    Write { content, began, ended, index, complaint }
}
