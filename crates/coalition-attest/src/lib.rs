//! Attestation of TDX guests, verified to a root that the policy names.
//!
//! * [`measurement`]: the registers of a guest. [`binding`]: what its report data ties together. [`policy`]: what a
//!   quote must satisfy, with a fingerprint. [`root`]: who vouches; Intel, or a labelled development root.
//! * [`quote`]: the bytes, parsed strictly. [`collateral`], [`pccs`]: what Intel signs about platforms, and where it
//!   comes from. [`verify`], [`verdict`], [`cache`]: the judgement, what it says, and remembering it.
//! * [`evidence`]: a quote and its collateral as they travel together.
//! * [`guest`]: quotes from the hardware this runs on. [`dev`]: quotes from software, under a development root.
//! * [`ratls`]: TLS in which both sides show and verify quotes.
//!
//! Nothing here reads a clock, and only [`pccs`] with the feature `http` uses a network: times are arguments, and
//! collateral is looked up, not fetched, while verifying. Who trusts whom, and what no quote proves, is in
//! `docs/ATTESTATION.md`.

pub mod binding;
pub mod cache;
pub mod collateral;
pub mod dev;
mod diagnose;
pub mod evidence;
pub mod guest;
pub mod measurement;
pub mod pccs;
pub mod policy;
pub mod quote;
pub mod ratls;
pub mod root;
pub mod verdict;
pub mod verify;

pub use binding::{Binding, BoundPart, Expect, Nonce};
pub use cache::VerdictCache;
pub use collateral::{Collateral, CollateralError, CollateralKey, CollateralSource, Directory, Origin};
pub use dev::{DevelopmentGuest, DevelopmentRoot};
pub use evidence::{Evidence, EvidenceError};
pub use guest::{ConfigfsTsm, GuestError, QuoteSource};
pub use measurement::{Measurements, MrConfigId, MrOwner, MrOwnerConfig, Mrtd, Register, RegisterValue, Rtmr};
pub use policy::{BindingRule, PlatformFlag, Policy, PolicyError, TcbStatus};
pub use quote::{Quote, QuoteError};
pub use root::{DEVELOPMENT_LABEL, RootError, TrustRoot};
pub use verdict::{Guest, Invalid, NotValid, Outcome, Unchecked, Verdict};
pub use verify::Verifier;
