//! A committee member: orders, executes, certifies and serves the organisms its committee carries.

mod executor;
mod gossip;
mod hosted;
mod resume;
mod service;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use coalition::{Roster, UniqueId, hash_many};
use coalition_log::{
    Machine,
    checkpoint::{CertifiedCheckpoint, Cosigner, RosterError, RosterVerifier},
    state::STATE_EVERY,
    store::{Store, StoreError, StoreOptions},
};
use coalition_order::{OrderConfig, OrderError, OrderHandle, OrderMember};
use coalition_universe::{NodeKey, Service};
use ed25519_dalek::SigningKey;
use tokio::sync::watch;
use zeroize::Zeroizing;

use self::{
    executor::Executor,
    gossip::Gossiper,
    hosted::{Complaints, Hosted},
    service::OrganismService,
};
use crate::{
    execution::{Execution, ExecutionError},
    folded::TickOf,
};

/// An organism as a member is told to carry it.
pub struct OrganismSetup {
    /// Its id, from the published config.
    pub id: UniqueId,
    /// A name for logs and directories: lower-case letters, digits and `-`.
    pub name: String,
    /// Its machine, in the state of an empty log.
    pub machine: Box<dyn Machine>,
    /// For the coalition's Almanac: reads the tick out of its entries. The other organisms' contexts and entries carry it.
    /// The clock comes first in the list, so that a batch's own tick is known to the others.
    pub clock: Option<TickOf>,
    /// Entries between two certified states: [`STATE_EVERY`], except in tests. The same on every member: another value makes
    /// another committee, whose members do not hear the rest.
    pub state_every: u64,
}

/// A member's two signing keys. The node's key is a third; the roster names all three.
pub struct MemberKeys {
    /// Votes in the ordering engine.
    pub consensus: NodeKey,
    /// Cosigns checkpoints.
    pub checkpoint: NodeKey,
}

/// Where the members of the ordering engine meet.
pub struct OrderSetup {
    /// TCP addresses in roster order.
    pub addresses: Vec<SocketAddr>,
    /// The address this member listens on.
    pub listen: SocketAddr,
    /// Longest time between batches of an idle committee, in milliseconds.
    pub heartbeat_ms: u64,
}

/// Everything a member needs to start.
pub struct MemberSetup {
    /// Who certifies. The same roster is pinned by every organism the committee carries.
    pub roster: Roster,
    /// This member's place in it.
    pub member_index: usize,
    /// Its keys.
    pub keys: MemberKeys,
    /// The ordering engine's network.
    pub order: OrderSetup,
    /// Where everything durable lives; for this member alone.
    pub data_dir: PathBuf,
    /// The organisms, in an order all members share; the Almanac first.
    pub organisms: Vec<OrganismSetup>,
    /// How many of the newest entries of each log this member keeps at least; `None` keeps all. What lies before them and before
    /// the older of its two states is dropped; the tree stays whole.
    pub retain_entries: Option<u64>,
}

/// Why a member did not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// A key is not the one the roster names.
    #[error("the {which} key is {found}, the roster names {expected} for member {member}; use that member's key file")]
    WrongKey {
        /// Which of the keys.
        which: &'static str,
        /// Public key found.
        found: String,
        /// Public key of the roster.
        expected: String,
        /// The member's name.
        member: String,
    },
    /// The setup contradicts itself.
    #[error("member setup: {0}")]
    Setup(String),
    /// The roster's keys are unusable.
    #[error("the roster cannot certify")]
    Roster(#[from] RosterError),
    /// The ordering engine failed.
    #[error("the ordering engine stopped")]
    Order(#[from] OrderError),
    /// A log could not be opened, written or read.
    #[error("the log of {organism} failed")]
    Store {
        /// The organism's name.
        organism: String,
        /// The cause.
        #[source]
        source: Box<StoreError>,
    },
    /// A machine broke its contract.
    #[error("the machine of {organism} failed")]
    Machine {
        /// The organism's name.
        organism: String,
        /// The cause.
        #[source]
        source: ExecutionError,
    },
    /// A quorum certified another history than this member's.
    #[error(
        "{organism}: a quorum certified root {certified} at size {size}, this member has {own}; its disk or its build is \
         broken. Stop it, keep its data directory for inspection, and have it rejoin as a new member"
    )]
    Diverged {
        /// The organism's name.
        organism: String,
        /// The size both speak of.
        size: u64,
        /// This member's root.
        own: String,
        /// The certified root.
        certified: String,
    },
    /// The log was pruned, and no usable state is left to start from.
    #[error(
        "{organism}: entries below {below} were pruned, and no state of this log is usable any more; copy another member's \
         state directory beside this log, or have this member rejoin as a new one"
    )]
    StateLost {
        /// The organism's name.
        organism: String,
        /// First index that is still there.
        below: u64,
    },
    /// A part of the member ended unexpectedly.
    #[error("the member's {0} ended unexpectedly")]
    Ended(&'static str),
}

/// One organism's state on a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrganismStatus {
    /// The organism.
    pub id: UniqueId,
    /// Its name.
    pub name: String,
    /// Entries in this member's log.
    pub size: u64,
    /// Entries certified.
    pub certified: u64,
}

/// A running member.
pub struct Member {
    name: Arc<str>,
    organisms: Arc<Vec<Hosted>>,
    order: OrderHandle,
    failure: watch::Receiver<Option<Arc<MemberError>>>,
    loops: [tokio::task::JoinHandle<()>; 2],
}

impl Member {
    /// Opens the logs, folds them, joins the committee. Returns when the member takes part; it may still be catching up.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn start(setup: MemberSetup) -> Result<Self, MemberError> {
        check(&setup)?;
        let me = setup.roster.members()[setup.member_index].clone();
        let signing = || SigningKey::from_bytes(setup.keys.checkpoint.expose());
        let cosigners = || setup.organisms.iter().map(|o| Cosigner::new(o.id, &me.name, signing())).collect::<Vec<_>>();
        let (for_executor, for_gossip) = (cosigners(), cosigners());
        let config = order_config(&setup);
        let (data_dir, roster, retain) = (setup.data_dir, setup.roster, setup.retain_entries);
        let opening = move || open_all(&data_dir, &roster, setup.organisms, retain);
        let opened = tokio::task::spawn_blocking(opening).await.map_err(|_| MemberError::Ended("start"))?;
        let organisms = Arc::new(opened?);

        let (order, deliveries) = coalition_order::start(config)?;
        let inbox = order.gossip_inbox().ok_or(MemberError::Ended("gossip inbox"))?;
        let (report, failure) = watch::channel(None);
        let executor = Executor { organisms: Arc::clone(&organisms), cosigners: for_executor, order: order.clone() };
        let gossiper = Gossiper {
            organisms: Arc::clone(&organisms),
            cosigners: for_gossip,
            order: order.clone(),
            faults: Complaints::default(),
        };
        let loops = [
            supervise("batch loop", report.clone(), tokio::task::spawn_blocking(move || executor.run(deliveries))),
            supervise("certification loop", report.clone(), tokio::spawn(gossiper.run(inbox))),
        ];
        let engine = order.clone();
        tokio::spawn(async move { fail(&report, engine.wait_failed().await.into()) });
        Ok(Self { name: me.name.into(), organisms, order, failure, loops })
    }

    /// What the member answers to clients, to be served by its node.
    #[must_use]
    pub fn service(&self) -> Arc<dyn Service> {
        let (organisms, name) = (Arc::clone(&self.organisms), self.name.clone());
        Arc::new(OrganismService { organisms, order: self.order.clone(), name })
    }

    /// Sizes per organism.
    #[must_use]
    pub fn status(&self) -> Vec<OrganismStatus> {
        let status = self.organisms.iter().map(|organism| OrganismStatus {
            id: organism.id,
            name: organism.name.clone(),
            size: organism.log.size(),
            certified: organism.certified().borrow().as_ref().map_or(0, CertifiedCheckpoint::size),
        });
        status.collect()
    }

    /// The ordering engine's state.
    #[must_use]
    pub fn order_status(&self) -> coalition_order::OrderStatus {
        self.order.status()
    }

    /// Resolves when the member cannot go on; the process must exit and be restarted.
    pub async fn failed(&self) -> Arc<MemberError> {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
            Ok(Some(error)) => error,
            _ => Arc::new(MemberError::Ended("supervision")),
        }
    }

    /// Leaves the committee and waits until everything durable is released.
    ///
    /// # Errors
    /// [`MemberError::Order`] when the engine does not stop in time.
    pub async fn stop(self, deadline: Duration) -> Result<(), MemberError> {
        let stopped = self.order.stop(deadline).await;
        for ended in self.loops {
            if tokio::time::timeout(deadline, ended).await.is_err() {
                return Err(MemberError::Ended("loops, which did not end with the engine"));
            }
        }
        for organism in self.organisms.iter() {
            organism.keep_certificate()?;
            organism.close();
        }
        Ok(stopped?)
    }
}

type Task = tokio::task::JoinHandle<Result<(), MemberError>>;

/// How long a loop that merely ended leaves the word to the one that failed.
const CAUSE_GRACE: Duration = Duration::from_secs(1);

fn supervise(
    what: &'static str,
    report: watch::Sender<Option<Arc<MemberError>>>,
    task: Task,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        match task.await {
            Ok(Err(error)) => fail(&report, error),
            // A loop ends when what feeds it has: that one knows the cause, and may still be about to tell it.
            Ok(Ok(())) | Err(_) => drop(tokio::spawn(async move {
                tokio::time::sleep(CAUSE_GRACE).await;
                fail(&report, MemberError::Ended(what));
            })),
        }
    })
}

/// The first failure is the one reported; the others follow from it.
fn fail(report: &watch::Sender<Option<Arc<MemberError>>>, error: MemberError) {
    report.send_if_modified(|slot| {
        let first = slot.is_none();
        slot.get_or_insert_with(|| Arc::new(error));
        first
    });
}

fn check(setup: &MemberSetup) -> Result<(), MemberError> {
    let wrong = |text: String| Err(MemberError::Setup(text));
    let members = setup.roster.members();
    let Some(me) = members.get(setup.member_index) else {
        return wrong(format!("member {} of a roster of {}", setup.member_index, members.len()));
    };
    if setup.order.addresses.len() != members.len() {
        return wrong(format!("{} addresses for a roster of {}", setup.order.addresses.len(), members.len()));
    }
    if let Some(organism) = setup.organisms.iter().find(|organism| organism.state_every == 0) {
        return wrong(format!("{}: a state after every 0 entries; at least 1, normally {STATE_EVERY}", organism.name));
    }
    if setup.organisms.iter().skip(1).any(|organism| organism.clock.is_some()) {
        return wrong("the Almanac must be the first organism".into());
    }
    let expected = [
        ("consensus", &setup.keys.consensus, me.consensus_key),
        ("checkpoint", &setup.keys.checkpoint, me.checkpoint_key),
    ];
    for (which, key, expected) in expected {
        let found = *key.peer_id().as_bytes();
        if found != expected {
            let hex = |bytes| UniqueId::from_bytes(bytes).to_string();
            let member = me.name.clone();
            return Err(MemberError::WrongKey { which, found: hex(found), expected: hex(expected), member });
        }
    }
    Ok(())
}

/// The committee's id in the ordering engine: its roster and the organisms it carries, in order, with what else all members must
/// agree on.
fn namespace(roster: &Roster, organisms: &[OrganismSetup]) -> Vec<u8> {
    let roster = roster.fingerprint();
    let mut parts: Vec<&[u8]> = vec![b"coalition.committee.v1", roster.as_bytes()];
    parts.extend(organisms.iter().map(|organism| &organism.id.as_bytes()[..]));
    let cadences: Vec<[u8; 8]> = organisms.iter().map(|organism| organism.state_every.to_be_bytes()).collect();
    if organisms.iter().any(|organism| organism.state_every != STATE_EVERY) {
        parts.extend(cadences.iter().map(|cadence| &cadence[..]));
    }
    hash_many(&parts).as_bytes().to_vec()
}

fn order_config(setup: &MemberSetup) -> OrderConfig {
    let members = setup.roster.members().iter().zip(&setup.order.addresses);
    OrderConfig {
        namespace: namespace(&setup.roster, &setup.organisms),
        roster: members.map(|(member, &address)| OrderMember { public_key: member.consensus_key, address }).collect(),
        secret_key: Zeroizing::new(*setup.keys.consensus.expose()),
        listen: setup.order.listen,
        storage_dir: setup.data_dir.join("order"),
        heartbeat_ms: setup.order.heartbeat_ms,
        ..OrderConfig::default()
    }
}

fn open_all(
    data_dir: &std::path::Path,
    roster: &Roster,
    organisms: Vec<OrganismSetup>,
    retain: Option<u64>,
) -> Result<Vec<Hosted>, MemberError> {
    organisms.into_iter().map(|setup| open(data_dir, roster, setup, retain)).collect()
}

fn open(
    data_dir: &std::path::Path,
    roster: &Roster,
    setup: OrganismSetup,
    retain: Option<u64>,
) -> Result<Hosted, MemberError> {
    let verifier = RosterVerifier::new(setup.id, roster)?;
    let failed = |source| MemberError::Store { organism: setup.name.clone(), source: Box::new(source) };
    let store = Store::open(&data_dir.join("logs").join(&setup.name), setup.id, roster, StoreOptions::default())
        .map_err(failed)?;
    let mut execution =
        Execution::new(setup.machine, verifier.clone()).with_clock(setup.clock).with_state_every(setup.state_every);
    resume::resume(&setup.name, &mut execution, &store)?;
    Ok(Hosted::new(setup.id, setup.name, execution, store, verifier, retain))
}
