//! `coalition run unseal`: a member of the unseal committee.

use std::{path::Path, sync::Arc};

use coalition::PublishedConfig;
use coalition_compute::MarketView;
use coalition_organism::{Follower, Organism};
use coalition_shuffle::Member;
use coalition_universe::Node;
use coalition_unseal::{CellStoreError, UnsealMember};
use serde_json::json;

use super::{
    Running,
    config::{UnsealConfig, node_error, place_in},
};
use crate::{
    config_file::{self, relative_to},
    devnet::keys::load_share,
    error::{CliError, Context, Kind, Result},
    home::private_dir,
    names::UNSEAL_ROLE,
    session::say_goodbye,
    view,
};

pub(super) async fn start(path: &Path) -> Result<Running> {
    let config: UnsealConfig = config_file::load(path)?;
    let published = config.network.published(path)?;
    let (unseal, compute) = (view::unseal(&published)?, view::compute(&published)?);
    refuse_rules(&published)?;
    let place = place_in(&unseal.roster, &config.name)?;
    let share = load_share(&relative_to(path, &config.share))?;
    if usize::from(share.index()) != place + 1 {
        let message = format!("the key share is member {}'s, {} is member {}", share.index(), config.name, place + 1);
        return Err(CliError::input("wrong_key", message).hint("point `share` to that member's file"));
    }
    let setup = unseal.params.setup();
    let machine = Member::new(unseal.params, share, unseal.scope, coalition_shuffle::member::MemberLimits::default())
        .or_input("unseal", || format!("{} cannot start", config.name))?;
    let node_config = config.network.node(path, config.peers.values().cloned().collect())?;
    let node = Node::start(node_config).await.map_err(node_error)?;
    let organism = Organism::connect(Arc::clone(&node), compute.id, compute.roster)
        .or_input("config_invalid", || "the market's roster cannot be used".into())?;
    let market = Follower::spawn(organism, MarketView::new(compute.id, compute.params));
    let member = match config.data_dir.map(|dir| relative_to(path, &dir)) {
        Some(dir) => {
            private_dir(&dir)?;
            UnsealMember::open(machine, market, &dir.join("cells")).map_err(|error| disk_error(&config.name, error))?
        }
        None => {
            tracing::warn!("no `data_dir` in the config: a restart forgets the requests it holds");
            UnsealMember::start(machine, market)
        }
    };
    node.serve(member.service());
    tracing::warn!(?setup, "the unseal key comes from this setup");
    let ready = json!({ "name": config.name, "node": node.address().to_string() });
    let gone = Arc::clone(&node);
    let name = config.name;
    let failed = async move {
        tokio::select! {
            error = member.failed() => CliError::fault("disk", format!("{name} cannot go on")).because(error),
            () = gone.closed() => CliError::fault("node_closed", "the node's endpoint has closed"),
        }
    };
    let stop = async move { say_goodbye(&node).await };
    Ok(Running { ready, failed: Box::pin(failed), stop: Box::pin(stop) })
}

/// Cells are sealed and counted, and whoever writes them is nobody's business here. Published rules would be kept by nobody.
fn refuse_rules(published: &PublishedConfig) -> Result<()> {
    if published.organism(UNSEAL_ROLE).is_none_or(|unseal| unseal.acl.is_empty()) {
        return Ok(());
    }
    Err(CliError::input(
        "rules_unenforced",
        "the config publishes access rules for the unseal committee, which enforces none",
    )
    .hint("publish rules for the market instead: only what was requested there is opened"))
}

fn disk_error(name: &str, error: CellStoreError) -> CliError {
    let message = format!("{name} cannot start");
    match error {
        CellStoreError::Busy(_) => CliError::new(Kind::Conflict, "already_running", message).because(error),
        _ => CliError::fault("disk", message).because(error),
    }
}
