//! Where an engine starts whose member has read the logs instead of its batches.
//!
//! An entry has its batch's time, times grow strictly from batch to batch, and a log that ends at a certified head ends with
//! a whole batch. So a log has the effects of every batch up to the time of its last entry, and of none after it, whoever served
//! it. An engine may start at any batch that is not after that time in any log: what it delivers again is passed over. That it
//! is a batch of this committee, and its time, follow from the quorum's certificate; nothing is taken on a peer's word.

use std::time::Duration;

use coalition::Roster;
use coalition_order::{Anchor, OrderConfig, OrderHandle};
use coalition_universe::{CallError, Fault, Node, PeerId};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    Standing,
    hosted::{Hosted, lock},
};
use crate::wire::{self, AnchorRequest, NO_ANCHOR, method};

/// Longest time the members are given to answer.
const CALL: Duration = Duration::from_secs(4);

/// Longest wait for the others once somebody has answered: some may be down.
const GRACE: Duration = Duration::from_millis(500);

/// Anchors are for members: to find one costs the engine some reading.
pub(super) fn check_member(organisms: &[Hosted], caller: PeerId) -> Result<(), Fault> {
    let is_in = |roster: &Roster| roster.members().iter().any(|member| member.peer_id == *caller.as_bytes());
    if organisms.iter().any(|organism| organism.log.chain().rosters().any(is_in)) {
        return Ok(());
    }
    Err(Fault::new("not_a_member", "only members of the committee start engines"))
}

/// Answers with the newest anchor that is not after the time asked for.
pub(super) async fn serve(
    engine: &watch::Receiver<Option<OrderHandle>>,
    standing: &watch::Receiver<Standing>,
    request: &AnchorRequest,
) -> Result<Vec<u8>, Fault> {
    let is_of_epoch = matches!(*standing.borrow(), Standing::Seated { epoch, .. } if epoch == request.epoch);
    let order = engine.borrow().clone().filter(|_| is_of_epoch);
    let anchor = match order {
        Some(order) => tokio::time::timeout(CALL, order.anchor_at(request.time_ms)).await.ok().flatten(),
        None => None,
    };
    let none = || Fault::new(NO_ANCHOR, "this member's engine has no batch that is not after that time");
    anchor.ok_or_else(none)
}

/// The newest anchor that the peers can give for logs that end where these do. `None` when there is none: then the engine
/// begins where its storage ends, or with its first batch.
pub(super) async fn newest(
    node: &Node,
    peers: &[(String, PeerId)],
    organisms: &[Hosted],
    config: &OrderConfig,
    epoch: u64,
) -> Option<Anchor> {
    let time_ms = executed_up_to_ms(organisms)?;
    let request = wire::encode(&AnchorRequest { epoch, time_ms });
    let asked = peers.iter().map(|(name, peer)| {
        let request = request.clone();
        async move { (name, node.call(*peer, method::ANCHOR, request, CALL).await) }
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut newest: Option<Anchor> = None;
    let mut until = Instant::now() + CALL;
    while let Ok(Some((name, answer))) = timeout_at(until, asked.next()).await {
        if matches!(answer, Ok(_) | Err(CallError::Refused(_))) {
            until = until.min(Instant::now() + GRACE);
        }
        let Ok(bytes) = answer else { continue };
        match config.verify_anchor(&bytes) {
            Ok(anchor) if anchor.time_ms() > time_ms => {
                tracing::warn!(
                    member = name,
                    ?anchor,
                    time_ms,
                    "refused an anchor behind which batches would be missed"
                );
            }
            Ok(anchor) if newest.as_ref().is_none_or(|newest| newest.height() < anchor.height()) => {
                newest = Some(anchor);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(member = name, %error, "refused an anchor"),
        }
    }
    newest
}

/// Committee time up to which every log has the effects of all batches; `None` when one has no entry yet. A log with its last
/// entry takes no more.
fn executed_up_to_ms(organisms: &[Hosted]) -> Option<u64> {
    let going_on = organisms.iter().filter(|organism| !organism.is_over());
    let times: Option<Vec<u64>> = going_on.map(|organism| lock(&organism.execution).last_time_ms()).collect();
    times?.into_iter().min()
}
