//! The first entry of a log that nothing has been written to yet.
//!
//! A quorum certifies trees that have entries. A reader of a market without providers would find nothing certified and
//! could not tell an empty market from a committee that does not answer; a provider that waits for the market before it
//! enters would wait for ever. So the committee itself commits one entry first: which coalition this log belongs to.

use coalition::UniqueId;
use coalition_log::{Context, Draft, Entry, Machine, Refusal};

/// Kind of the entry. Its body is the coalition's fingerprint, 32 bytes.
pub const GENESIS_KIND: &str = "coalition.genesis";

/// A machine whose log begins with the coalition's fingerprint, unless a command comes first.
pub(super) struct WithGenesis<M> {
    machine: M,
    fingerprint: UniqueId,
    is_empty: bool,
}

impl<M: Machine> WithGenesis<M> {
    /// Wraps a machine in the state of an empty log.
    pub(super) const fn new(machine: M, fingerprint: UniqueId) -> Self {
        Self { machine, fingerprint, is_empty: true }
    }
}

impl<M: Machine> Machine for WithGenesis<M> {
    fn decide(&self, cx: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
        self.machine.decide(cx, command)
    }

    fn round(&self, cx: &Context) -> Option<Vec<Draft>> {
        if self.is_empty {
            return Some(vec![Draft::new(GENESIS_KIND, self.fingerprint.as_bytes().to_vec())]);
        }
        self.machine.round(cx)
    }

    fn evolve(&mut self, entry: &Entry) {
        self.is_empty = false;
        self.machine.evolve(entry);
    }

    fn wake_at_ms(&self, now: &Context) -> Option<u64> {
        if self.is_empty { Some(now.time_ms) } else { self.machine.wake_at_ms(now) }
    }

    fn query(&self, query: &[u8]) -> Result<Vec<u8>, Refusal> {
        self.machine.query(query)
    }
}

#[cfg(test)]
mod tests {
    use coalition_compute::{ComputeMachine, ComputeParams};

    use super::*;

    #[test]
    fn the_first_entry_names_the_coalition_and_comes_once() {
        let fingerprint = UniqueId::hash(b"coalition");
        let market = ComputeMachine::new(UniqueId::hash(b"compute"), ComputeParams::standard(1_000)).unwrap();
        let mut machine = WithGenesis::new(market, fingerprint);
        let cx = Context { height: 1, time_ms: 1_000, tick: 1 };
        assert_eq!(machine.wake_at_ms(&cx), Some(1_000));
        let drafts = machine.round(&cx).unwrap();
        assert_eq!(
            (drafts.len(), drafts[0].kind, drafts[0].body.as_slice()),
            (1, GENESIS_KIND, &fingerprint.as_bytes()[..])
        );
        machine.evolve(&drafts[0].clone().into_entry(0, Some(1), 1_000));
        assert_eq!(machine.round(&cx), None);
        assert_ne!(machine.wake_at_ms(&cx), Some(1_000));
        // The market itself passes over entries that are not its own.
        assert!(machine.decide(&cx, b"nonsense").is_err());
    }
}
