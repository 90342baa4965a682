//! Peer identities and where to reach them.

use std::{fmt, net::SocketAddr, str::FromStr};

use iroh::{EndpointAddr, RelayUrl};
use serde::{Deserialize, Serialize};

/// What is wrong with a textual peer id or address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    /// Not 64 hexadecimal digits.
    #[error("a peer id is 64 hex digits, got {0:?}")]
    NotHex(String),
    /// Not a point of the curve.
    #[error("peer id {0} is not a valid ed25519 public key")]
    NotAKey(String),
    /// No `@`, or nothing after it.
    #[error("a peer address is PEER_ID@IP:PORT[,IP:PORT…][,RELAY_URL], got {0:?}")]
    Shape(String),
    /// A part that is neither a socket address nor a relay URL.
    #[error("{0:?} is neither IP:PORT nor a relay URL starting with http")]
    Place(String),
}

/// The ed25519 public key that names a peer on the universe. 32 bytes, shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerId([u8; 32]);

impl PeerId {
    /// Accepts the bytes of a valid public key.
    ///
    /// # Errors
    /// [`AddressError::NotAKey`] when the bytes are no curve point.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, AddressError> {
        mosaik::PeerId::from_bytes(&bytes).map(|_| Self(bytes)).map_err(|_| AddressError::NotAKey(hex::encode(bytes)))
    }

    /// The key's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn from_mosaik(id: &mosaik::PeerId) -> Self {
        Self(*id.as_bytes())
    }

    pub(crate) fn to_mosaik(self) -> mosaik::PeerId {
        mosaik::PeerId::from_bytes(&self.0).expect("checked when this PeerId was made")
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", &hex::encode(self.0)[..12])
    }
}

impl FromStr for PeerId {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| AddressError::NotHex(text.into()))?;
        Self::from_bytes(bytes)
    }
}

impl TryFrom<String> for PeerId {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PeerId> for String {
    fn from(id: PeerId) -> Self {
        id.to_string()
    }
}

/// A peer and the places it can be reached: socket addresses, a relay, or both.
///
/// Text form: `PEER_ID@127.0.0.1:4001,http://127.0.0.1:3340`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerAddress {
    /// Who.
    pub peer: PeerId,
    /// Direct socket addresses.
    pub direct: Vec<SocketAddr>,
    /// The relay the peer keeps a connection to.
    pub relay: Option<String>,
}

impl PeerAddress {
    pub(crate) fn to_endpoint(&self) -> Result<EndpointAddr, AddressError> {
        let mut address = EndpointAddr::new(self.peer.to_mosaik());
        for place in &self.direct {
            address = address.with_ip_addr(*place);
        }
        if let Some(relay) = &self.relay {
            let url: RelayUrl = relay.parse().map_err(|_| AddressError::Place(relay.clone()))?;
            address = address.with_relay_url(url);
        }
        Ok(address)
    }

    pub(crate) fn from_endpoint(address: &EndpointAddr) -> Self {
        Self {
            peer: PeerId::from_mosaik(&address.id),
            direct: address.ip_addrs().copied().collect(),
            relay: address.relay_urls().next().map(ToString::to_string),
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.peer)?;
        let places = self.direct.iter().map(ToString::to_string).chain(self.relay.clone());
        f.write_str(&places.collect::<Vec<_>>().join(","))
    }
}

impl FromStr for PeerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shape = || AddressError::Shape(text.into());
        let (peer, places) = text.split_once('@').ok_or_else(shape)?;
        let mut address = Self { peer: peer.parse()?, direct: Vec::new(), relay: None };
        for place in places.split(',').filter(|place| !place.is_empty()) {
            if place.starts_with("http") {
                place.parse::<RelayUrl>().map_err(|_| AddressError::Place(place.into()))?;
                address.relay = Some(place.into());
            } else {
                address.direct.push(place.parse().map_err(|_| AddressError::Place(place.into()))?);
            }
        }
        if address.direct.is_empty() && address.relay.is_none() {
            return Err(shape());
        }
        Ok(address)
    }
}

impl TryFrom<String> for PeerAddress {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PeerAddress> for String {
    fn from(address: PeerAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> PeerId {
        PeerId::from_mosaik(&mosaik::SecretKey::from_bytes(&[7; 32]).public())
    }

    #[test]
    fn an_address_survives_its_text_form() {
        let text = format!("{}@127.0.0.1:4001,[::1]:9,http://127.0.0.1:3340/", peer());
        let address: PeerAddress = text.parse().unwrap();
        assert_eq!(address.direct.len(), 2);
        assert_eq!(address.to_string(), text);
        assert_eq!(PeerAddress::from_endpoint(&address.to_endpoint().unwrap()), address);
    }

    #[test]
    fn a_bad_address_names_the_part() {
        assert!(matches!("x".parse::<PeerAddress>(), Err(AddressError::Shape(_))));
        let nowhere = format!("{}@", peer());
        assert!(matches!(nowhere.parse::<PeerAddress>(), Err(AddressError::Shape(_))));
        let odd = format!("{}@localhost", peer());
        assert_eq!(odd.parse::<PeerAddress>(), Err(AddressError::Place("localhost".into())));
        assert!(matches!("zz@1.1.1.1:1".parse::<PeerAddress>(), Err(AddressError::NotHex(_))));
    }
}
