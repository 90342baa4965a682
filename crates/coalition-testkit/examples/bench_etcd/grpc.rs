//! As much of gRPC as two of etcd's methods need: one message each way over HTTP/2, and the fields of a protobuf.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use tokio::net::TcpStream;

/// Bytes an answer may keep under way before it is read.
const WINDOW: u32 = 1 << 20;

/// One HTTP/2 connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    send: SendRequest<Bytes>,
    address: SocketAddr,
}

impl Connection {
    pub async fn open(address: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (send, connection) = builder.handshake(stream).await.map_err(|error| error.to_string())?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { send, address })
    }

    /// Calls a method with one message and answers its one message.
    pub async fn call(&self, method: &str, message: Vec<u8>) -> Result<Vec<u8>, String> {
        self.exchange(method, message).await.map_err(|error| format!("{method}: {error}"))?
    }

    async fn exchange(&self, method: &str, message: Vec<u8>) -> Result<Result<Vec<u8>, String>, h2::Error> {
        let request = http::Request::post(format!("http://{}{method}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a sound request");
        let mut frame = BytesMut::with_capacity(5 + message.len());
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).expect("small messages"));
        frame.put_slice(&message);
        let mut send = self.send.clone().ready().await?;
        let (answer, mut body) = send.send_request(request, false)?;
        body.send_data(frame.freeze(), true)?;
        let answer = answer.await?;
        let (head, mut body) = answer.into_parts();
        let mut bytes = Vec::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            bytes.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await?.unwrap_or(head.headers);
        Ok(match trailers.get("grpc-status").map(http::HeaderValue::as_bytes) {
            Some(b"0") => Ok(bytes.get(5..).unwrap_or_default().to_vec()),
            status => Err(format!("status {status:?}, {:?}", trailers.get("grpc-message"))),
        })
    }
}

/// A protobuf field of bytes.
pub fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length > 127 {
        out.push(u8::try_from(length & 127).unwrap() | 128);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap());
    out.extend_from_slice(bytes);
    out
}

/// What a field holds: a number, or bytes.
#[derive(Default)]
pub struct Found {
    pub number: Option<u64>,
    pub bytes: Option<Vec<u8>>,
}

/// The first field of this number.
pub fn field(message: &[u8], wanted: u64) -> Option<Found> {
    let mut rest = message;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        let found = match tag & 7 {
            0 => Found { number: Some(varint(&mut rest)?), bytes: None },
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                let (bytes, after) = rest.split_at_checked(length)?;
                rest = after;
                Found { number: None, bytes: Some(bytes.to_vec()) }
            }
            _ => return None,
        };
        if tag >> 3 == wanted {
            return Some(found);
        }
    }
    None
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        number |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(number);
        }
    }
    None
}
