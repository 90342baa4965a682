//! Several byte strings in one network message: each is a big-endian `u32` length and the bytes.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes a string of `len` takes in a frame.
pub(crate) const fn framed_len(len: usize) -> usize {
    4 + len
}

/// Joins `items`; the reverse of [`decode`].
pub(crate) fn encode(items: &[Bytes]) -> Bytes {
    let mut out = BytesMut::with_capacity(items.iter().map(|i| framed_len(i.len())).sum());
    for item in items {
        let len = u32::try_from(item.len()).expect("limits keep every item far below 4 GiB");
        out.put_u32(len);
        out.put_slice(item);
    }
    out.freeze()
}

/// Splits a frame; `None` if it is malformed or an item exceeds `max_item` bytes.
///
/// Items are copied, so that keeping a small one does not keep the whole frame.
pub(crate) fn decode(mut frame: &[u8], max_item: usize) -> Option<Vec<Bytes>> {
    let mut items = Vec::new();
    while !frame.is_empty() {
        let (head, rest) = frame.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_be_bytes(*head)).ok()?;
        if len > max_item || len > rest.len() {
            return None;
        }
        let (item, rest) = rest.split_at(len);
        items.push(Bytes::copy_from_slice(item));
        frame = rest;
    }
    Some(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(items in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let items: Vec<Bytes> = items.into_iter().map(Bytes::from).collect();
            prop_assert_eq!(decode(&encode(&items), 50), Some(items));
        }

        #[test]
        fn any_bytes_are_refused_or_canonical(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Some(items) = decode(&bytes, 64) {
                prop_assert_eq!(encode(&items), bytes);
            }
        }
    }

    #[test]
    fn too_long_and_truncated_are_refused() {
        let frame = encode(&[Bytes::from_static(b"hello")]);
        assert!(decode(&frame, 4).is_none());
        assert!(decode(&frame[..8], 5).is_none());
        assert!(decode(&[0, 0, 0], 5).is_none());
        assert_eq!(decode(&[], 5), Some(vec![]));
    }
}
