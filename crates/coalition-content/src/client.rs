//! Asking a store: content, and pushing it.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coalition::UniqueId;
use coalition_universe::{CallError, Fault, Node, PeerAddress};
use futures::stream::{FuturesUnordered, StreamExt};

use crate::tree::{Content, Outline, SliceError};
use crate::wire::{self, Ask, Entry, Listing, PutAnswer, Run, WireError};

/// Slices on their way at once.
const AT_ONCE: usize = 4;
/// Wait for one answer before the call counts as failed.
const CALL: Duration = Duration::from_secs(20);
/// Between two tries of a store that does not answer.
const PAUSE: Duration = Duration::from_millis(250);

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It refused.
    #[error("{0}")]
    Refused(Fault),
    /// It did not answer.
    #[error("the store does not answer")]
    Unreachable(#[source] CallError),
    /// It answered something else.
    #[error("the store's answer to {method} is no answer")]
    Answer {
        /// The method called.
        method: &'static str,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
    /// The file changed while it was pushed, or cannot be read.
    #[error("the file changed while it was pushed, or cannot be read")]
    File(#[from] SliceError),
    /// All was sent and the store still lacks some of it.
    #[error("the store says again and again that pieces are missing which it took")]
    NeverWhole,
}

impl ClientError {
    /// The refusal's code, if it is one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(fault) => Some(&fault.code),
            _ => None,
        }
    }

    /// Whether the same call may succeed later.
    const fn is_temporary(&self) -> bool {
        matches!(self, Self::Unreachable(CallError::Timeout { .. } | CallError::Transport { .. }))
    }
}

/// A store at an address, asked under a node's identity.
#[derive(Clone)]
pub struct StoreClient {
    node: Arc<Node>,
    address: PeerAddress,
}

/// How far a push is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that were there before.
    pub there_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes in all.
    pub size_bytes: u64,
}

impl StoreClient {
    /// The store at this address.
    #[must_use]
    pub const fn new(node: Arc<Node>, address: PeerAddress) -> Self {
        Self { node, address }
    }

    /// Where it is.
    #[must_use]
    pub const fn address(&self) -> &PeerAddress {
        &self.address
    }

    async fn call(&self, ask: &Ask) -> Result<Vec<u8>, ClientError> {
        self.node.call_at(&self.address, ask.method(), ask.to_body(), CALL).await.map_err(|error| match error {
            CallError::Refused(fault) => ClientError::Refused(fault),
            error => ClientError::Unreachable(error),
        })
    }

    async fn ask<T: serde::Serialize + serde::de::DeserializeOwned>(&self, ask: &Ask) -> Result<T, ClientError> {
        let answer = self.call(ask).await?;
        wire::decode_answer(&answer).map_err(|source| ClientError::Answer { method: ask.method(), source })
    }

    /// The size the store says content has, if it has it whole. True once a fetch with it has verified.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn stat(&self, hash: UniqueId) -> Result<Option<u64>, ClientError> {
        self.ask(&Ask::Stat(hash)).await
    }

    /// A slice, not verified yet.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn slice(&self, content: Content, range: Range<u64>) -> Result<Vec<u8>, ClientError> {
        self.call(&Ask::Slice(content, range)).await
    }

    /// Everything this node's identity holds there, and its quota.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&self) -> Result<Listing, ClientError> {
        let mut listing: Listing = self.ask(&Ask::List(None)).await?;
        while let Some(last) = listing.entries.last().map(|entry: &Entry| entry.hash).filter(|_| listing.more) {
            let next: Listing = self.ask(&Ask::List(Some(last))).await?;
            // A store that never ends is not believed for ever: hashes ascend.
            let ascends = next.entries.first().is_none_or(|entry| entry.hash > last);
            listing.more = next.more && ascends && !next.entries.is_empty();
            listing.entries.extend(next.entries.into_iter().filter(|_| ascends));
        }
        Ok(listing)
    }

    /// Ends this node's hold. Answers whether there was one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn remove(&self, hash: UniqueId) -> Result<bool, ClientError> {
        self.ask(&Ask::Remove(hash)).await
    }

    /// Pushes a file, from where an earlier push stopped. Goes on through failures of the network and restarts of the store
    /// while something arrives at least every `patience`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn push(
        &self,
        outline: &Arc<Outline>,
        file: &Arc<File>,
        patience: Duration,
        mut progress: impl FnMut(Progress) + Send,
    ) -> Result<Progress, ClientError> {
        let content = outline.content();
        let mut told = Progress { there_bytes: content.size(), sent_bytes: 0, size_bytes: content.size() };
        let (mut first, mut moved) = (true, Instant::now());
        let mut rounds_without = 0;
        loop {
            let before = told.sent_bytes;
            let round = self.round(outline, file, &mut told, &mut first, &mut progress).await;
            if told.sent_bytes > before {
                (moved, rounds_without) = (Instant::now(), 0);
            }
            match round {
                Ok(true) => return Ok(told),
                Ok(false) if told.sent_bytes == before => {
                    rounds_without += 1;
                    if rounds_without > 3 {
                        return Err(ClientError::NeverWhole);
                    }
                }
                Ok(false) => {}
                // The store was restarted from an older state, or gave the upload up: begin says what is missing.
                Err(error) if error.code() == Some("unknown_content") && moved.elapsed() < patience => {}
                Err(error) if error.is_temporary() && moved.elapsed() < patience => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks what is missing and sends it. Answers whether the store now has all.
    async fn round(
        &self,
        outline: &Arc<Outline>,
        file: &Arc<File>,
        told: &mut Progress,
        first: &mut bool,
        progress: &mut (impl FnMut(Progress) + Send),
    ) -> Result<bool, ClientError> {
        let content = outline.content();
        let mut runs: VecDeque<Run> = match self.ask(&Ask::Begin(content)).await? {
            PutAnswer::Whole => return Ok(true),
            PutAnswer::Missing(runs) => runs.into(),
        };
        if std::mem::take(first) {
            let missing: u64 = runs.iter().map(|run| bytes_of(content, *run)).sum();
            told.there_bytes = content.size().saturating_sub(missing);
        }
        progress(*told);
        let mut on_their_way = FuturesUnordered::new();
        let mut whole = false;
        loop {
            while on_their_way.len() < AT_ONCE
                && let Some(piece) = next_piece(&mut runs).filter(|piece| *piece < content.pieces())
            {
                on_their_way.push(self.send(Arc::clone(outline), Arc::clone(file), piece));
            }
            let Some(sent) = on_their_way.next().await else { return Ok(whole) };
            let (piece, answer) = sent?;
            let range = content.piece(piece);
            told.sent_bytes += range.end - range.start;
            whole |= answer == PutAnswer::Whole;
            progress(*told);
        }
    }

    async fn send(&self, outline: Arc<Outline>, file: Arc<File>, piece: u32) -> Result<(u32, PutAnswer), ClientError> {
        let content = outline.content();
        let reading = tokio::task::spawn_blocking(move || outline.slice(&file, content.piece(piece)));
        let slice = reading.await.map_err(|error| SliceError::Io(std::io::Error::other(error)))??;
        Ok((piece, self.ask(&Ask::Put(content, piece, slice)).await?))
    }
}

fn bytes_of(content: Content, run: Run) -> u64 {
    let end = run.first.saturating_add(run.count).saturating_sub(1);
    content.piece(end).end.saturating_sub(content.piece(run.first).start)
}

/// Takes the next piece off the runs.
fn next_piece(runs: &mut VecDeque<Run>) -> Option<u32> {
    loop {
        let run = runs.front_mut()?;
        if run.count == 0 {
            runs.pop_front();
            continue;
        }
        let piece = run.first;
        (run.first, run.count) = (run.first.checked_add(1)?, run.count - 1);
        return Some(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_taken_piece_by_piece() {
        let mut runs: VecDeque<Run> =
            [Run { first: 2, count: 2 }, Run { first: 9, count: 0 }, Run { first: 7, count: 1 }].into();
        let taken: Vec<u32> = std::iter::from_fn(|| next_piece(&mut runs)).collect();
        assert_eq!(taken, [2, 3, 7]);
        let mut hostile: VecDeque<Run> = [Run { first: u32::MAX, count: u32::MAX }].into();
        assert_eq!(next_piece(&mut hostile), None);
        let content = Content::new(UniqueId::from_bytes([1; 32]), 2_500_000).unwrap();
        assert_eq!(bytes_of(content, Run { first: 0, count: 3 }), 2_500_000);
        assert_eq!(bytes_of(content, Run { first: 2, count: u32::MAX }), 402_848);
    }
}
