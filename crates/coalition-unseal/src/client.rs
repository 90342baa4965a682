//! Both ends of the shuffle: the requester that submits and fetches, the provider that opens and replies.

use std::{sync::Arc, time::Duration};

use coalition::RequestId;
use coalition_shuffle::{
    Answer, Ask, CellId, CellScope, ClientError, Envelope, PendingRequest, Progress, PublicParams, Refusal, ReplyCell,
    RequestCell, RotatingPeer, ShareCollector, SshAccessReceipt, WireError,
};
use coalition_universe::{Node, PeerId};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::Instant;

use crate::ASK;

/// Longest time one call to one member takes.
const CALL: Duration = Duration::from_secs(5);
/// Pause before members that could not help are asked again.
const AGAIN: Duration = Duration::from_millis(150);

/// How long those that have not answered are waited for once enough have.
const GRACE: Duration = Duration::from_millis(300);

/// Why something could not be done through the unseal committee.
#[derive(Debug, thiserror::Error)]
pub enum ShuffleError {
    /// Too few members took part in time.
    #[error("{done} of {need} unseal members needed answered within {waited_ms} ms{}", list(.failures))]
    TooFew {
        /// Members that did.
        done: usize,
        /// Members needed.
        need: usize,
        /// Milliseconds waited.
        waited_ms: u64,
        /// What the others said, one line a member.
        failures: Vec<String>,
    },
    /// The requester made the cell wrong; no member can help.
    #[error("the request's cell cannot be opened")]
    Cell(#[source] ClientError),
    /// No reply that opens arrived in time.
    #[error("no receipt within {waited_ms} ms{}", list(.failures))]
    NoReceipt {
        /// Milliseconds waited.
        waited_ms: u64,
        /// What went wrong on the way, if anything did.
        failures: Vec<String>,
    },
    /// A message could not be made.
    #[error("the message could not be made")]
    Wire(#[from] WireError),
}

fn list(failures: &[String]) -> String {
    if failures.is_empty() { String::new() } else { format!(" ({})", failures.join("; ")) }
}

/// How many members hold a submitted cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submitted {
    /// Members that hold it.
    pub accepted: usize,
    /// Members there are.
    pub of: usize,
}

/// A client of one unseal committee, for requesters and providers.
#[derive(Clone)]
pub struct ShuffleClient {
    node: Arc<Node>,
    params: PublicParams,
    scope: CellScope,
    members: Vec<PeerId>,
}

type Answered = (u8, Result<Answer, String>);

impl ShuffleClient {
    /// A client of the committee with these parameters, whose members are given in the order of their key shares. Their
    /// addresses must have been introduced to the node.
    #[must_use]
    pub const fn new(node: Arc<Node>, params: PublicParams, scope: CellScope, members: Vec<PeerId>) -> Self {
        Self { node, params, scope, members }
    }

    /// What the committee's cells are bound to.
    #[must_use]
    pub const fn scope(&self) -> CellScope {
        self.scope
    }

    /// The committee's parameters.
    #[must_use]
    pub const fn params(&self) -> &PublicParams {
        &self.params
    }

    /// Gives the cell to every member. Succeeds when at least `t` hold it; submitting again is harmless.
    ///
    /// # Errors
    /// [`ShuffleError::TooFew`].
    pub async fn submit_cell(&self, cell: &RequestCell, deadline: Duration) -> Result<Submitted, ShuffleError> {
        let ask = Ask::SubmitCell { cell: cell.as_bytes().to_vec() };
        let accepted = self.ask_until(&ask, self.members.len(), deadline, |_, answer| held(&answer)).await?;
        Ok(Submitted { accepted, of: self.members.len() })
    }

    /// Opens the cell a grant names. Only the provider's own peer gets shares; any `t` members suffice.
    ///
    /// # Errors
    /// [`ShuffleError::Cell`] when the requester made the cell wrong, [`ShuffleError::TooFew`] when members are missing.
    pub async fn open_cell(
        &self,
        request: RequestId,
        cell: CellId,
        deadline: Duration,
    ) -> Result<Envelope, ShuffleError> {
        let mut collector = ShareCollector::new(self.params.clone(), self.scope, request, cell);
        let mut broken = None;
        let ask = Ask::RequestShare { request, cell };
        let asked = self.ask_until(&ask, self.threshold(), deadline, |member, answer| {
            let Answer::Share(release) = answer else { return Err("answered something else".into()) };
            match collector.add(member, &release) {
                Ok(Progress::Ready | Progress::Waiting { .. }) => Ok(()),
                Err(error @ (ClientError::BadCell { .. } | ClientError::OtherRequest { .. })) => {
                    // Final: every member holds the same bytes.
                    broken.get_or_insert(error);
                    Ok(())
                }
                Err(error) => Err(error.to_string()),
            }
        });
        asked.await?;
        match broken {
            Some(error) => Err(ShuffleError::Cell(error)),
            None => collector.open().map_err(ShuffleError::Cell),
        }
    }

    /// Leaves a sealed reply for a rotating peer with every member. Succeeds when at least one holds it.
    ///
    /// # Errors
    /// [`ShuffleError::TooFew`].
    pub async fn post_reply(
        &self,
        to: RotatingPeer,
        request: RequestId,
        reply: &ReplyCell,
        deadline: Duration,
    ) -> Result<usize, ShuffleError> {
        let ask = Ask::PostReply { request, to, cell: reply.as_bytes().to_vec() };
        let posted = |_, answer| {
            if matches!(answer, Answer::Posted(_)) { Ok(()) } else { Err("answered something else".into()) }
        };
        self.ask_until(&ask, self.members.len(), deadline, posted).await
    }

    /// Waits for the sealed receipt of a request; this node's identity must be the one the cell names. Replies that do not
    /// open are passed over: only the provider the grant names can post one, and a bad one excludes no good one.
    ///
    /// # Errors
    /// [`ShuffleError::NoReceipt`].
    pub async fn fetch_receipt(
        &self,
        pending: &PendingRequest,
        deadline: Duration,
    ) -> Result<SshAccessReceipt, ShuffleError> {
        let started = Instant::now();
        let request = pending.request();
        let body = Ask::FetchReply { request }.encode()?;
        let mut failures = Vec::new();
        while started.elapsed() < deadline {
            let left = deadline.saturating_sub(started.elapsed());
            let mut answers = self.call_all(&body, left, 0..self.members.len());
            let round = Instant::now();
            failures.clear();
            while let Some((member, answer)) = answers.next().await {
                match answer.and_then(|answer| open_first(pending, &answer)) {
                    Ok(Some((receipt, reply))) => {
                        drop(answers);
                        self.acknowledge(request, reply).await;
                        return Ok(receipt);
                    }
                    Ok(None) => {}
                    Err(reason) => failures.push(format!("member {member}: {reason}")),
                }
            }
            if round.elapsed() < AGAIN {
                tokio::time::sleep(AGAIN).await;
            }
        }
        Err(ShuffleError::NoReceipt { waited_ms: millis(deadline), failures })
    }

    async fn acknowledge(&self, request: RequestId, reply: coalition::UniqueId) {
        if let Ok(body) = (Ask::AckReply { request, reply }).encode() {
            let answers = self.call_all(&body, Duration::from_secs(1), 0..self.members.len());
            let _: Vec<Answered> = answers.collect().await;
        }
    }

    fn threshold(&self) -> usize {
        usize::from(self.params.t())
    }

    /// Asks all members, again while refusals are temporary, until `want` have done it or the deadline passes; then at
    /// least `t` (or one, for replies) must have.
    async fn ask_until(
        &self,
        ask: &Ask,
        want: usize,
        deadline: Duration,
        mut take: impl FnMut(u8, Answer) -> Result<(), String>,
    ) -> Result<usize, ShuffleError> {
        let body = ask.encode()?;
        let need = if matches!(ask, Ask::PostReply { .. }) { 1 } else { self.threshold() };
        let started = Instant::now();
        let mut open: Vec<usize> = (0..self.members.len()).collect();
        let mut done = 0;
        let mut failures = Vec::new();
        while !open.is_empty() {
            let left = deadline.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            failures.clear();
            let mut again = Vec::new();
            let mut answers = self.call_all(&body, left, open.iter().copied());
            let mut enough: Option<Instant> = None;
            loop {
                // Enough for the purpose: one that is down is waited for a moment, not until its call times out.
                let next = match enough {
                    Some(at) => tokio::time::timeout(GRACE.saturating_sub(at.elapsed()), answers.next()).await,
                    None => Ok(answers.next().await),
                };
                let Ok(Some((member, answer))) = next else { break };
                let position = usize::from(member) - 1;
                let verdict = match answer {
                    Ok(Answer::Refused(refusal)) => {
                        if refusal.is_temporary() || matches!(refusal, Refusal::UnknownCell { .. }) {
                            again.push(position);
                        }
                        Err(refusal.to_string())
                    }
                    Ok(answer) => take(member, answer),
                    Err(reason) => {
                        again.push(position);
                        Err(reason)
                    }
                };
                match verdict {
                    Ok(()) => done += 1,
                    Err(reason) => failures.push(format!("member {member}: {reason}")),
                }
                if done >= want {
                    return Ok(done);
                }
                if done >= need {
                    enough.get_or_insert_with(Instant::now);
                }
            }
            if done >= need {
                return Ok(done);
            }
            open = again;
            tokio::time::sleep(AGAIN.min(deadline.saturating_sub(started.elapsed()))).await;
        }
        Err(ShuffleError::TooFew { done, need, waited_ms: millis(started.elapsed()), failures })
    }

    /// One call to each given member, answers as they come. Members are numbered from 1, like their key shares.
    fn call_all(
        &self,
        body: &[u8],
        left: Duration,
        positions: impl Iterator<Item = usize>,
    ) -> FuturesUnordered<BoxFuture<'_, Answered>> {
        positions.map(|position| self.call_one(body.to_vec(), left.min(CALL), position).boxed()).collect()
    }

    async fn call_one(&self, body: Vec<u8>, timeout: Duration, position: usize) -> Answered {
        let member = u8::try_from(position + 1).unwrap_or(u8::MAX);
        let answer = self.node.call(self.members[position], ASK, body, timeout).await;
        let answer = answer.map_err(|error| error.to_string());
        (member, answer.and_then(|bytes| Answer::decode(&bytes).map_err(|error| error.to_string())))
    }
}

fn held(answer: &Answer) -> Result<(), String> {
    if matches!(answer, Answer::Held(_)) { Ok(()) } else { Err("answered something else".into()) }
}

/// The first reply in an answer that opens.
fn open_first(
    pending: &PendingRequest,
    answer: &Answer,
) -> Result<Option<(SshAccessReceipt, coalition::UniqueId)>, String> {
    let replies = match answer {
        Answer::Replies(replies) => replies,
        Answer::Refused(refusal) => return Err(refusal.to_string()),
        _ => return Err("answered something else".into()),
    };
    let mut failure = None;
    for (bytes, id) in replies.iter().zip(answer.reply_ids()) {
        match pending.open_reply(bytes) {
            Ok(receipt) => return Ok(Some((receipt, id))),
            Err(error) => failure = Some(error.to_string()),
        }
    }
    failure.map_or(Ok(None), Err)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
