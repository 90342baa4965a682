//! The remote-call frames: one bidirectional QUIC stream a call.
//!
//! Request: `0x01 ‖ u8 method length ‖ u32 body length ‖ method (ASCII) ‖ body`, then the end of the stream.
//! Answer: one status byte, then the result, a [`Fault`] or nothing, then the end of the stream. Integers are big endian.

use serde::{Deserialize, Serialize};

use crate::node::MAX_BODY_BYTES;

/// Bytes before a request's method.
pub(crate) const HEADER_BYTES: usize = 6;

/// The most bytes an answer may have on the wire.
pub(crate) const MAX_ANSWER_BYTES: usize = MAX_BODY_BYTES + 1;

const VERSION: u8 = 1;

const STATUS_OK: u8 = 0;
const STATUS_FAULT: u8 = 1;
const STATUS_UNAVAILABLE: u8 = 2;

/// A service's refusal: a stable code and a sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Fault {
    /// Stable, `snake_case`.
    pub code: String,
    /// What was wrong and what to do.
    pub message: String,
}

impl Fault {
    /// Makes a refusal.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The method ran and answered.
    Ok(Vec<u8>),
    /// The method ran and refused.
    Fault(Fault),
    /// The peer serves nothing now or has no room; the method did not run.
    Unavailable,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("frame version {0}, expected {VERSION}")]
    Version(u8),
    #[error("the method's name is empty or not ASCII")]
    Method,
    #[error("body of {0} bytes exceeds the limit of {MAX_BODY_BYTES}")]
    TooLarge(usize),
    #[error("the frame is cut short or of an unknown kind")]
    Malformed,
}

/// The announced shape of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub method_bytes: usize,
    pub body_bytes: usize,
}

impl Header {
    pub(crate) fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let [version, method, a, b, c, d] = bytes;
        let body_bytes = u32::from_be_bytes([a, b, c, d]) as usize;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if method == 0 {
            return Err(FrameError::Method);
        }
        if body_bytes > MAX_BODY_BYTES {
            return Err(FrameError::TooLarge(body_bytes));
        }
        Ok(Self { method_bytes: method.into(), body_bytes })
    }
}

/// The header and method of a request; the body follows.
pub(crate) fn request_head(method: &str, body_bytes: usize) -> Result<Vec<u8>, FrameError> {
    let method_bytes = u8::try_from(method.len()).ok().filter(|length| *length > 0 && method.is_ascii());
    let method_bytes = method_bytes.ok_or(FrameError::Method)?;
    let body = u32::try_from(body_bytes).ok().filter(|_| body_bytes <= MAX_BODY_BYTES);
    let body = body.ok_or(FrameError::TooLarge(body_bytes))?;
    let mut head = vec![VERSION, method_bytes];
    head.extend_from_slice(&body.to_be_bytes());
    head.extend_from_slice(method.as_bytes());
    Ok(head)
}

/// Checks the method's name as it came.
pub(crate) fn method_name(bytes: Vec<u8>) -> Result<String, FrameError> {
    String::from_utf8(bytes).ok().filter(|name| name.is_ascii()).ok_or(FrameError::Method)
}

/// An answer as it goes out: a status byte and what follows it.
pub(crate) fn encode_answer(answer: Answer) -> (u8, Vec<u8>) {
    match answer {
        Answer::Ok(body) if body.len() <= MAX_BODY_BYTES => (STATUS_OK, body),
        Answer::Ok(body) => {
            let fault = Fault::new("too_large", format!("answer of {} bytes exceeds {MAX_BODY_BYTES}", body.len()));
            encode_answer(Answer::Fault(fault))
        }
        Answer::Fault(fault) => (STATUS_FAULT, postcard::to_stdvec(&fault).unwrap_or_default()),
        Answer::Unavailable => (STATUS_UNAVAILABLE, Vec::new()),
    }
}

/// Reads an answer of at most [`MAX_ANSWER_BYTES`].
pub(crate) fn decode_answer(mut bytes: Vec<u8>) -> Result<Answer, FrameError> {
    match bytes.first().copied() {
        Some(STATUS_OK) => {
            bytes.remove(0);
            Ok(Answer::Ok(bytes))
        }
        Some(STATUS_FAULT) => postcard::from_bytes(bytes.get(1..).unwrap_or_default())
            .map(Answer::Fault)
            .map_err(|_| FrameError::Malformed),
        Some(STATUS_UNAVAILABLE) if bytes.len() == 1 => Ok(Answer::Unavailable),
        _ => Err(FrameError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn on_the_wire(answer: Answer) -> Vec<u8> {
        let (status, body) = encode_answer(answer);
        [vec![status], body].concat()
    }

    #[test]
    fn the_frames_are_these_bytes() {
        assert_eq!(hex::encode(request_head("echo", 258).unwrap()), "0104000001026563686f");
        assert_eq!(on_the_wire(Answer::Ok(vec![7])), [0, 7]);
        assert_eq!(hex::encode(on_the_wire(Answer::Fault(Fault::new("a", "b")))), "0101610162");
        assert_eq!(on_the_wire(Answer::Unavailable), [2]);
    }

    #[test]
    fn bad_heads_are_named() {
        assert_eq!(Header::parse([2, 1, 0, 0, 0, 0]), Err(FrameError::Version(2)));
        assert_eq!(Header::parse([1, 0, 0, 0, 0, 0]), Err(FrameError::Method));
        assert_eq!(Header::parse([1, 1, 1, 0, 0, 0]), Err(FrameError::TooLarge(1 << 24)));
        assert_eq!(request_head("", 0), Err(FrameError::Method));
        assert_eq!(request_head("é", 0), Err(FrameError::Method));
        assert_eq!(request_head("m", MAX_BODY_BYTES + 1), Err(FrameError::TooLarge(MAX_BODY_BYTES + 1)));
        assert_eq!(method_name(vec![0xff]), Err(FrameError::Method));
        assert_eq!(decode_answer(vec![]), Err(FrameError::Malformed));
        assert_eq!(decode_answer(vec![2, 0]), Err(FrameError::Malformed));
        assert_eq!(decode_answer(vec![9]), Err(FrameError::Malformed));
    }

    #[test]
    fn an_oversized_answer_becomes_a_fault() {
        let answer = decode_answer(on_the_wire(Answer::Ok(vec![0; MAX_BODY_BYTES + 1]))).unwrap();
        assert!(matches!(answer, Answer::Fault(fault) if fault.code == "too_large"));
    }

    proptest! {
        #[test]
        fn frames_round_trip(method in "[a-z.]{1,255}", size in 0..=MAX_BODY_BYTES, body in any::<Vec<u8>>()) {
            let head = request_head(&method, size).unwrap();
            let header = Header::parse(head[..HEADER_BYTES].try_into().unwrap()).unwrap();
            prop_assert_eq!(header, Header { method_bytes: method.len(), body_bytes: size });
            prop_assert_eq!(method_name(head[HEADER_BYTES..].to_vec()).unwrap(), method);
            prop_assert_eq!(decode_answer(on_the_wire(Answer::Ok(body.clone()))).unwrap(), Answer::Ok(body));
        }

        #[test]
        fn arbitrary_bytes_never_panic(head in any::<[u8; HEADER_BYTES]>(), answer in any::<Vec<u8>>()) {
            let _ = Header::parse(head);
            let _ = decode_answer(answer.clone());
            let _ = method_name(answer);
        }
    }
}
