//! Real committees on loopback: the whole stack, a temporary directory, nothing simulated. For tests, examples and
//! benchmarks only; it panics where a test should fail.

#![allow(clippy::missing_panics_doc, clippy::expect_used)]

mod notes;

use std::{
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use coalition::{RetirementMarker, Roster, RosterMember, UniqueId};
use coalition_log::{
    Machine,
    handover::{ApprovedHandover, Handover},
    retirement::{Approval, ApprovedRetirement},
    state::STATE_EVERY,
    store::StoreError,
    successor::Successor,
};
use coalition_order::OrderError;
use coalition_organism::{
    AddressBook, BatchKeeping, Member, MemberError, MemberKeys, MemberSetup, OrderSetup, Organism, OrganismSetup,
    TickOf,
};
use coalition_tickets::{Door, Resources, TicketValidator};
use coalition_universe::{Node, NodeConfig, NodeKey, PeerAddress, Relay, UNIVERSE};
use ed25519_dalek::SigningKey;

pub use notes::Notes;

/// Makes an organism's machine for a committee with this roster.
pub type MakeMachine = Box<dyn Fn(&Roster) -> Box<dyn Machine> + Send + Sync>;

/// Makes a member's door to the organism with this id.
pub type MakeDoor = Box<dyn Fn(UniqueId) -> Door + Send + Sync>;

/// The network test committees are on.
#[must_use]
pub fn network() -> UniqueId {
    UNIVERSE.derive("testkit")
}

/// What a committee carries: a function that makes each organism's machine anew, as every member and every restart needs.
pub struct Carried {
    /// The organism's id.
    pub id: UniqueId,
    /// Its name.
    pub name: &'static str,
    /// Makes its machine, in the state of an empty log.
    pub machine: MakeMachine,
    /// See [`OrganismSetup::clock`].
    pub clock: Option<TickOf>,
    /// See [`OrganismSetup::state_every`].
    pub state_every: u64,
    /// See [`OrganismSetup::predecessor`].
    pub predecessor: Option<UniqueId>,
    /// See [`OrganismSetup::door`]; made for each member anew.
    pub door: Option<MakeDoor>,
}

impl Carried {
    /// An organism that is not the clock.
    pub fn new<M: Machine>(name: &'static str, machine: impl Fn() -> M + Send + Sync + 'static) -> Self {
        let machine = move |_: &Roster| Box::new(machine()) as Box<dyn Machine>;
        Self {
            id: UniqueId::hash(name.as_bytes()),
            name,
            machine: Box::new(machine),
            clock: None,
            state_every: STATE_EVERY,
            predecessor: None,
            door: None,
        }
    }

    /// The same with a door: what it demands, and what members know to judge it.
    #[must_use]
    pub fn with_door(mut self, validator: TicketValidator, resources: Resources) -> Self {
        let door = move |id: UniqueId| {
            let secret = *NodeKey::generate().expose();
            Door::new((network(), id), &validator, resources.clone(), secret).expect("an enforceable door")
        };
        self.door = Some(Box::new(door));
        self
    }

    /// The same with a certified state every so many entries.
    #[must_use]
    pub const fn with_state_every(mut self, entries: u64) -> Self {
        self.state_every = entries;
        self
    }
}

struct Seat {
    running: Option<(Arc<Node>, Member)>,
    address: SocketAddr,
}

type Book = Arc<Mutex<Vec<([u8; 32], SocketAddr)>>>;

/// A committee and the relay it meets at. Everything it wrote is removed when it is dropped.
pub struct Committee {
    /// Who certifies.
    pub roster: Roster,
    generation: u8,
    relay: Relay,
    carried: Vec<Carried>,
    seats: Vec<Seat>,
    addresses: Vec<PeerAddress>,
    /// Where the ordering engines listen, by consensus key.
    book: Book,
    dir: tempfile::TempDir,
    /// See [`OrderSetup::heartbeat_ms`]; counts for members started from now on.
    pub heartbeat_ms: u64,
    /// See [`MemberSetup::retain_entries`]; counts for members started from now on.
    pub retain_entries: Option<u64>,
    /// See [`MemberSetup::batches`]; counts for members started from now on.
    pub batches: BatchKeeping,
}

const START: Duration = Duration::from_secs(30);

/// A member's secret key for a purpose: 1 checkpoint, 2 consensus, 3 node; three more for each generation.
#[must_use]
pub fn key(member: usize, purpose: u8) -> NodeKey {
    let mut seed = [purpose; 32];
    seed[0] = u8::try_from(member).expect("small committees");
    NodeKey::from_bytes(seed)
}

fn consensus_key(member: usize, generation: u8) -> [u8; 32] {
    *key(member, 2 + 3 * generation).peer_id().as_bytes()
}

fn is_held(error: &MemberError) -> bool {
    match error {
        MemberError::Store { source, .. } => matches!(**source, StoreError::Locked { .. }),
        MemberError::Order(error) => matches!(error, OrderError::StorageInUse(_) | OrderError::Listen { .. }),
        _ => false,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("bound")
}

/// The roster of a test committee of `n`.
#[must_use]
pub fn roster(n: usize) -> Roster {
    roster_of_generation(n, 0)
}

/// The roster of a test committee of `n` that shares no key with those of other generations.
#[must_use]
pub fn roster_of_generation(n: usize, generation: u8) -> Roster {
    Roster::new((0..n).map(|member| roster_member(member, generation)).collect()).expect("distinct keys")
}

fn roster_member(member: usize, generation: u8) -> RosterMember {
    let public = |purpose| *key(member, purpose + 3 * generation).peer_id().as_bytes();
    RosterMember { name: format!("m{member}"), checkpoint_key: public(1), consensus_key: public(2), peer_id: public(3) }
}

impl Committee {
    /// Starts `n` members that carry the given organisms, and waits until all take part.
    pub async fn start(n: usize, carried: Vec<Carried>) -> Self {
        Self::start_with(n, carried, |_| {}).await
    }

    /// As [`start`](Self::start), after `set` has set what the members start with.
    pub async fn start_with(n: usize, carried: Vec<Carried>, set: impl FnOnce(&mut Self)) -> Self {
        Self::start_generation_with(n, 0, carried, set).await
    }

    /// As [`start`](Self::start), under the keys of [`roster_of_generation`], so that several committees are apart.
    pub async fn start_generation(n: usize, generation: u8, carried: Vec<Carried>) -> Self {
        Self::start_generation_with(n, generation, carried, |_| {}).await
    }

    async fn start_generation_with(
        n: usize,
        generation: u8,
        carried: Vec<Carried>,
        set: impl FnOnce(&mut Self),
    ) -> Self {
        let relay = Relay::start(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("relay");
        let seats: Vec<Seat> = (0..n).map(|_| Seat { running: None, address: free_port() }).collect();
        let book = (0..n).zip(&seats).map(|(member, seat)| (consensus_key(member, generation), seat.address));
        let book = Arc::new(Mutex::new(book.collect()));
        let dir = tempfile::tempdir().expect("temporary directory");
        let roster = roster_of_generation(n, generation);
        let mut committee = Self {
            roster,
            generation,
            relay,
            carried,
            seats,
            addresses: Vec::new(),
            book,
            dir,
            heartbeat_ms: 1_000,
            retain_entries: None,
            batches: BatchKeeping::default(),
        };
        set(&mut committee);
        for member in 0..n {
            committee.start_member(member).await;
        }
        committee
    }

    /// The directory of one member.
    #[must_use]
    pub fn member_dir(&self, member: usize) -> std::path::PathBuf {
        self.dir.path().join(format!("m{member}"))
    }

    /// Starts one member on its directory, which may hold an earlier life. Answers how long opening and folding its logs and joining
    /// took, its node apart.
    pub async fn start_member(&mut self, member: usize) -> Duration {
        let node = self.node(self.key(member, 3)).await;
        for (other, _) in self.seats.iter().filter_map(|seat| seat.running.as_ref()) {
            node.introduce(other.address());
            other.introduce(node.address());
        }
        let starting = async {
            loop {
                let began = Instant::now();
                match Member::start(self.setup(member, &node)).await {
                    Ok(running) => return (running, began.elapsed()),
                    // An earlier life that was dropped is still letting go of its files.
                    Err(error) if is_held(&error) => tokio::time::sleep(Duration::from_millis(20)).await,
                    Err(error) => panic!("member {member} does not start: {error:?}"),
                }
            }
        };
        let (running, took) = tokio::time::timeout(START, starting).await.expect("member starts in time");
        node.serve(running.service());
        self.addresses.retain(|address| address.peer != node.peer_id());
        self.addresses.push(node.address());
        self.seats[member].running = Some((node, running));
        took
    }

    fn setup(&self, member: usize, node: &Arc<Node>) -> MemberSetup {
        let organisms = self.carried.iter().map(|carried| OrganismSetup {
            id: carried.id,
            name: carried.name.into(),
            machine: (carried.machine)(&self.roster),
            clock: carried.clock,
            state_every: carried.state_every,
            predecessor: carried.predecessor,
            door: carried.door.as_ref().map(|door| Arc::new(door(carried.id))),
        });
        MemberSetup {
            roster: self.roster.clone(),
            name: format!("m{member}"),
            joins: member >= self.roster.len(),
            node: Arc::clone(node),
            keys: MemberKeys { consensus: self.key(member, 2), checkpoint: self.key(member, 1) },
            order: OrderSetup {
                addresses: self.address_book(),
                listen: self.seats[member].address,
                heartbeat_ms: self.heartbeat_ms,
            },
            data_dir: self.member_dir(member),
            organisms: organisms.collect(),
            retain_entries: self.retain_entries,
            batches: self.batches,
        }
    }

    /// Adds a seat for a member that is in no roster yet; its number is the next one. Start it with
    /// [`start_member`](Self::start_member): it waits for a handover that names it. Of the others, those that start or begin an
    /// epoch later know its address.
    pub fn add_seat(&mut self) -> usize {
        let seat = Seat { running: None, address: free_port() };
        lock(&self.book).push((consensus_key(self.seats.len(), self.generation), seat.address));
        self.seats.push(seat);
        self.seats.len() - 1
    }

    fn address_book(&self) -> AddressBook {
        let book = Arc::clone(&self.book);
        Box::new(move |member| {
            lock(&book).iter().find(|(key, _)| *key == member.consensus_key).map(|(_, address)| *address)
        })
    }

    /// The roster with these members.
    #[must_use]
    pub fn roster_of(&self, members: &[usize]) -> Roster {
        Roster::new(members.iter().map(|member| roster_member(*member, self.generation)).collect())
            .expect("distinct keys")
    }

    /// The consent of `approving` to a handover from the roster of `now` to that of `next`, for every organism carried.
    #[must_use]
    pub fn handover(
        &self,
        epoch: u64,
        (now, next): (&[usize], &[usize]),
        approving: &[usize],
    ) -> Vec<(UniqueId, ApprovedHandover)> {
        let handover = Handover { epoch, next: self.roster_of(next) };
        let roster = self.roster_of(now);
        let approve = |organism: UniqueId| {
            let sign = |member: &usize| {
                let seat = now.iter().position(|seat| seat == member).expect("a member of the roster in force");
                let checkpoint = SigningKey::from_bytes(self.key(*member, 1).expose());
                let seat = u8::try_from(seat).expect("small committees");
                handover.approve(&checkpoint, seat, organism, &roster)
            };
            (organism, ApprovedHandover::new(handover.clone(), approving.iter().map(sign).collect()))
        };
        self.carried.iter().map(|carried| approve(carried.id)).collect()
    }

    /// Stops one member as a crash does: at any instant, without waiting for anything.
    pub async fn drop_member(&mut self, member: usize) {
        if let Some((node, running)) = self.seats[member].running.take() {
            drop(running);
            node.stop().await;
        }
    }

    /// Stops one member cleanly.
    pub async fn stop_member(&mut self, member: usize) {
        if let Some((node, running)) = self.seats[member].running.take() {
            node.stop().await;
            running.stop(START).await.expect("member stops");
        }
    }

    /// The running member, if it runs.
    #[must_use]
    pub fn member(&self, member: usize) -> Option<&Member> {
        self.seats[member].running.as_ref().map(|(_, running)| running)
    }

    /// The node of a running member.
    #[must_use]
    pub fn node_of(&self, member: usize) -> Option<&Arc<Node>> {
        self.seats[member].running.as_ref().map(|(node, _)| node)
    }

    /// Where the committee's nodes meet, and how its members can be reached: what a client in another process needs.
    #[must_use]
    pub fn places(&self) -> (String, Vec<PeerAddress>) {
        (self.relay.url(), self.addresses.clone())
    }

    /// A node with this key at the committee's relay.
    pub async fn node(&self, key: NodeKey) -> Arc<Node> {
        let config = NodeConfig {
            network_id: network(),
            key,
            relay: self.relay.url(),
            bind: None,
            bootstrap: Vec::new(),
            public: false,
            start_timeout: START,
        };
        Node::start(config).await.expect("node starts")
    }

    /// A client node that knows every member.
    pub async fn client(&self) -> Arc<Node> {
        self.client_with(NodeKey::generate()).await
    }

    /// As [`client`](Self::client), with this key.
    pub async fn client_with(&self, key: NodeKey) -> Arc<Node> {
        let node = self.node(key).await;
        self.addresses.iter().for_each(|address| node.introduce(address.clone()));
        node
    }

    /// A handle on one of the carried organisms, from a client node.
    #[must_use]
    pub fn organism(&self, client: &Arc<Node>, name: &str) -> Organism {
        let carried = self.carried.iter().find(|carried| carried.name == name).expect("a carried organism");
        Organism::connect(Arc::clone(client), carried.id, self.roster.clone()).expect("usable roster")
    }

    /// A member's consent to retire one of the carried organisms.
    #[must_use]
    pub fn approval(&self, member: usize, organism: UniqueId, marker: &RetirementMarker<'_>) -> Approval {
        self.approval_with(member, organism, marker, None)
    }

    /// The same of a marker and the successor's config with it.
    #[must_use]
    pub fn approval_with(
        &self,
        member: usize,
        organism: UniqueId,
        marker: &RetirementMarker<'_>,
        successor: Option<&Successor>,
    ) -> Approval {
        let checkpoint = SigningKey::from_bytes(self.key(member, 1).expose());
        let seat = u8::try_from(member).expect("small committees");
        ApprovedRetirement::approve_with(&checkpoint, seat, organism, marker, successor)
    }

    fn key(&self, member: usize, purpose: u8) -> NodeKey {
        key(member, purpose + 3 * self.generation)
    }

    /// Stops everything cleanly.
    pub async fn stop(mut self) {
        for member in 0..self.seats.len() {
            self.stop_member(member).await;
        }
        self.relay.stop().await;
    }
}
