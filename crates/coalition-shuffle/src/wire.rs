//! Messages between a client and a member, as the driver carries them: postcard behind a length limit.
//!
//! A message never says who its sender is or what a grant says: the driver takes the first from the authenticated
//! connection and the second from the certified log, and so makes the [`Command`] of a message.

use coalition::{RequestId, UniqueId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::cell::{CELL_BYTES, CellId, ReplyCell};
use crate::envelope::RotatingPeer;
use crate::member::{Command, GrantAuthorization, MAX_FETCHED, Outcome, Refusal, ShareRelease, Submission};

/// Longest encoded [`Ask`], in bytes.
pub const MAX_ASK_BYTES: usize = CELL_BYTES + 128;

/// Longest encoded [`Answer`], in bytes: a few replies.
pub const MAX_ANSWER_BYTES: usize = (MAX_FETCHED + 1) * (CELL_BYTES + 8);

/// What a client asks of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Hold this request cell.
    SubmitCell {
        /// The cell's bytes.
        cell: Vec<u8>,
    },
    /// Release your share of the cell the grant of this request names.
    RequestShare {
        /// The request.
        request: RequestId,
        /// The cell.
        cell: CellId,
    },
    /// Hold this reply, under the grant of this request.
    PostReply {
        /// The request.
        request: RequestId,
        /// For whom.
        to: RotatingPeer,
        /// The reply cell's bytes.
        cell: Vec<u8>,
    },
    /// Give me my replies under this request.
    FetchReply {
        /// The request.
        request: RequestId,
    },
    /// I have this reply; drop it.
    AckReply {
        /// The request.
        request: RequestId,
        /// The reply.
        reply: UniqueId,
    },
}

/// What a member answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The cell is held.
    Held(Submission),
    /// The share.
    Share(ShareRelease),
    /// The reply is held under this name.
    Posted(UniqueId),
    /// The reply cells waiting.
    Replies(Vec<Vec<u8>>),
    /// Whether the reply was waiting.
    Acknowledged(bool),
    /// No.
    Refused(Refusal),
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WireError {
    /// Longer than any message.
    #[error("the message has {found} bytes, at most {max} are allowed")]
    TooLong {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not a message.
    #[error("the message is malformed")]
    Malformed,
}

impl Ask {
    /// The request whose grant the driver must look up, for the asks that need one.
    #[must_use]
    pub const fn grant_needed(&self) -> Option<RequestId> {
        match self {
            Self::RequestShare { request, .. } | Self::PostReply { request, .. } => Some(*request),
            Self::SubmitCell { .. } | Self::FetchReply { .. } | Self::AckReply { .. } => None,
        }
    }

    /// The command this ask is, coming from `caller` (the authenticated peer), with the verified grant where
    /// [`Ask::grant_needed`] names one.
    ///
    /// # Errors
    /// [`Refusal::NoGrant`] when the grant is missing or another request's.
    pub fn into_command(self, caller: [u8; 32], grant: Option<GrantAuthorization>) -> Result<Command, Refusal> {
        let peer = RotatingPeer::from_bytes(caller);
        let granted = |request| grant.filter(|grant| grant.request_id == request).ok_or(Refusal::NoGrant { request });
        Ok(match self {
            Self::SubmitCell { cell } => Command::SubmitCell { from_peer: peer, cell },
            Self::RequestShare { request, cell } => {
                Command::RequestShare { caller, cell_id: cell, grant: granted(request)? }
            }
            Self::PostReply { request, to, cell } => Command::PostReply { caller, grant: granted(request)?, to, cell },
            Self::FetchReply { request } => Command::FetchReply { peer, request_id: request },
            Self::AckReply { request, reply } => Command::AckReply { peer, request_id: request, reply },
        })
    }

    /// The bytes that travel.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when a field is larger than any valid one.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        encode(self, MAX_ASK_BYTES)
    }

    /// Parses bytes from outside.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        decode(bytes, MAX_ASK_BYTES)
    }
}

impl Answer {
    /// The bytes that travel.
    ///
    /// # Errors
    /// [`WireError::TooLong`] when there are more replies than an answer carries.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        encode(self, MAX_ANSWER_BYTES)
    }

    /// Parses bytes from outside.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        decode(bytes, MAX_ANSWER_BYTES)
    }

    /// Names of the replies in an answer, for acknowledging them.
    #[must_use]
    pub fn reply_ids(&self) -> Vec<UniqueId> {
        let Self::Replies(cells) = self else { return Vec::new() };
        cells.iter().filter_map(|cell| ReplyCell::from_bytes(cell).ok()).map(|cell| cell.id()).collect()
    }
}

impl From<Result<Outcome, Refusal>> for Answer {
    fn from(result: Result<Outcome, Refusal>) -> Self {
        match result {
            Ok(Outcome::Held(submission)) => Self::Held(submission),
            Ok(Outcome::Share(release)) => Self::Share(release),
            Ok(Outcome::Posted(id)) => Self::Posted(id),
            Ok(Outcome::Replies(replies)) => Self::Replies(replies.into_iter().map(|reply| reply.cell).collect()),
            Ok(Outcome::Acknowledged(was)) => Self::Acknowledged(was),
            Err(refusal) => Self::Refused(refusal),
        }
    }
}

fn encode<T: Serialize>(message: &T, max: usize) -> Result<Vec<u8>, WireError> {
    let bytes = postcard::to_allocvec(message).map_err(|_| WireError::Malformed)?;
    if bytes.len() > max { Err(WireError::TooLong { found: bytes.len(), max }) } else { Ok(bytes) }
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], max: usize) -> Result<T, WireError> {
    if bytes.len() > max {
        return Err(WireError::TooLong { found: bytes.len(), max });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::CELL_VERSION;
    use proptest::prelude::*;

    fn request() -> RequestId {
        RequestId(UniqueId::from_u8(1))
    }

    fn asks() -> Vec<Ask> {
        let (to, reply) = (RotatingPeer::from_bytes([4; 32]), UniqueId::from_u8(2));
        let cell = vec![CELL_VERSION; CELL_BYTES];
        vec![
            Ask::SubmitCell { cell: cell.clone() },
            Ask::RequestShare { request: request(), cell: CellId(reply) },
            Ask::PostReply { request: request(), to, cell },
            Ask::FetchReply { request: request() },
            Ask::AckReply { request: request(), reply },
        ]
    }

    #[test]
    fn asks_and_the_largest_answer_round_trip_within_their_limits() {
        for ask in asks() {
            assert_eq!(Ask::decode(&ask.encode().unwrap()), Ok(ask));
        }
        let replies = Answer::Replies(vec![vec![CELL_VERSION; CELL_BYTES]; MAX_FETCHED]);
        assert_eq!(replies.reply_ids().len(), MAX_FETCHED);
        assert_eq!(Answer::decode(&replies.encode().unwrap()), Ok(replies));
        let refused = Answer::from(Err(Refusal::NoGrant { request: request() }));
        assert_eq!(Answer::decode(&refused.encode().unwrap()), Ok(refused));
    }

    #[test]
    fn asks_that_need_a_grant_are_refused_without_it() {
        let grant = GrantAuthorization {
            request_id: request(),
            provider: coalition::ProviderId(UniqueId::from_u8(5)),
            bearer_pointer: UniqueId::from_u8(6),
            valid_to_ms: 1,
            provider_peer: [7; 32],
        };
        let other = GrantAuthorization { request_id: RequestId(UniqueId::from_u8(9)), ..grant };
        for ask in asks() {
            let needed = ask.grant_needed().is_some();
            assert_eq!(ask.clone().into_command([7; 32], None).is_err(), needed);
            assert_eq!(ask.clone().into_command([7; 32], Some(other)).is_err(), needed);
            assert!(ask.into_command([7; 32], Some(grant)).is_ok());
        }
    }

    #[test]
    fn messages_that_are_too_long_are_refused_before_they_are_parsed() {
        let found = MAX_ASK_BYTES + 1;
        assert_eq!(Ask::decode(&vec![0; found]), Err(WireError::TooLong { found, max: MAX_ASK_BYTES }));
        assert!(Ask::SubmitCell { cell: vec![0; MAX_ASK_BYTES] }.encode().is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Ask::decode(&bytes);
            let _ = Answer::decode(&bytes);
        }
    }
}
