//! `coalition run member`: a member of the committee that runs the Almanac and the Compute market.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coalition::{ModuleKind, PublishedConfig, Roster, UniqueId};
use coalition_almanac::{AlmanacCommand, AlmanacMachine, AlmanacTickBody, Observation, Observers, TICK_KIND};
use coalition_compute::ComputeMachine;
use coalition_log::{Entry, state::STATE_EVERY};
use coalition_organism::{
    AddressBook, Member, MemberKeys, MemberSetup, OrderSetup, Organism, OrganismSetup, random_write_id,
};
use coalition_tickets::sources::Committees;
use coalition_universe::Node;
use ed25519_dalek::SigningKey;
use serde_json::json;

use super::{
    Running,
    admission::{Doors, follow_seats},
    beginning,
    config::{MemberConfig, load_key, node_error, parse_id, place_in},
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
    let carried = Carried::from(&published, &config)?;
    let seats = Arc::new(Committees::of_config(&published));
    let doors = Doors {
        published: &published,
        compute: &carried.compute,
        network: parse_id("network_id", path, &config.network.network_id)?,
        path,
        admission: config.admission.as_ref(),
        seats: Arc::clone(&seats),
    };
    let checkpoint = load_key(&relative_to(path, &config.checkpoint_key))?;
    let consensus = load_key(&relative_to(path, &config.consensus_key))?;
    let clock_key = SigningKey::from_bytes(checkpoint.expose());
    let data_dir = relative_to(path, &config.data_dir);
    private_dir(&data_dir)?;
    let node_config = config.network.node(path, config.peers.values().cloned().collect())?;
    carried.check_node(&config.name, node_config.key.peer_id().as_bytes())?;
    let node = Node::start(node_config).await.map_err(node_error)?;
    config.peers.values().for_each(|peer| node.introduce(peer.clone()));
    let setup = MemberSetup {
        roster: carried.compute.roster.clone(),
        name: config.name.clone(),
        joins: config.joins,
        node: Arc::clone(&node),
        keys: MemberKeys { consensus, checkpoint },
        order: OrderSetup {
            addresses: address_book(path, &config, &carried.compute.roster),
            listen: config.order_listen,
            heartbeat_ms: config.heartbeat_ms,
        },
        data_dir,
        organisms: carried.organisms(&doors)?,
        retain_entries: config.retain_entries,
        batches: config.batches(),
    };
    let member = Member::start(setup)
        .await
        .map_err(|error| CliError::input("member", format!("{} cannot start", config.name)).because(error))?;
    node.serve(member.service());
    let member = Arc::new(member);
    let seating = tokio::spawn(follow_seats(Arc::downgrade(&member), seats));
    let beginning = beginning::start(path, &config, &carried, (&node, &member))?;
    let readings =
        (!config.peers.is_empty()).then(|| tokio::spawn(report_clock(Arc::clone(&node), carried, clock_key)));
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
        for task in readings.into_iter().chain(beginning).chain([seating]) {
            task.abort();
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

/// Where the ordering engines of all members are, as the member's file says at that moment: an operator adds a newcomer's
/// address there, and no member is restarted.
fn address_book(path: &Path, config: &MemberConfig, genesis: &Roster) -> AddressBook {
    let (path, config, genesis) = (path.to_owned(), config.clone(), genesis.clone());
    Box::new(move |member| {
        let newest = config_file::load::<MemberConfig>(&path).inspect_err(|error| {
            tracing::warn!(%error, "the member's file cannot be read again; going on with the addresses of the start");
        });
        let config = newest.as_ref().unwrap_or(&config);
        let place = genesis.members().iter().position(|known| known.consensus_key == member.consensus_key);
        let published = place.and_then(|place| config.order_addresses.get(place));
        config.order_peers.get(&member.name).or(published).copied()
    })
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
pub(super) struct Carried {
    /// Its place in the config's roster; none for a member that joined by a handover.
    index: Option<usize>,
    pub(super) almanac: AlmanacPart,
    pub(super) compute: ComputePart,
}

impl Carried {
    fn from(published: &PublishedConfig, config: &MemberConfig) -> Result<Self> {
        let (almanac, compute) = (view::almanac(published)?, view::compute(published)?);
        if almanac.roster != compute.roster {
            let message = "Almanac and Compute name different rosters; this role runs both with one committee";
            return Err(CliError::input("config_invalid", message));
        }
        let index = if config.joins { None } else { Some(place_in(&compute.roster, &config.name)?) };
        Ok(Self { index, almanac, compute })
    }

    fn check_node(&self, name: &str, found: &[u8; 32]) -> Result<()> {
        let Some(index) = self.index else { return Ok(()) };
        let expected = &self.compute.roster.members()[index].peer_id;
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (UniqueId::from_bytes(*found), UniqueId::from_bytes(*expected));
        let message = format!("the node key of {name} is {found}, the roster names {expected}");
        Err(CliError::input("wrong_key", message).hint("point `node_key` to that member's key file"))
    }

    fn organisms(&self, doors: &Doors<'_>) -> Result<Vec<OrganismSetup>> {
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
            predecessor: self.almanac.predecessor,
            door: doors.of(ModuleKind::Almanac)?,
        };
        let compute = OrganismSetup {
            id: self.compute.id,
            name: "compute".into(),
            machine: Box::new(market),
            clock: None,
            state_every: STATE_EVERY,
            predecessor: self.compute.predecessor,
            door: doors.of(ModuleKind::Compute)?,
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
    // The readings are those of the config's roster: a member that joined later has no place among them.
    let Some(index) = carried.index.and_then(|index| u16::try_from(index).ok()) else { return };
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
