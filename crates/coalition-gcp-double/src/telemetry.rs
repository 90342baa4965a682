//! Cloud Monitoring, and lists of operations: what was counted of hosts that were made, also after their end.

use std::collections::BTreeMap;

use coalition_cloud::{rfc3339, unix_s};
use serde_json::{Value, json};

use crate::PROJECT;
use crate::answer::{Refusal, invalid};
use crate::world::{Work, World, zone_url};

/// What is counted of a host in each period: a number that tells it from the others.
const METRICS: [(&str, &str, &str); 3] = [
    ("compute.googleapis.com/instance/cpu/usage_time", "DOUBLE", "7.5"),
    ("compute.googleapis.com/instance/network/received_bytes_count", "INT64", "1000000"),
    ("compute.googleapis.com/instance/network/sent_bytes_count", "INT64", "500000"),
];

/// A parameter that must be there.
fn asked<'a>(query: &'a BTreeMap<String, String>, name: &str) -> Result<&'a str, Refusal> {
    query.get(name).map(String::as_str).ok_or_else(|| invalid(name, "", "It is required."))
}

/// `timeSeries.list`: one metric of one host, added up over whole periods.
pub(crate) fn series(world: &World, query: &BTreeMap<String, String>) -> Result<Value, Refusal> {
    let filter = asked(query, "filter")?;
    let wrong = |name: &str| invalid(name, query.get(name).map(String::as_str).unwrap_or_default(), "It is malformed.");
    let terms = filter.split_once(" AND ").and_then(|(metric, host)| {
        let metric = metric.strip_prefix("metric.type = \"")?.strip_suffix('"')?;
        Some((metric, host.strip_prefix("metric.labels.instance_name = \"")?.strip_suffix('"')?))
    });
    let (metric, host) = terms.ok_or_else(|| wrong("filter"))?;
    let time = |name: &str| asked(query, name).and_then(|text| unix_s(text).ok_or_else(|| wrong(name)));
    let (from_s, to_s) = (time("interval.startTime")?, time("interval.endTime")?);
    let period = asked(query, "aggregation.alignmentPeriod")?.strip_suffix('s').and_then(|text| text.parse().ok());
    let period_s: u64 = period.filter(|period| *period >= 60).ok_or_else(|| wrong("aggregation.alignmentPeriod"))?;
    if asked(query, "aggregation.perSeriesAligner")? != "ALIGN_SUM" || from_s >= to_s {
        return Err(wrong("aggregation.perSeriesAligner"));
    }
    let known = METRICS.iter().find(|(name, ..)| *name == metric).ok_or_else(|| wrong("filter"))?;
    let was_made = |operation: &crate::world::Operation| {
        operation.work == Work::Insert && operation.target == host && operation.is_done && operation.error.is_none()
    };
    if !world.operations.values().any(was_made) {
        return Ok(json!({ "unit": "1" }));
    }
    let value = match known.1 {
        "INT64" => json!({ "int64Value": known.2 }),
        _ => json!({ "doubleValue": known.2.parse::<f64>().unwrap_or_default() }),
    };
    // The newest first, as Google has them.
    let point = |n: u64| {
        let end_s = to_s - n * period_s;
        json!({ "interval": { "startTime": rfc3339(end_s - period_s), "endTime": rfc3339(end_s) }, "value": value })
    };
    let one = json!({
        "metric": { "type": metric, "labels": { "instance_name": host } },
        "resource": { "type": "gce_instance", "labels": { "project_id": PROJECT } },
        "metricKind": "DELTA", "valueType": known.1,
        "points": [point(0), point(1)],
    });
    Ok(json!({ "timeSeries": [one], "unit": "1" }))
}

/// `zoneOperations.list`: those about one thing.
pub(crate) fn operations(world: &World, zone: &str, query: &BTreeMap<String, String>) -> Result<Value, Refusal> {
    let filter = asked(query, "filter")?;
    let target = filter.strip_prefix("targetLink = \"").and_then(|rest| rest.strip_suffix('"'));
    let target = target.ok_or_else(|| invalid("filter", filter, "Invalid list filter expression."))?;
    let is_asked = |shown: &Value| shown["targetLink"] == target;
    let here = world.operations.values().filter(|operation| operation.zone == zone);
    let items: Vec<Value> = here.map(crate::world::Operation::shown).filter(is_asked).collect();
    let id = format!("projects/{PROJECT}/zones/{zone}/operations");
    let mut shown =
        json!({ "kind": "compute#operationList", "id": id, "selfLink": format!("{}/operations", zone_url(zone)) });
    if !items.is_empty() {
        shown["items"] = items.into();
    }
    Ok(shown)
}
