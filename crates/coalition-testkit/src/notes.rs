//! The simplest service: a log of notes.

use coalition::codec;
use coalition_log::{Context, Draft, Entry, Machine, Refusal, SnapshotError, state::MAX_STATE_BYTES};
use coalition_organism::{Fold, FoldFault, FromState, Persist};

/// Keeps what it is told, in order, as a machine and as a reader's fold. Refuses nothing, so that whatever is sent twice is there
/// twice.
#[derive(Default)]
pub struct Notes(pub Vec<Vec<u8>>);

impl Machine for Notes {
    fn decide(&self, _: &Context, command: &[u8]) -> Result<Vec<Draft>, Refusal> {
        Ok(vec![Draft::new("note", command.to_vec())])
    }

    fn round(&self, _: &Context) -> Option<Vec<Draft>> {
        None
    }

    fn evolve(&mut self, entry: &Entry) {
        self.0.push(entry.body.clone());
    }

    fn wake_at_ms(&self, _: &Context) -> Option<u64> {
        None
    }

    fn snapshot(&self) -> Vec<u8> {
        codec::encode(&self.0)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        self.0 = codec::decode(snapshot, MAX_STATE_BYTES)?;
        Ok(())
    }
}

impl Fold for Notes {
    fn fold(&mut self, entry: &Entry) -> Result<(), FoldFault> {
        self.evolve(entry);
        Ok(())
    }
}

impl FromState for Notes {
    fn start_from(&mut self, machine: &[u8]) -> Result<(), SnapshotError> {
        self.restore(machine)
    }
}

impl Persist for Notes {
    fn save(&self) -> Vec<u8> {
        self.snapshot()
    }

    fn load(&mut self, saved: &[u8]) -> Result<(), SnapshotError> {
        self.restore(saved)
    }
}
