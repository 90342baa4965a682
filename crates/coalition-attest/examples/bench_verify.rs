//! What verification costs over the bare library call: of a parsed quote, of evidence as it travels, and remembered.
//!
//! `cargo run --release -p coalition-attest --example bench_verify [rounds [quote collateral.json unix-time]]`: with a
//! development quote, which runs anywhere, or with one of Intel's. The calls alternate, and their medians are compared,
//! so that a busy machine disturbs all alike.

#![allow(clippy::print_stdout, clippy::float_arithmetic, clippy::cast_precision_loss)]

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use coalition_attest::evidence::Nowhere;
use coalition_attest::{
    Collateral, DevelopmentRoot, Evidence, Expect, Measurements, Mrtd, Origin, Policy, Quote, QuoteSource, TrustRoot,
    VerdictCache, Verifier,
};
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteCollateralV3, QuotePolicy};

/// What is verified, and when.
struct Case {
    quote: Vec<u8>,
    collateral: Collateral,
    root: TrustRoot,
    now: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rounds = arguments.first().map_or(Ok(1000), |text| text.parse::<usize>())?;
    let Case { quote, collateral, root, now } = match &arguments[arguments.len().min(1)..] {
        [quote, collateral, now] => intel(quote, collateral, now.parse()?)?,
        _ => development()?,
    };
    let parsed = Quote::parse(&quote)?;
    let bare = QuoteVerifier::new(root.certificate().to_vec());
    let policy = Policy::servers(root).require_mrtd(parsed.measurements().mrtd).max_quote_age_s(60)?;
    let expect = Expect::Exact { report_data: parsed.report_data(), issued_s: Some(now) };
    let ours = Verifier::new(policy.max_collateral_age_s(30 * 86_400)?);
    let bundle: QuoteCollateralV3 = serde_json::from_str(&collateral.to_json())?;
    let appraisal = QuotePolicy::strict(now).allow_dynamic_platform(true).allow_cached_keys(true).allow_smt(true);
    let cache = VerdictCache::new(16);
    let wire = Evidence { quote: quote.clone(), collateral: Some(collateral.clone()) }.to_bytes()?;
    // With an empty memory, or with one that holds the verdict; from bytes as a member or a door does it.
    let read = || Evidence::from_bytes(&wire).expect("sound");
    let evidence =
        |evidence: &Evidence, memory: &VerdictCache| evidence.judge(&ours, memory, &Nowhere, &expect, now).is_valid();
    let held = read();
    assert!(evidence(&held, &cache), "the quote is sound");

    let mut times: [Vec<Duration>; 6] = Default::default();
    let [bare_times, our_times, evidence_times, wire_times, again_times, cached_times] = &mut times;
    for _ in 0..rounds {
        bare_times.push(timed(|| bare.verify_with_policy(&quote, &bundle, now, &appraisal).is_ok()));
        our_times
            .push(timed(|| ours.judge(&Quote::parse(&quote).expect("sound"), &collateral, &expect, now).is_valid()));
        let [empty, other] = [VerdictCache::new(16), VerdictCache::new(16)];
        evidence_times.push(timed(|| evidence(&held, &empty)));
        wire_times.push(timed(|| evidence(&read(), &other)));
        again_times.push(timed(|| evidence(&held, &cache)));
        cached_times.push(timed(|| cache.judge(&ours, &parsed, &collateral, &expect, now).is_valid()));
    }
    let [bare, ours, evidence, wire, again, cached] = times.map(median);
    let ratio = |time: Duration| time.as_secs_f64() / bare.as_secs_f64();
    println!("median of {rounds} rounds            time     of the bare call");
    println!("bare library call           {bare:>10.1?}  1.000 x");
    for (what, time) in [
        ("judge, quote parsed anew   ", ours),
        ("Evidence::judge            ", evidence),
        ("  and its bytes read       ", wire),
        ("Evidence::judge, remembered", again),
        ("a remembered verdict       ", cached),
    ] {
        println!("{what} {time:>10.1?}  {:.3} x", ratio(time));
    }
    Ok(())
}

fn development() -> Result<Case, Box<dyn Error>> {
    let now = 1_800_000_000;
    let root = DevelopmentRoot::generate()?;
    let quote = root.guest(Measurements::of_mrtd(Mrtd([1; 48])))?.quote(&[7; 64])?;
    Ok(Case { quote, collateral: root.collateral(now)?, root: root.trust_root()?, now })
}

fn intel(quote: &str, collateral: &str, now: u64) -> Result<Case, Box<dyn Error>> {
    let collateral = Collateral::from_json(&std::fs::read(collateral)?, Origin::Inline)?;
    Ok(Case { quote: std::fs::read(quote)?, collateral, root: TrustRoot::Intel, now })
}

fn timed(call: impl FnOnce() -> bool) -> Duration {
    let start = Instant::now();
    assert!(black_box(call()), "the quote is sound");
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
