//! The program itself: what it prints, and how it ends.

use std::path::Path;
use std::process::{Command, Output};

use coalition_aws_double::Moto;
use compute_bridge::config::{BridgeConfig, EXAMPLE};

use super::cloud::Cloud;
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

/// From the boot file to AWS and back: sections, credentials file, endpoint, all as an operator has them.
#[tokio::test(flavor = "multi_thread")]
async fn check_looks_over_aws_and_shows_no_secret() {
    let Some(cloud) = Cloud::start().await else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = boot_file(dir.path());
    let keys = cloud.double.moto.keys.clone();
    let credentials = dir.path().join("aws.credentials");
    let file = format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", keys.id, keys.secret);
    write_key(&credentials, &file);
    let section = format!(
        "\n[[aws]]\nname = \"aws-fra\"\nregion = \"fra\"\naws_region = \"eu-central-1\"\nendpoint = \"{}\"\n\
         credentials_file = \"aws.credentials\"\nimage = \"{}\"\nsubnets = [\"{}\"]\nsecurity_groups = [\"{}\"]\n\
         max_instances = 2\nrates = {{ core_hour = \"0.09\", gib_hour = \"0.01\" }}\nsizes = [{{ size = \"m6a.large\", \
         cpu_millicores = 2000, ram_mib = 7500, price_hour = \"0.1\", confidential = \"sev_snp\" }}]\n",
        cloud.double.proxy.endpoint,
        Moto::IMAGE,
        cloud.double.moto.subnets[0],
        cloud.double.moto.security_group,
    );
    let boot = std::fs::read_to_string(&path).unwrap() + &section;
    std::fs::write(&path, boot).unwrap();
    let check = path.clone();
    let checked = tokio::task::spawn_blocking(move || run(&["check", "--json", &check])).await.unwrap();
    let (said, complained) = (text(&checked.stdout), text(&checked.stderr));
    let findings: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_aws: Vec<_> = findings.iter().filter(|f| f["what"].as_str().unwrap().starts_with("aws-fra ")).collect();
    assert!(of_aws.len() >= 7 && of_aws.iter().all(|f| f["ok"] == true), "{said} {complained}");
    assert!(!said.contains(&keys.secret) && !complained.contains(&keys.secret));
    assert_eq!(cloud.live().await, [], "nothing was made");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&credentials, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = run(&["check", &path]);
    assert_eq!(open.status.code(), Some(2));
    let said = text(&open.stderr);
    assert!(said.contains("aws.credentials_file") && said.contains("chmod 600"), "{said}");
}

#[test]
fn it_is_its_own_runner() {
    let probe = run(&["runner", "probe"]);
    let report: coalition_host::types::ProbeReport =
        coalition_host::types::parse_answer(text(&probe.stdout).trim()).unwrap();
    assert!(report.cpu_millicores > 0);
}
