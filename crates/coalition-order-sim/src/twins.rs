//! How the simulated network treats a member that runs twice under one key.

use commonware_cryptography::ed25519::PublicKey;
use commonware_p2p::Recipients;
use commonware_p2p::simulated::{SplitForwarder, SplitOrigin, SplitTarget};
use commonware_runtime::IoBuf;

use crate::engine::Channels;

/// Whom the first and the second twin talk to, if a member runs twice.
pub(crate) type Friends = Option<[Vec<PublicKey>; 2]>;

/// Which members a message of each twin reaches; of a member that runs once, all.
pub(crate) fn forward(friends: Friends) -> impl SplitForwarder<PublicKey> {
    move |origin: SplitOrigin, to: &Recipients<PublicKey>, _: &IoBuf| {
        let Some(friends) = &friends else { return Some(to.clone()) };
        let friends = match origin {
            SplitOrigin::Primary => &friends[0],
            SplitOrigin::Secondary => &friends[1],
        };
        Some(match to {
            Recipients::All => Recipients::Some(friends.clone()),
            Recipients::Some(keys) => Recipients::Some(keys.iter().filter(|k| friends.contains(k)).cloned().collect()),
            Recipients::One(key) if friends.contains(key) => Recipients::One(key.clone()),
            Recipients::One(_) => return None,
        })
    }
}

/// Which twin hears whom; a member that runs once hears everybody.
pub(crate) fn route(friends: Friends) -> impl Fn(&(PublicKey, IoBuf)) -> SplitTarget + Send + Sync + 'static {
    move |(from, _)| {
        let Some([first, second]) = &friends else { return SplitTarget::Primary };
        match (first.contains(from), second.contains(from)) {
            (true, true) => SplitTarget::Both,
            (true, false) => SplitTarget::Primary,
            (false, true) => SplitTarget::Secondary,
            (false, false) => SplitTarget::None,
        }
    }
}

/// Seven channels by name, in the order of their ids.
pub(crate) fn bundle<S, R>(channels: Vec<(S, R)>) -> Channels<S, R> {
    let mut channels = channels.into_iter();
    let mut next = || channels.next().expect("seven channels");
    Channels {
        votes: next(),
        certificates: next(),
        resolver: next(),
        backfill: next(),
        blocks: next(),
        commands: next(),
        gossip: next(),
    }
}
