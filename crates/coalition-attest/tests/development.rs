//! The development root: what it makes passes the ordinary verifier under its own root only, and every kind of bad
//! quote or collateral is refused with its own reason.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, clippy::expect_used)]

mod common;

use coalition_attest::dev::{Certificate, CollateralOptions, GuestOptions, PlatformOptions};
use coalition_attest::quote::ReportKind;
use coalition_attest::{
    BindingRule, Collateral, DEVELOPMENT_LABEL, DevelopmentRoot, Expect, Measurements, Nonce, Origin, PlatformFlag,
    Policy, Quote, QuoteSource, Register, RegisterValue, TcbStatus, TrustRoot, Verifier,
};
use common::{NOW, assert_code, collateral, expect, id, intel, judge, mrtd, options, policy, quote, report_data, root};

#[test]
fn every_format_is_valid_under_its_root() {
    for (version, kind) in
        [(4, ReportKind::Td10), (5, ReportKind::Td10), (5, ReportKind::Td15), (5, ReportKind::Td15Ex)]
    {
        let quote = quote(GuestOptions { version, kind, ..GuestOptions::default() });
        let verdict = judge(policy(), &quote, &collateral());
        assert!(verdict.is_valid(), "version {version} {kind:?}: {verdict}");
        assert_eq!((Quote::parse(&quote).unwrap().kind(), verdict.quote_age_s), (kind, Some(10)));
        assert_eq!(verdict.guest.unwrap().report_data, report_data());
    }
}

#[test]
fn the_label_is_in_every_form_of_a_verdict() {
    let verdict = judge(policy(), &quote(GuestOptions::default()), &collateral());
    assert!(verdict.to_string().contains(DEVELOPMENT_LABEL), "{verdict}");
    let json: serde_json::Value = serde_json::from_str(&verdict.to_json()).unwrap();
    assert_eq!((&json["outcome"], &json["root"]["kind"]), (&"valid".into(), &"development".into()));
    assert_eq!(json["root"]["label"], DEVELOPMENT_LABEL);
    assert_eq!(json["guest"]["measurements"]["mrtd"], mrtd().to_string());
    assert_eq!(json["collateral"]["offline"], true);
    assert_eq!((&json["reason"], &json["message"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    assert_eq!(json["policy"], policy().fingerprint().to_string());
    assert_eq!(json["root"]["id"], root().trust_root().unwrap().id().to_string());
    assert_eq!(json["guest"]["report_data"], hex::encode(report_data()));
    assert_eq!((&json["quote_age_s"], &json["bound"], &json["pinned"][0]), (&10.into(), &true.into(), &"mrtd".into()));
    let refused =
        judge(policy().require_mrtd(coalition_attest::Mrtd([0; 48])), &quote(GuestOptions::default()), &collateral());
    let json: serde_json::Value = serde_json::from_str(&refused.to_json()).unwrap();
    assert_eq!((&json["outcome"], &json["reason"]), (&"invalid".into(), &"register".into()));
    assert!(json["message"].as_str().unwrap().contains("the policy requires 0000"));
    let trust = root().trust_root().unwrap();
    assert!(format!("{trust} {trust:?} {:?}", root()).matches(DEVELOPMENT_LABEL).count() == 3);
    let guest = root().guest(Measurements::of_mrtd(mrtd())).unwrap();
    assert_eq!(guest.label(), DEVELOPMENT_LABEL);
    assert!(root().to_secret().contains(DEVELOPMENT_LABEL));
}

#[test]
fn fresh_collateral_serves_slow_clocks_and_thirty_days() {
    let quote = quote(GuestOptions::default());
    let verifier = Verifier::new(Policy::strict(root().trust_root().unwrap()));
    let fresh = root().collateral(NOW).unwrap();
    let undated = Expect::Exact { report_data: report_data(), issued_s: None };
    let code = |now| verifier.verify(&quote, &fresh, &undated, now).outcome.code();
    let end = NOW - 300 + 30 * 86_400;
    assert_eq!([code(NOW - 300), code(NOW), code(end - 1)], [None; 3]);
    assert_eq!(code(NOW - 301), Some("collateral_not_yet_valid"));
    assert_eq!(code(end), Some("collateral_expired"));
}

#[test]
fn no_other_root_accepts_it() {
    let quote = quote(GuestOptions::default());
    let verdict = judge(Policy::servers(TrustRoot::Intel), &quote, &collateral());
    assert_code(&verdict, "invalid", "wrong_root");
    assert!(verdict.to_string().contains(DEVELOPMENT_LABEL) && verdict.to_string().contains("root: Intel"));
    let namesake = DevelopmentRoot::generate().unwrap();
    let verdict = judge(Policy::strict(namesake.trust_root().unwrap()), &quote, &collateral());
    assert_code(&verdict, "invalid", "wrong_root");
    let verdict = judge(Policy::strict(namesake.trust_root().unwrap()), &quote, &namesake.collateral(NOW).unwrap());
    assert_code(&verdict, "invalid", "wrong_root");
    assert_ne!(policy().fingerprint(), Policy::strict(namesake.trust_root().unwrap()).fingerprint());
}

#[test]
fn a_chain_that_only_names_the_root_is_refused() {
    // A forger may put the true root's certificate at the end of a chain that does not lead there.
    let ours = pem_body(root().certificate(Certificate::Root));
    let (forger, theirs) = (0..100)
        .map(|_| DevelopmentRoot::generate().unwrap())
        .map(|forger| {
            let theirs = pem_body(forger.certificate(Certificate::Root));
            (forger, theirs)
        })
        .find(|(_, theirs)| theirs.len() == ours.len())
        .expect("certificates have a handful of lengths");
    let mut forged = forger.guest(Measurements::of_mrtd(mrtd())).unwrap().quote(&report_data()).unwrap();
    let at = find(&forged, theirs.as_bytes());
    forged[at..at + ours.len()].copy_from_slice(ours.as_bytes());
    let verdict = judge(policy(), &forged, &collateral());
    assert_code(&verdict, "invalid", "platform_certificate");
    let verdict = judge(policy(), &forged, &forger.collateral(NOW).unwrap());
    assert_code(&verdict, "could_not_check", "collateral_forged");
    assert_eq!(verdict.guest, None);
}

fn pem_body(der: &[u8]) -> String {
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|c| std::str::from_utf8(c).unwrap()).collect();
    lines.join("\n")
}

fn find(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).position(|window| window == needle).unwrap()
}

#[test]
fn every_changed_byte_is_refused() {
    let quote = quote(GuestOptions { version: 5, kind: ReportKind::Td15, ..GuestOptions::default() });
    let verifier = Verifier::new(policy());
    let collateral = collateral();
    assert!(verifier.verify(&quote, &collateral, &expect(), NOW).is_valid());
    for place in 0..quote.len() {
        let mut changed = quote.clone();
        changed[place] ^= 0x80 >> (place % 8);
        assert!(!verifier.verify(&changed, &collateral, &expect(), NOW).is_valid(), "byte {place} may change");
    }
}

#[test]
fn the_wrong_bearer_is_refused_and_named() {
    let quote = quote(GuestOptions::default());
    let verifier = Verifier::new(policy());
    let nonce = common::nonce();
    let wrong = [
        (Expect::bound("other", id(1), b"the key", id(2), nonce), "purpose or network"),
        (Expect::bound("test", id(9), b"the key", id(2), nonce), "purpose or network"),
        (Expect::bound("test", id(1), b"a key", id(2), nonce), "public key"),
        (Expect::bound("test", id(1), b"the key", id(9), nonce), "config hash"),
        (Expect::bound("test", id(1), b"the key", id(2), Nonce { value: id(9), ..nonce }), "nonce"),
    ];
    for (expect, part) in wrong {
        let verdict = verifier.verify(&quote, &collateral(), &expect, NOW);
        assert_code(&verdict, "invalid", "report_data");
        assert!(verdict.to_string().contains(&format!("another {part} [")), "{verdict}");
    }
    let exact = Expect::Exact { report_data: [0; 64], issued_s: Some(NOW) };
    assert_code(&verifier.verify(&quote, &collateral(), &exact, NOW), "invalid", "report_data");
    let verdict = verifier.verify(&quote, &collateral(), &Expect::Unbound, NOW);
    assert_code(&verdict, "could_not_check", "binding_unknown");
    assert!(verdict.guest.is_some(), "what it states is shown, and not called valid");
}

#[test]
fn age_is_that_of_the_nonce() {
    let quote = quote(GuestOptions::default());
    let verifier = Verifier::new(policy());
    let at = |now| verifier.verify(&quote, &collateral(), &expect(), now);
    assert!(at(NOW + 50).is_valid(), "sixty seconds after the nonce");
    let late = at(NOW + 51);
    assert_code(&late, "invalid", "too_old");
    assert_eq!(late.quote_age_s, Some(61));
    assert_code(&at(NOW - 11), "could_not_check", "nonce_in_future");
    let undated = Expect::Exact { report_data: report_data(), issued_s: None };
    assert_code(&verifier.verify(&quote, &collateral(), &undated, NOW), "could_not_check", "age_unknown");
}

#[test]
fn registers_are_compared_one_by_one() {
    let mut claims = Measurements::of_mrtd(mrtd());
    for register in Register::ALL {
        claims.set(register, RegisterValue([register.number(); 48]));
    }
    let quote = root().guest(claims).unwrap().quote(&report_data()).unwrap();
    let all = Register::ALL
        .into_iter()
        .fold(Policy::strict(root().trust_root().unwrap()), |p, r| p.require(r, RegisterValue([r.number(); 48])));
    assert!(judge(all.clone(), &quote, &collateral()).is_valid());
    for register in Register::ALL {
        let verdict = judge(all.clone().require(register, RegisterValue([0xff; 48])), &quote, &collateral());
        assert_code(&verdict, "invalid", "register");
        assert!(verdict.to_string().contains(&format!("{register} is ")), "{verdict}");
        let set = [RegisterValue([0xff; 48]), RegisterValue([register.number(); 48])];
        assert!(judge(all.clone().in_set(register, &set).unwrap(), &quote, &collateral()).is_valid());
    }
}

#[test]
fn debug_guests_and_unsound_attributes_are_refused() {
    let with = |attributes| quote(GuestOptions { attributes, ..GuestOptions::default() });
    assert_code(&judge(policy(), &quote(GuestOptions::debug()), &collateral()), "invalid", "debug");
    assert!(Quote::parse(&quote(GuestOptions::debug())).unwrap().is_debug());
    assert_code(&judge(policy(), &with((1 << 28) | 0x10), &collateral()), "invalid", "debug");
    assert_code(&judge(policy(), &with(0), &collateral()), "invalid", "attributes");
    assert_code(&judge(policy(), &with((1 << 28) | (1 << 29)), &collateral()), "invalid", "attributes");
    assert_code(&judge(policy(), &with((1 << 28) | (1 << 40)), &collateral()), "invalid", "attributes");
}

#[test]
fn each_tcb_status_needs_its_own_acceptance() {
    let quote = quote(GuestOptions::default());
    let cases = [
        ("UpToDate", TcbStatus::UpToDate),
        ("SWHardeningNeeded", TcbStatus::SWHardeningNeeded),
        ("ConfigurationNeeded", TcbStatus::ConfigurationNeeded),
        ("ConfigurationAndSWHardeningNeeded", TcbStatus::ConfigurationAndSWHardeningNeeded),
        ("OutOfDate", TcbStatus::OutOfDate),
        ("OutOfDateConfigurationNeeded", TcbStatus::OutOfDateConfigurationNeeded),
    ];
    for (text, status) in cases {
        let advisories = vec!["INTEL-SA-00001".to_owned()];
        let bad = CollateralOptions { status: text, advisories, ..options() };
        let collateral = root().collateral_with(&bad).unwrap();
        for (_, accepted) in cases {
            let verdict = judge(policy().accept(accepted), &quote, &collateral);
            if accepted == status || status == TcbStatus::UpToDate {
                assert!(verdict.is_valid(), "{verdict}");
            } else {
                assert_code(&verdict, "invalid", "tcb");
                assert!(verdict.to_string().contains(text) && verdict.to_string().contains("INTEL-SA-00001"));
            }
        }
        let refusing = policy().accept(status).reject_advisory("intel-sa-00001").unwrap();
        assert_code(&judge(refusing, &quote, &collateral), "invalid", "advisory");
    }
}

/// A guest that was launched under an older module than it runs under now, and the collateral that knows both.
fn updated_since(platform: &'static str) -> (Vec<u8>, Collateral) {
    let launched = GuestOptions {
        version: 5,
        kind: ReportKind::Td15,
        module_svn: 3,
        current_module_svn: Some(5),
        ..GuestOptions::default()
    };
    let knows_both = CollateralOptions { status: platform, outdated_module_svn: Some(3), ..options() };
    (quote(launched), root().collateral_with(&knows_both).unwrap())
}

#[test]
fn a_guest_from_before_an_update_of_its_module_needs_its_own_acceptance() {
    let cases = [
        ("UpToDate", TcbStatus::TDRelaunchAdvised),
        ("SWHardeningNeeded", TcbStatus::TDRelaunchAdvised),
        ("ConfigurationNeeded", TcbStatus::TDRelaunchAdvisedConfigurationNeeded),
        ("ConfigurationAndSWHardeningNeeded", TcbStatus::TDRelaunchAdvisedConfigurationNeeded),
    ];
    let others = [TcbStatus::OutOfDate, TcbStatus::OutOfDateConfigurationNeeded, TcbStatus::ConfigurationNeeded];
    for (platform, status) in cases {
        let (quote, collateral) = updated_since(platform);
        let refused = judge(policy(), &quote, &collateral);
        assert_code(&refused, "invalid", "tcb");
        assert!(refused.to_string().contains(&format!("TCB is {status} ")), "{platform}: {refused}");
        let verdict = judge(policy().accept(status), &quote, &collateral);
        assert!(verdict.is_valid(), "{platform}: {verdict}");
        assert_eq!(verdict.guest.unwrap().tcb, status);
        let loose = others.into_iter().fold(policy(), Policy::accept);
        assert_code(&judge(loose, &quote, &collateral), "invalid", "tcb");
    }
    // Launched under it and never updated: out of date, whatever else is accepted.
    let still = GuestOptions { current_module_svn: None, module_svn: 3, ..GuestOptions::default() };
    let old = quote(GuestOptions { version: 5, kind: ReportKind::Td15, ..still });
    let verdict = judge(policy().accept(TcbStatus::TDRelaunchAdvised), &old, &updated_since("UpToDate").1);
    assert_code(&verdict, "invalid", "tcb");
    assert!(verdict.to_string().contains("TCB is OutOfDate "), "{verdict}");
}

#[test]
fn a_verdict_says_what_it_pins() {
    let verdict = judge(policy(), &quote(GuestOptions::default()), &collateral());
    assert!(verdict.to_string().contains("; pins: mrtd; quote at most 10 s old"), "{verdict}");
    let zero = RegisterValue([0; 48]);
    let more = policy().require(Register::Rtmr1, zero).require(Register::MrConfigId, zero);
    let text = judge(more, &quote(GuestOptions::default()), &collateral()).to_string();
    assert!(text.contains(&format!("; pins: mrtd, {}, {};", Register::Rtmr1, Register::MrConfigId)), "{text}");
    let any = Policy::strict(root().trust_root().unwrap());
    let text = judge(any, &quote(GuestOptions::default()), &collateral()).to_string();
    assert!(text.starts_with("valid [") && text.contains("; pins nothing; "), "{text}");
}

#[test]
fn every_changed_byte_of_an_issuer_chain_is_refused_or_changes_no_certificate() {
    let quote = Quote::parse(&quote(GuestOptions::default())).unwrap();
    let verifier = Verifier::new(policy());
    let json: serde_json::Value = serde_json::from_str(&collateral().to_json()).unwrap();
    for field in ["pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"] {
        let text = json[field].as_str().unwrap();
        let certificates = certificates(text).unwrap();
        assert_eq!(certificates.len(), 2, "{field}");
        let mut refused = 0;
        for place in 0..text.len() {
            for bit in [0, 5] {
                let mut bytes = text.as_bytes().to_vec();
                bytes[place] ^= 1 << bit;
                let changed_text = String::from_utf8(bytes).unwrap();
                let mut changed = json.clone();
                changed[field] = changed_text.as_str().into();
                let changed = Collateral::from_json(changed.to_string().as_bytes(), Origin::Inline).unwrap();
                let verdict = verifier.judge(&quote, &changed, &expect(), NOW);
                assert_ne!(changed.digest(), collateral().digest(), "other bytes have another name");
                if verdict.is_valid() {
                    let same = self::certificates(&changed_text).as_ref() == Some(&certificates);
                    assert!(same, "{field} byte {place} bit {bit} may change");
                } else {
                    assert_eq!(verdict.outcome.name(), "could_not_check", "{field} byte {place} bit {bit}: {verdict}");
                    refused += 1;
                }
            }
        }
        assert!(refused > text.len(), "{field}: {refused} of {}", 2 * text.len());
    }
}

/// The certificates of a chain in PEM form, whatever white space is between them; none when anything else is.
fn certificates(chain: &str) -> Option<Vec<Vec<u8>>> {
    let end = "-----END CERTIFICATE-----";
    let decode = |block: &str| {
        let digits: String = block.trim().strip_prefix("-----BEGIN CERTIFICATE-----")?.split_whitespace().collect();
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, digits).ok()
    };
    let (body, rest) = chain.rsplit_once(end)?;
    if rest.trim().is_empty() { body.split(end).map(decode).collect() } else { None }
}

#[test]
fn revoked_levels_are_refused_under_every_policy() {
    let quote = quote(GuestOptions::default());
    let all = [TcbStatus::OutOfDate, TcbStatus::OutOfDateConfigurationNeeded, TcbStatus::ConfigurationNeeded];
    let loose = all.into_iter().fold(policy(), Policy::accept);
    let revoked = CollateralOptions { status: "Revoked", ..options() };
    let verdict = judge(loose.clone(), &quote, &root().collateral_with(&revoked).unwrap());
    assert_code(&verdict, "invalid", "tcb_revoked");
    let revoked = CollateralOptions { qe_status: "Revoked", ..options() };
    let verdict = judge(loose.clone(), &quote, &root().collateral_with(&revoked).unwrap());
    assert_code(&verdict, "invalid", "tcb_revoked");
    let old = CollateralOptions { qe_status: "OutOfDate", ..options() };
    assert_code(&judge(policy(), &quote, &root().collateral_with(&old).unwrap()), "invalid", "tcb");
    assert!(judge(loose, &quote, &root().collateral_with(&old).unwrap()).is_valid());
}

#[test]
fn platforms_below_every_level_are_refused() {
    let below = CollateralOptions { required_svn: 6, ..options() };
    let verdict = judge(policy(), &quote(GuestOptions::default()), &root().collateral_with(&below).unwrap());
    assert_code(&verdict, "invalid", "tcb_unknown");
    let module = CollateralOptions { required_module_svn: 6, ..options() };
    let verdict = judge(policy(), &quote(GuestOptions::default()), &root().collateral_with(&module).unwrap());
    assert_code(&verdict, "invalid", "tcb_unknown");
    let old = GuestOptions { qe_svn: 1, ..GuestOptions::default() };
    assert_code(&judge(policy(), &quote(old), &collateral()), "invalid", "quoting_enclave");
    let other = GuestOptions { qe_product: 1, ..GuestOptions::default() };
    assert_code(&judge(policy(), &quote(other), &collateral()), "invalid", "quoting_enclave");
}

#[test]
fn revoked_keys_are_refused() {
    let quote = quote(GuestOptions::default());
    for (which, outcome, code) in [
        (Certificate::Platform, "invalid", "revoked"),
        (Certificate::PlatformCa, "invalid", "revoked"),
        (Certificate::TcbSigner, "could_not_check", "collateral_forged"),
        (Certificate::Root, "invalid", "revoked"),
    ] {
        let revoking = CollateralOptions { revoked: vec![which], ..options() };
        let verdict = judge(policy(), &quote, &root().collateral_with(&revoking).unwrap());
        assert_code(&verdict, outcome, code);
        assert!(verdict.to_string().to_lowercase().contains("revoked"), "{verdict}");
    }
}

#[test]
fn collateral_is_refused_when_expired_early_forged_or_anothers() {
    let quote = quote(GuestOptions::default());
    let with = |options: CollateralOptions| judge(policy(), &quote, &root().collateral_with(&options).unwrap());
    let expired = CollateralOptions { issued_s: NOW - 7200, expires_s: NOW - 1, ..options() };
    assert_code(&with(expired), "could_not_check", "collateral_expired");
    let early = CollateralOptions { issued_s: NOW + 1, ..options() };
    assert_code(&with(early), "could_not_check", "collateral_not_yet_valid");
    let other = CollateralOptions { fmspc: [1; 6], ..options() };
    assert_code(&with(other), "could_not_check", "collateral_of_another");
    let other = CollateralOptions { pce_id: [0, 1], ..options() };
    assert_code(&with(other), "could_not_check", "collateral_of_another");
    for signer in [Certificate::Platform, Certificate::PlatformCa, Certificate::Root] {
        let forged = CollateralOptions { signer, ..options() };
        assert_code(&with(forged), "could_not_check", "collateral_forged");
    }
    let namesake = DevelopmentRoot::generate().unwrap();
    let verdict = judge(policy(), &quote, &namesake.collateral(NOW).unwrap());
    assert_code(&verdict, "could_not_check", "collateral_forged");
}

#[test]
fn parts_of_different_collateral_do_not_mix() {
    let quote = quote(GuestOptions::default());
    let ours: serde_json::Value = serde_json::from_str(&collateral().to_json()).unwrap();
    let namesake = DevelopmentRoot::generate().unwrap();
    let theirs: serde_json::Value = serde_json::from_str(&namesake.collateral(NOW).unwrap().to_json()).unwrap();
    for field in ["root_ca_crl", "pck_crl", "tcb_info", "tcb_info_signature", "qe_identity", "qe_identity_signature"] {
        let mut mixed = ours.clone();
        mixed[field] = theirs[field].clone();
        let mixed = Collateral::from_json(mixed.to_string().as_bytes(), Origin::Inline).unwrap();
        assert_code(&judge(policy(), &quote, &mixed), "could_not_check", "collateral_forged");
    }
    for (field, code) in [
        ("root_ca_crl", "collateral_malformed"),
        ("pck_crl", "collateral_malformed"),
        ("tcb_info", "collateral_malformed"),
        ("tcb_info_issuer_chain", "collateral_malformed"),
        ("qe_identity_issuer_chain", "collateral_malformed"),
    ] {
        let mut empty = ours.clone();
        empty[field] = "".into();
        let empty = Collateral::from_json(empty.to_string().as_bytes(), Origin::Inline).unwrap();
        assert_code(&judge(policy(), &quote, &empty), "could_not_check", code);
    }
}

#[test]
fn old_but_unexpired_collateral_is_a_matter_of_policy() {
    let quote = quote(GuestOptions::default());
    let fresh = policy().max_collateral_age_s(3600).unwrap();
    assert!(judge(fresh, &quote, &collateral()).is_valid());
    let fresher = policy().max_collateral_age_s(3599).unwrap();
    assert_code(&judge(fresher, &quote, &collateral()), "could_not_check", "collateral_old");
    assert!(judge(policy().min_tcb_evaluation(1), &quote, &collateral()).is_valid());
    let verdict = judge(policy().min_tcb_evaluation(2), &quote, &collateral());
    assert_code(&verdict, "could_not_check", "collateral_evaluation");
}

#[test]
fn each_platform_flag_needs_its_own_allowance() {
    let all = PlatformOptions { dynamic_platform: true, cached_keys: true, smt: true };
    let cases = [
        (PlatformFlag::DynamicPlatform, PlatformOptions { dynamic_platform: true, ..PlatformOptions::default() }),
        (PlatformFlag::CachedKeys, PlatformOptions { cached_keys: true, ..PlatformOptions::default() }),
        (PlatformFlag::Smt, PlatformOptions { smt: true, ..PlatformOptions::default() }),
    ];
    for (flag, platform) in cases {
        let root = DevelopmentRoot::generate_with(platform).unwrap();
        let quote = root.guest(Measurements::of_mrtd(mrtd())).unwrap().quote(&report_data()).unwrap();
        let collateral = root.collateral(NOW).unwrap();
        let strict = Policy::strict(root.trust_root().unwrap());
        for other in PlatformFlag::ALL {
            assert_eq!(judge(strict.clone().allow(other), &quote, &collateral).is_valid(), other == flag);
        }
    }
    let root = DevelopmentRoot::generate_with(all).unwrap();
    let quote = root.guest(Measurements::of_mrtd(mrtd())).unwrap().quote(&report_data()).unwrap();
    let servers = Policy::servers(root.trust_root().unwrap());
    assert!(judge(servers, &quote, &root.collateral(NOW).unwrap()).is_valid());
}

#[test]
fn a_stored_root_is_the_same_root() {
    let secret = root().to_secret();
    let again = DevelopmentRoot::from_secret(&secret).unwrap();
    assert_eq!(again.trust_root().unwrap(), root().trust_root().unwrap());
    let quote = again.guest(Measurements::of_mrtd(mrtd())).unwrap().quote(&report_data()).unwrap();
    assert!(judge(policy(), &quote, &again.collateral(NOW).unwrap()).is_valid());
    assert!(judge(policy(), &quote, &collateral()).is_valid(), "one root, two copies");
    assert!(!format!("{again:?}").contains(&secret[60..90]), "keys are redacted");
    for damaged in [&secret[..100], "{}", &secret.replacen('3', "4", 4)] {
        assert!(DevelopmentRoot::from_secret(damaged).is_err());
    }
}

#[test]
fn bare_quotes_need_a_policy_that_says_so() {
    let quote = quote(GuestOptions::default());
    let open = Policy::strict(root().trust_root().unwrap()).binding(BindingRule::Unbound).unwrap();
    let verdict = Verifier::new(open).verify(&quote, &collateral(), &Expect::Unbound, NOW);
    assert!(verdict.is_valid() && !verdict.bound && verdict.pinned.is_empty());
    assert!(verdict.to_string().contains("not bound to its bearer"), "{verdict}");
    assert_code(&judge(intel(), &quote, &collateral()), "invalid", "wrong_root");
}
