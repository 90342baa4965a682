//! Telemetry snapshots: their bytes, their limits, and what is made of anything else.

use coalition::{EvidencePointer, ProviderId, RequestId, UniqueId};
use coalition_compute::*;
use proptest::prelude::*;

use crate::common::*;

const VECTORS: &str = include_str!("../vectors/telemetry.txt");

fn fixed() -> TelemetrySnapshot {
    let series = |metric: &str, counts, values: [&str; 2]| TelemetrySeries {
        call: "cloudwatch:GetMetricData".into(),
        metric: metric.into(),
        statistic: "Sum".into(),
        counts,
        period_s: 300,
        points: (0..).zip(values).map(|(n, value)| TelemetryPoint { at_s: 300 * n, value: value.into() }).collect(),
    };
    let fact = |name: &str, value: &str| TelemetryFact {
        call: "ec2:DescribeInstances".into(),
        name: name.into(),
        value: value.into(),
    };
    TelemetrySnapshot {
        market: organism(),
        provider: provider_id(1),
        grant_id: RequestId(UniqueId::hash(b"grant")),
        instance: "0123456789abcdef0123456789abcdef".into(),
        host: "i-0123456789abcdef0".into(),
        cloud: "EC2".into(),
        region: "eu-central-1".into(),
        from_s: 0,
        to_s: 600,
        taken_ms: 601_000,
        metered: Some(UsageMetrics { cpu_core_seconds: 150, ram_mib_seconds: 9, net_bytes: 1_500_000 }),
        facts: vec![fact("vcpus", "2"), fact("launchTime", "1970-01-01T00:00:00.000Z")],
        series: vec![
            series("CPUUtilization", TelemetryCounts::CpuPercent, ["12.5", "12.5"]),
            series("NetworkIn", TelemetryCounts::NetBytes, ["1000000", "0.5"]),
            series("NetworkOut", TelemetryCounts::NetBytes, ["5e5", "0"]),
        ],
    }
}

fn lines() -> [String; 4] {
    let bytes = TelemetrySnapshot::bytes(&sign(fixed(), 1));
    [
        format!("snapshot {}", hex::encode(&bytes)),
        format!("digest {}", UniqueId::hash(&bytes)),
        format!("store {}", telemetry_store(provider_id(1))),
        format!("pointer {}", telemetry_pointer(provider_id(1), &bytes)),
    ]
}

#[test]
fn the_snapshot_keeps_its_bytes() {
    let expected: Vec<&str> = VECTORS.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines().join("\n"), expected.join("\n"));
    let bytes = TelemetrySnapshot::bytes(&sign(fixed(), 1));
    let pointer: EvidencePointer = telemetry_pointer(provider_id(1), &bytes);
    assert_eq!(pointer.index, bytes.len() as u64);
    let read = TelemetrySnapshot::verify(&bytes, pointer.digest, provider_id(1)).unwrap().statement;
    assert_eq!((read.cpu_core_ms(), read.net_bytes()), (Some(150_000), Some(1_500_000)));
    assert_eq!(read, fixed());
}

#[test]
fn it_is_believed_of_its_signer_and_market_alone() {
    let signed = sign(fixed(), 1);
    let bytes = TelemetrySnapshot::bytes(&signed);
    let digest = UniqueId::hash(&bytes);
    let verify = TelemetrySnapshot::verify;
    assert!(matches!(verify(&bytes, UniqueId::hash(b"x"), provider_id(1)), Err(TelemetryError::Digest { .. })));
    assert!(matches!(verify(&bytes, digest, provider_id(2)), Err(TelemetryError::Signer { .. })));
    // Somebody else's signature under this provider's name; and this provider's, for another market.
    let other = TelemetrySnapshot::bytes(&sign(fixed(), 2));
    assert!(matches!(TelemetrySnapshot::read(&other), Err(TelemetryError::Named { .. })));
    let mut moved = signed.clone();
    moved.statement.market = UniqueId::hash(b"another market");
    assert_eq!(TelemetrySnapshot::read(&TelemetrySnapshot::bytes(&moved)), Err(TelemetryError::Signature));
    // The same key's signature over another kind of statement is none over this.
    let end = sign(EndGrant { grant_id: fixed().grant_id }, 1);
    let borrowed = Signed { signature: end.signature, ..signed };
    assert_eq!(TelemetrySnapshot::read(&TelemetrySnapshot::bytes(&borrowed)), Err(TelemetryError::Signature));
    let mut longer = bytes;
    longer.push(0);
    assert!(matches!(TelemetrySnapshot::read(&longer), Err(TelemetryError::Encoding(_))));
}

#[test]
fn limits_are_kept_by_whoever_signs_and_whoever_reads() {
    let broken: [fn(&mut TelemetrySnapshot); 9] = [
        |one| one.series.clear(),
        |one| one.series = vec![one.series[0].clone(); 9],
        |one| one.facts = vec![one.facts[0].clone(); 33],
        |one| one.series[0].points.clear(),
        |one| one.series[0].points.reverse(),
        |one| one.series[0].points[0].value = "NaN".into(),
        |one| one.instance.clear(),
        |one| one.facts[0].value = "a\nb".into(),
        |one| one.from_s = 601,
    ];
    for (n, breaks) in broken.iter().enumerate() {
        let mut one = fixed();
        breaks(&mut one);
        assert!(Signed::sign(one, &key(1), &organism()).is_err(), "{n}");
    }
    let mut large = fixed();
    large.facts = vec![TelemetryFact { call: "c".repeat(512), name: "n".repeat(512), value: "v".repeat(512) }; 32];
    assert!(matches!(Signed::sign(large, &key(1), &organism()), Err(Invalid::Range { field: "size", .. })));
    // What the sums need and is not there makes them unknown, not wrong.
    let mut sizeless = fixed();
    sizeless.facts.clear();
    assert_eq!((sizeless.cpu_core_ms(), sizeless.net_bytes()), (None, Some(1_500_000)));
    sizeless.series.truncate(1);
    assert_eq!(sizeless.net_bytes(), None);
}

proptest! {
    /// Arbitrary bytes are no snapshot, and never more than refused.
    #[test]
    fn anything_else_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(TelemetrySnapshot::read(&bytes).is_err());
    }

    /// No bit of a snapshot can be another.
    #[test]
    fn every_bit_counts(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut bytes = TelemetrySnapshot::bytes(&sign(fixed(), 1));
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(TelemetrySnapshot::read(&bytes).is_err());
    }

    /// What is signed is read back as the same, whatever numbers are in it.
    #[test]
    fn what_is_signed_is_read_back(values in prop::collection::vec(0_u64..1 << 50, 1..100), metered in any::<Option<(u64, u64)>>()) {
        let mut one = fixed();
        one.metered = metered.map(|(cpu_core_seconds, net_bytes)| UsageMetrics { cpu_core_seconds, ram_mib_seconds: 0, net_bytes });
        let point = |(at_s, value): (u64, &u64)| TelemetryPoint { at_s, value: value.to_string() };
        one.series[1].points = (0..).zip(&values).map(point).collect();
        one.series.truncate(2);
        let bytes = TelemetrySnapshot::bytes(&sign(one.clone(), 1));
        let read = TelemetrySnapshot::read(&bytes).unwrap();
        prop_assert_eq!(read.statement.net_bytes(), Some(values.iter().sum::<u64>()));
        prop_assert_eq!(&read.statement, &one);
        prop_assert_eq!(TelemetrySnapshot::bytes(&read), bytes);
    }
}

#[test]
#[ignore = "prints the vectors of this build, for a deliberate change of the form"]
fn print_telemetry_vectors() {
    use std::io::Write;
    writeln!(std::io::stdout(), "{}", lines().join("\n")).unwrap();
}

#[test]
fn a_provider_is_its_key() {
    let signed = sign(fixed(), 1);
    assert_eq!(ProviderId::from_public_key(&signed.key), signed.statement.provider);
}
