//! A snapshot for people: what the cloud counted beside what was metered and logged.

use coalition_cloud::rfc3339;
use coalition_compute::{Compared, TelemetrySnapshot};
use serde::Serialize;

use super::Kept;

/// One figure of both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// "CPU" in milliseconds of one core, "network" in bytes.
    pub what: &'static str,
    /// As metered by the bridge, and logged; absent for a try that failed.
    pub logged: Option<u64>,
    /// As the cloud counted, for the whole machine; absent where it did not.
    pub cloud: Option<u64>,
    /// Both compared, where there are both.
    pub compared: Option<Compared>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// In short.
    pub kept: Kept,
    /// The figures.
    pub lines: Vec<Line>,
    /// Everything that is signed.
    pub snapshot: TelemetrySnapshot,
}

impl Shown {
    /// Puts a snapshot's figures side by side.
    #[must_use]
    pub fn of(kept: Kept, snapshot: TelemetrySnapshot) -> Self {
        let line = |what, logged: Option<u64>, cloud: Option<u64>, unit| {
            let compared = logged.zip(cloud).map(|(logged, cloud)| Compared::of(logged, cloud, unit));
            Line { what, logged, cloud, compared }
        };
        let metered = snapshot.metered;
        let cpu = metered.map(|usage| usage.cpu_core_seconds.saturating_mul(1_000));
        let net = metered.map(|usage| usage.net_bytes);
        // Logs count whole seconds of CPU.
        let lines =
            vec![line("CPU", cpu, snapshot.cpu_core_ms(), 1_000), line("network", net, snapshot.net_bytes(), 1)];
        Self { kept, lines, snapshot }
    }

    /// For an operator or a program.
    #[must_use]
    pub fn text(&self, json: bool) -> String {
        if json { format!("{}\n", serde_json::to_string(self).unwrap_or_default()) } else { self.to_string() }
    }
}

fn figure(what: &str, number: Option<u64>) -> String {
    let Some(number) = number else { return "not counted".to_owned() };
    if what == "CPU" {
        return format!("{}.{:03} core-seconds", number / 1_000, number % 1_000);
    }
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| number >= *size) {
        Some((unit, size)) => format!("{}.{} {unit}", number / size, number % size * 10 / size),
        None => format!("{number} bytes"),
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let about = &self.snapshot;
        writeln!(f, "evidence  {}  ({} bytes)", self.kept.pointer(), self.kept.bytes)?;
        writeln!(f, "grant     {}", about.grant_id)?;
        writeln!(f, "machine   {} on {} {} ({})", about.instance, about.cloud, about.region, about.host)?;
        writeln!(f, "window    {} to {}", rfc3339(about.from_s), rfc3339(about.to_s))?;
        writeln!(f, "taken     {}, signed by provider {}", rfc3339(about.taken_ms / 1_000), about.provider)?;
        for fact in &about.facts {
            writeln!(f, "  {:<28} {}  [{}]", fact.name, fact.value, fact.call)?;
        }
        for series in &about.series {
            let (count, first) = (series.points.len(), series.points.first().map_or(0, |point| point.at_s));
            let (metric, statistic, period_s) = (&series.metric, &series.statistic, series.period_s);
            writeln!(
                f,
                "  {metric}: {count} points of {period_s} s ({statistic}) from {}  [{}]",
                rfc3339(first),
                series.call
            )?;
        }
        for line in &self.lines {
            let mark = match line.compared {
                Some(compared) if compared.suspicious => "   DIFFERS: more than 2 % apart",
                _ => "",
            };
            let apart = line.compared.map_or_else(String::new, |compared| {
                format!(", {}.{} % apart", compared.permille / 10, compared.permille % 10)
            });
            let (logged, cloud) = (figure(line.what, line.logged), figure(line.what, line.cloud));
            writeln!(f, "{:<9} logged {logged}; the cloud counted {cloud}{apart}{mark}", line.what)?;
        }
        writeln!(
            f,
            "The cloud counts the whole machine, its system and the image's way to it included; logs count the workload alone."
        )
    }
}
