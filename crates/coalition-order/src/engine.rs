//! One member's engine, the same under the real runtime and network as under the simulated ones.
//!
//! Everything here takes time, randomness, tasks, network and storage from `E` and the channels it is given.

use std::num::{NonZeroU16, NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use commonware_broadcast::buffered;
use commonware_codec::CodecShared;
use commonware_consensus::marshal::core::{Actor, Mailbox};
use commonware_consensus::marshal::resolver::p2p as resolver;
use commonware_consensus::marshal::standard::{Inline, Standard};
use commonware_consensus::marshal::{self, Start};
use commonware_consensus::simplex::elector::RoundRobin;
use commonware_consensus::simplex::scheme::ed25519::Scheme;
use commonware_consensus::simplex::{self, Floor, ForwardPolicy, SkipBudget, SkipPolicy};
use commonware_consensus::types::{Epoch, FixedEpocher, Height, ViewDelta};
use commonware_cryptography::certificate::{ConstantProvider, Verifier as _};
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_cryptography::sha256::Digest;
use commonware_cryptography::{Digested, Digestible as _, Sha256, Signer as _};
use commonware_p2p::{Blocker, Provider, Receiver, Sender};
use commonware_parallel::Sequential;
use commonware_runtime::buffer::paged::{CacheRef, page_size};
use commonware_runtime::{Clock, Handle, Metrics, Spawner, Storage};
use commonware_storage::archive::prunable;
use commonware_storage::translator::EightCap;
use commonware_utils::NonZeroDuration;
use commonware_utils::ordered::Set;
use rand_core_10::CryptoRng;
use tokio::sync::mpsc;

use crate::anchor::{self, Anchor};
use crate::application::{Batcher, Tempo};
use crate::block::{BatchBlock, BlockLimits};
use crate::delivery::Delivery;
use crate::frames::framed_len;
use crate::gossip::{self, FRAME_BYTES, Outbound, Seats};
use crate::inbox::InboxSender;
use crate::mempool::RECENT_HEIGHTS;
use crate::shared::Shared;
use crate::sink::{Observer, Sink};

const MAILBOX: NonZeroUsize = nz(256);
const PAGE: NonZeroU16 = page_size(4_096);
const CACHED_PAGES: NonZeroUsize = nz(256);
const WRITE_BUFFER: NonZeroUsize = nz(64 * 1024);
const REPLAY_BUFFER: NonZeroUsize = nz(256 * 1024);
/// Views whose votes and unordered batches are kept for peers that lag a little.
const KEPT_VIEWS: ViewDelta = ViewDelta::new(32);
/// Small sections, because the cache of proposed batches is freed a section at a time.
const CACHE_SECTION: NonZeroU64 = NonZeroU64::new(16).expect("not zero");
/// Missing batches a member that catches up asks for at a time.
const MAX_REPAIR: NonZeroUsize = nz(16);
/// Pause before a failed request for missing data is tried again.
const FETCH_RETRY: Duration = Duration::from_millis(100);
/// Batches without a certificate of their own that are passed over in search of an anchor.
const ANCHOR_SEARCH: u64 = 256;
/// Proposed batches kept per member before they are ordered.
const BUFFERED_BATCHES: usize = 8;

const fn nz(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("not zero")
}

/// What a member is, apart from where it runs.
#[derive(Clone)]
pub(crate) struct Membership {
    pub(crate) fingerprint: [u8; 32],
    pub(crate) seats: Seats,
    pub(crate) key: PrivateKey,
    pub(crate) limits: BlockLimits,
    pub(crate) tempo: Tempo,
    pub(crate) starts_after_ms: u64,
    pub(crate) network_delay_ms: u64,
    pub(crate) max_gossip_bytes: usize,
    pub(crate) max_unacknowledged: usize,
    /// Ordered batches per file: what pruning frees at a time. Fixed for the life of the storage.
    pub(crate) batches_per_file: NonZeroU64,
    /// Prefix of the names of everything this member stores.
    pub(crate) partition: String,
    /// Where to start if what is stored ends further below.
    pub(crate) floor: Option<Anchor>,
}

impl Membership {
    /// What votes sign besides their content.
    pub(crate) fn namespace(&self) -> Vec<u8> {
        anchor::vote_namespace(&self.fingerprint)
    }

    /// How the names begin of what need not be durable by itself: proposed batches, which are written before the votes that
    /// rest on them, and progress, which is written after the ordered batches it tells of and merely saves repetition.
    pub(crate) fn deferred(&self) -> String {
        format!("{}-marshal-", self.partition)
    }

    fn genesis(&self) -> BatchBlock {
        BatchBlock::genesis(self.fingerprint, self.starts_after_ms)
    }

    pub(crate) fn keys(&self) -> Set<PublicKey> {
        Set::from_iter_dedup(self.seats.iter().cloned())
    }

    /// Roster index of each key of [`Self::keys`], in their order.
    fn seats_by_key_order(&self) -> Vec<usize> {
        let mut seats: Vec<usize> = (0..self.seats.len()).collect();
        seats.sort_by_key(|i| self.seats[*i].clone());
        seats
    }

    /// The largest message a member may send: the network refuses larger ones.
    pub(crate) fn max_message_bytes(&self) -> u32 {
        let members = u32::try_from(self.seats.len()).expect("a committee has at most 64 members");
        let items = self.limits.max_command_bytes.max(self.max_gossip_bytes);
        commonware_p2p::max_message_size(&[
            simplex::max_payload_size::<Scheme, Digest>(members),
            marshal::max_payload_size::<Standard<BatchBlock>, Scheme>(members, &self.limits),
            FRAME_BYTES.max(framed_len(items)),
        ])
    }
}

/// One network channel.
pub(crate) type Channel<S, R> = (S, R);

/// The network channels of a member, each with its own quota.
pub(crate) struct Channels<S, R> {
    pub(crate) votes: Channel<S, R>,
    pub(crate) certificates: Channel<S, R>,
    pub(crate) resolver: Channel<S, R>,
    pub(crate) backfill: Channel<S, R>,
    pub(crate) blocks: Channel<S, R>,
    pub(crate) commands: Channel<S, R>,
    pub(crate) gossip: Channel<S, R>,
}

/// Ends of the member that the handle holds the other ends of.
pub(crate) struct Ports {
    pub(crate) shared: Arc<Shared>,
    pub(crate) deliveries: mpsc::Sender<Delivery>,
    pub(crate) outbound: mpsc::Receiver<Outbound>,
    pub(crate) inbox: InboxSender,
}

/// A running member.
pub(crate) struct Member {
    /// The tasks whose end means that the member no longer works, by name.
    pub(crate) tasks: Vec<(&'static str, Handle<()>)>,
    marshal: Marshal,
}

impl Member {
    /// Forgets ordered batches below `height` that the consumer has acknowledged.
    pub(crate) fn prune(&self, height: u64) {
        self.marshal.prune(Height::new(height));
    }

    /// The last acknowledged batch of which the time is not after `time_ms` and the certificate is here, as bytes.
    pub(crate) async fn anchor_at(&self, time_ms: u64) -> Option<Vec<u8>> {
        let newest = self.marshal.get_processed().await?.height().get();
        // Times grow with heights. What is not here any more counts as early enough.
        let (mut early, mut late) = (0, newest.saturating_add(1));
        while late - early > 1 {
            let middle = early + (late - early) / 2;
            match self.marshal.get_block(Height::new(middle)).await {
                Some(block) if block.inner().time_ms > time_ms => late = middle,
                _ => early = middle,
            }
        }
        // A batch of which the finality came with a later one has no certificate of its own.
        let oldest = early.saturating_sub(ANCHOR_SEARCH).max(1);
        for height in (oldest..=early).rev().map(Height::new) {
            let block = self.marshal.get_block(height).await?;
            if let Some(finalization) = self.marshal.get_finalization(height).await {
                return Some(anchor::encode(&finalization, block.inner()));
            }
        }
        None
    }
}

type Marshal = Mailbox<Scheme, Standard<BatchBlock>>;
type ConsensusConfig<E, B> = simplex::Config<
    Scheme,
    RoundRobin<Sha256>,
    B,
    Digest,
    Automaton<E>,
    Automaton<E>,
    Observer<Automaton<E>>,
    Sequential,
>;
type Automaton<E> = Inline<E, Scheme, Batcher, BatchBlock, FixedEpocher>;

/// Starts a member: archives, marshal, application, consensus, gossip.
pub(crate) async fn start_member<E, S, R, P, B>(
    context: E,
    membership: Membership,
    channels: Channels<S, R>,
    peers: P,
    blocker: B,
    ports: Ports,
) -> Member
where
    E: Clock + CryptoRng + Metrics + Spawner + Storage,
    S: Sender<PublicKey = PublicKey>,
    R: Receiver<PublicKey = PublicKey>,
    P: Provider<PublicKey = PublicKey>,
    B: Blocker<PublicKey = PublicKey>,
{
    let scheme = Scheme::signer(&membership.namespace(), membership.keys(), membership.key.clone())
        .expect("the key was checked to be in the roster");
    let cache = CacheRef::new(PAGE, CACHED_PAGES);
    let shared = ports.shared;
    let (broadcast, buffer) =
        buffered::Engine::new(context.child("broadcast"), broadcast_config(&membership, peers.clone()));
    let broadcast = broadcast.start(channels.blocks);
    let backfill = resolver_config(&membership, peers, blocker.clone());
    let backfill = resolver::init(context.child("resolver"), backfill, channels.backfill);

    let certificates = Scheme::certificate_codec_config_unbounded();
    let certificates =
        open_archive(context.child("certificates"), &membership, "certificates", &cache, certificates).await;
    let batches = open_archive(context.child("batches"), &membership, "batches", &cache, membership.limits).await;
    let config = marshal_config(&membership, scheme.clone(), cache.clone());
    let (actor, marshal, floor) = Actor::init(context.child("marshal"), certificates, batches, config).await;
    let delivery = actor.start(Sink::new(Arc::clone(&shared), ports.deliveries), buffer, backfill);
    if let Some(processed) = floor.processed() {
        shared.resumed.store(processed.height().get(), Relaxed);
        remember_recent(&shared, &marshal, processed.height().get()).await;
    }

    let batcher = Batcher::new(Arc::clone(&shared), membership.limits, membership.tempo);
    let automaton = Inline::new(context.child("application"), batcher, marshal.clone(), epocher());
    let config = consensus_config(&membership, scheme, cache, automaton, blocker, Arc::clone(&shared));
    let consensus = simplex::Engine::new(context.child("consensus"), config);
    let consensus = consensus.start(channels.votes, channels.certificates, channels.resolver);

    let mut tasks = vec![("delivery", delivery), ("consensus", consensus), ("broadcast", broadcast)];
    let (commands, gossip) = (channels.commands, channels.gossip);
    tasks.extend(start_gossip(&context, &membership, shared, commands, gossip, ports.outbound, ports.inbox));
    Member { tasks, marshal }
}

/// One epoch for ever: a roster change is a new engine, with its own namespace and storage.
fn epocher() -> FixedEpocher {
    FixedEpocher::new(NonZeroU64::MAX)
}

fn broadcast_config<P: Provider<PublicKey = PublicKey>>(
    membership: &Membership,
    peers: P,
) -> buffered::Config<PublicKey, BlockLimits, P, Sequential> {
    buffered::Config {
        public_key: membership.key.public_key(),
        mailbox_size: MAILBOX,
        deque_size: BUFFERED_BATCHES,
        priority: true,
        codec_config: membership.limits,
        peer_provider: peers,
        strategy: Sequential,
    }
}

fn resolver_config<P: Provider<PublicKey = PublicKey>, B: Blocker<PublicKey = PublicKey>>(
    membership: &Membership,
    peers: P,
    blocker: B,
) -> resolver::Config<PublicKey, P, B> {
    resolver::Config {
        public_key: membership.key.public_key(),
        peer_provider: peers,
        blocker,
        mailbox_size: MAILBOX,
        fetch_timeout: nonzero_millis(membership.network_delay_ms),
        fetch_retry_delay: FETCH_RETRY,
        priority_requests: false,
        priority_responses: false,
    }
}

fn marshal_config(
    membership: &Membership,
    scheme: Scheme,
    page_cache: CacheRef,
) -> marshal::Config<ConstantProvider<Scheme, Epoch>, FixedEpocher, Sequential, BatchBlock, Digested<BatchBlock>> {
    let genesis = membership.genesis();
    let digest = genesis.digest();
    let start = match &membership.floor {
        Some(anchor) => Start::Floor(anchor.finalization()),
        None => Start::Genesis(Digested::precomputed(genesis, digest)),
    };
    marshal::Config {
        provider: ConstantProvider::new(scheme),
        epocher: epocher(),
        start,
        partition_prefix: format!("{}-marshal", membership.partition),
        mailbox_size: MAILBOX,
        view_retention: KEPT_VIEWS,
        prunable_items_per_section: CACHE_SECTION,
        page_cache,
        replay_buffer: REPLAY_BUFFER,
        key_write_buffer: WRITE_BUFFER,
        value_write_buffer: WRITE_BUFFER,
        block_codec_config: membership.limits,
        max_repair: MAX_REPAIR,
        max_pending_acks: nz(membership.max_unacknowledged),
        strategy: Sequential,
    }
}

fn consensus_config<E, B>(
    membership: &Membership,
    scheme: Scheme,
    page_cache: CacheRef,
    automaton: Automaton<E>,
    blocker: B,
    shared: Arc<Shared>,
) -> ConsensusConfig<E, B>
where
    E: Clock + Metrics + Spawner,
    B: Blocker<PublicKey = PublicKey>,
{
    let pace = Timeouts::new(membership);
    simplex::Config {
        scheme,
        elector: RoundRobin::default(),
        blocker,
        automaton: automaton.clone(),
        relay: automaton.clone(),
        reporter: Observer::new(shared, Arc::new(membership.seats_by_key_order()), automaton),
        track_historical_votes: false,
        strategy: Sequential,
        partition: format!("{}-consensus", membership.partition),
        mailbox_size: MAILBOX,
        epoch: Epoch::zero(),
        floor: Floor::Genesis(membership.genesis().digest()),
        replay_buffer: REPLAY_BUFFER,
        write_buffer: WRITE_BUFFER,
        page_cache,
        leader_timeout: pace.leader,
        certification_timeout: pace.certification,
        timeout_retry: pace.retry,
        view_retention: KEPT_VIEWS,
        skip: SkipPolicy::Enabled { timeout: pace.skip, budget: SkipBudget::Participants },
        fetch_timeout: nonzero_millis(membership.network_delay_ms),
        fetch_retry_delay: FETCH_RETRY,
        forward: ForwardPolicy::SilentVoters,
    }
}

/// Reads back the ids of the newest acknowledged batches, so that a command retried after a restart is recognised.
async fn remember_recent(shared: &Shared, marshal: &Marshal, newest: u64) {
    let oldest = newest.saturating_sub(RECENT_HEIGHTS as u64).max(1);
    for height in (oldest..=newest).rev() {
        let Some(block) = marshal.get_block(Height::new(height)).await else { return };
        shared.pool().seed_older(height, block.inner().ids());
    }
}

fn start_gossip<E, S, R>(
    context: &E,
    membership: &Membership,
    shared: Arc<Shared>,
    commands: Channel<S, R>,
    gossip: Channel<S, R>,
    outbound: mpsc::Receiver<Outbound>,
    inbox: InboxSender,
) -> Vec<(&'static str, Handle<()>)>
where
    E: Clock + Spawner,
    S: Sender<PublicKey = PublicKey>,
    R: Receiver<PublicKey = PublicKey>,
{
    let (seats, max_command, max_gossip) =
        (&membership.seats, membership.limits.max_command_bytes, membership.max_gossip_bytes);
    let (commands_out, commands_in) = commands;
    let (gossip_out, gossip_in) = gossip;
    let watched = commands_out.clone();
    let spawn_commands_in = {
        let (shared, seats) = (Arc::clone(&shared), Arc::clone(seats));
        move |_| gossip::receive_commands(shared, seats, max_command, commands_in)
    };
    let spawn_commands_out = {
        let shared = Arc::clone(&shared);
        move |context| gossip::send_commands(context, shared, commands_out)
    };
    let spawn_gossip_out = {
        let seats = Arc::clone(seats);
        move |context| gossip::send_gossip(context, seats, gossip_out, outbound)
    };
    let spawn_gossip_in = {
        let (shared, seats) = (Arc::clone(&shared), Arc::clone(seats));
        move |_| gossip::receive_gossip(shared, seats, max_gossip, gossip_in, inbox)
    };
    let spawn_watch = move |context| gossip::watch_connections(context, shared, watched);
    // The sender of the side channel ends when the handle is gone, so its end is no failure.
    drop(context.child("gossip_out").spawn(spawn_gossip_out));
    vec![
        ("receiver of commands", context.child("commands_in").spawn(spawn_commands_in)),
        ("sender of commands", context.child("commands_out").spawn(spawn_commands_out)),
        ("receiver of the side channel", context.child("gossip_in").spawn(spawn_gossip_in)),
        ("watch over connections", context.child("connections").spawn(spawn_watch)),
    ]
}

/// Consensus gives a proposer its heartbeat and the network its delay; each later deadline leaves room for more. A proposer
/// from which nothing was heard for the last of them is passed over without waiting.
struct Timeouts {
    leader: Duration,
    certification: Duration,
    retry: Duration,
    skip: Duration,
}

impl Timeouts {
    fn new(membership: &Membership) -> Self {
        let delay = Duration::from_millis(membership.network_delay_ms);
        let leader = Duration::from_millis(membership.tempo.heartbeat_ms) + delay;
        let certification = leader + delay;
        Self { leader, certification, retry: delay, skip: certification + delay / 4 }
    }
}

fn nonzero_millis(ms: u64) -> NonZeroDuration {
    NonZeroDuration::new(Duration::from_millis(ms.max(1))).expect("at least a millisecond")
}

/// Ordered batches and their certificates, by height.
///
/// # Panics
/// If it cannot be read: without its past a member must not go on.
async fn open_archive<E, V>(
    context: E,
    membership: &Membership,
    name: &str,
    cache: &CacheRef,
    codec_config: V::Cfg,
) -> prunable::Archive<EightCap, E, Digest, V>
where
    E: Clock + Metrics + Storage,
    V: CodecShared,
{
    let partition = &membership.partition;
    let config = prunable::Config {
        translator: EightCap,
        metadata_partition: format!("{partition}-{name}-metadata"),
        key_partition: format!("{partition}-{name}-key"),
        key_page_cache: cache.clone(),
        value_partition: format!("{partition}-{name}-value"),
        compression: None,
        codec_config,
        items_per_section: membership.batches_per_file,
        key_write_buffer: WRITE_BUFFER,
        value_write_buffer: WRITE_BUFFER,
        replay_buffer: REPLAY_BUFFER,
    };
    match prunable::Archive::init(context, config).await {
        Ok(archive) => archive,
        Err(error) => panic!("the archive of {name} cannot be opened: {error}"),
    }
}
