//! What happens to a committee, and the scenarios with more than one step.

use coalition_order_sim::AnchorError;

use crate::{MEMBERS, World};

/// What happens to a committee that is given commands all the while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    Calm,
    /// Every message is lost with this probability, in percent.
    Loss(u8),
    /// {0, 1} and {2, 3} do not hear each other for a while.
    Split,
    /// Member 3 crashes and comes back; the others go on without it.
    CrashOne,
    /// One member after the other crashes and comes back.
    CrashMany,
    /// Member 2's consumer stands still for a while.
    SlowConsumer,
    /// Old batches are freed, then one member after the other starts again.
    Prune,
    /// Member 3 is cut off until the others have freed batches it lacks; it comes back above them.
    CutOff,
    /// Member 3 runs twice under one key and tells overlapping parts of the committee different things.
    Twins,
    /// All lose power at one instant, several times, and start again from what was synced.
    PowerLoss,
    /// The same, and of what was not synced some writes are on disk, others not.
    TornWrites,
}

impl Scenario {
    /// Everything one seed goes through in a campaign.
    pub(crate) const ALL: [Self; 12] = [
        Self::Calm,
        Self::Loss(10),
        Self::Loss(30),
        Self::Split,
        Self::CrashOne,
        Self::CrashMany,
        Self::SlowConsumer,
        Self::Prune,
        Self::CutOff,
        Self::Twins,
        Self::PowerLoss,
        Self::TornWrites,
    ];

    /// Members that follow the protocol and must agree.
    pub(crate) fn honest(self) -> &'static [usize] {
        if self == Self::Twins { &[0, 1, 2] } else { &[0, 1, 2, 3] }
    }

    /// How often the whole machine room starts.
    pub(crate) fn lives(self) -> u64 {
        if matches!(self, Self::PowerLoss | Self::TornWrites) { 4 } else { 1 }
    }
}

type Commands = Vec<(usize, Vec<u8>)>;

pub(crate) async fn split(world: &World, commands: &mut Commands) {
    let pairs = [(0, 2), (0, 3), (1, 2), (1, 3), (2, 0), (3, 0), (2, 1), (3, 1)];
    for (a, b) in pairs {
        world.cut(a, b).await;
    }
    world.load(commands, 500).await;
    let before: Vec<u64> = (0..MEMBERS).map(|i| world.height(i)).collect();
    world.load(commands, 3_000).await;
    let after: Vec<u64> = (0..MEMBERS).map(|i| world.height(i)).collect();
    assert_eq!(before, after, "half a committee must order nothing");
    for (a, b) in pairs {
        world.link(a, b).await;
    }
}

/// Writes until these members have ordered `height` batches: how many commands share one is up to the seed.
async fn reach(world: &World, commands: &mut Commands, members: &[usize], height: u64) -> u64 {
    for _ in 0..60 {
        let lowest = members.iter().map(|i| world.height(*i)).min().unwrap();
        if lowest >= height {
            return lowest;
        }
        world.load(commands, 500).await;
    }
    panic!("members {members:?} do not reach {height}");
}

pub(crate) async fn prune(world: &mut World, commands: &mut Commands) {
    let keep = reach(world, commands, &[0, 1, 2, 3], 20).await - 2;
    for i in 0..MEMBERS {
        let partition = format!("member-{i}-one-batches-value");
        let before = world.places[i].disk.count(&partition);
        world.injected.one("member pruned");
        world.committee.handle(i).unwrap().prune(keep);
        world.load(commands, 200).await;
        let after = world.places[i].disk.count(&partition);
        assert!(after < before, "{before} files before, {after} after");
    }
    for i in 0..MEMBERS {
        world.crash(i).await;
        world.load(commands, 300).await;
        world.start(i).await;
        world.load(commands, 300).await;
    }
}

/// Cuts member 3 off until the others have freed what it lacks, lets it read what was ordered from a peer's ledger, and starts
/// its engine above the gap.
pub(crate) async fn cut_off(world: &mut World, commands: &mut Commands) {
    let others = [0, 1, 2];
    for other in others {
        world.cut(3, other).await;
        world.cut(other, 3).await;
    }
    world.load(commands, 4_000).await;
    let stopped_at = world.height(3);
    let keep = reach(world, commands, &others, stopped_at + 20).await - 2;
    for other in others {
        world.injected.one("member pruned");
        world.committee.handle(other).unwrap().prune(keep);
    }
    for other in others {
        world.link(3, other).await;
        world.link(other, 3).await;
    }
    // What it lacks nobody has, whether it restarts or not.
    world.load(commands, 3_000).await;
    assert_eq!(world.height(3), stopped_at, "nobody can give it what comes next");
    let final_height = world.committee.handle(3).unwrap().status().finalized_height;
    assert!(final_height > stopped_at, "it sees that it is behind");
    world.crash(3).await;

    // Its consumer learns the effects from elsewhere; the engine starts at a batch among them.
    let read = world.places[1].ledger.0.lock().unwrap().clone();
    let executed_ms = read.last_key_value().unwrap().1.time_ms;
    let bytes = world.committee.handle(0).unwrap().anchor_at(executed_ms).await.expect("it has such a batch");
    let floor = world.committee.verify(&bytes, MEMBERS, false).unwrap();
    assert!(floor.time_ms() <= executed_ms && floor.height() > keep, "{floor:?}");
    refuses_what_is_changed(world, &bytes);
    let early = world.committee.handle(0).unwrap().anchor_at(read[&(stopped_at + 1)].time_ms).await;
    assert!(early.is_none(), "there is no batch as early as that");
    *world.places[3].ledger.0.lock().unwrap() = read;
    world.floor = Some(floor);
    world.injected.one("member starts above a gap");
    world.start(3).await;
    world.load(commands, 2_000).await;

    // It votes: without 0 nothing is ordered but with it.
    world.crash(0).await;
    let before = world.height(1);
    world.load(commands, 4_000).await;
    assert!(world.height(1) > before + 2 && world.height(3) > before + 2, "the member that came back is needed");
    world.start(0).await;
    // A restart goes on from the storage alone.
    world.crash(3).await;
    world.load(commands, 300).await;
    world.start(3).await;
    world.load(commands, 1_000).await;
}

/// No byte of an anchor can be another, and no other committee takes it.
fn refuses_what_is_changed(world: &World, bytes: &[u8]) {
    let verify = |bytes: &[u8]| world.committee.verify(bytes, MEMBERS, false);
    for at in 0..bytes.len() {
        let mut changed = bytes.to_vec();
        changed[at] ^= 1;
        assert!(verify(&changed).is_err(), "byte {at} may be changed");
        assert!(verify(&bytes[..at]).is_err(), "it may be cut at {at}");
    }
    let error = world.committee.verify(bytes, MEMBERS, true).unwrap_err();
    assert!(matches!(error, AnchorError::NotCertified { .. }), "{error}");
    assert!(world.committee.verify(bytes, MEMBERS - 1, false).is_err());
}
