//! What a cloud's own API counted of a host: raw numbers, each with the call that gave it.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::one_line;

/// Most points asked for of one series: longer windows are asked for in longer periods.
const MOST_POINTS: usize = 96;
/// Longest number kept as text; a double has at most 24 characters.
const MAX_NUMBER: usize = 32;
/// Longest text of a fact kept, in characters.
const MAX_FACT: usize = 120;

/// When a cloud has the most to tell of a host that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// As long as the host is there: afterwards there is nothing to ask about.
    BeforeEnd,
    /// Once it is over: its end is told, too.
    AfterEnd,
}

/// From when to when, Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First second.
    pub from_s: u64,
    /// The second after the last.
    pub to_s: u64,
}

impl Window {
    /// The shortest of these periods (seconds, ascending) in which the window has no more than some hundred points; the
    /// longest when none has.
    #[must_use]
    pub fn period_s(&self, periods: &[u64]) -> u64 {
        let length = self.to_s.saturating_sub(self.from_s);
        let fits = |period: &&u64| length.div_ceil((**period).max(1)) < MOST_POINTS as u64;
        periods.iter().find(fits).or(periods.last()).copied().unwrap_or(60)
    }

    /// The window with both ends on whole periods.
    #[must_use]
    pub fn whole(&self, period_s: u64) -> Self {
        let period_s = period_s.max(1);
        let to_s = self.to_s.div_ceil(period_s).saturating_mul(period_s);
        Self { from_s: self.from_s / period_s * period_s, to_s }
    }
}

/// Something the API says of a host that is no series: a time, a size, a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// The call that said it, as the API names it.
    pub call: &'static str,
    /// The API's name of it.
    pub name: String,
    /// As the API has it, on one line, cut short.
    pub value: String,
}

impl Fact {
    /// A fact, when there is something to say.
    #[must_use]
    pub fn of(call: &'static str, name: impl Into<String>, value: Option<&str>) -> Option<Self> {
        let value = value.filter(|value| !value.is_empty())?;
        Some(Self { call, name: one_line(&name.into(), 60), value: one_line(value, MAX_FACT) })
    }
}

/// One point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Unix seconds the API gives for it.
    pub at_s: u64,
    /// The number, as decimal text that reads back as the same.
    pub value: String,
}

impl Point {
    /// A point, when the number is one and not below zero.
    #[must_use]
    pub fn of(at_s: u64, number: &str) -> Option<Self> {
        let is_plain = number.len() <= MAX_NUMBER && number.starts_with(|c: char| c.is_ascii_digit());
        let is_number = is_plain && number.parse::<f64>().is_ok_and(f64::is_finite);
        is_number.then(|| Self { at_s, value: number.to_owned() })
    }
}

/// What a series counts, so that it can be added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Percent of all virtual CPUs, on average over each period.
    CpuPercent,
    /// Seconds of one virtual CPU, of each period.
    CpuSeconds,
    /// Bytes in or out, of each period.
    NetBytes,
}

/// Numbers of one metric over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// The call that gave it.
    pub call: &'static str,
    /// The API's name of the metric.
    pub metric: String,
    /// How the API made one number of each period: "Average", "Sum", "ALIGN_SUM", "Total".
    pub statistic: &'static str,
    /// What it counts.
    pub counts: Counts,
    /// Seconds each point stands for.
    pub period_s: u64,
    /// Points, oldest first.
    pub points: Vec<Point>,
}

impl Series {
    /// The same, with points in order and no more of them than asked for.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.points.sort_by_key(|point| point.at_s);
        self.points.dedup_by_key(|point| point.at_s);
        self.points.truncate(MOST_POINTS);
        self
    }
}

/// Everything the API told of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telemetry {
    /// The cloud's name of the host.
    pub host: String,
    /// What is no series.
    pub facts: Vec<Fact>,
    /// Numbers over time. A metric that has no points yet is left out.
    pub series: Vec<Series>,
}

/// Unix seconds as clouds write times; the year 1970 for what no calendar has.
#[must_use]
pub fn rfc3339(unix_s: u64) -> String {
    let at = i64::try_from(unix_s).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    at.unwrap_or(OffsetDateTime::UNIX_EPOCH).format(&Rfc3339).unwrap_or_default()
}

/// Unix seconds of a time as clouds write it; nothing for what is none, or is before 1970.
#[must_use]
pub fn unix_s(text: &str) -> Option<u64> {
    u64::try_from(OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read() {
        assert_eq!(rfc3339(1_767_225_600), "2026-01-01T00:00:00Z");
        assert_eq!(unix_s("2026-01-01T00:00:00.500+01:00"), Some(1_767_222_000));
        assert_eq!(unix_s(&rfc3339(1_767_225_601)), Some(1_767_225_601));
        for wrong in ["", "yesterday", "2026-13-01T00:00:00Z", "1969-12-31T23:59:59Z"] {
            assert_eq!(unix_s(wrong), None, "{wrong}");
        }
        assert_eq!(rfc3339(u64::MAX), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn long_windows_have_long_periods() {
        let of = |length| Window { from_s: 1_000, to_s: 1_000 + length }.period_s(&[60, 300, 3_600, 86_400]);
        assert_eq!((of(60), of(5_700), of(5_701), of(604_800)), (60, 60, 300, 86_400));
        assert_eq!(of(u64::MAX / 2), 86_400);
        assert_eq!(Window { from_s: 301, to_s: 302 }.whole(300), Window { from_s: 300, to_s: 600 });
        assert_eq!(Window { from_s: 1, to_s: 2 }.whole(0), Window { from_s: 1, to_s: 2 });
    }

    #[test]
    fn numbers_are_numbers() {
        assert!(Point::of(1, "12.5").is_some() && Point::of(1, "1e3").is_some() && Point::of(1, "0").is_some());
        for wrong in ["", "-1", "NaN", "inf", "1e999", "twelve", &"1".repeat(40)] {
            assert_eq!(Point::of(1, wrong), None, "{wrong}");
        }
        assert_eq!(Fact::of("c", "n", Some("")), None);
        assert_eq!(Fact::of("c", "n", Some("a\nb")).unwrap().value, "a b");
    }
}
