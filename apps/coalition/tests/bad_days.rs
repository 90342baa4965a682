//! Days on which something breaks: a full disk, damaged files, members that do not start, an unseal committee that is killed
//! at the wrong moment. And what the operator's own page says about requesters: nothing.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use coalition::RequestId;
use coalition_cli::{
    devnet,
    grants::{self, own_identity},
    home::{Home, private_dir},
    image::read_facts,
    request::serve::{ImageService, Served},
    session::Session,
};
use coalition_compute::{Command, ComputeRequest, Signed, request_id};
use coalition_organism::random_write_id;
use coalition_shuffle::{PendingRequest, WorkloadSpec};
use coalition_universe::NodeKey;
use common::{Environment, running::*};
use ed25519_dalek::SigningKey;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rand_core::OsRng;
use serde_json::Value;

/// Room for everything a small coalition writes, beside the program it puts on its host.
const DISK_MIB: u64 = 160;
const MEMBERS: [&str; 4] = ["member-1", "member-2", "member-3", "member-4"];
const UNSEAL: [&str; 3] = ["unseal-1", "unseal-2", "unseal-3"];

/// A disk of its own below a directory; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it, or says why not.
    fn mount(at: &Path) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a small disk needs root to be mounted");
            return None;
        }
        private_dir(at).unwrap();
        let program_mib = std::fs::metadata(common::program()).unwrap().len() >> 20;
        let options = format!("size={}m,mode=0700", DISK_MIB + program_mib);
        match mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())) {
            Ok(()) => Some(Self(at.to_path_buf())),
            Err(error) => {
                eprintln!("skipped: no small disk can be mounted here: {error}");
                None
            }
        }
    }

    /// Leaves no byte of room, now or while what this returns lives: what others remove is filled up at once.
    fn fill(&self) -> Ballast {
        let path = self.0.join("ballast");
        let mut ballast = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        fill_up(&mut ballast);
        let (stop, stopped) = mpsc::channel::<()>();
        let keeper = std::thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(5)) == Err(mpsc::RecvTimeoutError::Timeout) {
                fill_up(&mut ballast);
            }
        });
        Ballast { path, stop, keeper }
    }
}

/// What fills a disk.
struct Ballast {
    path: PathBuf,
    stop: mpsc::Sender<()>,
    keeper: JoinHandle<()>,
}

impl Ballast {
    /// Gives the room back.
    fn remove(self) {
        drop(self.stop);
        self.keeper.join().unwrap();
        std::fs::remove_file(&self.path).unwrap();
    }
}

fn fill_up(ballast: &mut std::fs::File) {
    let zeros = vec![0; 1 << 20];
    let mut size = zeros.len();
    while size > 0 {
        match ballast.write_all(&zeros[..size]) {
            Ok(()) => (),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
                size /= 2;
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Waits until each of these roles is told to have ended for want of room, in words that name the disk and what to do. A role
/// that is started again while the disk is full ends again, so the first of its ends need not be the one that says so.
fn wait_told_full(up: &Up, env: &Environment, roles: &[&str]) {
    let disk = env.home().display().to_string();
    let mut waiting: BTreeSet<&str> = roles.iter().copied().collect();
    up.wait_told(&format!("a full disk by each of {roles:?}"), |told| {
        let (role, how) = (told["role"].as_str()?, told["how"].as_str()?);
        assert!(!how.contains("panicked") && !how.contains("status 101"), "{role}: {how}");
        if ["No space left on device", "the disk is full", "free some space", &disk]
            .iter()
            .all(|said| how.contains(said))
        {
            waiting.remove(role);
        }
        waiting.is_empty().then_some(())
    });
}

/// Everything below a directory that is called like something unfinished.
fn unfinished(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else if [".partial", ".tmp", ".new", ".part"]
                .iter()
                .any(|end| entry.path().to_string_lossy().ends_with(end))
            {
                found.push(entry.path());
            }
        }
    }
    found
}

/// Processes whose command line names this directory.
fn processes_below(dir: &Path) -> Vec<String> {
    let dir = dir.display().to_string();
    let command = |entry: std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(&dir).then_some(line)
    };
    std::fs::read_dir("/proc").unwrap().filter_map(|entry| command(entry.unwrap())).collect()
}

#[test]
fn a_full_disk_stops_who_writes_and_loses_nothing_acknowledged() {
    let _alone = alone();
    let env = Environment::new();
    let Some(disk) = SmallDisk::mount(&env.home()) else { return };
    let up = Up::start(&env, &[]);
    make_image(&env);
    let long = granted(&env, &[]);
    let short = granted(&env, &["--for", "12s"]);
    let before = env.run(&["--json", "log", &long]).expect_status(0).json();
    let ordered = before["granted"].clone();
    let ballast = disk.fill();

    // Members write on every tick of the clock, so they stop at once. A bridge goes on until it has something to write.
    wait_told_full(&up, &env, &MEMBERS);
    let refused = env.run(&["--json", "request", "--image", "hello.tar", "--for", "1m", "--max-rate", "0.1"]);
    assert_ne!(refused.status, 0, "{refused:?}");
    assert!(refused.objects().iter().all(|line| line["step"] != "ordered"), "{refused:?}");
    // What nobody can write down nobody acknowledges, and an unseal member that cannot stops as well.
    let home = Home::locate(Some(&env.home())).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let submitted = runtime.block_on(async {
        let session = Session::open(&home).await.unwrap();
        let (_, pending) = sealed(&session, &env, &NodeKey::generate());
        let submitted = session.shuffle().unwrap().submit_cell(pending.cell(), Duration::from_secs(5)).await;
        session.close().await;
        submitted
    });
    assert!(submitted.is_err(), "{submitted:?}");
    wait_told_full(&up, &env, &UNSEAL);
    // It stops as cleanly as on any day.
    up.stop();

    ballast.remove();
    // What a host could not clean away for want of room is an orphan of the next bridge; it need not be a patient one here.
    let boot = home.roles().join("bridge.toml");
    let text = std::fs::read_to_string(&boot).unwrap();
    std::fs::write(&boot, text.replace("[provider]\n", "[provider]\norphan_grace_sec = 2\n")).unwrap();
    let up = Up::start(&env, &[]);
    let after = env.run(&["--json", "log", &long]).expect_status(0).json();
    assert_eq!(after["granted"]["grant"], ordered["grant"], "{after}");
    // Stopping ended what ran; what could not be logged then is logged now.
    for grant in [&long, &short] {
        wait_for("the final log", || {
            let log = env.run(&["--json", "log", grant]).expect_status(0).json();
            log["granted"]["stage"].as_str()?.starts_with("ended").then_some(())
        });
    }
    for grant in [&long, &short] {
        let log = env.run(&["--json", "log", grant, "--evidence", "usage.evidence"]).expect_status(0).json();
        assert!(!log["logs"].as_array().unwrap().is_empty(), "{log}");
        let hex = env.home().join("coalition.hex").display().to_string();
        env.run(&["verify", "usage.evidence", "--config", &hex]).expect_status(0);
    }
    wait_for("the host to be clean", || unfinished(&home.data("host")).is_empty().then_some(()));
    // Nothing acknowledged on the way is missing, and the market goes on.
    granted(&env, &["--for", "1m"]);
    up.stop();
    assert_eq!(processes_below(&env.home()), Vec::<String>::new());
    assert_eq!(unfinished(&env.home()), Vec::<PathBuf>::new());
}

#[test]
fn damaged_files_are_named_and_left_alone() {
    let _alone = alone();
    let env = Environment::new();
    Up::start(&env, &[]).stop();
    let damage = |name: &str, at: fn(usize) -> usize| {
        let path = env.home().join(name);
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[at(good.len())] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        (path, good, bad)
    };
    // One member of each committee is done without; it is said which, and why.
    let (share, good_share, _) = damage("keys/unseal-2.share", |_| 40);
    let (journal, good_journal, bad_journal) = damage("data/member-1/logs/compute/pending.log", |length| length / 2);
    let up = Up::start(&env, &[]);
    for (role, why) in [("member-1", "pending.log is damaged"), ("unseal-2", "unseal-2.share")] {
        let crashed = up.told.iter().find(|told| told["event"] == "crashed" && told["role"] == role);
        let how = crashed.unwrap_or_else(|| panic!("{:#?}", up.told))["how"].as_str().unwrap();
        assert!(how.contains(why) && !how.contains("panicked"), "{how}");
    }
    for role in ["member-1", "unseal-2"] {
        assert!(up.said["roles"][role]["down"].is_string(), "{}", up.said);
    }
    make_image(&env);
    granted(&env, &["--for", "1m"]);
    let status = env.run(&["status"]).expect_status(4);
    assert!(status.err.contains("down: member-1, unseal-2"), "{}", status.err);
    assert_eq!(std::fs::read(&journal).unwrap(), bad_journal, "a damaged log is not touched");
    // They are tried again and again, so mending the files is all there is to do.
    std::fs::write(&share, good_share).unwrap();
    std::fs::write(&journal, &good_journal).unwrap();
    let mut back = BTreeSet::from(["member-1", "unseal-2"]);
    up.wait_told("both being back", |told| {
        if told["event"] == "ready" {
            back.remove(told["role"].as_str()?);
        }
        back.is_empty().then_some(())
    });
    // A member that is still catching up may be the one that is asked.
    wait_for("a healthy coalition", || (env.run(&["status"]).status == 0).then_some(()));
    up.stop();

    // Without a quorum nothing starts, and everybody who failed is named.
    let (first, good_first, _) = damage("data/member-1/logs/compute/pending.log", |length| length / 2);
    let (third, good_third, _) = damage("data/member-3/logs/compute/pending.log", |length| length / 2);
    let ran = env.run(&["up"]);
    assert_ne!(ran.status, 0);
    for said in ["member-1", "member-3", "pending.log is damaged", "needs 3 of its 4"] {
        assert!(ran.err.contains(said), "{said:?} is not in {}", ran.err);
    }
    std::fs::write(first, good_first).unwrap();
    std::fs::write(third, good_third).unwrap();
    Up::start(&env, &[]).stop();

    std::fs::write(env.home().join("coalition.hex"), "00").unwrap();
    let ran = env.run(&["up"]).expect_status(3);
    assert!(ran.err.contains("coalition.hex"), "{}", ran.err);
}

#[test]
fn a_waiting_request_outlives_its_whole_unseal_committee() {
    let _alone = alone();
    let env = Environment::new();
    // Room for one of them at a time.
    let up = Up::start(&env, &["--cpu", "250m", "--ram", "64MiB"]);
    make_image(&env);
    let first = granted(&env, &[]);
    let mut waiting = env.command(&["--json", "request"]);
    waiting.args(SMALL).args(["--for", "1m", "--wait", "5m"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut waiting = waiting.spawn().unwrap();
    let mut lines = BufReader::new(waiting.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines.by_ref().find(|line| line.contains("\"ordered\"")).unwrap();
    let before = UNSEAL.map(|role| kill_role(&up, role));
    for (role, pid) in UNSEAL.into_iter().zip(before) {
        wait_until_back(&env, role, pid);
    }
    env.run(&["end", &first, "--wait", "2m"]).expect_status(0);
    let last: Value = serde_json::from_str(&lines.last().unwrap()).unwrap();
    assert!(waiting.wait().unwrap().success(), "{last}\n{}", logs(&env.home()));
    let second = last["grant"].as_str().unwrap();
    env.run(&["ssh", second, "--", "true"]).expect_status(0);
    up.stop();
}

/// A cell for the example image, made by this process, which so knows every identity in it.
fn sealed(session: &Session, env: &Environment, key: &NodeKey) -> (RequestId, PendingRequest) {
    let path = env.path().join("hello.tar");
    let facts = read_facts(&path, u64::MAX).unwrap();
    let workload = WorkloadSpec {
        image_hash: facts.hash,
        image_size_bytes: facts.size_bytes,
        requested_region: Some("local".into()),
        image_pointer: session.node.address().to_string().into_bytes(),
        cpu_millicores: 250,
        ram_mib: 64,
        disk_mib: 0,
        command: vec![],
        env: vec![],
        ssh_authorized_key: None,
    };
    let image = ImageService::open(&path, &facts.outline).unwrap();
    session.node.serve(Arc::new(Served(Arc::new(image))));
    let id = request_id(&session.compute.id, key.peer_id().as_bytes(), &NONCE);
    let shuffle = session.shuffle().unwrap();
    let peer = session.rotating_peer();
    (id, PendingRequest::build(&workload, peer, shuffle.params(), shuffle.scope(), id, &mut OsRng).unwrap())
}

const NONCE: [u8; 16] = [7; 16];

/// Requests a machine under the requester's own identity and waits for the receipt. Answers the grant, and everything that
/// would tell who asked.
async fn request_here(home: &Home, env: &Environment) -> (RequestId, NodeKey, Vec<Vec<u8>>) {
    let (session, key) = (Session::open(home).await.unwrap(), NodeKey::generate());
    let (id, pending) = sealed(&session, env, &key);
    let member = own_identity(home).unwrap();
    let facts = read_facts(&env.path().join("hello.tar"), u64::MAX).unwrap();
    let statement = ComputeRequest {
        request_id: id,
        nonce: NONCE,
        requester: member,
        workload: facts.hash,
        pin: Some(facts.hash),
        image_hash: facts.hash,
        cpu_millicores: 250,
        ram_mib: 64,
        duration_sec: 600,
        region: Some("local".parse().unwrap()),
        tdx_required: false,
        pinned_mrtd: None,
        max_rate: "1".parse().unwrap(),
        settlement: coalition::ZERO_ID,
        deadline: coalition::AlmanacTick(session.now().await.unwrap().tick + 60),
        bearer_pointer: pending.cell_id().0,
    };
    let shuffle = session.shuffle().unwrap();
    shuffle.submit_cell(pending.cell(), Duration::from_secs(40)).await.unwrap();
    let signed = Signed::sign(statement, &SigningKey::from_bytes(key.expose()), &session.compute.id).unwrap();
    let command = Command::SubmitRequest(signed).to_bytes();
    session.market_organism().unwrap().write(random_write_id(), command, PATIENCE).await.unwrap();
    let receipt = shuffle.fetch_receipt(&pending, PATIENCE).await.unwrap();
    assert_eq!(receipt.grant_id, id);
    let identity = NodeKey::load(&home.identity()).unwrap().peer_id();
    let rotating = session.node.peer_id();
    let mut marks = vec![member.to_string().into_bytes(), member.as_bytes().to_vec()];
    for peer in [identity, rotating] {
        // Whole, raw, and the first digits as network libraries abbreviate them.
        marks.extend([
            peer.to_string().into_bytes(),
            peer.as_bytes().to_vec(),
            peer.to_string().into_bytes()[..10].to_vec(),
        ]);
    }
    session.close().await;
    (id, key, marks)
}

/// One page of the bridge's dashboard, headers included.
fn fetch(port: u16, path: &str, token: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
    .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    answer
}

fn holds(bytes: &[u8], mark: &[u8]) -> bool {
    bytes.windows(mark.len()).any(|window| window == mark)
}

#[test]
fn the_bridges_own_page_says_nothing_about_who_asks() {
    let _alone = alone();
    let env = Environment::new();
    let home = Home::locate(Some(&env.home())).unwrap();
    home.ensure().unwrap();
    let sale = devnet::manifest::Sale {
        region: "local".parse().unwrap(),
        core_hour: "0.02".parse().unwrap(),
        gib_hour: "0.004".parse().unwrap(),
        cpu_millicores: 1_000,
        ram_mib: 512,
        attested: false,
    };
    devnet::open_or_create(&home, "dev", &sale).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let boot = home.roles().join("bridge.toml");
    let text = std::fs::read_to_string(&boot).unwrap();
    std::fs::write(&boot, format!("{text}\n[dashboard]\nport = {port}\ntoken_file = \"../keys/dashboard.token\"\n"))
        .unwrap();
    let up = Up::start(&env, &[]);
    make_image(&env);
    let token = std::fs::read_to_string(home.keys().join("dashboard.token")).unwrap().trim().to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (grant, key, marks) = runtime.block_on(request_here(&home, &env));
    let status = || -> Value {
        let answer = fetch(port, "/api/status", &token);
        let text = String::from_utf8(answer).unwrap();
        serde_json::from_str(&text[text.find('{').unwrap()..=text.rfind('}').unwrap()]).unwrap()
    };
    let nothing_said = |when: &str| {
        for path in ["/", "/api/status", "/metrics"] {
            let page = fetch(port, path, &token);
            let found = marks.iter().find(|mark| holds(&page, mark));
            assert!(found.is_none(), "{path} names the requester {when}:\n{}", String::from_utf8_lossy(&page));
        }
    };
    wait_for("the page to show the grant", || (status()["grants"]["replied"] == 1).then_some(()));
    nothing_said("while its grant runs");
    // The search finds what is there: the provider's own id on the page, and the requester's where it chose to show it.
    let provider = status()["provider"].as_str().unwrap().to_owned();
    assert!(holds(&fetch(port, "/api/status", &token), provider.as_bytes()));
    assert!(!files_with(&home.data("member-1"), &marks[..2]).is_empty(), "the search finds nothing anywhere");

    runtime.block_on(async {
        let session = Session::open(&home).await.unwrap();
        let end = coalition_compute::EndGrant { grant_id: grant };
        let signed = Signed::sign(end, &SigningKey::from_bytes(key.expose()), &session.compute.id).unwrap();
        let command = Command::EndGrant(signed).to_bytes();
        session.market_organism().unwrap().write(random_write_id(), command, PATIENCE).await.unwrap();
        session.close().await;
    });
    wait_for("the page to show its end", || (status()["grants"]["closed"] == 1).then_some(()));
    nothing_said("after its grant ended");
    up.stop();
    for place in [home.data("bridge"), home.data("host"), home.log("bridge"), home.log("host")] {
        assert_eq!(files_with(&place, &marks), Vec::<PathBuf>::new());
    }
    assert!(grants::list(&home).unwrap().0.is_empty(), "this requester kept nothing in the home");
}
