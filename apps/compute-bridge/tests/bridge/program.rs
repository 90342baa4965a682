//! The program itself: what it prints, and how it ends.

use std::path::Path;
use std::process::{Command, Output};

use compute_bridge::config::{BridgeConfig, EXAMPLE};

use super::harness::{coalition_config, program, write_key};

fn run(args: &[&str]) -> Output {
    Command::new(program()).args(args).env_remove("COMPUTE_BRIDGE_LOG").output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A boot file that is right in itself, with one machine nobody answers at.
fn boot_file(dir: &Path) -> String {
    let coalition = coalition_config();
    std::fs::write(dir.join("coalition.hex"), coalition.to_hex()).unwrap();
    write_key(&dir.join("rack-01.key"), coalition_host::keys::generate("x").private_openssh.expose());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let toml = EXAMPLE
        .replace(&"0".repeat(64), &coalition.fingerprint().to_string())
        .replace("host = \"10.0.1.5\"", "host = \"127.0.0.1\"")
        .replace("port = 22 ", &format!("port = {closed} "))
        .replace("http://127.0.0.1:3340/", &format!("http://127.0.0.1:{closed}/"));
    let path = dir.join("bridge.toml");
    std::fs::write(&path, toml).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_example_it_prints_is_the_one_it_reads() {
    let printed = run(&["example-config"]);
    assert!(printed.status.success());
    BridgeConfig::parse(Path::new("printed.toml"), &text(&printed.stdout)).unwrap();
    let help = text(&run(&["--help"]).stdout);
    assert!(help.contains("check") && help.contains("example-config") && !help.contains("runner"), "{help}");
}

#[test]
fn a_wrong_boot_file_ends_with_status_2_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let missing = run(&["run", dir.path().join("none.toml").to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("example-config"), "{}", text(&missing.stderr));
    let path = dir.path().join("bridge.toml");
    std::fs::write(&path, EXAMPLE.replace("data_dir", "datadir")).unwrap();
    for command in ["run", "check"] {
        let wrong = run(&[command, "--json", path.to_str().unwrap()]);
        assert_eq!(wrong.status.code(), Some(2));
        let json: serde_json::Value = serde_json::from_slice(&wrong.stderr).unwrap();
        let error = json["error"].as_str().unwrap();
        assert!(error.contains("did you mean `data_dir`?") && error.contains("line "), "{error}");
        assert_eq!(json["exit_code"], 2);
    }
}

#[test]
fn two_bridges_do_not_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let path = boot_file(dir.path());
    std::fs::create_dir(dir.path().join("bridge-data")).unwrap();
    let lock = std::fs::File::create(dir.path().join("bridge-data/lock")).unwrap();
    let _held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    let second = run(&["run", &path]);
    assert_eq!(second.status.code(), Some(4));
    assert!(text(&second.stderr).contains("another bridge is using"), "{}", text(&second.stderr));
}

#[test]
fn a_damaged_journal_stops_the_start_and_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = boot_file(dir.path());
    std::fs::create_dir(dir.path().join("bridge-data")).unwrap();
    let journal = dir.path().join("bridge-data/grants.journal");
    std::fs::write(&journal, b"CBJ2 something else altogether").unwrap();
    let refused = run(&["run", &path]);
    assert_eq!(refused.status.code(), Some(6));
    let said = text(&refused.stderr);
    assert!(said.contains("damaged at byte 0") && said.contains("grants.journal"), "{said}");
    assert_eq!(std::fs::read(&journal).unwrap(), b"CBJ2 something else altogether");
}

#[test]
fn check_names_what_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let checked = run(&["check", "--json", &boot_file(dir.path())]);
    assert_eq!(checked.status.code(), Some(5), "{}", text(&checked.stderr));
    let findings: Vec<serde_json::Value> =
        text(&checked.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of =
        |what: &str| findings.iter().find(|f| f["what"] == what).unwrap_or_else(|| panic!("no {what}: {findings:?}"));
    assert_eq!(of("boot file")["ok"], true);
    assert_eq!(of("coalition")["ok"], true);
    assert_eq!(of("network")["ok"], false);
    let machine = of("machine rack-01");
    assert_eq!(machine["ok"], false);
    assert!(machine["detail"].as_str().unwrap().contains("cannot be reached over SSH"), "{machine}");
}

#[test]
fn it_is_its_own_runner() {
    let probe = run(&["runner", "probe"]);
    let report: coalition_host::types::ProbeReport =
        coalition_host::types::parse_answer(text(&probe.stdout).trim()).unwrap();
    assert!(report.cpu_millicores > 0);
}
