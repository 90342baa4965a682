//! Keys of the hosts a cloud is asked for. They derive from the bridge's own key and the instance's name, so that a bridge
//! that lost its disk but not its key still knows its hosts and is let in.

use coalition_host::keys::{KeyPair, from_seed};
use zeroize::Zeroizing;

use crate::backend::InstanceName;

const CONTEXT: &str = "compute-bridge 2026-11 keys of cloud hosts";

/// Derives keys. `Debug` shows nothing.
#[derive(Clone)]
pub struct MachineKeys(Zeroizing<[u8; 32]>);

impl MachineKeys {
    /// From the bridge's key.
    #[must_use]
    pub fn new(bridge: &[u8; 32]) -> Self {
        Self(Zeroizing::new(blake3::derive_key(CONTEXT, bridge)))
    }

    fn pair(&self, purpose: &[u8], name: &InstanceName) -> KeyPair {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(purpose).update(&[0]).update(name.as_str().as_bytes());
        let seed = Zeroizing::new(*hasher.finalize().as_bytes());
        from_seed(&seed, "coalition")
    }

    /// The host key this instance shows.
    #[must_use]
    pub fn host(&self, name: &InstanceName) -> KeyPair {
        self.pair(b"host", name)
    }

    /// The key the bridge logs in to this instance with.
    #[must_use]
    pub fn login(&self, name: &InstanceName) -> KeyPair {
        self.pair(b"login", name)
    }
}

impl std::fmt::Debug for MachineKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MachineKeys(redacted)")
    }
}
