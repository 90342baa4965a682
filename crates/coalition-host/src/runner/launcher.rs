//! Sessions of the grant's SSH server: started inside the environment, by its first process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use russh::{Channel, server};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;

use super::workload::Output;
use crate::isolate::control::Control as Environment;
use crate::isolate::proto::{Launch, Program};
use crate::isolate::sys;
use crate::ssh::{Control, Launcher, Process, Request, Session};

type Source = Box<dyn AsyncRead + Send + Unpin>;
type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// Starts sessions in one environment.
pub(crate) struct InsideLauncher {
    pub(crate) environment: Environment,
    /// Variables from the spec; the client's come on top.
    pub(crate) env: Vec<(String, String)>,
    /// What the grant's own command writes.
    pub(crate) output: Arc<Output>,
}

/// The master end of a terminal as a stream; both directions share it.
#[derive(Clone)]
struct Master(Arc<AsyncFd<OwnedFd>>);

impl Master {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(Arc::new(sys::watch_fd(fd)?)))
    }
}

impl AsyncRead for Master {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read = guard.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), buf.initialize_unfilled())?));
            match read {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Master {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(written) = guard.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), data)?)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct InsideControl {
    environment: Environment,
    id: u64,
    terminal: Option<Master>,
}

impl Control for InsideControl {
    fn signal(&self, signal: i32) {
        self.environment.signal(self.id, signal);
    }

    fn resize(&self, cols: u16, rows: u16, xpixel: u16, ypixel: u16) {
        if let Some(master) = &self.terminal {
            // A terminal that cannot be resized is still a terminal.
            let _ = sys::set_window_size(master.0.as_fd(), cols, rows, xpixel, ypixel);
        }
    }

    /// As OpenSSH does: a terminal's session is hung up by closing the terminal; anything else keeps running, so that
    /// `ssh host 'server &'` leaves a server behind.
    fn hang_up(&self) {
        if self.terminal.is_some() {
            self.signal(libc::SIGHUP);
        }
    }
}

impl InsideLauncher {
    async fn launch_with_terminal(&self, launch: Launch) -> Result<Process, String> {
        let launched = self.environment.launch(launch, &[]).await?;
        let master = launched.master.ok_or("no terminal came back")?;
        let master = Master::new(master).map_err(|e| format!("cannot use the terminal: {e}"))?;
        let control =
            InsideControl { environment: self.environment.clone(), id: launched.id, terminal: Some(master.clone()) };
        Ok(Process {
            stdin: Box::new(EndingInput(master.clone())),
            stdout: Box::new(master),
            stderr: None,
            exit: launched.exit,
            control: Box::new(control),
        })
    }

    async fn launch_with_pipes(&self, launch: Launch) -> Result<Process, String> {
        let failed = |e: io::Error| format!("cannot make pipes: {e}");
        let (stdin_theirs, stdin_ours) = io::pipe().map_err(failed)?;
        let (stdout_ours, stdout_theirs) = io::pipe().map_err(failed)?;
        let (stderr_ours, stderr_theirs) = io::pipe().map_err(failed)?;
        let theirs = [stdin_theirs.as_fd(), stdout_theirs.as_fd(), stderr_theirs.as_fd()];
        let launched = self.environment.launch(launch, &theirs).await?;
        let control = InsideControl { environment: self.environment.clone(), id: launched.id, terminal: None };
        Ok(Process {
            stdin: Box::new(pipe::Sender::from_owned_fd(stdin_ours.into()).map_err(failed)?),
            stdout: Box::new(pipe::Receiver::from_owned_fd(stdout_ours.into()).map_err(failed)?),
            stderr: Some(Box::new(pipe::Receiver::from_owned_fd(stderr_ours.into()).map_err(failed)?)),
            exit: launched.exit,
            control: Box::new(control),
        })
    }
}

/// A terminal's input. A terminal has no end of file but the end-of-file character, which is what closing sends: again
/// and again, because one that arrives while a program changes the terminal's mode is lost.
struct EndingInput(Master);

/// Pauses between two end-of-file characters.
const END_PAUSES_MS: [u64; 12] = [50, 100, 200, 400, 800, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 60_000];

impl AsyncWrite for EndingInput {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for EndingInput {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        // Weak: the terminal must be able to close, which hangs up whatever still uses it.
        let terminal = Arc::downgrade(&self.0.0);
        runtime.spawn(async move {
            for pause in END_PAUSES_MS {
                match terminal.upgrade() {
                    // Non-blocking: a terminal whose input is full has a reader with more urgent things to read.
                    Some(fd) => drop(nix::unistd::write(fd.get_ref(), &[4])),
                    None => return,
                }
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        });
    }
}

#[async_trait]
impl Launcher for InsideLauncher {
    async fn launch(&self, session: Session) -> Result<Process, String> {
        let mut env = self.env.clone();
        env.extend(session.env);
        let program = match session.request {
            Request::Shell => Program::Shell,
            Request::Command(line) => Program::Command(line),
            Request::Sftp => Program::Sftp,
            Request::Logs(query) => return Ok(self.output.serve(query)),
        };
        let launch = Launch { program, env, terminal: session.terminal };
        if launch.terminal.is_some() {
            self.launch_with_terminal(launch).await
        } else {
            self.launch_with_pipes(launch).await
        }
    }

    fn has_terminals(&self) -> bool {
        true
    }

    async fn connect(&self, port: u16) -> Result<(Source, Sink), String> {
        let fd = self.environment.connect(port).await?;
        let failed = |e: io::Error| format!("cannot connect to port {port} inside: {e}");
        let stream = TcpStream::from_std(std::net::TcpStream::from(fd)).map_err(failed)?;
        stream.writable().await.map_err(failed)?;
        if let Some(e) = stream.take_error().map_err(failed)? {
            return Err(failed(e));
        }
        let (source, sink) = stream.into_split();
        Ok((Box::new(source), Box::new(sink)))
    }

    async fn serve_sftp(&self, channel: Channel<server::Msg>, _busy: Arc<()>) -> Option<Channel<server::Msg>> {
        Some(channel)
    }
}
