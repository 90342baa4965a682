//! Real committees on loopback: the whole stack, a temporary directory, nothing simulated. For tests, examples and
//! benchmarks only; it panics where a test should fail.

#![allow(clippy::missing_panics_doc, clippy::expect_used)]

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use coalition::{RetirementMarker, Roster, RosterMember, UniqueId};
use coalition_log::{Machine, retirement::Approval, state::STATE_EVERY};
use coalition_organism::{Member, MemberKeys, MemberSetup, OrderSetup, Organism, OrganismSetup, TickOf};
use coalition_universe::{Node, NodeConfig, NodeKey, PeerAddress, Relay, UNIVERSE};
use ed25519_dalek::SigningKey;

/// Makes an organism's machine for a committee with this roster.
pub type MakeMachine = Box<dyn Fn(&Roster) -> Box<dyn Machine> + Send + Sync>;

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
        }
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

/// A committee and the relay it meets at. Everything it wrote is removed when it is dropped.
pub struct Committee {
    /// Who certifies.
    pub roster: Roster,
    relay: Relay,
    carried: Vec<Carried>,
    seats: Vec<Seat>,
    addresses: Vec<PeerAddress>,
    dir: tempfile::TempDir,
    heartbeat_ms: u64,
    /// See [`MemberSetup::retain_entries`]; counts for members started from now on.
    pub retain_entries: Option<u64>,
}

const START: Duration = Duration::from_secs(30);

/// A member's secret key for a purpose: 1 checkpoint, 2 consensus, 3 node.
#[must_use]
pub fn key(member: usize, purpose: u8) -> NodeKey {
    let mut seed = [purpose; 32];
    seed[0] = u8::try_from(member).expect("small committees");
    NodeKey::from_bytes(seed)
}

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("bound")
}

/// The roster of a test committee of `n`.
#[must_use]
pub fn roster(n: usize) -> Roster {
    let public = |member, purpose| *key(member, purpose).peer_id().as_bytes();
    let members = (0..n).map(|member| RosterMember {
        name: format!("m{member}"),
        checkpoint_key: public(member, 1),
        consensus_key: public(member, 2),
        peer_id: public(member, 3),
    });
    Roster::new(members.collect()).expect("distinct keys")
}

impl Committee {
    /// Starts `n` members that carry the given organisms, and waits until all take part.
    pub async fn start(n: usize, carried: Vec<Carried>) -> Self {
        let relay = Relay::start(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("relay");
        let seats = (0..n).map(|_| Seat { running: None, address: free_port() }).collect();
        let dir = tempfile::tempdir().expect("temporary directory");
        let roster = roster(n);
        let mut committee = Self {
            roster,
            relay,
            carried,
            seats,
            addresses: Vec::new(),
            dir,
            heartbeat_ms: 1_000,
            retain_entries: None,
        };
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
        let node = self.node(key(member, 3)).await;
        let organisms = self.carried.iter().map(|carried| OrganismSetup {
            id: carried.id,
            name: carried.name.into(),
            machine: (carried.machine)(&self.roster),
            clock: carried.clock,
            state_every: carried.state_every,
        });
        let setup = MemberSetup {
            roster: self.roster.clone(),
            member_index: member,
            keys: MemberKeys { consensus: key(member, 2), checkpoint: key(member, 1) },
            order: OrderSetup {
                addresses: self.seats.iter().map(|seat| seat.address).collect(),
                listen: self.seats[member].address,
                heartbeat_ms: self.heartbeat_ms,
            },
            data_dir: self.member_dir(member),
            organisms: organisms.collect(),
            retain_entries: self.retain_entries,
        };
        let began = Instant::now();
        let running = Member::start(setup).await.expect("member starts");
        let took = began.elapsed();
        node.serve(running.service());
        self.addresses.retain(|address| address.peer != node.peer_id());
        self.addresses.push(node.address());
        self.seats[member].running = Some((node, running));
        took
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

    /// Where the committee's nodes meet, and how its members can be reached: what a client in another process needs.
    #[must_use]
    pub fn places(&self) -> (String, Vec<PeerAddress>) {
        (self.relay.url(), self.addresses.clone())
    }

    /// A node with this key at the committee's relay.
    pub async fn node(&self, key: NodeKey) -> Arc<Node> {
        let config = NodeConfig {
            network_id: UNIVERSE.derive("testkit"),
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
        let checkpoint = SigningKey::from_bytes(key(member, 1).expose());
        Approval::sign(&checkpoint, u8::try_from(member).expect("small committees"), organism, marker)
    }

    /// Stops everything cleanly.
    pub async fn stop(mut self) {
        for member in 0..self.seats.len() {
            self.stop_member(member).await;
        }
        self.relay.stop().await;
    }
}
