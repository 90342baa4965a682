//! A committee of four beside etcd's three, on one disk and in one run, alternating: commits a second, latency, processor time,
//! bytes written and bytes sent for each commit, and how these change as the log grows and with more members; with `--idle`, what both
//! cost while nobody writes.
//!
//! `cargo run --release -p coalition-testkit --example bench_etcd -- [--seconds 6] [--rounds 3] [--fill 100000] [--members 7,10] [--idle 30] [--dir DIR]`
//!
//! Both are separate processes that sync every commit. Both get closed loops of unique keys with 256-byte values from clients
//! in this process: etcd over its native gRPC to its leader, ours over its own calls. etcd answers when two of three have the
//! write on disk; ours when three of four have, and a certificate that anybody can verify is made and checked by the client.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::float_arithmetic,
    clippy::cast_precision_loss,
    unreachable_pub,
    dead_code,
    missing_docs
)]

#[path = "../torture/committee.rs"]
mod committee;
mod etcd;
mod grpc;
mod idle;
mod load;
#[path = "../torture/member.rs"]
mod member;
#[path = "../torture/namespaces.rs"]
mod namespaces;
mod ours;

use std::{process::ExitCode, time::Duration};

use load::{Step, System};

const CONCURRENCIES: [usize; 3] = [1, 16, 256];

struct Options {
    seconds: u64,
    rounds: usize,
    fill: u64,
    /// Sizes of committees measured after the one of four.
    members: Vec<usize>,
    /// Seconds for which each is left alone before anything else; 0 for not at all.
    idle: u64,
    dir: Option<std::path::PathBuf>,
}

fn options(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options { seconds: 6, rounds: 3, fill: 100_000, members: Vec::new(), idle: 0, dir: None };
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return Err(format!("{} needs a value", pair[0])) };
        let number = || value.parse::<u64>().map_err(|_| format!("{name} is {value:?}, not a number"));
        match name.as_str() {
            "--seconds" => options.seconds = number()?,
            "--rounds" => options.rounds = usize::try_from(number()?).map_err(|error| error.to_string())?,
            "--idle" => options.idle = number()?,
            "--fill" => options.fill = number()?,
            "--members" => {
                let sizes = value.split(',').map(str::parse).collect::<Result<_, _>>();
                options.members = sizes.map_err(|_| format!("--members is {value:?}, not numbers with commas"))?;
            }
            "--dir" => options.dir = Some(value.into()),
            _ => return Err(format!("there is no option {name}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "member") {
        return member::main(&arguments[1..]);
    }
    let options = match options(&arguments) {
        Ok(options) => options,
        Err(reason) => {
            eprintln!("{reason}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let done = runtime.block_on(compare(&options));
    runtime.shutdown_timeout(Duration::from_millis(500));
    if let Err(reason) = done {
        eprintln!("{reason}");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}

async fn compare(options: &Options) -> Result<(), String> {
    let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
    let dir = options.dir.clone().unwrap_or_else(|| scratch.path().to_owned());
    let etcd = System::Etcd(etcd::Cluster::start(&dir.join("etcd")).await?);
    let left_alone = Duration::from_secs(options.idle);
    let etcd_idle = if options.idle > 0 { Some(idle::measure(&etcd, left_alone, 0.0).await?) } else { None };
    let ours = System::Ours(Box::new(ours::Cluster::start(&dir.join("ours"), 4).await?));
    if let Some(etcd_idle) = etcd_idle {
        let beside = etcd_idle.sent * etcd.members() as f64;
        let ours_idle = idle::measure(&ours, left_alone, beside).await?;
        report_idle(&[(&etcd, etcd_idle), (&ours, ours_idle)]);
    }
    println!("load average before: {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    println!(
        "| round | system | in flight | commits/s | p50 ms | p99 ms | CPU µs a commit | KB written a commit | KB sent a commit | log |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let length = Duration::from_secs(options.seconds);
    for round in 1..=options.rounds {
        for concurrency in CONCURRENCIES {
            for system in [&etcd, &ours] {
                let step = load::run(system, concurrency, length, u64::MAX).await?;
                report(&round.to_string(), system, concurrency, &step);
            }
        }
    }
    let mut goal = 1_000;
    while goal <= options.fill {
        for system in [&etcd, &ours] {
            let missing = goal.saturating_sub(system.committed());
            load::run(system, 256, Duration::from_secs(3_600), missing).await?;
        }
        for system in [&etcd, &ours] {
            let step = load::run(system, 16, length, u64::MAX).await?;
            report(&format!("from {goal}"), system, 16, &step);
        }
        goal *= 10;
    }
    drop((etcd, ours));
    for members in &options.members {
        let cluster = ours::Cluster::start(&dir.join(format!("ours-{members}")), *members).await?;
        let ours = System::Ours(Box::new(cluster));
        // Until everybody is connected to everybody.
        load::run(&ours, 1, Duration::from_secs(60), 20).await?;
        for concurrency in CONCURRENCIES {
            let step = load::run(&ours, concurrency, length, u64::MAX).await?;
            report("-", &ours, concurrency, &step);
        }
    }
    println!("load average after: {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    Ok(())
}

fn report_idle(systems: &[(&System, idle::Idle)]) {
    println!("| idle | % of a core a member | KB/s sent a member | first write after 3 s, ms: median | slowest |");
    println!("|---|---|---|---|---|");
    for (system, idle) in systems {
        let (median, slowest) = idle.first;
        println!("| {} | {:.2} | {:.2} | {median:.1} | {slowest:.1} |", system.name(), idle.cpu, idle.sent);
    }
    println!();
}

fn report(round: &str, system: &System, concurrency: usize, step: &Step) {
    println!(
        "| {round} | {} | {concurrency} | {:.0} | {:.1} | {:.1} | {:.0} | {:.1} | {:.1} | {} |",
        system.name(),
        step.per_second(),
        step.percentile(50),
        step.percentile(99),
        step.cpu_us_per_commit(),
        step.written_kb_per_commit(),
        step.sent_kb_per_commit(),
        system.committed(),
    );
}
