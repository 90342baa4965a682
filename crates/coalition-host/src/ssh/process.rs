//! What a session needs from whoever starts processes.

use std::sync::Arc;

use async_trait::async_trait;
use russh::{Channel, server};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::isolate::proto::Terminal;
use crate::output::LogQuery;
use crate::types::ExitOutcome;

/// What a client asks to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The login shell.
    Shell,
    /// A command line for the shell.
    Command(String),
    /// File transfer.
    Sftp,
    /// The workload's output.
    Logs(LogQuery),
}

/// A request with its surroundings.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) request: Request,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) terminal: Option<Terminal>,
}

/// A byte source.
pub(crate) type Source = Box<dyn AsyncRead + Send + Unpin>;
/// A byte sink.
pub(crate) type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// A started process.
pub(crate) struct Process {
    pub(crate) stdin: Sink,
    pub(crate) stdout: Source,
    /// None with a terminal.
    pub(crate) stderr: Option<Source>,
    /// Resolves when the process ended; an error means that nobody knows how.
    pub(crate) exit: oneshot::Receiver<ExitOutcome>,
    pub(crate) control: Box<dyn Control>,
}

/// Handling a process while it runs.
pub(crate) trait Control: Send + Sync {
    /// Sends a signal, by number, to its process group.
    fn signal(&self, signal: i32);
    /// Changes its terminal's size: columns, rows, and both in pixels.
    fn resize(&self, cols: u16, rows: u16, xpixel: u16, ypixel: u16);
    /// The client is gone.
    fn hang_up(&self);
}

/// Starts processes.
#[async_trait]
pub(crate) trait Launcher: Send + Sync {
    /// Starts one; the error is for the user.
    async fn launch(&self, session: Session) -> Result<Process, String>;
    /// True when sessions may have a terminal.
    fn has_terminals(&self) -> bool;
    /// Opens a connection to a port on the session side's loopback; the error is for the user.
    async fn connect(&self, port: u16) -> Result<(Source, Sink), String>;
    /// Serves file transfer itself on the channel, holding `busy` while it does; gives the channel back when it does not.
    async fn serve_sftp(&self, channel: Channel<server::Msg>, busy: Arc<()>) -> Option<Channel<server::Msg>>;
}
