//! One client's connection to a running coalition: a node of its own, and verified views of clock and market.

use std::{net::ToSocketAddrs, sync::Arc, time::Duration};

use coalition::PublishedConfig;
use coalition_compute::{At, MarketView};
use coalition_log::{Entry, retirement::Retirement};
use coalition_organism::{Follower, Organism, QUORUM_PATIENCE, ReadError};
use coalition_shuffle::RotatingPeer;
use coalition_universe::{Node, NodeConfig, NodeKey, PeerId};
use coalition_unseal::ShuffleClient;

use crate::{
    error::{CliError, Context, Kind, Result},
    home::Home,
    output::Output,
    roles::config::{UniverseConfig, node_error},
    tickets::{self, Kept},
    view::{self, AlmanacPart, ComputePart},
};

/// How long the coalition may take to answer a reader.
pub const READ_WAIT: Duration = Duration::from_secs(30);
/// How long the relay may take to accept a connection; on loopback it is at once or never.
const KNOCK: Duration = Duration::from_secs(3);
/// How long a node's goodbyes may take.
const GOODBYE: Duration = Duration::from_millis(250);
/// How long a node may take to start.
const NODE_START: Duration = Duration::from_secs(20);

/// A connection, normally under an identity made for it.
pub struct Session {
    /// The coalition's config.
    pub config: PublishedConfig,
    /// This client's node.
    pub node: Arc<Node>,
    /// The node's key.
    pub(crate) key: NodeKey,
    /// The market.
    pub compute: ComputePart,
    almanac: AlmanacPart,
    tickets: Kept,
}

impl Session {
    /// Joins the coalition below `home` under a fresh identity, or as the peer that this home's tickets are issued to.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] when there is none or it does not run.
    pub async fn open(home: &Home) -> Result<Self> {
        let key = tickets::existing_key(home)?.unwrap_or_else(NodeKey::generate);
        Self::open_as(home, key).await
    }

    /// The same under this identity: that of a request that another process made.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub async fn open_as(home: &Home, key: NodeKey) -> Result<Self> {
        let path = home.universe();
        if !path.exists() {
            let message = format!("there is no coalition in {}", home.root().display());
            return Err(CliError::new(Kind::Unreachable, "no_coalition", message)
                .hint("start one with `coalition up`, or pass --home DIR"));
        }
        let (universe, config) = UniverseConfig::load(&path)?;
        knock(home, &universe.relay).await?;
        let node = Node::start(NodeConfig {
            network_id: universe.network_id(&path)?,
            key: key.clone(),
            relay: universe.relay.clone(),
            bind: None,
            bootstrap: universe.peers.values().cloned().collect(),
            public: false,
            start_timeout: NODE_START,
        });
        let node = node.await.map_err(node_error)?;
        let (almanac, compute) = (view::almanac(&config)?, view::compute(&config)?);
        Ok(Self { config, node, key, compute, almanac, tickets: Kept::of(home) })
    }

    /// A handle on the market.
    ///
    /// # Errors
    /// When the config's roster has unusable keys.
    pub fn market_organism(&self) -> Result<Organism> {
        let organism = Organism::connect(Arc::clone(&self.node), self.compute.id, self.compute.roster.clone());
        let organism = organism.or_input("config_invalid", || "the market's roster cannot be used".into())?;
        Ok(organism.showing(Arc::new(self.tickets.clone())))
    }

    /// The market, verified and current as of the call; it goes on following. Where too few members answer to be sure that it is
    /// current, a warning says so.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] when no member answers truthfully.
    pub async fn market(&self, output: &Output) -> Result<Follower<MarketView>> {
        let view = MarketView::new(self.compute.id, self.compute.params.clone());
        let follower = Follower::spawn(self.market_organism()?, view);
        let (_, unsettled) = follower
            .caught_up_as_can_be(QUORUM_PATIENCE, READ_WAIT)
            .await
            .map_err(|error| unanswered(error, "market"))?;
        if let Some(why) = unsettled {
            output.warn(format!("what follows may be behind: too few members of the market answer ({why})"));
        }
        Ok(follower)
    }

    /// Committee time, from the newest certified entry of the clock.
    ///
    /// # Errors
    /// [`Kind::Unreachable`] when no member answers truthfully or the clock has not ticked yet.
    pub async fn now(&self) -> Result<At> {
        let entry = self.newest_clock_entry().await?;
        // An entry of the clock carries the tick it belongs to, the first ones none.
        Ok(At { tick: entry.tick.unwrap_or(0), time_ms: entry.time_ms })
    }

    async fn newest_clock_entry(&self) -> Result<Entry> {
        let clock = Organism::connect(Arc::clone(&self.node), self.almanac.id, self.almanac.roster.clone())
            .or_input("config_invalid", || "the clock's roster cannot be used".into())?;
        let started = tokio::time::Instant::now();
        loop {
            let left = READ_WAIT.saturating_sub(started.elapsed());
            let head = clock.settled_head_or_any(QUORUM_PATIENCE, left).await;
            let size = head.map_err(|error| unanswered(error, "clock"))?.0.size();
            if let Some(newest) = size.checked_sub(1) {
                let evidence = clock.evidence(newest, left).await.map_err(|error| unanswered(error, "clock"))?;
                return Ok(evidence.claimed_entry().clone());
            }
        }
    }

    /// A client of the unseal committee.
    ///
    /// # Errors
    /// When the config names none that can be used.
    pub fn shuffle(&self) -> Result<ShuffleClient> {
        let unseal = view::unseal(&self.config)?;
        let members = unseal.roster.members().iter().map(|member| PeerId::from_bytes(member.peer_id));
        let members = members
            .collect::<std::result::Result<Vec<_>, _>>()
            .or_input("config_invalid", || "the unseal roster cannot be used".into())?;
        Ok(ShuffleClient::new(Arc::clone(&self.node), unseal.params, unseal.scope, members))
    }

    /// This client's identity, as replies are addressed to it.
    #[must_use]
    pub fn rotating_peer(&self) -> RotatingPeer {
        RotatingPeer::from_bytes(*self.node.peer_id().as_bytes())
    }

    /// Says goodbye.
    pub async fn close(self) {
        say_goodbye(&self.node).await;
    }
}

/// Closes a node. The substrate sends its goodbyes at once and then lingers for seconds; nothing here needs to wait for that.
pub(crate) async fn say_goodbye(node: &Node) {
    let _ = tokio::time::timeout(GOODBYE, node.stop()).await;
}

/// Finds out at once whether anybody is there, instead of after the node's long wait for its relay.
async fn knock(home: &Home, relay: &str) -> Result<()> {
    let is_down = |reason: String| {
        let message = format!("the coalition in {} is not running: {reason}", home.root().display());
        CliError::new(Kind::Unreachable, "not_running", message).hint("start it with `coalition up`")
    };
    let Some(address) = relay_address(relay) else { return Ok(()) };
    match tokio::time::timeout(KNOCK, tokio::net::TcpStream::connect(&address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(is_down(format!("its relay at {address} does not answer ({error})"))),
        Err(_) => Err(is_down(format!("its relay at {address} did not answer within {} s", KNOCK.as_secs()))),
    }
}

/// Host and port of a plain HTTP relay; `None` for what only the node can judge.
fn relay_address(relay: &str) -> Option<String> {
    let authority = relay.strip_prefix("http://")?.split('/').next()?;
    let address = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    address.to_socket_addrs().ok()?.next().map(|_| address)
}

/// What to do about a service that has retired.
pub(crate) fn where_next(retirement: &Retirement) -> &'static str {
    if retirement.config().is_some() {
        "run `coalition successor move`: the old log carries the new config"
    } else {
        "get the successor's config from its operator"
    }
}

/// A read that failed, as a person reads it.
pub(crate) fn unanswered(error: ReadError, what: &str) -> CliError {
    if let ReadError::Retired(retirement) = &error {
        let message = format!("the coalition's {what} has retired ({retirement})");
        return CliError::new(Kind::Refused, "retired", message).hint(where_next(retirement));
    }
    CliError::new(Kind::Unreachable, "no_answer", format!("the coalition's {what} does not answer"))
        .because(error)
        .hint("`coalition status` shows who is missing; at most one committee member of four may be down")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relay_urls_give_their_address() {
        assert_eq!(relay_address("http://127.0.0.1:3340/"), Some("127.0.0.1:3340".into()));
        assert_eq!(relay_address("http://127.0.0.1"), Some("127.0.0.1:80".into()));
        assert_eq!(relay_address("https://relay.example/"), None);
    }
}
