//! `coalition run member`: a member of the committee that runs the Almanac and the Compute market.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coalition::{PublishedConfig, UniqueId};
use coalition_almanac::{AlmanacCommand, AlmanacMachine, AlmanacTickBody, Observation, Observers, TICK_KIND};
use coalition_compute::ComputeMachine;
use coalition_log::{Entry, state::STATE_EVERY};
use coalition_organism::{Member, MemberKeys, MemberSetup, OrderSetup, Organism, OrganismSetup, random_write_id};
use coalition_universe::Node;
use ed25519_dalek::SigningKey;
use serde_json::json;

use super::{
    Running,
    config::{MemberConfig, load_key, node_error, place_in},
};
use crate::{
    config_file::{self, relative_to},
    error::{CliError, Context, Result},
    home::private_dir,
    session::say_goodbye,
    view::{self, AlmanacPart, ComputePart},
};

/// A member reports its clock every so many ticks. The readings are advisory; every one is an entry of the log.
const TICKS_PER_READING: u32 = 10;
const STOP: Duration = Duration::from_secs(8);

pub(super) async fn start(path: &Path) -> Result<Running> {
    let config: MemberConfig = config_file::load(path)?;
    let published = config.network.published(path)?;
    let carried = Carried::from(&published, &config.name)?;
    let checkpoint = load_key(&relative_to(path, &config.checkpoint_key))?;
    let consensus = load_key(&relative_to(path, &config.consensus_key))?;
    let clock_key = SigningKey::from_bytes(checkpoint.expose());
    let data_dir = relative_to(path, &config.data_dir);
    private_dir(&data_dir)?;
    let node_config = config.network.node(path, config.peers.values().cloned().collect())?;
    carried.check_node(&config.name, node_config.key.peer_id().as_bytes())?;
    let setup = MemberSetup {
        roster: carried.compute.roster.clone(),
        member_index: carried.index,
        keys: MemberKeys { consensus, checkpoint },
        order: OrderSetup {
            addresses: config.order_addresses.clone(),
            listen: config.order_listen,
            heartbeat_ms: config.heartbeat_ms,
        },
        data_dir,
        organisms: carried.organisms()?,
        retain_entries: config.retain_entries,
    };
    let node = Node::start(node_config).await.map_err(node_error)?;
    let member = Member::start(setup)
        .await
        .map_err(|error| CliError::input("member", format!("{} cannot start", config.name)).because(error))?;
    node.serve(member.service());
    let readings =
        (!config.peers.is_empty()).then(|| tokio::spawn(report_clock(Arc::clone(&node), carried, clock_key)));
    let member = Arc::new(member);
    let ready =
        json!({ "name": config.name, "node": node.address().to_string(), "order": config.order_listen.to_string() });
    let (watched, gone) = (Arc::clone(&member), Arc::clone(&node));
    let failed = async move {
        tokio::select! {
            error = watched.failed() => CliError::fault("member_failed", "the member cannot go on").because(Shared(error)),
            () = gone.closed() => CliError::fault("node_closed", "the node's endpoint has closed"),
        }
    };
    let stop = async move {
        if let Some(readings) = readings {
            readings.abort();
        }
        say_goodbye(&node).await;
        // The watcher has been dropped by now, so this is the last owner.
        if let Some(member) = Arc::into_inner(member)
            && let Err(error) = member.stop(STOP).await
        {
            tracing::warn!(%error, "the member stopped uncleanly");
        }
    };
    Ok(Running { ready, failed: Box::pin(failed), stop: Box::pin(stop) })
}

/// A shared error as a cause.
#[derive(Debug)]
struct Shared(Arc<coalition_organism::MemberError>);

impl std::fmt::Display for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// What the committee carries, from the published config.
struct Carried {
    index: usize,
    almanac: AlmanacPart,
    compute: ComputePart,
}

impl Carried {
    fn from(config: &PublishedConfig, name: &str) -> Result<Self> {
        let (almanac, compute) = (view::almanac(config)?, view::compute(config)?);
        if almanac.roster != compute.roster {
            let message = "Almanac and Compute name different rosters; this role runs both with one committee";
            return Err(CliError::input("config_invalid", message));
        }
        let index = place_in(&compute.roster, name)?;
        Ok(Self { index, almanac, compute })
    }

    fn check_node(&self, name: &str, found: &[u8; 32]) -> Result<()> {
        let expected = &self.compute.roster.members()[self.index].peer_id;
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (UniqueId::from_bytes(*found), UniqueId::from_bytes(*expected));
        let message = format!("the node key of {name} is {found}, the roster names {expected}");
        Err(CliError::input("wrong_key", message).hint("point `node_key` to that member's key file"))
    }

    fn organisms(&self) -> Result<Vec<OrganismSetup>> {
        let keys = self.compute.roster.members().iter().map(|member| member.checkpoint_key).collect();
        let clock = AlmanacMachine::new(self.almanac.params, self.almanac.id, Observers::Keys(keys));
        let market = ComputeMachine::new(self.compute.id, self.compute.params.clone())
            .or_input("config_invalid", || "the market's parameters are unusable".into())?;
        let almanac = OrganismSetup {
            id: self.almanac.id,
            name: "almanac".into(),
            machine: Box::new(clock),
            clock: Some(tick_of),
            state_every: STATE_EVERY,
        };
        let compute = OrganismSetup {
            id: self.compute.id,
            name: "compute".into(),
            machine: Box::new(market),
            clock: None,
            state_every: STATE_EVERY,
        };
        Ok(vec![almanac, compute])
    }
}

/// The tick an Almanac entry announces.
fn tick_of(entry: &Entry) -> Option<u64> {
    (entry.kind == TICK_KIND).then(|| AlmanacTickBody::from_bytes(&entry.body).ok()).flatten().map(|tick| tick.seq)
}

/// Reports this member's wall clock now and then, for the Almanac's advisory vector.
async fn report_clock(node: Arc<Node>, carried: Carried, key: SigningKey) {
    let organism = carried.almanac.id;
    let Ok(almanac) = Organism::connect(node, carried.almanac.id, carried.almanac.roster) else { return };
    let Ok(index) = u16::try_from(carried.index) else { return };
    let every = Duration::from_millis(u64::from(carried.almanac.params.cadence_ms()) * u64::from(TICKS_PER_READING));
    let mut timer = tokio::time::interval(every);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        timer.tick().await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let observation = Observation::sign(&key, &organism, index, now_ms);
        let command = AlmanacCommand::Observe(observation).to_bytes();
        if let Err(error) = almanac.write(random_write_id(), command, every).await {
            tracing::debug!(%error, "clock reading not committed");
        }
    }
}
