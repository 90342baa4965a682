//! The secret keys of a development coalition, one file each, readable by their owner only.

use std::path::{Path, PathBuf};

use coalition_attest::{DevelopmentRoot, TrustRoot};
use coalition_shuffle::{DealerOutput, KeyShare};
use coalition_universe::NodeKey;
use compute_bridge::platform::Platform;

use super::manifest::{MEMBERS, STORE, UNSEAL_MEMBERS, UNSEAL_THRESHOLD, member_name, unseal_name};
use crate::{
    error::{Context, Result},
    home::{private_dir, private_write},
    roles::config::load_key,
};

/// The three keys a roster names for a member.
#[derive(Debug, Clone)]
pub struct MemberSecrets {
    /// Its node's identity.
    pub node: NodeKey,
    /// Votes in the ordering engine.
    pub consensus: NodeKey,
    /// Cosigns checkpoints.
    pub checkpoint: NodeKey,
}

/// Every secret but the unseal shares.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// The committee of Almanac and Compute.
    pub members: Vec<MemberSecrets>,
    /// The unseal committee. Consensus and checkpoint keys are reserved for the log it will keep of its own.
    pub unseal: Vec<MemberSecrets>,
    /// The bridge's node; signs its cards and logs as well.
    pub bridge_node: NodeKey,
    /// The content store's node.
    pub store_node: NodeKey,
    /// What this home pushes images as.
    pub pusher_node: NodeKey,
    /// The SSH server of the host shows this key.
    pub host_ssh: NodeKey,
    /// The bridge logs in to the host with this key.
    pub bridge_ssh: NodeKey,
    /// The development root that vouches for the bridge, in a coalition that asks for attestation.
    pub development: Option<TrustRoot>,
}

/// File of the development root, below the directory of keys.
pub const DEVELOPMENT_ROOT_FILE: &str = "development-root.json";

/// Reads the development root below `dir`, making it if it is not there.
///
/// # Errors
/// When the file cannot be used or written.
pub fn development_root(dir: &Path) -> Result<TrustRoot> {
    let path = dir.join(DEVELOPMENT_ROOT_FILE);
    let unusable = || format!("the development root {} cannot be used", path.display());
    if !path.exists() {
        let made = DevelopmentRoot::generate().or_fault("development_root", unusable)?;
        private_write(&path, made.to_secret().as_bytes())?;
    }
    let root = Platform::load_root(&path).or_input("key_unusable", unusable)?;
    root.trust_root().or_input("key_unusable", unusable)
}

/// Owner of the key a home pushes images with.
pub const PUSHER: &str = "pusher";

/// File of a key, below the directory of keys.
#[must_use]
pub fn key_file(owner: &str, purpose: &str) -> PathBuf {
    PathBuf::from(format!("{owner}.{purpose}.key"))
}

/// File of an unseal member's share.
#[must_use]
pub fn share_file(member: &str) -> PathBuf {
    PathBuf::from(format!("{member}.share"))
}

impl Secrets {
    /// Reads every key below `dir`, making those that are not there.
    ///
    /// # Errors
    /// When a file cannot be used or written.
    pub fn load_or_create(dir: &Path) -> Result<Self> {
        private_dir(dir)?;
        let key = |owner: &str, purpose: &str| {
            let path = dir.join(key_file(owner, purpose));
            if path.exists() {
                return load_key(&path);
            }
            NodeKey::load_or_create(&path).or_fault("disk", || format!("cannot make key {}", path.display()))
        };
        let member = |name: String| {
            Ok(MemberSecrets {
                node: key(&name, "node")?,
                consensus: key(&name, "consensus")?,
                checkpoint: key(&name, "checkpoint")?,
            })
        };
        Ok(Self {
            members: (0..MEMBERS).map(|i| member(member_name(i))).collect::<Result<_>>()?,
            unseal: (0..UNSEAL_MEMBERS).map(|i| member(unseal_name(i))).collect::<Result<_>>()?,
            bridge_node: key("bridge", "node")?,
            store_node: key(STORE, "node")?,
            pusher_node: key(PUSHER, "node")?,
            host_ssh: key("host", "ssh")?,
            bridge_ssh: key("bridge", "ssh")?,
            development: None,
        })
    }
}

/// Deals the unseal committee's key: this process knows all of it for a moment, which is why it is for development.
///
/// # Errors
/// When the shares cannot be written.
pub fn deal(dir: &Path) -> Result<coalition_shuffle::PublicParams> {
    let members = u8::try_from(UNSEAL_MEMBERS).or_fault("dealer", || "too many unseal members".into())?;
    let dealt = DealerOutput::deal(UNSEAL_THRESHOLD, members, &mut rand_core::OsRng)
        .or_fault("dealer", || "cannot deal the unseal key".into())?;
    for (i, share) in dealt.shares.iter().enumerate() {
        private_write(&dir.join(share_file(&unseal_name(i))), share.to_text().as_bytes())?;
    }
    Ok(dealt.params)
}

/// Reads an unseal member's share.
///
/// # Errors
/// When others can read the file, or it holds no share.
pub fn load_share(path: &Path) -> Result<KeyShare> {
    use std::os::unix::fs::MetadataExt;
    let shown = path.display();
    let unreadable = || format!("cannot read key share {shown}");
    let mode = std::fs::metadata(path).or_input("key_unusable", unreadable)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        let message = format!("key share {shown} has mode {mode:03o}; only its owner may read it");
        return Err(crate::error::CliError::input("key_unusable", message).hint(format!("run `chmod 600 {shown}`")));
    }
    let text = zeroize::Zeroizing::new(std::fs::read_to_string(path).or_input("key_unusable", unreadable)?);
    KeyShare::from_text(&text).or_input("key_unusable", || format!("{shown} holds no key share"))
}
