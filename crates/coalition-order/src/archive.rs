//! Ordered batches that were changed since they were written: how that is told, and the way back.
//!
//! What a member keeps of past batches and their certificates, any other member has as well, so damage there costs only
//! time: the member drops all of it and fetches it again, and every batch is delivered again. Its own votes, nobody else
//! has; damage there ends its seat, because it might vote twice.
//!
//! It is the operator who says that it shall be dropped, by creating a file: a version of this program that could not read
//! what an earlier one wrote would otherwise empty a whole committee.

use std::path::{Path, PathBuf};

use commonware_runtime::{Blob as _, Error, Storage as _};

use crate::error::OrderError;
use crate::journal::JournaledStorage;

/// The file in a storage directory that asks for the archive to be dropped.
const MARK: &str = "rebuild";
/// What is dropped: all but the votes.
const DROPPED: [&str; 3] = ["batches-", "certificates-", "marshal-"];
/// How the engine's words begin when it cannot read its archive.
const OF_ARCHIVE: [&str; 6] = [
    "the archive of ",
    "failed to get ",
    "failed to check ",
    "failed to initialize ",
    "finalization missing",
    "gapped block missing",
];
/// How they begin when it cannot read its votes.
const OF_VOTES: [&str; 2] = ["unable to open journal", "unable to replay journal"];

/// What a panic of the engine means.
pub(crate) fn explain(panic: String, storage_dir: &Path) -> OrderError {
    let begins = |with: &[&str]| with.iter().any(|start| panic.starts_with(start));
    let path = storage_dir.join("journal");
    if begins(&OF_ARCHIVE) {
        OrderError::Archive { path, mark: mark(storage_dir), why: panic }
    } else if begins(&OF_VOTES) {
        OrderError::Votes { path, why: panic }
    } else {
        OrderError::Panicked(panic)
    }
}

fn mark(storage_dir: &Path) -> PathBuf {
    storage_dir.join(MARK)
}

/// Drops the archive if the operator has asked for it. Interrupted, it is done again.
pub(crate) async fn drop_if_asked(
    storage: &JournaledStorage,
    storage_dir: &Path,
    prefix: &str,
) -> Result<(), OrderError> {
    let mark = mark(storage_dir);
    let unusable = |source: std::io::Error| OrderError::Storage { path: mark.clone(), source: source.into() };
    if !mark.try_exists().map_err(unusable)? {
        return Ok(());
    }
    let is_dropped = |partition: &str| {
        let name = partition.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
        name.is_some_and(|name| DROPPED.iter().any(|start| name.starts_with(start)))
    };
    let dropped = drop_partitions(storage, is_dropped).await;
    let dropped = dropped.map_err(|error| unusable(std::io::Error::other(error)))?;
    std::fs::remove_file(&mark).map_err(unusable)?;
    tracing::warn!(partitions = dropped, "dropped the stored batches as asked; fetching them from the other members");
    Ok(())
}

async fn drop_partitions(storage: &JournaledStorage, is_dropped: impl Fn(&str) -> bool) -> Result<usize, Error> {
    let mut partitions = storage.partitions();
    partitions.retain(|partition| is_dropped(partition));
    for partition in &partitions {
        storage.remove(partition, None).await?;
    }
    // Changes become durable in their order: when this one is, the removals are.
    let (blob, _) = storage.open(MARK, MARK.as_bytes()).await?;
    blob.sync().await?;
    drop(blob);
    storage.remove(MARK, None).await?;
    Ok(partitions.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_told_apart() {
        let explained = |panic: &str| explain(panic.into(), Path::new("/s"));
        let damaged = explained("failed to get block: journal error: checksum mismatch: expected=1, found=2");
        assert!(matches!(damaged, OrderError::Archive { .. }), "{damaged}");
        assert!(damaged.to_string().contains("create the file /s/rebuild"), "{damaged}");
        let votes = explained("unable to open journal: Corruption");
        assert!(matches!(votes, OrderError::Votes { .. }), "{votes}");
        assert!(matches!(explained("index out of bounds"), OrderError::Panicked(_)));
    }
}
