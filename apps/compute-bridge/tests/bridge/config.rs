//! The boot file: every mistake is answered with file, line, key and what would be right.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use compute_bridge::config::{BridgeConfig, ConfigError, EXAMPLE};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIJgRJ+IUjEoNrcsjYAWAXmgBUE/rBPwxTRdcGe4jBh5";

fn parse(text: &str) -> Result<BridgeConfig, ConfigError> {
    BridgeConfig::parse(Path::new("/etc/bridge.toml"), text)
}

/// The example with one line replaced, and the number of that line.
fn with(line: &str, by: &str) -> (String, usize) {
    let at = EXAMPLE.lines().position(|l| l.starts_with(line)).unwrap_or_else(|| panic!("no line {line:?}"));
    let text: Vec<&str> = EXAMPLE.lines().enumerate().map(|(i, l)| if i == at { by } else { l }).collect();
    (text.join("\n"), at + 1)
}

fn refusal(line: &str, by: &str) -> (String, usize) {
    let (text, at) = with(line, by);
    let error = parse(&text).err().unwrap_or_else(|| panic!("{by:?} was accepted"));
    (compute_bridge::fleet::chain(&error), at)
}

#[test]
fn the_example_is_a_valid_boot_file() {
    let config = parse(EXAMPLE).unwrap();
    let machine = config.machines().next().unwrap();
    assert_eq!(machine.offer_name().as_str(), "rack-01");
    assert_eq!(machine.public_host(), "10.0.1.5");
    assert_eq!(config.rates_of(machine).unwrap().core_hour.to_string(), "0.04");
    assert_eq!(config.absolute(Path::new("bridge.key")), Path::new("/etc/bridge.key"));
}

#[test]
fn every_mistake_names_file_line_key_and_remedy() {
    let table: &[(&str, &str, &[&str])] = &[
        (
            "relay = ",
            "relayy = \"http://x/\"",
            &["key `relayy`", "did you mean `relay`?", "allowed here", "`bootstrap`"],
        ),
        (
            "capacity_refresh_sec",
            "capacity_refresh_secs = 30",
            &["key `provider.capacity_refresh_secs`", "did you mean `capacity_refresh_sec`?"],
        ),
        ("ssh_key_path", "ssh_key = \"x\"", &["`baremetal.machines.ssh_key`", "did you mean `ssh_key_path`?"]),
        ("core_hour", "core_hour = 0.04", &["`provider.rates.baremetal.core_hour`", "in quotes"]),
        ("core_hour", "core_hour = \"0,04\"", &["core_hour", "0,04", "USD per hour"]),
        ("core_hour", "core_hour = \"-1\"", &["core_hour", "-1"]),
        ("gib_hour", "gib_hour = 1", &["gib_hour", "in quotes"]),
        ("fingerprint", "fingerprint = \"abc\"", &["key `fingerprint`", "64 hexadecimal digits"]),
        ("relay = ", "relay = \"127.0.0.1:3340\"", &["key `relay`", "127.0.0.1:3340", "http://"]),
        ("bootstrap", "bootstrap = [\"nobody\"]", &["key `bootstrap`", "nobody", "PEER_ID@IP:PORT"]),
        ("host_key", "host_key = \"AAAA\"", &["host_key", "ssh-keyscan"]),
        (
            "host_key",
            "host_key = \"ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBCwOJ9l\"",
            &["host_key"],
        ),
        ("region", "region = \"Home 01\"", &["region", "Home 01"]),
        ("cpu_millicores", "cpu_millicores = 5", &["cpu_millicores", "5", "10 to 1024000"]),
        ("ram_mib", "ram_mib = -1", &["ram_mib", "-1"]),
        ("port = 22", "port = 70000", &["port", "70000"]),
        ("port = 22", "port = 0", &["port = 0", "1 to 65535"]),
        ("user", "user = \"-oProxyCommand\"", &["user", "-oProxyCommand"]),
        ("tdx_capable", "tdx_capable = true", &["tdx_capable", "cannot start workloads inside TDX"]),
        ("tdx_capable", "guest_mrtd = \"abc\"", &["guest_mrtd", "96 hexadecimal digits"]),
        ("[dashboard]", "[attestation]\nsource = \"tdx\"\n[dashboard]", &["attestation", "needs collateral_dir"]),
        ("[dashboard]", "[attestation]\nsource = \"development\"\n[dashboard]", &["attestation", "development_root"]),
        ("fingerprint", "attestation = { source = \"any\" }", &["attestation", "any", "tdx"]),
        ("minimum_isolation", "minimum_isolation = \"total\"", &["minimum_isolation", "user_namespaces"]),
        ("egress", "egress = \"all\"", &["egress", "\"none\", \"host\", or a list of rules"]),
        ("egress", "egress = \"public:443\"", &["egress", "egress = [\"public:443\"]"]),
        ("egress", "egress = []", &["egress", "\"none\" opens nothing"]),
        ("egress", "egress = [\"publc:443\"]", &["egress", "the rule \"publc:443\"", "neither public"]),
        ("egress", "egress = [\"public\", \"10.0.7.1/24:80\"]", &["\"10.0.7.1/24:80\"", "write 10.0.7.0/24"]),
        ("egress", "egress = [\"169.254.169.254:80\"]", &["169.254.169.254", "no rule can open"]),
        ("# network_mbit", "network_mbit = 0", &["network_mbit", "0 is not between 1 and 1000000"]),
        ("# isolation", "isolation = \"machine\"", &["machine", "kernel", "modules"]),
        ("# machine", "machine = { kernel = \"/boot/vmlinuz\" }", &["machine", "isolation = \"machine\""]),
        ("on_shutdown", "on_shutdown = \"explode\"", &["on_shutdown", "keep", "drain"]),
        ("capacity_refresh_sec", "capacity_refresh_sec = 1", &["capacity_refresh_sec", "5 to 60"]),
        ("image_cache_mib", "image_cache_mib = 1", &["image_cache_mib", "max_image_mib = 4096"]),
        ("default_disk_mib", "default_disk_mib = 20000", &["default_disk_mib", "max_disk_mib = 16384"]),
        ("[dashboard]", "[dashbord]", &["dashbord", "did you mean `dashboard`?"]),
        ("# dir", "dir = \"../etc\"", &["dir", "without '..'"]),
        ("data_dir", "data_dir = 7", &["data_dir", "7"]),
    ];
    for (line, by, wanted) in table {
        let (message, at) = refusal(line, by);
        assert!(message.contains("/etc/bridge.toml"), "{message}");
        for part in *wanted {
            assert!(message.contains(part), "{by:?} was answered without {part:?}: {message}");
        }
        let lines = message.split("line ").nth(1).and_then(|rest| rest.split([',', ':']).next()?.parse::<usize>().ok());
        // A value may be wrong only together with its section; then the section's line is named.
        let named = lines.unwrap_or_else(|| panic!("no line in {message}"));
        assert!(
            named == at || named <= at && at - named < 25,
            "{by:?} stands in line {at}, named was {named}: {message}"
        );
    }
}

#[test]
fn rules_of_egress_are_read() {
    let (text, _) =
        with("egress", "egress = [\"public:443\", \"*.debian.org:80\", \"10.0.7.0/24:5432\", \"1.1.1.1:53/udp\"]");
    let egress = parse(&text).unwrap().machines().next().unwrap().egress.clone();
    assert_eq!(
        serde_json::to_value(&egress).unwrap(),
        serde_json::json!({ "rules": ["public:443", "*.debian.org:80", "10.0.7.0/24:5432", "1.1.1.1:53/udp"] })
    );
    let (text, _) = with("egress", "egress = \"host\"");
    assert_eq!(parse(&text).unwrap().machines().next().unwrap().egress, coalition_host::Egress::Host);
}

#[test]
fn exact_lines_where_the_parser_knows_them() {
    for (line, by) in
        [("relay = ", "relayy = \"x\""), ("core_hour", "core_hour = 0.04"), ("fingerprint", "fingerprint = \"abc\"")]
    {
        let (message, at) = refusal(line, by);
        assert!(message.contains(&format!("line {at},")), "{message}");
    }
}

#[test]
fn a_missing_key_is_named_with_its_section() {
    let (message, _) = refusal("host_key", "");
    assert!(message.contains("`baremetal.machines.host_key`") && message.contains("is missing"), "{message}");
}

#[test]
fn no_backend_no_bridge() {
    let text: String = EXAMPLE.split("[[baremetal.machines]]").next().unwrap().to_owned();
    let message = parse(&text).unwrap_err().to_string();
    assert!(message.contains("nothing to sell") && message.contains("[[baremetal.machines]]"), "{message}");
}

#[test]
fn machines_need_prices_and_names_of_their_own() {
    let unpriced = EXAMPLE.replace("[provider.rates.baremetal]\ncore_hour = \"0.04\"\ngib_hour = \"0.005\"\n", "");
    let message = parse(&unpriced).unwrap_err().to_string();
    assert!(message.contains("it has no price"), "{message}");
    let own = unpriced
        .replace("region = \"home-01\"", "region = \"home-01\"\nrates = { core_hour = \"1\", gib_hour = \"2\" }");
    let config = parse(&own).unwrap();
    assert_eq!(config.rates_of(config.machines().next().unwrap()).unwrap().gib_hour.to_string(), "2.00");
    let machine = |name: &str, host: &str| {
        format!(
            "[[baremetal.machines]]\n{name}host = \"{host}\"\nuser = \"root\"\nssh_key_path = \"k\"\nhost_key = \"{KEY}\"\n\
             region = \"r\"\ncpu_millicores = 1000\nram_mib = 1024\n"
        )
    };
    let head = EXAMPLE.split("[[baremetal.machines]]").next().unwrap();
    let twice = format!("{head}{}{}", machine("", "a"), machine("", "a"));
    assert!(parse(&twice).unwrap_err().to_string().contains("two machines are called bm-"));
    let sixteen: String = (0..16).map(|i| machine("", &format!("h{i}"))).collect();
    assert_eq!(parse(&format!("{head}{sixteen}")).unwrap().machines().count(), 16);
    let seventeen = format!("{head}{sixteen}{}", machine("", "h16"));
    assert!(parse(&seventeen).unwrap_err().to_string().contains("run a second bridge"));
}

#[test]
fn secrets_must_be_private_and_the_fingerprint_right() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bridge.toml");
    let coalition = super::harness::coalition_config();
    std::fs::write(dir.path().join("coalition.hex"), coalition.to_hex()).unwrap();
    let key = dir.path().join("rack-01.key");
    std::fs::write(&key, "secret").unwrap();
    let load = |text: &str| {
        std::fs::write(&path, text).unwrap();
        BridgeConfig::load(&path).unwrap().resolve().map_err(|error| compute_bridge::fleet::chain(&error))
    };
    let wrong = load(EXAMPLE).unwrap_err();
    assert!(wrong.contains("key `fingerprint`") && wrong.contains(&coalition.fingerprint().to_string()), "{wrong}");
    let text = EXAMPLE.replace(&"0".repeat(64), &coalition.fingerprint().to_string());
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = load(&text).unwrap_err();
    assert!(open.contains("ssh_key_path") && open.contains("mode 644") && open.contains("chmod 600"), "{open}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let resolved = load(&text).unwrap();
    assert_eq!(resolved.coalition.fingerprint(), coalition.fingerprint());
    let token = resolved.dashboard_token.as_ref().unwrap();
    assert_eq!(token.len(), 64);
    assert!(!format!("{resolved:?}").contains(token.as_str()));
    for file in ["bridge.key", "dashboard.token"] {
        let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
    }
    // The same files, found again.
    let again = load(&text).unwrap();
    assert_eq!(again.key.peer_id(), resolved.key.peer_id());
    assert_eq!(again.dashboard_token, resolved.dashboard_token);
    std::fs::set_permissions(dir.path().join("bridge.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(load(&text).unwrap_err().contains("chmod 600"));
    let missing = load(&text.replace("coalition.hex", "nowhere.hex")).unwrap_err();
    assert!(missing.contains("key `coalition`") && missing.contains("nowhere.hex"), "{missing}");
    let inline = load(&text.replace("coalition.hex", "ab".repeat(40).as_str())).unwrap_err();
    assert!(inline.contains("key `coalition`"), "{inline}");
}

/// The example's section for a cloud, switched on.
fn with_cloud(name: &str, change: impl Fn(String) -> String) -> String {
    let (head, rest) = EXAMPLE.split_once(&format!("# [[{name}]]")).unwrap();
    let (section, tail) = rest.split_once("\n\n").unwrap();
    let section: Vec<&str> = section.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)).collect();
    format!("{head}{}\n\n{tail}", change(format!("[[{name}]]{}", section.join("\n"))))
}

fn with_aws(change: impl Fn(String) -> String) -> String {
    with_cloud("aws", change)
}

#[test]
fn the_other_clouds_of_the_example_are_valid_and_their_mistakes_are_named() {
    let config = parse(&with_cloud("gcp", |section| section)).unwrap();
    let gcp = config.gcp().next().unwrap();
    assert_eq!((gcp.name.as_str(), gcp.api_region(), gcp.zones.len()), ("gcp-ams", "europe-west4", 1));
    let config = parse(&with_cloud("azure", |section| section)).unwrap();
    let azure = config.azure().next().unwrap();
    assert_eq!(
        (azure.name.as_str(), azure.api_region(), azure.zones.as_slice()),
        ("azure-ams", "westeurope", &["any".to_owned()][..])
    );
    let table: &[(&str, &str, &str, &str)] = &[
        ("gcp", "n2d-standard-2", "e2-medium", "this size has none"),
        ("gcp", "\"sev_snp\"", "\"tdx\"", "this size has sev_snp"),
        ("gcp", "project =", "projekt =", "did you mean `project`?"),
        ("gcp", "max_instances = 4", "max_instances = 0", "max_instances = 0 is out of range"),
        ("gcp", "rates = {", "# rates = {", "provider.rates.gcp"),
        ("azure", "Standard_DC2as_v5", "Standard_D2s_v5", "this size has none"),
        ("azure", "tenant =", "# tenant =", "belong together"),
        ("azure", "client_secret_file =", "# client_secret_file =", "belong together"),
        ("azure", "azure-ams", "rack-01", "two offers are called rack-01"),
        ("azure", "rates = {", "# rates = {", "provider.rates.azure"),
    ];
    for (cloud, from, to, wanted) in table {
        let text = with_cloud(cloud, |section| section.replacen(from, to, 1));
        let message = parse(&text).err().unwrap_or_else(|| panic!("{to:?} was accepted")).to_string();
        assert!(message.contains(wanted), "{to:?}: {message}");
    }
}

#[test]
fn the_examples_cloud_is_a_valid_section_and_its_mistakes_are_named() {
    let config = parse(&with_aws(|section| section)).unwrap();
    let aws = config.aws().next().unwrap();
    assert_eq!(
        (aws.name.as_str(), aws.api_region(), aws.ssh_port, aws.sizes.len()),
        ("aws-fra", "eu-central-1", 22, 1)
    );
    assert_eq!(config.rates_of_cloud(&aws.offer()).core_hour.to_string(), "0.09");
    let table: &[(&str, &str, &str)] = &[
        ("ami-0123456789abcdef0", "debian", "expected ami-"),
        ("\"sg-0123456789abcdef0\"", "", "security_groups has 0 entries"),
        ("subnet-0123456789abcdef0", "subnet-1", "subnets has \"subnet-1\""),
        ("m6a.large", "m6a large", "expected the cloud's name of a size"),
        ("confidential =", "sev_snp =", "sev_snp"),
        ("\"sev_snp\"", "\"tdx\"", "EC2 has no Intel TDX"),
        ("m6a.large", "m7i.large", "m6a, c6a and r6a only"),
        ("max_instances = 4", "max_instances = 0", "max_instances = 0 is out of range"),
        ("aws-fra", "rack-01", "two offers are called rack-01"),
        ("rates = {", "# rates = {", "provider.rates.aws"),
        ("region =", "regio =", "did you mean `region`?"),
    ];
    for (from, to, wanted) in table {
        let text = with_aws(|section| section.replacen(from, to, 1));
        let message = parse(&text).err().unwrap_or_else(|| panic!("{to:?} was accepted")).to_string();
        assert!(message.contains(wanted), "{to:?}: {message}");
    }
    let alone = with_aws(|section| section);
    let (before, rest) = alone.split_once("[[baremetal.machines]]").unwrap();
    let text = format!("{before}{}", &rest[rest.find("[[aws]]").unwrap()..]);
    assert_eq!(parse(&text).unwrap().machines().count(), 0, "clouds alone are enough");
}
