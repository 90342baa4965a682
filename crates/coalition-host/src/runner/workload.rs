//! The grant's own command: running it, keeping what it writes, and telling the requester.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;

use super::log;
use crate::isolate::control::{Control as Environment, Launched};
use crate::isolate::proto::{Launch, Program, Workload};
use crate::output::{LIMIT_BYTES, LogQuery, MAX_PAYLOAD_BYTES, Reader, Record, Ring, Stream};
use crate::ssh::{Control, Process};
use crate::state::now_unix_ms;
use crate::types::ExitOutcome;

/// Most output taken in a second: keeping it is our work, which the grant's CPU limit does not cover.
const RATE_BYTES: u64 = 32 << 20;
/// How long output of a command that has ended is waited for; what it left running may write on for ever.
const DRAIN: Duration = Duration::from_millis(300);
/// Output on its way to a requester.
const BUFFER_BYTES: usize = 64 * 1024;

/// How far the workload is.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Grows with every piece of output.
    pieces: u64,
    /// Ends of its outputs that are open.
    open: u8,
    /// When and how its command ended.
    exited: Option<(u64, ExitOutcome)>,
}

/// A grant's output, as long as its supervisor lives.
pub(crate) struct Output {
    ring: Mutex<Ring>,
    progress: watch::Sender<Progress>,
    /// Whether there is a command at all; the image may have one where the requester has none.
    has_command: AtomicBool,
}

impl Output {
    /// Kept in the grant's directory.
    pub(super) fn new(dir: PathBuf) -> Arc<Self> {
        let ring = Mutex::new(Ring::new(dir, LIMIT_BYTES));
        Arc::new(Self { ring, progress: watch::Sender::default(), has_command: AtomicBool::new(true) })
    }

    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, stream: Stream, bytes: &[u8]) {
        self.ring().append(stream, now_unix_ms(), bytes);
        self.progress.send_modify(|progress| progress.pieces += 1);
    }

    /// Keeps everything from one end of a pipe.
    async fn collect(self: Arc<Self>, stream: Stream, mut pipe: pipe::Receiver) {
        let mut bytes = vec![0; MAX_PAYLOAD_BYTES];
        while let Ok(read @ 1..) = pipe.read(&mut bytes).await {
            self.append(stream, &bytes[..read]);
            tokio::time::sleep(Duration::from_micros(read as u64 * 1_000_000 / RATE_BYTES)).await;
        }
        self.progress.send_modify(|progress| progress.open -= 1);
    }

    async fn start(self: &Arc<Self>, environment: &Environment, launch: Launch) -> Result<Launched, String> {
        let failed = |e: io::Error| format!("cannot make pipes: {e}");
        let (stdout, stdout_theirs) = io::pipe().map_err(failed)?;
        let (stderr, stderr_theirs) = io::pipe().map_err(failed)?;
        let launched = environment.launch(launch, &[stdout_theirs.as_fd(), stderr_theirs.as_fd()]).await?;
        for (stream, end) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            let end = pipe::Receiver::from_owned_fd(end.into()).map_err(failed)?;
            self.progress.send_modify(|progress| progress.open += 1);
            tokio::spawn(Arc::clone(self).collect(stream, end));
        }
        Ok(launched)
    }

    /// Runs the workload's command to its end and says how that was, if anybody knows; none at once if there is no command.
    pub(super) async fn run(
        self: &Arc<Self>,
        environment: &Environment,
        workload: Workload,
        env: Vec<(String, String)>,
    ) -> Option<Option<ExitOutcome>> {
        if workload.argv.is_empty() {
            self.has_command.store(false, Ordering::Relaxed);
            self.progress.send_modify(|_| ());
            return None;
        }
        let launch = Launch { program: Program::Workload(workload), env, terminal: None };
        let outcome = match self.start(environment, launch).await {
            Ok(launched) => match launched.exit.await {
                Ok(outcome) => outcome,
                Err(_) => return Some(None),
            },
            Err(problem) => {
                log(&format!("workload: {problem}"));
                self.append(Stream::Stderr, format!("{problem}\n").as_bytes());
                // The shell's number for a command that cannot be run.
                ExitOutcome::Code(127)
            }
        };
        let mut progress = self.progress.subscribe();
        let _ = tokio::time::timeout(DRAIN, progress.wait_for(|progress| progress.open == 0)).await;
        self.progress.send_modify(|progress| progress.exited = Some((now_unix_ms(), outcome)));
        Some(Some(outcome))
    }

    /// Hands the output to a requester, as a process that prints it.
    pub(crate) fn serve(self: &Arc<Self>, query: LogQuery) -> Process {
        let (near, far) = tokio::io::duplex(BUFFER_BYTES);
        let (sender, exit) = oneshot::channel();
        let output = Arc::clone(self);
        let task = tokio::spawn(async move {
            let told = output.tell(query, far).await;
            let _ = sender.send(ExitOutcome::Code(i32::from(told.is_err())));
        });
        Process {
            stdin: Box::new(tokio::io::sink()),
            stdout: Box::new(near),
            stderr: None,
            exit,
            control: Box::new(Telling(task.abort_handle())),
        }
    }

    async fn tell(&self, query: LogQuery, mut to: DuplexStream) -> io::Result<()> {
        let (mut progress, mut reader) = (self.progress.subscribe(), Reader::default());
        loop {
            // Looked at before reading, so that nothing written before an end is left out.
            let now = *progress.borrow_and_update();
            loop {
                let next = self.ring().read(&mut reader, query.since_unix_ms)?;
                let Some(records) = next else { break };
                to.write_all(&records).await?;
            }
            let over = now.exited.is_some() && now.open == 0;
            if !query.follow || over || !self.has_command.load(Ordering::Relaxed) {
                return self.last_words(now, to).await;
            }
            if progress.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    async fn last_words(&self, now: Progress, mut to: DuplexStream) -> io::Result<()> {
        let lost = self.ring().unsaid();
        if lost > 0 {
            to.write_all(&Record::Gone { bytes: lost }.encode()).await?;
        }
        let last = match now.exited {
            Some((at_unix_ms, outcome)) => Record::Exited { at_unix_ms, outcome },
            None if self.has_command.load(Ordering::Relaxed) => Record::Running,
            None => Record::NoCommand,
        };
        to.write_all(&last.encode()).await?;
        to.shutdown().await
    }
}

/// A requester that is being told.
struct Telling(AbortHandle);

impl Control for Telling {
    fn signal(&self, _signal: i32) {
        self.0.abort();
    }

    fn resize(&self, _cols: u16, _rows: u16, _xpixel: u16, _ypixel: u16) {}

    fn hang_up(&self) {
        self.0.abort();
    }
}
