//! Measures a committee: one process per member on loopback, durable, commands of fixed size in a closed loop.
//!
//! `cargo run --release -p coalition-order --example order_load -- [members] [command bytes] [seconds per step] [heartbeat ms] [worker threads]`
//!
//! Prints commands per second, time from submission to delivery at the submitter, resident memory, CPU and disk
//! per member; first idle, then with 1, 16 and 256 commands under way in the whole committee; at last with one
//! member killed, and how long that one needs to catch up.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::float_arithmetic, clippy::cast_precision_loss)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use coalition_order::{CommandId, Delivery, OrderConfig, OrderHandle, OrderMember, command_id, start};
use commonware_codec::{Copying, DecodeExt as _, Encode as _};
use commonware_cryptography::Signer as _;
use commonware_cryptography::ed25519::PrivateKey;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "member") {
        return member(&args[1..]);
    }
    let number = |i: usize, or: usize| args.get(i).map_or(or, |a| a.parse().unwrap());
    let workers = OrderConfig::default().worker_threads;
    parent(number(0, 4), number(1, 256), number(2, 10), number(3, 1_000), number(4, workers));
}

struct Seat {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Seat {
    fn ask(&mut self, line: &str) {
        writeln!(self.to, "{line}").unwrap();
    }

    fn answer(&mut self) -> Vec<u64> {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.split_whitespace().map(|n| n.parse().unwrap()).collect()
    }
}

fn parent(members: usize, bytes: usize, seconds: usize, heartbeat_ms: usize, workers: usize) {
    let dir = tempfile::tempdir().unwrap();
    let held: Vec<TcpListener> = (0..members).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<String> = held.iter().map(|l| l.local_addr().unwrap().port().to_string()).collect();
    drop(held);
    let spawn = |i: usize| {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "member",
                &i.to_string(),
                dir.path().to_str().unwrap(),
                &bytes.to_string(),
                &heartbeat_ms.to_string(),
                &workers.to_string(),
            ])
            .args(&ports)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Seat { child, to, from }
    };
    let mut seats: Vec<Seat> = (0..members).map(spawn).collect();
    let began = Instant::now();
    for seat in &mut seats {
        seat.answer();
    }
    println!("{members} members connected after {:.1} s; commands of {bytes} bytes", began.elapsed().as_secs_f64());
    println!(
        "in flight | commands/s | batches/s | p50 ms | p99 ms | CPU % of a core per member | RSS MiB | disk MiB | payload MiB"
    );
    let mut total = 0;
    for in_flight in [0, 1, 16, 256] {
        total += step(&mut seats, in_flight, seconds);
        println!(
            " | {:8.1} | {:11.1}",
            disk(&dir.path().join("0")) as f64 / 1048576.0,
            (total * bytes as u64) as f64 / 1048576.0
        );
    }
    if members > 3 {
        let mut killed = seats.pop().unwrap();
        killed.child.kill().unwrap();
        killed.child.wait().unwrap();
        step(&mut seats, 16, seconds);
        println!(" | one killed");
        let began = Instant::now() + Duration::from_millis(300);
        let mut back = spawn(members - 1);
        let delivered = back.answer()[0];
        println!("killed member back: {delivered} batches caught up after {:.1} s", began.elapsed().as_secs_f64());
        seats.push(back);
    }
    for seat in &mut seats {
        seat.ask("stop");
    }
    for mut seat in seats {
        seat.child.wait().unwrap();
    }
}

/// Runs one step on all seats and prints its line without an end; returns the number of commands ordered.
fn step(seats: &mut [Seat], in_flight: usize, seconds: usize) -> u64 {
    let members = seats.len();
    for (i, seat) in seats.iter_mut().enumerate() {
        let share = in_flight / members + usize::from(i < in_flight % members);
        seat.ask(&format!("{share} {seconds}"));
    }
    let answers: Vec<Vec<u64>> = seats.iter_mut().map(Seat::answer).collect();
    let sum = |k: usize| answers.iter().map(|a| a[k]).sum::<u64>();
    let max = |k: usize| answers.iter().map(|a| a[k]).max().unwrap();
    print!(
        "{in_flight:9} | {:10.0} | {:9.1} | {:6.1} | {:6.1} | {:26.1} | {:7.1}",
        sum(0) as f64 / seconds as f64,
        max(1) as f64 / seconds as f64,
        max(2) as f64 / 1e3,
        max(3) as f64 / 1e3,
        sum(4) as f64 / members as f64 / (seconds * 10) as f64,
        max(5) as f64 / 1024.0,
    );
    sum(0)
}

fn member(args: &[String]) {
    let seat: u8 = args[0].parse().unwrap();
    let bytes: usize = args[2].parse().unwrap();
    let key = |i: u8| PrivateKey::decode(Copying(&[i + 1; 32])).unwrap();
    let address = |port: &String| SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
    let roster: Vec<OrderMember> = args[5..]
        .iter()
        .zip(0..)
        .map(|(port, i)| OrderMember {
            public_key: key(i).public_key().encode().as_ref().try_into().unwrap(),
            address: address(port),
        })
        .collect();
    let config = OrderConfig {
        namespace: b"load".to_vec(),
        listen: roster[usize::from(seat)].address,
        roster,
        secret_key: Zeroizing::new([seat + 1; 32]),
        heartbeat_ms: args[3].parse().unwrap(),
        worker_threads: args[4].parse().unwrap(),
        storage_dir: PathBuf::from(&args[1]).join(seat.to_string()),
        ..OrderConfig::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(config, bytes));
}

async fn serve(config: OrderConfig, bytes: usize) {
    let others = config.roster.len() - 1;
    let (handle, mut deliveries) = start(config).unwrap();
    let ready = |h: &OrderHandle| {
        let status = h.status();
        status.connected_peers >= others
            && status.delivered_height > 0
            && status.delivered_height >= status.finalized_height
    };
    let (mut delivered, mut since) = (0u64, Instant::now());
    // For a while, because a member that comes back first hears where the others are.
    while since.elapsed() < Duration::from_millis(300) {
        if !ready(&handle) {
            since = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        while let Ok(delivery) = deliveries.try_recv() {
            delivery.acknowledge();
            delivered += 1;
        }
    }
    println!("{delivered}");
    let (lines_tx, mut lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || std::io::stdin().lines().for_each(|l| lines_tx.send(l.unwrap()).unwrap_or(())));
    let mut step = 0;
    loop {
        tokio::select! {
            Some(delivery) = deliveries.recv() => delivery.acknowledge(),
            Some(line) = lines.recv() => {
                if line == "stop" {
                    break handle.stop(Duration::from_secs(10)).await.unwrap();
                }
                let (share, seconds) = line.split_once(' ').unwrap();
                step += 1;
                let time = Duration::from_secs(seconds.parse().unwrap());
                run(&handle, &mut deliveries, step, share.parse().unwrap(), time, bytes).await;
            }
        }
    }
}

async fn run(
    handle: &OrderHandle,
    deliveries: &mut mpsc::Receiver<Delivery>,
    step: u64,
    share: usize,
    time: Duration,
    bytes: usize,
) {
    let mut waiting: HashMap<CommandId, Instant> = HashMap::new();
    let mut count = 0u64;
    let mut next = |waiting: &mut HashMap<CommandId, Instant>| {
        count += 1;
        let mut command = vec![0; bytes.max(24)];
        command[..8].copy_from_slice(&step.to_be_bytes());
        command[8..16].copy_from_slice(&count.to_be_bytes());
        command[16..24].copy_from_slice(&u64::from(std::process::id()).to_be_bytes());
        waiting.insert(handle.submit(command).unwrap(), Instant::now());
    };
    let (mut latencies, mut batches) = (Vec::new(), 0u64);
    let (began, cpu) = (Instant::now(), cpu_ms());
    (0..share).for_each(|_| next(&mut waiting));
    let end = tokio::time::sleep(time);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            Some(delivery) = deliveries.recv() => {
                let (batch, ack) = delivery.into_parts();
                ack.acknowledge();
                batches += 1;
                for command in batch.commands {
                    if let Some(since) = waiting.remove(&command_id(&command)) {
                        latencies.push(u64::try_from(since.elapsed().as_micros()).unwrap());
                        next(&mut waiting);
                    }
                }
            }
        }
    }
    assert!(began.elapsed() >= time);
    latencies.sort_unstable();
    let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied().unwrap_or(0);
    println!("{} {batches} {} {} {} {}", latencies.len(), at(50), at(99), cpu_ms() - cpu, rss_kib());
}

fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 10
}

fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::symlink_metadata(path).unwrap();
    if metadata.is_dir() {
        std::fs::read_dir(path).unwrap().map(|e| disk(&e.unwrap().path())).sum()
    } else {
        metadata.blocks() * 512
    }
}
