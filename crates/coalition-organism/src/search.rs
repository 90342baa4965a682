//! Finding a committee of which nobody is left that the client knows: everybody else it was introduced to is asked who the
//! members are. A handover is proven or not, whoever tells of it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
    time::Duration,
};

use coalition_log::handover::HandoverProof;
use coalition_universe::PeerId;
use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;

use crate::{
    client::{CALL_TIMEOUT, Shared},
    wire::{self, method},
};

/// Strangers are asked no more often than this.
const PAUSE: Duration = Duration::from_secs(1);
/// And so many at once.
const AT_ONCE: usize = 16;

/// Asks strangers whenever a member has failed; ends with the client.
pub(crate) async fn run(client: Weak<Shared>, mut wanted: mpsc::Receiver<()>) {
    while wanted.recv().await.is_some() {
        let Some(shared) = client.upgrade() else { return };
        look_around(&shared).await;
        drop(shared);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks strangers until one has proven a handover that the client did not know.
async fn look_around(shared: &Arc<Shared>) {
    let (known, epoch) = (shared.known(), shared.epoch());
    let members: BTreeSet<PeerId> = known.peers().chain([shared.node.peer_id()]).collect();
    let strangers = shared.node.acquaintances().into_iter().filter(|peer| !members.contains(peer));
    let asked: Vec<_> = strangers.map(|peer| handovers(shared, peer, epoch)).collect();
    let mut asked = stream::iter(asked).buffer_unordered(AT_ONCE);
    while let Some(answer) = asked.next().await {
        let learned = answer.and_then(|proofs| shared.learn(&proofs));
        if let Err(reason) = learned {
            tracing::debug!(organism = %shared.id, %reason, "a stranger does not know the committee");
        }
        if shared.epoch() > epoch {
            return;
        }
    }
}

async fn handovers(shared: &Shared, peer: PeerId, epoch: u64) -> Result<Vec<HandoverProof>, String> {
    let request = wire::HeadRequest { organism: shared.id, newer_than: None, epoch, wait_ms: 0 };
    let answer = shared.node.call(peer, method::HEAD, wire::encode(&request), CALL_TIMEOUT).await;
    let answer = answer.map_err(|error| format!("{peer}: {error}"))?;
    let answer: wire::HeadAnswer = wire::decode(&answer).map_err(|error| format!("{peer}: {error}"))?;
    Ok(answer.handovers)
}
