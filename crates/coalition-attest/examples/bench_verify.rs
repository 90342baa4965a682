//! What verification costs over the bare library call, and what a remembered verdict costs.
//!
//! `cargo run --release -p coalition-attest --example bench_verify [rounds]`; uses a development quote, so that it runs
//! anywhere. The two calls alternate, and the medians are compared, so that a busy machine disturbs both alike.

#![allow(clippy::print_stdout, clippy::float_arithmetic, clippy::cast_precision_loss)]

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use coalition_attest::{
    DevelopmentRoot, Expect, Measurements, Mrtd, Policy, Quote, QuoteSource, VerdictCache, Verifier,
};
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteCollateralV3, QuotePolicy};

const NOW: u64 = 1_800_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args().nth(1).map_or(Ok(1000), |text| text.parse::<usize>())?;
    let root = DevelopmentRoot::generate()?;
    let report_data = [7; 64];
    let quote = root.guest(Measurements::of_mrtd(Mrtd([1; 48])))?.quote(&report_data)?;
    let collateral = root.collateral(NOW)?;
    let policy = Policy::strict(root.trust_root()?).require_mrtd(Mrtd([1; 48])).max_collateral_age_s(86_400)?;
    let expect = Expect::Exact { report_data, issued_s: Some(NOW) };
    let ours = Verifier::new(policy);
    let bare = QuoteVerifier::new(root.trust_root()?.certificate().to_vec());
    let bundle: QuoteCollateralV3 = serde_json::from_str(&collateral.to_json())?;
    let appraisal = QuotePolicy::strict(NOW);
    let cache = VerdictCache::new(16);
    let parsed = Quote::parse(&quote)?;

    let (mut bare_times, mut our_times, mut cached_times) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        bare_times.push(timed(|| bare.verify_with_policy(&quote, &bundle, NOW, &appraisal).is_ok()));
        our_times
            .push(timed(|| ours.judge(&Quote::parse(&quote).expect("sound"), &collateral, &expect, NOW).is_valid()));
        cached_times.push(timed(|| cache.judge(&ours, &parsed, &collateral, &expect, NOW).is_valid()));
    }
    let [bare, ours, cached] = [bare_times, our_times, cached_times].map(median);
    println!("bare library call   {bare:>10.1?}");
    println!("our verification    {ours:>10.1?}  ({:.3} x)", ours.as_secs_f64() / bare.as_secs_f64());
    println!("remembered verdict  {cached:>10.1?}");
    Ok(())
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
