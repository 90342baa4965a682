//! A committee member: orders, executes, certifies and serves the organisms its committee carries.

mod admission;
mod anchor;
mod catchup;
mod executor;
mod gossip;
mod hosted;
mod progress;
mod reading;
mod resume;
mod retention;
mod seat;
mod service;
mod takeover;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use coalition::{Roster, RosterMember, UniqueId};
use coalition_log::{
    Machine,
    checkpoint::{CertifiedCheckpoint, RosterError},
    state::{STATE_EVERY, StateError},
    store::{Store, StoreError, StoreOptions},
};
use coalition_order::{OrderError, OrderHandle};
use coalition_tickets::Door;
use coalition_universe::{Node, NodeKey, Service};
use tokio::sync::watch;

use self::{hosted::Hosted, seat::Driver, service::OrganismService};
pub use self::{retention::BatchKeeping, seat::Standing};
use crate::{
    epochs::Epochs,
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
    /// The organism it succeeds, from the published config: nothing is written before that one's head
    /// ([`Organism::succeed`](crate::Organism::succeed)).
    pub predecessor: Option<UniqueId>,
    /// Who may write to it, where the published config has access rules: peers that show this door what it demands, and the
    /// members of the roster in force. `None`: everybody. Reading is open to everybody.
    pub door: Option<Arc<Door>>,
}

/// A member's two signing keys. The node's key is a third; the roster names all three.
pub struct MemberKeys {
    /// Votes in the ordering engine.
    pub consensus: NodeKey,
    /// Cosigns checkpoints.
    pub checkpoint: NodeKey,
}

/// The TCP address of a member's ordering engine, if the operator of this member knows it. Asked at the beginning of every
/// epoch: logs name members, and addresses come from operators.
pub type AddressBook = Box<dyn Fn(&RosterMember) -> Option<SocketAddr> + Send + Sync>;

/// Where the members of the ordering engine meet.
pub struct OrderSetup {
    /// Addresses of all members. One without an address has to reach this member.
    pub addresses: AddressBook,
    /// The address this member listens on.
    pub listen: SocketAddr,
    /// Longest time between batches of an idle committee, in milliseconds.
    pub heartbeat_ms: u64,
}

/// Everything a member needs to start.
pub struct MemberSetup {
    /// The genesis roster. The same is pinned by every organism the committee carries; its logs say what became of it.
    pub roster: Roster,
    /// This member's name, for messages. Its keys say which seat it has.
    pub name: String,
    /// Whether it may wait for a handover that gives it a seat. Otherwise a start without one fails, unless it has left.
    pub joins: bool,
    /// Its keys.
    pub keys: MemberKeys,
    /// Its node, to read the log from other members. The caller introduces their addresses to it.
    pub node: Arc<Node>,
    /// The ordering engine's network.
    pub order: OrderSetup,
    /// Where everything durable lives; for this member alone.
    pub data_dir: PathBuf,
    /// The organisms, in an order all members share; the Almanac first.
    pub organisms: Vec<OrganismSetup>,
    /// How many of the newest entries of each log this member keeps at least; `None` keeps all. What lies before them and before
    /// the older of its two states is dropped; the tree stays whole.
    pub retain_entries: Option<u64>,
    /// What this member keeps of ordered batches.
    pub batches: BatchKeeping,
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
    /// A quorum certified another state than this member has folded from the same entries.
    #[error(
        "{organism}: the state certified after {covers} entries is not what this build folds them to; use the build the \
         committee runs"
    )]
    OtherState {
        /// The organism's name.
        organism: String,
        /// Entries the state covers.
        covers: u64,
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
    /// A certified state that other members served cannot be read by this build.
    #[error("{organism}: the state certified after {covers} entries is not usable; use the build the committee runs")]
    UnusableState {
        /// The organism's name.
        organism: String,
        /// Entries the state covers.
        covers: u64,
        /// The cause.
        #[source]
        source: Box<StateError>,
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
    /// Whether its log waits for the predecessor's head.
    pub awaits_predecessor: bool,
}

/// A running member.
pub struct Member {
    name: Arc<str>,
    organisms: Arc<Vec<Hosted>>,
    engine: watch::Receiver<Option<OrderHandle>>,
    standing: watch::Receiver<Standing>,
    failure: watch::Receiver<Option<Arc<MemberError>>>,
    stop: watch::Sender<bool>,
    driver: tokio::task::JoinHandle<()>,
}

impl Member {
    /// Opens the logs, folds them, takes the seat that its keys have in the epoch in force. Returns when it does; it may still
    /// be catching up. From then on it follows the committee's handovers by itself.
    ///
    /// # Errors
    /// [`MemberError`].
    pub async fn start(setup: MemberSetup) -> Result<Self, MemberError> {
        check(&setup)?;
        let (data_dir, roster, retain) = (setup.data_dir.clone(), setup.roster.clone(), setup.retain_entries);
        let common_every = setup.batches.common_every;
        let opening = move || open_all(&data_dir, &roster, setup.organisms, retain, common_every);
        let opened = tokio::task::spawn_blocking(opening).await.map_err(|_| MemberError::Ended("start"))?;
        let organisms = Arc::new(opened?);
        let (engine, engine_now) = watch::channel(None);
        let (standing, standing_now) = watch::channel(Standing::Following { epoch: 0 });
        let (stop, stopping) = watch::channel(false);
        let mut driver = Driver {
            organisms: Arc::clone(&organisms),
            keys: setup.keys,
            order: setup.order,
            data_dir: setup.data_dir,
            node: setup.node,
            batches: setup.batches,
            turn: 0,
            engine,
            standing,
            stop: stopping,
        };
        if !setup.joins && matches!(driver.find_standing(), Standing::Following { .. }) {
            return Err(no_seat(&setup.roster, &setup.name, &driver.keys));
        }
        let engaged = driver.engage_if_seated(false).await?;
        let (report, failure) = watch::channel(None);
        let engine = driver.engine.clone();
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.run(engaged).await {
                engine.send_replace(None);
                report.send_replace(Some(Arc::new(error)));
            }
        });
        let name = setup.name.into();
        Ok(Self { name, organisms, engine: engine_now, standing: standing_now, failure, stop, driver })
    }

    /// What the member answers to clients, to be served by its node.
    #[must_use]
    pub fn service(&self) -> Arc<dyn Service> {
        Arc::new(OrganismService {
            organisms: Arc::clone(&self.organisms),
            engine: self.engine.clone(),
            standing: self.standing.clone(),
            name: Arc::clone(&self.name),
        })
    }

    /// Sizes per organism.
    #[must_use]
    pub fn status(&self) -> Vec<OrganismStatus> {
        let status = self.organisms.iter().map(|organism| OrganismStatus {
            id: organism.id,
            name: organism.name.clone(),
            size: organism.log.size(),
            certified: organism.certified().borrow().as_ref().map_or(0, CertifiedCheckpoint::size),
            awaits_predecessor: organism.awaits_predecessor(),
        });
        status.collect()
    }

    /// The ordering engine's state; `None` without a seat, and for a moment between two epochs.
    #[must_use]
    pub fn order_status(&self) -> Option<coalition_order::OrderStatus> {
        self.engine.borrow().as_ref().map(OrderHandle::status)
    }

    /// The roster in force of every organism it carries, as far as its own logs have it. [`standing`](Self::standing) changes with it.
    #[must_use]
    pub fn rosters(&self) -> Vec<(UniqueId, Roster)> {
        self.organisms.iter().map(|organism| (organism.id, organism.log.chain().roster().clone())).collect()
    }

    /// Whether it has a seat, and in which epoch. Changes with the committee's handovers.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Resolves when the member cannot go on; the process must exit and be restarted.
    pub async fn failed(&self) -> Arc<MemberError> {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await.map(|failure| failure.clone()) {
            Ok(Some(error)) => error,
            _ => Arc::new(MemberError::Ended("supervision")),
        }
    }

    /// Stops, and waits until everything durable is released.
    ///
    /// # Errors
    /// [`MemberError::Ended`] when it does not stop in time, or had failed before: [`failed`](Self::failed) says why.
    pub async fn stop(self, deadline: Duration) -> Result<(), MemberError> {
        let _ = self.stop.send(true);
        if tokio::time::timeout(deadline, self.driver).await.is_err() {
            return Err(MemberError::Ended("loops, which did not end in time"));
        }
        for organism in self.organisms.iter() {
            organism.keep_certificate()?;
            organism.close();
        }
        Ok(())
    }
}

/// How long a part that merely ended leaves the word to the one that failed.
const CAUSE_GRACE: Duration = Duration::from_secs(1);

fn check(setup: &MemberSetup) -> Result<(), MemberError> {
    let wrong = |text: String| Err(MemberError::Setup(text));
    if setup.organisms.is_empty() {
        return wrong("a member carries at least one organism".into());
    }
    if let Some(organism) = setup.organisms.iter().find(|organism| organism.state_every == 0) {
        return wrong(format!("{}: a state after every 0 entries; at least 1, normally {STATE_EVERY}", organism.name));
    }
    setup.batches.check().map_err(MemberError::Setup)?;
    if setup.organisms.iter().skip(1).any(|organism| organism.clock.is_some()) {
        return wrong("the Almanac must be the first organism".into());
    }
    Ok(())
}

/// Why a member that may not wait for a seat has none: most likely a wrong key file.
fn no_seat(roster: &Roster, name: &str, keys: &MemberKeys) -> MemberError {
    let Some(me) = roster.member(name) else {
        return MemberError::Setup(format!("member {name} is not in the roster, and no handover has named its keys"));
    };
    let expected =
        [("consensus", &keys.consensus, me.consensus_key), ("checkpoint", &keys.checkpoint, me.checkpoint_key)];
    let hex = |bytes| UniqueId::from_bytes(bytes).to_string();
    let wrong = expected.into_iter().find(|(_, key, expected)| key.peer_id().as_bytes() != expected);
    let Some((which, key, expected)) = wrong else { return MemberError::Ended("seat") };
    MemberError::WrongKey { which, found: hex(*key.peer_id().as_bytes()), expected: hex(expected), member: name.into() }
}

fn open_all(
    data_dir: &std::path::Path,
    roster: &Roster,
    organisms: Vec<OrganismSetup>,
    retain: Option<u64>,
    common_every: u64,
) -> Result<Vec<Hosted>, MemberError> {
    let committee: Arc<[UniqueId]> = organisms.iter().map(|organism| organism.id).collect();
    organisms.into_iter().map(|setup| open(data_dir, (roster, &committee), setup, (retain, common_every))).collect()
}

fn open(
    data_dir: &std::path::Path,
    (roster, committee): (&Roster, &Arc<[UniqueId]>),
    setup: OrganismSetup,
    (retain, common_every): (Option<u64>, u64),
) -> Result<Hosted, MemberError> {
    let epochs = Epochs::new(setup.id, roster, Arc::clone(committee))?;
    let failed = |source| MemberError::Store { organism: setup.name.clone(), source: Box::new(source) };
    let store = Store::open(&data_dir.join("logs").join(&setup.name), setup.id, roster, StoreOptions::default())
        .map_err(failed)?;
    let mut execution = Execution::new(setup.machine, epochs)
        .with_clock(setup.clock)
        .with_state_every(setup.state_every)
        .with_common_every(common_every)
        .with_predecessor(setup.predecessor);
    resume::resume(&setup.name, &mut execution, &store)?;
    Ok(Hosted::new(setup.id, setup.name, execution, store, retain).with_door(setup.door))
}
