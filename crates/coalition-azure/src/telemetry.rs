//! What Azure Monitor counted of a machine, and what its instance view says of its life.

use coalition_cloud::{Counts, Fact, Point, Series, Telemetry, Window, rfc3339, unix_s};
use serde_json::Value;

use crate::action::Action;
use crate::body::name_of;
use crate::client::{Ask, Azure};
use crate::error::AzureError;

/// The calls, as the evidence names them.
const METRICS_CALL: &str = "Microsoft.Insights/metrics";
const MACHINE_CALL: &str = "Microsoft.Compute/virtualMachines?$expand=instanceView";
const METRICS_API: &str = "2024-02-01";
/// Periods Azure Monitor has, and what it calls them.
const PERIODS: [u64; 4] = [60, 300, 3_600, 86_400];
const NAMES: [&str; 4] = ["PT1M", "PT5M", "PT1H", "P1D"];
/// Metric, statistic, its name in a point, what it counts.
const METRICS: [(&str, &str, &str, Counts); 3] = [
    ("Percentage CPU", "Average", "average", Counts::CpuPercent),
    ("Network In Total", "Total", "total", Counts::NetBytes),
    ("Network Out Total", "Total", "total", Counts::NetBytes),
];
/// Most statuses of an instance view kept.
const MAX_STATUSES: usize = 6;

impl Azure {
    /// What was counted of the machine of an instance, as long as it is there.
    pub(crate) async fn counted(&self, instance: &str, window: Window) -> Result<Telemetry, AzureError> {
        let action = Action::GetMachine;
        let name = name_of(instance).map_err(|problem| AzureError::Impossible { action, problem })?;
        let machine = Ask::get(action, self.machine_url(&name, "$expand=instanceView&"));
        let (machine, series) = tokio::try_join!(self.ask(&machine), self.metrics(&name, window))?;
        let facts = read_facts(&machine.body).map_err(|problem| AzureError::Garbled { action, problem })?;
        Ok(Telemetry { host: name, facts, series })
    }

    pub(crate) async fn metrics(&self, name: &str, window: Window) -> Result<Vec<Series>, AzureError> {
        let action = Action::ReadMetrics;
        let period_s = window.period_s(&PERIODS);
        let interval = PERIODS.iter().position(|period| *period == period_s).map_or(NAMES[0], |at| NAMES[at]);
        let whole = window.whole(period_s);
        let names = METRICS.map(|(metric, ..)| metric).join(",");
        let path = format!(
            "/providers/Microsoft.Compute/virtualMachines/{name}/providers/Microsoft.Insights/metrics?api-version={METRICS_API}\
             &metricnames={names}&aggregation=Average,Total&interval={interval}&timespan={}/{}",
            rfc3339(whole.from_s),
            rfc3339(whole.to_s),
        );
        let answer = self.ask(&Ask::get(action, self.in_group(&path))).await?;
        read_metrics(&answer.body, period_s).map_err(|problem| AzureError::Garbled { action, problem })
    }
}

/// The series of an answer; points that were not counted have no number.
pub(crate) fn read_metrics(body: &[u8], period_s: u64) -> Result<Vec<Series>, String> {
    let said: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let listed = said.get("value").and_then(Value::as_array).ok_or("it has no value")?;
    let of = |(metric, statistic, key, counts): &(&str, &'static str, &str, Counts)| {
        let found = listed.iter().find(|one| one["name"]["value"] == *metric)?;
        let data = found["timeseries"].get(0)?.get("data")?.as_array()?;
        let point = |point: &Value| {
            Point::of(unix_s(point["timeStamp"].as_str()?)?, &point.get(*key)?.as_number()?.to_string())
        };
        let points: Vec<Point> = data.iter().filter_map(point).collect();
        let (call, metric) = (METRICS_CALL, (*metric).to_owned());
        let series = Series { call, metric, statistic, counts: *counts, period_s, points };
        (!series.points.is_empty()).then(|| series.in_order())
    };
    Ok(METRICS.iter().filter_map(of).collect())
}

/// What the machine's own document says.
pub(crate) fn read_facts(body: &[u8]) -> Result<Vec<Fact>, String> {
    let said: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let properties = said.get("properties").and_then(Value::as_object).ok_or("it has no properties")?;
    let text = |name: &str| properties.get(name).and_then(Value::as_str);
    let size = said.pointer("/properties/hardwareProfile/vmSize").and_then(Value::as_str);
    let own = [
        ("vmId", text("vmId")),
        ("vmSize", size),
        ("timeCreated", text("timeCreated")),
        ("provisioningState", text("provisioningState")),
    ];
    let own = own.into_iter().filter_map(|(name, value)| Fact::of(MACHINE_CALL, name, value));
    let statuses = said.pointer("/properties/instanceView/statuses").and_then(Value::as_array);
    let status =
        |status: &Value| Fact::of(MACHINE_CALL, status["code"].as_str()?, status["time"].as_str().or(Some("-")));
    Ok(own.chain(statuses.into_iter().flatten().take(MAX_STATUSES).filter_map(status)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_and_facts_are_read() {
        let text = r#"{"timespan":"a/b","interval":"PT1M","value":[
            {"name":{"value":"Percentage CPU","localizedValue":"x"},"unit":"Percent","timeseries":[{"metadatavalues":[],"data":[
                {"timeStamp":"2026-01-01T00:01:00Z","average":12.25},{"timeStamp":"2026-01-01T00:00:00Z"}]}],"errorCode":"Success"},
            {"name":{"value":"Network In Total"},"timeseries":[]},
            {"name":{"value":"Network Out Total"},"timeseries":[{"data":[{"timeStamp":"2026-01-01T00:00:00Z","total":1000.0}]}]}]}"#;
        let read = read_metrics(text.as_bytes(), 60).unwrap();
        let [cpu, out] = read.as_slice() else { panic!("{read:?}") };
        assert_eq!(cpu.points, [Point { at_s: 1_767_225_660, value: "12.25".into() }]);
        assert_eq!((out.metric.as_str(), out.statistic, out.points.len()), ("Network Out Total", "Total", 1));
        for wrong in ["", "[]", "{}", r#"{"value":{}}"#] {
            assert!(read_metrics(wrong.as_bytes(), 60).is_err(), "{wrong}");
        }
        let machine = r#"{"properties":{"vmId":"v","timeCreated":"2026-01-01T00:00:00Z","hardwareProfile":{"vmSize":"s"},
            "instanceView":{"statuses":[{"code":"ProvisioningState/succeeded","time":"2026-01-01T00:00:09Z"},{"code":"PowerState/running"}]}}}"#;
        let facts = read_facts(machine.as_bytes()).unwrap();
        let facts: Vec<(&str, &str)> = facts.iter().map(|fact| (fact.name.as_str(), fact.value.as_str())).collect();
        assert_eq!(facts[..2], [("vmId", "v"), ("vmSize", "s")]);
        assert_eq!(facts[3..], [("ProvisioningState/succeeded", "2026-01-01T00:00:09Z"), ("PowerState/running", "-")]);
        assert!(read_facts(b"{}").is_err());
    }
}
