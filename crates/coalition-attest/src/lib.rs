//! Attestation of TDX guests, verified to a root that the policy names.
//!
//! * [`measurement`]: the registers of a guest. [`binding`]: what its report data ties together. [`policy`]: what a
//!   quote must satisfy, with a fingerprint. [`root`]: who vouches; Intel, or a labelled development root.
//! * [`quote`]: the bytes, parsed strictly. [`collateral`], [`pccs`]: what Intel signs about platforms, and where it
//!   comes from. [`verify`], [`verdict`], [`cache`]: the judgement, what it says, and remembering it.
//! * [`evidence`]: a quote and its collateral as they travel together. [`slim`]: a quote where bytes are few.
//! * [`guest`]: quotes from the hardware this runs on. [`dev`]: quotes from software, under a development root.
//! * [`predict`]: the registers that a guest will have, and the log of how it came to those it has.
//! * [`ratls`]: TLS in which both sides show and verify quotes.
//!
//! ```
//! use coalition_attest::{Binding, DevelopmentRoot, Expect, Measurements, Mrtd, Nonce, Policy, QuoteSource, Verifier};
//! # use coalition::UniqueId;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (network, config) = (UniqueId::from_bytes([1; 32]), UniqueId::from_bytes([2; 32]));
//! # let (now_s, key, mrtd) = (1_800_000_000, b"public key", Mrtd([7; 48]));
//! // The guest: here in software. In a TDX guest, `ConfigfsTsm::default()` takes its place.
//! let root = DevelopmentRoot::generate()?;
//! let guest = root.guest(Measurements::of_mrtd(mrtd))?;
//! let nonce = Nonce { value: UniqueId::from_bytes([3; 32]), issued_s: now_s };
//! let binding = Binding { purpose: "example", network, key, config, nonce: nonce.value };
//! let quote = guest.quote(&binding.report_data())?;
//!
//! // The verifier: one policy, one root, one time.
//! let policy = Policy::strict(root.trust_root()?).require_mrtd(mrtd).max_quote_age_s(60)?;
//! let expect = Expect::bound("example", network, key, config, nonce);
//! let verdict = Verifier::new(policy).verify(&quote, &root.collateral(now_s)?, &expect, now_s + 5);
//! assert!(verdict.is_valid());
//! assert!(verdict.to_string().contains("DEVELOPMENT ROOT — not attested by Intel"));
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here reads a clock, and only [`pccs`] uses a network: times are arguments, and collateral is looked up,
//! not fetched, while verifying. Who trusts whom, and what no quote proves, is in
//! `docs/ATTESTATION.md`.

pub mod binding;
pub mod cache;
pub mod collateral;
pub mod dev;
mod diagnose;
pub mod evidence;
pub mod guest;
mod intel_root;
pub mod measurement;
pub mod pccs;
pub mod policy;
pub mod predict;
pub mod quote;
pub mod ratls;
pub mod root;
pub mod slim;
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
pub use slim::{MAX_SLIM_BYTES, SlimError};
pub use verdict::{Guest, Invalid, NotValid, Outcome, Unchecked, Verdict};
pub use verify::Verifier;
