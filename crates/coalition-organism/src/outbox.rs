//! Sending writes: those that wait together travel together, and each is retried until it is answered or too late.

use std::{sync::Arc, time::Duration};

use coalition_log::entry::WriteId;
use coalition_universe::{CallError, PeerId};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};

use crate::{
    admission::{Refusals, is_not_admitted, show},
    client::{CALL_TIMEOUT, Committed, Shared, millis},
    error::WriteError,
    receipt,
    wire::{self, MAX_WRITES, Payload, Write, WriteAnswer, WriteReply, WriteRequest, method},
};

/// Bytes that travel in one call.
const BATCH_BYTES: usize = 1 << 20;
/// Calls under way at once.
const CALLS: usize = 8;
/// Writes waiting to be sent; further callers wait.
const QUEUE: usize = 4_096;

struct Parcel {
    write: Write,
    started: Instant,
    deadline: Duration,
    last: Option<String>,
    answer: oneshot::Sender<Result<Committed, WriteError>>,
}

impl Parcel {
    fn left(&self) -> Duration {
        self.deadline.saturating_sub(self.started.elapsed())
    }

    fn expire(self) {
        let error = WriteError::Deadline { waited_ms: millis(self.deadline), last: self.last };
        let _ = self.answer.send(Err(error));
    }
}

/// The sending half; the task behind it ends when every clone is gone and everything sent has been answered.
#[derive(Clone)]
pub(crate) struct Outbox {
    queue: mpsc::Sender<Parcel>,
}

impl Outbox {
    pub(crate) fn start(shared: Arc<Shared>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(send_all(shared, waiting));
        Self { queue }
    }

    pub(crate) async fn write(
        &self,
        write_id: WriteId,
        payload: Payload,
        deadline: Duration,
    ) -> Result<Committed, WriteError> {
        let (answer, answered) = oneshot::channel();
        let write = Write { write_id, payload };
        let parcel = Parcel { write, started: Instant::now(), deadline, last: None, answer };
        let gone = || WriteError::Deadline { waited_ms: 0, last: Some("the client has stopped".into()) };
        let late = || WriteError::Deadline { waited_ms: millis(deadline), last: None };
        let waiting = async {
            self.queue.send(parcel).await.map_err(|_| gone())?;
            answered.await.unwrap_or_else(|_| Err(gone()))
        };
        // The batch it travels in may be waiting for a slower companion.
        tokio::time::timeout(deadline + Duration::from_millis(50), waiting).await.unwrap_or_else(|_| Err(late()))
    }
}

async fn send_all(shared: Arc<Shared>, mut waiting: mpsc::Receiver<Parcel>) {
    let calls = Arc::new(Semaphore::new(CALLS));
    while let Some(first) = waiting.recv().await {
        let Ok(permit) = Arc::clone(&calls).acquire_owned().await else { return };
        let batch = gather(first, &mut waiting);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            deliver(&shared, batch).await;
            drop(permit);
        });
    }
}

fn gather(first: Parcel, waiting: &mut mpsc::Receiver<Parcel>) -> Vec<Parcel> {
    let mut bytes = first.write.payload.len();
    let mut batch = vec![first];
    while batch.len() < MAX_WRITES && bytes < BATCH_BYTES {
        let Ok(next) = waiting.try_recv() else { break };
        bytes += next.write.payload.len();
        batch.push(next);
    }
    batch
}

/// Sends a batch to member after member until every write is answered or past its deadline.
async fn deliver(shared: &Shared, mut batch: Vec<Parcel>) {
    let mut refusals = Refusals::default();
    loop {
        let (late, on_time) = batch.into_iter().partition::<Vec<_>, _>(|parcel| parcel.left().is_zero());
        late.into_iter().for_each(Parcel::expire);
        batch = on_time;
        let Some(longest) = batch.iter().map(Parcel::left).max() else { return };
        let timeout = longest.min(CALL_TIMEOUT);
        let wait_ms = u32::try_from(millis(timeout.mul_f32(0.8))).unwrap_or(u32::MAX);
        let writes: Vec<Write> = batch.iter().map(|parcel| parcel.write.clone()).collect();
        let request = WriteRequest { organism: shared.id, writes, epoch: shared.epoch(), wait_ms };
        let (asked, (position, member)) = (Instant::now(), shared.member());
        let answer = shared.node.call(member, method::WRITE, wire::encode(&request), timeout).await;
        if answer.as_ref().is_err_and(is_not_admitted) {
            match admitted(shared, member, asked, &mut refusals).await {
                Ok(()) => continue,
                Err(Closed { reason, is_final: true }) => return refuse(batch, &reason),
                Err(Closed { reason, is_final: false }) => {
                    tracing::debug!(organism = %shared.id, %reason, "not admitted; asking the next member");
                    batch.iter_mut().for_each(|parcel| parcel.last = Some(reason.clone()));
                    shared.demote(position);
                    continue;
                }
            }
        }
        let failure = match read_answers(shared, answer, &request.writes) {
            Ok(answers) => {
                batch = settle(batch, answers);
                "not certified in time".to_owned()
            }
            Err(reason) => reason,
        };
        if batch.is_empty() {
            return;
        }
        let failure = format!("member {}: {failure}", shared.name(position));
        tracing::debug!(organism = %shared.id, %failure, writes = batch.len(), "resending to the next member");
        batch.iter_mut().for_each(|parcel| parcel.last = Some(failure.clone()));
        shared.demote(position);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A door that stays closed.
struct Closed {
    reason: String,
    /// More members than may lie say so.
    is_final: bool,
}

/// Shows one member this client's tickets, once for a batch.
async fn admitted(shared: &Shared, member: PeerId, asked: Instant, refusals: &mut Refusals) -> Result<(), Closed> {
    let shown = match refusals.may_try(member) {
        true => show(shared, member, asked).await,
        false => Err("it admitted this client and refuses its writes".into()),
    };
    shown.map_err(|reason| Closed { is_final: refusals.is_final(member, shared), reason })
}

fn refuse(batch: Vec<Parcel>, reason: &str) {
    for parcel in batch {
        let _ = parcel.answer.send(Err(WriteError::NotAdmitted { reason: reason.to_owned() }));
    }
}

fn read_answers(
    shared: &Shared,
    answer: Result<Vec<u8>, CallError>,
    writes: &[Write],
) -> Result<Vec<WriteAnswer>, String> {
    let bytes = answer.map_err(|error| error.to_string())?;
    let reply: WriteReply = wire::decode(&bytes).map_err(|error| error.to_string())?;
    shared.learn(&reply.handovers)?;
    receipt::verify(&shared.known().chain, writes, reply)
}

/// Hands out the answers there are; returns the writes still open.
fn settle(batch: Vec<Parcel>, answers: Vec<WriteAnswer>) -> Vec<Parcel> {
    let mut open = Vec::new();
    for (parcel, answer) in batch.into_iter().zip(answers) {
        let result = match answer {
            WriteAnswer::Pending => {
                open.push(parcel);
                continue;
            }
            WriteAnswer::Committed { entries } => Ok(Committed { write_id: parcel.write.write_id, entries }),
            WriteAnswer::Refused(refusal) => Err(WriteError::Refused(refusal)),
        };
        let _ = parcel.answer.send(result);
    }
    open
}
