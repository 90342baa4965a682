//! Reading and checking `spec.json`. Pure: bytes and a clock value in, a checked spec out.

use std::path::{Path, PathBuf};

use russh::keys::{PrivateKey, PublicKey};

use crate::egress::rules::{MAX_RULES, Rule};
use crate::error::{Result, RunnerError};
use crate::types::{FORMAT_VERSION, MachineSpec, WorkloadSpec};

/// A `spec.json` larger than this is refused unread.
pub const MAX_SPEC_BYTES: usize = 256 * 1024;
/// Longest life of a grant that is believed; beyond it the unit is probably wrong.
const MAX_LIFE_MS: u64 = 400 * 24 * 3600 * 1000;

/// A spec whose every field was checked and parsed.
#[derive(Debug)]
pub struct CheckedSpec {
    /// As given; the host key is still inside.
    pub spec: WorkloadSpec,
    /// The host key, parsed.
    pub host_key: PrivateKey,
    /// The one key that may log in.
    pub authorized_key: PublicKey,
    /// The image hash.
    pub image_hash: blake3::Hash,
}

fn bad(field: &'static str, problem: impl Into<String>) -> RunnerError {
    RunnerError::Spec { field, problem: problem.into() }
}

/// Parses and checks a spec. `now_unix_ms` is the host's clock. Errors name the field and its value; secrets are never
/// part of a message.
pub fn parse(bytes: &[u8], now_unix_ms: u64) -> Result<CheckedSpec> {
    if bytes.len() > MAX_SPEC_BYTES {
        return Err(bad("(file)", format!("{} bytes, at most {MAX_SPEC_BYTES} are read", bytes.len())));
    }
    let spec: WorkloadSpec = serde_json::from_slice(bytes).map_err(|e| bad("(file)", e.to_string()))?;
    check(spec, now_unix_ms)
}

/// Checks a spec already in memory, as [`parse`] does.
pub fn check(spec: WorkloadSpec, now_unix_ms: u64) -> Result<CheckedSpec> {
    if spec.version != FORMAT_VERSION {
        return Err(bad("version", format!("{} given, this runner reads {FORMAT_VERSION}", spec.version)));
    }
    check_grant_id(&spec.grant_id)?;
    let image_hash = parse_hash(&spec.image_blake3)?;
    check_sizes(&spec)?;
    check_deadline(&spec, now_unix_ms)?;
    check_command(&spec)?;
    spec.machine.iter().try_for_each(check_machine)?;
    check_network(&spec)?;
    let host_key = PrivateKey::from_openssh(spec.ssh_host_key.expose())
        .map_err(|_| bad("ssh_host_key", "not an OpenSSH private key (its text is not shown)"))?;
    if host_key.is_encrypted() {
        return Err(bad("ssh_host_key", "is encrypted; give it without a passphrase"));
    }
    let authorized_key = PublicKey::from_openssh(&spec.ssh_authorized_key).map_err(|e| {
        bad("ssh_authorized_key", format!("{:?} is not an OpenSSH public key: {e}", spec.ssh_authorized_key))
    })?;
    Ok(CheckedSpec { spec, host_key, authorized_key, image_hash })
}

fn check_grant_id(id: &str) -> Result<()> {
    let hex = id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !hex || !(8..=64).contains(&id.len()) {
        return Err(bad("grant_id", format!("{id:?} is not 8 to 64 lower-case hex digits")));
    }
    Ok(())
}

fn parse_hash(text: &str) -> Result<blake3::Hash> {
    blake3::Hash::from_hex(text).map_err(|_| bad("image_blake3", format!("{text:?} is not 64 hex digits")))
}

fn check_sizes(spec: &WorkloadSpec) -> Result<()> {
    let ranges: [(&'static str, u64, u64, u64); 5] = [
        ("cpu_millicores", spec.cpu_millicores.into(), 10, 1_000_000),
        ("ram_mib", spec.ram_mib, 8, 16 * 1024 * 1024),
        ("disk_mib", spec.disk_mib, 1, 64 * 1024 * 1024),
        ("pids_max", spec.pids_max.into(), 4, 1_000_000),
        ("image_size_bytes", spec.image_size_bytes, 1, 1 << 46),
    ];
    for (field, value, low, high) in ranges {
        if !(low..=high).contains(&value) {
            return Err(bad(field, format!("{value} is not between {low} and {high}")));
        }
    }
    if spec.image.as_os_str().is_empty() {
        return Err(bad("image", "is empty"));
    }
    Ok(())
}

fn check_deadline(spec: &WorkloadSpec, now: u64) -> Result<()> {
    let valid_to = spec.valid_to_unix_ms;
    if valid_to <= now {
        return Err(RunnerError::DeadlinePassed { ago_ms: now - valid_to, now_ms: now, valid_to_ms: valid_to });
    }
    if valid_to - now > MAX_LIFE_MS {
        return Err(bad(
            "valid_to_unix_ms",
            format!(
                "{valid_to} is more than 400 days after this host's clock ({now}); milliseconds since 1970 are expected"
            ),
        ));
    }
    Ok(())
}

fn check_command(spec: &WorkloadSpec) -> Result<()> {
    if spec.command.iter().any(|a| a.contains('\0')) {
        return Err(bad("command", "contains a zero byte"));
    }
    if spec.command.first().is_some_and(String::is_empty) {
        return Err(bad("command", "names an empty program"));
    }
    let total: usize = spec.command.iter().map(|a| a.len() + 1).sum();
    if total > 64 * 1024 {
        return Err(bad("command", format!("{total} bytes, at most 65536")));
    }
    for (name, value) in &spec.env {
        check_env(name, value).map_err(|problem| bad("env", problem))?;
    }
    let total: usize = spec.env.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
    if total > 32 * 1024 {
        return Err(bad("env", format!("{total} bytes, at most 32768")));
    }
    Ok(())
}

/// Checks how virtual machines are to be made. Errors name the value.
pub fn check_machine(machine: &MachineSpec) -> Result<()> {
    let paths = [Some(&machine.kernel), machine.modules.as_ref(), machine.firmware.as_ref()];
    if let Some(path) = paths.into_iter().flatten().find(|path| !path.is_absolute()) {
        return Err(bad("machine", format!("{} is not an absolute path", path.display())));
    }
    let (low, high) = (128, 65_536);
    if !(low..=high).contains(&machine.overhead_mib) {
        return Err(bad("machine", format!("overhead_mib = {} is not between {low} and {high}", machine.overhead_mib)));
    }
    if machine.tdx.is_some() && machine.firmware.is_none() {
        return Err(bad("machine", "TDX guests need firmware, which is what is measured first"));
    }
    Ok(())
}

fn check_network(spec: &WorkloadSpec) -> Result<()> {
    if let Some(rules) = spec.egress.rules() {
        check_rules(rules).map_err(|problem| bad("egress", problem))?;
    }
    spec.network_mbit.map_or(Ok(()), |mbit| check_mbit(mbit).map_err(|problem| bad("network_mbit", problem)))
}

/// Checks how many rules there are. The error says what is wrong.
pub fn check_rules(rules: &[Rule]) -> Result<(), String> {
    match rules.len() {
        0 => Err("there is no rule in the list; \"none\" opens nothing".into()),
        1..=MAX_RULES => Ok(()),
        many => Err(format!(
            "{many} rules, at most {MAX_RULES} are kept; networks take in many addresses, *.NAME many names"
        )),
    }
}

/// Checks a limit of bandwidth. The error says what is wrong.
pub fn check_mbit(mbit: u32) -> Result<(), String> {
    let (low, high) = (1, 1_000_000);
    if (low..=high).contains(&mbit) {
        return Ok(());
    }
    Err(format!("{mbit} is not between {low} and {high} millions of bits a second; leave it out for no limit"))
}

/// Checks one environment variable: a shell-like name, no zero byte, at most 4 KiB. The error says what is wrong.
pub fn check_env(name: &str, value: &str) -> Result<(), String> {
    let mut bytes = name.bytes();
    let head = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !head || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') || name.len() > 128 {
        return Err(format!("{name:?} is not a variable name"));
    }
    if value.contains('\0') || value.len() > 4096 {
        return Err(format!("the value of {name} contains a zero byte or is longer than 4096 bytes"));
    }
    Ok(())
}

/// Where the image is, for a spec read from `dir`.
pub fn image_path(spec: &WorkloadSpec, dir: &Path) -> PathBuf {
    if spec.image.is_absolute() { spec.image.clone() } else { dir.join(&spec.image) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Egress, IsolationLevel, SecretText};

    fn spec() -> WorkloadSpec {
        let host = crate::ssh::keys::generate("host");
        let user = crate::ssh::keys::generate("user");
        WorkloadSpec {
            version: FORMAT_VERSION,
            grant_id: "00112233445566778899aabbccddeeff".into(),
            image: "image.tar".into(),
            image_blake3: "0".repeat(64),
            image_size_bytes: 1024,
            cpu_millicores: 1000,
            ram_mib: 64,
            disk_mib: 64,
            pids_max: 64,
            valid_to_unix_ms: 2_000,
            ssh_listen: "127.0.0.1:0".parse().unwrap(),
            ssh_host_key: host.private_openssh,
            ssh_authorized_key: user.public_openssh,
            command: vec![],
            env: Default::default(),
            minimum_isolation: IsolationLevel::ProcessLimits,
            egress: Default::default(),
            network_mbit: None,
            machine: None,
        }
    }

    fn field_of(result: Result<CheckedSpec>) -> String {
        match result {
            Err(RunnerError::Spec { field, .. }) => field.to_owned(),
            Err(other) => other.code().to_owned(),
            Ok(_) => "accepted".to_owned(),
        }
    }

    #[test]
    fn a_good_spec_round_trips_and_is_accepted() {
        let bytes = serde_json::to_vec(&spec()).unwrap();
        let checked = parse(&bytes, 1_000).unwrap();
        assert_eq!(checked.spec.image, PathBuf::from("image.tar"));
        assert_eq!(image_path(&checked.spec, Path::new("/g")), PathBuf::from("/g/image.tar"));
    }

    #[test]
    fn each_bad_field_is_named() {
        type Case = (&'static str, fn(&mut WorkloadSpec));
        let cases: Vec<Case> = vec![
            ("version", |s| s.version = 2),
            ("grant_id", |s| s.grant_id = "../../etc".into()),
            ("grant_id", |s| s.grant_id = "ABCDEF0011".into()),
            ("image", |s| s.image = "".into()),
            ("image_blake3", |s| s.image_blake3 = "xyz".into()),
            ("image_size_bytes", |s| s.image_size_bytes = 0),
            ("cpu_millicores", |s| s.cpu_millicores = 0),
            ("ram_mib", |s| s.ram_mib = 1),
            ("disk_mib", |s| s.disk_mib = 0),
            ("pids_max", |s| s.pids_max = 1),
            ("deadline_passed", |s| s.valid_to_unix_ms = 1_000),
            ("valid_to_unix_ms", |s| s.valid_to_unix_ms = u64::MAX),
            ("ssh_host_key", |s| s.ssh_host_key = SecretText::new("nonsense")),
            ("ssh_authorized_key", |s| s.ssh_authorized_key = "ssh-ed25519 !!!".into()),
            ("command", |s| s.command = vec!["".into()]),
            ("command", |s| s.command = vec!["a\0b".into()]),
            ("machine", |s| {
                s.machine = Some(MachineSpec { kernel: "vmlinuz".into(), overhead_mib: 288, ..Default::default() })
            }),
            ("machine", |s| s.machine = Some(MachineSpec { kernel: "/vmlinuz".into(), ..Default::default() })),
            ("egress", |s| s.egress = Egress::Rules(vec![])),
            ("egress", |s| s.egress = Egress::Rules(vec!["public".parse().unwrap(); MAX_RULES + 1])),
            ("network_mbit", |s| s.network_mbit = Some(0)),
            ("network_mbit", |s| s.network_mbit = Some(1_000_001)),
            ("env", |s| s.env = [("A=B".to_owned(), "x".to_owned())].into()),
        ];
        for (field, change) in cases {
            let mut changed = spec();
            change(&mut changed);
            assert_eq!(field_of(check(changed, 1_000)), field);
        }
    }

    #[test]
    fn unknown_fields_are_refused_and_secrets_stay_out_of_messages() {
        let mut value = serde_json::to_value(spec()).unwrap();
        value["colour"] = "red".into();
        let error = parse(value.to_string().as_bytes(), 0).unwrap_err();
        assert!(error.to_string().contains("colour"), "{error}");
        let mut secret = spec();
        secret.ssh_host_key = SecretText::new("hunter2");
        let shown = format!("{secret:?} {}", check(secret.clone(), 0).unwrap_err());
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn egress_as_it_is_written() {
        for (egress, written) in [
            (Egress::None, serde_json::json!("none")),
            (Egress::Host, serde_json::json!("host")),
            (Egress::Rules(vec!["Crates.io:443".parse().unwrap()]), serde_json::json!({ "rules": ["crates.io:443"] })),
        ] {
            assert_eq!(serde_json::to_value(&egress).unwrap(), written);
            assert_eq!(serde_json::from_value::<Egress>(written).unwrap(), egress);
        }
        let mut value = serde_json::to_value(spec()).unwrap();
        assert!(value.get("network_mbit").is_none());
        for (wrong, told) in [
            (serde_json::json!("all"), "unknown variant `all`"),
            (serde_json::json!({ "rules": ["127.0.0.1:80"] }), "no rule can open"),
            (serde_json::json!({ "wishes": [] }), "unknown variant `wishes`"),
        ] {
            value["egress"] = wrong;
            let error = parse(value.to_string().as_bytes(), 0).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = parse(&bytes, 0);
        }

        #[test]
        fn mutated_specs_never_panic(at in 0usize..4000, byte in any::<u8>()) {
            let mut bytes = serde_json::to_vec(&spec()).unwrap();
            let index = at % bytes.len();
            bytes[index] = byte;
            let _ = parse(&bytes, 0);
        }

        #[test]
        fn env_names_that_pass_are_safe(name in ".{0,20}", value in ".{0,20}") {
            if check_env(&name, &value).is_ok() {
                prop_assert!(!name.is_empty() && !name.contains('=') && !name.contains('\0') && !value.contains('\0'));
            }
        }
    }
}
