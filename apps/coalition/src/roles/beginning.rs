//! The beginning of logs that succeed others: a member reads the heads of the old ones, and has them committed.

use std::{
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use coalition::{CommitteeContent, PublishedConfig, Roster, UniqueId};
use coalition_organism::{Member, Organism, WriteError, random_write_id};
use coalition_universe::Node;
use tokio::task::JoinHandle;

use super::{
    config::{MemberConfig, read_published},
    member::Carried,
};
use crate::{
    config_file::relative_to,
    error::{CliError, Context, Result},
};

/// How long one attempt may take, and the pause after one that failed.
const ATTEMPT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_secs(2);

/// A log of this member, and the one it succeeds.
struct Pair {
    new: Organism,
    old: Organism,
    config: Arc<PublishedConfig>,
}

/// Has every log begun that waits for its predecessor's head, in tasks of its own. All members do so; the first one counts.
///
/// # Errors
/// When the published config names predecessors and the member's file does not say where they are, or names others.
pub(super) fn start(
    path: &Path,
    config: &MemberConfig,
    carried: &Carried,
    (node, member): (&Arc<Node>, &Arc<Member>),
) -> Result<Vec<JoinHandle<()>>> {
    let (almanac, compute) = (&carried.almanac, &carried.compute);
    let parts = [
        ("almanac", almanac.id, &almanac.roster, almanac.predecessor),
        ("compute", compute.id, &compute.roster, compute.predecessor),
    ];
    let waits = |id| member.status().iter().any(|organism| organism.id == id && organism.awaits_predecessor);
    let mut tasks = Vec::new();
    for (name, id, roster, predecessor) in parts {
        let Some(predecessor) = predecessor.filter(|_| waits(id)) else { continue };
        let pair = pair(path, config, node, (name, id, roster, predecessor))?;
        tasks.push(tokio::spawn(begin(pair, Arc::downgrade(member))));
    }
    Ok(tasks)
}

fn pair(
    path: &Path,
    config: &MemberConfig,
    node: &Arc<Node>,
    (name, id, roster, predecessor): (&str, UniqueId, &Roster, UniqueId),
) -> Result<Pair> {
    let given = config.predecessor.as_ref().ok_or_else(|| {
        let message = format!("{name} succeeds {predecessor}, and {} has no [predecessor]", path.display());
        CliError::input("no_predecessor", message)
            .hint("add `[predecessor]` with `coalition = \"old.hex\"` and `[predecessor.peers]`")
    })?;
    let file = relative_to(path, &given.coalition);
    let old = read_published(&file)?;
    let published = old.by_id(predecessor).ok_or_else(|| {
        let message = format!("{name} succeeds {predecessor}, which {} does not publish", file.display());
        CliError::input("other_predecessor", message).hint("name the config this one was made from")
    })?;
    let unusable = || format!("the predecessor of {name} cannot be read with {}", file.display());
    let content = CommitteeContent::from_bytes(&published.content).or_input("config_invalid", unusable)?;
    given.peers.values().for_each(|peer| node.introduce(peer.clone()));
    let connect = |id, roster| Organism::connect(Arc::clone(node), id, roster).or_input("config_invalid", unusable);
    let (new, old_log) = (connect(id, roster.clone())?, connect(predecessor, content.roster)?);
    Ok(Pair { new, old: old_log, config: Arc::new(old) })
}

async fn begin(pair: Pair, member: Weak<Member>) {
    let (id, old) = (pair.new.id(), pair.old.id());
    // The same id each time: an attempt whose answer was lost is answered. With another head it is another write.
    let write_id = random_write_id();
    loop {
        match member.upgrade().map(|member| member.status()) {
            Some(status) if status.iter().any(|organism| organism.id == id && organism.awaits_predecessor) => {}
            _ => return,
        }
        match pair.new.succeed(write_id, (&pair.old, &pair.config), ATTEMPT).await {
            Ok(_) => {
                tracing::info!(organism = %id, predecessor = %old, "the log has begun with its predecessor's head");
                return;
            }
            Err(WriteError::Refused(refusal)) if refusal.code == "already_begun" => return,
            Err(error) => tracing::warn!(organism = %id, predecessor = %old, %error, "the log cannot begin yet"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
