//! The supervisor's end of the line to an environment's first process.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::proto::{self, FromInit, Launch, Setup, ToInit};
use crate::error::{Result, RunnerError};
use crate::types::{ExitOutcome, IsolationLevel};

type Reply = std::result::Result<Option<OwnedFd>, String>;

#[derive(Default)]
struct Pending {
    next_id: u64,
    closed: bool,
    replies: HashMap<u64, oneshot::Sender<Reply>>,
    exits: HashMap<u64, oneshot::Sender<ExitOutcome>>,
}

/// A line to an environment; clones share it.
#[derive(Clone)]
pub(crate) struct Control {
    socket: Arc<AsyncFd<OwnedFd>>,
    pending: Arc<Mutex<Pending>>,
}

/// A process that was launched inside.
pub(crate) struct Launched {
    pub(crate) id: u64,
    /// The terminal's master end, when it has one.
    pub(crate) master: Option<OwnedFd>,
    pub(crate) exit: oneshot::Receiver<ExitOutcome>,
}

/// An environment that was built.
pub(crate) struct Built {
    pub(crate) control: Control,
    /// Host pid of its first process.
    pub(crate) pid: i32,
    pub(crate) losses: Vec<String>,
    /// The other end of its tunnel, where it has one.
    pub(crate) tunnel: Option<OwnedFd>,
}

fn broken(problem: impl std::fmt::Display) -> RunnerError {
    RunnerError::Environment(problem.to_string())
}

/// Spawns the first stage, lets `enclose` put it into its cgroups, and talks both stages through building the
/// environment. `setup` is made after `enclose`, because what cgroups do not limit must be limited otherwise.
pub(crate) async fn build(enclose: impl FnOnce(i32) -> Setup, born: &mut Option<i32>) -> Result<Built> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .map_err(|e| broken(format!("socketpair: {e}")))?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("coalition-init")
        .args(["runner", "init"])
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| RunnerError::io("cannot start the environment's first process", e))?;
    let setup = enclose(i32::try_from(child.id()).unwrap_or(0));
    let control = Control::new(ours).map_err(|e| RunnerError::io("cannot watch the control socket", e))?;
    control.send(&ToInit::Setup(Box::new(setup.clone())), &[]).await.map_err(broken)?;
    let pid = match control.next().await?.0 {
        FromInit::Born { pid } => pid,
        FromInit::Broken { problem } => {
            reap(child);
            return Err(broken(problem));
        }
        other => return Err(broken(format!("unexpected {other:?}"))),
    };
    *born = Some(pid);
    if setup.level != IsolationLevel::ProcessLimits {
        child.wait().map_err(|e| RunnerError::io("cannot wait for the first stage", e))?;
        control.send(&ToInit::Setup(Box::new(setup.clone())), &[]).await.map_err(broken)?;
    }
    loop {
        let (message, mut fds) = control.next().await?;
        match message {
            FromInit::WantsMaps => {
                write_maps(pid, setup.uid_base.unwrap_or(0))?;
                control.send(&ToInit::Mapped, &[]).await.map_err(broken)?;
            }
            FromInit::Ready { losses } => return Ok(Built { control, pid, losses, tunnel: fds.pop() }),
            FromInit::Broken { problem } => return Err(broken(problem)),
            other => return Err(broken(format!("unexpected {other:?}"))),
        }
    }
}

/// Collects a first stage that has nothing more to do.
fn reap(mut child: Child) {
    let _ = child.wait();
}

fn write_maps(pid: i32, base: u32) -> Result<()> {
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, format!("0 {base} 65536\n"))
            .map_err(|e| RunnerError::io(format!("cannot write {path}"), e))?;
    }
    Ok(())
}

impl Control {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = super::sys::watch_fd(socket)?;
        Ok(Self { socket: Arc::new(socket), pending: Arc::default() })
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, message: &ToInit, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.socket.async_io(Interest::WRITABLE, |socket| proto::send(socket.as_fd(), message, fds)).await
    }

    async fn receive(&self) -> io::Result<proto::Received<FromInit>> {
        self.socket.async_io(Interest::READABLE, proto::receive::<FromInit>).await
    }

    async fn next(&self) -> Result<(FromInit, Vec<OwnedFd>)> {
        match self.receive().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(broken("its first process died; see runner.log")),
            Err(e) => Err(RunnerError::io("cannot hear from the environment's first process", e)),
        }
    }

    /// Hands out answers until the environment is gone.
    pub(crate) async fn run(&self) {
        while let Ok(Some((message, mut fds))) = self.receive().await {
            let mut pending = self.pending();
            match message {
                FromInit::Launched { id } | FromInit::Connected { id } | FromInit::Moved { id } => {
                    pending.replies.remove(&id).map(|r| r.send(Ok(fds.pop())));
                }
                FromInit::NotLaunched { id, problem } | FromInit::NotConnected { id, problem } => {
                    pending.exits.remove(&id);
                    pending.replies.remove(&id).map(|r| r.send(Err(problem)));
                }
                FromInit::Exited { id, outcome } => {
                    pending.exits.remove(&id).map(|e| e.send(outcome));
                }
                FromInit::Born { .. } | FromInit::WantsMaps | FromInit::Ready { .. } | FromInit::Broken { .. } => {}
            }
        }
        let mut pending = self.pending();
        pending.closed = true;
        pending.replies.clear();
        pending.exits.clear();
    }

    async fn ask(
        &self,
        message: impl FnOnce(u64) -> ToInit,
        fds: &[BorrowedFd<'_>],
        exit: Option<oneshot::Sender<ExitOutcome>>,
    ) -> std::result::Result<(u64, Option<OwnedFd>), String> {
        let (reply, answer) = oneshot::channel();
        let id = {
            let mut pending = self.pending();
            if pending.closed {
                return Err("the machine has ended".into());
            }
            pending.next_id += 1;
            let id = pending.next_id;
            pending.replies.insert(id, reply);
            exit.map(|e| pending.exits.insert(id, e));
            id
        };
        if let Err(e) = self.send(&message(id), fds).await {
            self.pending().replies.remove(&id);
            self.pending().exits.remove(&id);
            return Err(format!("cannot reach the machine: {e}"));
        }
        let fd = answer.await.map_err(|_| "the machine has ended".to_owned())??;
        Ok((id, fd))
    }

    /// Starts a process. `streams` are its standard streams when it has no terminal.
    pub(crate) async fn launch(
        &self,
        launch: Launch,
        streams: &[BorrowedFd<'_>],
    ) -> std::result::Result<Launched, String> {
        let (sender, exit) = oneshot::channel();
        let (id, master) = self.ask(|id| ToInit::Launch { id, launch }, streams, Some(sender)).await?;
        Ok(Launched { id, master, exit })
    }

    /// Opens a connection to a loopback port inside.
    pub(crate) async fn connect(&self, port: u16) -> std::result::Result<OwnedFd, String> {
        let (_, fd) = self.ask(|id| ToInit::Connect { id, port }, &[], None).await?;
        fd.ok_or_else(|| "no socket came back".into())
    }

    /// Has the environment end itself at another time, should nobody else end it; done when it has said so.
    pub(crate) async fn until(&self, unix_ms: u64) -> std::result::Result<(), String> {
        self.ask(|id| ToInit::Until { id, unix_ms }, &[], None).await.map(|_| ())
    }

    /// Signals a launched process' group, if it still runs. Sent from a task of its own: callers cannot wait.
    pub(crate) fn signal(&self, id: u64, signal: i32) {
        let control = self.clone();
        tokio::spawn(async move {
            let _ = control.send(&ToInit::Signal { id, signal }, &[]).await;
        });
    }
}
