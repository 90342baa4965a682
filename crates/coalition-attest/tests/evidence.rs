//! Evidence that outlives the collateral it came with: who judges it later has fresh collateral of its own.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, clippy::expect_used)]

mod common;

use coalition_attest::dev::{Certificate, CollateralOptions, GuestOptions};
use coalition_attest::evidence::Nowhere;
use coalition_attest::{
    CollateralSource, Directory, Evidence, Expect, Origin, Policy, Quote, Verdict, VerdictCache, Verifier,
};
use common::{NOW, assert_code, mrtd, quote, report_data, root};

const DAY: u64 = 24 * 3600;
/// When the evidence was made; its collateral ends thirty days later, ten days before [`NOW`].
const MADE: u64 = NOW - 40 * DAY;

/// Judges as a replay of a log does: one cache, evidence as it stands there, at the time asked about.
struct Judge {
    verifier: Verifier,
    cache: VerdictCache,
    evidence: Evidence,
}

impl Judge {
    fn new() -> Self {
        let collateral = Some(root().collateral_with(&CollateralOptions::issued(MADE)).unwrap());
        let made = Evidence { quote: quote(GuestOptions::default()), collateral };
        let evidence = Evidence::from_bytes(&made.to_bytes().unwrap()).unwrap();
        let policy = Policy::strict(root().trust_root().unwrap()).require_mrtd(mrtd());
        Self { verifier: Verifier::new(policy), cache: VerdictCache::new(16), evidence }
    }

    fn at(&self, own: &dyn CollateralSource, now: u64) -> Verdict {
        let expect = Expect::Exact { report_data: report_data(), issued_s: None };
        self.evidence.judge(&self.verifier, &self.cache, own, &expect, now)
    }
}

/// A directory with the development platform's collateral as these options have it.
fn filled(options: &CollateralOptions) -> (tempfile::TempDir, Directory) {
    let place = tempfile::tempdir().unwrap();
    let directory = Directory::new(place.path());
    fill(&directory, options);
    (place, directory)
}

fn fill(directory: &Directory, options: &CollateralOptions) {
    let key = Quote::parse(&quote(GuestOptions::default())).unwrap().collateral_key().unwrap();
    directory.store(key, &root().collateral_with(options).unwrap()).unwrap();
}

#[test]
fn expired_collateral_that_came_along_gives_way_to_fresh_collateral_of_ones_own() {
    let judge = Judge::new();
    let then = judge.at(&Nowhere, MADE + DAY);
    assert!(then.is_valid(), "{then}");
    assert_eq!(then.collateral.unwrap().origin, Origin::Inline);
    assert_code(&judge.at(&Nowhere, NOW), "could_not_check", "collateral_expired");

    let fresh = CollateralOptions { evaluation: 2, ..CollateralOptions::issued(NOW - DAY) };
    let (_place, directory) = filled(&fresh);
    let now = judge.at(&directory, NOW);
    assert!(now.is_valid(), "{now}");
    let used = now.collateral.unwrap();
    assert_eq!((used.origin, used.issued_s, used.tcb_evaluation), (Origin::Directory, Some(NOW - DAY), Some(2)));
    // At the time of the evidence the directory's collateral does not exist yet, and what came along does.
    let then = judge.at(&directory, MADE + DAY);
    assert!(then.is_valid() && then.collateral.unwrap().origin == Origin::Inline, "{then}");
}

#[test]
fn ones_own_collateral_may_be_replaced_while_judging_goes_on() {
    let judge = Judge::new();
    let (_place, directory) = filled(&CollateralOptions::issued(MADE - DAY));
    assert_code(&judge.at(&directory, NOW), "could_not_check", "collateral_expired");
    fill(&directory, &CollateralOptions::issued(NOW - DAY));
    assert!(judge.at(&directory, NOW).is_valid());
    // What becomes known later ends what was valid: no remembered verdict stands in its way.
    let revoked = vec![Certificate::Platform];
    fill(&directory, &CollateralOptions { revoked, ..CollateralOptions::issued(NOW - 1) });
    assert_code(&judge.at(&directory, NOW), "invalid", "revoked");
}

#[test]
fn a_known_revocation_is_not_undone_by_what_came_along() {
    let judge = Judge::new();
    let revoked = CollateralOptions { revoked: vec![Certificate::Platform], ..CollateralOptions::issued(MADE + DAY) };
    let (_place, directory) = filled(&revoked);
    assert!(judge.at(&Nowhere, MADE + 2 * DAY).is_valid());
    assert_code(&judge.at(&directory, MADE + 2 * DAY), "invalid", "revoked");
    // Damaged collateral of one's own says nothing, so what came along counts.
    let key = Quote::parse(&quote(GuestOptions::default())).unwrap().collateral_key().unwrap();
    std::fs::write(directory.file(key), "{}").unwrap();
    assert!(judge.at(&directory, MADE + 2 * DAY).is_valid());
    assert_code(&judge.at(&directory, NOW), "could_not_check", "collateral_expired");
}
