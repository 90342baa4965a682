//! A running coalition of real processes, and what tests do with one.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{Mutex, MutexGuard, PoisonError, mpsc::Receiver},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{Environment, Ran};

/// A coalition is eleven processes: one at a time is enough for a small machine.
pub static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// Longest a coalition may take to come up or to stop on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

pub fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running `coalition up`.
pub struct Up {
    pub child: Child,
    pub said: Value,
    /// What it told before that.
    pub told: Vec<Value>,
    lines: Mutex<Receiver<String>>,
}

impl Up {
    #[track_caller]
    pub fn start(env: &Environment, extra: &[&str]) -> Self {
        let mut arguments = vec!["--json", "up"];
        arguments.extend(extra);
        let log = std::fs::File::create(env.path().join("up.err")).unwrap();
        let mut child = env.command(&arguments).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(send.send(line))));
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(line) = receive.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            let value: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            if value["up"] == true {
                return Self { child, said: value, told: seen, lines: Mutex::new(receive) };
            }
            seen.push(value);
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("it did not come up:\n{seen:#?}\n{}", logs(&env.home()));
    }

    /// The processes of all roles that are up.
    pub fn pids(&self) -> Vec<i32> {
        let roles = self.said["roles"].as_object().unwrap();
        let pids = roles.values().map(|role| i32::try_from(role["pid"].as_i64().unwrap()).unwrap());
        pids.filter(|pid| *pid > 0).collect()
    }

    /// Waits until it tells what is looked for; everything else it tells meanwhile is passed over.
    #[track_caller]
    pub fn wait_told<T>(&self, what: &str, mut look: impl FnMut(&Value) -> Option<T>) -> T {
        let (deadline, lines) = (Instant::now() + PATIENCE, self.lines.lock().unwrap());
        let mut seen = Vec::new();
        while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if let Some(found) = look(&serde_json::from_str(&line).unwrap()) {
                return found;
            }
            seen.push(line);
        }
        panic!("waited in vain to be told of {what}; told was:\n{}", seen.join("\n"));
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Ctrl-C, then nothing may be left.
    #[track_caller]
    pub fn stop(mut self) {
        let pids = self.pids();
        self.signal(Signal::SIGINT);
        let status = wait_for("up to stop", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
        for pid in pids {
            assert!(!is_alive(pid), "process {pid} is left");
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// Whether any thread of it still runs. The first thread may be over while another waits for the disk and keeps every socket
/// open; one that all threads have left and nobody has waited for yet counts as gone.
pub fn is_alive(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let runs = |stat: String| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']));
    threads.into_iter().any(|thread| std::fs::read_to_string(thread.path().join("stat")).is_ok_and(runs))
}

/// Asks again until there is an answer; the deadline is for a machine that is far too busy.
#[track_caller]
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// The ends of all role logs, for failures.
pub fn logs(home: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(home.join("logs")) else { return String::new() };
    let tail = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("--- {}\n{}\n", path.display(), lines[lines.len().saturating_sub(12)..].join("\n"))
    };
    entries.flatten().map(|entry| tail(entry.path())).collect()
}

pub fn make_image(env: &Environment) {
    env.run(&["image", "example", "hello.tar"]).expect_status(0);
}

pub const SMALL: [&str; 10] =
    ["--image", "hello.tar", "--cpu", "250m", "--ram", "64MiB", "--region", "local", "--max-rate", "0.1"];

pub fn request(env: &Environment, extra: &[&str]) -> Ran {
    let mut arguments = vec!["--json", "request"];
    arguments.extend(SMALL);
    if !extra.contains(&"--for") {
        arguments.extend(["--for", "10m"]);
    }
    arguments.extend(extra);
    env.run(&arguments)
}

#[track_caller]
pub fn granted(env: &Environment, extra: &[&str]) -> String {
    let ran = request(env, extra);
    assert_eq!(ran.status, 0, "{}\n{}\n{}", ran.out, ran.err, logs(&env.home()));
    let steps: Vec<String> = ran.objects().iter().filter_map(|step| step["step"].as_str().map(str::to_owned)).collect();
    assert_eq!(steps, ["sealed", "ordered", "cleared", "provisioning", "receipt"]);
    ran.json()["grant"].as_str().unwrap().to_owned()
}

/// Files below a directory that contain any of the needles.
pub fn files_with(root: &Path, needles: &[Vec<u8>]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(path) = open.pop() {
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            open.extend(std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if meta.is_file() {
            let bytes = std::fs::read(&path).unwrap_or_default();
            if needles.iter().any(|needle| bytes.windows(needle.len()).any(|window| window == needle.as_slice())) {
                found.push(path);
            }
        }
    }
    found
}

pub fn kill_role(up: &Up, role: &str) -> i64 {
    let pid = up.said["roles"][role]["pid"].as_i64().unwrap();
    assert!(pid > 0, "{role} has no process");
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    pid
}

pub fn wait_until_back(env: &Environment, role: &str, before: i64) {
    let pid = wait_for(&format!("{role} to come back"), || {
        let roles = env.run(&["--json", "status"]).objects().into_iter().find_map(|line| line.get("roles").cloned())?;
        let role = roles.get(role)?;
        (role["restarts"].as_i64()? >= 1 && role["down"].is_null()).then(|| role["pid"].as_i64())?
    });
    assert_ne!(pid, before);
}
