//! A committee of ours as processes.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use coalition::UniqueId;
use coalition_log::state::STATE_EVERY;
use coalition_organism::{Organism, random_write_id};
use coalition_universe::{Node, NodeConfig, NodeKey, Relay, UNIVERSE};

use crate::committee::{Committee, ORGANISM, Places};

const DEADLINE: Duration = Duration::from_secs(60);

pub struct Cluster {
    committee: Committee,
    _relay: Relay,
    clients: Vec<Organism>,
    pub committed: Arc<AtomicU64>,
}

#[derive(Clone)]
pub struct Writer(Organism);

impl Cluster {
    pub async fn start(dir: &Path, members: usize) -> Result<Self, String> {
        std::fs::create_dir_all(dir).map_err(|error| error.to_string())?;
        let places = Places::loopback(members);
        let relay = Relay::start(places.relay).await.map_err(|error| error.to_string())?;
        let mut committee = Committee::new(places.clone(), dir, STATE_EVERY);
        for member in 0..members {
            tokio::task::block_in_place(|| committee.start(member))?;
        }
        let mut clients = Vec::new();
        for _ in 0..2 {
            let config = NodeConfig {
                network_id: UNIVERSE.derive("torture"),
                key: NodeKey::generate(),
                relay: places.relay_url(),
                bind: None,
                bootstrap: (0..members).map(|member| places.peer(member)).collect(),
                public: false,
                start_timeout: DEADLINE,
            };
            let node = Node::start(config).await.map_err(|error| error.to_string())?;
            let organism = Organism::connect(node, UniqueId::from_bytes(ORGANISM), committee.roster());
            clients.push(organism.map_err(|error| error.to_string())?);
        }
        Ok(Self { committee, _relay: relay, clients, committed: Arc::default() })
    }

    pub fn pids(&self) -> Vec<u32> {
        self.committee.pids()
    }

    pub fn writer(&self, number: usize) -> Writer {
        Writer(self.clients[number % self.clients.len()].clone())
    }
}

impl Writer {
    pub async fn write(&self, content: Vec<u8>) -> Result<(), String> {
        let written = self.0.write(random_write_id(), content, DEADLINE).await;
        written.map(drop).map_err(|error| error.to_string())
    }
}
