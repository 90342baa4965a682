//! What CloudWatch counted of a machine, and what EC2 says of its life.

use coalition_cloud::{Counts, Fact, Point, Series, Telemetry, Window};
use serde_json::{Value, json};

use crate::action::Action;
use crate::client::Ec2;
use crate::error::AwsError;
use crate::ids::InstanceId;
use crate::instances::Instance;

/// The calls, as the evidence names them.
const METRICS_CALL: &str = "cloudwatch:GetMetricData";
const DESCRIBE_CALL: &str = "ec2:DescribeInstances";
/// Periods CloudWatch has: basic monitoring counts every five minutes.
const PERIODS: [u64; 4] = [300, 3_600, 21_600, 86_400];
/// Name in the question, metric, statistic, what it counts.
const METRICS: [(&str, &str, &str, Counts); 3] = [
    ("cpu", "CPUUtilization", "Average", Counts::CpuPercent),
    ("received", "NetworkIn", "Sum", Counts::NetBytes),
    ("sent", "NetworkOut", "Sum", Counts::NetBytes),
];

impl Ec2 {
    /// What CloudWatch counted of an instance; a metric without points is left out. CloudWatch knows no instances: of one that
    /// does not exist nothing is counted.
    ///
    /// # Errors
    /// [`AwsError`].
    pub async fn metrics(&self, id: &InstanceId, window: Window) -> Result<Vec<Series>, AwsError> {
        let action = Action::GetMetricData;
        let period_s = window.period_s(&PERIODS);
        let answer = self.json(action, &question(id, window.whole(period_s), period_s)).await?;
        read_metrics(&answer, period_s).map_err(|problem| AwsError::Garbled { action, problem })
    }
}

fn question(id: &InstanceId, window: Window, period_s: u64) -> Value {
    let one = |(name, metric, statistic, _): &(&str, &str, &str, Counts)| {
        let dimensions = json!([{ "Name": "InstanceId", "Value": id.as_str() }]);
        let metric = json!({ "Namespace": "AWS/EC2", "MetricName": metric, "Dimensions": dimensions });
        json!({ "Id": name, "MetricStat": { "Metric": metric, "Period": period_s, "Stat": statistic } })
    };
    let queries: Vec<Value> = METRICS.iter().map(one).collect();
    json!({
        "MetricDataQueries": queries,
        "StartTime": window.from_s,
        "EndTime": window.to_s,
        "ScanBy": "TimestampAscending",
    })
}

/// The series of an answer.
pub(crate) fn read_metrics(body: &[u8], period_s: u64) -> Result<Vec<Series>, String> {
    let said: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let results = said.get("MetricDataResults").and_then(Value::as_array).ok_or("it has no MetricDataResults")?;
    let of = |(name, metric, statistic, counts): &(&str, &str, &'static str, Counts)| {
        let result = results.iter().find(|result| result["Id"] == *name)?;
        let list = |key: &str| result.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let points: Vec<Point> = list("Timestamps").iter().zip(list("Values")).filter_map(point).collect();
        let (call, metric) = (METRICS_CALL, (*metric).to_owned());
        let series = Series { call, metric, statistic, counts: *counts, period_s, points };
        (!series.points.is_empty()).then(|| series.in_order())
    };
    Ok(METRICS.iter().filter_map(of).collect())
}

fn point((at, value): (&Value, &Value)) -> Option<Point> {
    // Unix seconds, which may come with a fraction.
    let at = at.as_number()?.to_string();
    let at_s = at.split('.').next()?.parse().ok()?;
    Point::of(at_s, &value.as_number()?.to_string())
}

/// What both say of one instance.
pub(crate) fn telemetry(instance: &Instance, series: Vec<Series>) -> Telemetry {
    let reason = instance.reason.as_ref().map(|(code, words)| format!("{code} {words}"));
    let vcpus = instance.vcpus.map(|vcpus| vcpus.to_string());
    let facts = [
        ("instanceType", Some(instance.instance_type.as_str())),
        ("vcpus", vcpus.as_deref()),
        ("launchTime", instance.launched.as_deref()),
        ("instanceState", Some(instance.state.name())),
        ("reason", instance.transition.as_deref()),
        ("stateReason", reason.as_deref()),
    ];
    let facts = facts.into_iter().filter_map(|(name, value)| Fact::of(DESCRIBE_CALL, name, value)).collect();
    Telemetry { host: instance.id.to_string(), facts, series }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_read_and_what_is_no_number_is_left_out() {
        let text = r#"{"MetricDataResults":[
            {"Id":"cpu","Label":"CPUUtilization","Timestamps":[1767225900.0,1767225600.0],"Values":[12.5,3],"StatusCode":"Complete"},
            {"Id":"received","Timestamps":[],"Values":[],"StatusCode":"Complete"},
            {"Id":"sent","Timestamps":[1767225600,"x",-5],"Values":[1e3,1,1],"StatusCode":"PartialData"}],"Messages":[]}"#;
        let read = read_metrics(text.as_bytes(), 300).unwrap();
        let [cpu, sent] = read.as_slice() else { panic!("{read:?}") };
        let point = |at_s, value: &str| Point { at_s, value: value.into() };
        assert_eq!(cpu.points, [point(1_767_225_600, "3"), point(1_767_225_900, "12.5")]);
        assert_eq!((sent.metric.as_str(), sent.points.len(), sent.period_s), ("NetworkOut", 1, 300));
        for wrong in ["", "[]", "{}", r#"{"MetricDataResults":7}"#] {
            assert!(read_metrics(wrong.as_bytes(), 300).is_err(), "{wrong}");
        }
    }
}
