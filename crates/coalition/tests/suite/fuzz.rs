//! Outside bytes never panic, and what is accepted is canonical.

use coalition::{CommitteeContent, PublishedConfig, RetirementMarker, UniqueId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::model::{any_published, committee, dev_config};

/// Puts a right frame and checksum around fields, so that the parser behind them is reached.
fn framed(fields: &[u8]) -> Vec<u8> {
    let mut bytes = b"COAL\x01".to_vec();
    bytes.extend(u32::try_from(fields.len()).unwrap().to_be_bytes());
    bytes.extend(fields);
    let checksum = UniqueId::hash(&bytes);
    bytes.extend(checksum.as_bytes());
    bytes
}

fn fields(config: &PublishedConfig) -> Vec<u8> {
    let bytes = config.to_bytes();
    bytes[9..bytes.len() - 32].to_vec()
}

/// Accepted bytes are the one encoding of what they decode to, and that is verified.
fn accepted_is_canonical(bytes: &[u8]) -> Option<PublishedConfig> {
    let config = PublishedConfig::from_bytes(bytes).ok()?;
    assert_eq!(config.to_bytes(), bytes);
    assert_eq!(config.verify(), Ok(()));
    Some(config)
}

#[derive(Debug, Clone)]
enum Edit {
    Set(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Truncate(Index),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(i, b)| Edit::Set(i, b)),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(i, b)| Edit::Insert(i, b)),
        1 => any::<Index>().prop_map(Edit::Remove),
        1 => any::<Index>().prop_map(Edit::Truncate),
    ];
    vec(edit, 1..4)
}

fn apply(bytes: &mut Vec<u8>, edits: &[Edit]) {
    for edit in edits {
        if bytes.is_empty() {
            return;
        }
        match edit {
            Edit::Set(i, b) => {
                let at = i.index(bytes.len());
                bytes[at] = *b;
            }
            Edit::Insert(i, b) => bytes.insert(i.index(bytes.len()), *b),
            Edit::Remove(i) => {
                bytes.remove(i.index(bytes.len()));
            }
            Edit::Truncate(i) => bytes.truncate(i.index(bytes.len())),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_text_is_no_config(text in ".{0,200}") {
        prop_assert!(PublishedConfig::from_hex(&text).is_err());
        prop_assert!(PublishedConfig::from_toml(&text).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_no_config(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert!(PublishedConfig::from_bytes(&bytes).is_err());
        prop_assert!(PublishedConfig::from_hex(&hex::encode(&bytes)).is_err());
        accepted_is_canonical(&framed(&bytes));
    }

    /// The checksum is made right again, so only the parser and the recomputed ids stand in the way.
    #[test]
    fn edited_fields_under_a_right_checksum(edits in edits()) {
        let original = dev_config();
        let mut edited = fields(&original);
        apply(&mut edited, &edits);
        if let Some(accepted) = accepted_is_canonical(&framed(&edited)) {
            prop_assert_eq!(accepted == original, edited == fields(&original));
        }
    }

    #[test]
    fn edited_toml_is_refused_or_consistent(edits in edits()) {
        let original = dev_config();
        let mut edited = original.to_toml().into_bytes();
        apply(&mut edited, &edits);
        if let Ok(config) = PublishedConfig::from_toml(&String::from_utf8_lossy(&edited)) {
            prop_assert_eq!(config.verify(), Ok(()));
            prop_assert_eq!(PublishedConfig::from_toml(&config.to_toml()), Ok(config));
        }
    }

    #[test]
    fn committee_content_is_canonical(edits in edits(), noise in vec(any::<u8>(), 0..80)) {
        let mut bytes = committee("service.v1", 3).to_bytes();
        apply(&mut bytes, &edits);
        for bytes in [bytes, noise.clone(), [b"CCOM\x01", noise.as_slice()].concat()] {
            if let Ok(content) = CommitteeContent::from_bytes(&bytes) {
                prop_assert_eq!(content.to_bytes(), bytes);
                prop_assert_eq!(content.validate(), Ok(()));
            }
        }
    }

    #[test]
    fn retirement_markers_are_canonical(noise in vec(0u8..6, 0..120)) {
        for bytes in [noise.clone(), [b"CRTM\x01", noise.as_slice()].concat()] {
            if let Ok(marker) = RetirementMarker::from_bytes(&bytes) {
                prop_assert_eq!(marker.to_bytes(), bytes);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_edit_of_the_binary_form_is_refused(config in any_published(), edits in edits()) {
        let original = config.to_bytes();
        let mut edited = original.clone();
        apply(&mut edited, &edits);
        prop_assert_eq!(PublishedConfig::from_bytes(&edited).is_ok(), edited == original);
    }
}

/// A count or length far beyond the input costs nothing.
#[test]
fn announced_sizes_are_not_believed() {
    let mut bytes = fields(&PublishedConfig::builder("c").build().unwrap());
    let lattices = 1 + 32 + 2 + 1;
    bytes[lattices..lattices + 2].copy_from_slice(&[0xff, 0xff]);
    assert!(PublishedConfig::from_bytes(&framed(&bytes)).is_err());
    assert!(PublishedConfig::from_bytes(b"COAL\x01\xff\xff\xff\xff").is_err());
}
