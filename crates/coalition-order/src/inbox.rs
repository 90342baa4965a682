//! Where the side channel's messages wait: so many of each sender, so that one that floods loses only its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::mpsc;

/// Messages of one sender that wait.
const PER_SENDER: usize = 256;

/// Roster index of the sender, as the network authenticated it, and the bytes.
type Message = (usize, Vec<u8>);

/// An inbox for messages of `members` senders, and its filling end.
pub(crate) fn inbox(members: usize) -> (InboxSender, GossipInbox) {
    let (queue, received) = mpsc::channel(members.max(1) * PER_SENDER);
    let waiting: Arc<[AtomicUsize]> = (0..members).map(|_| AtomicUsize::new(0)).collect();
    (InboxSender { queue, waiting: Arc::clone(&waiting) }, GossipInbox { received, waiting })
}

/// The filling end.
#[derive(Debug)]
pub(crate) struct InboxSender {
    queue: mpsc::Sender<Message>,
    waiting: Arc<[AtomicUsize]>,
}

impl InboxSender {
    /// Whether there was room for one more message of this sender.
    pub(crate) fn offer(&self, sender: usize, message: Vec<u8>) -> bool {
        let Some(waiting) = self.waiting.get(sender) else { return false };
        if waiting.load(Relaxed) >= PER_SENDER {
            return false;
        }
        waiting.fetch_add(1, Relaxed);
        let sent = self.queue.try_send((sender, message)).is_ok();
        if !sent {
            waiting.fetch_sub(1, Relaxed);
        }
        sent
    }
}

/// What other members sent on the side channel. Holds 256 messages of each; more are dropped.
#[derive(Debug)]
pub struct GossipInbox {
    received: mpsc::Receiver<Message>,
    waiting: Arc<[AtomicUsize]>,
}

impl GossipInbox {
    /// The next message: roster index of the sender, as the network authenticated it, and the bytes. `None` when the
    /// engine has ended. Cancel safe.
    pub async fn recv(&mut self) -> Option<(usize, Vec<u8>)> {
        let message = self.received.recv().await;
        self.taken(message)
    }

    /// The next message if one is there.
    pub fn try_recv(&mut self) -> Option<(usize, Vec<u8>)> {
        let message = self.received.try_recv().ok();
        self.taken(message)
    }

    fn taken(&self, message: Option<Message>) -> Option<Message> {
        let waiting = message.as_ref().and_then(|(sender, _)| self.waiting.get(*sender));
        if let Some(waiting) = waiting {
            waiting.fetch_sub(1, Relaxed);
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_floods_loses_only_its_own() {
        let (sender, mut inbox) = inbox(2);
        let taken = (0..10 * PER_SENDER).filter(|_| sender.offer(0, vec![1])).count();
        assert_eq!(taken, PER_SENDER);
        assert!(sender.offer(1, vec![2]) && !sender.offer(2, vec![3]));
        assert_eq!(inbox.try_recv(), Some((0, vec![1])));
        assert!(sender.offer(0, vec![4]) && !sender.offer(0, vec![5]));
        let rest: Vec<_> = std::iter::from_fn(|| inbox.try_recv()).collect();
        assert_eq!((rest.len(), rest.last()), (PER_SENDER + 1, Some(&(0, vec![4]))));
        assert!(rest.contains(&(1, vec![2])));
    }
}
