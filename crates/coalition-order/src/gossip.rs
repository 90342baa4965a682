//! What members tell each other besides consensus: commands to be ordered, and the side channel.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use commonware_cryptography::ed25519::PublicKey;
use commonware_p2p::{CheckedSender as _, LimitedSender, Receiver, Recipients};
use commonware_runtime::Clock;
use tokio::sync::mpsc;

use crate::frames::{self, framed_len};
use crate::inbox::InboxSender;
use crate::mempool::{Added, Origin};
use crate::shared::{Shared, millis};

/// Bytes of small items that travel in one message. Larger items travel alone.
pub(crate) const FRAME_BYTES: usize = 64 * 1024;

/// How often the number of connected members is looked up.
const STATUS_MS: u64 = 500;

/// Pause before gossiping is tried again while nobody is connected.
const ALONE_MS: u64 = 50;

/// Seats by roster index.
pub(crate) type Seats = Arc<Vec<PublicKey>>;

/// A message of the side channel on its way out: one member, or all others.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) to: Option<usize>,
    pub(crate) message: Bytes,
}

/// Gossips this process's commands until they are ordered.
pub(crate) async fn send_commands<E: Clock, S: LimitedSender<PublicKey = PublicKey>>(
    context: E,
    shared: Arc<Shared>,
    mut sender: S,
) {
    loop {
        let change = shared.change();
        let now = context.current();
        let due = shared.pool().gossip_due_ms();
        if due.is_none_or(|due| due > millis(now)) {
            let wait = due.map_or(60_000, |due| due.saturating_sub(millis(now)));
            tokio::select! {
                biased;
                () = change => {}
                () = context.sleep(Duration::from_millis(wait)) => {}
            }
            continue;
        }
        let checked = match sender.check(Recipients::All) {
            Ok(checked) => checked,
            Err(until) => {
                pause(&context, until).await;
                continue;
            }
        };
        if checked.recipients().is_empty() {
            context.sleep(Duration::from_millis(ALONE_MS)).await;
            continue;
        }
        let commands = shared.pool().take_gossip(millis(now), FRAME_BYTES);
        if !commands.is_empty() {
            let _ = checked.send(frames::encode(&commands), false);
        }
    }
}

/// Takes in the commands other members gossip.
pub(crate) async fn receive_commands<R: Receiver<PublicKey = PublicKey>>(
    shared: Arc<Shared>,
    seats: Seats,
    max_command_bytes: usize,
    mut receiver: R,
) {
    while let Ok((peer, message)) = receiver.recv().await {
        let Some(index) = seats.iter().position(|k| *k == peer) else { continue };
        let Some(commands) = frames::decode(message.as_ref(), max_command_bytes) else {
            tracing::warn!(member = index, "malformed frame of commands");
            continue;
        };
        let mut news = false;
        for command in commands {
            let (_, added) = shared.pool().add(command, Origin::Member(index));
            news |= added == Added::New;
            if added == Added::Full {
                tracing::debug!(member = index, "this member's share of the pool is used up");
                break;
            }
        }
        if news {
            shared.changed();
        }
    }
}

/// Sends the side channel's messages, several in one frame where they go the same way.
pub(crate) async fn send_gossip<E: Clock, S: LimitedSender<PublicKey = PublicKey>>(
    context: E,
    seats: Seats,
    mut sender: S,
    mut outbound: mpsc::Receiver<Outbound>,
) {
    let mut next = outbound.recv().await;
    while let Some(first) = next.take() {
        let to = first.to;
        let recipients = match to {
            None => Recipients::All,
            Some(index) => match seats.get(index) {
                Some(key) => Recipients::One(key.clone()),
                None => {
                    next = outbound.recv().await;
                    continue;
                }
            },
        };
        let mut bytes = framed_len(first.message.len());
        let mut items = vec![first.message];
        while let Ok(more) = outbound.try_recv() {
            bytes += framed_len(more.message.len());
            if more.to != to || bytes > FRAME_BYTES {
                next = Some(more);
                break;
            }
            items.push(more.message);
        }
        let frame = frames::encode(&items);
        loop {
            match sender.check(recipients.clone()) {
                Ok(checked) => {
                    let _ = checked.send(frame, false);
                    break;
                }
                Err(until) => pause(&context, until).await,
            }
        }
        if next.is_none() {
            next = outbound.recv().await;
        }
    }
}

/// Takes in the side channel's messages. What the consumer does not take in time is dropped, newest first.
pub(crate) async fn receive_gossip<R: Receiver<PublicKey = PublicKey>>(
    shared: Arc<Shared>,
    seats: Seats,
    max_bytes: usize,
    mut receiver: R,
    inbox: InboxSender,
) {
    while let Ok((peer, message)) = receiver.recv().await {
        let Some(index) = seats.iter().position(|k| *k == peer) else { continue };
        let Some(items) = frames::decode(message.as_ref(), max_bytes) else {
            tracing::warn!(member = index, "malformed frame on the side channel");
            continue;
        };
        for item in items {
            if !inbox.offer(index, item.to_vec()) {
                shared.gossip_dropped.fetch_add(1, Relaxed);
            }
        }
    }
}

/// Keeps the number of connected members current.
pub(crate) async fn watch_connections<E: Clock, S: LimitedSender<PublicKey = PublicKey>>(
    context: E,
    shared: Arc<Shared>,
    mut sender: S,
) {
    loop {
        if let Ok(checked) = sender.check(Recipients::All) {
            shared.connected.store(checked.recipients().len(), Relaxed);
        }
        context.sleep(Duration::from_millis(STATUS_MS)).await;
    }
}

async fn pause<E: Clock>(context: &E, until: SystemTime) {
    context.sleep_until(until).await;
}
