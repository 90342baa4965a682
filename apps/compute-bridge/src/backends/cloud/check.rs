//! What an operator wants to know before selling from a cloud: every step a grant takes, as far as it costs nothing; and, when
//! asked, one machine made, logged in to and ended.

use coalition::RequestId;
use coalition_cloud::{CloudError, Confidential, NewHost, Window};

use super::ledger::Size;
use super::{CloudBackend, CloudSetup, Wanted};
use crate::backend::{Backend, InstanceName};
use crate::check::Finding;
use crate::fleet::chain;

/// How long the machine of a round trip may run, in seconds. It switches itself off then, also when nobody is left to end it.
const ROUND_TRIP_S: u64 = 900;

impl CloudBackend {
    pub(super) async fn look_over(&self, create: bool) -> Vec<Finding> {
        let mut findings = vec![self.credentials().await];
        if !findings[0].ok {
            return findings;
        }
        findings.push(self.image().await);
        findings.push(self.sizes().await);
        findings.push(self.quota().await);
        findings.push(self.sight().await);
        findings.extend(self.permission().await);
        let all_well = findings.iter().all(|finding| finding.ok);
        findings.push(self.telemetry_sight().await);
        findings.push(match (create, all_well) {
            (true, true) => self.round_trip().await,
            (true, false) => self.found("round trip", false, "not tried: see above".into()),
            (false, _) => self.found("round trip", true, format!("not tried; --create does it for {}", self.cost())),
        });
        findings
    }

    fn found(&self, what: &str, ok: bool, detail: String) -> Finding {
        Finding::new(format!("{} {what}", self.offer()), ok, detail)
    }

    fn judged(&self, what: &str, result: Result<String, CloudError>) -> Finding {
        match result {
            Ok(detail) => self.found(what, true, detail),
            Err(error) => self.found(what, false, chain(&error)),
        }
    }

    async fn credentials(&self) -> Finding {
        self.judged("credentials", self.setup.cloud.identity().await)
    }

    async fn image(&self) -> Finding {
        match self.setup.cloud.image().await {
            Ok(image) => {
                let fits = image.architecture == std::env::consts::ARCH || self.setup.host.program.is_some();
                let state = image.unusable.as_deref().unwrap_or("available");
                let detail =
                    format!("{} is {state}, {}, {} GiB at least", image.id, image.architecture, image.disk_gib);
                let hint = if fits { "" } else { "; this program is not for it, name one that is as `runner`" };
                self.found("image", fits && image.unusable.is_none(), format!("{detail}{hint}"))
            }
            Err(error) => self.found("image", false, chain(&error)),
        }
    }

    async fn sizes(&self) -> Finding {
        let names: Vec<&str> = self.setup.sizes.iter().map(|size| size.name.as_str()).collect();
        let known = match self.setup.cloud.sizes(&names).await {
            Ok(known) => known,
            Err(error) => return self.found("sizes", false, chain(&error)),
        };
        let problem = |size: &Size| {
            let name = &size.name;
            let Some(real) = known.iter().find(|real| real.name == *name) else {
                return Some(format!("{} has no {name}", self.setup.cloud.region()));
            };
            let has = (real.vcpus.saturating_mul(1_000), real.ram_mib);
            if size.cpu_millicores > has.0 || size.ram_mib > has.1 {
                let sold = (size.cpu_millicores, size.ram_mib);
                return Some(format!(
                    "{name} has {} mCPU and {} MiB, sold are {} and {}",
                    has.0, has.1, sold.0, sold.1
                ));
            }
            let lacks = size.confidential.filter(|kind| !real.confidential.contains(kind))?;
            Some(format!("{name} does not run under {}", called(lacks)))
        };
        let problems: Vec<String> = self.setup.sizes.iter().filter_map(problem).collect();
        if problems.is_empty() {
            let tdx = known.iter().any(|size| size.confidential.contains(&Confidential::Tdx));
            let note = if tdx { "" } else { "; none runs under Intel TDX" };
            return self.found("sizes", true, format!("{}{note}", names.join(", ")));
        }
        self.found("sizes", false, problems.join("; "))
    }

    async fn quota(&self) -> Finding {
        let declared = self.setup.max_instances;
        match self.facts().await {
            Ok(facts) => {
                let fit = self.limits().instances(&self.setup.sizes);
                let enough = facts.quota.vcpus.is_none() || fit > 0;
                let detail =
                    format!("{declared} instances declared; {}; {fit} of the largest size fit", facts.quota.text);
                self.found("quota", enough, detail)
            }
            Err(error) => self.found("quota", false, error.message),
        }
    }

    async fn sight(&self) -> Finding {
        match self.list_owned().await {
            Ok(owned) => self.found("inventory", true, format!("{} hosts or leftovers of this offer", owned.len())),
            Err(error) => self.found("inventory", false, error.message),
        }
    }

    /// Grants are served without it, too; their logs have no evidence then.
    async fn telemetry_sight(&self) -> Finding {
        let to_s = crate::now_ms() / 1_000;
        let window = Window { from_s: to_s.saturating_sub(600), to_s };
        match self.setup.cloud.may_read_telemetry(window).await {
            Ok(detail) => self.found("telemetry", true, detail),
            Err(error) => self.found(
                "telemetry",
                false,
                format!("{}; logs go without evidence until it may be read", chain(&error)),
            ),
        }
    }

    /// Asks, without making anything, whether hosts may be made in every place and of every size.
    async fn permission(&self) -> Vec<Finding> {
        let marks = self.marks(&self.trial_name(), "none: a check".into(), 0);
        let Ok(facts) = self.facts().await else { return Vec::new() };
        let mut findings = Vec::new();
        for place in self.setup.cloud.places() {
            for size in &self.setup.sizes {
                let new = NewHost {
                    marks: &marks,
                    place,
                    size: &size.name,
                    confidential: size.confidential,
                    user_data: b"#cloud-config\n{}\n",
                    disk_gib: facts.image.disk_gib.max(self.setup.root_gib),
                    longest_s: ROUND_TRIP_S,
                };
                let what = format!("permission to make a {} in {place}", size.name);
                findings.push(self.judged(&what, self.setup.cloud.may_create(&new).await));
            }
        }
        findings
    }

    fn trial_name(&self) -> InstanceName {
        let parts: [&[u8]; 3] = [b"check", &crate::now_ms().to_be_bytes(), &std::process::id().to_be_bytes()];
        InstanceName::derive(&self.setup.provider, &RequestId(coalition::hash_many(&parts)), 0)
    }

    fn cheapest(&self) -> &Size {
        let cheapest = self.setup.sizes.iter().min_by_key(|size| size.price_hour);
        cheapest.expect("an offer has at least one size: the boot file is checked for it")
    }

    fn cost(&self) -> String {
        let size = self.cheapest();
        let most = size.price_hour.cost_of(ROUND_TRIP_S).map_or_else(|| "(much)".to_owned(), |cost| cost.to_string());
        format!("at most {most} (one {}, {} min; clouds bill at least a minute)", size.name, ROUND_TRIP_S / 60)
    }

    /// One machine under an offer of its own, so that a bridge that runs does not take it for an orphan.
    async fn round_trip(&self) -> Finding {
        let name = format!("check-{}", self.offer());
        let name = name.parse().or_else(|_| "check".parse());
        let Ok(name) = name else { return self.found("round trip", false, "its offer cannot be named".into()) };
        let trial = Self::new(CloudSetup { name, ..self.setup.clone() });
        // What an earlier check left, should it have been killed.
        for left in trial.list_owned().await.unwrap_or_default() {
            let _ = trial.terminate(&left.name).await;
        }
        let (name, started) = (trial.trial_name(), std::time::Instant::now());
        let ends_ms = crate::now_ms().saturating_add(ROUND_TRIP_S * 1_000);
        let size = trial.cheapest();
        let wanted = Wanted { name: &name, grant: "none: a check".into(), size, ends_ms, disk_mib: 1_024 };
        let obtained = trial.obtain(&wanted).await.map(|_| started.elapsed());
        let ended = trial.terminate(&name).await;
        let what = self.cost();
        match (obtained, ended) {
            (Ok(took), Ok(())) => {
                let detail = format!(
                    "{what}: usable after {} s, ended and confirmed after {} s",
                    took.as_secs(),
                    started.elapsed().as_secs()
                );
                self.found("round trip", true, detail)
            }
            (Err(error), Ok(())) => self.found("round trip", false, format!("{what}: {}; it was ended", chain(&error))),
            (_, Err(error)) => {
                let problem = format!(
                    "{what}: the machine could not be ended ({}); it costs {} USD an hour and switches itself off within {} min; \
                     to end it now, delete the host marked instance = {name} in {} {}",
                    chain(&error),
                    size.price_hour,
                    (ROUND_TRIP_S + self.setup.poweroff_after.as_secs()) / 60,
                    self.setup.cloud.name(),
                    self.setup.cloud.region(),
                );
                self.found("round trip", false, problem)
            }
        }
    }
}

const fn called(kind: Confidential) -> &'static str {
    match kind {
        Confidential::Tdx => "Intel TDX",
        Confidential::SevSnp => "AMD SEV-SNP",
    }
}
