//! Policies: what they refuse to be, their text, and their bytes and fingerprints, which must never change.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::path::PathBuf;

use coalition::tickets::AclRule;
use coalition_attest::{
    Binding, BindingRule, Measurements, Mrtd, PlatformFlag, Policy, PolicyError, Register, RegisterValue, TcbStatus,
    TrustRoot,
};
use common::id;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Set to 1 to write the golden file anew: a difference is a new version of the format.
const REWRITE: &str = "COALITION_REWRITE_VECTORS";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name)
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap()
}

fn development() -> TrustRoot {
    TrustRoot::development(&file("development_root.der")).unwrap()
}

fn value(n: u8) -> RegisterValue {
    RegisterValue([n; 48])
}

/// The policies of the golden file, made in code.
fn policies() -> Vec<(&'static str, Policy)> {
    let everything = Policy::servers(TrustRoot::Intel)
        .require_mrtd(Mrtd([1; 48]))
        .in_set(Register::Rtmr2, &[value(3), value(2)])
        .unwrap()
        .require(Register::MrOwnerConfig, value(4))
        .accept(TcbStatus::SWHardeningNeeded)
        .reject_advisory("INTEL-SA-00615")
        .unwrap()
        .max_quote_age_s(3600)
        .unwrap()
        .max_collateral_age_s(1_209_600)
        .unwrap()
        .min_tcb_evaluation(17);
    vec![
        ("strict under Intel", Policy::strict(TrustRoot::Intel)),
        ("unbound", Policy::servers(TrustRoot::Intel).binding(BindingRule::Unbound).unwrap()),
        ("everything", everything),
        ("development", Policy::strict(development()).require_mrtd(Mrtd([1; 48]))),
    ]
}

#[test]
fn golden_values_never_change() {
    let mut claims = Measurements::of_mrtd(Mrtd([0; 48]));
    Register::ALL.into_iter().for_each(|register| claims.set(register, value(register.number())));
    let binding = Binding { purpose: "p", network: id(1), key: b"k", config: id(2), nonce: id(3) };
    let policies: Vec<_> = policies()
        .into_iter()
        .map(|(name, policy)| {
            let text = toml::to_string(&policy).unwrap();
            assert_eq!(toml::from_str::<Policy>(&text).unwrap(), policy, "{name}");
            assert_eq!(policy.acl_rule(), AclRule::Policy(policy.fingerprint()));
            let bytes = hex::encode(policy.to_bytes());
            json!({ "name": name, "toml": text, "bytes": bytes, "fingerprint": policy.fingerprint().to_string() })
        })
        .collect();
    let computed = json!({
        "intel_root": TrustRoot::Intel.id().to_string(),
        "development_root": development().id().to_string(),
        "measurements": claims.fingerprint().to_string(),
        "report_data": hex::encode(binding.report_data()),
        "policies": policies,
    });
    if std::env::var_os(REWRITE).is_some_and(|v| v == "1") {
        std::fs::write(path("policy.json"), serde_json::to_string_pretty(&computed).unwrap() + "\n").unwrap();
    }
    let golden: Value = serde_json::from_slice(&file("policy.json")).unwrap();
    assert_eq!(golden, computed, "set {REWRITE}=1 to rewrite the file, and give the format a new version");
}

#[test]
fn a_policy_that_nothing_satisfies_is_refused() {
    let strict = || Policy::strict(TrustRoot::Intel);
    assert_eq!(strict().in_set(Register::Mrtd, &[]), Err(PolicyError::EmptySet(Register::Mrtd)));
    let many: Vec<_> = (0..65).map(value).collect();
    assert!(matches!(strict().in_set(Register::Rtmr0, &many), Err(PolicyError::LargeSet { found: 65, .. })));
    assert_eq!(strict().max_quote_age_s(0), Err(PolicyError::ZeroAge("max_quote_age_s")));
    assert_eq!(strict().max_collateral_age_s(0), Err(PolicyError::ZeroAge("max_collateral_age_s")));
    assert!(strict().reject_advisory("").is_err() && strict().reject_advisory(&"A".repeat(65)).is_err());
    let aged = strict().max_quote_age_s(1).unwrap();
    assert_eq!(aged.binding(BindingRule::Unbound), Err(PolicyError::AgeUnbound));
}

#[test]
fn text_that_is_no_policy_is_refused() {
    for (text, reason) in [
        ("tcb = [\"UpToDate\"]", "missing field `root`"),
        ("root = \"intel\"", "missing field `tcb`"),
        ("root = \"any\"\ntcb = [\"UpToDate\"]", "unknown variant"),
        ("root = \"intel\"\ntcb = []", "no TCB status"),
        ("root = \"intel\"\ntcb = [\"Revoked\"]", "unknown variant"),
        ("root = \"intel\"\ntcb = [\"UpToDate\"]\nmrtd = \"00\"", "unknown field"),
        ("root = \"intel\"\ntcb = [\"UpToDate\"]\n[registers]\nmrtd = []", "empty set"),
        ("root = \"intel\"\ntcb = [\"UpToDate\"]\n[registers]\nmrtd = [\"00\"]", "96 hexadecimal digits"),
        ("root = \"intel\"\ntcb = [\"UpToDate\"]\nbinding = \"maybe\"", "unknown variant"),
        ("root = { development = \"00\" }\ntcb = [\"UpToDate\"]", "no X.509 certificate"),
    ] {
        let error = toml::from_str::<Policy>(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
    let intel = hex::encode(TrustRoot::Intel.certificate());
    let text = format!("root = {{ development = \"{intel}\" }}\ntcb = [\"UpToDate\"]");
    assert!(toml::from_str::<Policy>(&text).unwrap_err().to_string().contains("Intel's root certificate"));
}

#[test]
fn every_demand_changes_the_fingerprint() {
    let base = || Policy::strict(TrustRoot::Intel);
    let mut all = vec![
        base(),
        Policy::strict(development()),
        base().binding(BindingRule::Unbound).unwrap(),
        base().max_quote_age_s(1).unwrap(),
        base().max_quote_age_s(2).unwrap(),
        base().max_collateral_age_s(1).unwrap(),
        base().min_tcb_evaluation(0),
        base().min_tcb_evaluation(1),
        base().reject_advisory("A").unwrap(),
        base().reject_advisory("B").unwrap(),
    ];
    all.extend(Register::ALL.map(|register| base().require(register, value(0))));
    all.extend(PlatformFlag::ALL.map(|flag| base().allow(flag)));
    all.extend(
        [
            TcbStatus::SWHardeningNeeded,
            TcbStatus::ConfigurationNeeded,
            TcbStatus::ConfigurationAndSWHardeningNeeded,
            TcbStatus::OutOfDate,
            TcbStatus::OutOfDateConfigurationNeeded,
            TcbStatus::TDRelaunchAdvised,
            TcbStatus::TDRelaunchAdvisedConfigurationNeeded,
        ]
        .map(|status| base().accept(status)),
    );
    let fingerprints: std::collections::BTreeSet<_> = all.iter().map(Policy::fingerprint).collect();
    assert_eq!(fingerprints.len(), all.len());
}

proptest! {
    #[test]
    fn text_and_json_survive(
        registers in proptest::collection::btree_map(0usize..8, proptest::collection::vec(any::<u8>(), 1..4), 0..8),
        age in proptest::option::of(1u64..),
        evaluation in any::<Option<u32>>(),
        flags in 0usize..8,
    ) {
        let mut policy = Policy::strict(TrustRoot::Intel);
        for (register, values) in registers {
            let values: Vec<_> = values.into_iter().map(value).collect();
            policy = policy.in_set(Register::ALL[register], &values).unwrap();
        }
        if let Some(age) = age {
            policy = policy.max_quote_age_s(age.min(i64::MAX as u64)).unwrap();
        }
        if let Some(number) = evaluation {
            policy = policy.min_tcb_evaluation(number);
        }
        for (bit, flag) in PlatformFlag::ALL.into_iter().enumerate() {
            if flags >> bit & 1 == 1 {
                policy = policy.allow(flag);
            }
        }
        let again: Policy = toml::from_str(&toml::to_string(&policy).unwrap()).unwrap();
        prop_assert_eq!(&again, &policy);
        let again: Policy = serde_json::from_str(&serde_json::to_string(&policy).unwrap()).unwrap();
        prop_assert_eq!(again.fingerprint(), policy.fingerprint());
    }
}

#[test]
fn published_documents_read_back_and_nothing_else_does() {
    for (name, policy) in policies() {
        let document = policy.to_document();
        assert_eq!(Policy::from_document(&document), Ok(policy.clone()), "{name}");
        assert!(document.starts_with(&policy.to_bytes()));
        for length in 0..document.len() {
            assert!(Policy::from_document(&document[..length]).is_err(), "{name} cut to {length} bytes");
        }
        assert!(Policy::from_document(&[document.as_slice(), &[0]].concat()).is_err(), "{name} with a byte more");
    }
    // Under Intel nothing follows, so a changed byte is another policy or none.
    let document = policies()[2].1.to_document();
    for at in 0..document.len() {
        let mut changed = document.clone();
        changed[at] ^= 1;
        if let Ok(other) = Policy::from_document(&changed) {
            assert_eq!(other.to_document(), changed);
            assert_ne!(other.fingerprint(), policies()[2].1.fingerprint());
        }
    }
}

#[test]
fn a_workload_answers_to_the_same_root_with_a_measurement_of_its_own() {
    let provider = policies().remove(2).1;
    let workload = provider.of_workload(Some(Mrtd([9; 48])));
    assert_eq!(workload.root(), provider.root());
    assert!(workload.rejects_advisory("INTEL-SA-00615") && workload.accepts(TcbStatus::SWHardeningNeeded));
    assert_eq!(workload.registers().keys().collect::<Vec<_>>(), [&Register::Mrtd]);
    assert_eq!((workload.quote_age_limit_s(), workload.binding_rule()), (None, BindingRule::Required));
    assert!(provider.of_workload(None).registers().is_empty());
}

proptest! {
    #[test]
    fn arbitrary_documents_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Policy::from_document(&bytes);
        let _ = Policy::from_document(&[&[1, 1][..], TrustRoot::Intel.id().as_bytes(), &bytes].concat());
    }
}
