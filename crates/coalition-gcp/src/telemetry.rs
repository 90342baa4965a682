//! What Cloud Monitoring counted of a host, and what the operations say of its making and its end.

use coalition_cloud::{Counts, Fact, Point, Series, Telemetry, Window, rfc3339, unix_s};
use serde_json::Value;

use crate::action::Action;
use crate::engine::ComputeEngine;
use crate::error::GcpError;
use crate::names::{host_name, is_resource_name};

/// The calls, as the evidence names them.
const SERIES_CALL: &str = "monitoring.projects.timeSeries.list";
const OPERATIONS_CALL: &str = "compute.zoneOperations.list";
/// Periods asked for: a host is counted every minute.
const PERIODS: [u64; 4] = [60, 600, 3_600, 86_400];
/// Each metric in a question of its own: Cloud Monitoring takes one at a time.
pub(crate) const METRICS: [(&str, Counts); 3] = [
    ("compute.googleapis.com/instance/cpu/usage_time", Counts::CpuSeconds),
    ("compute.googleapis.com/instance/network/received_bytes_count", Counts::NetBytes),
    ("compute.googleapis.com/instance/network/sent_bytes_count", Counts::NetBytes),
];
/// Most series of one metric, and most points of an answer.
const MAX_SERIES: usize = 2;
const PAGE: &str = "1000";

impl ComputeEngine {
    /// What was counted of the host of an instance. Google knows hosts that are over by their operations only, which it
    /// keeps for some days.
    pub(crate) async fn counted(&self, instance: &str, window: Window) -> Result<Telemetry, GcpError> {
        let name = host_name(instance);
        if !is_resource_name(&name) {
            let problem = format!("{:?} is no host's name", coalition_cloud::one_line(&name, 80));
            return Err(GcpError::Unaskable { action: Action::ListTimeSeries, problem });
        }
        let [cpu, received, sent] = &METRICS;
        let (zone, cpu, received, sent) = tokio::try_join!(
            self.made_and_ended(&name),
            self.series(&name, cpu, window),
            self.series(&name, received, window),
            self.series(&name, sent, window),
        )?;
        let Some((zone, facts)) = zone else {
            let words = format!("no operation made {name}");
            return Err(crate::error::failed(Action::ListOperations, "notFound", &words, 404));
        };
        Ok(Telemetry { host: format!("{zone}/{name}"), facts, series: [cpu, received, sent].concat() })
    }

    /// Whether both may be asked.
    pub(crate) async fn try_counted(&self, window: Window) -> Result<(), GcpError> {
        let nobody = "c-nobody";
        self.series(nobody, &METRICS[0], window).await?;
        self.made_and_ended(nobody).await.map(drop)
    }

    async fn series(&self, name: &str, metric: &(&str, Counts), window: Window) -> Result<Vec<Series>, GcpError> {
        let period_s = window.period_s(&PERIODS);
        let whole = window.whole(period_s);
        let filter = format!("metric.type = \"{}\" AND metric.labels.instance_name = \"{name}\"", metric.0);
        let query = [
            ("filter", filter),
            ("interval.startTime", rfc3339(whole.from_s)),
            ("interval.endTime", rfc3339(whole.to_s)),
            ("aggregation.alignmentPeriod", format!("{period_s}s")),
            ("aggregation.perSeriesAligner", "ALIGN_SUM".to_owned()),
            ("pageSize", PAGE.to_owned()),
        ]
        .map(|(key, value)| (key, Some(value)));
        let path = ["v3", "projects", &self.setup.project, "timeSeries"];
        let answer = self.transport.look(Action::ListTimeSeries, &path, &query).await?;
        read_series(&answer, metric, period_s)
            .map_err(|problem| GcpError::Garbled { action: Action::ListTimeSeries, problem })
    }

    /// The zone a host was made in, and the times of the operations about it.
    async fn made_and_ended(&self, name: &str) -> Result<Option<(String, Vec<Fact>)>, GcpError> {
        let action = Action::ListOperations;
        let project = &self.setup.project;
        for zone in &self.setup.zones {
            let target =
                format!("https://www.googleapis.com/compute/v1/projects/{project}/zones/{zone}/instances/{name}");
            let query = [("filter", Some(format!("targetLink = \"{target}\""))), ("maxResults", Some("10".to_owned()))];
            let path = ["compute", "v1", "projects", project, "zones", zone, "operations"];
            let answer = self.transport.look(action, &path, &query).await?;
            let facts = read_operations(&answer).map_err(|problem| GcpError::Garbled { action, problem })?;
            if facts.iter().any(|fact| fact.name.starts_with("insert.")) {
                return Ok(Some((zone.clone(), facts)));
            }
        }
        Ok(None)
    }
}

/// The series of an answer; none is an empty object.
pub(crate) fn read_series(
    answer: &Value,
    (metric, counts): &(&str, Counts),
    period_s: u64,
) -> Result<Vec<Series>, String> {
    let answer = answer.as_object().ok_or("it is no object")?;
    let listed = match answer.get("timeSeries") {
        None => return Ok(Vec::new()),
        Some(listed) => listed.as_array().ok_or("its timeSeries is no list")?,
    };
    let one = |series: &Value| {
        let points = series["points"].as_array().map(Vec::as_slice).unwrap_or_default();
        let points: Vec<Point> = points.iter().filter_map(point).collect();
        let (call, metric, counts) = (SERIES_CALL, (*metric).to_owned(), *counts);
        let series = Series { call, metric, statistic: "ALIGN_SUM", counts, period_s, points };
        (!series.points.is_empty()).then(|| series.in_order())
    };
    Ok(listed.iter().filter_map(one).take(MAX_SERIES).collect())
}

/// Whole numbers come as text, others as numbers.
fn point(point: &Value) -> Option<Point> {
    let at_s = unix_s(point["interval"]["endTime"].as_str()?)?;
    let value = &point["value"];
    let whole = value["int64Value"].as_str().map(ToOwned::to_owned);
    Point::of(at_s, &whole.or_else(|| Some(value["doubleValue"].as_number()?.to_string()))?)
}

/// Times of the first operations that made and that deleted.
pub(crate) fn read_operations(answer: &Value) -> Result<Vec<Fact>, String> {
    let answer = answer.as_object().ok_or("it is no object")?;
    let listed = match answer.get("items") {
        None => return Ok(Vec::new()),
        Some(listed) => listed.as_array().ok_or("its items are no list")?,
    };
    let of = |verb: &str| {
        let found = listed.iter().find(|operation| operation["operationType"] == verb);
        let fact = |key: &str| Fact::of(OPERATIONS_CALL, format!("{verb}.{key}"), found?[key].as_str());
        ["insertTime", "startTime", "endTime", "status"].map(fact)
    };
    Ok(["insert", "delete"].into_iter().flat_map(of).flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_and_operations_are_read() {
        let answer = serde_json::json!({ "timeSeries": [{ "metric": { "labels": { "loadbalanced": "false" } }, "points": [
            { "interval": { "startTime": "2026-01-01T00:01:00Z", "endTime": "2026-01-01T00:02:00Z" }, "value": { "int64Value": "7" } },
            { "interval": { "endTime": "2026-01-01T00:01:00Z" }, "value": { "doubleValue": 1.5 } },
            { "interval": { "endTime": "late" }, "value": { "doubleValue": 1.5 } },
            { "interval": { "endTime": "2026-01-01T00:03:00Z" }, "value": { "stringValue": "x" } },
        ] }, { "points": [] }], "unit": "By" });
        let read = read_series(&answer, &METRICS[1], 60).unwrap();
        let [one] = read.as_slice() else { panic!("{read:?}") };
        let points: Vec<&str> = one.points.iter().map(|point| point.value.as_str()).collect();
        assert_eq!((points, one.counts), (vec!["1.5", "7"], Counts::NetBytes));
        assert!(read_series(&serde_json::json!({}), &METRICS[0], 60).unwrap().is_empty());
        assert!(read_series(&serde_json::json!({ "timeSeries": 1 }), &METRICS[0], 60).is_err());
        let operations = serde_json::json!({ "items": [
            { "operationType": "delete", "insertTime": "t2", "status": "RUNNING" },
            { "operationType": "insert", "insertTime": "t0", "endTime": "t1", "status": "DONE" },
        ] });
        let facts = read_operations(&operations).unwrap();
        let facts: Vec<(&str, &str)> = facts.iter().map(|fact| (fact.name.as_str(), fact.value.as_str())).collect();
        let expected = [
            ("insert.insertTime", "t0"),
            ("insert.endTime", "t1"),
            ("insert.status", "DONE"),
            ("delete.insertTime", "t2"),
            ("delete.status", "RUNNING"),
        ];
        assert_eq!(facts, expected);
        assert!(read_operations(&serde_json::json!([])).is_err());
    }
}
