//! Four real members in one process, on loopback, through the public interface only.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashSet};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coalition_order::{
    Batch, Delivery, JournalError, OrderConfig, OrderError, OrderHandle, OrderMember, SubmitError, start,
};
use commonware_codec::{Copying, DecodeExt as _, Encode as _};
use commonware_cryptography::Signer as _;
use commonware_cryptography::ed25519::PrivateKey;
use tokio::sync::{mpsc, watch};
use zeroize::Zeroizing;

const DEADLINE: Duration = Duration::from_secs(60);

/// A consumer that survives restarts: everything delivered, by height.
#[derive(Clone, Default)]
struct Ledger {
    batches: Arc<Mutex<BTreeMap<u64, Batch>>>,
    /// Acknowledged up to here, across restarts.
    acknowledged: Arc<Mutex<u64>>,
}

struct Running {
    handle: OrderHandle,
    progress: watch::Receiver<usize>,
}

struct Cluster {
    configs: Vec<OrderConfig>,
    ledgers: Vec<Ledger>,
    members: Vec<Option<Running>>,
}

fn secret(i: u8) -> [u8; 32] {
    [i + 1; 32]
}

fn public(i: u8) -> [u8; 32] {
    let key = PrivateKey::decode(Copying(&secret(i))).unwrap().public_key();
    key.encode().as_ref().try_into().unwrap()
}

fn free_ports(n: usize) -> Vec<SocketAddr> {
    let held: Vec<TcpListener> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|l| l.local_addr().unwrap()).collect()
}

fn configs(dir: &Path, n: u8, f: impl Fn(&mut OrderConfig)) -> Vec<OrderConfig> {
    let addresses = free_ports(n.into());
    let roster: Vec<OrderMember> =
        (0..n).map(|i| OrderMember { public_key: public(i), address: addresses[usize::from(i)] }).collect();
    (0..n)
        .map(|i| {
            let mut config = OrderConfig {
                namespace: b"cluster test".to_vec(),
                roster: roster.clone(),
                secret_key: Zeroizing::new(secret(i)),
                listen: addresses[usize::from(i)],
                storage_dir: dir.join(i.to_string()),
                heartbeat_ms: 500,
                ..OrderConfig::default()
            };
            f(&mut config);
            config
        })
        .collect()
}

/// Takes deliveries, checks their order, records and acknowledges them.
async fn consume(ledger: Ledger, mut deliveries: mpsc::Receiver<Delivery>, progress: watch::Sender<usize>) {
    let mut expected = *ledger.acknowledged.lock().unwrap() + 1;
    while let Some(delivery) = deliveries.recv().await {
        let (batch, ack) = delivery.into_parts();
        if expected > batch.height {
            // An acknowledgement that was not on disk yet: the same batch comes again.
            expected = batch.height;
        }
        assert_eq!(batch.height, expected, "deliveries are gapless");
        expected += 1;
        let mut batches = ledger.batches.lock().unwrap();
        if let Some(before) = batches.range(..batch.height).next_back() {
            assert!(before.1.time_ms < batch.time_ms, "time is strictly monotonic");
        }
        let height = batch.height;
        let count = batch.commands.len();
        if let Some(earlier) = batches.insert(height, batch.clone()) {
            assert_eq!(earlier, batch, "redelivery is identical");
        } else {
            progress.send_modify(|n| *n += count);
        }
        drop(batches);
        *ledger.acknowledged.lock().unwrap() = height;
        ack.acknowledge();
    }
}

impl Cluster {
    fn new(configs: Vec<OrderConfig>) -> Self {
        let ledgers = configs.iter().map(|_| Ledger::default()).collect();
        let members = configs.iter().map(|_| None).collect();
        let mut cluster = Self { configs, ledgers, members };
        (0..cluster.configs.len()).for_each(|i| cluster.start(i));
        cluster
    }

    fn start(&mut self, i: usize) {
        let (handle, deliveries) = start(self.configs[i].clone()).unwrap();
        let (tx, progress) = watch::channel(self.commands(i).len());
        tokio::spawn(consume(self.ledgers[i].clone(), deliveries, tx));
        self.members[i] = Some(Running { handle, progress });
    }

    async fn stop(&mut self, i: usize) {
        let running = self.members[i].take().unwrap();
        running.handle.stop(Duration::from_secs(20)).await.unwrap();
        assert_eq!(running.handle.submit(vec![1]), Err(SubmitError::Stopped));
        assert!(!running.handle.status().running);
    }

    fn handle(&self, i: usize) -> &OrderHandle {
        &self.members[i].as_ref().unwrap().handle
    }

    fn commands(&self, i: usize) -> Vec<Vec<u8>> {
        self.ledgers[i].batches.lock().unwrap().values().flat_map(|b| b.commands.clone()).collect()
    }

    /// Waits until member `i` has delivered `count` commands.
    async fn delivered(&mut self, i: usize, count: usize) {
        let running = self.members[i].as_mut().unwrap();
        let reached = tokio::time::timeout(DEADLINE, running.progress.wait_for(|n| *n >= count)).await;
        let status = running.handle.status();
        let _ = reached.unwrap_or_else(|_| panic!("member {i} has too few commands: {status:?}"));
    }

    fn assert_same(&self, members: &[usize]) {
        let first = self.ledgers[members[0]].batches.lock().unwrap().clone();
        for other in &members[1..] {
            let batches = self.ledgers[*other].batches.lock().unwrap();
            for (height, batch) in batches.iter() {
                if let Some(expected) = first.get(height) {
                    assert_eq!(batch, expected, "height {height}, member {other}");
                }
            }
        }
    }
}

fn command(member: usize, n: usize) -> Vec<u8> {
    format!("member {member} command {n}").into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_and_survives_stops() {
    init_logs();
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(configs(dir.path(), 4, |_| {}));

    // Everybody submits, everybody delivers the same.
    for i in 0..4 {
        for n in 0..10 {
            cluster.handle(i).submit(command(i, n)).unwrap();
        }
    }
    for i in 0..4 {
        cluster.delivered(i, 40).await;
    }
    cluster.assert_same(&[0, 1, 2, 3]);
    let unique: HashSet<_> = cluster.commands(0).into_iter().collect();
    assert_eq!(unique.len(), 40);

    // A command that was ordered is not ordered again.
    let id = cluster.handle(1).submit(command(0, 3)).unwrap();
    assert_eq!(id, coalition_order::command_id(&command(0, 3)));
    assert_eq!(cluster.handle(1).status().pending_commands, 0);

    // One stops, the others go on.
    cluster.stop(2).await;
    for i in [0, 1, 3] {
        cluster.handle(i).submit(command(i, 100)).unwrap();
    }
    for i in [0, 1, 3] {
        cluster.delivered(i, 43).await;
    }

    // It comes back and catches up.
    cluster.start(2);
    cluster.delivered(2, 43).await;
    cluster.handle(2).submit(command(2, 100)).unwrap();
    for i in 0..4 {
        cluster.delivered(i, 44).await;
    }

    // All stop, all start: nothing lost, no gap, no repetition.
    for i in 0..4 {
        cluster.stop(i).await;
    }
    let before: Vec<u64> = cluster.ledgers.iter().map(|l| *l.acknowledged.lock().unwrap()).collect();
    for i in 0..4 {
        cluster.start(i);
    }
    cluster.handle(3).submit(command(0, 3)).unwrap();
    cluster.handle(3).submit(command(3, 200)).unwrap();
    for (i, acknowledged) in before.into_iter().enumerate() {
        cluster.delivered(i, 45).await;
        let batches = cluster.ledgers[i].batches.lock().unwrap();
        let heights: Vec<u64> = batches.keys().copied().collect();
        assert_eq!(heights, (1..=heights.len() as u64).collect::<Vec<_>>());
        assert!(heights.len() as u64 > acknowledged);
    }
    cluster.assert_same(&[0, 1, 2, 3]);
    let commands = cluster.commands(0);
    assert_eq!(commands.iter().collect::<HashSet<_>>().len(), commands.len(), "exactly once");
    for i in 0..4 {
        cluster.stop(i).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn side_channel_wake_up_and_refusals() {
    init_logs();
    let dir = tempfile::tempdir().unwrap();
    // A heartbeat so long that only the wake-up can explain a batch.
    let mut cluster = Cluster::new(configs(dir.path(), 4, |c| c.heartbeat_ms = 30_000));
    let mut inboxes: Vec<_> = (0..4).map(|i| cluster.handle(i).gossip_inbox().unwrap()).collect();
    assert!(cluster.handle(0).gossip_inbox().is_none(), "taken once");

    let connected = async {
        while (0..4).any(|i| cluster.handle(i).status().connected_peers < 3) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, connected).await.unwrap();

    cluster.handle(1).gossip(b"to all".to_vec());
    for i in [0, 2, 3] {
        let got = tokio::time::timeout(DEADLINE, inboxes[i].recv()).await.unwrap();
        assert_eq!(got, Some((1, b"to all".to_vec())));
    }
    cluster.handle(3).send_to(0, b"to one".to_vec());
    cluster.handle(3).send_to(3, b"to myself".to_vec());
    let got = tokio::time::timeout(DEADLINE, inboxes[0].recv()).await.unwrap();
    assert_eq!(got, Some((3, b"to one".to_vec())));
    for i in [1, 2, 3] {
        assert!(inboxes[i].try_recv().is_none(), "member {i} got something it should not");
    }

    let soon = now_ms() + 300;
    (0..4).for_each(|i| cluster.handle(i).wake_at(Some(soon)));
    let began = Instant::now();
    let woken = async {
        while (0..4).any(|i| cluster.handle(i).status().acknowledged_height == 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), woken).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(250), "not before the asked time");
    let batch = cluster.ledgers[0].batches.lock().unwrap()[&1].clone();
    assert!(batch.time_ms >= soon && batch.commands.is_empty());

    // What must be refused, in words.
    let config = &cluster.configs[0];
    let too_large = vec![0; config.max_command_bytes + 1];
    let refused = cluster.handle(0).submit(too_large).unwrap_err();
    assert_eq!(refused, SubmitError::TooLarge { len: config.max_command_bytes + 1, max: config.max_command_bytes });
    assert!(matches!(start(config.clone()), Err(OrderError::StorageInUse(_))));
    let mut other_dir = config.clone();
    other_dir.storage_dir = dir.path().join("elsewhere");
    assert!(matches!(start(other_dir.clone()), Err(OrderError::Listen { .. })));
    other_dir.secret_key = Zeroizing::new([99; 32]);
    assert!(matches!(start(other_dir), Err(OrderError::NotAMember(_))));

    cluster.stop(0).await;
    let mut foreign = cluster.configs[0].clone();
    foreign.namespace = b"another committee".to_vec();
    assert!(matches!(start(foreign), Err(OrderError::ForeignStorage { .. })));
    for i in 1..4 {
        cluster.stop(i).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_delivery_is_reported_and_comes_again() {
    init_logs();
    let dir = tempfile::tempdir().unwrap();
    let config = configs(dir.path(), 1, |c| c.heartbeat_ms = 100).remove(0);
    let (handle, mut deliveries) = start(config.clone()).unwrap();
    let first = tokio::time::timeout(DEADLINE, deliveries.recv()).await.unwrap().unwrap();
    let batch = first.batch.clone();
    assert_eq!(batch.height, 1);
    drop(first);
    let error = tokio::time::timeout(DEADLINE, handle.wait_failed()).await.unwrap();
    assert!(matches!(error, OrderError::Dropped(1)), "{error}");
    drop((handle, deliveries));

    let (handle, mut deliveries) = start(config).unwrap();
    let again = tokio::time::timeout(DEADLINE, deliveries.recv()).await.unwrap().unwrap();
    assert_eq!(again.batch, batch);
    again.acknowledge();
    handle.stop(Duration::from_secs(20)).await.unwrap();
}

#[tokio::test]
async fn a_panic_inside_surfaces() {
    init_logs();
    let dir = tempfile::tempdir().unwrap();
    let config = configs(dir.path(), 1, |_| {}).remove(0);
    // A file where the engine wants its directory.
    std::fs::create_dir_all(&config.storage_dir).unwrap();
    std::fs::write(config.storage_dir.join("data"), b"in the way").unwrap();
    let (handle, mut deliveries) = start(config).unwrap();
    let error = tokio::time::timeout(DEADLINE, handle.wait_failed()).await.unwrap();
    assert!(matches!(error, OrderError::Panicked(_)), "{error}");
    assert!(deliveries.recv().await.is_none());
    assert_eq!(handle.submit(vec![1]), Err(SubmitError::Stopped));
}

#[tokio::test]
async fn storage_that_cannot_be_trusted_is_refused_in_words() {
    init_logs();
    let dir = tempfile::tempdir().unwrap();
    let config = configs(dir.path(), 1, |c| c.heartbeat_ms = 50).remove(0);
    let refused = async || {
        let (handle, _deliveries) = start(config.clone()).unwrap();
        tokio::time::timeout(DEADLINE, handle.wait_failed()).await.unwrap()
    };
    // What versions before the journal left.
    let earlier = config.storage_dir.join("data").join("order-consensus");
    std::fs::create_dir_all(&earlier).unwrap();
    let error = refused().await;
    assert!(matches!(&error, OrderError::Journal(e) if matches!(**e, JournalError::EarlierLayout(_))), "{error}");
    std::fs::remove_dir(&earlier).unwrap();

    let (handle, mut deliveries) = start(config.clone()).unwrap();
    for _ in 0..3 {
        tokio::time::timeout(DEADLINE, deliveries.recv()).await.unwrap().unwrap().acknowledge();
    }
    handle.stop(Duration::from_secs(20)).await.unwrap();
    let log = config.storage_dir.join("journal").join("log-a");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[512 + 40] ^= 1; // in the checksum of the second batch
    std::fs::write(&log, bytes).unwrap();
    let error = refused().await;
    assert!(matches!(&error, OrderError::Journal(e) if matches!(**e, JournalError::Damaged { .. })), "{error}");
    assert!(error.to_string().contains("log-a is damaged at byte 512"), "{error}");
}

#[tokio::test]
async fn an_archive_dropped_on_request_is_fetched_again() {
    init_logs();
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new(configs(dir.path(), 4, |c| c.heartbeat_ms = 100));
    for n in 0..30 {
        cluster.handle(0).submit(vec![n; 1_000]).unwrap();
    }
    cluster.delivered(2, 30).await;
    cluster.stop(2).await;
    let mark = cluster.configs[2].storage_dir.join("rebuild");
    std::fs::write(&mark, b"").unwrap();
    // Everything is delivered again: the consumer checks that what it had is the same.
    let before = cluster.ledgers[2].batches.lock().unwrap().len();
    cluster.ledgers[2] = Ledger::default();
    cluster.start(2);
    cluster.handle(1).submit(b"after".to_vec()).unwrap();
    for i in 0..4 {
        cluster.delivered(i, 31).await;
    }
    assert!(cluster.ledgers[2].batches.lock().unwrap().len() > before);
    assert_eq!(cluster.commands(2), cluster.commands(0));
    assert!(!mark.exists(), "it is done once");
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

fn init_logs() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
}
