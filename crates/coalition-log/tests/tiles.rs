//! C2SP tiles: read and verified by an outside client, damaged, served from memory.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "test code with small numbers")]

mod support;

use std::fs;
use std::path::PathBuf;

use coalition_log::store::{CHECKPOINT_FILE, StoreError, TileKind, encode_bundle, encode_hashes, tile_path};
use support::disk::{Log, SMALL};
use support::{Leaves, encoded, entry};

/// Reads tiles from a directory as any C2SP client would; knows nothing of our store.
struct Directory(PathBuf);

impl tlog_tiles::tile::TileReader for Directory {
    fn height(&self) -> u8 {
        8
    }

    fn read_tiles(&self, tiles: &[tlog_tiles::tile::Tile]) -> Result<Vec<Vec<u8>>, tlog_tiles::tlog::Error> {
        let path = |tile: &tlog_tiles::tile::Tile| self.0.join(tile.path().replacen("tile/8/", "tile/", 1));
        Ok(tiles.iter().map(|tile| fs::read(path(tile)).unwrap_or_else(|e| panic!("{}: {e}", tile.path()))).collect())
    }

    fn save_tiles(&self, _: &[tlog_tiles::tile::Tile], _: &[Vec<u8>]) {}
}

#[test]
fn tile_paths_are_those_of_c2sp() {
    let path = |kind, number, width| tile_path(kind, number, width).to_string_lossy().into_owned();
    assert_eq!(path(TileKind::Level(0), 1_234_067, 256), "tile/0/x001/x234/067");
    assert_eq!(path(TileKind::Level(1), 0, 17), "tile/1/000.p/17");
    assert_eq!(path(TileKind::Entries, 1067, 1), "tile/entries/x001/067.p/1");
    for number in [0, 9, 999, 1000, 1_000_000, 999_999_999] {
        let theirs = tlog_tiles::tile::Tile::new(8, 2, number, 256, false).path();
        assert_eq!(path(TileKind::Level(2), number, 256), theirs.replacen("tile/8/", "tile/", 1));
    }
}

#[test]
fn a_third_party_client_verifies_the_directory() {
    let (log, mut store) = Log::filled(SMALL, 66_000);
    let certified = log.committee.certify_store(&mut store);
    store.write_partial_tiles().unwrap();
    drop(store);
    let note = fs::read(log.path(CHECKPOINT_FILE)).unwrap();
    let note = signed_note::Note::from_bytes(&note).unwrap();
    let checkpoint = tlog_tiles::checkpoint::Checkpoint::from_bytes(note.text()).unwrap();
    assert_eq!((checkpoint.size(), checkpoint.hash().0), (66_000, certified.root().0));

    let directory = Directory(log.dir.path().to_owned());
    let reader = tlog_tiles::tile::TileHashReader::new(checkpoint.size(), *checkpoint.hash(), &directory);
    for index in [0u64, 255, 256, 40_000, 65_535, 65_536, 65_999] {
        let proof = tlog_tiles::tlog::prove_record(checkpoint.size(), index, &reader).unwrap();
        let leaf = tlog_tiles::tlog::record_hash(&entry(index).encode().unwrap());
        tlog_tiles::tlog::check_record(&proof, checkpoint.size(), *checkpoint.hash(), index, leaf).unwrap();
    }
    let bundle = fs::read(log.path("tile/entries/257.p/208")).unwrap();
    assert_eq!(bundle, encode_bundle(&encoded(65_792..66_000)));
}

#[test]
fn tiles_served_from_memory_are_those_of_the_directory() {
    let (log, mut store) = Log::filled(SMALL, 1100);
    log.committee.certify_store(&mut store);
    store.write_partial_tiles().unwrap();
    let leaves = Leaves::of_entries(1100).0;
    for (number, width) in [(0, 256), (3, 256), (4, 76), (4, 1), (2, 100)] {
        let tile = store.tile(TileKind::Level(0), number, width).unwrap();
        let from = (number * 256) as usize;
        assert_eq!(tile, encode_hashes(&leaves[from..from + width as usize]));
        let bundle = store.tile(TileKind::Entries, number, width).unwrap();
        assert_eq!(bundle, encode_bundle(&encoded(number * 256..number * 256 + width)));
    }
    for (kind, number, width) in [(TileKind::Level(0), 4, 76), (TileKind::Level(1), 0, 4), (TileKind::Entries, 1, 256)]
    {
        let file = fs::read(log.path(tile_path(kind, number, width))).unwrap();
        assert_eq!(store.tile(kind, number, width).unwrap(), file);
    }
    for (kind, number, width) in [
        (TileKind::Level(0), 4, 77),
        (TileKind::Level(0), 4, 0),
        (TileKind::Level(1), 0, 5),
        (TileKind::Level(2), 0, 1),
        (TileKind::Level(255), 0, 1),
        (TileKind::Entries, u64::MAX, 256),
        (TileKind::Entries, 0, 257),
    ] {
        assert!(matches!(store.tile(kind, number, width), Err(StoreError::OutOfRange { .. })), "{kind:?} {number}");
    }
}

#[test]
fn damaged_tiles_are_named_and_never_served() {
    let (log, mut store) = Log::filled(SMALL, 1200);
    store.rotate().unwrap();
    drop(store);
    let bundle = tile_path(TileKind::Entries, 1, 256);
    log.flip(&bundle, 5000);
    let store = log.open();
    assert_eq!(store.entry(3).unwrap(), entry(3));
    let StoreError::Corrupt { path, offset, expected, found } = store.entry(300).unwrap_err() else {
        panic!("not the error of damage");
    };
    assert_eq!(path, log.path(&bundle));
    assert!(offset <= 5000 && offset > 4800, "{offset}");
    assert!(Leaves::of_entries(512).0[256..].contains(&expected));
    assert_ne!(expected, found);
    assert!(store.entries(250..270, usize::MAX).is_err());
    drop(store);

    let leaves = tile_path(TileKind::Level(0), 0, 256);
    log.flip(&leaves, 77);
    let store = log.open();
    let refused = store.inclusion_proof(3, 1200).unwrap_err();
    assert!(matches!(&refused, StoreError::Corrupt { path, offset: 0, .. } if *path == log.path(&leaves)), "{refused}");
    assert!(matches!(store.entry(3), Err(StoreError::Corrupt { .. })));
    drop(store);

    fs::remove_file(log.path(tile_path(TileKind::Entries, 2, 256))).unwrap();
    assert!(matches!(log.open().entry(600), Err(StoreError::Read { .. })));
    fs::write(log.path(tile_path(TileKind::Entries, 2, 256)), [0, 200, 1]).unwrap();
    assert!(matches!(log.open().entry(600), Err(StoreError::Malformed { offset: 0, .. })));
}
