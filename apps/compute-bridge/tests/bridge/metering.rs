//! What a grant used before its bridge was killed, while there was none, and after another took over is logged once, all of it.

use std::sync::Arc;

use coalition_compute::{Compared, GrantEnd, GrantStage, LogEnd};
use coalition_shuffle::SshAccessReceipt;
use compute_bridge::backends::BareMetalBackend;

use super::harness::*;
use super::world::*;

/// Bytes fetched in each part.
const BYTES: usize = 1_500_000;

/// Milliseconds after `user` and `sys` of the shell's own `time`.
fn time_ms(said: &str) -> u64 {
    let of = |name: &str| {
        let line = said.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {said}"));
        let (minutes, seconds) = line[name.len()..].trim().trim_end_matches('s').split_once('m').unwrap();
        let (whole, hundredths) = seconds.trim().split_once('.').unwrap();
        let number = |text: &str| text.parse::<u64>().unwrap();
        number(minutes) * 60_000 + number(whole) * 1_000 + number(hundredths) * 10
    };
    of("user") + of("sys")
}

/// Burns and fetches; answers what the workload's own kernel says was burnt, and what really arrived.
async fn use_up(receipt: &SshAccessReceipt, world: &World) -> (u64, u64) {
    let burn = "time sh -c 'i=0; while [ $i -lt 3000000 ]; do i=$((i+1)); done'";
    let burnt = ssh_into(receipt, world.path(), burn).await;
    let fetched = ssh_into(receipt, world.path(), &format!("head -c {BYTES} /dev/zero")).await;
    assert_eq!(fetched.stdout.len(), BYTES);
    let said = String::from_utf8_lossy(&burnt.stderr).into_owned();
    let arrived = [&burnt, &fetched].map(|output| output.stdout.len() + output.stderr.len());
    (time_ms(&said), arrived.iter().sum::<usize>() as u64)
}

/// The meter on the host, which no bridge has a part in.
fn meter(host: &Host) -> (u64, u64) {
    let grant = std::fs::read_dir(host.grants_dir()).unwrap().flatten().next().expect("the grant runs").path();
    let usage: serde_json::Value = serde_json::from_slice(&std::fs::read(grant.join("usage.json")).unwrap()).unwrap();
    let number = |name: &str| usage[name].as_u64().unwrap_or_else(|| panic!("no {name}: {usage}"));
    (number("cpu_core_ms"), number("net_bytes"))
}

fn agree(what: &str, measured: u64, independent: u64, unit: u64) {
    let compared = Compared::of(measured, independent, unit);
    assert!(!compared.suspicious, "{what}: {measured} and {independent} are {} permille apart", compared.permille);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_across_a_killed_bridge_is_logged_whole_and_once() {
    let host = Host::start().await;
    let Some(image) = example_image(host.dir.path()) else { return };
    let mut world = World::new(vec![Arc::new(BareMetalBackend::new(host.setup()))]);
    world.image = image;
    let bridge = world.start();
    world.card().await;
    let requester = world.ask(180, 600);
    let receipt = world.receipt(&requester).await;
    world.stage(&requester, "serving", |stage| *stage == GrantStage::Serving).await;
    let before = use_up(&receipt, &world).await;
    bridge.kill().await;
    let between = use_up(&receipt, &world).await;
    let bridge = world.start();
    // The new bridge watches it; killed once more in the middle of that, nothing is different.
    let (after, bridge) = tokio::join!(use_up(&receipt, &world), async {
        eventually("the grant to be watched", || {
            bridge.journal.get(&requester.id()).filter(|state| state.stage.name() == "replied")
        })
        .await;
        bridge.kill().await;
        world.start()
    });
    let all = [before, between, after];
    let (burnt, arrived) = (all.iter().map(|part| part.0).sum::<u64>(), all.iter().map(|part| part.1).sum::<u64>());
    assert!(all.iter().all(|part| part.0 > 500), "too little to tell a part from a mistake: {all:?}");
    // The meter is written once a second.
    let (cpu_ms, net_bytes) = eventually("the meter to have all of it", || {
        Some(meter(&host)).filter(|(cpu_ms, bytes)| *cpu_ms >= burnt && *bytes >= arrived)
    })
    .await;
    agree("CPU on the host", cpu_ms, burnt, 1);
    agree("bytes on the host", net_bytes, arrived, 1);
    requester.end(&world.market);
    assert_eq!(world.ended(&requester).await, GrantEnd::Logged(LogEnd::EndedByRequester));
    let record = world.market.record(&requester.id()).unwrap();
    assert_eq!((record.log_count, record.final_log), (1, true));
    // Logs count whole seconds of CPU: a part that was lost or counted twice is more than that.
    agree("CPU in the log", record.usage.cpu_core_seconds * 1_000, burnt, 1_000);
    agree("bytes in the log", record.usage.net_bytes, arrived, 1);
    assert_eq!(world.market.last_log(&requester.id()).usage, record.usage);
    assert_eq!(world.market.last_log(&requester.id()).evidence, None, "nobody else counts on an own machine");
    bridge.stop().await;
    assert_eq!(std::fs::read_dir(host.grants_dir()).unwrap().count(), 0);
}
