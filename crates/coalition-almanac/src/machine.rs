//! The Almanac's state machine: ticks at the cadence, readings folded into them. Pure.

use coalition::UniqueId;
use coalition::codec;
use coalition_log::{Context, Draft, Entry, Machine, Refusal, SnapshotError};
use serde::{Deserialize, Serialize};

use crate::config::AlmanacParams;
use crate::types::{AlmanacCommand, AlmanacTickBody, MAX_MEMBERS, OBSERVATION_KIND, Observation, TICK_KIND};

/// How many readings one member may log between two ticks; the newest counts. Bounds what a member can add to the log.
pub const MAX_OBSERVATIONS_PER_TICK: u8 = 4;

/// How a reading's `member_index` is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observers {
    /// The host authenticates the sender before ordering; the machine checks only that the index exists.
    Authenticated {
        /// Number of roster members.
        members: usize,
    },
    /// Each reading must be signed by the key at its index (roster order). Holds against a member that lies about others.
    Keys(Vec<[u8; 32]>),
}

impl Observers {
    fn len(&self) -> usize {
        match self {
            Self::Authenticated { members } => *members,
            Self::Keys(keys) => keys.len(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct MemberClock {
    /// Newest reading ever logged: later ones must be larger, so an old signed reading cannot be played again.
    newest_ms: Option<u64>,
    /// Newest reading since the last tick.
    pending_ms: Option<u64>,
    /// Readings logged since the last tick.
    count: u8,
}

/// The state machine a committee runs for its Almanac. Its state is the fold of its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlmanacMachine {
    params: AlmanacParams,
    organism: UniqueId,
    observers: Observers,
    clocks: Vec<MemberClock>,
    last: Option<LastTick>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastTick {
    pub(crate) seq: u64,
    pub(crate) time_ms: u64,
}

/// What a snapshot holds.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    clocks: Vec<MemberClock>,
    last: Option<LastTick>,
}

/// Longest snapshot, in bytes: at most 25 for each member.
const MAX_SNAPSHOT_BYTES: usize = 32 * (MAX_MEMBERS + 1);

impl Snapshot {
    fn read(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let snapshot: Self = codec::decode(bytes, MAX_SNAPSHOT_BYTES)?;
        let is_possible = |clock: &MemberClock| {
            (clock.count == 0) == clock.pending_ms.is_none()
                && (clock.pending_ms.is_none() || clock.pending_ms == clock.newest_ms)
        };
        if let Some(member) = snapshot.clocks.iter().position(|clock| !is_possible(clock)) {
            return Err(SnapshotError::Contradiction(format!("the readings of member {member} contradict each other")));
        }
        Ok(snapshot)
    }
}

/// The last tick that a machine's snapshot knows, for readers that start from it.
pub(crate) fn last_tick(snapshot: &[u8]) -> Result<Option<LastTick>, SnapshotError> {
    Snapshot::read(snapshot).map(|snapshot| snapshot.last)
}

impl AlmanacMachine {
    /// An Almanac with an empty log.
    #[must_use]
    pub fn new(params: AlmanacParams, organism: UniqueId, observers: Observers) -> Self {
        let clocks = vec![MemberClock::default(); observers.len()];
        Self { params, organism, observers, clocks, last: None }
    }

    /// Sequence number of the last tick, 0 before the first.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.last.map_or(0, |last| last.seq)
    }

    /// Committee time at which the next tick is due; `None` before the first tick, which is due at once.
    fn due_ms(&self) -> Option<u64> {
        let cadence = u64::from(self.params.cadence_ms());
        self.last.map(|last| (last.time_ms / cadence).saturating_add(1).saturating_mul(cadence))
    }

    fn observe(&self, observation: &Observation) -> Result<Vec<Draft>, Refusal> {
        let index = usize::from(observation.member_index);
        let Some(clock) = self.clocks.get(index) else {
            return Err(refuse(
                "unknown_member",
                format!("member index {index} is not in the roster of {} members", self.clocks.len()),
            ));
        };
        if let Observers::Keys(keys) = &self.observers
            && !keys.get(index).is_some_and(|key| observation.is_signed_by(key, &self.organism))
        {
            return Err(refuse(
                "bad_signature",
                format!("the reading of member {index} is not signed by that member's key for this organism"),
            ));
        }
        if let Some(newest) = clock.newest_ms
            && observation.time_ms <= newest
        {
            return Err(refuse(
                "not_newer",
                format!(
                    "reading {} is not after the last one logged, {newest}; send the current time",
                    observation.time_ms
                ),
            ));
        }
        if clock.count >= MAX_OBSERVATIONS_PER_TICK {
            return Err(refuse(
                "too_many_observations",
                format!(
                    "member {index} already has {} readings since the last tick; wait for the next tick",
                    clock.count
                ),
            ));
        }
        Ok(vec![Draft { kind: OBSERVATION_KIND, body: observation.to_bytes(), evidence: Vec::new() }])
    }

    fn fold_observation(&mut self, observation: &Observation) {
        if let Some(clock) = self.clocks.get_mut(usize::from(observation.member_index)) {
            clock.newest_ms = Some(observation.time_ms);
            clock.pending_ms = Some(observation.time_ms);
            clock.count = clock.count.saturating_add(1);
        }
    }

    fn fold_tick(&mut self, seq: u64, time_ms: u64) {
        self.last = Some(LastTick { seq, time_ms });
        for clock in &mut self.clocks {
            clock.pending_ms = None;
            clock.count = 0;
        }
    }
}

impl Machine for AlmanacMachine {
    fn decide(&self, _cx: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
        match AlmanacCommand::from_bytes(command) {
            Ok(AlmanacCommand::Observe(observation)) => self.observe(&observation),
            Err(error) => Err(refuse("malformed", format!("not an Almanac command: {error}"))),
        }
    }

    fn round(&self, cx: &Context) -> Option<Vec<Draft>> {
        if self.due_ms().is_some_and(|due| cx.time_ms < due) {
            return None;
        }
        let timestamps = self.clocks.iter().map(|clock| clock.pending_ms).collect();
        // A sequence that reached u64::MAX could only stop: at the smallest cadence that is 5.8 billion years away.
        let body = AlmanacTickBody { seq: self.last_seq().checked_add(1)?, timestamps };
        Some(vec![Draft { kind: TICK_KIND, body: body.to_bytes(), evidence: Vec::new() }])
    }

    fn evolve(&mut self, entry: &Entry) {
        // Entries of other kinds are the host's (roster changes, retirement) and say nothing about the clock.
        if entry.kind == TICK_KIND {
            if let Ok(body) = AlmanacTickBody::from_bytes(&entry.body) {
                self.fold_tick(body.seq, entry.time_ms);
            }
        } else if entry.kind == OBSERVATION_KIND
            && let Ok(observation) = Observation::from_bytes(&entry.body)
        {
            self.fold_observation(&observation);
        }
    }

    fn wake_at_ms(&self, now: &Context) -> Option<u64> {
        Some(self.due_ms().unwrap_or(now.time_ms))
    }

    fn snapshot(&self) -> Vec<u8> {
        codec::encode(&Snapshot { clocks: self.clocks.clone(), last: self.last })
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        let Snapshot { clocks, last } = Snapshot::read(snapshot)?;
        if clocks.len() != self.observers.len() {
            let (found, members) = (clocks.len(), self.observers.len());
            return Err(SnapshotError::Contradiction(format!("readings of {found} members, the roster has {members}")));
        }
        (self.clocks, self.last) = (clocks, last);
        Ok(())
    }
}

fn refuse(code: &str, message: String) -> Refusal {
    Refusal { code: code.to_owned(), message }
}
