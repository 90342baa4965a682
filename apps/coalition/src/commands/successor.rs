//! `coalition successor`: make the config that succeeds this one, and move a home to it.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use coalition::{
    CommitteeContent, ComponentRef, ModuleKind, PublishedConfig, PublishedConfigBuilder, RetirementMarker, Roster,
    UniqueId,
};
use coalition_log::successor::{Place, Successor, SuccessorError};
use coalition_organism::{Lineage, Link, Organism, ReadError};
use coalition_universe::PeerAddress;
use serde_json::json;

use super::approvals::read_roster;
use crate::{
    cli::{SuccessorCommand, SuccessorConfigArgs, SuccessorMoveArgs},
    config_file,
    error::{CliError, Context, Kind, Result},
    home::{Home, private_write},
    output::Output,
    roles::config::{UniverseConfig, read_published},
    session::{READ_WAIT, Session, unanswered},
    view,
};

/// The services whose logs have successors.
const KINDS: [ModuleKind; 2] = [ModuleKind::Almanac, ModuleKind::Compute];

/// Prints a config, or moves a home.
///
/// # Errors
/// Configs that do not fit together; a chain that ends, or whose services have not all moved; an unreachable committee.
pub async fn run(home: &Home, command: &SuccessorCommand, output: &Output) -> Result<()> {
    match command {
        SuccessorCommand::Config(args) => config(home, args, output),
        SuccessorCommand::Move(args) => Box::pin(move_on(home, args, output)).await,
    }
}

fn config(home: &Home, args: &SuccessorConfigArgs, output: &Output) -> Result<()> {
    let old = read_published(&args.config.clone().unwrap_or_else(|| home.config_hex()))?;
    let draft = args.from.as_deref().map(read_published).transpose()?.unwrap_or_else(|| old.clone());
    let roster = args.roster.as_deref().map(read_roster).transpose()?;
    let next = succeed(&old, &draft, args.name.as_deref(), roster.as_ref())?;
    let value = json!({ "fingerprint": next.fingerprint(), "hex": next.to_hex() });
    output.answer(&value, |_| if args.toml { next.to_toml() } else { next.to_hex() });
    Ok(())
}

/// `draft` with services that succeed those of `old`. Pure.
///
/// # Errors
/// When neither ships a service that the other does, or the result is no config.
pub fn succeed(
    old: &PublishedConfig,
    draft: &PublishedConfig,
    name: Option<&str>,
    roster: Option<&Roster>,
) -> Result<PublishedConfig> {
    let mut next = PublishedConfigBuilder::from_published(draft);
    if let Some(name) = name {
        next = next.instance_name(name);
    }
    for kind in KINDS {
        let unusable = || format!("the {} of the configs cannot succeed one another", kind.str_name());
        let content = draft.committee(kind).or_input("config_invalid", unusable)?;
        let module = old.module(kind).ok_or_else(|| CliError::input("config_invalid", unusable()))?;
        let roster = roster.cloned().unwrap_or(content.roster);
        next = next.module_content(kind, &CommitteeContent { roster, predecessor: Some(module.id), ..content });
    }
    next.build().or_input("config_invalid", || "the new config is none".into())
}

/// What the old log carries of `config`; nothing if the service that `marker` names succeeds nobody.
///
/// # Errors
/// When it succeeds another organism than `organism`, or does not fit.
pub(super) fn carried(
    config: &PublishedConfig,
    (organism, marker): (UniqueId, &RetirementMarker<'_>),
    universe: Option<&Path>,
) -> Result<Option<Successor>> {
    let content = match marker.replacement {
        Some(ComponentRef::Module(kind, _)) => config.committee(kind).or_input("config_invalid", unusable)?,
        _ => return Ok(None),
    };
    if content.predecessor.is_none() {
        return match universe {
            None => Ok(None),
            Some(_) => Err(CliError::input("no_predecessor", "--peers is for a successor that names its predecessor")
                .hint("make its config with `coalition successor config`")),
        };
    }
    let places = universe.map(|path| places(path, &content.roster)).transpose()?.unwrap_or_default();
    let checked = Successor::new(config.clone(), places)
        .and_then(|successor| successor.check(organism, marker).map(|_| successor));
    checked.map(Some).map_err(|error: SuccessorError| {
        CliError::input("bad_successor", "the log cannot name this successor").because(error)
    })
}

fn unusable() -> String {
    "the successor's config cannot be used by this software".into()
}

/// Where the members of `roster` are, as the successor's universe says.
fn places(path: &Path, roster: &Roster) -> Result<Vec<Place>> {
    let universe: UniverseConfig = config_file::load(path)?;
    let place = |(position, member): (usize, &coalition::RosterMember)| {
        let address = universe.peers.values().find(|address| address.peer.as_bytes() == &member.peer_id)?;
        let text = address.to_string();
        let (_, at) = text.split_once('@')?;
        Some(Place { member: u8::try_from(position).ok()?, at: at.to_owned() })
    };
    let places: Vec<Place> = roster.members().iter().enumerate().filter_map(place).collect();
    if places.is_empty() {
        let message = format!("{} has no address of any member of the successor", path.display());
        return Err(CliError::input("no_address", message).hint("name the successor's own universe.toml with --peers"));
    }
    Ok(places)
}

async fn move_on(home: &Home, args: &SuccessorMoveArgs, output: &Output) -> Result<()> {
    if home.devnet().exists() && !args.dry_run {
        let message =
            format!("{} runs a coalition of its own, whose files `coalition up` makes", home.root().display());
        return Err(CliError::input("own_coalition", message).hint("pass the --home of a requester, or use --dry-run"));
    }
    let mut steps = output.steps();
    steps.begin("reading the ends of the logs");
    let session = Session::open(home).await?;
    let found = newest(&session).await;
    let old = session.config.clone();
    session.close().await;
    let Found { config, peers } = found?;
    if config.fingerprint() == old.fingerprint() {
        let text = format!("{} works; there is nothing to move to", old.instance_name());
        steps.done("current", &text, json!({ "fingerprint": old.fingerprint(), "moved": false }));
        return Ok(());
    }
    if !args.dry_run {
        install(home, &old, &config, peers)?;
    }
    let text = format!("{} succeeds {}: {}", config.instance_name(), old.instance_name(), config.fingerprint());
    let fields = json!({
        "from": old.fingerprint(), "fingerprint": config.fingerprint(), "name": config.instance_name(),
        "moved": !args.dry_run, "hex": config.to_hex(),
    });
    steps.done(if args.dry_run { "found" } else { "moved" }, &text, fields);
    Ok(())
}

/// Where the chain leads.
struct Found {
    config: PublishedConfig,
    peers: BTreeMap<String, PeerAddress>,
}

/// Where the services' chains lead; they have to lead to one config.
async fn newest(session: &Session) -> Result<Found> {
    let (almanac, compute) = (view::almanac(&session.config)?, view::compute(&session.config)?);
    let mut ends = Vec::new();
    for (name, id, roster) in [("almanac", almanac.id, almanac.roster), ("compute", compute.id, compute.roster)] {
        let organism = Organism::connect(Arc::clone(&session.node), id, roster);
        let organism = organism.or_input("config_invalid", || format!("the roster of {name} cannot be used"))?;
        let end = Lineage::follow(organism).newest(READ_WAIT).await.map_err(|error| ended(error, name))?;
        ends.push((name, end));
    }
    let config_of = |link: &Link| link.config().unwrap_or(&session.config).clone();
    let configs: Vec<PublishedConfig> = ends.iter().map(|(_, link)| config_of(link)).collect();
    if configs[0].fingerprint() != configs[1].fingerprint() {
        let at = |i: usize| format!("{} is at {}", ends[i].0, configs[i].instance_name());
        let message = format!("the coalition is moving: {}, {}", at(0), at(1));
        return Err(CliError::new(Kind::Refused, "half_moved", message).hint("try again when both have retired"));
    }
    let known = |member: &coalition::RosterMember| {
        let peer = coalition_universe::PeerId::from_bytes(member.peer_id).ok()?;
        Some((member.name.clone(), session.node.introduced(peer).or_else(|| session.node.locate(peer))?))
    };
    let peers = ends[1].1.organism().roster().members().iter().filter_map(known).collect();
    Ok(Found { config: configs[1].clone(), peers })
}

fn ended(error: ReadError, name: &str) -> CliError {
    match error {
        ReadError::Retired(retirement) => {
            let message = format!("{name} has retired ({retirement}), and its log carries no config to go on with");
            CliError::new(Kind::Refused, "chain_ended", message).hint("get the successor's config from its operator")
        }
        other => unanswered(other, name),
    }
}

/// Replaces the home's config and universe. What was there is kept beside it, under the old fingerprint.
fn install(
    home: &Home,
    old: &PublishedConfig,
    config: &PublishedConfig,
    peers: BTreeMap<String, PeerAddress>,
) -> Result<()> {
    if peers.is_empty() {
        let message = "no address of the successor's members is known";
        return Err(CliError::new(Kind::Unreachable, "no_address", message)
            .hint("get the successor's universe.toml from its operator"));
    }
    let path = home.universe();
    let (universe, _) = UniverseConfig::load(&path)?;
    let universe = UniverseConfig {
        coalition: "coalition.hex".into(),
        fingerprint: config.fingerprint().to_string(),
        peers,
        ..universe
    };
    let text = toml::to_string(&universe).or_fault("universe", || "the universe cannot be written".into())?;
    let suffix = &old.fingerprint().to_string()[..8];
    for file in [home.config_hex(), home.config_toml(), path.clone()].iter().filter(|file| file.exists()) {
        let mut kept = file.clone().into_os_string();
        kept.push(format!(".{suffix}"));
        let bytes = fs::read(file).or_fault("disk", || format!("cannot read {}", file.display()))?;
        private_write(Path::new(&kept), &bytes)?;
    }
    private_write(&home.config_hex(), format!("{}\n", config.to_hex()).as_bytes())?;
    private_write(&home.config_toml(), config.to_toml().as_bytes())?;
    // Last: it says which fingerprint counts.
    private_write(&path, text.as_bytes())
}
