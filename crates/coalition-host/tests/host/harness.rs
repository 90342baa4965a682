//! Hosts, grants and clients for the tests.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coalition_host::output::{Record, Records, SUBSYSTEM, Stream};
use coalition_host::state::now_unix_ms;
use coalition_host::types::FORMAT_VERSION;
use coalition_host::{
    EndReason, Failure, IsolationLevel, Phase, RunnerState, UsageReport, WorkloadSpec, image, keys, parse_answer,
};

/// How the runner is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum As {
    /// As root.
    Root,
    /// As an ordinary user with user namespaces.
    User,
    /// Where no namespaces can be had.
    Bare,
}

/// One of OpenSSH's programs with the key and the known hosts that are in `client`, and nothing of the user's own.
pub(crate) fn openssh(program: &str, client: &Path, port_option: &str, port: u16) -> Command {
    let mut command = Command::new(program);
    command.args(["-F", "none"]);
    for option in ["StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "BatchMode=yes"] {
        command.args(["-o", option]);
    }
    command.arg("-o").arg(format!("UserKnownHostsFile={}", client.join("known_hosts").display()));
    command.arg("-i").arg(client.join("key")).args([port_option, &port.to_string()]);
    command
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

pub(crate) fn has(program: &str) -> bool {
    std::env::var("PATH").unwrap_or_default().split(':').any(|d| Path::new(d).join(program).exists())
}

/// Polls until `check` gives something, at most `limit`.
pub(crate) fn await_some<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(began.elapsed() < limit, "{what} did not happen within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The example image, made once.
fn example() -> Option<&'static (Vec<u8>, image::ImageInfo)> {
    static IMAGE: OnceLock<Option<(Vec<u8>, image::ImageInfo)>> = OnceLock::new();
    IMAGE
        .get_or_init(|| {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("hello.tar");
            match image::make_example(&path) {
                Ok(info) => Some((fs::read(&path).unwrap(), info)),
                Err(e) => {
                    eprintln!("skipped: {e}; {}", e.hint().unwrap_or(""));
                    None
                }
            }
        })
        .as_ref()
}

/// A directory on this machine where a runner of some kind starts grants. Cleans up what it started.
pub(crate) struct Host {
    pub(crate) kind: As,
    pub(crate) temp: tempfile::TempDir,
    pub(crate) image: PathBuf,
    pub(crate) info: image::ImageInfo,
    grants: std::cell::RefCell<Vec<PathBuf>>,
}

const NOBODY: &str = "65534";

impl Host {
    /// None, having said why, when this machine cannot play that host.
    pub(crate) fn new(kind: As) -> Option<Self> {
        let (bytes, info) = example()?;
        for program in ["ssh", "setpriv", "unshare"] {
            if !has(program) {
                eprintln!("skipped: there is no {program} on this machine");
                return None;
            }
        }
        if kind == As::Root && !is_root() {
            eprintln!("skipped: needs root");
            return None;
        }
        let temp = tempfile::Builder::new().prefix("coalition-host-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let image = temp.path().join("hello.tar");
        fs::write(&image, bytes).unwrap();
        let runner = temp.path().join("runner");
        // By another process: a child of a parallel test could inherit our descriptor, and the file would be busy.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_coalition-runner")).arg(&runner).status().unwrap();
        assert!(copied.success());
        let host = Self { kind, temp, image, info: info.clone(), grants: Default::default() };
        host.give(host.temp.path());
        let level = host.level();
        let expected = match kind {
            As::Root => IsolationLevel::RootNamespaces,
            As::User => IsolationLevel::UserNamespaces,
            As::Bare => IsolationLevel::ProcessLimits,
        };
        if level != expected {
            eprintln!("skipped: this machine gives {kind:?} \"{level}\"");
            return None;
        }
        Some(host)
    }

    /// Every kind of host this machine can play.
    pub(crate) fn each() -> Vec<Self> {
        [As::Root, As::User, As::Bare].into_iter().filter_map(Self::new).collect()
    }

    fn level(&self) -> IsolationLevel {
        let probe: coalition_host::ProbeReport = self.answer(&["probe"]).unwrap();
        assert!(probe.cpu_millicores >= 1000 && probe.ram_mib > 0 && probe.clock_unix_ms > 1_000_000_000_000);
        assert_eq!(probe.isolation.name, probe.isolation.level.to_string());
        probe.isolation.level
    }

    /// The runner, as whom this host runs it.
    pub(crate) fn command(&self) -> Command {
        let runner = self.temp.path().join("runner");
        let mut command = match (self.kind, is_root()) {
            (As::Root, _) | (As::User, false) => return Command::new(runner),
            (As::User, true) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
                command
            }
            (As::Bare, _) => {
                let mut command = if is_root() {
                    let mut command = Command::new("setpriv");
                    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "unshare"]);
                    command
                } else {
                    Command::new("unshare")
                };
                command.args(["--user", "--map-root-user", "sh", "-c"]);
                command.arg(
                    "echo 0 > /proc/sys/user/max_user_namespaces && \
                     exec setpriv --bounding-set=-all --inh-caps=-all \"$0\" \"$@\"",
                );
                command
            }
        };
        command.arg(runner);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command().arg("runner").args(args).stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn answer<T: serde::de::DeserializeOwned>(&self, args: &[&str]) -> Result<T, Failure> {
        let output = self.run(args);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 1, "{args:?}: {text:?} {}", String::from_utf8_lossy(&output.stderr));
        let answer = parse_answer(text.trim_end());
        assert_eq!(answer.is_ok(), output.status.success(), "{text}");
        answer
    }

    /// A fresh grant directory with a spec for the example image, not started.
    pub(crate) fn prepare(&self, change: impl FnOnce(&mut WorkloadSpec)) -> Grant<'_> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{:08x}{:08x}", std::process::id(), number);
        let dir = self.temp.path().join(&name);
        fs::create_dir(&dir).unwrap();
        let (host, user) = (keys::generate("host"), keys::generate("user"));
        let mut spec = WorkloadSpec {
            version: FORMAT_VERSION,
            grant_id: name,
            image: self.image.clone(),
            image_blake3: self.info.blake3.clone(),
            image_size_bytes: self.info.size_bytes,
            cpu_millicores: 1000,
            ram_mib: 128,
            disk_mib: 64,
            pids_max: 40,
            valid_to_unix_ms: now_unix_ms() + 120_000,
            ssh_listen: "127.0.0.1:0".parse().unwrap(),
            ssh_host_key: host.private_openssh.clone(),
            ssh_authorized_key: user.public_openssh.clone(),
            command: vec![],
            env: Default::default(),
            minimum_isolation: IsolationLevel::ProcessLimits,
            egress: Default::default(),
            network_mbit: None,
            machine: None,
        };
        change(&mut spec);
        fs::write(dir.join("spec.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        self.give(&dir);
        let client = tempfile::tempdir().unwrap();
        let key = client.path().join("key");
        write_private(&key, user.private_openssh.expose());
        self.grants.borrow_mut().push(dir.clone());
        Grant { host: self, dir, spec, client, host_public: host.public_openssh, state: None }
    }

    /// Makes files belong to whoever the runner runs as.
    fn give(&self, dir: &Path) {
        if is_root() && self.kind != As::Root {
            let status = Command::new("chown").args(["-R", &format!("{NOBODY}:{NOBODY}")]).arg(dir).status().unwrap();
            assert!(status.success());
        }
    }

    pub(crate) fn start(&self, change: impl FnOnce(&mut WorkloadSpec)) -> Grant<'_> {
        let mut grant = self.prepare(change);
        let state: RunnerState = self.answer(&["start", "--dir", grant.dir_text()]).unwrap();
        grant.ready(state);
        grant
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for dir in self.grants.borrow().iter() {
            if dir.exists() {
                let _ = self.run(&["clean", "--dir", dir.to_str().unwrap()]);
            }
        }
    }
}

pub(crate) fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// One grant and its requester.
pub(crate) struct Grant<'h> {
    pub(crate) host: &'h Host,
    pub(crate) dir: PathBuf,
    pub(crate) spec: WorkloadSpec,
    pub(crate) client: tempfile::TempDir,
    pub(crate) host_public: String,
    pub(crate) state: Option<RunnerState>,
}

/// What a client saw.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Seen {
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Records, the last of which is a last one.
pub(crate) fn records(bytes: &[u8]) -> Vec<Record> {
    let (mut records, mut seen) = (Records::default(), Vec::new());
    records.push(bytes);
    while let Some(record) = records.pull().unwrap() {
        seen.push(record);
    }
    assert_eq!(seen.iter().position(Record::is_last), seen.len().checked_sub(1), "{seen:?}");
    seen
}

/// What was written to one of the outputs.
pub(crate) fn text(records: &[Record], wanted: Stream) -> String {
    let mut all = Vec::new();
    for record in records {
        if let Record::Output { stream, bytes, .. } = record
            && *stream == wanted
        {
            all.extend_from_slice(bytes);
        }
    }
    String::from_utf8(all).unwrap()
}

impl Grant<'_> {
    pub(crate) fn dir_text(&self) -> &str {
        self.dir.to_str().unwrap()
    }

    pub(crate) fn ready(&mut self, state: RunnerState) {
        assert!(matches!(state.phase, Phase::Ready { .. }), "{state:?}");
        self.state = Some(state);
        self.pin(&self.host_public.clone());
    }

    pub(crate) fn port(&self) -> u16 {
        match &self.state.as_ref().unwrap().phase {
            Phase::Ready { port, .. } => *port,
            other => panic!("{other:?}"),
        }
    }

    /// Writes known_hosts.
    pub(crate) fn pin(&self, public: &str) {
        let line = format!("[127.0.0.1]:{} {public}\n", self.port());
        fs::write(self.client.path().join("known_hosts"), line).unwrap();
    }

    pub(crate) fn ssh_command(&self, options: &[&str]) -> Command {
        let mut command = openssh("ssh", self.client.path(), "-p", self.port());
        command.args(options).arg("root@127.0.0.1");
        command
    }

    pub(crate) fn ssh_with(&self, options: &[&str], line: &str, input: &[u8]) -> Seen {
        let mut command = self.ssh_command(options);
        if !line.is_empty() {
            command.arg(line);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Seen::of(&output)
    }

    pub(crate) fn ssh(&self, line: &str) -> Seen {
        self.ssh_with(&[], line, b"")
    }

    /// The workload's output, as its requester gets it; `options` as in the subsystem's name.
    pub(crate) fn output(&self, options: &str) -> Vec<Record> {
        let words: Vec<&str> = [SUBSYSTEM].into_iter().chain(options.split_whitespace()).collect();
        let got = self.ssh_command(&["-s"]).args(words).stdin(Stdio::null()).output().unwrap();
        assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
        records(&got.stdout)
    }

    /// OpenSSH's own `scp`; `from` and `to` with `inside:` before paths of the machine.
    pub(crate) fn scp(&self, options: &[&str], from: &str, to: &str) -> Seen {
        let mut command = openssh("scp", self.client.path(), "-P", self.port());
        command.args(options);
        command.args([from, to].map(|path| path.replace("inside:", "root@127.0.0.1:")));
        Seen::of(&command.stdin(Stdio::null()).output().unwrap())
    }

    pub(crate) fn status(&self) -> RunnerState {
        self.host.answer(&["status", "--dir", self.dir_text()]).unwrap()
    }

    pub(crate) fn stop(&self) -> RunnerState {
        self.host.answer(&["stop", "--dir", self.dir_text(), "--reason", "test"]).unwrap()
    }

    pub(crate) fn usage(&self) -> UsageReport {
        serde_json::from_slice(&fs::read(self.dir.join("usage.json")).unwrap()).unwrap()
    }

    /// Waits for the last word.
    pub(crate) fn await_end(&self, limit: Duration) -> (EndReason, Option<String>, UsageReport) {
        await_some("the end", limit, || {
            let state = self.status();
            match state.phase {
                // Its last word is the last thing a supervisor does, save exiting.
                Phase::Ended { reason, detail, usage, .. }
                    if !coalition_host::proc::is_alive(&state.supervisor).unwrap() =>
                {
                    Some((reason, detail, usage))
                }
                _ => None,
            }
        })
    }

    pub(crate) fn clean(&self) {
        let report: coalition_host::CleanReport = self.host.answer(&["clean", "--dir", self.dir_text()]).unwrap();
        assert!(report.removed.contains(&self.dir_text().to_owned()));
        self.assert_nothing_left();
    }

    /// Processes of this grant still on the host.
    pub(crate) fn processes(&self) -> Vec<i32> {
        coalition_host::proc::with_environment("COALITION_GRANT", &self.spec.grant_id)
    }

    pub(crate) fn assert_no_process(&self) {
        assert_eq!(self.processes(), Vec::<i32>::new());
        let state = self.state.as_ref().unwrap();
        for process in state.init.iter().chain([&state.supervisor]) {
            assert!(!coalition_host::proc::is_alive(process).unwrap(), "{process:?}");
        }
    }

    pub(crate) fn assert_nothing_left(&self) {
        assert!(!self.dir.exists());
        if let Some(state) = &self.state {
            self.assert_no_process();
            for group in &state.cgroups {
                assert!(!group.exists(), "{}", group.display());
            }
            assert!(std::net::TcpStream::connect(("127.0.0.1", self.port())).is_err());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir_text()));
    }
}
