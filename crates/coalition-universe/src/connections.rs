//! The calling side: one persistent connection a peer, opened when first needed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use iroh::{
    Endpoint, EndpointAddr,
    endpoint::{Connection, VarInt},
};

use crate::{
    PeerId,
    wire::{self, Answer},
};

/// Connections nobody has called on for this long are closed when the next one is opened.
const IDLE: Duration = Duration::from_secs(120);

const CLOSED_BY_CALLER: VarInt = VarInt::from_u32(0);

/// Why a call got no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection, or it broke.
    Transport(String),
    /// The peer serves nothing now or has no room.
    Unavailable,
}

/// One peer's connection.
struct Slot {
    /// Held while connecting, so that concurrent callers share one handshake.
    connection: tokio::sync::Mutex<Option<Connection>>,
    used: Mutex<Instant>,
}

/// The pool.
pub(crate) struct Connections {
    endpoint: Endpoint,
    alpn: Vec<u8>,
    slots: Mutex<BTreeMap<PeerId, Arc<Slot>>>,
}

impl Connections {
    pub(crate) fn new(endpoint: Endpoint, alpn: Vec<u8>) -> Self {
        Self { endpoint, alpn, slots: Mutex::default() }
    }

    /// Calls a method over the peer's connection. Cancelling the future cancels the call at the peer.
    pub(crate) async fn call(
        &self,
        peer: PeerId,
        address: impl FnOnce() -> EndpointAddr,
        method: &str,
        body: &[u8],
    ) -> Result<Answer, Failure> {
        let connection = self.connection(peer, address).await?;
        let (received, since) = (received(&connection), Instant::now());
        let mut watch = Watch { connection: &connection, received, since, done: false };
        let answer = exchange(&connection, method, body).await;
        watch.done = answer.is_ok();
        answer
    }

    pub(crate) fn clear(&self) {
        lock(&self.slots).clear();
    }

    async fn connection(&self, peer: PeerId, address: impl FnOnce() -> EndpointAddr) -> Result<Connection, Failure> {
        let slot = self.slot(peer);
        let mut current = slot.connection.lock().await;
        if let Some(connection) = current.as_ref().filter(|connection| connection.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        *current = None;
        let connecting = self.endpoint.connect(address(), &self.alpn);
        let connection = connecting.await.map_err(|error| Failure::Transport(format!("{error:#}")))?;
        *current = Some(connection.clone());
        Ok(connection)
    }

    fn slot(&self, peer: PeerId) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        if !slots.contains_key(&peer) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || lock(&slot.used).elapsed() < IDLE);
        }
        let fresh = || Arc::new(Slot { connection: tokio::sync::Mutex::default(), used: Mutex::new(Instant::now()) });
        let slot = slots.entry(peer).or_insert_with(fresh);
        *lock(&slot.used) = Instant::now();
        Arc::clone(slot)
    }
}

/// A living peer acknowledges within milliseconds, whatever the method takes.
const NO_SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// Closes a connection on which nothing at all came back for a whole abandoned call: its peer was restarted or is gone,
/// and QUIC would only find out after its idle timeout.
struct Watch<'a> {
    connection: &'a Connection,
    received: u64,
    since: Instant,
    done: bool,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let silent = || received(self.connection) == self.received;
        if !self.done && self.since.elapsed() >= NO_SIGN_OF_LIFE && silent() {
            self.connection.close(CLOSED_BY_CALLER, b"no sign of life");
        }
    }
}

fn received(connection: &Connection) -> u64 {
    connection.stats().udp_rx.datagrams
}

async fn exchange(connection: &Connection, method: &str, body: &[u8]) -> Result<Answer, Failure> {
    let broken = |reason: String| Failure::Transport(reason);
    let head = wire::request_head(method, body.len()).map_err(|error| broken(error.to_string()))?;
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| broken(error.to_string()))?;
    let sent = async {
        send.write_all(&head).await?;
        send.write_all(body).await
    };
    // A peer may answer, with a refusal, before it has read everything.
    let sent = sent.await.map_err(|error| broken(error.to_string()));
    let _ = send.finish();
    let answer = match receive.read_to_end(wire::MAX_ANSWER_BYTES).await {
        Ok(answer) => answer,
        Err(error) => return Err(sent.err().unwrap_or_else(|| broken(error.to_string()))),
    };
    match wire::decode_answer(answer).map_err(|error| broken(error.to_string()))? {
        Answer::Unavailable => Err(Failure::Unavailable),
        answer => Ok(answer),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
