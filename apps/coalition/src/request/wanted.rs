//! The image of a request: a file here, or content of a store.

use std::{convert::Infallible, path::PathBuf, str::FromStr};

use coalition::UniqueId;
use coalition_content::pointer::Pointer;
use coalition_universe::PeerAddress;

use super::plan;
use crate::{
    commands::stored::not_stored,
    error::{CliError, Context, Result},
    home::Home,
    image::{self, ImageFacts, known::KnownImage},
    output::Steps,
    roles::config::UniverseConfig,
    stores::Stores,
};

/// What `--image` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageChoice {
    /// A file on this machine.
    File(PathBuf),
    /// Content of a store, by blake3.
    Stored(UniqueId),
}

impl FromStr for ImageChoice {
    type Err = Infallible;

    /// 64 hex digits are a blake3, unless a file has that name.
    fn from_str(text: &str) -> std::result::Result<Self, Infallible> {
        let hash = coalition::parse_id(text).ok().filter(|_| text.len() == 64 && !std::path::Path::new(text).exists());
        Ok(hash.map_or_else(|| Self::File(text.into()), Self::Stored))
    }
}

/// An image that can be asked for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) hash: UniqueId,
    pub(super) size_bytes: u64,
    /// What it unpacks to, if that is known here.
    disk_bytes: Option<u64>,
    /// A system of its own, as far as is known here: what it runs is in it.
    boots: bool,
    /// The file, if it is here.
    pub(super) facts: Option<ImageFacts>,
    /// Stores that have it.
    pub(super) stores: Vec<PeerAddress>,
}

impl Wanted {
    /// Finds the image, and who else has it.
    pub(super) async fn find(
        home: &Home,
        choice: &ImageChoice,
        asked: &[PeerAddress],
        steps: &mut Steps,
    ) -> Result<Self> {
        steps.begin("checking the image");
        match choice {
            ImageChoice::File(path) => {
                let facts = image::read_facts(path, coalition_shuffle::envelope::MAX_IMAGE_BYTES)?;
                let contents = image::inspect(path)?;
                let (disk_bytes, boots) = (contents.disk_bytes, contents.boots.is_some());
                let pushed = KnownImage::load(home, facts.hash)?.map_or_else(Vec::new, |known| known.stores);
                let stores = ask(home, union(asked, &pushed), facts.hash).await?;
                let stores = stores.into_iter().filter(|(_, size)| *size == facts.size_bytes);
                let stores = stores.map(|(store, _)| store).collect();
                let (hash, size_bytes) = (facts.hash, facts.size_bytes);
                Ok(Self { hash, size_bytes, disk_bytes: Some(disk_bytes), boots, facts: Some(facts), stores })
            }
            ImageChoice::Stored(hash) => Self::stored(home, *hash, asked).await,
        }
    }

    /// An image that is only a name here: its request was made before.
    pub(super) const fn elsewhere(hash: UniqueId) -> Self {
        Self { hash, size_bytes: 0, disk_bytes: None, boots: false, facts: None, stores: Vec::new() }
    }

    async fn stored(home: &Home, hash: UniqueId, asked: &[PeerAddress]) -> Result<Self> {
        let known = KnownImage::load(home, hash)?;
        let pushed = known.as_ref().map_or_else(Vec::new, |known| known.stores.clone());
        let own: Vec<PeerAddress> = match home.universe().exists() {
            true => UniverseConfig::load(&home.universe())?.0.stores.into_values().collect(),
            false => Vec::new(),
        };
        let having = ask(home, union(&union(asked, &pushed), &own), hash).await?;
        let size_bytes = known.as_ref().map(|known| known.size_bytes).or_else(|| having.first().map(|(_, size)| *size));
        let Some(size_bytes) = size_bytes else { return Err(not_stored(hash)) };
        let stores: Vec<PeerAddress> =
            having.into_iter().filter(|(_, size)| *size == size_bytes).map(|(store, _)| store).collect();
        if stores.is_empty() {
            return Err(not_stored(hash));
        }
        Ok(Self {
            hash,
            size_bytes,
            disk_bytes: known.map(|known| known.disk_bytes),
            boots: false,
            facts: None,
            stores,
        })
    }

    /// The disk to ask for, in MiB.
    pub(super) fn disk_mib(&self, said: Option<u32>, steps: &mut Steps) -> Result<u32> {
        if self.disk_bytes.is_none() && said.is_none() {
            steps.pause();
            steps.output().warn("what this image unpacks to is not known here; --disk asks for more than the default");
        }
        plan::disk_mib(said, self.disk_bytes.unwrap_or(self.size_bytes))
    }

    /// The envelope's pointer: the stores, then this request's own node if it serves the image or takes evidence.
    pub(super) fn pointer(&self, own: Option<PeerAddress>) -> Result<Pointer> {
        let most = coalition_content::pointer::MAX_SOURCES - usize::from(own.is_some());
        let mut sources: Vec<PeerAddress> = self.stores.iter().take(most).cloned().chain(own).collect();
        loop {
            match Pointer::new(sources.clone()) {
                // Too long for an envelope: the last store is left out.
                Err(coalition_content::pointer::PointerError::TooLong(_)) if sources.len() > 1 => {
                    let last_store = sources.len().saturating_sub(2);
                    sources.remove(last_store);
                }
                made => return made.or_input("image_pointer", || "the image's sources cannot be named".into()),
            }
        }
    }

    /// Whether there is somebody in it to run a command.
    pub(super) fn check_command(&self, command: &[String]) -> Result<()> {
        if !self.boots || command.is_empty() {
            return Ok(());
        }
        let message = "the image is a system of its own, which runs what is in it; nobody in it takes a command";
        Err(CliError::input("image_takes_no_command", message)
            .hint("leave out --command, and start it from the image or by `coalition ssh`"))
    }

    /// Whether a provider can fetch it without this process.
    pub(super) fn check_detached(&self) -> Result<()> {
        match self.stores.is_empty() {
            false => Ok(()),
            true => Err(CliError::input("image_not_stored", "a detached request needs its image in a store")
                .hint("push it first: `coalition image push FILE`")),
        }
    }
}

/// Which of these have it. No store at all is no error: the image is here.
async fn ask(home: &Home, candidates: Vec<PeerAddress>, hash: UniqueId) -> Result<Vec<(PeerAddress, u64)>> {
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let stores = Stores::as_nobody(home, &candidates).await?;
    let having = stores.having(hash).await;
    stores.close().await;
    Ok(having)
}

/// Both, each peer once, in order.
fn union(first: &[PeerAddress], then: &[PeerAddress]) -> Vec<PeerAddress> {
    let mut all: Vec<PeerAddress> = Vec::new();
    for address in first.iter().chain(then) {
        if all.iter().all(|known| known.peer != address.peer) {
            all.push(address.clone());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(seed: u8, places: usize) -> PeerAddress {
        let peer = coalition_universe::NodeKey::from_bytes([seed; 32]).peer_id();
        let places: Vec<String> = (0..places).map(|i| format!("203.0.113.{i}:4000")).collect();
        format!("{peer}@{}", places.join(",")).parse().unwrap()
    }

    fn wanted(stores: Vec<PeerAddress>) -> Wanted {
        Wanted {
            hash: UniqueId::from_bytes([1; 32]),
            size_bytes: 5,
            disk_bytes: None,
            boots: false,
            facts: None,
            stores,
        }
    }

    #[test]
    fn a_hash_is_told_from_a_file() {
        let hash = "ab".repeat(32);
        assert_eq!(hash.parse(), Ok(ImageChoice::Stored(UniqueId::from_bytes([0xab; 32]))));
        assert_eq!("hello.tar".parse(), Ok(ImageChoice::File("hello.tar".into())));
        assert_eq!(hash[..63].parse(), Ok(ImageChoice::File(hash[..63].into())));
    }

    #[test]
    fn the_pointer_names_the_stores_and_then_the_own_node() {
        let alone = wanted(vec![]).pointer(Some(address(9, 1))).unwrap();
        assert_eq!(alone.to_bytes(), address(9, 1).to_string().into_bytes(), "as before there were stores");
        let both = wanted(vec![address(1, 1), address(2, 1)]).pointer(Some(address(9, 1))).unwrap();
        assert_eq!(both.sources(), [address(1, 1), address(2, 1), address(9, 1)]);
        let many = wanted((1..20).map(|seed| address(seed, 1)).collect()).pointer(Some(address(99, 1))).unwrap();
        assert_eq!((many.sources().len(), &many.sources()[7]), (8, &address(99, 1)));
        let long = wanted((1..8).map(|seed| address(seed, 20)).collect()).pointer(Some(address(99, 1))).unwrap();
        assert_eq!((long.sources().len(), &long.sources()[2]), (3, &address(99, 1)), "as many as fit");
        assert!(wanted(vec![]).pointer(None).is_err());
        assert_eq!(wanted(vec![]).check_detached().unwrap_err().code(), "image_not_stored");
        wanted(vec![address(1, 1)]).check_detached().unwrap();
        assert_eq!(union(&[address(1, 1)], &[address(1, 2), address(2, 1)]), [address(1, 1), address(2, 1)]);
    }
}
