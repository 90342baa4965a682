//! A committee of engines in the simulation: who runs, on which disk, and who hears whom.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use commonware_cryptography::Signer as _;
use commonware_cryptography::ed25519::{PrivateKey, PublicKey};
use commonware_p2p::simulated::{self, Network, Oracle};
use commonware_p2p::{Receiver, Sender};
use commonware_runtime::deterministic::Context;
use commonware_runtime::{Clock as _, Handle, Quota, Spawner as _, Supervisor as _};
use commonware_utils::Probability;
use commonware_utils::ordered::Set;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use crate::anchor::{Anchor, AnchorError};
use crate::application::Tempo;
use crate::block::BlockLimits;
use crate::context::WithStorage;
use crate::delivery::Delivery;
use crate::disk::Disk;
use crate::engine::{Channels, Membership, Ports, start_member};
use crate::handle::{Control, HandleLimits, OrderHandle};
use crate::inbox;
use crate::mempool::Mempool;
use crate::shared::Shared;
use crate::twins::{Friends, bundle, forward, route};

/// What every committee here signs for.
const FINGERPRINT: [u8; 32] = [7; 32];
/// What one message may have.
const MAX_MESSAGE: u32 = 1024 * 1024;
const MAX_GOSSIP: usize = 1_000;
const MAX_PENDING: usize = 1_000_000;

/// How large batches are and how often they come.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Members.
    pub members: usize,
    /// Bytes of a batch's commands.
    pub max_bytes: usize,
    /// Commands of a batch.
    pub max_commands: usize,
    /// Bytes of one command.
    pub max_command_bytes: usize,
    /// Longest pause between two batches.
    pub heartbeat_ms: u64,
}

/// One direction between two members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Delay at the median.
    pub latency_ms: u64,
    /// Its standard deviation.
    pub jitter_ms: u64,
    /// Percent of messages that are lost.
    pub loss: u8,
}

/// What is done with a member's batches, for as long as that life of the member lasts.
pub type Consumer = Box<dyn FnOnce(Context, mpsc::Receiver<Delivery>) -> BoxFuture<'static, ()> + Send>;

/// What a life of a member begins with.
pub struct Start {
    /// What is stored.
    pub disk: Disk,
    /// Where to start if what is stored ends further below.
    pub floor: Option<Anchor>,
    /// What takes its batches.
    pub consumer: Consumer,
}

/// A running member.
struct Running {
    handle: OrderHandle,
    tasks: Vec<Handle<()>>,
}

/// A committee in the simulation, without links and with nobody running at first.
pub struct Committee {
    context: Context,
    settings: Settings,
    oracle: Oracle<PublicKey, Context>,
    keys: Vec<PrivateKey>,
    members: Vec<Option<Running>>,
    lives: u64,
}

impl Committee {
    /// Starts the network. `lives` are those that members had before this committee was made, in the same simulation.
    pub async fn new(context: Context, settings: Settings, lives: u64) -> Self {
        let keys: Vec<PrivateKey> = (0..settings.members as u64).map(PrivateKey::from_seed).collect();
        let participants: Vec<PublicKey> = keys.iter().map(|k| k.public_key()).collect();
        let (network, oracle) = Network::new_with_peers(
            context.child("network"),
            simulated::Config {
                max_size: MAX_MESSAGE,
                max_peers_per_set: NonZeroUsize::new(settings.members).unwrap(),
                disconnect_on_block: true,
                tracked_peer_sets: NonZeroUsize::MIN,
            },
            participants,
        )
        .await;
        network.start();
        let members = (0..settings.members).map(|_| None).collect();
        Self { context, settings, oracle, keys, members, lives }
    }

    /// A new disk of a member.
    #[must_use]
    pub fn disk(member: usize) -> Disk {
        Disk::new(&format!("member-{member}-one-marshal-"))
    }

    /// A disk of a member on which no sync is waited for: what no disk may be.
    #[must_use]
    pub fn forgetful_disk(member: usize) -> Disk {
        Disk::new(&format!("member-{member}-"))
    }

    /// Milliseconds since the simulation began.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        let now = self.context.current().duration_since(UNIX_EPOCH).unwrap();
        u64::try_from(now.as_millis()).unwrap()
    }

    /// Waits until that many milliseconds have passed since the simulation began.
    pub async fn sleep_until_ms(&self, at_ms: u64) {
        self.context.sleep_until(UNIX_EPOCH + Duration::from_millis(at_ms)).await;
    }

    /// Waits.
    pub async fn sleep_ms(&self, ms: u64) {
        self.context.sleep(Duration::from_millis(ms)).await;
    }

    /// Joins a member to another, or changes how.
    pub async fn link(&self, from: usize, to: usize, link: Link) {
        let (from, to) = (self.keys[from].public_key(), self.keys[to].public_key());
        // There may be one already.
        let _ = self.oracle.remove_link(from.clone(), to.clone()).await;
        let link = simulated::Link {
            latency: Duration::from_millis(link.latency_ms),
            jitter: Duration::from_millis(link.jitter_ms),
            success_rate: Probability::from_f64(f64::from(100 - link.loss) / 100.0).unwrap(),
        };
        self.oracle.add_link(from, to, link).await.unwrap();
    }

    /// Cuts what a member says to another.
    pub async fn cut(&self, from: usize, to: usize) {
        self.oracle.remove_link(self.keys[from].public_key(), self.keys[to].public_key()).await.unwrap();
    }

    /// Starts a member.
    ///
    /// # Panics
    /// If it runs.
    pub async fn start(&mut self, member: usize, start: Start) {
        assert!(self.members[member].is_none(), "member {member} runs");
        let (mine, _) = self.channels(member, None).await;
        let (handle, task) = self.engine(member, "one", mine, start);
        self.members[member] = Some(Running { handle, tasks: vec![task] });
    }

    /// Starts a member twice under one key. The first talks to some members only, the second to others; who is in both hears
    /// both. The second keeps its own disk, which is empty, and what it is told to deliver goes to the consumer of `second`.
    ///
    /// # Panics
    /// If it runs.
    pub async fn start_twins(&mut self, member: usize, friends: [&[usize]; 2], first: Start, second: Consumer) {
        assert!(self.members[member].is_none(), "member {member} runs");
        let friends = friends.map(|f| f.iter().map(|i| self.keys[*i].public_key()).collect());
        let (mine, other) = self.channels(member, Some(friends)).await;
        let (handle, task) = self.engine(member, "one", mine, first);
        let disk = Disk::new(&format!("member-{member}-two-marshal-"));
        let (_, twin) = self.engine(member, "two", other, Start { disk, floor: None, consumer: second });
        self.members[member] = Some(Running { handle, tasks: vec![task, twin] });
    }

    /// Ends everything these members run, at this instant. What becomes of their disks is for the owner to say.
    ///
    /// # Panics
    /// If one does not run.
    pub async fn crash(&mut self, members: &[usize]) {
        let tasks: Vec<Handle<()>> =
            members.iter().flat_map(|member| self.members[*member].take().expect("it runs").tasks).collect();
        tasks.iter().for_each(Handle::abort);
        for task in tasks {
            let _ = task.await;
        }
    }

    /// A running member.
    #[must_use]
    pub fn handle(&self, member: usize) -> Option<&OrderHandle> {
        self.members[member].as_ref().map(|running| &running.handle)
    }

    /// Checks an anchor for the committee of the first `members` of this one, or of another with this fingerprint.
    ///
    /// # Errors
    /// [`AnchorError`].
    pub fn verify(&self, bytes: &[u8], members: usize, is_another: bool) -> Result<Anchor, AnchorError> {
        let keys = Set::from_iter_dedup(self.keys.iter().take(members).map(|key| key.public_key()));
        let fingerprint = if is_another { [8; 32] } else { FINGERPRINT };
        Anchor::check(bytes, fingerprint, keys, &self.limits(), &[9; 32])
    }

    const fn limits(&self) -> BlockLimits {
        let Settings { max_bytes, max_commands, max_command_bytes, .. } = self.settings;
        BlockLimits { max_bytes, max_commands, max_command_bytes }
    }

    /// Two sets of channels under one identity; the second is of use to a twin only.
    async fn channels(
        &self,
        i: usize,
        twins: Friends,
    ) -> (
        Channels<impl Sender<PublicKey = PublicKey>, impl Receiver<PublicKey = PublicKey>>,
        Channels<impl Sender<PublicKey = PublicKey>, impl Receiver<PublicKey = PublicKey>>,
    ) {
        let quota = Quota::per_second(NonZeroU32::new(2_048).unwrap());
        let control = self.oracle.control(self.keys[i].public_key());
        let mut ones = Vec::new();
        let mut twos = Vec::new();
        for id in 0..7 {
            let (sender, receiver) = control.register(id, quota).await.unwrap();
            let (one, two) = sender.split_with(forward(twins.clone()));
            let (one_in, two_in) = receiver.split_with(self.context.child("split"), route(twins.clone()));
            ones.push((one, one_in));
            twos.push((two, two_in));
        }
        (bundle(ones), bundle(twos))
    }

    fn membership(&self, i: usize, twin: &str, floor: Option<Anchor>) -> Membership {
        let membership = Membership {
            fingerprint: FINGERPRINT,
            seats: Arc::new(self.keys.iter().map(|k| k.public_key()).collect()),
            key: self.keys[i].clone(),
            limits: self.limits(),
            tempo: Tempo { heartbeat_ms: self.settings.heartbeat_ms, max_clock_drift_ms: 500 },
            starts_after_ms: 0,
            network_delay_ms: 300,
            max_gossip_bytes: MAX_GOSSIP,
            max_unacknowledged: 4,
            batches_per_file: NonZeroU64::new(8).unwrap(),
            partition: format!("member-{i}-{twin}"),
            floor,
        };
        assert!(membership.max_message_bytes() <= MAX_MESSAGE);
        membership
    }

    fn engine<S, R>(
        &mut self,
        i: usize,
        twin: &'static str,
        channels: Channels<S, R>,
        start: Start,
    ) -> (OrderHandle, Handle<()>)
    where
        S: Sender<PublicKey = PublicKey>,
        R: Receiver<PublicKey = PublicKey>,
    {
        let membership = self.membership(i, twin, start.floor);
        let members = self.settings.members;
        let shared = Arc::new(Shared::new(Mempool::new(members, MAX_PENDING)));
        let (deliver, deliveries) = mpsc::channel(4);
        let (outbound_tx, outbound) = mpsc::channel(16);
        let (inbox, inbox_rx) = inbox::inbox(members);
        let (control_tx, mut told) = mpsc::unbounded_channel();
        let (_, exit) = watch::channel(None);
        let limits = HandleLimits {
            max_command_bytes: self.settings.max_command_bytes,
            max_gossip_bytes: MAX_GOSSIP,
            max_pending_bytes: MAX_PENDING,
            keep_batches: 2,
            members,
            seat: i,
        };
        let handle = OrderHandle::new(Arc::clone(&shared), limits, outbound_tx, inbox_rx, control_tx, exit);
        let ports = Ports { shared, deliveries: deliver, outbound, inbox };
        let oracle = self.oracle.clone();
        let control = self.oracle.control(self.keys[i].public_key());
        self.lives += 1;
        let context = self.context.child("member").with_attribute("life", self.lives);
        let task = context.spawn(move |context| async move {
            let (disk, consumer) = (start.disk, start.consumer);
            context.child("consumer").spawn(move |context| consumer(context, deliveries));
            let inner = WithStorage::new(context.child("engine"), disk);
            let mut member = start_member(inner, membership, channels, oracle.manager(), control, ports).await;
            let (names, tasks): (Vec<_>, Vec<_>) = std::mem::take(&mut member.tasks).into_iter().unzip();
            let mut ended = futures::future::select_all(tasks);
            loop {
                tokio::select! {
                    biased;
                    (result, first, _) = &mut ended => panic!("the {} of member {i} ended: {result:?}", names[first]),
                    Some(control) = told.recv() => match control {
                        Control::Prune(height) => member.prune(height),
                        Control::Anchor(time_ms, answer) => {
                            let _ = answer.send(member.anchor_at(time_ms).await);
                        }
                        Control::Stop => return,
                    },
                }
            }
        });
        (handle, task)
    }
}
