//! What there is on a host: grants' directories, which of them run, and since when they are there.

use std::collections::{BTreeMap, BTreeSet};

use coalition_host::types::{ListReport, ListedGrant, Phase};

use super::BareMetalBackend;
use crate::backend::{BackendError, FailureKind, InstanceName, OwnedInstance};
use crate::backends::runner::SMALL;
use crate::ssh::quote;

/// Between two lists; no file is called so.
const APART: &str = "/";

impl BareMetalBackend {
    pub(super) async fn owned(&self) -> Result<Vec<OwnedInstance>, BackendError> {
        let listed = async {
            let paths = self.runner.paths(&self.ssh).await?;
            let report: ListReport =
                self.runner.call(&self.ssh, "list", &[("--root", &paths.grants)], SMALL, true).await?;
            Ok((report, self.ssh.exec_again("listing grants", &listing(&paths.grants), SMALL).await?))
        };
        let (report, output) = listed.await.map_err(|error| self.failed(&error, false))?;
        let said = String::from_utf8_lossy(&output.stdout);
        // A list that was not made is no empty one.
        let (dirs, births) = said.split_once(&format!("{APART}\n")).ok_or_else(|| {
            let message = format!("the grants on this machine cannot be listed: {}", output.stderr_tail());
            self.error(FailureKind::Transient, message, false)
        })?;
        let born = born(births);
        let name_of = |grant: &ListedGrant| grant.dir.file_name()?.to_str().map(str::to_owned);
        let running: BTreeSet<String> = report.grants.iter().filter(|grant| runs(grant)).filter_map(name_of).collect();
        // Whose directory somebody else removed is still there as long as its unit is.
        let strays: Vec<String> =
            report.grants.iter().filter(|grant| grant.unit.is_some()).filter_map(name_of).collect();
        let owned = |dir: &str| {
            let name = InstanceName::try_from(dir.trim().to_owned()).ok()?;
            let running = running.contains(name.as_str());
            let since_ms = born.get(name.as_str()).map(|since_s| since_s.saturating_mul(1_000));
            Some(OwnedInstance { name, running, since_ms, size: None })
        };
        Ok(dirs.lines().chain(strays.iter().map(String::as_str)).filter_map(owned).collect())
    }
}

/// Lists names, which everything rests on; then when each was made, where file system and `stat` know.
fn listing(grants: &str) -> String {
    let grants = quote(grants);
    format!(
        "if [ -e {grants} ]; then ls -1 -- {grants} || exit 1; fi; echo {APART}; \
         cd -- {grants} 2>/dev/null && stat -c '%W %n' -- * 2>/dev/null; true"
    )
}

fn runs(grant: &ListedGrant) -> bool {
    let phase = grant.state.as_ref().map(|state| &state.phase);
    grant.unit.is_some() || matches!(phase, Some(Phase::Starting | Phase::Ready { .. }))
}

/// Unix seconds at which directories were made, from lines of `SECONDS NAME`.
fn born(lines: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (since_s, name) = line.split_once(' ')?;
        Some((name.to_owned(), since_s.parse::<u64>().ok().filter(|since_s| *since_s > 0)?))
    };
    lines.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_list_that_cannot_be_made_is_no_empty_one() {
        let temp = tempfile::tempdir().unwrap();
        let said = |dir: &str, path: &str| {
            let line = listing(temp.path().join(dir).to_str().unwrap());
            let output = Command::new("/bin/sh").args(["-c", &line]).env("PATH", path).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let path = std::env::var("PATH").unwrap();
        std::fs::create_dir_all(temp.path().join("it's here/aabb")).unwrap();
        let whole = said("it's here", &path);
        let (dirs, births) = whole.split_once("/\n").unwrap();
        assert_eq!(dirs, "aabb\n");
        assert!(births.ends_with(" aabb\n"), "{births}");
        assert_eq!(said("never made", &path), "/\n");
        // No `ls`, as where nothing can be started any more.
        assert!(!said("it's here", "/nowhere").contains("/\n"));
    }
}
