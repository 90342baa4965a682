//! Attestation under a development root, over real processes: the label wherever a user looks, and who is refused, why.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Stdio},
};

use coalition_attest::{
    DevelopmentRoot, Directory, Evidence, Quote,
    dev::{Certificate, CollateralOptions},
};
use coalition_cli::{devnet::manifest::Sale, home::Home};
use common::{Environment, running::*};
use serde_json::Value;

const LABEL: &str = "DEVELOPMENT ROOT";

#[test]
fn the_label_is_wherever_a_user_looks_and_the_unattested_are_refused() {
    let _alone = alone();
    let env = Environment::new();
    let up = Up::start(&env, &["--attested"]);
    make_image(&env);
    assert!(up.said["posture"].as_str().unwrap().contains(LABEL), "{}", up.said);

    let market = env.run(&["--json", "market"]).expect_status(0).json();
    let offer = &market["offers"][0];
    assert!(offer["posture"].as_str().unwrap().contains(LABEL), "{offer}");
    assert_eq!((&offer["attestation"]["root"], &offer["tdx_capable"]), (&"development".into(), &true.into()));
    assert!(env.run(&["market"]).expect_status(0).out.contains(LABEL));
    assert!(env.run(&["id"]).expect_status(0).out.contains(LABEL));
    let mrtd = offer["mrtds"][0].as_str().unwrap().to_owned();
    let started = up.told.iter().find(|step| step["step"] == "market").unwrap();
    assert!(started.to_string().contains(LABEL), "{started}");

    an_unattested_bridge_is_refused(&env);
    a_bridge_of_another_root_is_refused(&env);

    // A measurement nobody offers is not even sent.
    let other = request(&env, &["--mrtd", &"00".repeat(48)]).expect_status(5);
    assert_eq!(other.json()["error"]["code"], "mrtd_not_offered");

    let grant = steps_carry_the_label(&env, &mrtd);
    login_is_verified_first(&env, &grant);
    evidence_stands_alone(&env, &grant);
    what_is_revoked_is_given_back(&env, &grant, &mrtd);
    for arguments in [&["grants"][..], &["status"], &["log", &grant], &["--json", "log", &grant], &["--json", "status"]]
    {
        let said = env.run(arguments).expect_status(0).out;
        assert!(said.contains(LABEL), "{arguments:?}: {said}");
    }
    env.run(&["end", &grant, "--wait", "2m"]).expect_status(0);
    up.stop();
}

/// What vouches for a coalition's providers is part of its identity: a later start changes nothing of it.
#[test]
fn a_plain_coalition_does_not_become_an_attested_one() {
    let env = Environment::new();
    let home = Home::locate(Some(&env.home())).unwrap();
    home.ensure().unwrap();
    let sale = Sale {
        region: "local".parse().unwrap(),
        core_hour: "0.02".parse().unwrap(),
        gib_hour: "0.004".parse().unwrap(),
        cpu_millicores: 1_000,
        ram_mib: 1_024,
        attested: false,
    };
    coalition_cli::devnet::open_or_create(&home, "plain", &sale).unwrap();
    let refused = env.run(&["--json", "up", "--attested"]).expect_status(3);
    assert_eq!(refused.json()["error"]["code"], "not_attested");
    assert!(!env.run(&["id"]).expect_status(0).out.contains("attestation"));
}

/// Requests a machine inside "TDX" with a pinned measurement.
fn steps_carry_the_label(env: &Environment, mrtd: &str) -> String {
    let ran = request(env, &["--mrtd", mrtd]);
    assert_eq!(ran.status, 0, "{}\n{}\n{}", ran.out, ran.err, logs(&env.home()));
    let steps = ran.objects();
    let step = |name: &str| steps.iter().find(|step| step["step"] == name).unwrap().clone();
    let cleared = step("cleared");
    assert_eq!((&cleared["tdx_required"], &cleared["expected_mrtd"]), (&true.into(), &mrtd.into()));
    assert!(cleared["posture"].as_str().unwrap().contains(LABEL), "{cleared}");
    let receipt = step("receipt");
    assert_eq!(receipt["attestation"]["outcome"], "valid", "{receipt}");
    assert_eq!(receipt["attestation"]["guest"]["measurements"]["mrtd"], mrtd);
    assert!(receipt["posture"].as_str().unwrap().contains(LABEL), "{receipt}");
    receipt["grant"].as_str().unwrap().to_owned()
}

fn login_is_verified_first(env: &Environment, grant: &str) {
    let inside = env.run(&["ssh", &grant[..8], "--", "hello"]).expect_status(0);
    assert!(inside.err.contains("valid") && inside.err.contains(LABEL), "{}", inside.err);
    // With another host key, or evidence of something else, nobody is let in.
    let dir = env.home().join("grants").join(grant);
    let file = dir.join("grant.json");
    let kept = std::fs::read_to_string(&file).unwrap();
    let other = coalition_shuffle::SshHostKey([0x11; 32]);
    let mut changed: Value = serde_json::from_str(&kept).unwrap();
    changed["access"]["quoted_host_key"] = "11".repeat(32).into();
    let pinned = dir.join("known_hosts");
    let right = std::fs::read_to_string(&pinned).unwrap();
    let (host, _) = right.split_once(' ').unwrap();
    let others = format!("{host} {}\n", other.to_openssh());
    for (file_text, pins, code) in [
        // OpenSSH would be told another key than the quote's.
        (changed.to_string(), &right, "host_key_differs"),
        (kept.clone(), &others, "host_key_differs"),
        // Both are another than the quote binds.
        (changed.to_string(), &others, "report_data"),
    ] {
        std::fs::write(&file, file_text).unwrap();
        std::fs::write(&pinned, pins).unwrap();
        let refused = env.run(&["--json", "ssh", &grant[..8], "--", "true"]).expect_status(6);
        assert_eq!(refused.json()["error"]["code"], code);
    }
    std::fs::write(&file, kept).unwrap();
    std::fs::write(&pinned, right).unwrap();
    env.run(&["ssh", &grant[..8], "--", "true"]).expect_status(0);
}

/// Who knows that the platform's certificate was revoked is let in nowhere, whatever the machine brings along; and a machine that
/// must be inside TDX and is not proven to be is given back, and paid for no longer.
fn what_is_revoked_is_given_back(env: &Environment, grant: &str, mrtd: &str) {
    let secret = std::fs::read_to_string(env.home().join("keys/development-root.json")).unwrap();
    let root = DevelopmentRoot::from_secret(&secret).unwrap();
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let revoking = CollateralOptions { revoked: vec![Certificate::Platform], ..CollateralOptions::issued(now_s) };
    let evidence = std::fs::read(env.home().join("grants").join(grant).join("evidence.bin")).unwrap();
    let quote = Evidence::from_bytes(&evidence).unwrap().quote;
    let platform = Quote::parse(&quote).unwrap().collateral_key().unwrap();
    let own = env.home().join("collateral");
    std::fs::create_dir(&own).unwrap();
    Directory::new(&own).store(platform, &root.collateral_with(&revoking).unwrap()).unwrap();

    let refused = env.run(&["--json", "ssh", &grant[..8], "--", "true"]).expect_status(6);
    assert_eq!(refused.json()["error"]["code"], "revoked", "{refused:?}");
    let refused = request(env, &["--mrtd", mrtd]).expect_status(6);
    let error = &refused.json()["error"];
    assert_eq!(error["code"], "revoked", "{error}");
    assert!(error["hint"].as_str().unwrap().contains("the grant was ended"), "{error}");
    let given_back = env.run(&["--json", "grants"]).json()["grants"][0].clone();
    assert_ne!(given_back["grant"], grant);
    let log =
        env.run(&["--json", "log", given_back["grant"].as_str().unwrap(), "--wait", "1m"]).expect_status(0).json();
    assert_eq!(log["granted"]["stage"], "ended: ended by requester", "{log}");
    // One that need not be inside TDX is taken, and shown for what it is.
    let taken = request(env, &[]).expect_status(0).json();
    assert!(taken["posture"].as_str().unwrap().starts_with("invalid"), "{taken}");
    env.run(&["end", "--wait", "2m"]).expect_status(0);
    std::fs::remove_dir_all(&own).unwrap();
    env.run(&["ssh", &grant[..8], "--", "true"]).expect_status(0);
}

/// The evidence of a machine, judged by itself: valid under its own root, and under Intel's refused.
fn evidence_stands_alone(env: &Environment, grant: &str) {
    let evidence = env.home().join("grants").join(grant).join("evidence.bin").display().to_string();
    let config = coalition_cli::roles::config::read_published(&env.home().join("coalition.hex")).unwrap();
    let rule = coalition_cli::view::compute(&config).unwrap().params.attestation.unwrap();
    let unbound = rule.policy.of_workload(None).binding(coalition_attest::BindingRule::Unbound).unwrap();
    let own = env.file("own.toml", toml::to_string(&unbound).unwrap()).display().to_string();
    let intel = env.file("intel.toml", "root = \"intel\"\ntcb = [\"UpToDate\"]\nbinding = \"unbound\"\n");
    let intel = intel.display().to_string();
    let valid = env.run(&["--json", "attest", "verify", &evidence, "--policy", &own]).expect_status(0).json();
    assert_eq!((&valid["outcome"], &valid["root"]["kind"]), (&"valid".into(), &"development".into()));
    let shown = env.run(&["attest", "verify", &evidence, "--policy", &own]).expect_status(0);
    assert!(shown.out.contains(LABEL), "{}", shown.out);
    let refused = env.run(&["--json", "attest", "verify", &evidence, "--policy", &intel]).expect_status(6);
    assert_eq!(refused.json()["error"]["code"], "wrong_root");
    let claims = env.run(&["attest", "show", &evidence]).expect_status(0);
    assert!(claims.out.contains(LABEL) && claims.out.contains("nothing here is verified"), "{}", claims.out);
}

/// A second bridge of the same coalition, stopped when dropped.
struct Bridge {
    child: Child,
    port: u16,
    token: String,
    log: std::path::PathBuf,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a bridge from the development one's boot file, with its own key and directory, changed by `change`.
fn start(env: &Environment, name: &str, change: impl FnOnce(&mut toml::Table)) -> Bridge {
    let text = std::fs::read_to_string(env.home().join("roles/bridge.toml")).unwrap();
    let mut boot: toml::Table = text.parse().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    boot.insert("key_file".into(), format!("../keys/{name}.key").into());
    boot.insert("data_dir".into(), format!("../data/{name}").into());
    let mut dashboard = toml::Table::new();
    dashboard.insert("port".into(), i64::from(port).into());
    dashboard.insert("token_file".into(), format!("../keys/{name}.token").into());
    boot.insert("dashboard".into(), dashboard.into());
    change(&mut boot);
    let path = env.home().join(format!("roles/{name}.toml"));
    std::fs::write(&path, boot.to_string()).unwrap();
    let log = env.path().join(format!("{name}.log"));
    let arguments = ["run", "bridge", path.to_str().unwrap()];
    let errors = std::fs::File::create(&log).unwrap();
    let child = env.command(&arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(errors).spawn().unwrap();
    let token = env.home().join(format!("keys/{name}.token"));
    let token = wait_for("the token", || std::fs::read_to_string(&token).ok().filter(|text| !text.is_empty()));
    Bridge { child, port, token: token.trim().to_owned(), log }
}

impl Bridge {
    /// The dashboard's data once it names a problem with the card.
    fn card_problem(&self) -> Value {
        wait_for("the dashboard to name the problem", || {
            let status = self.status()?;
            (!status["card_problem"].is_null()).then_some(status)
        })
    }

    fn status(&self) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let ask = format!(
            "GET /api/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
            self.token
        );
        std::io::Write::write_all(&mut stream, ask.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }
}

fn an_unattested_bridge_is_refused(env: &Environment) {
    let bridge = start(env, "plain", |boot| {
        boot.remove("attestation");
        let machines = boot["baremetal"]["machines"].as_array_mut().unwrap();
        let machine = machines[0].as_table_mut().unwrap();
        machine.remove("tdx_capable");
        machine.remove("guest_mrtd");
    });
    let status = bridge.card_problem();
    let problem = status["card_problem"].as_str().unwrap();
    assert!(problem.contains("admits only attested providers") && problem.contains(LABEL), "{problem}");
    assert_eq!((&status["posture"], &status["card_live"]), (&"not attested".into(), &false.into()));
    let log = std::fs::read_to_string(&bridge.log).unwrap();
    assert!(log.contains("admits only attested providers") && log.contains("no [attestation]"), "{log}");
    one_provider(env);
}

/// Somebody else's development root is as little as none.
fn a_bridge_of_another_root_is_refused(env: &Environment) {
    let root = coalition_attest::DevelopmentRoot::generate().unwrap();
    write_private(&env.home().join("keys/other-root.json"), &root.to_secret());
    let bridge = start(env, "stranger", |boot| {
        boot["attestation"]["development_root"] = "../keys/other-root.json".into();
    });
    let status = bridge.card_problem();
    let problem = status["attestation_problem"].as_str().unwrap();
    assert!(problem.contains("attestation_refused") && problem.contains("wrong_root"), "{problem}");
    assert_eq!(status["posture"], "not attested");
    one_provider(env);
}

fn one_provider(env: &Environment) {
    let market = env.run(&["--json", "market"]).expect_status(0).json();
    assert_eq!(market["offers"].as_array().unwrap().len(), 1, "{market}");
}

fn write_private(path: &Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}
