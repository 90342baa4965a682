//! Where content is: the addresses in an envelope's image pointer. Source: `docs/protocol/content.md`, section 6.

use coalition_universe::{PeerAddress, PeerId};

/// Most addresses of a pointer.
pub const MAX_SOURCES: usize = 8;
/// Most bytes of a pointer, as the envelope has room for.
pub const MAX_POINTER_BYTES: usize = 1_024;

/// Why a pointer leads nowhere. Says nothing of what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PointerError {
    /// Not addresses with one space between them.
    #[error("the image pointer is no list of peer addresses")]
    Malformed,
    /// More addresses than are taken.
    #[error("the image pointer names {0} sources, at most {MAX_SOURCES} are taken")]
    TooMany(usize),
    /// A peer stands there twice.
    #[error("the image pointer names one peer twice")]
    Repeated,
    /// The addresses are too long together.
    #[error("the image pointer has {0} bytes, at most {MAX_POINTER_BYTES} are taken; name fewer sources")]
    TooLong(usize),
}

/// Addresses of whoever has the content, in the order in which they are to be asked. 1 to [`MAX_SOURCES`], no peer twice.
#[derive(Clone, PartialEq, Eq)]
pub struct Pointer(Vec<PeerAddress>);

impl Pointer {
    /// Of these addresses.
    ///
    /// # Errors
    /// [`PointerError`].
    pub fn new(sources: Vec<PeerAddress>) -> Result<Self, PointerError> {
        let again = |i: usize| sources[..i].iter().any(|earlier| earlier.peer == sources[i].peer);
        match sources.len() {
            0 => return Err(PointerError::Malformed),
            found if found > MAX_SOURCES => return Err(PointerError::TooMany(found)),
            found if (1..found).any(again) => return Err(PointerError::Repeated),
            _ => {}
        }
        let pointer = Self(sources);
        match pointer.to_bytes().len() {
            found if found > MAX_POINTER_BYTES => Err(PointerError::TooLong(found)),
            _ => Ok(pointer),
        }
    }

    /// Reads [`Pointer::to_bytes`]. One address alone is a pointer, too.
    ///
    /// # Errors
    /// [`PointerError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PointerError> {
        if bytes.len() > MAX_POINTER_BYTES {
            return Err(PointerError::TooLong(bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| PointerError::Malformed)?;
        // What reads relays' URLs passes over line ends.
        if !text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
            return Err(PointerError::Malformed);
        }
        let parts: Vec<&str> = text.split(' ').collect();
        if parts.len() > MAX_SOURCES {
            return Err(PointerError::TooMany(parts.len()));
        }
        let parsed: Result<Vec<PeerAddress>, _> = parts.into_iter().map(str::parse).collect();
        Self::new(parsed.map_err(|_| PointerError::Malformed)?)
    }

    /// The addresses as text, one space between them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ").into_bytes()
    }

    /// The addresses, in order.
    #[must_use]
    pub fn sources(&self) -> &[PeerAddress] {
        &self.0
    }

    /// The address of this peer, if it is one of them.
    #[must_use]
    pub fn of(&self, peer: &PeerId) -> Option<&PeerAddress> {
        self.0.iter().find(|address| address.peer == *peer)
    }
}

/// Addresses of requesters are private.
impl std::fmt::Debug for Pointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pointer({} sources, redacted)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use coalition_universe::NodeKey;

    use super::*;

    fn address(seed: u8) -> PeerAddress {
        let peer = NodeKey::from_bytes([seed; 32]).peer_id();
        format!("{peer}@127.0.0.1:40{seed:02},http://127.0.0.1:3340/").parse().unwrap()
    }

    /// The golden bytes, and what earlier envelopes carry.
    #[test]
    fn pointers_are_these_bytes() {
        let pointer = Pointer::new(vec![address(1), address(2)]).unwrap();
        let golden = include_str!("../tests/vectors/pointer.txt");
        assert_eq!(String::from_utf8(pointer.to_bytes()).unwrap(), golden.trim_end_matches('\n'));
        assert_eq!(Pointer::from_bytes(&pointer.to_bytes()).unwrap(), pointer);
        let alone = address(3).to_string();
        assert_eq!(Pointer::from_bytes(alone.as_bytes()).unwrap().sources(), [address(3)]);
        assert_eq!(pointer.of(&address(2).peer), Some(&address(2)));
        assert_eq!(pointer.of(&address(3).peer), None);
        assert!(!format!("{pointer:?}").contains("127.0.0.1"));
    }

    #[test]
    fn what_leads_nowhere_is_named() {
        let one = address(1).to_string();
        for bad in
            ["", " ", "nowhere", &format!("{one} "), &format!(" {one}"), &format!("{one}  {one}"), &format!("{one}\n")]
        {
            assert_eq!(Pointer::from_bytes(bad.as_bytes()), Err(PointerError::Malformed), "{bad:?}");
        }
        assert_eq!(Pointer::from_bytes(&[0xff, 0xfe]), Err(PointerError::Malformed));
        assert_eq!(Pointer::from_bytes(format!("{one} {one}").as_bytes()), Err(PointerError::Repeated));
        assert_eq!(Pointer::from_bytes(" ".repeat(9).as_bytes()), Err(PointerError::TooMany(10)));
        assert_eq!(Pointer::from_bytes(&[b' '; 1_025]), Err(PointerError::TooLong(1_025)));
        let long = PeerAddress { relay: Some(format!("http://{}/", "a".repeat(950))), ..address(1) };
        assert!(matches!(Pointer::new(vec![long]), Err(PointerError::TooLong(_))));
    }
}
