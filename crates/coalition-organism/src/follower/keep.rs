//! A reader's own file: the fold, where it stands in the tree, and the head it last accepted.
//!
//! Bytes, integers big endian: `434c4f47464f4c01 ‖ organism(32) ‖ u32 length ‖ head as a signed note ‖ u64 size ‖ u8 peaks ‖ peaks, 32
//! each ‖ u8 ending (0 none, 1 announced, 2 over) ‖ u32 length ‖ marker ‖ u64 length ‖ fold ‖ SHA-256 of all that`. When the
//! announcement brought a successor's config the ending is 3 or 4, and `u32 length ‖ successor` follow the marker. After a handover
//! of the roster the first eight bytes end in 02, and `u32 length ‖ the proofs of all handovers as text` follow the organism.

use std::{
    io,
    path::{Path, PathBuf},
};

use coalition::UniqueId;
use coalition_log::{
    SnapshotError,
    follow::Saved,
    handover::{proofs_from_text, proofs_to_text},
    retirement::Retirement,
    store::{StoreError, replace_durably},
    successor::Successor,
    tree::{Frontier, Hash, sha256},
};

use super::Ending;

const MAGIC: &[u8; 8] = b"CLOGFOL\x01";
const MAGIC_AFTER_HANDOVERS: &[u8; 8] = b"CLOGFOL\x02";
/// Longest file read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// Where a fold is kept, and how it is written and read.
pub(super) struct Keep<F> {
    path: PathBuf,
    save: fn(&F) -> Vec<u8>,
    load: fn(&mut F, &[u8]) -> Result<(), SnapshotError>,
}

impl<F> Clone for Keep<F> {
    fn clone(&self) -> Self {
        Self { path: self.path.clone(), save: self.save, load: self.load }
    }
}

/// What a file holds beside the fold itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) organism: UniqueId,
    pub(super) saved: Saved,
    pub(super) ending: Ending,
}

/// Why a kept file is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is damaged.
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: &'static str },
    /// The fold does not take it.
    #[error("{} holds another fold", path.display())]
    Fold {
        path: PathBuf,
        #[source]
        source: SnapshotError,
    },
    /// It cannot be renamed.
    #[error("cannot set {} aside", path.display())]
    SetAside {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl<F> Keep<F> {
    pub(super) const fn new(
        path: PathBuf,
        save: fn(&F) -> Vec<u8>,
        load: fn(&mut F, &[u8]) -> Result<(), SnapshotError>,
    ) -> Self {
        Self { path, save, load }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is kept, and the fold's bytes for [`Keep::load`]; `None` when nothing is.
    pub(super) fn read(&self) -> Result<Option<(Kept, Vec<u8>)>, KeepError> {
        let path = || self.path.clone();
        let unreadable = |source| KeepError::Read { path: path(), source };
        let bytes = match std::fs::metadata(&self.path).map(|file| file.len()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
            Ok(length) if length > MAX_FILE_BYTES => {
                return Err(KeepError::Damaged { path: path(), what: "it is too long" });
            }
            Ok(_) => std::fs::read(&self.path).map_err(unreadable)?,
        };
        let (kept, fold) = decode(&bytes).map_err(|what| KeepError::Damaged { path: path(), what })?;
        Ok(Some((kept, fold.to_vec())))
    }

    /// Puts what was kept into `fold`, which is unchanged after an error.
    pub(super) fn load(&self, fold: &mut F, kept: &[u8]) -> Result<(), KeepError> {
        (self.load)(fold, kept).map_err(|source| KeepError::Fold { path: self.path.clone(), source })
    }

    /// Replaces what is kept.
    pub(super) fn write(&self, kept: &Kept, fold: &F) -> Result<(), StoreError> {
        replace_durably(&self.path, &encode(kept, &(self.save)(fold)))
    }

    /// Renames a file that is no use.
    pub(super) fn set_aside(&self) -> Result<PathBuf, KeepError> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".damaged");
        let aside = self.path.with_file_name(name);
        std::fs::rename(&self.path, &aside)
            .map_err(|source| KeepError::SetAside { path: self.path.clone(), source })?;
        Ok(aside)
    }
}

fn encode(kept: &Kept, fold: &[u8]) -> Vec<u8> {
    let Kept { organism, saved, ending } = kept;
    let head = saved.head.as_deref().unwrap_or_default();
    let marker = ending.announced.as_ref().map(Retirement::to_bytes).unwrap_or_default();
    let next = ending.announced.as_ref().and_then(Retirement::config);
    let length = |bytes: usize| u32::try_from(bytes).expect("notes, markers and proofs are bounded").to_be_bytes();
    let mut out = Vec::with_capacity(256 + head.len() + marker.len() + fold.len());
    out.extend_from_slice(if saved.handovers.is_empty() { MAGIC } else { MAGIC_AFTER_HANDOVERS });
    out.extend_from_slice(organism.as_bytes());
    if !saved.handovers.is_empty() {
        let proofs = proofs_to_text(&saved.handovers);
        out.extend_from_slice(&length(proofs.len()));
        out.extend_from_slice(proofs.as_bytes());
    }
    out.extend_from_slice(&length(head.len()));
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(&saved.frontier.size().to_be_bytes());
    out.push(u8::try_from(saved.frontier.peaks().len()).expect("a tree has at most 64 peaks"));
    saved.frontier.peaks().iter().for_each(|peak| out.extend_from_slice(&peak.0));
    let stage = if ending.is_over { 2 } else { u8::from(ending.announced.is_some()) };
    out.push(if next.is_some() { stage + 2 } else { stage });
    out.extend_from_slice(&length(marker.len()));
    out.extend_from_slice(marker);
    if let Some(next) = next.map(Successor::to_bytes) {
        out.extend_from_slice(&length(next.len()));
        out.extend_from_slice(&next);
    }
    out.extend_from_slice(&(fold.len() as u64).to_be_bytes());
    out.extend_from_slice(fold);
    out.extend_from_slice(&sha256(&out).0);
    out
}

fn decode(bytes: &[u8]) -> Result<(Kept, &[u8]), &'static str> {
    let (content, digest) = bytes.split_last_chunk::<32>().ok_or("it is cut short")?;
    if sha256(content).0 != *digest {
        return Err("its digest is not that of its content");
    }
    let mut rest = content;
    let cut = "it ends early";
    let mut take = |length: usize| {
        let (taken, after) = rest.split_at_checked(length).ok_or(cut)?;
        rest = after;
        Ok::<_, &'static str>(taken)
    };
    let magic = take(8)?;
    if magic != MAGIC && magic != MAGIC_AFTER_HANDOVERS {
        return Err("it does not start as a reader's file of this version");
    }
    let organism = UniqueId::from_bytes(take(32)?.try_into().map_err(|_| cut)?);
    let mut handovers = Vec::new();
    if magic == MAGIC_AFTER_HANDOVERS {
        let length = u32::from_be_bytes(take(4)?.try_into().map_err(|_| cut)?) as usize;
        let proofs = std::str::from_utf8(take(length)?).ok().and_then(|text| proofs_from_text(text).ok());
        handovers = proofs.filter(|proofs| !proofs.is_empty()).ok_or("its handovers are none")?;
    }
    let length = u32::from_be_bytes(take(4)?.try_into().map_err(|_| cut)?) as usize;
    let head = std::str::from_utf8(take(length)?).map_err(|_| "its head is no text")?;
    let size = u64::from_be_bytes(take(8)?.try_into().map_err(|_| cut)?);
    let count = usize::from(take(1)?[0]);
    let (peaks, _) = take(32 * count)?.as_chunks::<32>();
    let frontier = Frontier::from_peaks(size, peaks.iter().map(|peak| Hash(*peak)).collect());
    let frontier = frontier.ok_or("its tree has not one peak for each set bit of its size")?;
    let stage = take(1)?[0];
    let length = u32::from_be_bytes(take(4)?.try_into().map_err(|_| cut)?) as usize;
    let mut announced = Retirement::from_bytes(take(length)?);
    if stage > 4 || (stage > 0) != announced.is_some() || (stage == 0) != (length == 0) {
        return Err("its retirement is none");
    }
    if stage > 2 {
        let length = u32::from_be_bytes(take(4)?.try_into().map_err(|_| cut)?) as usize;
        let next = Successor::from_bytes(take(length)?).map_err(|_| "its successor's config is none")?;
        announced = announced.map(|announced| announced.with_config(Some(next)));
    }
    let length = u64::from_be_bytes(take(8)?.try_into().map_err(|_| cut)?);
    let fold = take(usize::try_from(length).unwrap_or(usize::MAX))?;
    if !rest.is_empty() {
        return Err("bytes follow its end");
    }
    let head = (!head.is_empty()).then(|| head.to_owned());
    let saved = Saved { frontier, head, handovers };
    Ok((Kept { organism, saved, ending: Ending { announced, is_over: stage == 2 || stage == 4 } }, fold))
}

#[cfg(test)]
mod tests {
    use coalition::{PublishedConfig, RetirementInstant, RetirementMarker};
    use coalition_log::handover::HandoverProof;
    use proptest::prelude::*;

    use super::*;

    fn kept() -> Kept {
        let frontier = Frontier::from_peaks(5, vec![Hash([1; 32]), Hash([2; 32])]).unwrap();
        let saved = Saved { frontier, head: Some("a head".into()), handovers: Vec::new() };
        Kept { organism: UniqueId::from_bytes([7; 32]), saved, ending: Ending::default() }
    }

    fn kept_after_a_handover() -> Kept {
        let proof = HandoverProof { entry: vec![3, 4], path: vec![Hash([5; 32])], checkpoint: "a note".into() };
        let kept = kept();
        Kept { saved: Saved { handovers: vec![proof], ..kept.saved }, ..kept }
    }

    #[test]
    fn the_file_after_a_handover_is_pinned() {
        let bytes = encode(&kept_after_a_handover(), b"fold");
        let (plain, at) = (encode(&kept(), b"fold"), 8 + 32);
        let text = "coalition-handovers/v1\nhandovers 1\nhandover AwQ=\npath 1\n\
                    BQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU=\ncheckpoint YSBub3Rl\n";
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        let expected = [b"CLOGFOL\x02", &[7; 32][..], &length, text.as_bytes(), &plain[at..plain.len() - 32]].concat();
        assert_eq!(bytes[..bytes.len() - 32], expected);
        assert_eq!(decode(&bytes).unwrap(), (kept_after_a_handover(), &b"fold"[..]));
        // Without handovers there is one form only, too.
        let none = "coalition-handovers/v1\nhandovers 0\n";
        let length = u32::try_from(none.len()).unwrap().to_be_bytes();
        let mut none = [b"CLOGFOL\x02", &[7; 32][..], &length, none.as_bytes(), &plain[at..plain.len() - 32]].concat();
        none.extend_from_slice(&sha256(&none).0);
        assert_eq!(decode(&none), Err("its handovers are none"));
    }

    #[test]
    fn the_file_with_a_successors_config_is_pinned() {
        let marker = RetirementMarker::retired(RetirementInstant::AtSequence(4)).to_bytes();
        let next = Successor::new(PublishedConfig::builder("next").build().unwrap(), vec![]).unwrap();
        let announced = Retirement::from_bytes(&marker).unwrap().with_config(Some(next.clone()));
        for (is_over, stage) in [(false, 3), (true, 4)] {
            let kept = Kept { ending: Ending { announced: Some(announced.clone()), is_over }, ..kept() };
            let (bytes, plain) = (encode(&kept, b"fold"), encode(&self::kept(), b"fold"));
            let at = plain.len() - 32 - 4 - 8 - 4 - 1;
            let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_be_bytes();
            let successor = next.to_bytes();
            let ending = [&[stage][..], &length(&marker), &marker, &length(&successor), &successor].concat();
            let expected = [&plain[..at], &ending, &[0, 0, 0, 0, 0, 0, 0, 4], b"fold"].concat();
            assert_eq!(bytes[..bytes.len() - 32], expected);
            assert_eq!(decode(&bytes).unwrap(), (kept, &b"fold"[..]));
        }
    }

    #[test]
    fn the_file_is_pinned() {
        let bytes = encode(&kept(), b"fold");
        let expected = [
            &b"CLOGFOL\x01"[..],
            &[7; 32],
            &[0, 0, 0, 6],
            b"a head",
            &[0, 0, 0, 0, 0, 0, 0, 5, 2],
            &[1; 32],
            &[2; 32],
            &[0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0, 4],
            b"fold",
        ]
        .concat();
        assert_eq!(bytes[..bytes.len() - 32], expected);
        assert_eq!(bytes[bytes.len() - 32..], sha256(&expected).0);
        assert_eq!(decode(&bytes).unwrap(), (kept(), &b"fold"[..]));
    }

    proptest! {
        #[test]
        fn no_changed_byte_is_accepted(at in 0usize..172, flip in 1u8..=255) {
            let mut bytes = encode(&kept(), b"fold");
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn hostile_bytes_are_refused_even_with_a_digest(content in prop::collection::vec(any::<u8>(), 0..200)) {
            for magic in [MAGIC, MAGIC_AFTER_HANDOVERS] {
                let mut bytes = [magic.as_slice(), &content].concat();
                let digest = sha256(&bytes);
                bytes.extend_from_slice(&digest.0);
                if let Ok((kept, fold)) = decode(&bytes) {
                    prop_assert_eq!(encode(&kept, fold), bytes);
                }
            }
        }
    }
}
