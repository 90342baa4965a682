//! Starting from a certified state: what it takes to believe one, and to fetch it.

use std::sync::{Arc, PoisonError, RwLock};

use coalition::UniqueId;
use coalition_log::{
    Entry, FromState, SnapshotError,
    checkpoint::SignedCheckpoint,
    follow::{FollowError, Follower as Core, StateOffer, StateStart},
    state::{HostState, StateError, StateRecord},
    tree::Hash,
};
use coalition_universe::CallError;

use super::Ending;
use crate::{
    client::{CALL_TIMEOUT, Shared},
    error::describe,
    wire::{self, MAX_RANGE_BYTES, NO_STATE, StateAnswer, StatePartRequest, StateRequest, method},
};

/// Puts the machine's part of a state into a fold.
pub(super) type StartFrom<F> = fn(&mut F, &[u8]) -> Result<(), SnapshotError>;

pub(super) fn start_from<F: FromState>(fold: &mut F, machine: &[u8]) -> Result<(), SnapshotError> {
    fold.start_from(machine)
}

/// Takes the handovers that lead to who certified a head, the head, and what is offered as a state under it.
pub(crate) fn accept(core: &mut Core, answer: &StateAnswer) -> Result<StateStart, FollowError> {
    let note = SignedCheckpoint::parse(answer.head.as_bytes()).map_err(FollowError::SavedNote)?;
    core.accept_handovers(&answer.handovers)?;
    core.accept_head(&note, &answer.head_proof)?;
    let StateAnswer { entry, path, peaks, proof, .. } = answer;
    core.accept_state(&StateOffer { entry, path, peaks, proof })
}

/// Hands the machine's part of a state to a fold, after checking that these are the bytes certified, and that they speak of the
/// handovers `proven`. Answers whether the log is about to end.
pub(crate) fn install(
    organism: UniqueId,
    record: &StateRecord,
    proven: &[Hash],
    bytes: &[u8],
    start_from: impl FnOnce(&[u8]) -> Result<(), SnapshotError>,
) -> Result<Ending, StateError> {
    record.check(bytes)?;
    let state = HostState::from_bytes(bytes, organism, record.covers)?;
    state.check_handovers(proven)?;
    let entries: Vec<Entry> = state.decode_host_entries()?;
    start_from(&state.machine)?;
    let mut ending = Ending::default();
    ending.note(&entries);
    Ok(ending)
}

/// Why no state came of asking one member.
pub(super) enum NoState {
    /// It keeps none.
    None,
    /// It failed or lied; this says how.
    Failed(Box<Failure>),
}

/// How a member failed.
pub(super) enum Failure {
    Called(CallError),
    Refused(FollowError),
    Answered(String),
}

impl From<Failure> for NoState {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

/// Asks one member for its newest state and takes it. The reader is where it was unless all of it succeeds.
pub(super) async fn take<F: Send + Sync + 'static>(
    shared: &Shared,
    position: usize,
    core: &mut Core,
    fold: &Arc<RwLock<F>>,
    start_from: StartFrom<F>,
) -> Result<Ending, NoState> {
    let (organism, head_size, next) = (shared.id, core.head_size(), core.next_index());
    let request = StateRequest { organism, head_size, next, epoch: core.chain().epoch() };
    let answer = call(shared, position, method::STATE, wire::encode(&request)).await?;
    let answer: StateAnswer = wire::decode(&answer).map_err(|error| Failure::Answered(error.to_string()))?;
    let start = accept(core, &answer).map_err(Failure::Refused)?;
    shared.learn(&answer.handovers).map_err(Failure::Answered)?;
    let bytes = fetch(shared, position, start.record()).await?;
    let (fold, taken) = (Arc::clone(fold), start.clone());
    let installing = move || {
        let into = |machine: &[u8]| start_from(&mut fold.write().unwrap_or_else(PoisonError::into_inner), machine);
        install(organism, taken.record(), taken.handovers(), &bytes, into)
    };
    let installed = tokio::task::spawn_blocking(installing).await;
    let installed = installed.map_err(|_| Failure::Answered("the fold panicked at a state".into()))?;
    let ending = installed.map_err(|error| Failure::Answered(describe(&error)))?;
    core.start_from(start);
    Ok(ending)
}

/// The bytes of a state, part by part, as many as certified. Every part but the last is whole, so that a member cannot
/// hold a reader up with crumbs.
async fn fetch(shared: &Shared, position: usize, record: &StateRecord) -> Result<Vec<u8>, NoState> {
    let mut bytes: Vec<u8> = Vec::new();
    while (bytes.len() as u64) < record.length {
        let offset = bytes.len() as u64;
        let request = wire::encode(&StatePartRequest { organism: shared.id, covers: record.covers, offset });
        let part = match call(shared, position, method::STATE_PART, request).await {
            Err(NoState::None) => Err(Failure::Answered("it has dropped the state it offered".into()))?,
            other => other?,
        };
        let expected = (record.length - offset).min(MAX_RANGE_BYTES as u64);
        if part.len() as u64 != expected {
            let reason = format!("{} bytes of its state at {offset}, expected {expected}", part.len());
            return Err(Failure::Answered(reason).into());
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

async fn call(shared: &Shared, position: usize, method: &str, body: Vec<u8>) -> Result<Vec<u8>, NoState> {
    match shared.call(position, method, body, CALL_TIMEOUT).await {
        Ok(bytes) => Ok(bytes),
        Err(CallError::Refused(fault)) if fault.code == NO_STATE => Err(NoState::None),
        Err(error) => Err(Failure::Called(error).into()),
    }
}
