//! Grants as units of systemd: what they are called, what systemd is asked for, and how its answers read. Pure.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// The slice that all units of ours are in, for operators to look at and to limit.
pub const SLICE: &str = "coalition.slice";
const GRANT: &str = "coalition-grant-";
const PROBE: &str = "coalition-probe-";
const SERVICE: &str = ".service";
/// What systemd asks for to list all grants' units.
pub const ALL_GRANTS: &str = "coalition-grant-*.service";
/// Between a grant's end and the end that systemd puts to its unit, should the supervisor and the environment both hang.
pub const GRACE: Duration = Duration::from_secs(30);
/// How long a supervisor may take to end its grant when systemd stops its unit, before everything in it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The unit of a grant.
#[must_use]
pub fn of_grant(grant_id: &str) -> String {
    format!("{GRANT}{grant_id}{SERVICE}")
}

/// The unit of a probe by this process.
#[must_use]
pub fn of_probe(pid: u32) -> String {
    format!("{PROBE}{pid}{SERVICE}")
}

/// True for the names that [`of_grant`] and [`of_probe`] make.
#[must_use]
pub fn is_ours(name: &str) -> bool {
    name.ends_with(SERVICE) && [GRANT, PROBE].iter().any(|start| name.starts_with(start))
}

/// What is to run as a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// What operators read beside it.
    pub description: String,
    /// The program, absolute, and its arguments.
    pub command: Vec<String>,
    /// Variables; systemd's own come beside them.
    pub env: Vec<(String, String)>,
    /// Where its standard output goes; a pipe's name, mostly. Absolute.
    pub output: PathBuf,
    /// Where its standard error is appended. Absolute.
    pub log: PathBuf,
    /// After so long systemd ends it, unless it says otherwise.
    pub lasts: Duration,
}

impl Unit {
    /// The arguments of `systemd-run`, or why there are none.
    ///
    /// # Errors
    /// What of it no unit can have.
    pub fn arguments(&self) -> Result<Vec<String>, String> {
        let mut line: Vec<String> = ["--quiet", "--collect", "--no-ask-password", "--service-type=exec"]
            .into_iter()
            .map(str::to_owned)
            .collect();
        line.push(format!("--unit={}", self.name));
        line.push(format!("--slice={SLICE}"));
        line.push(format!("--description={}", self.description));
        for property in self.properties()? {
            line.push(format!("--property={property}"));
        }
        line.extend(self.env.iter().map(|(name, value)| format!("--setenv={name}={value}")));
        line.push("--".to_owned());
        // The manager replaces variables in a command; a dollar that is meant is written twice.
        line.extend(self.command.iter().map(|word| word.replace('$', "$$")));
        match line.iter().find(|word| word.contains(['\n', '\0'])) {
            Some(word) => Err(format!("{word:?} cannot be part of a unit")),
            None => Ok(line),
        }
    }

    fn properties(&self) -> Result<Vec<String>, String> {
        let text = |path: &Path| path.to_str().map(str::to_owned).ok_or_else(|| format!("{path:?} is not UTF-8"));
        Ok(vec![
            // The groups below the unit's are the supervisor's to make.
            "Delegate=yes".into(),
            // Told to stop, the supervisor ends its grant in order; when it is gone, whatever is left is killed.
            "KillMode=mixed".into(),
            format!("TimeoutStopSec={}", STOP_LIMIT.as_secs()),
            format!("RuntimeMaxSec={}ms", self.lasts.as_millis()),
            // A workload that runs out of its memory is no reason to end the grant, which systemd 252 would.
            "OOMPolicy=continue".into(),
            // The grant's own limit is in its own group; the manager's default may be below it.
            "TasksMax=infinity".into(),
            "NotifyAccess=main".into(),
            format!("StandardOutput=file:{}", text(&self.output)?),
            format!("StandardError=append:{}", text(&self.log)?),
        ])
    }
}

/// How a grant's unit is described: readable, and the way back from a unit to its grant's directory.
#[must_use]
pub fn describe_grant(grant_id: &str, dir: &str) -> String {
    format!("coalition grant {grant_id} in {dir}")
}

/// A grant's unit as systemd shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// The directory of its grant.
    pub dir: PathBuf,
}

/// Properties that [`parse_shown`] reads.
pub const SHOWN: &str = "--property=Id,Description,ActiveState";

/// Units that still have processes, from what `systemctl show` says: blocks of `Name=value` with empty lines between them.
#[must_use]
pub fn parse_shown(text: &str) -> Vec<Shown> {
    let shown = |block: &str| {
        let value = |name: &str| block.split('\n').find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let name = value("Id")?;
        let grant_id = name.strip_prefix(GRANT)?.strip_suffix(SERVICE)?;
        let dir = value("Description")?.strip_prefix(&describe_grant(grant_id, ""))?;
        (is_live(value("ActiveState")?) && dir.starts_with('/')).then(|| Shown { name: name.into(), dir: dir.into() })
    };
    text.split("\n\n").filter_map(shown).collect()
}

/// True for states of units that have processes, or may.
#[must_use]
pub fn is_live(active_state: &str) -> bool {
    !matches!(active_state.trim(), "" | "inactive" | "failed")
}

/// What a unit says to its manager so that it may last that long from now; it can only ever last longer.
#[must_use]
pub fn lasts_longer(left: Duration) -> String {
    format!("EXTEND_TIMEOUT_USEC={}", left.as_micros())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unit(dir: &str) -> Unit {
        Unit {
            name: of_grant("00aa11bb"),
            description: describe_grant("00aa11bb", dir),
            command: vec!["/home/me/runner".into(), "runner".into(), "supervise".into(), "--dir".into(), dir.into()],
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            output: Path::new(dir).join("answer"),
            log: Path::new(dir).join("runner.log"),
            lasts: Duration::from_millis(61_500),
        }
    }

    #[test]
    fn golden_unit() {
        let expected = "--quiet --collect --no-ask-password --service-type=exec --unit=coalition-grant-00aa11bb.service \
                        --slice=coalition.slice --description=coalition grant 00aa11bb in /g/$1 --property=Delegate=yes \
                        --property=KillMode=mixed --property=TimeoutStopSec=30 --property=RuntimeMaxSec=61500ms \
                        --property=OOMPolicy=continue --property=TasksMax=infinity --property=NotifyAccess=main \
                        --property=StandardOutput=file:/g/$1/answer --property=StandardError=append:/g/$1/runner.log \
                        --setenv=PATH=/usr/bin:/bin -- /home/me/runner runner supervise --dir /g/$$1";
        assert_eq!(unit("/g/$1").arguments().unwrap().join(" "), expected);
        assert!(unit("/g/\nExecStartPre=evil").arguments().unwrap_err().contains("cannot be part of a unit"));
    }

    #[test]
    fn names_are_told_from_others() {
        assert!(is_ours(&of_grant("aa")) && is_ours(&of_probe(7)));
        for other in ["coalition-bridge.service", "coalition-grant-aa.scope", "coalition.slice", "ssh.service", ""] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn what_systemctl_shows_is_read() {
        let text = "Id=coalition-grant-aa.service\nDescription=coalition grant aa in /a b/g=1\nActiveState=active\n\n\
                    Id=coalition-grant-bb.service\nDescription=coalition grant bb in /b\nActiveState=failed\n\n\
                    Id=coalition-grant-cc.service\nDescription=coalition grant aa in /c\nActiveState=active\n\n\
                    ActiveState=deactivating\nDescription=coalition grant dd in /d\nId=coalition-grant-dd.service\n";
        let shown = |name: &str, dir: &str| Shown { name: of_grant(name), dir: dir.into() };
        assert_eq!(parse_shown(text), [shown("aa", "/a b/g=1"), shown("dd", "/d")]);
        assert!(parse_shown("").is_empty());
    }

    proptest! {
        #[test]
        fn what_was_described_is_found_again(id in "[0-9a-f]{8,64}", dir in "/[^\n]{0,40}") {
            let text = format!("ActiveState=active\nId={}\nDescription={}\n", of_grant(&id), describe_grant(&id, &dir));
            prop_assert_eq!(parse_shown(&text), vec![Shown { name: of_grant(&id), dir: dir.into() }]);
        }

        #[test]
        fn whatever_is_shown_is_no_panic(text in "\\PC*") {
            prop_assert!(parse_shown(&text).iter().all(|shown| is_ours(&shown.name) && shown.dir.is_absolute()));
        }
    }
}
