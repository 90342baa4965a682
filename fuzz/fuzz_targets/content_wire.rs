#![no_main]
//! What content stores and requesters' nodes are asked and answer, slices, and the sources an envelope names. One encoding each.

use coalition_content::{
    Content,
    pointer::Pointer,
    tree::write_slice,
    wire::{Ask, Listing, PutAnswer, decode_answer, encode},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((which, body)) = data.split_first() else { return };
    let methods = ["content.stat", "content.slice", "content.put", "content.list", "content.remove"];
    if let Some(method) = methods.get(usize::from(*which)) {
        if let Ok(ask) = Ask::read(method, body) {
            assert_eq!((ask.method(), ask.to_body().as_slice()), (*method, body));
        }
        return;
    }
    match which {
        5 => {
            if let Ok(answer) = decode_answer::<PutAnswer>(body) {
                assert_eq!(encode(&answer), body);
            }
        }
        6 => {
            if let Ok(answer) = decode_answer::<Listing>(body) {
                assert_eq!(encode(&answer), body);
            }
        }
        7 => {
            if let Ok(pointer) = Pointer::from_bytes(body) {
                assert_eq!(Pointer::from_bytes(&pointer.to_bytes()).as_ref(), Ok(&pointer));
            }
        }
        _ => slice(*which, body),
    }
});

/// A stranger's slice of a content that is known: nothing of it may be kept unless it is the content's.
fn slice(pieces: u8, body: &[u8]) {
    let size = u64::from(pieces % 3) * 1_048_576 + 70_000;
    let known = vec![7; usize::try_from(size).expect("small")];
    let hash = coalition::UniqueId::from_bytes(*blake3::hash(&known).as_bytes());
    let content = Content::new(hash, size).expect("in range");
    let (Ok(data), Ok(tree)) = (tempfile::tempfile(), tempfile::tempfile()) else { return };
    let _ = write_slice(content, body, &content.piece(0), &data, &tree);
    let mut kept = Vec::new();
    std::io::Read::read_to_end(&mut &data, &mut kept).expect("a file of ours");
    assert!(kept.iter().all(|byte| *byte == 7), "bytes of another content were kept");
}
