//! Commands of the embedded server: `/bin/sh -c`, as the current user.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use russh::{Channel, server};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::process::Command;
use tokio::sync::oneshot;

use crate::sftp::{Jail, SftpSession};
use crate::ssh::{Control, Launcher, Process, Request, Session};
use crate::types::ExitOutcome;

/// Between a channel and the SFTP server behind it.
const SFTP_BUFFER_BYTES: usize = 256 * 1024;

pub(super) struct HostLauncher {
    pub(super) root_dir: PathBuf,
    pub(super) env: Vec<(String, String)>,
}

struct HostControl(Pid);

impl HostControl {
    fn send(&self, signal: Signal) {
        // Already gone is fine.
        let _ = killpg(self.0, signal);
    }
}

impl Control for HostControl {
    fn signal(&self, signal: i32) {
        if let Ok(signal) = Signal::try_from(signal) {
            self.send(signal);
        }
    }

    fn resize(&self, _cols: u16, _rows: u16, _xpixel: u16, _ypixel: u16) {}

    /// A command whose client is gone has nobody to talk to. What it made independent of itself (a supervisor in a
    /// session of its own) is not in its group and lives on.
    fn hang_up(&self) {
        self.send(Signal::SIGHUP);
        self.send(Signal::SIGTERM);
    }
}

#[async_trait]
impl Launcher for HostLauncher {
    async fn launch(&self, session: Session) -> Result<Process, String> {
        let mut command = Command::new("/bin/sh");
        match &session.request {
            Request::Command(line) => {
                command.arg("-c").arg(line);
            }
            Request::Shell => {
                command.arg("-s");
            }
            Request::Sftp => return Err("file transfer is served without a process".into()),
            Request::Logs(_) => return Err("this is a host, no workload writes here".into()),
        }
        command
            .current_dir(&self.root_dir)
            .envs(session.env.iter().map(|(k, v)| (k, v)))
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().map_err(|e| format!("cannot run /bin/sh: {e}"))?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).ok_or("the command ended at once")?;
        let missing = || "a stream is missing".to_owned();
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let (sender, exit) = oneshot::channel();
        tokio::spawn(async move {
            if let Ok(status) = child.wait().await {
                let _ = sender.send(outcome_of(status));
            }
        });
        Ok(Process {
            stdin: Box::new(stdin),
            stdout: Box::new(stdout),
            stderr: Some(Box::new(stderr)),
            exit,
            control: Box::new(HostControl(Pid::from_raw(pid))),
        })
    }

    fn has_terminals(&self) -> bool {
        false
    }

    async fn connect(
        &self,
        _port: u16,
    ) -> Result<(Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>), String> {
        Err("this server does not forward connections".into())
    }

    async fn serve_sftp(&self, channel: Channel<server::Msg>, busy: Arc<()>) -> Option<Channel<server::Msg>> {
        let session = SftpSession::new(Jail::new(self.root_dir.clone()));
        let (mut near, far) = tokio::io::duplex(SFTP_BUFFER_BYTES);
        russh_sftp::server::run(far, session).await;
        tokio::spawn(async move {
            let (mut read, write) = channel.split();
            let mut stream = tokio::io::join(read.make_reader(), write.make_writer());
            // The client's end of file ends the server, whose end of file ends this. Then the channel is given back: without
            // a close from this side it would count against the connection's limit for ever.
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut near).await;
            let _ = write.close().await;
            drop(busy);
        });
        None
    }
}

fn outcome_of(status: std::process::ExitStatus) -> ExitOutcome {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitOutcome::Code(code),
        (None, signal) => ExitOutcome::Signal(signal.unwrap_or(0)),
    }
}
