//! The next config, as the log it replaces carries it.
//!
//! An announced retirement ([`crate::retirement`]) whose marker names a successor may bring that one's whole published config, and
//! where its members were when it was approved. Who reads the old log has the new config certified by the old quorum, and needs to
//! trust and to fetch nothing else.

use coalition::{CommitteeContent, ComponentRef, PublishedConfig, PublishedError, RetirementMarker, Roster, UniqueId};

use crate::checkpoint::{RosterError, RosterVerifier};

/// Longest [`Successor`], in bytes: what an entry holds beside the longest marker and the most approvals.
pub const MAX_SUCCESSOR_BYTES: usize = 39 * 1024;
/// Longest text of one member's places, in bytes.
pub const MAX_PLACES_BYTES: usize = u8::MAX as usize;

/// Why bytes are no successor, or a config is not that of the organism a marker names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuccessorError {
    /// Longer than [`MAX_SUCCESSOR_BYTES`].
    #[error(
        "the successor's config and addresses have {bytes} bytes, an entry has room for {MAX_SUCCESSOR_BYTES}; \
         publish a smaller config"
    )]
    TooLong {
        /// Bytes there are.
        bytes: usize,
    },
    /// Not the canonical form.
    #[error("these {bytes} bytes are no successor's config and addresses")]
    Malformed {
        /// Length of the bytes.
        bytes: usize,
    },
    /// The config is none.
    #[error("the successor's config is not usable")]
    Config(#[source] Box<PublishedError>),
    /// The marker names no organism, so no config can be that organism's.
    #[error("the marker names no organism as the replacement; leave out the config, or name one")]
    NoOrganism,
    /// The config does not publish what the marker names.
    #[error("the config of {coalition} publishes no organism {replacement}, which the marker names as the replacement")]
    OtherOrganism {
        /// Name of the config's coalition.
        coalition: String,
        /// Id the marker names.
        replacement: UniqueId,
    },
    /// The organism the marker names is run by no committee.
    #[error("the organism the marker names is run by no committee: {reason}")]
    NoCommittee {
        /// Why its content is none.
        reason: String,
    },
    /// It succeeds nobody, or somebody else.
    #[error(
        "the replacement {replacement} names {} as its predecessor, not {expected}; make its config with \
         `coalition successor config`", found.map_or_else(|| "nobody".to_owned(), |found| found.to_string())
    )]
    OtherPredecessor {
        /// Id the marker names.
        replacement: UniqueId,
        /// Predecessor in its content.
        found: Option<UniqueId>,
        /// The organism that retires.
        expected: UniqueId,
    },
    /// A key of its roster cannot verify anything.
    #[error("the successor's roster cannot certify")]
    Roster(#[from] RosterError),
    /// Places of a member its roster does not have.
    #[error("there are places of member {member}, the successor's roster has {members}")]
    UnknownMember {
        /// Position claimed.
        member: u8,
        /// Members in the roster.
        members: usize,
    },
}

/// Where a member of the successor can be reached: its operators' word, which says nothing about who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Position in the successor's roster.
    pub member: u8,
    /// Socket addresses and a relay's URL, separated by commas; at most [`MAX_PLACES_BYTES`].
    pub at: String,
}

/// A published config, and where the members of the organism that succeeds can be reached.
///
/// Bytes: `u32 length ‖ config ‖ u8 places ‖ (u8 member ‖ u8 length ‖ text)…`, members increasing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Successor {
    config: PublishedConfig,
    places: Vec<Place>,
}

impl Successor {
    /// Puts places beside a config, in canonical order; of several of one member the first counts, and what is no printable text of
    /// at most [`MAX_PLACES_BYTES`] is left out.
    ///
    /// # Errors
    /// [`SuccessorError::TooLong`].
    pub fn new(config: PublishedConfig, mut places: Vec<Place>) -> Result<Self, SuccessorError> {
        places.retain(|place| is_text(place.at.as_bytes()));
        places.sort_by_key(|place| place.member);
        places.dedup_by_key(|place| place.member);
        let successor = Self { config, places };
        match successor.to_bytes().len() {
            bytes if bytes > MAX_SUCCESSOR_BYTES => Err(SuccessorError::TooLong { bytes }),
            _ => Ok(successor),
        }
    }

    /// The published config; its hex form is what readers pin.
    #[must_use]
    pub const fn config(&self) -> &PublishedConfig {
        &self.config
    }

    /// Where members could be reached when this was approved.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The canonical bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let config = self.config.to_bytes();
        let mut out = u32::try_from(config.len()).expect("a config is bounded at 4 MiB").to_be_bytes().to_vec();
        out.extend_from_slice(&config);
        out.push(u8::try_from(self.places.len()).expect("one a member, and those are numbered by a byte"));
        for place in &self.places {
            out.push(place.member);
            out.push(u8::try_from(place.at.len()).expect("bounded when it was made"));
            out.extend_from_slice(place.at.as_bytes());
        }
        out
    }

    /// Reads the canonical form, and verifies the config in itself; what it has to do with a marker says [`Successor::check`].
    ///
    /// # Errors
    /// [`SuccessorError::TooLong`], [`SuccessorError::Malformed`], [`SuccessorError::Config`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SuccessorError> {
        let malformed = || SuccessorError::Malformed { bytes: bytes.len() };
        if bytes.len() > MAX_SUCCESSOR_BYTES {
            return Err(SuccessorError::TooLong { bytes: bytes.len() });
        }
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(malformed)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (config, rest) = rest.split_at_checked(length).ok_or_else(malformed)?;
        let places = read_places(rest).ok_or_else(malformed)?;
        let config = PublishedConfig::from_bytes(config).map_err(|error| SuccessorError::Config(Box::new(error)))?;
        let successor = Self { config, places };
        if successor.to_bytes() == bytes { Ok(successor) } else { Err(malformed()) }
    }

    /// Checks that the config publishes the organism that `marker` names, that a committee runs it, and that it names `organism`
    /// as its predecessor.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn check(&self, organism: UniqueId, marker: &RetirementMarker<'_>) -> Result<NextOrganism, SuccessorError> {
        let replacement = match marker.replacement {
            Some(ComponentRef::Organism(next) | ComponentRef::Module(_, next)) => next.stable_id,
            _ => return Err(SuccessorError::NoOrganism),
        };
        let published = self.config.by_id(replacement).ok_or_else(|| SuccessorError::OtherOrganism {
            coalition: self.config.instance_name().to_owned(),
            replacement,
        })?;
        let content = CommitteeContent::from_bytes(&published.content)
            .map_err(|error| SuccessorError::NoCommittee { reason: error.to_string() })?;
        if content.predecessor != Some(organism) {
            let found = content.predecessor;
            return Err(SuccessorError::OtherPredecessor { replacement, found, expected: organism });
        }
        RosterVerifier::new(replacement, &content.roster)?;
        let members = content.roster.len();
        match self.places.iter().find(|place| usize::from(place.member) >= members) {
            Some(place) => Err(SuccessorError::UnknownMember { member: place.member, members }),
            None => Ok(NextOrganism { id: replacement, content }),
        }
    }
}

/// The organism that takes over, by its config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextOrganism {
    /// Its id.
    pub id: UniqueId,
    /// What it publishes: service, genesis roster, parameters.
    pub content: CommitteeContent,
}

impl NextOrganism {
    /// Its genesis roster.
    #[must_use]
    pub const fn roster(&self) -> &Roster {
        &self.content.roster
    }
}

fn is_text(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.len() <= MAX_PLACES_BYTES && bytes.iter().all(u8::is_ascii_graphic)
}

fn read_places(bytes: &[u8]) -> Option<Vec<Place>> {
    let (&count, mut rest) = bytes.split_first()?;
    let mut places: Vec<Place> = Vec::new();
    for _ in 0..count {
        let ([member, length], after) = rest.split_first_chunk::<2>()?;
        let (text, after) = after.split_at_checked(usize::from(*length))?;
        if !is_text(text) || places.last().is_some_and(|last| last.member >= *member) {
            return None;
        }
        places.push(Place { member: *member, at: String::from_utf8_lossy(text).into_owned() });
        rest = after;
    }
    rest.is_empty().then_some(places)
}
