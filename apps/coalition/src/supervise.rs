//! Keeps the roles of a coalition running as child processes: starts them in waves, waits until each is ready, restarts the
//! ones that crash, stops all in order. A committee counts as ready when a quorum of it is.
//!
//! Children are started by one thread that lives as long as they do. The kernel tells a child that its parent is gone when
//! the *thread* that started it ends, so a thread of a pool would not do.

mod readiness;

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::{mpsc, watch},
    task::{JoinHandle, LocalSet},
};

use self::readiness::{FirstStart, Readiness};
use crate::{error::CliError, home::private_dir, roles::SUPERVISOR_VARIABLE};

/// How long a role may take to become ready.
const READY_WAIT: Duration = Duration::from_secs(60);
/// How long a role may take to stop before it is killed; roles end by themselves earlier.
const STOP_WAIT: Duration = Duration::from_secs(75);
/// First pause before a crashed role is started again; doubled each time.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// Longest such pause.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A role that ran this long before it crashed is started again without a growing pause.
const STEADY: Duration = Duration::from_secs(60);
/// How much of a log is looked at for its last words.
const TAIL_BYTES: u64 = 8 << 10;

/// A role to keep running.
#[derive(Debug, Clone)]
pub struct Role {
    /// Its name, for people and files: `member-1`.
    pub name: String,
    /// Its kind, as `coalition run` calls it: `member`.
    pub kind: &'static str,
    /// Its config.
    pub config: PathBuf,
    /// Where its log goes.
    pub log: PathBuf,
    /// Roles of one wave start together, after those of lower ones are ready; they stop before them.
    pub wave: usize,
    /// The committee it is a member of, if it is of one.
    pub committee: Option<Committee>,
}

/// Roles of one wave that do their work together although some of them are down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committee {
    /// Its name, for people: `market`.
    pub name: &'static str,
    /// How many of its roles must be up.
    pub quorum: usize,
}

/// What happened to a role.
#[derive(Debug)]
pub enum Event {
    /// It serves.
    Ready {
        /// Its name.
        role: String,
        /// Its process.
        pid: u32,
        /// What it says about itself.
        details: Value,
        /// From its start.
        took: Duration,
    },
    /// Every role serves, but for members of committees that do without them.
    AllReady,
    /// It ended by itself, or did not start, and will be started again.
    Crashed {
        /// Its name.
        role: String,
        /// How, and its last words.
        how: String,
        /// When it is started again.
        again_in: Duration,
    },
    /// It could not be started the first time and is not done without; everything is being stopped.
    Failed(CliError),
}

/// The children and the thread that owns them.
pub struct Supervisor {
    events: mpsc::UnboundedReceiver<Event>,
    stop: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Supervisor {
    /// Starts the roles with `program run <kind> <config>`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(program: &Path, roles: Vec<Role>) -> std::io::Result<Self> {
        let (report, events) = mpsc::unbounded_channel();
        let (stop, stopped) = watch::channel(false);
        let program = program.to_path_buf();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let run = move || LocalSet::new().block_on(&runtime, supervise(program, roles, report, stopped));
        let thread = thread::Builder::new().name("supervisor".into()).spawn(run)?;
        Ok(Self { events, stop, thread: Some(thread) })
    }

    /// The next event; `None` when everything has stopped.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Stops every role in order and waits until none is left.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        while self.events.recv().await.is_some() {}
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Supervisor {
    /// Nothing is left behind even when the caller fails in between.
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        self.join();
    }
}

type Report = mpsc::UnboundedSender<Event>;

async fn supervise(program: PathBuf, roles: Vec<Role>, report: Report, mut stopped: watch::Receiver<bool>) {
    let mut waves: Vec<(watch::Sender<bool>, Vec<JoinHandle<()>>)> = Vec::new();
    let last = roles.iter().map(|role| role.wave).max().unwrap_or(0);
    let mut failed = false;
    'starting: for wave in 0..=last {
        let (stop, stop_wave) = watch::channel(false);
        let (ready, mut readiness) = mpsc::unbounded_channel();
        let members: Vec<&Role> = roles.iter().filter(|role| role.wave == wave).collect();
        let tasks = members.iter().map(|role| {
            let keeper = Keeper { program: program.clone(), role: (*role).clone(), report: report.clone() };
            tokio::task::spawn_local(keeper.run(stop_wave.clone(), ready.clone()))
        });
        waves.push((stop, tasks.collect()));
        let mut readiness_of = Readiness::new(&members);
        while !readiness_of.is_reached() {
            tokio::select! {
                Some(came) = readiness.recv() => if let Err(error) = readiness_of.note(came) {
                    let _ = report.send(Event::Failed(error));
                    failed = true;
                    break 'starting;
                },
                _ = stopped.wait_for(|stop| *stop) => break 'starting,
            }
        }
    }
    if !failed {
        if !*stopped.borrow() {
            let _ = report.send(Event::AllReady);
        }
        let _ = stopped.wait_for(|stop| *stop).await;
    }
    while let Some((stop, tasks)) = waves.pop() {
        let _ = stop.send(true);
        for task in tasks {
            let _ = task.await;
        }
    }
}

/// What came of starting a process.
enum Start {
    /// It serves, says this about itself, and then what it says at its end.
    Ready(Child, Value, JoinHandle<Option<String>>),
    /// Told to stop before it was ready.
    Stopped(Child),
    /// It did not get there: how, as a continuation of its name, and its last words.
    Failed(Option<Child>, String, Option<String>),
}

/// Keeps one role running.
struct Keeper {
    program: PathBuf,
    role: Role,
    report: Report,
}

impl Keeper {
    async fn run(self, mut stop: watch::Receiver<bool>, ready: mpsc::UnboundedSender<FirstStart>) {
        let (mut backoff, mut first) = (BACKOFF_MIN, true);
        loop {
            let started = Instant::now();
            let (how, words) = match self.start(&mut stop).await {
                Start::Ready(child, details, words) => {
                    self.announce(&child, &details, started.elapsed());
                    if std::mem::take(&mut first) {
                        let _ = ready.send((self.role.name.clone(), Ok(())));
                    }
                    match watch_child(child, &mut stop).await {
                        Some(how) => (how, words.await.ok().flatten()),
                        None => return,
                    }
                }
                Start::Stopped(child) => return end(child).await,
                Start::Failed(child, how, words) => {
                    if let Some(child) = child {
                        end(child).await;
                    }
                    if first {
                        let _ = ready.send((self.role.name.clone(), Err(self.failure(&how, words.clone()))));
                    }
                    if self.role.committee.is_none() && first {
                        return;
                    }
                    (how, words)
                }
            };
            if started.elapsed() > STEADY {
                backoff = BACKOFF_MIN;
            }
            let how = match words.or_else(|| last_words(&self.role.log)) {
                Some(words) => format!("{how}: {words}"),
                None => how,
            };
            let _ = self.report.send(Event::Crashed { role: self.role.name.clone(), how, again_in: backoff });
            tokio::select! {
                () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Starts the process and waits for its ready line.
    async fn start(&self, stop: &mut watch::Receiver<bool>) -> Start {
        let mut child = match self.spawn() {
            Ok(child) => child,
            Err(error) => return Start::Failed(None, "cannot be started".into(), Some(error.to_string())),
        };
        let Some(stdout) = child.stdout.take() else {
            return Start::Failed(Some(child), "has no output".into(), None);
        };
        let mut lines = BufReader::new(stdout).lines();
        let waited = tokio::select! {
            read = tokio::time::timeout(READY_WAIT, lines.next_line()) => read,
            _ = stop.wait_for(|stop| *stop) => return Start::Stopped(child),
        };
        let Ok(line) = waited else {
            let how = format!("was not ready within {} s", READY_WAIT.as_secs());
            return Start::Failed(Some(child), how, None);
        };
        let line = line.ok().flatten().unwrap_or_default();
        if let Some(ready) = said(&line, "ready") {
            return Start::Ready(child, ready, tokio::task::spawn_local(last_said(lines)));
        }
        let how = tokio::time::timeout(STOP_WAIT, child.wait()).await.ok().and_then(Result::ok);
        let how = how.map_or_else(|| "said nothing".to_owned(), exit_words);
        let words = said(&line, "failed").and_then(|words| Some(words.as_str()?.to_owned()));
        Start::Failed(Some(child), how, words)
    }

    fn spawn(&self) -> Result<Child, CliError> {
        let failed = |error: std::io::Error| {
            CliError::fault("spawn", format!("{} cannot be started", self.role.name)).because(error)
        };
        if let Some(dir) = self.role.log.parent() {
            private_dir(dir)?;
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.role.log).map_err(failed)?;
        Command::new(&self.program)
            .arg("run")
            .arg(self.role.kind)
            .arg(&self.role.config)
            .env(SUPERVISOR_VARIABLE, std::process::id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C in the terminal reaches the supervisor only, which stops the roles in order.
            .process_group(0)
            .spawn()
            .map_err(failed)
    }

    fn announce(&self, child: &Child, ready: &Value, took: Duration) {
        let details = ready.get("details").cloned().unwrap_or(Value::Null);
        let (role, pid) = (self.role.name.clone(), child.id().unwrap_or(0));
        let _ = self.report.send(Event::Ready { role, pid, details, took });
    }

    fn failure(&self, how: &str, words: Option<String>) -> CliError {
        let message = format!("{} {how}", self.role.name);
        let words = words.or_else(|| last_words(&self.role.log)).unwrap_or_else(|| "it said nothing".into());
        CliError::fault("role_failed", message).because(words).hint(format!("its log is {}", self.role.log.display()))
    }
}

/// What a line of a role's stdout says under this key.
fn said(line: &str, key: &str) -> Option<Value> {
    serde_json::from_str::<Value>(line).ok()?.get_mut(key).map(Value::take)
}

/// Reads a role's stdout to its end, so that it never blocks. Answers why the role ended, if it says so: its log may be on
/// a disk that takes nothing any more.
async fn last_said(mut lines: Lines<BufReader<ChildStdout>>) -> Option<String> {
    let mut words = None;
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(Value::String(failed)) = said(&line, "failed") {
            words = Some(failed);
        }
    }
    words
}

/// Waits until a child ends by itself (answers how) or is told to stop (stops it, answers nothing).
async fn watch_child(mut child: Child, stop: &mut watch::Receiver<bool>) -> Option<String> {
    let ended = tokio::select! {
        ended = child.wait() => Some(ended),
        _ = stop.wait_for(|stop| *stop) => None,
    };
    match ended {
        Some(Ok(status)) => Some(exit_words(status)),
        Some(Err(error)) => Some(error.to_string()),
        None => {
            end(child).await;
            None
        }
    }
}

/// Asks a child to stop, then makes it.
async fn end(mut child: Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    if tokio::time::timeout(STOP_WAIT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn exit_words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// The last line of a log that says something.
fn last_words(log: &Path) -> Option<String> {
    let mut file = fs::File::open(log).ok()?;
    let size = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    // A failed role prints `error:`, its causes and a hint; the whole paragraph is worth more than its last line.
    let said = match tail.rfind("error: ") {
        Some(at) => tail[at + "error: ".len()..].trim().to_owned(),
        None => tail.lines().rev().find(|line| !line.trim().is_empty())?.trim().to_owned(),
    };
    (!said.is_empty()).then_some(said)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that plays a role: `run KIND CONFIG`, where CONFIG is a shell script.
    fn player(dir: &Path) -> PathBuf {
        let path = dir.join("player");
        fs::write(&path, "#!/bin/sh\nexec /bin/sh \"$3\"\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn role(dir: &Path, name: &str, wave: usize, script: &str) -> Role {
        let config = dir.join(name);
        fs::write(&config, script).unwrap();
        Role { name: name.into(), kind: "x", config, log: dir.join("logs").join(name), wave, committee: None }
    }

    const SERVE: &str = "echo '{\"ready\":{\"details\":{\"n\":1}}}'\nexec sleep 600\n";

    async fn next(supervisor: &mut Supervisor) -> Event {
        tokio::time::timeout(Duration::from_secs(20), supervisor.next()).await.unwrap().unwrap()
    }

    fn is_gone(pid: u32) -> bool {
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), None).is_err()
    }

    #[tokio::test]
    async fn waves_start_in_order_and_stop_without_a_trace() {
        let dir = tempfile::tempdir().unwrap();
        let roles = vec![role(dir.path(), "late", 1, SERVE), role(dir.path(), "early", 0, SERVE)];
        let mut supervisor = Supervisor::start(&player(dir.path()), roles).unwrap();
        let mut pids = Vec::new();
        for expected in ["early", "late"] {
            match next(&mut supervisor).await {
                Event::Ready { role, pid, details, .. } => {
                    assert_eq!((role.as_str(), &details["n"]), (expected, &serde_json::json!(1)));
                    pids.push(pid);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(next(&mut supervisor).await, Event::AllReady));
        supervisor.stop().await;
        assert!(pids.into_iter().all(is_gone));
    }

    #[tokio::test]
    async fn a_crashed_role_is_started_again_and_its_last_words_told() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo '{\"ready\":{}}'\n[ -e $0.again ] && exec sleep 600\ntouch $0.again\necho 'error: out of luck' >&2\nexit 3\n";
        let mut supervisor = Supervisor::start(&player(dir.path()), vec![role(dir.path(), "r", 0, script)]).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 4 {
            seen.push(match next(&mut supervisor).await {
                Event::Ready { .. } => "ready".to_owned(),
                Event::AllReady => "all".to_owned(),
                Event::Crashed { how, .. } => how,
                Event::Failed(error) => panic!("{error}"),
            });
        }
        seen.sort();
        assert_eq!(seen, ["all", "ended with status 3: out of luck", "ready", "ready"]);
        supervisor.stop().await;
    }

    #[tokio::test]
    async fn a_role_that_cannot_start_stops_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let broken = "echo 'error: no such thing' >&2\nexit 3\n";
        let roles = vec![role(dir.path(), "fine", 0, SERVE), role(dir.path(), "broken", 1, broken)];
        let mut supervisor = Supervisor::start(&player(dir.path()), roles).unwrap();
        let Event::Ready { pid, .. } = next(&mut supervisor).await else { panic!("the first wave starts") };
        let Event::Failed(error) = next(&mut supervisor).await else { panic!("the second does not") };
        let shown = error.to_string();
        assert!(shown.contains("broken ended with status 3") && shown.contains("no such thing"), "{shown}");
        assert!(tokio::time::timeout(Duration::from_secs(20), supervisor.next()).await.unwrap().is_none());
        assert!(is_gone(pid));
    }

    #[tokio::test]
    async fn a_quorum_starts_without_the_member_that_fails_and_it_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        // Its log is nowhere to be written to; what it says at its end comes another way.
        let late = "[ -e $0.mended ] && { echo '{\"ready\":{}}'; exec sleep 600; }\necho '{\"failed\":\"no such thing\"}'\nexit 3\n";
        let committee = Some(Committee { name: "market", quorum: 2 });
        let member = |name: &str, script| Role { committee, ..role(dir.path(), name, 0, script) };
        let roles = vec![member("a", SERVE), member("b", SERVE), member("c", late), role(dir.path(), "next", 1, SERVE)];
        let mut supervisor = Supervisor::start(&player(dir.path()), roles).unwrap();
        let (mut ready, mut told) = (std::collections::BTreeSet::new(), Vec::new());
        loop {
            match next(&mut supervisor).await {
                Event::Ready { role, .. } => drop(ready.insert(role)),
                Event::Crashed { role, how, .. } => told.push((role, how)),
                Event::AllReady => break,
                Event::Failed(error) => panic!("{error}"),
            }
        }
        assert_eq!(ready.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "b", "next"]);
        assert_eq!(told[0], ("c".to_owned(), "ended with status 3: no such thing".to_owned()));
        fs::write(dir.path().join("c.mended"), "").unwrap();
        loop {
            match next(&mut supervisor).await {
                Event::Ready { role, .. } => {
                    assert_eq!(role, "c");
                    break;
                }
                Event::Crashed { role, .. } => assert_eq!(role, "c"),
                other => panic!("{other:?}"),
            }
        }
        supervisor.stop().await;
    }

    #[tokio::test]
    async fn without_a_quorum_nothing_is_left_running() {
        let dir = tempfile::tempdir().unwrap();
        let broken = "echo 'error: no such thing' >&2\nexit 3\n";
        let committee = Some(Committee { name: "market", quorum: 2 });
        let member = |name: &str, script| Role { committee, ..role(dir.path(), name, 0, script) };
        let roles = vec![member("a", SERVE), member("b", broken), member("c", broken)];
        let mut supervisor = Supervisor::start(&player(dir.path()), roles).unwrap();
        let (mut pids, mut failed) = (Vec::new(), None);
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(20), supervisor.next()).await {
            match event {
                Event::Ready { pid, .. } => pids.push(pid),
                Event::Failed(error) => failed = Some(error.to_string()),
                Event::Crashed { .. } | Event::AllReady => (),
            }
        }
        let shown = failed.unwrap();
        assert!(shown.contains("b and c did not start") && shown.contains("no such thing"), "{shown}");
        assert!(pids.into_iter().all(is_gone));
    }

    #[test]
    fn dropping_stops_everything() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut supervisor = Supervisor::start(&player(dir.path()), vec![role(dir.path(), "r", 0, SERVE)]).unwrap();
        let Event::Ready { pid, .. } = runtime.block_on(next(&mut supervisor)) else { panic!("it starts") };
        drop(supervisor);
        assert!(is_gone(pid));
    }
}
