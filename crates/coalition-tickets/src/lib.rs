//! Tickets: what a peer shows at a door, and who decides whether it opens.
//!
//! * [`demand`]: what a door demands, declared in the specification's words and folded into a config's access rules.
//!   [`acl`] and [`tdx`] hold the single demands, [`TicketValidator`], [`And`] and [`Or`] compose them.
//! * [`presentation`]: what a peer shows: a few tickets in one strict form. [`tdx_ticket`]: an attestation bound to its bearer.
//!   [`issuer`]: tickets of a coalition's issuer, which are the substrate's own JWTs.
//! * [`resources`], [`sources`]: what a verifier must know before it can judge: policies, issuers, rosters, reputation.
//!   [`admission`]: the judgement, a pure function of bearer, presentation and time.
//! * [`door`]: an admission that draws challenges and remembers whom it let in, for calls. [`substrate`]: the same admission as
//!   a validator of mosaik's streams and groups, which drop a peer when its ticket expires.
//!
//! ```
//! use coalition::{Mrtd, unique_id};
//! use coalition_tickets::{ComputeModule, ReputationFloor, Resources, Tdx, TicketValidator};
//!
//! let compute = unique_id!("a Compute module");
//! let validator = TicketValidator::new()
//!     .require_ticket(Tdx::new().require_mrtd(Mrtd([7; 48])))
//!     .require_ticket(ComputeModule::pin(compute))
//!     .require_ticket(ReputationFloor::from(unique_id!("a reputation organism"), 0.60))
//!     .verify_peer(ComputeModule::requester_acl(compute));
//!
//! // What a config publishes of it, and its name there.
//! assert_eq!(validator.acl_rules().len(), 4);
//! // Nothing is enforced that the verifier cannot judge: this one knows neither the module nor any reputation.
//! assert!(validator.enforce(&Resources::new()).is_err());
//! ```
//!
//! Nothing here reads a clock except [`substrate`], because the substrate's interface passes none.

pub mod acl;
pub mod admission;
pub mod challenges;
pub mod demand;
pub mod door;
pub mod file;
pub mod issuer;
pub mod presentation;
pub mod refused;
pub mod resources;
pub mod sources;
pub mod substrate;
pub mod tdx;
pub mod tdx_ticket;

pub use acl::{ComputeModule, MarketSettlement, ReputationFloor};
pub use admission::{Admission, Bearer};
pub use challenges::{Challenges, Nonces};
pub use coalition_attest::Nonce;
pub use demand::{And, Demand, Or, TicketValidator};
pub use door::Door;
pub use file::TicketFileError;
pub use issuer::{Charter, CharterError, IssuedTicket, Issuer};
pub use presentation::{MAX_PRESENTATION_BYTES, Presentation, PresentationError, Shown};
pub use refused::Refused;
pub use resources::{Resources, Unresolved};
pub use substrate::SubstrateValidator;
pub use tdx::{AdmitsMeasurements, Tdx};
pub use tdx_ticket::{TICKET_PURPOSE, TdxTicket, TdxTicketError};
