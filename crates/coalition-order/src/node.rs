//! A real member: its own thread, runtime, files and sockets.

use std::fs::{File, OpenOptions, TryLockError};
use std::net::TcpListener;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use commonware_codec::{Copying, DecodeExt as _};
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_cryptography::{ChaCha20Poly1305, Signer as _};
use commonware_p2p::authenticated::lookup::{self, Network};
use commonware_p2p::{Address, AddressableManager as _};
use commonware_runtime::tokio::{Config as RuntimeConfig, Context, Runner};
use commonware_runtime::{Handle, Quota, Runner as _, Spawner as _, Supervisor as _};
use commonware_stream::cups::{self, Cups};
use commonware_stream::sake::{self, Sake};
use commonware_utils::ordered::Map;
use futures::future::{FutureExt as _, select_all};
use rand_core_10::Rng as _;
use tokio::sync::{mpsc, watch};

use crate::application::Tempo;
use crate::archive;
use crate::config::OrderConfig;
use crate::delivery::Delivery;
use crate::engine::{Channels, Membership, Ports, start_member};
use crate::error::{JournalError, OrderError};
use crate::handle::{Control, Exit, HandleLimits, OrderHandle};
use crate::inbox::inbox;
use crate::journal::{JournaledStorage, WithStorage};
use crate::mempool::{Mempool, RECENT_HEIGHTS};
use crate::shared::Shared;

/// Bytes of a log file before the other one takes its turn: what is replayed after a crash is at most about twice that.
const LOG_BYTES: u64 = 32 * 1024 * 1024;
/// Side-channel messages kept each way.
const GOSSIP_QUEUE: usize = 1_024;
/// How long the engine's tasks get to end on their own.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Starts a member on a thread of its own and returns at once; connections and catching up follow.
///
/// Deliveries begin after the last batch this storage directory acknowledged. The receiver must be drained: the
/// committee goes on without this member's consumer, but not if too many consumers stand still.
///
/// # Errors
/// [`OrderError`] for a wrong config, a storage directory that is in use, foreign or unusable, or a port that is
/// taken. Everything that goes wrong later arrives at [`OrderHandle::wait_failed`].
pub fn start(config: OrderConfig) -> Result<(OrderHandle, mpsc::Receiver<Delivery>), OrderError> {
    config.validate()?;
    let (membership, seat) = membership(&config)?;
    let lock = open_storage(&config.storage_dir, &membership.fingerprint)?;
    probe_port(&config)?;

    let pool = Mempool::new(config.roster.len(), config.max_pending_bytes);
    let shared = Arc::new(Shared::new(pool));
    let (deliver, deliveries) = mpsc::channel(config.max_unacknowledged);
    let (outbound, outbound_rx) = mpsc::channel(GOSSIP_QUEUE);
    let (inbox_tx, inbox) = inbox(config.roster.len());
    let (control, control_rx) = mpsc::unbounded_channel();
    let (exit_tx, exit) = watch::channel(None);
    let limits = HandleLimits {
        max_command_bytes: config.max_command_bytes,
        max_gossip_bytes: config.max_gossip_bytes,
        max_pending_bytes: config.max_pending_bytes,
        keep_batches: config.batches_per_file.min(RECENT_HEIGHTS as u64),
        members: config.roster.len(),
        seat,
    };
    let ports = Ports { shared: Arc::clone(&shared), deliveries: deliver, outbound: outbound_rx, inbox: inbox_tx };
    let thread = Thread { config, membership, ports, control: control_rx, exit: exit_tx, _lock: lock };
    std::thread::Builder::new()
        .name(format!("order-{seat}"))
        .spawn(move || thread.run())
        .map_err(|e| OrderError::Thread(Arc::new(e)))?;
    Ok((OrderHandle::new(shared, limits, outbound, inbox, control, exit), deliveries))
}

/// Everything the engine's thread owns.
struct Thread {
    config: OrderConfig,
    membership: Membership,
    ports: Ports,
    control: mpsc::UnboundedReceiver<Control>,
    exit: watch::Sender<Exit>,
    _lock: File,
}

impl Thread {
    fn run(self) {
        let Self { config, membership, ports, control, exit, _lock } = self;
        let shared = Arc::clone(&ports.shared);
        let runtime = RuntimeConfig::new()
            .with_worker_threads(config.worker_threads)
            .with_max_blocking_threads(16)
            .with_read_write_timeout(Duration::from_secs(20))
            .with_storage_directory(config.storage_dir.join("data"));
        let began = Instant::now();
        let mut storage = None;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            Runner::new(runtime).start(|context| async {
                let opened = open_journal(context.child("journal"), &config.storage_dir);
                let storage = match opened.map(|opened| opened.deferring(&membership.deferred())) {
                    Ok(opened) => storage.insert(opened).clone(),
                    Err(error) => return OrderError::Journal(Arc::new(error)),
                };
                // The runtime flushes the file system before it starts, which waits for everybody's writes.
                tracing::info!(ms = began.elapsed().as_millis(), "storage flushed and opened");
                if let Err(error) = archive::drop_if_asked(&storage, &config.storage_dir, &membership.partition).await {
                    return error;
                }
                Box::pin(run_member(context, storage, &config, membership, ports, control)).await
            })
        }));
        let error = match outcome {
            Ok(error) => error,
            Err(panic) => archive::explain(panic_text(panic.as_ref()), &config.storage_dir),
        };
        // What the engine says of a failed write is that it failed; the journal knows why.
        let failure = storage.as_ref().and_then(JournaledStorage::failure);
        // Its threads end before the directory's lock does.
        if let Some(storage) = storage {
            storage.close();
        }
        let error = match (failure, shared.dropped.load(Relaxed), error) {
            (_, _, OrderError::Stopped) => OrderError::Stopped,
            (Some(source), _, _) => OrderError::Storage { path: config.storage_dir.clone(), source },
            (None, height, OrderError::Ended(_)) if height > 0 => OrderError::Dropped(height),
            (None, _, error) => error,
        };
        match &error {
            OrderError::Stopped => tracing::info!("ordering engine stopped"),
            error => tracing::error!(%error, "ordering engine failed"),
        }
        drop(_lock);
        exit.send_replace(Some(error));
    }
}

/// Opens the journal. The runtime's own storage, in `data`, stays empty: what is in it was written by earlier versions.
fn open_journal(mut context: Context, storage_dir: &Path) -> Result<JournaledStorage, JournalError> {
    let (path, earlier) = (storage_dir.join("journal"), storage_dir.join("data"));
    let failed = |source| JournalError::Io { path: earlier.clone(), action: "list", source };
    for entry in std::fs::read_dir(&earlier).map_err(failed)? {
        if entry.and_then(|e| e.file_type()).map_err(failed)?.is_dir() {
            return Err(JournalError::EarlierLayout(earlier));
        }
    }
    let mut key = [0; 32];
    context.fill_bytes(&mut key);
    JournaledStorage::open_directory(&path, &key, LOG_BYTES)
}

/// Runs until told to stop or until a part ends.
async fn run_member(
    context: Context,
    storage: JournaledStorage,
    config: &OrderConfig,
    membership: Membership,
    ports: Ports,
    mut control: mpsc::UnboundedReceiver<Control>,
) -> OrderError {
    let (mut network, mut oracle) = Network::new(context.child("network"), network_config(config, &membership));
    let peers: Vec<(PublicKey, Address)> =
        membership.seats.iter().cloned().zip(config.roster.iter().map(|m| m.address.into())).collect();
    let peers: Map<PublicKey, Address> = match peers.try_into() {
        Ok(peers) => peers,
        Err(_) => return OrderError::Config("the roster has two members with the same key".into()),
    };
    let _ = oracle.track(0, peers);
    let burst = channel_burst(config.roster.len());
    let mut channel = |id: u64, per_second: u32| network.register(id, quota(per_second, burst));
    let channels = Channels {
        votes: channel(0, 2_048),
        certificates: channel(1, 2_048),
        resolver: channel(2, 256),
        backfill: channel(3, 512),
        blocks: channel(4, 1_024),
        commands: channel(5, 1_024),
        gossip: channel(6, 1_024),
    };
    let network: Handle<()> = network.start();
    let inner = WithStorage::new(context.child("member"), storage);
    let mut member = start_member(inner, membership, channels, oracle.clone(), oracle, ports).await;
    member.tasks.push(("network", network));
    let tasks = std::mem::take(&mut member.tasks);
    let names: Vec<&'static str> = tasks.iter().map(|(name, _)| *name).collect();
    let mut ended = select_all(tasks.into_iter().map(|(_, handle)| handle.boxed()));
    let error = loop {
        tokio::select! {
            biased;
            (result, index, _) = &mut ended => {
                tracing::debug!(part = names[index], ?result, "a part of the engine ended");
                break OrderError::Ended(names[index]);
            }
            told = control.recv() => match told {
                Some(Control::Prune(height)) => member.prune(height),
                Some(Control::Anchor(time_ms, answer)) => {
                    let _ = answer.send(member.anchor_at(time_ms).await);
                }
                Some(Control::Stop) | None => break OrderError::Stopped,
            },
        }
    };
    let _ = context.child("stop").stop(0, Some(STOP_GRACE)).await;
    error
}

/// The seats' keys, and which seat is this member's.
fn membership(config: &OrderConfig) -> Result<(Membership, usize), OrderError> {
    let seats = config
        .roster
        .iter()
        .enumerate()
        .map(|(i, m)| PublicKey::decode(Copying(&m.public_key)).map_err(|_| OrderError::BadKey(i)))
        .collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKey::decode(Copying(config.secret_key.as_slice()))
        .map_err(|_| OrderError::Config("the secret key is not an Ed25519 seed of 32 bytes".into()))?;
    let me = key.public_key();
    let seat = seats.iter().position(|k| *k == me).ok_or_else(|| OrderError::NotAMember(me.to_string()))?;
    let membership = Membership {
        fingerprint: config.fingerprint(),
        seats: Arc::new(seats),
        key,
        limits: config.limits(),
        tempo: Tempo { heartbeat_ms: config.heartbeat_ms, max_clock_drift_ms: config.max_clock_drift_ms },
        starts_after_ms: config.starts_after_ms,
        network_delay_ms: config.network_delay_ms,
        max_gossip_bytes: config.max_gossip_bytes,
        max_unacknowledged: config.max_unacknowledged,
        batches_per_file: NonZeroU64::new(config.batches_per_file).unwrap_or(NonZeroU64::MIN),
        partition: "order".into(),
        floor: config.floor.clone(),
    };
    Ok((membership, seat))
}

/// Creates the directory, locks it against other processes and binds it to the committee.
fn open_storage(path: &Path, fingerprint: &[u8; 32]) -> Result<File, OrderError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |e: std::io::Error| OrderError::Storage { path, source: Arc::new(e) }
    };
    std::fs::create_dir_all(path).map_err(failed(path))?;
    let lock_path = path.join("lock");
    let lock =
        OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(failed(&lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OrderError::StorageInUse(path.to_path_buf())),
        Err(TryLockError::Error(e)) => return Err(failed(&lock_path)(e)),
    }
    let mark = path.join("committee");
    let expected: String = fingerprint.iter().map(|b| format!("{b:02x}")).collect();
    match std::fs::read(&mark).map(|found| String::from_utf8_lossy(&found).into_owned()) {
        Ok(found) if found.trim() == expected => Ok(lock),
        Ok(found) => Err(OrderError::ForeignStorage { path: mark, found: found.trim().into(), expected }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            write_durably(path, &mark, &expected).map_err(failed(&mark))?;
            Ok(lock)
        }
        Err(e) => Err(failed(&mark)(e)),
    }
}

fn write_durably(dir: &Path, file: &Path, text: &str) -> std::io::Result<()> {
    let temporary = file.with_extension("new");
    std::fs::write(&temporary, text)?;
    File::open(&temporary)?.sync_all()?;
    std::fs::rename(&temporary, file)?;
    File::open(dir)?.sync_all()
}

/// Fails early and in words where the network would panic.
fn probe_port(config: &OrderConfig) -> Result<(), OrderError> {
    TcpListener::bind(config.listen)
        .map(drop)
        .map_err(|e| OrderError::Listen { address: config.listen, source: Arc::new(e) })
}

type Upgrade = Cups<Sake<PrivateKey>, ChaCha20Poly1305>;

fn network_config(config: &OrderConfig, membership: &Membership) -> lookup::Config<Upgrade> {
    let handshake = Cups::new(
        Sake {
            signer: membership.key.clone(),
            synchrony_bound: Duration::from_secs(10),
            max_handshake_age: Duration::from_secs(10),
            version: sake::Version::V1,
        },
        cups::Version::V1,
    );
    let members = NonZeroUsize::new(config.roster.len()).unwrap_or(NonZeroUsize::MIN);
    let mailbox = NonZeroUsize::new(256).unwrap_or(NonZeroUsize::MIN);
    let mut network = lookup::Config::local(
        handshake,
        &membership.namespace(),
        config.listen,
        members,
        membership.max_message_bytes(),
        mailbox,
    );
    network.allow_private_ips = true;
    network.allow_dns = false;
    // Peers are known by key; a member behind an address translation is still that member.
    network.bypass_ip_check = true;
    network.tracked_peer_sets = NonZeroUsize::MIN;
    network.max_concurrent_handshakes = nonzero(128);
    network.allowed_handshake_rate_per_ip = quota(64, nonzero(64));
    network.allowed_handshake_rate_per_subnet = quota(128, nonzero(128));
    network.peer_connection_cooldown = Duration::from_millis(500);
    network.dial_frequency = Duration::from_millis(250);
    network.dial_timeout = Duration::from_secs(5);
    network
}

/// Mailboxes are allocated in advance for one burst of every peer on every channel, so bursts shrink with the roster.
fn channel_burst(members: usize) -> NonZeroU32 {
    nonzero(u32::try_from(2_048 / members.max(1)).unwrap_or(0).clamp(48, 256))
}

fn quota(per_second: u32, burst: NonZeroU32) -> Quota {
    Quota::per_second(nonzero(per_second)).allow_burst(burst)
}

fn nonzero(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".into())
}
