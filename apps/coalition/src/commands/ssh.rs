//! `coalition ssh`: OpenSSH's client, with the host key pinned from the receipt.

use std::{ffi::OsString, io, os::unix::process::CommandExt, path::Path, process::Command};

use super::request::posture_line;
use crate::{
    attestation::{self, Workload},
    cli::SshArgs,
    error::{CliError, Context, Kind, Result},
    forward::Forward,
    grants::{self, Access, Grant, Stage},
    home::Home,
    output::Output,
    request::now_ms,
    roles::config::UniverseConfig,
    values, view,
};
use coalition_attest::{Directory, Evidence, Verdict};
use coalition_shuffle::{Posture, SshHostKey};

/// Replaces this process with OpenSSH's client.
///
/// # Errors
/// An unknown or ended grant, or no `ssh` on this machine. On success it does not return.
pub fn run(home: &Home, args: &SshArgs, output: &Output) -> Result<()> {
    let (grant, access) = enter(home, args.grant.as_deref(), output)?;
    Err(become_program("ssh", &arguments(&grant, &access, &args.forward, &args.command)))
}

/// A grant that can be entered, having said what vouches for its machine.
///
/// # Errors
/// As [`grants::find`] and [`access`]; [`Kind::Unproven`] when the machine does not prove what it must.
pub fn enter(home: &Home, wanted: Option<&str>, output: &Output) -> Result<(Grant, Access)> {
    let grant = grants::find(home, wanted)?;
    let access = access(&grant)?.clone();
    let posture = verify(home, &grant, &access)?;
    output.note(posture_line(&posture, &access.isolation, output));
    Ok((grant, access))
}

/// Replaces this process with a program of OpenSSH's; answers why it could not.
#[must_use]
pub fn become_program(program: &str, arguments: &[OsString]) -> CliError {
    let error = Command::new(program).args(arguments).exec();
    if error.kind() == io::ErrorKind::NotFound {
        return CliError::input("no_ssh", format!("there is no `{program}` on this machine"))
            .hint("install OpenSSH's client: `apt-get install openssh-client`");
    }
    CliError::fault("ssh", format!("{program} cannot be started")).because(error)
}

/// What vouches for the machine, found again from its evidence: before the first byte is typed, and whatever was said then.
///
/// # Errors
/// [`Kind::Unproven`] when the machine must be inside TDX and its quote is not valid now.
fn verify(home: &Home, grant: &Grant, access: &Access) -> Result<String> {
    let required = grant.file.cleared.as_ref().is_some_and(|cleared| cleared.tdx_required);
    let verdict = match &access.quoted_host_key {
        Some(host_key) => judge(home, grant, host_key)?,
        None => None,
    };
    // Nothing that was said earlier is repeated: it was not checked now.
    let vouched = attestation::vouch(required, Posture::NotAttested, verdict)?;
    Ok(vouched.posture)
}

/// The verdict on the kept evidence, which must bind the very key that OpenSSH is told to expect.
fn judge(home: &Home, grant: &Grant, host_key: &str) -> Result<Option<Verdict>> {
    let damaged = || format!("the evidence of grant {} cannot be read", grant.short());
    let bytes = std::fs::read(grant.evidence_path()).or_input("grant_damaged", damaged)?;
    let evidence = Evidence::from_bytes(&bytes).or_input("grant_damaged", damaged)?;
    let host_key: [u8; 32] = coalition::serde_hex::parse(host_key).or_input("grant_damaged", damaged)?;
    let pinned = std::fs::read_to_string(grant.known_hosts_path()).or_input("grant_damaged", damaged)?;
    let expected = SshHostKey(host_key).to_openssh();
    if !pinned.lines().filter(|line| !line.trim().is_empty()).all(|line| line.contains(&expected)) {
        let message = format!("grant {} pins another host key than its quote binds", grant.short());
        return Err(CliError::new(Kind::Unproven, "host_key_differs", message)
            .hint("its directory below `grants` was changed; ask for another machine"));
    }
    let (_, config) = UniverseConfig::load(&home.universe())?;
    let compute = view::compute(&config)?;
    let workload = Workload {
        organism: compute.id,
        params: &compute.params,
        request: grant.file.grant,
        image: coalition::parse_id(&grant.file.image).or_input("grant_damaged", damaged)?,
        expected_mrtd: grant.file.cleared.as_ref().and_then(|cleared| cleared.expected_mrtd),
        host_key,
        requested_ms: grant.file.requested_ms,
    };
    let own = Directory::new(home.collateral());
    Ok(attestation::judge(&workload, &evidence, &own, now_ms()))
}

/// How to get into a grant that is ready and not over.
///
/// # Errors
/// [`Kind::Refused`] saying how far it is.
pub fn access(grant: &Grant) -> Result<&Access> {
    let refused = |code: &str, message: String| CliError::new(Kind::Refused, code, message);
    let short = grant.short();
    let access = match (grant.file.stage, &grant.file.access) {
        (Stage::Withdrawn, _) => return Err(refused("grant_over", format!("request {short} was withdrawn"))),
        (Stage::Ended, _) => {
            let error = refused("grant_over", format!("grant {short} has ended and its key is dead"));
            return Err(error.hint(format!("see `coalition log {short}`")));
        }
        (_, Some(access)) => access,
        (stage, None) => {
            let message = format!("request {short} is {}, its receipt has not come", stage.word());
            let hint = format!("the process that requests it gets it; `coalition log {short}` says how it stands");
            return Err(refused("no_receipt", message).hint(hint));
        }
    };
    if let Some(cleared) = grant.file.cleared.as_ref().filter(|cleared| cleared.valid_to_ms <= now_ms()) {
        let message = format!("grant {short} ended at {} and its key is dead", values::utc(cleared.valid_to_ms));
        return Err(refused("grant_over", message).hint("ask for another: `coalition request --help`"));
    }
    Ok(access)
}

/// The arguments of `ssh`.
#[must_use]
pub fn arguments(grant: &Grant, access: &Access, forwards: &[Forward], command: &[String]) -> Vec<OsString> {
    let mut arguments = options(grant);
    if !forwards.is_empty() {
        arguments.extend(["-o".into(), "ExitOnForwardFailure=yes".into()]);
    }
    for forward in forwards {
        arguments.extend(["-L".into(), forward.to_string().into()]);
    }
    arguments.extend(["-p".into(), access.port.to_string().into(), "-l".into(), access.user.clone().into()]);
    arguments.extend(["--".into(), access.host.clone().into()]);
    arguments.extend(command.iter().map(OsString::from));
    arguments
}

/// What every program of OpenSSH's is told: this key, this host key, nothing of the user's own configuration.
#[must_use]
pub fn options(grant: &Grant) -> Vec<OsString> {
    let options = [
        ("UserKnownHostsFile", quoted(&grant.known_hosts_path())),
        ("GlobalKnownHostsFile", "/dev/null".into()),
        ("StrictHostKeyChecking", "yes".into()),
        ("CheckHostIP", "no".into()),
        ("IdentitiesOnly", "yes".into()),
        ("IdentityAgent", "none".into()),
        ("PreferredAuthentications", "publickey".into()),
        ("PasswordAuthentication", "no".into()),
        ("UpdateHostKeys", "no".into()),
        ("ServerAliveInterval", "15".into()),
        ("ConnectTimeout", "15".into()),
        ("LogLevel", "ERROR".into()),
    ];
    let mut arguments: Vec<OsString> = vec!["-F".into(), "none".into()];
    for (name, value) in options {
        arguments.extend(["-o".into(), format!("{name}={value}").into()]);
    }
    arguments.extend(["-i".into(), grant.key_path().into_os_string()]);
    arguments
}

/// A path as OpenSSH's option parser takes it: quoted, because it splits lists of files at blanks, and with its own escapes
/// doubled.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use coalition::RequestId;
    use coalition_universe::NodeKey;

    use super::*;
    use crate::grants::{Cleared, GrantFile};

    fn grant(home: &Home, stage: Stage, valid_to_ms: u64, with_access: bool) -> Grant {
        let access = Access {
            host: "127.0.0.1".into(),
            port: 2_222,
            user: "root".into(),
            isolation: "i".into(),
            posture: "not attested".into(),
            quoted_host_key: None,
        };
        let cleared = Cleared {
            provider: "ab".repeat(32),
            offer: "o".into(),
            region: "r".into(),
            rate: coalition::RateQ64::ZERO,
            valid_to_ms,
            tdx_required: false,
            expected_mrtd: None,
        };
        let file = GrantFile {
            version: 1,
            grant: RequestId::from_bytes(rand::random()),
            coalition: "c".into(),
            requested_ms: 1,
            stage,
            image: "i".into(),
            cpu_millicores: 1,
            ram_mib: 1,
            duration_s: 1,
            cleared: Some(cleared),
            access: with_access.then_some(access),
            workload_exit: None,
        };
        Grant::create(home, file, &NodeKey::generate()).unwrap()
    }

    #[test]
    fn only_a_living_grant_with_a_receipt_can_be_entered() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(dir.path())).unwrap();
        let later = now_ms() + 60_000;
        assert!(access(&grant(&home, Stage::Ready, later, true)).is_ok());
        for (stage, until, with_access, code) in [
            (Stage::Ready, 1, true, "grant_over"),
            (Stage::Ended, later, true, "grant_over"),
            (Stage::Withdrawn, later, false, "grant_over"),
            (Stage::Granted, later, false, "no_receipt"),
        ] {
            let refused = access(&grant(&home, stage, until, with_access)).map(|_| ()).unwrap_err();
            assert_eq!((refused.code(), refused.kind()), (code, Kind::Refused));
        }
    }

    #[test]
    fn the_client_is_told_everything_and_asks_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(&dir.path().join("with blank"))).unwrap();
        home.ensure().unwrap();
        let grant = grant(&home, Stage::Ready, u64::MAX, true);
        let arguments = arguments(
            &grant,
            grant.file.access.as_ref().unwrap(),
            &["1:localhost:2".parse().unwrap()],
            &["uname".into(), "-a".into()],
        );
        let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let joined = words.join(" ");
        for expected in [
            "-F none",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "-o ExitOnForwardFailure=yes -L 127.0.0.1:1:localhost:2 -p 2222 -l root -- 127.0.0.1 uname -a",
        ] {
            assert!(joined.contains(expected), "{expected} in {joined}");
        }
        assert!(words.iter().any(|word| word.starts_with("UserKnownHostsFile=\"") && word.contains("with blank")));
    }
}
