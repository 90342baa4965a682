//! What a guest says to its host, and the host to it: one JSON document a line, on a serial port. Whoever has the guest can say
//! anything there, so every line is bounded and checked, and nothing it says moves anything of the host. Pure.

use serde::{Deserialize, Serialize};

use crate::types::{ExitOutcome, GuestUsage};

/// Longest line, bytes.
pub const MAX_LINE: usize = 64 * 1024;
/// Longest text within one, bytes.
const MAX_TEXT: usize = 1024;
/// Most sentences about what is weaker.
const MAX_LOSSES: usize = 16;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Report {
    /// SSH is up.
    Ready {
        /// What is weaker inside than it should be.
        losses: Vec<String>,
    },
    /// It will not be.
    Failed {
        /// The failure's code, see docs/ISOLATION.md.
        code: String,
        /// What went wrong.
        message: String,
    },
    /// The workload ended.
    Exited(ExitOutcome),
    /// The guest's own counters.
    Usage(GuestUsage),
    /// An [`Order::Until`] was taken.
    Moved {
        /// The end it named.
        unix_ms: u64,
    },
}

/// One line from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// The grant ends at another time. The host ends it by itself whatever the guest does; this is for the guest's own timer.
    Until {
        /// Unix milliseconds.
        unix_ms: u64,
    },
}

/// A line that is no report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Too long.
    #[error("a line of {0} bytes, at most {MAX_LINE} are read")]
    Long(usize),
    /// No report.
    #[error("no report: {0}")]
    Malformed(String),
    /// A text in it is not fit to be shown.
    #[error("a text in it is longer than {MAX_TEXT} bytes or has control characters")]
    Text,
}

/// Parses one line, without its end.
///
/// # Errors
/// [`ReportError`].
pub fn parse(line: &[u8]) -> Result<Report, ReportError> {
    if line.len() > MAX_LINE {
        return Err(ReportError::Long(line.len()));
    }
    let report: Report = serde_json::from_slice(line).map_err(|e| ReportError::Malformed(e.to_string()))?;
    let fits = |text: &str| text.len() <= MAX_TEXT && !text.contains(char::is_control);
    let good = match &report {
        Report::Ready { losses } => losses.len() <= MAX_LOSSES && losses.iter().all(|text| fits(text)),
        Report::Failed { code, message } => {
            code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && code.len() <= 64 && fits(message)
        }
        Report::Exited(_) | Report::Usage(_) | Report::Moved { .. } => true,
    };
    if good { Ok(report) } else { Err(ReportError::Text) }
}

/// Parses one line from the host, without its end.
///
/// # Errors
/// [`ReportError`].
pub fn parse_order(line: &[u8]) -> Result<Order, ReportError> {
    if line.len() > MAX_LINE {
        return Err(ReportError::Long(line.len()));
    }
    serde_json::from_slice(line).map_err(|e| ReportError::Malformed(e.to_string()))
}

/// The line of an order, its end included.
#[must_use]
pub fn order_line(order: Order) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(&order).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// The line of a report, its end included. Texts are cut and cleaned until they fit.
#[must_use]
pub fn line(report: &Report) -> Vec<u8> {
    let clean = |text: &str| -> String {
        let mut out: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        while out.len() > MAX_TEXT {
            out.pop();
        }
        out
    };
    let report = match report {
        Report::Ready { losses } => {
            Report::Ready { losses: losses.iter().take(MAX_LOSSES).map(|text| clean(text)).collect() }
        }
        Report::Failed { code, message } => Report::Failed { code: code.clone(), message: clean(message) },
        other => other.clone(),
    };
    let mut bytes = serde_json::to_vec(&report).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_round_trip_and_are_cleaned_on_the_way() {
        let long = format!("a\nb{}", "é".repeat(2000));
        let all = [
            Report::Ready { losses: vec![long.clone(); 99] },
            Report::Failed { code: "image_too_large".into(), message: long },
            Report::Exited(ExitOutcome::Code(7)),
            Report::Usage(GuestUsage { cpu_core_ms: 1, ram_mib: 2, disk_mib: 3 }),
            Report::Moved { unix_ms: u64::MAX },
        ];
        for report in all {
            let line = line(&report);
            let (end, body) = line.split_last().unwrap();
            assert_eq!(*end, b'\n');
            let parsed = parse(body).unwrap();
            assert_eq!(std::mem::discriminant(&parsed), std::mem::discriminant(&report));
        }
    }

    #[test]
    fn orders_round_trip_and_nonsense_is_none() {
        let order = Order::Until { unix_ms: u64::MAX };
        let line = order_line(order);
        assert_eq!(line, b"{\"until\":{\"unix_ms\":18446744073709551615}}\n");
        assert_eq!(parse_order(&line[..line.len() - 1]), Ok(order));
        for bad in [&b""[..], b"{\"until\":{\"unix_ms\":-1}}", b"{\"until\":{\"unix_ms\":1,\"x\":1}}"] {
            assert!(matches!(parse_order(bad), Err(ReportError::Malformed(_))), "{bad:?}");
        }
        assert!(matches!(parse_order(&vec![b' '; MAX_LINE + 1]), Err(ReportError::Long(_))));
    }

    #[test]
    fn what_a_hostile_guest_says_is_refused() {
        assert!(matches!(parse(&vec![b' '; MAX_LINE + 1]), Err(ReportError::Long(_))));
        for bad in [&b""[..], b"{}", b"{\"ready\":{\"losses\":[],\"more\":1}}", b"[1]", b"\xff"] {
            assert!(matches!(parse(bad), Err(ReportError::Malformed(_))), "{bad:?}");
        }
        let bell = br#"{"failed":{"code":"io","message":"\u0007"}}"#;
        assert_eq!(parse(bell).unwrap_err(), ReportError::Text);
        assert_eq!(parse(br#"{"failed":{"code":"A b","message":"x"}}"#).unwrap_err(), ReportError::Text);
    }
}
