//! Azure Monitor: what was counted of machines, as long as they are there.

use std::collections::BTreeMap;

use coalition_cloud::{rfc3339, unix_s};
use serde_json::{Value, json};

use crate::answer::{Answer, Refusal};
use crate::server::Inner;
use crate::world::{MACHINES, Stage, id, lock};

/// What is counted of a machine in each period: metric, unit, statistic, a number that tells it from the others.
const METRICS: [(&str, &str, &str, f64); 3] = [
    ("Percentage CPU", "Percent", "average", 12.5),
    ("Network In Total", "Bytes", "total", 1_000_000.0),
    ("Network Out Total", "Bytes", "total", 500_000.0),
];
/// Periods, and what Azure calls them.
const INTERVALS: [(&str, u64); 4] = [("PT1M", 60), ("PT5M", 300), ("PT1H", 3_600), ("P1D", 86_400)];

fn bad(what: &str) -> Refusal {
    Refusal::new(400, "BadRequest", format!("{what} is missing or invalid."))
}

/// Two points of every metric that is asked for; none where nothing is shown yet, or the machine was never made.
pub(crate) fn metrics(
    inner: &Inner,
    vm: &str,
    query: &BTreeMap<String, String>,
    hidden: bool,
) -> Result<Answer, Refusal> {
    let missing = || {
        let message = format!("The Resource '{MACHINES}/{vm}' under resource group '{}' was not found.", crate::GROUP);
        Refusal::new(404, "ResourceNotFound", message)
    };
    let made = lock(&inner.world).machines.get(vm).map(|machine| machine.stage == Stage::Made);
    let is_counted = made.ok_or_else(missing)? && !hidden;
    let asked = |name: &str| query.get(name).map(String::as_str).ok_or_else(|| bad(name));
    let interval = asked("interval")?;
    let known = INTERVALS.iter().find(|(name, _)| *name == interval);
    let (_, period_s) = known.ok_or_else(|| bad("interval"))?;
    let ends = asked("timespan")?.split_once('/').and_then(|(from, to)| Some((unix_s(from)?, unix_s(to)?)));
    let (from_s, _) = ends.filter(|(from, to)| from < to).ok_or_else(|| bad("timespan"))?;
    if asked("aggregation")? != "Average,Total" {
        return Err(bad("aggregation"));
    }
    let one = |name: &str| {
        let (metric, unit, key, number) =
            METRICS.iter().find(|(metric, ..)| *metric == name).ok_or_else(|| bad("metricnames"))?;
        let point = |n: u64| {
            let at = rfc3339(from_s + n * period_s);
            if is_counted { json!({ "timeStamp": at, *key: number }) } else { json!({ "timeStamp": at }) }
        };
        Ok(json!({
            "id": format!("{}/providers/Microsoft.Insights/metrics/{metric}", id(MACHINES, vm)),
            "type": "Microsoft.Insights/metrics", "unit": unit, "errorCode": "Success",
            "name": { "value": metric, "localizedValue": metric },
            "timeseries": [{ "metadatavalues": [], "data": [point(0), point(1)] }],
        }))
    };
    let value: Vec<Value> = asked("metricnames")?.split(',').map(one).collect::<Result<_, Refusal>>()?;
    let (timespan, region) = (asked("timespan")?, crate::REGION);
    let namespace = "Microsoft.Compute/virtualMachines";
    let body = json!({
        "cost": 0, "timespan": timespan, "interval": interval, "value": value, "namespace": namespace, "resourceregion": region,
    });
    Ok(Answer::json(200, &body))
}
