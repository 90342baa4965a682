//! The whole path over real processes: up, market, request, SSH with OpenSSH's own client, log, end, restart, verify.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use coalition::RequestId;
use coalition_cli::{grants, home::Home, session::Session};
use coalition_compute::{MarketView, RequestStatus};
use coalition_log::{Entry, Fold};
use coalition_organism::Follower;
use common::{Environment, Ran};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// A coalition is eleven processes: one at a time is enough for a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
/// Longest a coalition may take to come up or to stop on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running `coalition up`.
struct Up {
    child: Child,
    said: Value,
}

impl Up {
    #[track_caller]
    fn start(env: &Environment, extra: &[&str]) -> Self {
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
                return Self { child, said: value };
            }
            seen.push(line);
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("it did not come up:\n{}\n{}", seen.join("\n"), logs(&env.home()));
    }

    fn pids(&self) -> Vec<i32> {
        let roles = self.said["roles"].as_object().unwrap();
        roles.values().map(|role| i32::try_from(role["pid"].as_i64().unwrap()).unwrap()).collect()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Ctrl-C, then nothing may be left.
    #[track_caller]
    fn stop(mut self) {
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

fn is_alive(pid: i32) -> bool {
    // A process that ended but was not waited for by its new parent yet counts as gone.
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])))
}

/// Asks again until there is an answer; the deadline is for a machine that is far too busy.
#[track_caller]
fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
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
fn logs(home: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(home.join("logs")) else { return String::new() };
    let tail = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("--- {}\n{}\n", path.display(), lines[lines.len().saturating_sub(12)..].join("\n"))
    };
    entries.flatten().map(|entry| tail(entry.path())).collect()
}

fn make_image(env: &Environment) {
    env.run(&["image", "example", "hello.tar"]).expect_status(0);
}

const SMALL: [&str; 10] =
    ["--image", "hello.tar", "--cpu", "250m", "--ram", "64MiB", "--region", "local", "--max-rate", "0.1"];

fn request(env: &Environment, extra: &[&str]) -> Ran {
    let mut arguments = vec!["--json", "request"];
    arguments.extend(SMALL);
    arguments.extend(["--for", "10m"]);
    arguments.extend(extra);
    env.run(&arguments)
}

#[track_caller]
fn granted(env: &Environment, extra: &[&str]) -> String {
    let ran = request(env, extra);
    assert_eq!(ran.status, 0, "{}\n{}\n{}", ran.out, ran.err, logs(&env.home()));
    let steps: Vec<String> = ran.objects().iter().filter_map(|step| step["step"].as_str().map(str::to_owned)).collect();
    assert_eq!(steps, ["sealed", "ordered", "cleared", "provisioning", "receipt"]);
    ran.json()["grant"].as_str().unwrap().to_owned()
}

/// Files below a directory that contain any of the needles.
fn files_with(root: &Path, needles: &[Vec<u8>]) -> Vec<PathBuf> {
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

#[test]
fn a_request_becomes_a_machine_and_everything_about_it_can_be_proven() {
    let _alone = alone();
    let env = Environment::new();
    let up = Up::start(&env, &[]);
    make_image(&env);

    let second = env.run(&["up"]).expect_status(7);
    assert!(second.err.contains(&up.child.id().to_string()) && second.err.contains("--home"), "{}", second.err);

    let market = env.run(&["--json", "market"]).expect_status(0).json();
    assert_eq!(market["offers"][0]["regions"][0], "local");
    assert_eq!(market["offers"][0]["posture"], "not attested");
    assert_eq!(market["offers"][0]["stale"], false);
    env.run(&["status"]).expect_status(0);

    // What nobody can serve is answered before anything is sent.
    for (extra, code) in [
        (vec!["--region", "mars"], "region_not_served"),
        (vec!["--cpu", "4000"], "too_large"),
        (vec!["--deadline", "2001-01-01T00:00:00Z"], "deadline_passed"),
        (vec!["--for", "99d"], "duration_too_long"),
    ] {
        let mut arguments = vec!["--json", "request", "--image", "hello.tar", "--max-rate", "0.1"];
        if !extra.contains(&"--for") {
            arguments.extend(["--for", "10m"]);
        }
        arguments.extend(&extra);
        assert_eq!(env.run(&arguments).json()["error"]["code"], code, "{extra:?}");
    }
    let cheap =
        env.run(&["request", "--image", "hello.tar", "--for", "10m", "--max-rate", "0.000001"]).expect_status(5);
    assert!(cheap.err.contains("cheapest offer") && cheap.err.contains("--max-rate"), "{}", cheap.err);
    assert_eq!(env.run(&["--json", "grants"]).json()["grants"].as_array().unwrap().len(), 0);

    interrupted_request_leaves_nothing(&env);

    // Requested under the requester's own identity, so that looking for it on the bridge's side means something.
    let grant = granted(&env, &["--as-member"]);
    let short = &grant[..8];
    let inside = env.run(&["ssh", short, "--", "hello; exit 7"]).expect_status(7);
    assert!(inside.out.contains("ello"), "{inside:?}");
    let running = env.run(&["--json", "log", short]).expect_status(0).json();
    assert_eq!(running["grant"], grant.as_str());

    let ended = env.run(&["--json", "end", short, "--wait", "2m"]).expect_status(0).json();
    assert_eq!(ended["step"], "ended", "{ended}");
    env.run(&["ssh", short, "--", "true"]).expect_status(5);
    let log = env.run(&["--json", "log", short, "--evidence", "usage.evidence"]).expect_status(0).json();
    assert!(!log["logs"].as_array().unwrap().is_empty(), "{log}");
    let pointer = log["newest"].as_str().unwrap().to_owned();
    let proven = env.run(&["--json", "verify", &pointer]).expect_status(0).json();
    assert_eq!((&proven["proven"], &proven["entry"]["kind"]), (&Value::Bool(true), &Value::from("compute.log")));

    up.stop();
    env.run(&["market"]).expect_status(4);
    verify_offline(&env, &pointer);
    nobody_wrote_down_the_requester(&env);

    // Everything of before is there again.
    let up = Up::start(&env, &[]);
    let again = env.run(&["--json", "log", &grant]).expect_status(0).json();
    assert_eq!((&again["logs"], &again["granted"]), (&log["logs"], &log["granted"]));
    let next = granted(&env, &[]);
    assert_eq!(env.run(&["--json", "grants"]).json()["grants"][0]["grant"], next.as_str());
    // Stopping ends what still runs, and says so in the log.
    up.stop();
    let up = Up::start(&env, &[]);
    let drained = env.run(&["--json", "log", &next, "--wait", "1m"]).expect_status(0).json();
    assert!(drained["granted"]["stage"].as_str().unwrap().starts_with("ended"), "{drained}");
    up.stop();
}

/// Ctrl-C while the committee looks for a provider: the request is withdrawn, and the market says so.
fn interrupted_request_leaves_nothing(env: &Environment) {
    let arguments = [
        "--json",
        "request",
        "--image",
        "hello.tar",
        "--region",
        "mars",
        "--for",
        "10m",
        "--max-rate",
        "1",
        "--wait",
        "10m",
        "--anyway",
    ];
    let mut child = env.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let ordered = lines.by_ref().find(|line| line.contains("\"ordered\"")).unwrap();
    let request = serde_json::from_str::<Value>(&ordered).unwrap()["request"].as_str().unwrap().to_owned();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let last: Value = serde_json::from_str(&lines.last().unwrap()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(last["error"]["code"], "interrupted");
    assert!(last["error"]["hint"].as_str().unwrap().contains("withdrawn"), "{last}");
    let market = env.run(&["--json", "market"]).expect_status(0).json();
    assert_eq!(market["open_requests"], 0);
    let mine = env.run(&["--json", "grants"]).expect_status(0).json();
    assert_eq!(
        (&mine["grants"][0]["grant"], &mine["grants"][0]["stage"]),
        (&Value::from(request), &Value::from("withdrawn"))
    );
}

/// With every node stopped: the hex config alone accepts the proof, and nothing else does.
fn verify_offline(env: &Environment, pointer: &str) {
    let hex = std::fs::read_to_string(env.home().join("coalition.hex")).unwrap().trim().to_owned();
    let elsewhere = Environment::new();
    let evidence = std::fs::read(env.path().join("usage.evidence")).unwrap();
    elsewhere.file("usage.evidence", &evidence);
    let proven = elsewhere.run(&["--json", "verify", "usage.evidence", "--config", &hex]).expect_status(0).json();
    assert_eq!(proven["pointer"], pointer);
    assert!(proven["signed_by"].as_array().unwrap().len() >= 3);
    let fingerprint = proven["coalition"]["fingerprint"].as_str().unwrap().to_owned();
    elsewhere.run(&["verify", "usage.evidence", "--config", &hex, "--expect", &fingerprint]).expect_status(0);
    let other = "00".repeat(32);
    elsewhere.run(&["verify", "usage.evidence", "--config", &hex, "--expect", &other]).expect_status(6);
    elsewhere.run(&["id", &hex, "--expect", &fingerprint]).expect_status(0);

    // Every byte through the library, a sample through the program.
    let config = coalition::PublishedConfig::from_hex(&hex).unwrap();
    coalition_cli::commands::verify::check(&evidence, &config).unwrap();
    for at in 0..evidence.len() {
        for bit in [1, 0x80] {
            let mut changed = evidence.clone();
            changed[at] ^= bit;
            let rejected = coalition_cli::commands::verify::check(&changed, &config);
            assert_eq!(rejected.map(|_| ()).unwrap_err().status(), 6, "byte {at} changed by {bit:#x} is accepted");
        }
    }
    for at in (0..evidence.len()).step_by(evidence.len() / 5) {
        let mut changed = evidence.clone();
        changed[at] ^= 1;
        elsewhere.file("changed.evidence", &changed);
        let ran = elsewhere.run(&["verify", "changed.evidence", "--config", &hex]).expect_status(6);
        assert!(ran.err.contains("because:") || ran.err.contains("organism"), "{}", ran.err);
    }
    let other_coalition = Environment::new();
    let dir = Home::locate(Some(&other_coalition.home())).unwrap();
    let sale = coalition_cli::devnet::manifest::Sale {
        region: "local".parse().unwrap(),
        core_hour: "1".parse().unwrap(),
        gib_hour: "1".parse().unwrap(),
        cpu_millicores: 1,
        ram_mib: 1,
    };
    dir.ensure().unwrap();
    let other = coalition_cli::devnet::open_or_create(&dir, "other", &sale).unwrap().config.to_hex();
    elsewhere.run(&["verify", "usage.evidence", "--config", &other]).expect_status(6);
}

/// The bridge's disk, its logs and those of the host know nothing of who asked.
fn nobody_wrote_down_the_requester(env: &Environment) {
    let home = Home::locate(Some(&env.home())).unwrap();
    let member = grants::own_identity(&home).unwrap();
    let key = coalition_universe::NodeKey::load(&home.identity()).unwrap();
    let public = key.peer_id();
    let needles = vec![
        member.to_string().into_bytes(),
        member.as_bytes().to_vec(),
        public.to_string().into_bytes(),
        public.as_bytes().to_vec(),
    ];
    for place in [home.data("bridge"), home.data("host"), home.log("bridge"), home.log("host")] {
        assert_eq!(files_with(&place, &needles), Vec::<PathBuf>::new());
    }
    // The search would find it: the market's public log carries the id the requester chose to show.
    assert!(!files_with(&home.data("member-1"), &needles).is_empty(), "the search finds nothing anywhere");
}

#[test]
fn a_killed_role_comes_back_and_a_killed_supervisor_takes_all_with_it() {
    let _alone = alone();
    let env = Environment::new();
    let up = Up::start(&env, &[]);
    make_image(&env);
    let member = kill_role(&up, "member-2");
    // The market goes on without it, at once.
    granted(&env, &[]);
    wait_until_back(&env, "member-2", member);

    // A grant outlives its bridge, and the next bridge takes it up.
    let bridge = kill_role(&up, "bridge");
    env.run(&["ssh", "--", "true"]).expect_status(0);
    wait_until_back(&env, "bridge", bridge);
    env.run(&["ssh", "--", "true"]).expect_status(0);
    // The record that it serves is written by whichever bridge comes to it.
    wait_for("the grant to be on record as running", || {
        let log = env.run(&["--json", "log"]).expect_status(0).json();
        (log["granted"]["stage"] == "running").then_some(())
    });

    let status = env.run(&["--json", "status"]).expect_status(0).json();
    let pids: Vec<i32> = status["roles"]
        .as_object()
        .unwrap()
        .values()
        .map(|role| i32::try_from(role["pid"].as_i64().unwrap()).unwrap())
        .collect();
    up.signal(Signal::SIGKILL);
    for pid in pids {
        wait_for("a role to follow its supervisor", || (!is_alive(pid)).then_some(()));
    }
    drop(up);
    // As after any crash, the grant runs on and is taken up again.
    let up = Up::start(&env, &[]);
    env.run(&["status"]).expect_status(0);
    env.run(&["ssh", "--", "true"]).expect_status(0);
    env.run(&["end", "--wait", "2m"]).expect_status(0);
    up.stop();
}

fn kill_role(up: &Up, role: &str) -> i64 {
    let pid = up.said["roles"][role]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    pid
}

fn wait_until_back(env: &Environment, role: &str, before: i64) {
    let pid = wait_for(&format!("{role} to come back"), || {
        let roles = env.run(&["--json", "status"]).objects().into_iter().find_map(|line| line.get("roles").cloned())?;
        let role = roles.get(role)?;
        (role["restarts"].as_i64()? >= 1 && role["down"].is_null()).then(|| role["pid"].as_i64())?
    });
    assert_ne!(pid, before);
}

/// Folds the market and checks after every entry that no offer carries more than it has.
struct Audit {
    view: MarketView,
    violations: Vec<String>,
}

impl Fold for Audit {
    fn fold(&mut self, entry: &Entry) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.view.apply(entry)?;
        let state = self.view.state();
        for (id, known) in state.providers() {
            for offer in known.card.iter().flat_map(|record| &record.card.offers) {
                if !state.held(id, &offer.name).fits(&offer.capabilities) {
                    self.violations.push(format!("entry {}: {} carries more than it has", entry.index, offer.name));
                }
            }
        }
        Ok(())
    }
}

/// Requests of each of two requesters, all at once.
const EACH: usize = 20;

#[test]
fn many_requests_at_once_end_in_exactly_one_outcome_each() {
    let _alone = alone();
    let env = Environment::new();
    // Room for four of them at a time.
    let up = Up::start(&env, &["--cpu", "1", "--ram", "512MiB"]);
    make_image(&env);
    let outcomes: Arc<Mutex<BTreeMap<i32, usize>>> = Arc::default();
    let ids: Arc<Mutex<Vec<String>>> = Arc::default();
    std::thread::scope(|scope| {
        for requester in ["ada", "bob"] {
            // Two requesters share the coalition, not their grants.
            let home = env.path().join(requester);
            share_coalition(&env, &home);
            for _ in 0..EACH {
                let (outcomes, ids, env) = (Arc::clone(&outcomes), Arc::clone(&ids), &env);
                let home = home.clone();
                scope.spawn(move || {
                    let mut command: Command = env.command(&["--json", "--home", home.to_str().unwrap(), "request"]);
                    command.args(SMALL).args(["--for", "3s", "--wait", "20s"]).args(["--provision-wait", "1m"]);
                    let ran = Ran::of(&command.output().unwrap());
                    let id = ran.objects().iter().find_map(|step| step["request"].as_str().map(str::to_owned));
                    ids.lock().unwrap().extend(id);
                    assert!([0, 5, 8].contains(&ran.status), "status {}: {}{}", ran.status, ran.out, ran.err);
                    *outcomes.lock().unwrap().entry(ran.status).or_default() += 1;
                });
            }
        }
    });
    let ids = std::mem::take(&mut *ids.lock().unwrap());
    assert_eq!(ids.len(), 2 * EACH, "{:?}", outcomes.lock().unwrap());
    assert!(outcomes.lock().unwrap().get(&0).is_some_and(|count| *count >= 4), "{:?}", outcomes.lock().unwrap());
    let home = Home::locate(Some(&env.home())).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let session = Session::open(&home).await.unwrap();
        let view = MarketView::new(session.compute.id, session.compute.params.clone());
        let audit = Follower::spawn(session.market_organism().unwrap(), Audit { view, violations: Vec::new() });
        audit.caught_up(PATIENCE).await.unwrap();
        let settled = |audit: &Audit| (audit.view.state().open_count() == 0).then_some(());
        audit.wait_for(PATIENCE, settled).await.unwrap();
        audit.read(|audit| {
            assert_eq!(audit.violations, Vec::<String>::new());
            for id in &ids {
                let id = RequestId(coalition::parse_id(id).unwrap());
                let status = audit.view.request_status(&id);
                assert!(matches!(status, RequestStatus::Granted(_) | RequestStatus::Ended(_)), "{id}: {status:?}");
            }
        });
        drop(audit);
        session.close().await;
    });
    up.stop();
}

/// Gives another home the client's half of a coalition: how to reach it and what it is.
fn share_coalition(env: &Environment, home: &Path) {
    let shared = Home::locate(Some(home)).unwrap();
    coalition_cli::home::private_dir(home).unwrap();
    for name in ["universe.toml", "coalition.hex"] {
        let bytes = std::fs::read(env.home().join(name)).unwrap();
        coalition_cli::home::private_write(&home.join(name), &bytes).unwrap();
    }
    shared.ensure().unwrap();
}

#[test]
fn the_demo_shows_everything_and_leaves_nothing() {
    let _alone = alone();
    let env = Environment::new();
    let temporary = env.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let ran = Ran::of(&env.command(&["demo"]).env_remove("COALITION_HOME").env("TMPDIR", &temporary).output().unwrap());
    let ran = ran.expect_status(0);
    for step in
        ["sealed", "ordered", "cleared", "provisioning", "receipt", "ssh", "ended", "verify", "tampered", "done"]
    {
        assert!(ran.err.lines().any(|line| line.starts_with(step)), "no step {step}:\n{}", ran.err);
    }
    assert!(!ran.err.contains('\x1b'), "piped output has no colour");
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
    assert!(!env.path().join(".coalition").exists());
}

#[test]
fn damaged_files_are_named_and_left_alone() {
    let _alone = alone();
    let env = Environment::new();
    let up = Up::start(&env, &[]);
    up.stop();
    let home = env.home();
    let share = home.join("keys/unseal-2.share");
    let good = std::fs::read(&share).unwrap();
    let mut bad = good.clone();
    bad[40] ^= 1;
    std::fs::write(&share, bad).unwrap();
    let ran = env.run(&["up"]);
    assert_ne!(ran.status, 0);
    assert!(ran.err.contains("unseal-2"), "{}", ran.err);
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
    std::fs::write(&share, good).unwrap();

    let journal = home.join("data/member-1/logs/compute/pending.log");
    let good = std::fs::read(&journal).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&journal, &bad).unwrap();
    let ran = env.run(&["up"]);
    assert_ne!(ran.status, 0);
    assert!(ran.err.contains("member-1") && ran.err.contains("pending.log is damaged"), "{}", ran.err);
    assert_eq!(std::fs::read(&journal).unwrap(), bad, "a damaged log is not touched");
    std::fs::write(&journal, good).unwrap();
    Up::start(&env, &[]).stop();

    std::fs::write(home.join("coalition.hex"), "00").unwrap();
    let ran = env.run(&["up"]).expect_status(3);
    assert!(ran.err.contains("coalition.hex"), "{}", ran.err);
}
