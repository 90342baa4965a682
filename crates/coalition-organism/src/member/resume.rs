//! Starting an organism on what its directory holds: the newest state that its own certified log confirms, and the entries
//! after it. A state that is not what was certified is named, set aside, and the one before it or the whole log is used.

use coalition_log::{
    Entry,
    store::{Store, StoreError},
};

use crate::{error::describe, execution::Execution, member::MemberError};

/// Entries read at once while folding a log at start, in bytes.
const FOLD_BYTES: usize = 4 << 20;

/// Brings an execution in the state of an empty log to the log's end.
pub(super) fn resume(name: &str, execution: &mut Execution, store: &Store) -> Result<(), MemberError> {
    let failed = |source| MemberError::Store { organism: name.to_owned(), source: Box::new(source) };
    restore_newest(name, execution, store).map_err(failed)?;
    if let Some(pruned) = store.pruned().filter(|pruned| execution.next_index() < pruned.below) {
        return Err(MemberError::StateLost { organism: name.to_owned(), below: pruned.below });
    }
    while execution.next_index() < store.size() {
        for bytes in store.entries(execution.next_index()..store.size(), FOLD_BYTES).map_err(failed)? {
            let index = execution.next_index();
            let entry = Entry::decode(&bytes).map_err(|source| failed(StoreError::Entry { index, source }))?;
            execution.restore(&entry);
        }
    }
    Ok(())
}

fn restore_newest(name: &str, execution: &mut Execution, store: &Store) -> Result<(), StoreError> {
    let states = store.states();
    for covers in states.list()?.into_iter().filter(|covers| store.confirms_state(*covers)) {
        let certifies = store.entry(covers)?;
        let reason = match states.read(covers) {
            Ok(bytes) => match execution.resume(&certifies, &bytes) {
                Ok(()) => return Ok(()),
                Err(error) => describe(&error),
            },
            Err(error) => describe(&error),
        };
        let aside = states.set_aside(covers)?;
        let file = aside.display();
        tracing::error!(organism = name, covers, %reason, %file, "a state is not what was certified; it was set aside");
    }
    Ok(())
}
