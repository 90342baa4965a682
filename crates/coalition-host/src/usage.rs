//! Usage accounting. Pure: samples in, a report that only ever grows out.

use crate::types::{FORMAT_VERSION, UsageReport};

/// One reading of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Milliseconds since metering began, from a clock that does not jump.
    pub at_ms: u64,
    /// CPU time of the grant so far in microseconds, as counted by the mechanism in use.
    pub cpu_us: u64,
    /// Memory in use now, bytes.
    pub ram_bytes: u64,
    /// SSH payload so far, bytes.
    pub net_bytes: u64,
}

/// Folds samples into a report.
#[derive(Clone, Debug)]
pub struct Meter {
    report: UsageReport,
    last: Option<Sample>,
    cpu_us: u64,
    ram_byte_ms: u128,
    net_bytes: u64,
}

const MIB: u128 = 1024 * 1024;

impl Meter {
    /// A meter that begins now.
    pub fn new(grant_id: &str, started_unix_ms: u64) -> Self {
        let report = UsageReport {
            version: FORMAT_VERSION,
            grant_id: grant_id.to_owned(),
            started_unix_ms,
            updated_unix_ms: started_unix_ms,
            ..UsageReport::default()
        };
        Self { report, last: None, cpu_us: 0, ram_byte_ms: 0, net_bytes: 0 }
    }

    /// Adds a sample. Counters that went backwards (a process left before it was seen) count as unchanged, never as
    /// negative; memory is integrated as the trapezoid between neighbouring samples.
    pub fn add(&mut self, sample: Sample, now_unix_ms: u64) {
        self.cpu_us = self.cpu_us.max(sample.cpu_us);
        self.net_bytes = self.net_bytes.max(sample.net_bytes);
        if let Some(last) = self.last {
            let elapsed = sample.at_ms.saturating_sub(last.at_ms);
            let sum = u128::from(last.ram_bytes) + u128::from(sample.ram_bytes);
            self.ram_byte_ms = self.ram_byte_ms.saturating_add(sum * u128::from(elapsed) / 2);
        }
        self.last = Some(match self.last {
            Some(last) if last.at_ms > sample.at_ms => Sample { at_ms: last.at_ms, ..sample },
            _ => sample,
        });
        self.report.samples += 1;
        self.report.cpu_core_ms = self.cpu_us / 1000;
        self.report.net_bytes = self.net_bytes;
        self.report.ram_mib_ms = u64::try_from(self.ram_byte_ms / MIB).unwrap_or(u64::MAX);
        let mib = u64::try_from(u128::from(sample.ram_bytes).div_ceil(MIB)).unwrap_or(u64::MAX);
        self.report.ram_peak_mib = self.report.ram_peak_mib.max(mib);
        self.report.updated_unix_ms = self.report.updated_unix_ms.max(now_unix_ms);
    }

    /// The report so far.
    pub fn report(&self) -> &UsageReport {
        &self.report
    }

    /// The last report.
    pub fn finish(mut self) -> UsageReport {
        self.report.is_final = true;
        self.report
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(at_ms: u64, cpu_us: u64, ram_mib: u64, net_bytes: u64) -> Sample {
        Sample { at_ms, cpu_us, ram_bytes: ram_mib * 1024 * 1024, net_bytes }
    }

    #[test]
    fn memory_is_a_trapezoid_and_cpu_a_counter() {
        let mut meter = Meter::new("aa", 5);
        meter.add(sample(0, 0, 0, 0), 5);
        meter.add(sample(1000, 1_500_000, 60, 10), 1005);
        meter.add(sample(3000, 2_000_999, 60, 30), 3005);
        let report = meter.finish();
        assert_eq!(report.ram_mib_ms, 30_000 + 120_000);
        assert_eq!((report.cpu_core_ms, report.net_bytes, report.ram_peak_mib), (2000, 30, 60));
        assert_eq!((report.samples, report.started_unix_ms, report.updated_unix_ms), (3, 5, 3005));
        assert!(report.is_final);
    }

    proptest! {
        #[test]
        fn nothing_ever_shrinks(samples in proptest::collection::vec(
            (0u64..100_000, 0u64..1 << 60, 0u64..1 << 50, 0u64..1 << 60), 1..40)) {
            let mut meter = Meter::new("aa", 0);
            let mut last = meter.report().clone();
            for (at_ms, cpu_us, ram_bytes, net_bytes) in samples {
                meter.add(Sample { at_ms, cpu_us, ram_bytes, net_bytes }, at_ms);
                let now = meter.report().clone();
                prop_assert!(now.cpu_core_ms >= last.cpu_core_ms && now.ram_mib_ms >= last.ram_mib_ms);
                prop_assert!(now.net_bytes >= last.net_bytes && now.ram_peak_mib >= last.ram_peak_mib);
                prop_assert!(now.updated_unix_ms >= last.updated_unix_ms && now.samples == last.samples + 1);
                last = now;
            }
        }
    }
}
