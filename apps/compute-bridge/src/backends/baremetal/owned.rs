//! What there is on a host: grants' directories, which of them run, and since when they are there.

use std::collections::{BTreeMap, BTreeSet};

use coalition_host::types::{ListReport, ListedGrant, Phase};

use super::BareMetalBackend;
use crate::backend::{BackendError, InstanceName, OwnedInstance};
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
            let grants = quote(&paths.grants);
            // Names, which everything rests on; then when each was made, where file system and `stat` know.
            let line =
                format!("ls -1 -- {grants}; echo {APART}; cd -- {grants} && stat -c '%W %n' -- * 2>/dev/null; true");
            let output = self.ssh.exec_again("listing grants", &line, SMALL).await?;
            Ok((report, String::from_utf8_lossy(&output.stdout).into_owned()))
        };
        let (report, said) = listed.await.map_err(|error| self.failed(&error, false))?;
        let (dirs, births) = said.split_once(&format!("{APART}\n")).unwrap_or((said.as_str(), ""));
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
