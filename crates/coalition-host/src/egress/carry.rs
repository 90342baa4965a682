//! One connection: bytes between the workload's side, which the stack holds, and the host's.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{self, State};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::stack::Stack;

/// Bytes moved at once, each way; also what a limited grant is ahead of its limit at most, per connection.
const PIECE: usize = 64 << 10;
/// Moves before others have a turn.
const TURNS: usize = 8;
/// A connection of which one direction has ended may be silent so long in the other.
const HALF_CLOSED: Duration = Duration::from_secs(300);

/// Copies both ways until both have ended, or one has gone wrong.
pub(super) async fn carry(stack: Rc<Stack>, handle: SocketHandle, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let idle = Box::pin(tokio::time::sleep(HALF_CLOSED));
    Carry { stack, handle, stream, rest: None, idle, out: Way::Open, back: Way::Open }.await;
}

/// How far one direction is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Ended,
}

struct Carry<S> {
    stack: Rc<Stack>,
    handle: SocketHandle,
    stream: S,
    /// Until the grant may move bytes again.
    rest: Option<Pin<Box<Sleep>>>,
    idle: Pin<Box<Sleep>>,
    /// From the workload.
    out: Way,
    /// To the workload.
    back: Way,
}

/// What a step did.
enum Step {
    Moved(usize),
    Nothing,
    /// There is nothing more to do.
    Over,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Carry<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        for _ in 0..TURNS {
            if let Some(rest) = &mut this.rest {
                ready!(rest.as_mut().poll(cx));
                this.rest = None;
            }
            match this.step(cx) {
                Step::Over => return Poll::Ready(()),
                Step::Nothing => return this.wait(cx),
                Step::Moved(bytes) => {
                    this.idle.as_mut().reset(Instant::now() + HALF_CLOSED);
                    this.stack.kick.notify_one();
                    let rest = this.stack.traffic.pay(bytes);
                    this.rest = (!rest.is_zero()).then(|| Box::pin(tokio::time::sleep(rest)));
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Carry<S> {
    /// Nothing can be moved now. A connection that is half closed does not wait for ever.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.out == Way::Open && self.back == Way::Open {
            return Poll::Pending;
        }
        self.idle.as_mut().poll(cx)
    }

    fn step(&mut self, cx: &mut Context<'_>) -> Step {
        let mut inner = self.stack.inner.borrow_mut();
        let socket = inner.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        socket.register_recv_waker(cx.waker());
        socket.register_send_waker(cx.waker());
        match socket.state() {
            State::SynReceived => return Step::Nothing,
            State::Closed | State::TimeWait if socket.recv_queue() == 0 || self.out == Way::Ended => return Step::Over,
            _ => {}
        }
        let (stream, mut moved) = (&mut self.stream, 0);
        if self.out == Way::Open {
            match out(socket, stream, cx) {
                Poll::Ready(Ok(0)) => self.out = Way::Ended,
                Poll::Ready(Ok(bytes)) => moved += bytes,
                Poll::Ready(Err(_)) => return Step::Over,
                Poll::Pending => {}
            }
        }
        if self.back == Way::Open && socket.can_send() {
            match back(socket, stream, cx) {
                Poll::Ready(Ok(0)) => {
                    socket.close();
                    self.back = Way::Ended;
                    // The end is to be sent.
                    self.stack.kick.notify_one();
                }
                Poll::Ready(Ok(bytes)) => moved += bytes,
                Poll::Ready(Err(_)) => return Step::Over,
                Poll::Pending => {}
            }
        }
        if moved > 0 { Step::Moved(moved) } else { Step::Nothing }
    }
}

/// From the workload to the host's side; 0 once the workload has said its last and the host's side has been told.
fn out<S: AsyncWrite + Unpin>(
    socket: &mut tcp::Socket<'_>,
    stream: &mut S,
    cx: &mut Context<'_>,
) -> Poll<std::io::Result<usize>> {
    if !socket.can_recv() {
        return match socket.may_recv() {
            true => Poll::Pending,
            false => Pin::new(stream).poll_shutdown(cx).map_ok(|()| 0),
        };
    }
    let written = socket.recv(|bytes| {
        let piece = &bytes[..bytes.len().min(PIECE)];
        let written = Pin::new(stream).poll_write(cx, piece);
        (if let Poll::Ready(Ok(bytes)) = written { bytes } else { 0 }, written)
    });
    match written {
        Ok(Poll::Ready(Ok(0))) => Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
        Ok(written) => written,
        Err(_) => Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into())),
    }
}

/// From the host's side to the workload; 0 at its end.
fn back<S: AsyncRead + Unpin>(
    socket: &mut tcp::Socket<'_>,
    stream: &mut S,
    cx: &mut Context<'_>,
) -> Poll<std::io::Result<usize>> {
    let read = socket.send(|room| {
        let length = room.len().min(PIECE);
        let mut piece = ReadBuf::new(&mut room[..length]);
        let read = Pin::new(stream).poll_read(cx, &mut piece).map_ok(|()| piece.filled().len());
        (if let Poll::Ready(Ok(bytes)) = read { bytes } else { 0 }, read)
    });
    read.unwrap_or_else(|_| Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into())))
}
