//! Moving bytes between a channel and a process.
//!
//! The SSH library widens a client's window as data arrives, not as it is consumed, and it stops reading the whole
//! connection when a channel's queue is full. So a reader must never wait for a process that itself waits for us to
//! send its output: the pump holds back the client only while output flows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use russh::server::{Handle, Msg};
use russh::{ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::Traffic;
use super::process::{Process, Sink, Source};
use crate::types::ExitOutcome;

/// Input held per channel for a slow process before its client is made to wait.
const SOFT_LIMIT: usize = 256 << 10;
/// Input held by a whole server where making clients wait would deadlock; beyond it the channel is given up.
const HARD_LIMIT: usize = 64 << 20;
const CHUNK: usize = 32 * 1024;
/// After a terminal's session leader ended, how long to wait for output of others still holding the terminal.
const TERMINAL_DRAIN: Duration = Duration::from_millis(100);

/// Output sends of one connection that are waiting for the client now.
#[derive(Clone)]
pub(crate) struct Stalls(Arc<watch::Sender<usize>>);

impl Stalls {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::channel(0).0))
    }

    async fn during<F: Future>(&self, send: F) -> F::Output {
        self.0.send_modify(|n| *n += 1);
        let outcome = send.await;
        self.0.send_modify(|n| *n -= 1);
        outcome
    }
}

/// Input held by all channels of a server, bytes.
#[derive(Debug, Default)]
pub(crate) struct Held(AtomicUsize);

/// A channel's part of it.
struct Waiting<'a> {
    bytes: VecDeque<u8>,
    held: &'a Held,
}

impl Waiting<'_> {
    fn push(&mut self, data: &[u8]) {
        self.bytes.extend(data);
        self.held.0.fetch_add(data.len(), Ordering::Relaxed);
    }

    fn pop(&mut self, n: usize) {
        let n = n.min(self.bytes.len());
        drop(self.bytes.drain(..n));
        self.held.0.fetch_sub(n, Ordering::Relaxed);
    }

    fn server_is_full(&self) -> bool {
        self.held.0.load(Ordering::Relaxed) > HARD_LIMIT
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pop(usize::MAX);
    }
}

/// The channel's side of a pump.
pub(crate) struct Ends {
    pub(crate) id: ChannelId,
    pub(crate) read: ChannelReadHalf,
    pub(crate) write: ChannelWriteHalf<Msg>,
    pub(crate) handle: Handle,
    pub(crate) stalls: Stalls,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) held: Arc<Held>,
}

/// How the client's side of a channel ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    /// It may go on sending, but nobody reads any more.
    Unread,
    /// It closed the channel, or the connection is gone.
    Gone,
    /// It sent more than is reasonable to hold.
    Flood,
}

/// Connects a process to a channel until both are done, then reports how the process ended.
pub(crate) async fn run_process(ends: Ends, process: Process, terminal: bool) {
    let Ends { id, read, write, handle, stalls, traffic, held } = ends;
    let Process { stdin, stdout, stderr, exit, control } = process;
    let input = feed(read, stdin, stalls.clone(), traffic.clone(), held);
    let stderr_done = async {
        match stderr {
            Some(source) => drain(source, &write, Some(1), &stalls, &traffic).await,
            None => true,
        }
    };
    let mut exit = exit;
    let output = async {
        let stdout_done = drain(stdout, &write, None, &stalls, &traffic);
        let both = async { tokio::join!(stdout_done, stderr_done) };
        tokio::pin!(both);
        if !terminal {
            both.await;
            return exit.await.ok();
        }
        // Background jobs may hold the terminal open; the session is over when its leader is.
        tokio::select! {
            _ = &mut both => (&mut exit).await.ok(),
            ended = &mut exit => {
                let _ = tokio::time::timeout(TERMINAL_DRAIN, &mut both).await;
                ended.ok()
            }
        }
    };
    tokio::pin!(input, output);
    let done = tokio::select! {
        outcome = &mut output => Ok(outcome),
        ended = &mut input => match ended {
            Input::Unread => Ok(output.await),
            other => Err(other),
        },
    };
    match done {
        Ok(outcome) => finish(id, &write, &handle, outcome).await,
        Err(how) => {
            control.hang_up();
            if how == Input::Flood {
                let text =
                    format!("more than {} MiB of input wait for a program that does not read it\r\n", HARD_LIMIT >> 20);
                let _ = write.extended_data_bytes(1, text.into_bytes()).await;
                let _ = write.close().await;
            }
        }
    }
}

async fn finish(id: ChannelId, write: &ChannelWriteHalf<Msg>, handle: &Handle, outcome: Option<ExitOutcome>) {
    // Every send fails only when the connection is gone, and then nobody is left to tell.
    let _ = match outcome {
        Some(ExitOutcome::Code(code)) => write.exit_status(code.cast_unsigned()).await.map_err(|_| ()),
        Some(ExitOutcome::Signal(signal)) => {
            handle.exit_signal_request(id, signal_name(signal), false, String::new(), String::new()).await
        }
        None => handle.exit_signal_request(id, Sig::KILL, false, "the environment ended".into(), String::new()).await,
    };
    let _ = write.eof().await;
    let _ = write.close().await;
}

/// Connects a channel to a socket until either side is done.
pub(crate) async fn run_forward(ends: Ends, source: Source, sink: Sink) {
    let Ends { read, write, stalls, traffic, held, .. } = ends;
    let input = feed(read, sink, stalls.clone(), traffic.clone(), held);
    let output = async {
        drain(source, &write, None, &stalls, &traffic).await;
        let _ = write.eof().await;
    };
    tokio::pin!(input, output);
    tokio::select! {
        () = &mut output => {}
        ended = &mut input => if ended == Input::Unread { output.await },
    }
    let _ = write.close().await;
}

/// Process to client. True at the end of the source, false when the client is gone.
async fn drain(
    mut source: Source,
    write: &ChannelWriteHalf<Msg>,
    stream: Option<u32>,
    stalls: &Stalls,
    traffic: &Traffic,
) -> bool {
    let mut buffer = vec![0u8; CHUNK];
    loop {
        // A terminal whose last user is gone answers with an error; that is its end.
        let Ok(n @ 1..) = source.read(&mut buffer).await else { return true };
        traffic.pass(n).await;
        let bytes = buffer[..n].to_vec();
        let sent = match stream {
            None => stalls.during(write.data_bytes(bytes)).await,
            Some(stream) => stalls.during(write.extended_data_bytes(stream, bytes)).await,
        };
        if sent.is_err() {
            return false;
        }
    }
}

/// Client to process.
async fn feed(mut read: ChannelReadHalf, sink: Sink, stalls: Stalls, traffic: Arc<Traffic>, held: Arc<Held>) -> Input {
    let mut sink = Some(sink);
    let mut waiting = Waiting { bytes: VecDeque::new(), held: &held };
    let mut finished = false;
    let mut stalled = stalls.0.subscribe();
    loop {
        if finished && waiting.bytes.is_empty() {
            // Dropping the sink is how the process learns of the end of its input.
            sink = None;
        }
        let mut accepting = waiting.bytes.len() < SOFT_LIMIT;
        if !accepting && *stalled.borrow_and_update() > 0 {
            if waiting.server_is_full() {
                return Input::Flood;
            }
            accepting = true;
        }
        tokio::select! {
            message = read.wait(), if accepting => match message {
                None | Some(ChannelMsg::Close) => return Input::Gone,
                Some(ChannelMsg::Data { data }) if sink.is_some() => {
                    waiting.push(&data);
                    traffic.pass(data.len()).await;
                }
                Some(ChannelMsg::Eof) => finished = true,
                Some(_) => {}
            },
            wrote = write_some(&mut sink, &waiting.bytes), if sink.is_some() && !waiting.bytes.is_empty() => match wrote {
                Ok(n) => waiting.pop(n),
                // The process reads no more; what the client still sends is thrown away, as a shell would.
                Err(_) => {
                    waiting.pop(usize::MAX);
                    sink = None;
                }
            },
            _ = stalled.changed(), if !accepting => {}
        }
    }
}

async fn write_some(sink: &mut Option<Sink>, waiting: &VecDeque<u8>) -> std::io::Result<usize> {
    let sink = sink.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?;
    let n = sink.write(waiting.as_slices().0).await?;
    if n == 0 { Err(std::io::ErrorKind::WriteZero.into()) } else { Ok(n) }
}

const SIGNALS: [(i32, Sig); 12] = [
    (libc::SIGABRT, Sig::ABRT),
    (libc::SIGALRM, Sig::ALRM),
    (libc::SIGFPE, Sig::FPE),
    (libc::SIGHUP, Sig::HUP),
    (libc::SIGILL, Sig::ILL),
    (libc::SIGINT, Sig::INT),
    (libc::SIGKILL, Sig::KILL),
    (libc::SIGPIPE, Sig::PIPE),
    (libc::SIGQUIT, Sig::QUIT),
    (libc::SIGSEGV, Sig::SEGV),
    (libc::SIGTERM, Sig::TERM),
    (libc::SIGUSR1, Sig::USR1),
];

fn signal_name(number: i32) -> Sig {
    let known = SIGNALS.into_iter().find(|s| s.0 == number).map(|s| s.1);
    known.unwrap_or_else(|| Sig::Custom(format!("SIG{number}@coalition")))
}

/// The number of a signal a client names; none for one we do not know.
pub(crate) fn signal_number(signal: &Sig) -> Option<i32> {
    let custom = |name: &str| match name {
        "USR2" => Some(libc::SIGUSR2),
        "WINCH" => Some(libc::SIGWINCH),
        "CONT" => Some(libc::SIGCONT),
        "STOP" => Some(libc::SIGSTOP),
        "TSTP" => Some(libc::SIGTSTP),
        _ => None,
    };
    match signal {
        Sig::Custom(name) => custom(name),
        other => {
            let same = |s: &&(i32, Sig)| std::mem::discriminant(&s.1) == std::mem::discriminant(other);
            SIGNALS.iter().find(same).map(|s| s.0)
        }
    }
}
