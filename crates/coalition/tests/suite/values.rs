//! The shared value types: exact parsing, rounding, overflow, and serde in text and binary formats.

use std::fmt::Debug;

use coalition::{
    AlmanacRange, AlmanacTick, CommitteeContent, CommitteeError, EvidencePointer, MemberId, MicroUsd, MoneyError, Mrtd,
    ProviderId, RateQ64, RequestId, Roster, RosterMember, TypeError,
};
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::{any_id, committee, id, member};

/// Survives JSON, TOML (inside a table) and postcard.
fn survives_serde<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let json = serde_json::to_string(value).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&json).unwrap(), value, "{json}");
    let table = std::collections::BTreeMap::from([("value", value)]);
    let text = toml::to_string(&table).unwrap();
    let mut table: std::collections::BTreeMap<String, T> = toml::from_str(&text).unwrap();
    assert_eq!(table.remove("value").as_ref(), Some(value), "{text}");
    let binary = postcard::to_stdvec(value).unwrap();
    assert_eq!(&postcard::from_bytes::<T>(&binary).unwrap(), value);
}

proptest! {
    #[test]
    fn values_print_what_they_parse(
        a in any_id(), b in any_id(), n in any::<u64>(), m in any::<u64>(), rate in any::<u128>(),
        shift in 0u32..128,
    ) {
        let pointer = EvidencePointer { organism: a, index: n, digest: b };
        prop_assert_eq!(pointer.to_string().parse(), Ok(pointer));
        let range = AlmanacRange::new(AlmanacTick(n), AlmanacTick(m));
        prop_assert_eq!(range.to_string().parse(), Ok(range));
        let short = MemberId::from_stable_id(a);
        prop_assert_eq!(short.to_string().parse(), Ok(short));
        prop_assert_eq!(ProviderId(a).to_string().parse(), Ok(ProviderId(a)));
        prop_assert_eq!(RequestId(a).to_string().parse(), Ok(RequestId(a)));
        prop_assert_eq!(MicroUsd(n).to_string().parse(), Ok(MicroUsd(n)));
        let rate = RateQ64(rate >> shift);
        prop_assert_eq!(rate.to_string().parse(), Ok(rate));
    }

    #[test]
    fn values_survive_serde(a in any_id(), n in 0u64..1 << 62, rate in any::<u128>()) {
        survives_serde(&EvidencePointer { organism: a, index: n, digest: a });
        survives_serde(&AlmanacTick(n));
        survives_serde(&AlmanacRange::new(AlmanacTick(n), AlmanacTick(n)));
        survives_serde(&MemberId::from_stable_id(a));
        survives_serde(&ProviderId(a));
        survives_serde(&RequestId(a));
        survives_serde(&MicroUsd(n));
        survives_serde(&RateQ64(rate));
        survives_serde(&Mrtd([7; 48]));
    }

    /// The cost is the least number of micro-dollars that covers `rate * time`, checked by cross multiplication.
    #[test]
    fn costs_are_exact_and_rounded_up(bits in 0u128..1 << 70, core_ms in 0u64..1 << 40) {
        let rate = RateQ64(bits);
        let cost = u128::from(rate.cost_of_ms(core_ms).unwrap().0);
        // cost >= rate * ms * 5 / (18 * 2^64) > cost - 1, with both sides scaled by 18 * 2^64.
        let due = bits * u128::from(core_ms) * 5;
        let unit = 18u128 << 64;
        let (whole, rest) = (due / unit, due % unit);
        prop_assert_eq!(cost, whole + u128::from(rest != 0));
    }

    /// A decimal rate over whole hours costs what the decimal says, for any rate in micro-dollars.
    #[test]
    fn whole_hours_cost_what_the_decimal_says(micros in 0u64..1 << 40, hours in 0u64..100_000) {
        let rate: RateQ64 = MicroUsd(micros).to_decimal().parse().unwrap();
        prop_assert_eq!(rate.cost_of(hours * 3_600), MicroUsd(micros).checked_mul(hours));
        prop_assert_eq!(rate.to_string(), MicroUsd(micros).to_decimal());
    }

    #[test]
    fn costs_grow_with_time_and_rate(bits in any::<u128>(), core_ms in any::<u64>(), step in 1u64..1 << 32) {
        let cost = |bits: u128, ms: u64| RateQ64(bits).cost_of_ms(ms).unwrap_or(MicroUsd::MAX);
        prop_assert!(cost(bits, core_ms) <= cost(bits, core_ms.saturating_add(step)));
        prop_assert!(cost(bits, core_ms) <= cost(bits.saturating_add(u128::from(step)), core_ms));
    }

    #[test]
    fn texts_of_any_kind_never_panic(text in "[$0-9.:a-f]{0,60}") {
        let _ = text.parse::<MicroUsd>();
        let _ = text.parse::<RateQ64>();
        let _ = text.parse::<EvidencePointer>();
        let _ = text.parse::<AlmanacRange>();
        let _ = text.parse::<MemberId>();
    }
}

#[test]
fn money_reads_as_people_write_it() {
    let amount = |text: &str| text.parse::<MicroUsd>();
    assert_eq!(amount("0.05"), Ok(MicroUsd(50_000)));
    assert_eq!(amount("$12"), Ok(MicroUsd(12_000_000)));
    assert_eq!(amount("0.000001"), Ok(MicroUsd(1)));
    assert_eq!(amount("18446744073709.551615"), Ok(MicroUsd::MAX));
    assert_eq!(amount("18446744073709.551616"), Err(MoneyError::TooLarge("18446744073709.551616".to_owned())));
    for wrong in ["", ".", "1.", ".5", "-1", "+1", "1e3", "1,000", "0.05 ", "$$1", "1.2.3", "٣"] {
        assert!(matches!(amount(wrong), Err(MoneyError::Syntax(_))), "{wrong}");
        assert!(matches!(wrong.parse::<RateQ64>(), Err(MoneyError::Syntax(_))), "{wrong}");
    }
    assert!(matches!(amount("0.0000001"), Err(MoneyError::Decimals { found: 7, max: 6, .. })));
    assert_eq!(MicroUsd(50_000).to_string(), "$0.05");
    assert_eq!(MicroUsd(1_000_000).to_string(), "$1.00");
    assert_eq!(MicroUsd(1).to_string(), "$0.000001");
    assert_eq!(serde_json::to_string(&MicroUsd(50_000)).unwrap(), "\"0.05\"");
    assert!(serde_json::from_str::<MicroUsd>("0.05").is_err(), "no floats");
}

#[test]
fn money_arithmetic_is_checked() {
    assert_eq!(MicroUsd(1).checked_add(MicroUsd(2)), Some(MicroUsd(3)));
    assert_eq!(MicroUsd::MAX.checked_add(MicroUsd(1)), None);
    assert_eq!(MicroUsd(1).checked_sub(MicroUsd(2)), None);
    assert_eq!(MicroUsd::MAX.checked_mul(2), None);
    assert_eq!(MicroUsd::from_usd(2), Some(MicroUsd(2_000_000)));
    assert_eq!(MicroUsd::from_usd(u64::MAX), None);
    assert_eq!(RateQ64::MAX.checked_add(RateQ64(1)), None);
    assert_eq!(RateQ64::ZERO.checked_sub(RateQ64(1)), None);
    assert_eq!(RateQ64::MAX.checked_mul(2), None);
}

/// Expected bits computed with exact fractions: floor(decimal * 2^64).
#[test]
fn rates_round_down_to_the_next_value() {
    let rate = |text: &str| text.parse::<RateQ64>().map(|r| r.0);
    assert_eq!(rate("1"), Ok(1 << 64));
    assert_eq!(rate("0.5"), Ok(1 << 63));
    assert_eq!(rate("0.05"), Ok(922_337_203_685_477_580));
    assert_eq!(rate("0.045"), Ok(830_103_483_316_929_822));
    assert_eq!(rate("0.1"), Ok(1_844_674_407_370_955_161));
    assert_eq!(rate("0.999999999999999999999999"), Ok((1 << 64) - 1));
    assert_eq!(rate("0.000000000000000000054210108624275222"), Ok(1));
    assert_eq!(rate("0.000000000000000000054210108624275221"), Ok(0));
    assert_eq!(rate("18446744073709551615.5"), Ok(u128::MAX - (1 << 63) + 1));
    assert_eq!(rate("18446744073709551615.99999999999999999999999"), Ok(u128::MAX));
    assert!(matches!(rate("18446744073709551616"), Err(MoneyError::TooLarge(_))));
    let long = format!("0.{}", "1".repeat(37));
    assert!(matches!(rate(&long), Err(MoneyError::Decimals { found: 37, max: 36, .. })));
    assert_eq!(RateQ64(922_337_203_685_477_580).to_string(), "0.05");
    assert_eq!(RateQ64::from_usd_per_hour(3).to_string(), "3.00");
    assert_eq!(RateQ64(1).to_string().parse(), Ok(RateQ64(1)));
}

#[test]
fn costs_of_known_times() {
    let rate: RateQ64 = "0.05".parse().unwrap();
    assert_eq!(rate.cost_of(3_600), Some(MicroUsd(50_000)), "not a micro-dollar more than written");
    assert_eq!(rate.cost_of_ms(1), Some(MicroUsd(1)), "rounded up");
    assert_eq!(RateQ64::MAX.to_string().parse(), Ok(RateQ64::MAX));
    let exact = RateQ64::from_usd_per_hour(1);
    assert_eq!(exact.cost_of(3_600), Some(MicroUsd(1_000_000)));
    assert_eq!(exact.cost_of_ms(1), Some(MicroUsd(1)));
    assert_eq!(exact.cost_of_ms(18), Some(MicroUsd(5)));
    assert_eq!(exact.cost_of(0), Some(MicroUsd::ZERO));
    assert_eq!(RateQ64::ZERO.cost_of(u64::MAX / 1000), Some(MicroUsd::ZERO));
    assert_eq!(RateQ64::MAX.cost_of_ms(u64::MAX), None);
    assert_eq!(RateQ64::MAX.cost_of(u64::MAX), None);
}

#[test]
fn ranges_are_half_open() {
    let range: AlmanacRange = "5..8".parse().unwrap();
    assert!(range.contains(AlmanacTick(5)) && range.contains(AlmanacTick(7)));
    assert!(!range.contains(AlmanacTick(8)) && !range.contains(AlmanacTick(4)));
    assert_eq!(range.ticks(), 3);
    assert!("8..5".parse::<AlmanacRange>().unwrap().is_empty());
    assert_eq!("5-8".parse::<AlmanacRange>(), Err(TypeError::Range("5-8".to_owned())));
    assert_eq!(AlmanacTick(7).checked_since(AlmanacTick(5)), Some(2));
    assert_eq!(AlmanacTick(u64::MAX).checked_add(1), None);
    assert!("+5".parse::<AlmanacTick>().is_err());
    assert!("".parse::<AlmanacTick>().is_err());
}

#[test]
fn evidence_pointers_have_one_text_form() {
    let pointer = EvidencePointer { organism: id(1), index: 42, digest: id(2) };
    let text = pointer.to_string();
    assert_eq!(text, format!("ev1:{}:42:{}", "01".repeat(32), "02".repeat(32)));
    for wrong in ["", "ev2:", "ev1:aa:1:bb", &text[..text.len() - 1], &format!("{text}:0"), &text.replace(":42:", "::")]
    {
        assert!(wrong.parse::<EvidencePointer>().is_err(), "{wrong}");
    }
    assert_eq!(serde_json::to_string(&pointer).unwrap(), format!("\"{text}\""));
}

#[test]
fn debug_names_the_type() {
    assert_eq!(format!("{:?}", RequestId(id(1))), format!("RequestId({})", "01".repeat(32)));
    assert_eq!(format!("{:?}", MemberId::from_stable_id(id(1))), format!("MemberId({})", "01".repeat(20)));
}

#[test]
fn quorums_of_the_usual_rosters() {
    let expected = [(1, 0, 1), (2, 0, 2), (3, 0, 3), (4, 1, 3), (5, 1, 4), (7, 2, 5), (10, 3, 7), (64, 21, 43)];
    for (n, faults, quorum) in expected {
        let roster = committee("s", n).roster;
        assert_eq!((roster.len(), roster.faults_tolerated(), roster.quorum()), (n, faults, quorum));
        // Two quorums share an honest member.
        assert!(2 * roster.quorum() > n + roster.faults_tolerated());
    }
}

#[test]
fn rosters_are_validated() {
    let roster = |members: Vec<RosterMember>| Roster::new(members);
    assert_eq!(roster(vec![]), Err(CommitteeError::Size(0)));
    let many = (0..65).map(|i| member(&format!("m{i}"))).collect();
    assert_eq!(roster(many), Err(CommitteeError::Size(65)));
    assert_eq!(roster(vec![member("a"), member("a")]), Err(CommitteeError::DuplicateName("a".to_owned())));
    let mut shared = member("b");
    shared.peer_id = member("a").checkpoint_key;
    assert!(matches!(
        roster(vec![member("a"), shared]),
        Err(CommitteeError::DuplicateKey { member, .. }) if member == "b"
    ));
    let mut own = member("a");
    own.consensus_key = own.checkpoint_key;
    assert!(matches!(roster(vec![own]), Err(CommitteeError::DuplicateKey { .. })));
    for name in ["", "A", "a b", "a/b", "a+b", "ä", &"x".repeat(65)] {
        assert!(matches!(roster(vec![member(name)]), Err(CommitteeError::Name(_))), "{name}");
    }
    let two = roster(vec![member("a"), member("b")]).unwrap();
    let swapped = roster(vec![member("b"), member("a")]).unwrap();
    assert_ne!(two.fingerprint(), swapped.fingerprint());
    assert_eq!(two.member("b"), Some(&member("b")));
    survives_serde(&two);
    let json = serde_json::to_string(&[member("a"), member("a")]).unwrap();
    assert!(serde_json::from_str::<Roster>(&json).is_err(), "serde validates too");
}

#[test]
fn committee_content_refuses_what_it_cannot_read_back() {
    let content = committee("compute.v1", 4);
    let bytes = content.to_bytes();
    assert_eq!(CommitteeContent::from_bytes(&bytes), Ok(content.clone()));
    for cut in 0..bytes.len() {
        assert!(CommitteeContent::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!(CommitteeContent::from_bytes(&longer), Err(CommitteeError::Trailing(1)));
    // A successor is another content, and reads back, too.
    let successor = CommitteeContent { predecessor: Some(id(9)), ..content.clone() };
    let bytes = successor.to_bytes();
    assert_eq!(bytes[..37], [&b"CCOM\x02"[..], id(9).as_bytes()].concat());
    assert_eq!(bytes[37..], content.to_bytes()[5..]);
    assert_eq!(CommitteeContent::from_bytes(&bytes), Ok(successor));
    (0..bytes.len()).for_each(|cut| assert!(CommitteeContent::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}"));
    let oversized = CommitteeContent { params: vec![0; 65_537], ..content };
    assert_eq!(oversized.validate(), Err(CommitteeError::Params { found: 65_537 }));
    assert!(CommitteeContent::from_bytes(&oversized.to_bytes()).is_err());
}
