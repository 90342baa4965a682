//! The answering side: accepts connections and runs one task a call.

use std::{
    sync::{Arc, RwLock},
    time::Duration,
};

use iroh::{
    Endpoint,
    endpoint::{Connection, Incoming, RecvStream, SendStream},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::JoinSet,
    time::timeout,
};

use crate::{
    PeerId,
    node::Service,
    wire::{self, Answer, Fault, FrameError, HEADER_BYTES, Header},
};

/// Connections held at once; further ones are refused before their handshake.
const MAX_CONNECTIONS: usize = 4_096;

/// Calls a node executes at once, long polls included; callers of further ones are told to try again.
const MAX_CONCURRENT_CALLS: usize = 4_096;

/// Request bodies beyond this many bytes share a budget, so that callers cannot fill the memory by sending slowly.
const SMALL_BODY_BYTES: usize = 64 << 10;

/// Large bodies being received or processed at once, and large answers made or taken.
const MAX_LARGE_BODIES: usize = 64;

/// Large answers one connection may be slow to take at once.
const MAX_LARGE_ANSWERS_EACH: usize = 8;

/// How long a peer may take for the handshake, again for sending one request, and again for taking the answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a node answers: methods of its own first, then the service it was given.
#[derive(Default)]
pub(crate) struct Answers {
    service: RwLock<Option<Arc<dyn Service>>>,
    own: RwLock<Option<Arc<dyn Service>>>,
}

/// Methods below this prefix are the node's own.
pub(crate) const OWN_PREFIX: &str = "universe.";

impl Answers {
    pub(crate) fn set_service(&self, service: Option<Arc<dyn Service>>) {
        *self.service.write().unwrap_or_else(std::sync::PoisonError::into_inner) = service;
    }

    pub(crate) fn set_own(&self, own: Arc<dyn Service>) {
        *self.own.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(own);
    }

    fn of(&self, method: &str) -> Option<Arc<dyn Service>> {
        let slot = if method.starts_with(OWN_PREFIX) { &self.own } else { &self.service };
        slot.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

struct Limits {
    calls: Arc<Semaphore>,
    large: Semaphore,
}

/// What one call may draw on: the node's limits, and its connection's share of large answers.
#[derive(Clone, Copy)]
struct Budget<'a> {
    limits: &'a Limits,
    taking: &'a Semaphore,
}

/// Held by a call with a large body or a large answer, until the answer is taken.
#[derive(Default)]
struct Drawn<'a> {
    large: Option<SemaphorePermit<'a>>,
    taking: Option<SemaphorePermit<'a>>,
}

/// Accepts until the endpoint closes.
pub(crate) async fn accept(endpoint: Endpoint, answers: Arc<Answers>) {
    let calls = Arc::new(Semaphore::new(MAX_CONCURRENT_CALLS));
    let limits = Arc::new(Limits { calls, large: Semaphore::new(MAX_LARGE_BODIES) });
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            incoming.refuse();
            continue;
        }
        connections.spawn(connection(incoming, Arc::clone(&answers), Arc::clone(&limits)));
    }
}

async fn connection(incoming: Incoming, answers: Arc<Answers>, limits: Arc<Limits>) {
    let Ok(accepting) = incoming.accept() else { return };
    let connection: Connection = match timeout(PATIENCE, accepting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%error, "a handshake failed"),
        Err(_) => return,
    };
    let caller = PeerId::from_mosaik(&connection.remote_id());
    let mut calls = JoinSet::new();
    let taking = Arc::new(Semaphore::new(MAX_LARGE_ANSWERS_EACH));
    while let Ok((send, receive)) = connection.accept_bi().await {
        while calls.try_join_next().is_some() {}
        let permit = Arc::clone(&limits.calls).try_acquire_owned();
        let (answers, limits, taking) = (Arc::clone(&answers), Arc::clone(&limits), Arc::clone(&taking));
        calls.spawn(async move {
            match permit {
                Ok(_call) => call(caller, send, receive, &answers, Budget { limits: &limits, taking: &taking }).await,
                Err(_) => respond(send, Answer::Unavailable).await,
            }
        });
    }
}

/// One call, from its first byte to the last of its answer.
async fn call(caller: PeerId, send: SendStream, mut receive: RecvStream, answers: &Answers, budget: Budget<'_>) {
    let mut drawn = Drawn::default();
    // A caller that gives up stops the answer's stream, and the call ends with it.
    let answer = tokio::select! {
        answer = answer(caller, &mut receive, answers, budget, &mut drawn) => answer,
        _ = send.stopped() => return,
    };
    respond(send, answer).await;
    drop(drawn);
}

/// Sends an answer and waits until the caller has it all, so that the limits count what is still in memory; a caller that
/// does not take it in time loses it.
async fn respond(mut send: SendStream, answer: Answer) {
    let (status, body) = wire::encode_answer(answer);
    let sent = async {
        send.write_all(&[status]).await?;
        send.write_all(&body).await?;
        let _ = send.finish();
        let _ = send.stopped().await;
        Ok::<_, iroh::endpoint::WriteError>(())
    };
    if timeout(PATIENCE, sent).await.is_err() {
        let _ = send.reset(0_u32.into());
    }
}

async fn answer<'a>(
    caller: PeerId,
    receive: &mut RecvStream,
    answers: &Answers,
    budget: Budget<'a>,
    drawn: &mut Drawn<'a>,
) -> Answer {
    let mut head = [0; HEADER_BYTES];
    if !matches!(timeout(PATIENCE, receive.read_exact(&mut head)).await, Ok(Ok(()))) {
        return Answer::Fault(malformed(FrameError::Malformed));
    }
    let header = match Header::parse(head) {
        Ok(header) => header,
        Err(error) => return Answer::Fault(malformed(error)),
    };
    if header.body_bytes > SMALL_BODY_BYTES {
        let Ok(permit) = budget.limits.large.try_acquire() else { return Answer::Unavailable };
        drawn.large = Some(permit);
    }
    let (method, body) = match timeout(PATIENCE, request(receive, header)).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return Answer::Fault(malformed(error)),
        Err(_) => return Answer::Fault(malformed(FrameError::Malformed)),
    };
    let Some(service) = answers.of(&method) else { return Answer::Unavailable };
    if service.answers_large(&method) {
        let Ok(taking) = budget.taking.try_acquire() else { return Answer::Unavailable };
        drawn.taking = Some(taking);
        if drawn.large.is_none() {
            let Ok(permit) = budget.limits.large.try_acquire() else { return Answer::Unavailable };
            drawn.large = Some(permit);
        }
    }
    run(service, caller, method, body).await
}

async fn request(receive: &mut RecvStream, header: Header) -> Result<(String, Vec<u8>), FrameError> {
    let mut method = vec![0; header.method_bytes];
    receive.read_exact(&mut method).await.map_err(|_| FrameError::Malformed)?;
    let method = wire::method_name(method)?;
    // Read as it comes: the announced length costs no memory until the bytes are here.
    let body = receive.read_to_end(header.body_bytes).await.map_err(|_| FrameError::Malformed)?;
    if body.len() == header.body_bytes { Ok((method, body)) } else { Err(FrameError::Malformed) }
}

/// Runs one call in a task of its own, so that a panic fails that call alone; the task ends with the caller's interest.
async fn run(service: Arc<dyn Service>, caller: PeerId, method: String, body: Vec<u8>) -> Answer {
    let name = method.clone();
    let mut task = JoinSet::new();
    task.spawn(async move { service.call(caller, method, body).await });
    match task.join_next().await {
        Some(Ok(Ok(body))) => Answer::Ok(body),
        Some(Ok(Err(fault))) => Answer::Fault(fault),
        Some(Err(error)) => {
            tracing::error!(method = %name, %error, "a service call died");
            Answer::Fault(Fault::new("internal", "the call failed inside the peer; its log says why"))
        }
        None => Answer::Unavailable,
    }
}

fn malformed(error: FrameError) -> Fault {
    let code = if matches!(error, FrameError::TooLarge(_)) { "too_large" } else { "malformed" };
    Fault::new(code, error.to_string())
}
