//! The whole path over real processes: up, market, request, SSH with OpenSSH's own client, log, end, restart, verify.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use coalition::RequestId;
use coalition_cli::{grants, home::Home, session::Session};
use coalition_compute::{MarketView, RequestStatus};
use coalition_log::{Entry, Fold};
use coalition_organism::Follower;
use common::{Environment, Ran, running::*};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

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

    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        interrupted_request_leaves_nothing(&env, signal);
    }

    // Requested under the requester's own identity, so that looking for it on the bridge's side means something.
    let grant = granted(&env, &["--as-member"]);
    let short = &grant[..8];
    let inside = env.run(&["ssh", short, "--", "hello; exit 7"]).expect_status(7);
    assert!(inside.out.contains("ello"), "{inside:?}");
    assert!(inside.err.contains("plain host: not attested"), "said before the first byte: {}", inside.err);
    let running = env.run(&["--json", "log", short]).expect_status(0).json();
    assert_eq!(running["grant"], grant.as_str());

    let before = running["granted"]["valid_to_ms"].as_u64().unwrap();
    let extended = env.run(&["--json", "extend", short, "--for", "30m"]).expect_status(0).json();
    assert_eq!(
        (&extended["step"], extended["valid_to_ms"].as_u64()),
        (&Value::from("extended"), Some(before + 1_800_000))
    );
    assert_eq!(
        env.run(&["--json", "extend", short, "--for", "99d"]).expect_status(5).json()["error"]["code"],
        "duration_too_long"
    );
    let longer = env.run(&["--json", "log", short]).expect_status(0).json();
    assert_eq!(
        (longer["granted"]["valid_to_ms"].as_u64(), longer["granted"]["extended_sec"].as_u64()),
        (Some(before + 1_800_000), Some(1_800))
    );
    // Where the machine has counters of its own, both sides' are committed and compared.
    if !inside.err.contains("process limits only") && !inside.err.contains("/proc") {
        let measured = env.run(&["--json", "log", short, "--measure"]).expect_status(0).json();
        assert_eq!(measured["granted"]["report"]["report"]["number"], 1, "{measured}");
    }

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

/// Ctrl-C, `kill` or a closed terminal while the committee looks for a provider: the request is withdrawn, and the market
/// says so.
fn interrupted_request_leaves_nothing(env: &Environment, signal: Signal) {
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
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
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
    let other = another_coalition().to_hex();
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

/// Everything a requester does with a machine, with the program as people call it.
#[test]
fn a_machine_is_used_to_its_end_and_nothing_opens_it_afterwards() {
    let _alone = alone();
    let env = Environment::new();
    let up = Up::start(&env, &[]);
    make_image(&env);
    let line = "echo out; echo err >&2; until [ -e go ]; do sleep 0.1; done; cat go; exit 3";
    let command: Vec<&str> = ["/bin/sh", "-c", line].iter().flat_map(|word| ["--command", word]).collect();
    let grant = granted(&env, &command);
    let short = &grant[..8];
    let said = |ran: &Ran| assert!(ran.err.contains("plain host: not attested"), "said first: {}", ran.err);

    // What it writes, and that it runs.
    let logs = wait_for("the workload's output", || {
        Some(env.run(&["logs", short]).expect_status(0)).filter(|logs| logs.err.contains("err"))
    });
    said(&logs);
    assert_eq!(logs.out, "out\n");
    assert!(logs.err.contains("the workload runs"), "{}", logs.err);

    // Files in and out, a directory too; the image has no file server.
    std::fs::create_dir_all(env.path().join("tree/deep")).unwrap();
    env.file("tree/deep/file", "deep");
    env.file("go", "gone\n");
    said(&env.run(&["scp", "-r", "tree", &format!("{short}:")]).expect_status(0));
    env.run(&["scp", "-rp", ":tree", "back"]).expect_status(0);
    assert_eq!(std::fs::read(env.path().join("back/deep/file")).unwrap(), b"deep");
    assert_ne!(env.run(&["scp", ":no/such", "."]).status, 0);
    assert_eq!(env.run(&["--json", "scp", "a", "b"]).expect_status(3).json()["error"]["code"], "bad_paths");

    // A port of the machine, here.
    env.run(&["ssh", short, "--", "httpd -p 8000 -h /root/tree/deep"]).expect_status(0);
    let port = free_port();
    let forward = format!("{port}:localhost:8000");
    let mut forwarding = env.command(&["forward", short, &forward]).stderr(Stdio::piped()).spawn().unwrap();
    let answer = wait_for("the forwarded port", || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        std::io::Write::write_all(&mut stream, b"GET /file HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).ok()?;
        (!answer.is_empty()).then_some(answer)
    });
    assert!(answer.ends_with("deep"), "{answer}");
    kill(Pid::from_raw(i32::try_from(forwarding.id()).unwrap()), Signal::SIGINT).unwrap();
    forwarding.wait().unwrap();
    let mut told = String::new();
    std::io::Read::read_to_string(&mut forwarding.stderr.take().unwrap(), &mut told).unwrap();
    assert!(told.contains("not attested") && told.contains(&format!("port {port}")), "{told}");

    // Followed to its end, and how it ended is known from then on.
    let follow = env.command(&["--json", "logs", "--follow", short]).stdout(Stdio::piped()).spawn().unwrap();
    env.run(&["scp", "./go", ":go"]).expect_status(0);
    let followed = Ran::of(&follow.wait_with_output().unwrap()).expect_status(0);
    assert_eq!(followed.json()["outcome"]["code"], 3, "{}", followed.out);
    assert!(followed.out.contains("gone"), "{}", followed.out);
    let mine = env.run(&["--json", "grants"]).expect_status(0).json();
    let exit = &mine["grants"][0]["workload_exit"]["outcome"]["code"];
    assert_eq!((exit, &mine["grants"][0]["key"]), (&Value::from(3), &Value::from("live")));
    let log = env.run(&["--json", "log", short]).expect_status(0).json();
    assert_eq!(log["workload_exit"]["outcome"]["code"], 3);

    // Ended: usage, money and exit status are said, and no key opens anything any more.
    let dir = env.home().join("grants").join(&grant);
    let key = std::fs::read(dir.join("id_ed25519")).unwrap();
    let access: Value = serde_json::from_slice(&std::fs::read(dir.join("grant.json")).unwrap()).unwrap();
    let ended = env.run(&["--json", "end", short, "--wait", "2m"]).expect_status(0).json();
    assert_eq!(ended["workload_exit"]["outcome"]["code"], 3, "{ended}");
    let usd = |field: &str| ended[field].as_str().unwrap_or_else(|| panic!("{ended}")).parse::<f64>().unwrap();
    assert!(usd("cost_usd") > 0.0 && usd("cost_usd") < usd("full_cost_usd"), "{ended}");
    assert!(ended["usage"]["net_bytes"].as_u64().unwrap() > 0, "{ended}");
    assert!(!dir.join("id_ed25519").exists(), "the dead key is deleted");
    let mine = env.run(&["--json", "grants"]).expect_status(0).json();
    assert_eq!((&mine["grants"][0]["stage"], &mine["grants"][0]["key"]), (&"ended".into(), &"dead".into()));
    for arguments in [vec!["ssh", short, "--", "true"], vec!["scp", ":x", "."], vec!["forward", short, "1:localhost:1"]]
    {
        let refused = env.run(&arguments).expect_status(5);
        assert!(refused.err.contains("key is dead"), "{}", refused.err);
    }
    let gone = env.run(&["--json", "logs", short]).expect_status(5).json();
    let message = gone["error"]["message"].as_str().unwrap();
    assert!(message.contains("exit status 3") && message.contains("gone"), "{message}");
    // One who kept a copy of the key finds nobody, and the host has no file of the grant.
    let kept = env.file("kept.key", key);
    std::fs::set_permissions(&kept, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let port = access["access"]["port"].to_string();
    let mut ssh = Command::new("ssh");
    ssh.args([
        "-F",
        "none",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "BatchMode=yes",
    ]);
    ssh.arg("-i").arg(&kept).args(["-p", &port, "root@127.0.0.1", "true"]).stdin(Stdio::null());
    assert_eq!(ssh.output().unwrap().status.code(), Some(255));
    let home = Home::locate(Some(&env.home())).unwrap();
    wait_for("the grant's files to go", || grants_on(&home.data("host")).is_empty().then_some(()));
    up.stop();
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Directories of grants below a host's directory.
fn grants_on(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.join("spec.json").exists() || path.join("state.json").exists() {
            found.push(path);
        } else if path.is_dir() {
            found.extend(grants_on(&path));
        }
    }
    found
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

#[test]
fn a_retired_market_takes_no_request_and_names_its_successor() {
    let _alone = alone();
    let env = Environment::new();
    let up = Up::start(&env, &[]);
    make_image(&env);
    let grant = granted(&env, &[]);
    env.run(&["end", "--wait", "2m"]).expect_status(0);
    env.run(&["log", &grant, "--evidence", "usage.evidence"]).expect_status(0);

    let next = another_coalition();
    let next_hex = env.file("next.hex", next.to_hex());
    let next_hex = next_hex.to_str().unwrap();
    let successor = next.module(coalition::ModuleKind::Compute).unwrap().id.to_string();
    let key = |member: u8| env.home().join(format!("keys/member-{member}.checkpoint.key")).display().to_string();
    let retire = |extra: &[&str]| {
        let arguments: Vec<&str> = [&["--json", "retire", "compute", "--successor", next_hex], extra].concat();
        env.run(&arguments)
    };
    // Members approve by themselves; two of four are too few, and a key of nobody is named.
    let approvals: Vec<PathBuf> = (1..=3)
        .map(|member| {
            let printed = retire(&["--key", &key(member), "--approve-only"]).expect_status(0).json();
            env.file(&format!("{member}.approval"), printed["approvals"][0].as_str().unwrap())
        })
        .collect();
    let pass = |count: usize| {
        approvals[..count].iter().flat_map(|file| ["--approval", file.to_str().unwrap()]).collect::<Vec<_>>()
    };
    let few = retire(&pass(2)).expect_status(3);
    assert_eq!(few.json()["error"]["code"], "not_approved");
    let stranger = env.home().join("keys/member-1.node.key").display().to_string();
    assert_eq!(retire(&["--key", &stranger]).expect_status(3).json()["error"]["code"], "wrong_key");

    let retired = retire(&pass(3)).expect_status(0).json();
    assert_eq!((retired["step"].as_str(), retired["successor"].as_str()), (Some("retired"), Some(successor.as_str())));
    let refused = request(&env, &[]).expect_status(5);
    assert_eq!(refused.json()["error"]["code"], "retired");
    assert!(refused.out.contains(&successor), "{}", refused.out);
    assert!(!refused.out.contains("sealed"), "nothing is sent to a market that has retired: {}", refused.out);
    assert!(env.run(&["market"]).expect_status(0).err.contains(&successor));
    assert_eq!(retire(&pass(3)).expect_status(5).json()["error"]["code"], "retired");
    let status = env.run(&["--json", "status"]).json();
    assert_eq!(status["network"]["retirement"]["successor"], successor.as_str());
    // What was proven stays proven.
    let hex = env.home().join("coalition.hex").display().to_string();
    env.run(&["verify", "usage.evidence", "--config", &hex]).expect_status(0);
    up.stop();
}

fn another_coalition() -> coalition::PublishedConfig {
    let elsewhere = Environment::new();
    let home = Home::locate(Some(&elsewhere.home())).unwrap();
    home.ensure().unwrap();
    let sale = coalition_cli::devnet::manifest::Sale {
        region: "local".parse().unwrap(),
        core_hour: "1".parse().unwrap(),
        gib_hour: "1".parse().unwrap(),
        cpu_millicores: 1,
        ram_mib: 1,
        attested: false,
    };
    coalition_cli::devnet::open_or_create(&home, "other", &sale).unwrap().config
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

/// `kill` and a closed terminal end the demo as Ctrl-C does.
#[test]
fn a_demo_that_is_told_to_stop_leaves_nothing() {
    let _alone = alone();
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let env = Environment::new();
        let temporary = env.path().join("tmp");
        std::fs::create_dir(&temporary).unwrap();
        let mut command = env.command(&["--json", "demo"]);
        command.env_remove("COALITION_HOME").env("TMPDIR", &temporary);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        lines.by_ref().find(|line| line.contains("\"ordered\"")).unwrap();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        let last: Value = serde_json::from_str(&lines.last().unwrap()).unwrap();
        assert_eq!((child.wait().unwrap().code(), &last["error"]["code"]), (Some(130), &Value::from("interrupted")));
        assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
    }
}
